//! Who may ask, and what every answer carries.
//!
//! With a token, requests must bring it: as a bearer token, or as the cookie that the sign-in page sets for a browser (`/?token=…` sets it,
//! too). A person without it gets that page, a program an error in JSON. Without a token the address is a loopback one, and then the `Host`
//! must be too: a foreign web page can point its own name at 127.0.0.1, but cannot make the browser say `localhost`.
//!
//! Health is told without the token: an orchestrator's probe brings none. So is what the sign-in page is drawn with, which is no secret.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{error::ApiError, sign_in};
use crate::config::Token;

const COOKIE: &str = "endcap_token";
/// What is told to everybody.
const OPEN: [&str; 4] = ["/health/live", "/health/ready", "/app.css", "/favicon.svg"];

/// What a request must bring.
#[derive(Debug, Clone)]
pub struct Access {
    token: Option<Arc<Token>>,
}

impl Access {
    /// Access with `token`, or for loopback names only.
    pub fn new(token: Option<Token>) -> Self {
        Self { token: token.map(Arc::new) }
    }

    /// Whether a request with these headers may pass.
    fn admits(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match &self.token {
            Some(token) => match given(headers) {
                Some(text) if same(text, token) => Ok(()),
                Some(_) => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the token is not the right one")),
                None => Err(ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "a token is needed: `Authorization: Bearer …`; a browser is asked for it at `/`",
                )),
            },
            None if text(headers, header::HOST).is_some_and(is_loopback) => Ok(()),
            None => {
                Err(ApiError::new(StatusCode::FORBIDDEN, "only loopback names are served without a token: start with --token"))
            }
        }
    }
}

/// Lets through what may pass, and gives every answer its headers.
pub(super) async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    let mut response = match access.token.clone() {
        Some(token) => answer_with_token(&access, &token, request, next).await,
        None => match access.admits(request.headers()).and_then(|()| same_site(&request)) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        },
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; \
         frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
];

async fn answer_with_token(access: &Access, token: &Token, request: Request, next: Next) -> Response {
    let (path, is_wanted) = (request.uri().path(), sign_in::is_wanted(request.method(), request.headers()));
    if OPEN.contains(&path) {
        return next.run(request).await;
    }
    if path == sign_in::PATH && request.method() == Method::POST {
        // Whoever knows the token may sign in from anywhere: there is one for everybody, so nobody can be signed in as somebody else.
        let given = sign_in::token_of(request.into_body()).await;
        return enter(&given, token).unwrap_or_else(|| sign_in::page("This is not the right token."));
    }
    if let Some(entered) = token_of_address(&request).and_then(|given| enter(given, token)) {
        return entered;
    }
    match access.admits(request.headers()).and_then(|()| same_site(&request)) {
        Ok(()) => next.run(request).await,
        Err(error) if error.is_unauthorized() && is_wanted => sign_in::page(""),
        Err(error) => error.into_response(),
    }
}

/// The token of `/?token=…`.
fn token_of_address(request: &Request) -> Option<&str> {
    let query = request.uri().query().filter(|_| request.uri().path() == "/" && request.method() == Method::GET)?;
    query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

/// A browser that gives the right token gets it as a cookie that scripts cannot read, and goes to the page.
fn enter(given: &str, token: &Token) -> Option<Response> {
    if !same(given, token) {
        return None;
    }
    let cookie = format!("{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/");
    Some((StatusCode::SEE_OTHER, [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)]).into_response())
}

/// A changing request must not come from another site's page.
fn same_site(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let (Some(origin), Some(host)) = (text(headers, header::ORIGIN), text(headers, header::HOST)) else { return Ok(()) };
    let from_here = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host));
    if from_here || request.method() == Method::GET {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "requests from another site's page are not taken"))
}

fn given(headers: &HeaderMap) -> Option<&str> {
    let authorization = text(headers, header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    let bearer = authorization.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim_start());
    bearer.or_else(|| text(headers, header::COOKIE)?.split("; ").find_map(|pair| pair.strip_prefix(COOKIE)?.strip_prefix('=')))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Compares in a time that does not depend on where the two differ: blake3's hashes compare that way.
fn same(given: &str, token: &Token) -> bool {
    blake3::hash(given.as_bytes()) == blake3::hash(token.secret().as_bytes())
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(access: &Access, pairs: &[(&'static str, &'static str)], admitted: bool) {
        let headers = pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
        assert_eq!(access.admits(&headers).is_ok(), admitted, "{pairs:?}");
    }

    #[test]
    fn with_a_token_every_request_must_bring_it() {
        let access = Access::new(Some(Token::of("correct-horse-battery")));
        check(&access, &[("host", "example.org"), ("authorization", "Bearer correct-horse-battery")], true);
        check(&access, &[("authorization", "bearer  correct-horse-battery")], true);
        check(&access, &[("cookie", "a=b; endcap_token=correct-horse-battery")], true);
        check(&access, &[("host", "localhost")], false);
        check(&access, &[("authorization", "Bearer correct-horse-batterY")], false);
        check(&access, &[("authorization", "Basic correct-horse-battery")], false);
        check(&access, &[("cookie", "endcap_token_=correct-horse-battery")], false);
    }

    #[test]
    fn without_a_token_only_loopback_names_are_served() {
        let access = Access::new(None);
        for host in ["localhost", "localhost:8484", "127.0.0.1:1", "127.8.8.8", "[::1]:8484", "LOCALHOST:80"] {
            check(&access, &[("host", host)], true);
        }
        for host in ["example.org", "127.0.0.1.example.org", "10.0.0.1:8484", "localhost.example.org", ""] {
            check(&access, &[("host", host)], false);
        }
        check(&access, &[], false);
    }
}
