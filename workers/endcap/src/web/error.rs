//! What the API says when it cannot do what it was asked.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use endcap_ranking::RankingError;
use endcap_retrieval::MarketError;
use endcap_runtime::{LogError, StoreError};
use serde_json::json;

/// When something that is down or full may be so no more, s.
const AGAIN_S: u32 = 1;

/// A failed request: a status and one sentence for the caller.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    /// After how many seconds it is worth asking again.
    retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error for the caller.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after_s: None }
    }

    /// The same, with word of when it is worth asking again.
    pub(super) fn again_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Whether the caller has not shown who it is.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Nothing there.
    pub(super) fn absent(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }
}

/// A full log and whatever does not answer are the caller's to wait for; what else goes wrong inside is a fault here or in what is kept. All is logged,
/// and told without details.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        if let Some(full @ LogError::Full { .. }) = error.downcast_ref() {
            return Self::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()).again_after(AGAIN_S);
        }
        tracing::error!(error = format!("{error:#}"), "request failed");
        if error.chain().any(is_away) {
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "log, store or catalogue do not answer: try again in a moment")
                .again_after(AGAIN_S);
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "this cannot be answered: the log of the process says why")
    }
}

/// Whether it is log, store or catalogue that do not answer now. Who was fenced writes again with the next request.
fn is_away(cause: &(dyn std::error::Error + 'static)) -> bool {
    let store = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
    let ranking = |error: &RankingError| match error {
        RankingError::Store(error) => store(error),
        RankingError::Market(_) => true,
        RankingError::Ranker(_) | RankingError::Model(..) => false,
    };
    cause.downcast_ref().is_some_and(store)
        || cause.downcast_ref().is_some_and(ranking)
        || cause.is::<MarketError>()
        || matches!(cause.downcast_ref(), Some(LogError::Unavailable(_) | LogError::Fenced(_)))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.message }))).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn only_what_does_not_answer_now_is_to_be_asked_again() {
        let away = || StoreError::Unavailable("down".into());
        let corrupt = || StoreError::Corrupt("torn".into());
        let full = LogError::Full { topic: "t".into(), waiting: 2, limit: 1 };
        let in_context = |error: StoreError| Err::<(), _>(error).context("cannot read the page").unwrap_err();
        for (error, status, again) in [
            (in_context(away()), 503, true),
            (RankingError::from(away()).into(), 503, true),
            (LogError::Unavailable("down".into()).into(), 503, true),
            (LogError::Fenced("pod-0".into()).into(), 503, true),
            (RankingError::Market("locked".into()).into(), 503, true),
            (MarketError::Absent("shop".into()).into(), 503, true),
            (full.into(), 429, true),
            (in_context(corrupt()), 500, false),
            (RankingError::from(corrupt()).into(), 500, false),
            (LogError::Refused("no".into()).into(), 500, false),
            (anyhow::anyhow!("a request broke off"), 500, false),
        ] {
            let told = format!("{error:#}");
            let answer = ApiError::from(error);
            assert_eq!((answer.status.as_u16(), answer.retry_after_s.is_some()), (status, again), "{told}");
        }
    }
}
