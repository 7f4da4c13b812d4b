//! Storefronts and feedback over HTTP. `endcap_ranking::OPENAPI` describes these routes, and a test holds it to them.

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use endcap_ranking::{
    OPENAPI, Ranking, Request,
    feedback::{self, FeedbackTaken},
    metric,
};
use rand::{TryRng, rngs::SysRng};
use serde::Deserialize;

use super::{
    Web,
    error::ApiError,
    ingest::{self, Layout},
    routes::{BODY_TIME, User},
};
use crate::desk::Desk;

/// Header that names a request.
const REQUEST_ID: &str = "x-request-id";
/// Most characters of a request's id.
const REQUEST_ID_MAX: usize = 128;
/// Most placements that a request may have arranged.
const RERANK_MAX: usize = 50;
/// When it is worth asking again after a refusal, s.
const AGAIN_S: u32 = 1;

/// The routes of the ranking service.
pub(super) fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/storefronts/{*user}", get(storefront))
        .route("/v1/feedback", post(take_feedback))
        .route("/v1/openapi.json", get(openapi))
}

/// What a request may wish for.
#[derive(Debug, Deserialize)]
struct Wishes {
    /// Placements, from the first on, that are to be arranged as a whole.
    rerank: Option<usize>,
}

/// Refuses at once what would have to wait long: a storefront that comes late is none.
async fn storefront(
    State(web): State<Web>,
    User(user): User,
    query: Result<Query<Wishes>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let request = Request { user, id: request_id(&headers)?, rerank: wished(query)? };
    let turn = ranking(web.life.desk()?)?.enter().ok_or_else(|| {
        metric::unanswered("refused");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many storefronts are asked for at once").again_after(AGAIN_S)
    })?;
    web.ask_in(&web.storefront_turns, move |desk| {
        let _turn = turn;
        let storefront = ranking(desk)?.storefront(&request).map_err(|error| {
            metric::unanswered("failed");
            ApiError::from(anyhow::Error::new(error))
        })?;
        Ok::<_, ApiError>(Json(storefront).into_response())
    })
    .await
}

/// Answers when what was accepted is durable. `200` also where some was not: each entry has its own result.
async fn take_feedback(State(web): State<Web>, headers: HeaderMap, body: Body) -> Result<Json<FeedbackTaken>, ApiError> {
    if ingest::layout(&headers).ok() != Some(Layout::Json) {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send `content-type: application/json`"));
    }
    // Taken before the body: what is refused takes up no memory.
    let _turn = web.feedback_turns.try_acquire().map_err(|_| {
        metric::feedback("refused", 1);
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too much feedback comes at once").again_after(AGAIN_S)
    })?;
    let body = ingest::collect(body, BODY_TIME).await?.map_err(|refused| refused.plain())?;
    let life = web.life.clone();
    web.ask(move |desk| {
        let read = feedback::read(&body, ranking(desk)?.key());
        let (feedback, taken) = read.map_err(|fault| ApiError::new(StatusCode::BAD_REQUEST, fault.to_string()))?;
        life.admit(|| desk.learn(&feedback, taken))
    })
    .await
    .map(Json)
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

fn ranking(desk: &Desk) -> Result<&Ranking, ApiError> {
    desk.ranking
        .as_deref()
        .ok_or_else(|| ApiError::absent("this process serves no storefronts: `endcap serve` and `endcap up` do"))
}

fn wished(query: Result<Query<Wishes>, QueryRejection>) -> Result<Option<usize>, ApiError> {
    let wishes = query.ok().filter(|Query(wishes)| wishes.rerank.is_none_or(|placements| placements <= RERANK_MAX));
    let Query(Wishes { rerank }) = wishes.ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("`rerank` must be a number of placements, 0 to {RERANK_MAX}"))
    })?;
    Ok(rerank)
}

/// The request's id: the caller's, or one that nobody else has.
fn request_id(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(given) = headers.get(REQUEST_ID) else { return drawn() };
    let text = given.to_str().unwrap_or_default();
    if (1..=REQUEST_ID_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(ApiError::new(StatusCode::BAD_REQUEST, format!("`{REQUEST_ID}` must be 1 to {REQUEST_ID_MAX} visible ASCII characters")))
}

fn drawn() -> Result<String, ApiError> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes).map_err(|error| ApiError::from(anyhow::anyhow!("cannot draw a request's id: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
