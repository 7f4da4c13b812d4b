//! What the API says when it cannot do what it was asked.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use endcap_ranking::RankingError;
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

/// A full log and whatever does not answer are the caller's to wait for; what else went wrong inside is logged, and told without details.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        if let Some(full @ LogError::Full { .. }) = error.downcast_ref() {
            return Self::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()).again_after(AGAIN_S);
        }
        tracing::error!(error = format!("{error:#}"), "request failed");
        if is_unreadable(&error) {
            return Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "what is kept of this cannot be read: the process's log says what",
            );
        }
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "log or store do not answer: try again in a moment").again_after(AGAIN_S)
    }
}

/// Whether log or store hold what cannot be read: nobody mends that by asking again.
fn is_unreadable(error: &anyhow::Error) -> bool {
    let is_store = |store: Option<&StoreError>| matches!(store, Some(StoreError::Corrupt(_)));
    let is_ranking = |ranking: Option<&RankingError>| matches!(ranking, Some(RankingError::Store(StoreError::Corrupt(_))));
    let is_log = |log: Option<&LogError>| matches!(log, Some(LogError::Corrupt(_)));
    error.chain().any(|cause| is_store(cause.downcast_ref()) || is_ranking(cause.downcast_ref()) || is_log(cause.downcast_ref()))
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
