//! The HTTP interface: paths, their parameters and their answers.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use endcap_schemas::{ShopperEvent, UserKey};
use serde::{Deserialize, Serialize};

use super::{Web, error::ApiError, ingest};
use crate::{
    control::ControlView,
    desk::{DeadLetters, Health, Mark, Shoppers},
    explain::Story,
    figures::Figures,
    intake::Taken,
    view::PageView,
};

/// Most rows of a list.
const ROWS_MAX: usize = 500;
/// How long a body may take to come in.
pub(super) const BODY_TIME: Duration = Duration::from_secs(30);

/// Every route of the interface.
pub(super) fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/shoppers", get(shoppers))
        .route("/v1/pages/{*user}", get(page))
        .route("/v1/control/{*user}", get(control))
        .route("/v1/journey/{*user}", get(journey))
        .route("/v1/explain/{*user}", get(explain))
        .route("/v1/events", post(events))
        .route("/v1/pipeline", get(pipeline))
        .route("/v1/dead-letters", get(dead_letters))
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(|| async { ApiError::absent("there is nothing here") })
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    #[serde(default)]
    search: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default = "fifty")]
    limit: usize,
}

fn fifty() -> usize {
    50
}

async fn shoppers(State(web): State<Web>, Query(query): Query<ListQuery>) -> Result<Json<Shoppers>, ApiError> {
    let search: String = query.search.chars().take(ShopperEvent::TEXT_MAX_BYTES).collect();
    web.ask(move |desk| desk.shoppers(&search, query.limit.min(ROWS_MAX))).await.map(Json)
}

async fn page(State(web): State<Web>, User(user): User) -> Result<Json<PageView>, ApiError> {
    let absent = absent("this shopper has no page yet", &user);
    web.ask(move |desk| desk.page(&user)).await?.map(Json).ok_or(absent)
}

async fn control(State(web): State<Web>, _: User) -> Result<Json<Arc<ControlView>>, ApiError> {
    web.ask(|desk| desk.control()).await.map(Json)
}

#[derive(Debug, Serialize)]
struct Journey {
    stages: Vec<Mark>,
}

async fn journey(State(web): State<Web>, User(user): User) -> Result<Json<Journey>, ApiError> {
    web.ask(move |desk| desk.journey(&user)).await.map(|stages| Json(Journey { stages }))
}

async fn explain(State(web): State<Web>, User(user): User) -> Result<Json<Story>, ApiError> {
    let absent = absent("nothing is known of this shopper yet", &user);
    web.ask(move |desk| desk.explain(&user)).await?.map(Json).ok_or(absent)
}

/// Answers when the events are durable. `200` also where some were rejected: each event has its own result, with its line or index. A body
/// that is refused as a whole is a dead letter when that is answered.
async fn events(State(web): State<Web>, headers: HeaderMap, body: Body) -> Result<Json<Taken>, ApiError> {
    let layout = ingest::layout(&headers)?;
    let collected = ingest::collect(body, BODY_TIME).await?;
    let life = web.life.clone();
    match collected.and_then(|body| ingest::read(&body, layout)) {
        Ok(received) if received.is_empty() => Err(ApiError::new(StatusCode::BAD_REQUEST, "the body holds no event")),
        Ok(received) => web.ask(move |desk| life.admit(|| desk.take(received))).await.map(Json),
        Err(refused) => {
            let answer = refused.answer();
            web.ask(move |desk| life.admit(|| desk.refuse(refused))).await?;
            Err(answer)
        }
    }
}

async fn pipeline(State(web): State<Web>) -> Result<Json<Arc<Figures>>, ApiError> {
    web.ask(|desk| desk.figures.recent()).await.map(Json)
}

async fn dead_letters(State(web): State<Web>, Query(query): Query<ListQuery>) -> Result<Json<DeadLetters>, ApiError> {
    web.ask(move |desk| desk.dead_letters(query.reason.as_deref(), query.limit.min(ROWS_MAX))).await.map(Json)
}

async fn metrics(State(web): State<Web>) -> Result<Response, ApiError> {
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], web.life.desk()?.metrics()).into_response())
}

async fn live(State(web): State<Web>) -> Response {
    answer(web.life.live())
}

async fn ready(State(web): State<Web>) -> Response {
    answer(web.life.ready())
}

fn answer(health: Health) -> Response {
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Nothing of a shopper; where the address may have meant another one, with the address of that. It is never answered in the place of the
/// one that was asked for: that might be another tenant's.
fn absent(what: &str, user: &UserKey) -> ApiError {
    let UserKey { tenant, user: id } = user;
    if tenant == UserKey::DEFAULT_TENANT {
        return ApiError::absent(what);
    }
    ApiError::absent(&format!(
        "{what}: `{id}` of tenant `{tenant}`; an id of the default tenant that holds a slash is asked for as `default/{tenant}/{id}`"
    ))
}

/// The shopper of an address, `user` or `tenant/user`: what stands before the first slash is a tenant.
pub(super) struct User(pub(super) UserKey);

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let fits =
            |part: &str| !part.is_empty() && part.len() <= ShopperEvent::TEXT_MAX_BYTES && !part.chars().any(char::is_control);
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.ok()
            .map(|Path(text)| UserKey::named(&text))
            .filter(|user| fits(&user.tenant) && fits(&user.user))
            .map(Self)
            .ok_or_else(|| ApiError::new(StatusCode::BAD_REQUEST, "this cannot be a shopper's id"))
    }
}
