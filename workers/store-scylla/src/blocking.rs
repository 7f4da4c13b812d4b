//! From the blocking border to the driver: a small runtime of its own.

use std::{
    future::Future,
    io,
    sync::mpsc::{self, TrySendError},
};

use tokio::runtime::{Builder, Runtime};

/// Threads that drive the connections; requests wait on sockets, not on processors.
const THREADS: usize = 2;

/// A tokio runtime that belongs to the store alone. The caller's thread waits for an answer outside of it, so it may be called from
/// anywhere; inside another runtime that is a thread for blocking work.
pub(crate) struct Blocking {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Blocking {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("store").enable_all().build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Waits until `work` is done. `work` limits its own time.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (answer, done) = mpsc::sync_channel(1);
        self.spawn(async move {
            match answer.try_send(work.await) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                Err(TrySendError::Full(_)) => unreachable!("one answer is sent"),
            }
        });
        done.recv().expect("a request to the store does not panic")
    }

    /// Does `work` beside the caller.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().expect("the runtime lives as long as its owner").spawn(work);
    }
}

impl Drop for Blocking {
    /// Waits for nothing: a runtime that is dropped inside another one must not block.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
