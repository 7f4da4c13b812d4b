//! The job while it runs: what it shows, what it hears, and when it ends.
//!
//! The first signal drains: no new event is taken, and what was taken is worked off through every stage; what waits on the backfill lane is
//! left to the next start. The second one stops after what is in hand, the third at once; what is left then is done by the next start. A
//! process that runs some of the stages stops at the first signal after what is in hand: others go on, and it is not alone with what waits.
//! A process whose manifest was rolled back stops after what is in hand, too.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use endcap_runtime::Shutdown;
use endcap_schemas::topics::Lane;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

use crate::{
    desk::Desk,
    figures::{Figures, StageFigures},
    manifest::Generation,
    monitor::OwnMonitor,
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
    /// The figures were read, as somebody had asked for.
    Read(Result<Arc<Figures>>),
    /// A start would take up another manifest now.
    RolledBack(RolledBack),
    /// Somebody asks to end.
    Signal,
}

/// Who feeds events in.
pub(crate) struct Feeder {
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

/// Starts the thread that reads the figures when it is asked to: log and store may be slow, and signals are heard at once all the same.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn read_on_demand(desk: &Arc<Desk>, events: &Sender<Event>) -> Result<SyncSender<()>> {
    let (desk, events) = (desk.clone(), events.clone());
    let (ask, asked) = sync_channel(1);
    let read_all = move || asked.into_iter().try_for_each(|()| events.send(Event::Read(read_unpanicked(&desk))));
    thread::Builder::new().name("figures".to_owned()).spawn(read_all).context("cannot start the thread that reads figures")?;
    Ok(ask)
}

/// A reading, of which a panic is one more failure: the waiting goes on.
fn read_unpanicked(desk: &Desk) -> Result<Arc<Figures>> {
    catch_unwind(AssertUnwindSafe(|| desk.figures.read()))
        .unwrap_or_else(|_| Err(anyhow!("reading the figures panicked, as told above: this is a fault of the program")))
}

/// Starts the thread that looks every `every` whether the manifest was rolled back, by `look`: the store may be slow, and signals are heard
/// at once all the same. What cannot be read is no reason to end.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn watch_generations(
    mut look: impl FnMut() -> Result<Option<Generation>> + Send + 'static,
    every: Duration,
    shutdown: &Shutdown,
    events: &Sender<Event>,
) -> Result<()> {
    let (shutdown, events) = (shutdown.clone(), events.clone());
    let watch = move || {
        while !shutdown.wait(every) {
            match look() {
                Ok(None) => {}
                // Nobody listens any more when the process is already ending.
                Ok(Some(newest)) => drop(events.send(Event::RolledBack(RolledBack(newest.number)))),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "cannot see whether the manifest was rolled back");
                }
            }
        }
    };
    let thread = thread::Builder::new().name("generations".to_owned()).spawn(watch);
    thread.context("cannot start the thread that watches generations").map(drop)
}

/// What the waiting thread shows.
pub(crate) enum Show {
    /// The whole job, read by a thread of its own.
    Job(SyncSender<()>),
    /// What this process has done: the rest is read when somebody looks at the page.
    Own(OwnMonitor),
}

/// What was so when a reading was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Whether the feeder had ended: nothing came from it after that.
    fed: bool,
    /// Whether the door was closed: nothing came in after that.
    closed: bool,
}

/// The job while it runs.
pub(crate) struct Running {
    pub(crate) exit_when_drained: bool,
    pub(crate) desk: Arc<Desk>,
    pub(crate) life: Arc<Life>,
    pub(crate) show: Show,
    /// `None` where nothing is fed.
    pub(crate) feeder: Option<Feeder>,
    /// Asks the stages to finish.
    pub(crate) shutdown: Shutdown,
    /// Whether the first wish to end works off what waits; else, as others go on with it, it stops after what is in hand.
    pub(crate) drains: bool,
}

/// How far the waiting is.
pub(crate) struct Waiting {
    running: Running,
    board: Board,
    /// Whether somebody asked to end.
    draining: bool,
    /// Whether no more events are taken.
    closed: bool,
    /// The reading under way.
    asked: Option<Asked>,
}

impl Running {
    /// Shows figures and waits for an end: drained, asked, or broken. Whatever it is, everybody is asked to finish, and nobody listens any
    /// more: the next signal ends the process.
    pub(crate) fn wait(self, heard: Receiver<Event>) -> (Waiting, Result<()>) {
        let (every, board) = (self.desk.sides.read_every, Board::new(self.desk.stages.len()));
        let mut waiting = Waiting { running: self, board, draining: false, closed: false, asked: None };
        let result = loop {
            match heard.recv_timeout(every) {
                Ok(event) => {
                    if let Some(result) = waiting.hear(event) {
                        break result;
                    }
                }
                Err(RecvTimeoutError::Timeout) => waiting.look(),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread of the signals keeps a sender"),
            }
        };
        waiting.running.shutdown.trigger();
        if let Some(feeder) = &waiting.running.feeder {
            feeder.end.trigger();
        }
        (waiting, result)
    }
}

impl Waiting {
    /// Shows how everything stands in the end, once the stages have ended.
    pub(crate) fn show_end(&mut self) {
        let cache = &self.running.desk.figures;
        match &mut self.running.show {
            Show::Own(monitor) => self.board.end_own(&monitor.read(cache.up_for(), cache.now_ms())),
            Show::Job(_) => match cache.read() {
                Ok(figures) => self.board.end(&figures),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot read the last figures"),
            },
        }
    }

    /// What an event means; `None` to go on.
    fn hear(&mut self, event: Event) -> Option<Result<()>> {
        match event {
            Event::Read(reading) => self.drained(reading),
            Event::RolledBack(rolled_back) => Some(Err(rolled_back.into())),
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
                self.running.feeder.iter_mut().for_each(|feeder| feeder.ended = true);
                None
            }
            Event::Signal if self.draining || !self.running.drains => {
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
        self.close();
        if let Some(feeder) = &self.running.feeder {
            feeder.end.trigger();
        }
        let last = self.running.desk.figures.last();
        let waiting = last.map_or_else(|| "some".to_owned(), |figures| figures.waiting(Lane::Live).to_string());
        say(&format!("draining: {waiting} records wait, no new event is taken (once more stops after what is in hand)"));
    }

    fn close(&mut self) {
        self.running.life.drain();
        self.closed = true;
    }

    /// Shows what this process did, or asks for a reading of the job.
    fn look(&mut self) {
        let desk = &self.running.desk;
        desk.prometheus.run_upkeep(); // else measures pile up until somebody asks for them
        match &mut self.running.show {
            Show::Own(monitor) => {
                let up_for = desk.figures.up_for();
                self.board.show_own(&monitor.read(up_for, desk.figures.now_ms()), up_for);
            }
            Show::Job(_) => self.ask(),
        }
    }

    /// Asks for a reading, unless one is under way.
    fn ask(&mut self) {
        let Show::Job(ask) = &self.running.show else { return };
        if self.asked.is_none() {
            let fed = self.running.feeder.as_ref().is_none_or(|feeder| feeder.ended);
            // The thread ends after this one; should it have panicked, nothing is shown any more.
            self.asked = ask.send(()).ok().map(|()| Asked { fed, closed: self.closed });
        }
    }

    /// Shows a reading; answers how the job is to end where everything is worked off that anybody works on. A reading that fails is tried
    /// again with the next one.
    fn drained(&mut self, reading: Result<Arc<Figures>>) -> Option<Result<()>> {
        let asked = self.asked.take();
        let figures = match reading {
            Ok(figures) => figures,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the figures");
                return None;
            }
        };
        self.board.show(&figures);
        let asked = asked.filter(|asked| asked.fed)?;
        let result = match (self.draining, self.running.exit_when_drained) {
            (true, _) => drained_by_wish(&figures),
            (false, true) => drained_by_itself(&figures),
            (false, false) => None,
        }?;
        if !asked.closed {
            // Only a reading behind the closed door sees everything that came in.
            self.close();
            self.ask();
            return None;
        }
        Some(result)
    }
}

/// Whether a job ends that somebody asked to end: it waits for the live lane alone.
fn drained_by_wish(figures: &Figures) -> Option<Result<()>> {
    (figures.waiting(Lane::Live) == 0).then_some(Ok(()))
}

/// Whether a job ends that ends when all is done, and how: where a lane has stopped, what waits for it stays undone, and the end says so.
fn drained_by_itself(figures: &Figures) -> Option<Result<()>> {
    let left: Vec<&StageFigures> = figures.left_lying(Lane::Backfill).collect();
    let lying: u64 = left.iter().map(|stage| stage.waiting).sum();
    if figures.waiting(Lane::Live) + figures.waiting(Lane::Backfill) > lying {
        return None;
    }
    let told = |stage: &&StageFigures| {
        let cause = stage.trouble.as_deref().unwrap_or_default();
        format!("{} for stage {}, which has stopped there: {cause}", stage.waiting, stage.name)
    };
    let told: Vec<String> = left.iter().map(told).collect();
    Some(if told.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("not all is worked off: on the backfill lane wait {}", told.join("; ")))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::manifest::tests::manifest;

    fn stage(name: &str, lane: Lane, waiting: u64, stopped: Option<&str>) -> StageFigures {
        let (name, trouble) = (name.to_owned(), stopped.map(str::to_owned));
        StageFigures { name, lane, waiting, stopped: stopped.is_some(), trouble, ..StageFigures::default() }
    }

    #[test]
    fn a_job_whose_backfill_lane_has_stopped_ends_when_the_rest_is_done_and_says_what_is_not() {
        let stopped = |waiting| stage("themes", Lane::Backfill, waiting, Some("5 of its last 5 records failed"));
        let live = |waiting| stage("themes", Lane::Live, waiting, None);
        let behind = |waiting| stage("keywords", Lane::Backfill, waiting, None);
        let says = "not all is worked off: on the backfill lane wait 9 for stage themes, which has stopped there: 5 of its last 5 records failed";
        for (stages, by_wish, by_itself) in [
            (vec![live(0), behind(0)], Some(""), Some("")),
            (vec![live(0), behind(2)], Some(""), None),
            (vec![live(1), stopped(9)], None, None),
            (vec![live(0), stopped(9), behind(2)], Some(""), None),
            (vec![live(0), stopped(9), behind(0)], Some(""), Some(says)),
            (vec![live(0), stopped(0)], Some(""), Some("")),
        ] {
            let figures = Figures { stages, ..Figures::default() };
            let told = |end: Option<Result<()>>| end.map(|end| end.map_or_else(|error| error.to_string(), |()| String::new()));
            assert_eq!(told(drained_by_wish(&figures)).as_deref(), by_wish, "{figures:?}");
            assert_eq!(told(drained_by_itself(&figures)).as_deref(), by_itself, "{figures:?}");
        }
    }

    #[test]
    fn a_store_that_hangs_keeps_nobody_from_hearing_signals() {
        let ((events, heard), (answer, store)) = (channel(), channel());
        let (asked, is_asked) = channel();
        let look = move || {
            asked.send(()).unwrap();
            Ok(store.recv().ok())
        };
        let shutdown = Shutdown::new();
        watch_generations(look, Duration::ZERO, &shutdown, &events).unwrap();
        is_asked.recv().unwrap();
        events.send(Event::Signal).unwrap();
        assert!(matches!(heard.recv().unwrap(), Event::Signal), "while the store has not answered");
        let newest = Generation { number: 3, ..Generation::deployed(&manifest("one", 5), None, 5).unwrap() };
        answer.send(newest).unwrap();
        assert!(matches!(heard.recv().unwrap(), Event::RolledBack(RolledBack(3))));
        shutdown.trigger();
    }
}
