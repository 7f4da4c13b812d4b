//! How far the process is: starting, serving, or working off what it has before it ends.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use axum::http::StatusCode;

use super::error::ApiError;
use crate::{
    desk::{Desk, Health},
    progress,
};

/// The life of the process, as the interface sees it. Its server answers from the first moment; most answers need the desk.
#[derive(Default)]
pub struct Life {
    desk: OnceLock<Arc<Desk>>,
    draining: AtomicBool,
}

impl Life {
    /// From now on everything is answered.
    pub fn serve(&self, desk: Arc<Desk>) {
        let _ = self.desk.set(desk); // a process starts once
    }

    /// From now on no more events are taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// The desk; while starting, a refusal with the reason.
    pub(super) fn desk(&self) -> Result<&Arc<Desk>, ApiError> {
        self.desk.get().ok_or_else(|| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, starting()))
    }

    /// Refuses events that will not be worked off before the end.
    pub(super) fn takes_events(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ending: no more events are taken, send them again later",
            ));
        }
        Ok(())
    }

    /// Whether the process makes progress; a start is progress.
    pub(super) fn live(&self) -> Health {
        self.desk.get().map_or(Health { ok: true, troubles: Vec::new() }, |desk| desk.live())
    }

    /// Whether events are taken and worked off.
    pub(super) fn ready(&self) -> Health {
        match self.desk.get() {
            None => Health { ok: false, troubles: vec![starting()] },
            Some(desk) if self.takes_events().is_err() => {
                Health { ok: false, troubles: vec![format!("draining: {} records wait", desk.figures().waiting())] }
            }
            Some(desk) => desk.ready(),
        }
    }
}

fn starting() -> String {
    format!("starting: {}", progress::doing())
}
