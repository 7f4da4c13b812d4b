//! The processes of the path, and who starts them again: what an orchestrator does for a fleet.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use endcap::sides::Sides;
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
/// How long a process that ended by itself stays down, so that an outage is not spent on starts.
const DOWN: Duration = Duration::from_secs(2);
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
    process: Option<Endcap>,
    is_ready: bool,
    /// Whether it goes away with its process.
    is_guest: bool,
    /// When it may be started, or asked, next.
    next: Instant,
}

impl Slot {
    fn of(name: String, stage: &'static str, is_guest: bool) -> Self {
        Self { name, stage, process: None, is_ready: false, is_guest, next: Instant::now() }
    }

    fn works(&self) -> bool {
        self.is_ready && self.process.is_some()
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
        let place = self.place;
        for slot in &mut self.slots {
            let ended = slot.process.as_mut().map_or(Ok(false), Endcap::has_ended)?;
            if ended && let Some(process) = slot.process.take() {
                let said = process.kill();
                let last = said.lines().rev().find(|line| line.contains("ERROR")).or(said.lines().last()).unwrap_or_default();
                let state = if slot.is_ready { "stopped" } else { "did not start" };
                patience.tell(&format!("{} {state}: {last}", slot.name));
                self.stopped += u64::from(slot.is_ready);
                (slot.is_ready, slot.next) = (false, Instant::now() + DOWN);
            }
            if Instant::now() < slot.next {
                continue;
            }
            slot.next = Instant::now() + ASK_EVERY;
            match &slot.process {
                None => start(place, slot, patience)?,
                Some(process) if !slot.is_ready => slot.is_ready = matches!(process.get("/health/ready"), Ok((200, _))),
                Some(_) => {}
            }
        }
        self.leaving.retain_mut(|process| !process.has_ended().unwrap_or(false));
        self.show_doors();
        Ok(())
    }

    /// Tells whoever posts where it can.
    fn show_doors(&self) {
        let working = self.slots.iter().filter(|slot| slot.works());
        let open = working.filter_map(|slot| slot.process.as_ref()).map(|process| process.address().to_owned()).collect();
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

    /// Waits until no record waits at any stage, and none is in hand.
    ///
    /// # Errors
    /// When that does not come about in time.
    pub(crate) fn wait_until_drained(&mut self, sides: &Sides, patience: &Patience) -> Result<()> {
        let (mut times, mut asked) = (0, Instant::now());
        patience.until("the work to be done", LOOK_EVERY, || {
            self.tend(patience)?;
            if asked.elapsed() > DRAINED_EVERY {
                asked = Instant::now();
                let is_done = sides
                    .groups()
                    .is_ok_and(|groups| groups.len() >= STAGES.len() && groups.iter().all(|group| group.backlog.waiting == 0));
                times = if is_done { times + 1 } else { 0 };
            }
            Ok(times >= DRAINED_TIMES)
        })
    }

    /// Ends one of the processes at work at once, which `number` draws; gives its name. `None` where none is at work.
    pub(crate) fn kill(&mut self, number: u64) -> Option<String> {
        let working: Vec<usize> = (0..self.slots.len()).filter(|at| self.slots[*at].works()).collect();
        let chosen = *working.get((number % working.len().max(1) as u64) as usize)?;
        let slot = &mut self.slots[chosen];
        drop(slot.process.take().map(Endcap::kill));
        (slot.is_ready, slot.next) = (false, Instant::now());
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
        let slot = self.slots.remove(at);
        self.show_doors();
        if let Some(process) = slot.process
            && !killed
            && slot.is_ready
        {
            process.interrupt()?;
            self.leaving.push(process);
        }
        Ok(Some(slot.name))
    }

    /// Ids of the processes that run.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.slots.iter().filter_map(|slot| slot.process.as_ref()).map(Endcap::id).collect()
    }

    /// Ends all processes; answers how many had stopped by themselves.
    pub(crate) fn end(self) -> u64 {
        self.stopped
    }
}

fn start(place: &Place, slot: &mut Slot, patience: &Patience) -> Result<()> {
    let config = place.config(&slot.name)?;
    match place.run().begin_stages(&[slot.stage], &["--models", &place.models, "--config", &config]) {
        Ok(process) => slot.process = Some(process),
        Err(error) => {
            patience.tell(&format!("{} does not start: {error:#}", slot.name));
            slot.next = Instant::now() + DOWN;
        }
    }
    Ok(())
}
