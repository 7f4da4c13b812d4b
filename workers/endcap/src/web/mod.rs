//! The web page and the HTTP interface.
//!
//! The store is asked on threads that may block; async code only waits for them.

mod access;
mod assets;
mod error;
mod ingest;
mod life;
mod routes;
mod sign_in;
mod storefronts;

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use axum::{Router, http::StatusCode, middleware, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};

pub use access::Access;
pub use ingest::{BOM, Entry, Place, Received, Refused};
pub use life::Life;

use self::error::ApiError;
use crate::desk::Desk;

/// Requests that are worked on at once; more wait.
const AT_ONCE: usize = 16;
/// Storefronts that are worked on at once on each core; of those that were let in more wait. So many that the processor is busy while some wait for the
/// store, and so few that whoever is refused hears it soon.
const STOREFRONTS_PER_CORE: usize = 4;
/// Bodies of feedback that are taken in at once; more are refused.
const FEEDBACK_AT_ONCE: usize = 64;
/// Connections that are open at once; more wait in the system's own queue, which has an end.
const CONNECTIONS_MAX: usize = 2_048;
/// How long the head of a request may take, with the pause before it.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long requests that are open at the end may still take.
const GRACE: Duration = Duration::from_secs(3);

/// What every handler has at hand.
#[derive(Clone)]
pub(crate) struct Web {
    life: Arc<Life>,
    turns: Arc<Semaphore>,
    feedback_turns: Arc<Semaphore>,
    storefront_turns: Arc<Semaphore>,
}

impl Web {
    /// Does `work`, which may block, on a thread for that, when one of `turns` is free.
    async fn ask_in<T, E>(
        &self,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&Desk) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        let desk = self.life.desk()?.clone();
        let turn = turns.clone().acquire_owned().await.context("the server is ending")?;
        // The turn lasts as long as the work, though whoever asked may be gone by then.
        let work = move || {
            let _turn = turn;
            work(&desk)
        };
        tokio::task::spawn_blocking(work).await.context("a request broke off")?.map_err(Into::into)
    }

    /// As [`Web::ask_in`], among all other questions.
    async fn ask<T, E>(&self, work: impl FnOnce(&Desk) -> Result<T, E> + Send + 'static) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.ask_in(&self.turns, work).await
    }
}

/// Every route, guarded. The page's own files need nothing but this program, so they too are there from the first moment.
pub fn router(life: Arc<Life>, access: Access) -> Router {
    let turns = |most| Arc::new(Semaphore::new(most));
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let web = Web {
        life,
        turns: turns(AT_ONCE),
        feedback_turns: turns(FEEDBACK_AT_ONCE),
        storefront_turns: turns(STOREFRONTS_PER_CORE * cores),
    };
    assets::routes()
        .merge(routes::routes())
        .merge(storefronts::routes())
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this is not asked for by that method")
        })
        .layer(middleware::from_fn_with_state(access, access::guard))
        .with_state(web)
}

/// Serves until `ended` turns true; the runtime's end cuts off what is open after that and a short grace.
///
/// Not by `axum::serve`: it waits for the head of a request, and at the end for open requests, however long they take.
pub async fn serve(mut listener: TcpListener, router: Router, mut ended: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let (open, room) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let mut next = async || {
        let place = room.clone().acquire_owned().await.expect("nobody closes this semaphore");
        (place, Listener::accept(&mut listener).await.0)
    };
    loop {
        let (place, stream) = tokio::select! {
            accepted = next() => accepted,
            // A sender that is gone means the end as well.
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone())));
        tokio::spawn(async move {
            let _ = connection.await; // one that fails is its client's affair
            drop(place);
        });
    }
    drop(listener);
    if timeout(GRACE, open.shutdown()).await.is_err() {
        tracing::info!("requests that do not end are cut off");
    }
}
