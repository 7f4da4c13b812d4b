//! How far the process is: starting, serving, or working off what it has before it ends.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use anyhow::Result;
use axum::http::StatusCode;
use endcap_schemas::topics::Lane;

use super::error::ApiError;
use crate::{
    desk::{Desk, Health},
    progress,
};

/// The life of the process, as the interface sees it. Its server answers from the first moment; most answers need the desk.
#[derive(Default)]
pub struct Life {
    desk: OnceLock<Arc<Desk>>,
    /// Whether no more events are taken. Who takes events holds it for reading, so that nothing comes in once it is set.
    draining: RwLock<bool>,
}

impl Life {
    /// From now on everything is answered.
    pub fn serve(&self, desk: Arc<Desk>) {
        let _ = self.desk.set(desk); // a process starts once
    }

    /// No more events are taken: what was taken is in the log when this returns, and nothing follows it.
    pub fn drain(&self) {
        *self.draining.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The desk; while starting, a refusal with the reason.
    pub(super) fn desk(&self) -> Result<&Arc<Desk>, ApiError> {
        self.desk.get().ok_or_else(|| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, starting()).again_after(1))
    }

    /// Lets `take` take events, unless they would not be worked off before the end. May block.
    pub(super) fn admit<T>(&self, take: impl FnOnce() -> Result<T>) -> Result<T, ApiError> {
        let draining = self.draining.read().unwrap_or_else(PoisonError::into_inner);
        if *draining {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ending: no more events are taken, send them again later",
            )
            .again_after(1));
        }
        Ok(take()?)
    }

    /// Whether no more events are taken. Does not wait: who is about to set it has it locked.
    fn is_draining(&self) -> bool {
        self.draining.try_read().map_or(true, |draining| *draining)
    }

    /// Whether the process makes progress; a start is progress.
    pub(super) fn live(&self) -> Health {
        self.desk.get().map_or(Health { ok: true, troubles: Vec::new() }, |desk| desk.live())
    }

    /// Whether events are taken and worked off.
    pub(super) fn ready(&self) -> Health {
        match self.desk.get() {
            None => Health { ok: false, troubles: vec![starting()] },
            Some(desk) if self.is_draining() => {
                let waiting =
                    desk.figures.last().map_or_else(|| "some".to_owned(), |figures| figures.waiting(Lane::Live).to_string());
                Health { ok: false, troubles: vec![format!("draining: {waiting} records wait")] }
            }
            Some(desk) => desk.ready(),
        }
    }
}

fn starting() -> String {
    format!("starting: {}", progress::doing())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Barrier, Mutex},
        thread,
    };

    use super::*;

    #[test]
    fn the_door_closes_behind_what_is_being_taken_and_lets_nothing_in_after_that() {
        let (life, told) = (Life::default(), Mutex::new(Vec::new()));
        let (inside, go_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let taken = life.admit(|| {
                    inside.wait();
                    go_on.wait();
                    told.lock().unwrap().push("taken");
                    Ok(())
                });
                taken.unwrap();
            });
            inside.wait();
            scope.spawn(|| {
                go_on.wait();
                life.drain();
                told.lock().unwrap().push("closed");
            });
        });
        assert_eq!(*told.lock().unwrap(), ["taken", "closed"]);
        assert!(life.is_draining());
        life.admit(|| -> Result<()> { unreachable!("the door is closed") }).unwrap_err();
    }
}
