//! The front end, inside the binary.

use axum::{
    Router,
    http::header,
    response::IntoResponse,
    routing::{MethodRouter, get},
};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type and text of every file.
const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("../../web/index.html")),
    ("/app.css", CSS, include_str!("../../web/app.css")),
    ("/app.js", SCRIPT, include_str!("../../web/app.js")),
    ("/dom.js", SCRIPT, include_str!("../../web/dom.js")),
    ("/explain.js", SCRIPT, include_str!("../../web/explain.js")),
    ("/feedback.js", SCRIPT, include_str!("../../web/feedback.js")),
    ("/pictograms.js", SCRIPT, include_str!("../../web/pictograms.js")),
    ("/pipeline.js", SCRIPT, include_str!("../../web/pipeline.js")),
    ("/shop.js", SCRIPT, include_str!("../../web/shop.js")),
    ("/favicon.svg", SVG, include_str!("../../web/favicon.svg")),
];

/// Routes to every file.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| router.route(path, file(kind, text)))
}

fn file<S: Clone + Send + Sync + 'static>(kind: &'static str, text: &'static str) -> MethodRouter<S> {
    get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response() })
}
