//! The web page and the HTTP interface.
//!
//! The store is asked on threads that may block; async code only waits for them.

mod access;
mod assets;
mod error;
mod ingest;
mod life;
mod routes;

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::{Router, middleware};
use tokio::{net::TcpListener, sync::watch};

pub use access::Access;
pub use ingest::{Entry, Place, Received};
pub use life::Life;

use self::error::ApiError;
use crate::desk::Desk;

/// Requests that are worked on at once; more wait.
const AT_ONCE: usize = 16;

/// What every handler has at hand.
#[derive(Clone)]
pub(crate) struct Web {
    life: Arc<Life>,
    turns: Arc<tokio::sync::Semaphore>,
}

impl Web {
    /// Does `work`, which may block, on a thread for that.
    async fn ask<T, E>(&self, work: impl FnOnce(&Desk) -> Result<T, E> + Send + 'static) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        let desk = self.life.desk()?.clone();
        let _turn = self.turns.clone().acquire_owned().await.context("the server is ending")?;
        tokio::task::spawn_blocking(move || work(&desk)).await.context("a request broke off")?.map_err(Into::into)
    }
}

/// Every route, guarded. The page's own files need nothing but this program, so they too are there from the first moment.
pub fn router(life: Arc<Life>, access: Access) -> Router {
    let web = Web { life, turns: Arc::new(tokio::sync::Semaphore::new(AT_ONCE)) };
    assets::routes().merge(routes::routes()).layer(middleware::from_fn_with_state(access, access::guard)).with_state(web)
}

/// Serves until `ended` turns true.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, router: Router, mut ended: watch::Receiver<bool>) -> Result<()> {
    let end = async move {
        // A sender that is gone means the end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    };
    axum::serve(listener, router).with_graceful_shutdown(end).await.context("the web server failed")
}
