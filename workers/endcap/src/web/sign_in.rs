//! The sign-in page of a browser that brings no token, and what its form sends. No script: a stranger's browser gets none of ours.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Method, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use tokio::time::timeout;

/// Where the form is sent.
pub(super) const PATH: &str = "/sign-in";

const PAGE: &str = include_str!("../../web/sign-in.html");
const FAULT: &str = "{fault}";
/// Most bytes of the form.
const FORM_MAX_BYTES: usize = 4_096;
/// How long the form may take to come in: nobody has shown who they are yet.
const FORM_TIME: Duration = Duration::from_secs(10);

/// Whether a person is asking, who can do nothing with JSON.
pub(super) fn is_wanted(method: &Method, headers: &HeaderMap) -> bool {
    let accepts = |value: &header::HeaderValue| value.to_str().is_ok_and(|kinds| kinds.contains("text/html"));
    method == Method::GET && headers.get_all(header::ACCEPT).iter().any(accepts)
}

/// The page, with what is wrong with the token given, if one was.
pub(super) fn page(fault: &str) -> Response {
    // Under the other pages' policy a browser would send the form as if it came from nowhere.
    let policy = [(header::REFERRER_POLICY, "same-origin")];
    (StatusCode::UNAUTHORIZED, policy, Html(PAGE.replace(FAULT, fault))).into_response()
}

/// The token of a form; empty where it holds none.
pub(super) async fn token_of(form: Body) -> String {
    let Ok(Ok(form)) = timeout(FORM_TIME, to_bytes(form, FORM_MAX_BYTES)).await else { return String::new() };
    let form = String::from_utf8_lossy(&form);
    let token = form.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap_or_default();
    // Of a token's characters a form writes this one otherwise; blanks around it come from copying.
    token.trim_matches('+').replace("%7E", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_forms_token_is_read_as_it_was_typed() {
        for (form, token) in [
            ("token=AZaz09-._%7E", "AZaz09-._~"),
            ("a=b&token=correct-horse", "correct-horse"),
            ("token=++correct-horse+", "correct-horse"),
            ("token=", ""),
            ("other=1", ""),
            ("", ""),
        ] {
            assert_eq!(token_of(Body::from(form)).await, token, "{form}");
        }
        assert_eq!(token_of(Body::from(format!("token={}", "x".repeat(FORM_MAX_BYTES)))).await, "", "a form that does not end");
    }

    #[test]
    fn a_person_is_told_from_a_program_by_what_is_accepted() {
        for (method, accept, wanted) in [
            (Method::GET, "text/html,application/xhtml+xml,*/*;q=0.8", true),
            (Method::GET, "application/json", false),
            (Method::GET, "*/*", false),
            (Method::POST, "text/html", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(is_wanted(&method, &headers), wanted, "{method} {accept}");
        }
        assert!(!is_wanted(&Method::GET, &HeaderMap::new()));
    }
}
