//! What the API says when it cannot do what it was asked.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use endcap_runtime::LogError;
use serde_json::json;

/// A failed request: a status and one sentence for the caller.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// An error for the caller.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
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

/// A full log is the caller's to wait for; what else went wrong inside is logged, and told without details.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        if let Some(full @ LogError::Full { .. }) = error.downcast_ref() {
            return Self::new(StatusCode::TOO_MANY_REQUESTS, full.to_string());
        }
        tracing::error!(error = format!("{error:#}"), "request failed");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer: try again in a moment")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}
