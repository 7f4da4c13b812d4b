//! How commands that compute for long hear that they are to end.

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::{Context, Result};
use signal_hook::{consts::TERM_SIGNALS, flag};

/// A flag that the first signal sets, for whoever computes to look at; the second signal ends the process at once.
///
/// # Errors
/// When signals cannot be listened to.
pub(crate) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS {
        flag::register_conditional_shutdown(*signal, 1, stop.clone()).context("cannot listen to signals")?;
        flag::register(*signal, stop.clone()).context("cannot listen to signals")?;
    }
    Ok(stop)
}
