//! The job while it runs: what it shows, what it hears, and when it ends.
//!
//! The first signal drains: no new event is taken, and what was taken is worked off through every stage; what waits on the backfill lane is
//! left to the next start. The second one stops after what is in hand, the third at once; what is left then is done by the next start. A
//! process that runs some of the stages stops at the first signal after what is in hand: others go on, and it is not alone with what waits.
//! A process whose manifest was rolled back stops after what is in hand, too.

use std::{
    process,
    sync::{
        Arc, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use endcap_runtime::{Clock, Shutdown};
use endcap_schemas::topics::Lane;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

use crate::{
    deploy::Watch,
    desk::Desk,
    feed::FeedState,
    figures::Figures,
    monitor::Monitor,
    path::Ended,
    progress::{Board, say},
    web::Life,
};

/// Exit code of a process that was told three times to end.
const INTERRUPTED: i32 = 130;
/// Exit code of a process whose manifest was rolled back: whoever watches over it starts it again.
pub(crate) const ROLLED_BACK: u8 = 75;
/// Signals that the waiting thread answers; one more ends the process at once.
const SIGNALS_HEARD: usize = 2;

/// The manifest that a process runs was rolled back while it ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the manifest was rolled back: generation {0} is active. What was in hand is done; start again with the same configuration to take it up"
)]
pub(crate) struct RolledBack(i32);

/// Anything that the waiting thread must hear of.
pub(crate) enum Event {
    /// A stage has ended.
    Ended(Ended),
    /// The feeder has ended.
    Fed(Result<()>),
    /// The web server has ended.
    Served(Result<()>),
    /// Somebody asks to end.
    Signal,
}

/// Who feeds events in.
pub(crate) struct Feeder {
    pub(crate) state: Arc<FeedState>,
    /// What is being fed, for people.
    pub(crate) words: String,
    /// Asks it to finish.
    pub(crate) end: Shutdown,
    /// Whether it has.
    pub(crate) ended: bool,
}

/// Sends every signal to end as an event.
///
/// # Errors
/// When signals cannot be listened to.
pub(crate) fn listen_to_signals(events: &Sender<Event>) -> Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS).context("cannot listen to signals")?;
    let events = events.clone();
    let listen = move || {
        for (heard, _) in signals.forever().enumerate() {
            if heard >= SIGNALS_HEARD || events.send(Event::Signal).is_err() {
                process::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen).context("cannot listen to signals")?;
    Ok(())
}

/// The job while it runs.
pub(crate) struct Running {
    pub(crate) exit_when_drained: bool,
    pub(crate) desk: Arc<Desk>,
    pub(crate) life: Arc<Life>,
    pub(crate) monitor: Monitor,
    pub(crate) watch: Watch,
    /// `None` where nothing is fed.
    pub(crate) feeder: Option<Feeder>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Asks the stages to finish.
    pub(crate) shutdown: Shutdown,
    /// Whether the first wish to end works off what waits; else, as others go on with it, it stops after what is in hand.
    pub(crate) drains: bool,
    /// Whether somebody asked to end.
    pub(crate) draining: bool,
    /// Where the figures are shown.
    pub(crate) board: Board,
    /// When it began, on the monotonic clock.
    pub(crate) start: Duration,
}

impl Running {
    /// Shows figures and waits for an end: drained, asked, or broken. Whatever it is, everybody is asked to finish, and nobody listens any
    /// more: the next signal ends the process.
    pub(crate) fn wait(&mut self, heard: Receiver<Event>) -> Result<()> {
        let result = loop {
            match heard.recv_timeout(self.desk.sides.read_every) {
                Ok(event) => {
                    if let Some(result) = self.hear(event) {
                        break result;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(rolled_back) = self.rolled_back() {
                        break Err(rolled_back.into());
                    }
                    let fed = self.feeder.as_ref().is_none_or(|feeder| feeder.ended); // before the reading: nothing comes after it
                    let is_empty = self.is_drained();
                    if is_empty && fed && (self.exit_when_drained || self.draining) {
                        self.life.drain();
                        // Only a reading behind the closed door sees everything that came in.
                        if self.is_drained() {
                            break Ok(());
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread of the signals keeps a sender"),
            }
        };
        self.shutdown.trigger();
        if let Some(feeder) = &self.feeder {
            feeder.end.trigger();
        }
        result
    }

    /// Shows how everything stands in the end, once the stages have ended.
    pub(crate) fn show_end(&mut self) {
        match self.figures() {
            Ok(figures) => self.board.end(&figures),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot read the last figures"),
        }
    }

    /// What an event means; `None` to go on.
    fn hear(&mut self, event: Event) -> Option<Result<()>> {
        match event {
            Event::Ended(Ended { stage, result: Err(cause) }) => {
                Some(Err(anyhow!(cause).context(format!("stage {stage} has stopped"))))
            }
            Event::Ended(Ended { stage, result: Ok(()) }) => {
                Some(Err(anyhow!("stage {stage} has ended although nobody asked it to")))
            }
            Event::Fed(Err(error)) => Some(Err(error.context("the feeder has failed"))),
            Event::Served(Err(error)) => Some(Err(error)),
            Event::Served(Ok(())) => Some(Err(anyhow!("the web server has ended although nobody asked it to"))),
            Event::Fed(Ok(())) => {
                self.feeder.iter_mut().for_each(|feeder| feeder.ended = true);
                None
            }
            Event::Signal if self.draining || !self.drains => {
                say("stopping after what is in hand; the rest is done by others or the next start (once more stops at once)");
                Some(Ok(()))
            }
            Event::Signal => {
                self.drain();
                None
            }
        }
    }

    /// Takes no more events.
    fn drain(&mut self) {
        self.draining = true;
        self.life.drain();
        if let Some(feeder) = &self.feeder {
            feeder.end.trigger();
        }
        let waiting = self.figures().map_or_else(|_| "some".to_owned(), |figures| figures.waiting(Lane::Live).to_string());
        say(&format!("draining: {waiting} records wait, no new event is taken (once more stops after what is in hand)"));
    }

    /// Reads and shows the figures; answers whether nothing waits any more: on the live lane alone, where somebody asked to end. A reading
    /// that fails is tried again with the next one.
    fn is_drained(&mut self) -> bool {
        self.desk.prometheus.run_upkeep(); // else measures pile up until somebody asks for them
        match self.figures() {
            Ok(figures) => {
                self.board.show(&figures);
                let left = if self.draining { 0 } else { figures.waiting(Lane::Backfill) };
                let waiting = figures.waiting(Lane::Live) + left;
                *self.desk.figures.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(figures);
                waiting == 0
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the figures");
                false
            }
        }
    }

    /// Whether a start would take up another manifest now. What cannot be read is no reason to end.
    fn rolled_back(&mut self) -> Option<RolledBack> {
        match self.watch.look(&*self.desk.sides.store) {
            Ok(newest) => newest.map(|newest| RolledBack(newest.number)),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot see whether the manifest was rolled back");
                None
            }
        }
    }

    fn figures(&mut self) -> Result<Figures> {
        let words = self.feeder.as_ref().map(|feeder| {
            let state = if feeder.state.is_done() { "all fed" } else { "feeding" };
            format!("{}; {} events so far, {state}", feeder.words, feeder.state.fed())
        });
        let up_for = self.clock.monotonic().saturating_sub(self.start);
        self.monitor.read(up_for, self.clock.now_ms(), words)
    }
}
