//! Every wait of the program: bounded, and ended by whoever asks the program to end.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use endcap_runtime::Shutdown;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// Triggers the answer when the process is told to end. Whoever waits then fails, and what it holds is ended with it.
///
/// # Errors
/// When signals cannot be listened to.
pub(crate) fn listen_to_signals() -> Result<Shutdown> {
    let stop = Shutdown::new();
    let mut signals = Signals::new(TERM_SIGNALS).context("cannot listen to signals")?;
    let heard = stop.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(|_| heard.trigger()))
        .context("cannot listen to signals")?;
    Ok(stop)
}

/// How long a run may still take.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    stop: Shutdown,
    start: Instant,
    within: Duration,
}

impl Patience {
    /// A run that begins now and must be over `within` this time.
    pub(crate) fn new(stop: Shutdown, within: Duration) -> Self {
        Self { stop, start: Instant::now(), within }
    }

    /// Since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits for `time`.
    ///
    /// # Errors
    /// When the run takes too long, or somebody asks it to end.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        if self.stop.wait(time) {
            bail!("interrupted");
        }
        if self.elapsed() > self.within {
            bail!("the run is not over within {} s: give it more with --within-s, or find what hangs", self.within.as_secs());
        }
        Ok(())
    }

    /// Waits until `is_done`, looking `every` so often.
    ///
    /// # Errors
    /// As [`Patience::pause`], with `what` was waited for; and those of `is_done`.
    pub(crate) fn until(&self, what: &str, every: Duration, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
        while !is_done()? {
            self.pause(every).with_context(|| format!("still waiting for {what}"))?;
        }
        Ok(())
    }

    /// A line on standard error, with the time of the run.
    pub(crate) fn tell(&self, text: &str) {
        eprintln!("{:>7.1} s  {text}", self.elapsed().as_secs_f64());
    }
}
