//! The processes of the path, and who starts them again: what an orchestrator does for a fleet.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use endcap::{monitor::group_of, sides::Sides};
use endcap_schemas::topics::{Lane, Topic};
use endcap_tests::Endcap;

use crate::{patience::Patience, side::Place};

/// The stages in path order.
pub(crate) const STAGES: [&str; 5] = ["context", "themes", "keywords", "dedup", "aiqa"];
/// The stage that has two processes at all times.
const TWICE: &str = STAGES[0];
/// How often the processes are looked after.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a process that starts is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a process that ended by itself stays down at first, and at most: so that an outage is not spent on starts.
const DOWN: Duration = Duration::from_secs(2);
const DOWN_MAX: Duration = Duration::from_secs(15);
/// How often the log is asked whether everything is worked off, and how often in a row it must say so.
const DRAINED_EVERY: Duration = Duration::from_millis(500);
const DRAINED_TIMES: u32 = 2;

/// Addresses of processes that take events, for whoever posts some.
pub(crate) type Doors = Arc<Mutex<Vec<String>>>;

/// The processes.
pub(crate) struct Fleet<'a> {
    place: &'a Place,
    slots: Vec<Slot>,
    doors: Doors,
    /// Processes that were asked to leave, and have not left yet.
    leaving: Vec<Endcap>,
    /// Processes that came besides, so far.
    guests: u32,
    /// Processes that had been at work and ended by themselves.
    stopped: u64,
}

/// A place that one process has at a time.
struct Slot {
    name: String,
    stage: &'static str,
    process: Process,
    /// Whether it goes away with its process.
    is_guest: bool,
    /// When it may be started, or asked, next.
    next: Instant,
    /// How long it stays down when its process ends by itself.
    down: Duration,
}

/// How far a process is.
enum Process {
    Down,
    /// A start takes a moment, in which the others are looked after.
    Starting(JoinHandle<Result<Endcap>>),
    /// It runs; whether it is ready to work.
    Up(Endcap, bool),
}

impl Slot {
    fn of(name: String, stage: &'static str, is_guest: bool) -> Self {
        Self { name, stage, process: Process::Down, is_guest, next: Instant::now(), down: DOWN }
    }

    fn works(&self) -> bool {
        matches!(self.process, Process::Up(_, true))
    }

    fn running(&self) -> Option<&Endcap> {
        if let Process::Up(process, _) = &self.process { Some(process) } else { None }
    }

    fn take(&mut self) -> Process {
        std::mem::replace(&mut self.process, Process::Down)
    }

    /// Goes on with its process; answers whether one that was at work has ended by itself.
    fn tend(&mut self, place: &Place, patience: &Patience) -> Result<bool> {
        self.next = Instant::now() + ASK_EVERY;
        match self.take() {
            Process::Down => self.process = self.start(place)?,
            Process::Starting(start) if start.is_finished() => match start.join() {
                Ok(Ok(process)) => self.process = Process::Up(process, false),
                Ok(Err(error)) => self.falls("did not start", &format!("{error:#}"), patience),
                Err(_) => bail!("the start of {} has panicked", self.name),
            },
            Process::Starting(start) => self.process = Process::Starting(start),
            Process::Up(mut process, was_ready) => {
                if process.has_ended()? {
                    self.falls(if was_ready { "stopped" } else { "did not start" }, &process.kill(), patience);
                    return Ok(was_ready);
                }
                let is_ready = was_ready || matches!(process.get("/health/ready"), Ok((200, _)));
                self.down = if is_ready { DOWN } else { self.down };
                self.process = Process::Up(process, is_ready);
            }
        }
        Ok(false)
    }

    /// Begins a start.
    fn start(&mut self, place: &Place) -> Result<Process> {
        let (run, stage, models, config) = (place.run(), self.stage, place.models.clone(), place.config(&self.name)?);
        Ok(Process::Starting(thread::spawn(move || run.begin_stages(&[stage], &["--models", &models, "--config", &config]))))
    }

    /// Its process has ended by itself, with these last words.
    fn falls(&mut self, how: &str, said: &str, patience: &Patience) {
        let last = said.lines().rev().find(|line| line.starts_with("error")).or(said.lines().last()).unwrap_or_default();
        patience.tell(&format!("{} {how}: {last}", self.name));
        self.next = Instant::now() + self.down;
        self.down = (self.down * 2).min(DOWN_MAX);
    }
}

impl Drop for Slot {
    /// What starts is waited for, so that it can be ended.
    fn drop(&mut self) {
        if let Process::Starting(start) = self.take() {
            let _ = start.join();
        }
    }
}

impl<'a> Fleet<'a> {
    /// One process of every stage, two of the first; none runs yet.
    pub(crate) fn new(place: &'a Place) -> Self {
        let mut slots: Vec<Slot> = STAGES.iter().map(|stage| Slot::of((*stage).to_owned(), stage, false)).collect();
        slots.push(Slot::of(format!("{TWICE}-2"), TWICE, false));
        Self { place, slots, doors: Doors::default(), leaving: Vec::new(), guests: 0, stopped: 0 }
    }

    /// Where events are taken at the moment.
    pub(crate) fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Starts what is down, and notes what has become ready or has ended.
    ///
    /// # Errors
    /// When a process cannot be looked after.
    pub(crate) fn tend(&mut self, patience: &Patience) -> Result<()> {
        for slot in self.slots.iter_mut().filter(|slot| slot.next <= Instant::now()) {
            self.stopped += u64::from(slot.tend(self.place, patience)?);
        }
        self.leaving.retain_mut(|process| !process.has_ended().unwrap_or(false));
        self.show_doors();
        Ok(())
    }

    /// Tells whoever posts where it can.
    fn show_doors(&self) {
        let working = self.slots.iter().filter(|slot| slot.works()).filter_map(Slot::running);
        let open = working.map(|process| process.address().to_owned()).collect();
        *self.doors.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// When one does not become so in time.
    pub(crate) fn wait_until_ready(&mut self, patience: &Patience) -> Result<()> {
        patience.until("the processes to be ready", LOOK_EVERY, || {
            self.tend(patience)?;
            Ok(self.slots.iter().all(Slot::works))
        })
    }

    /// Waits until every process works, and no record waits at any stage.
    ///
    /// # Errors
    /// When that does not come about in time.
    pub(crate) fn wait_until_drained(&mut self, sides: &Sides, patience: &Patience) -> Result<()> {
        let (mut times, mut asked) = (0, Instant::now());
        patience.until("the work to be done", LOOK_EVERY, || {
            self.tend(patience)?;
            if asked.elapsed() > DRAINED_EVERY {
                asked = Instant::now();
                let works = self.slots.iter().all(Slot::works);
                let is_drained = works && is_drained(sides);
                times = if is_drained { times + 1 } else { 0 };
            }
            Ok(times >= DRAINED_TIMES)
        })
    }

    /// Ends one of the processes at work at once, which `number` draws; gives its name. `None` where none is at work.
    pub(crate) fn kill(&mut self, number: u64) -> Option<String> {
        let working: Vec<usize> = (0..self.slots.len()).filter(|at| self.slots[*at].works()).collect();
        let chosen = *working.get((number % working.len().max(1) as u64) as usize)?;
        let slot = &mut self.slots[chosen];
        drop(slot.take());
        slot.next = Instant::now();
        let name = slot.name.clone();
        if slot.is_guest {
            self.slots.remove(chosen);
        }
        self.show_doors();
        Some(name)
    }

    /// One more process of `stage` comes; gives its name.
    pub(crate) fn invite(&mut self, stage: &'static str) -> String {
        self.guests += 1;
        let name = format!("{stage}-guest-{}", self.guests);
        self.slots.push(Slot::of(name.clone(), stage, true));
        name
    }

    /// The process that came first of those besides leaves; gives its name. `None` where none is left.
    ///
    /// # Errors
    /// When it cannot be asked to.
    pub(crate) fn see_off(&mut self, killed: bool) -> Result<Option<String>> {
        let Some(at) = self.slots.iter().position(|slot| slot.is_guest) else { return Ok(None) };
        let mut slot = self.slots.remove(at);
        self.show_doors();
        match slot.take() {
            Process::Up(process, true) if !killed => {
                process.interrupt()?;
                self.leaving.push(process);
            }
            process => slot.process = process,
        }
        Ok(Some(slot.name.clone()))
    }

    /// Ids of the processes that run.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.slots.iter().filter_map(Slot::running).map(Endcap::id).collect()
    }

    /// Ends all processes; answers how many had stopped by themselves.
    pub(crate) fn end(self) -> u64 {
        self.stopped
    }
}

/// Whether nothing waits for any stage, on either lane. Asked along the path: a record that moves on meanwhile is seen again.
fn is_drained(sides: &Sides) -> bool {
    STAGES.iter().zip(Topic::PATH).all(|(stage, topic)| {
        // There is no backfill lane of events; its topic is empty.
        let waits_for = |lane: Lane| sides.log.group(&group_of(stage, lane), topic.on(lane));
        let is_idle = |lane| waits_for(lane).is_ok_and(|states| states.iter().all(|state| state.backlog.waiting == 0));
        Lane::ALL.into_iter().all(is_idle)
    })
}
