//! Events come in while the faults happen: posted to whichever process takes them, some of them again, some records poisoned.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::PoisonError,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use endcap::sides::Sides;
use endcap_runtime::{Clock, Headers, Outgoing, Shutdown, SystemClock};
use endcap_schemas::{ShopperEvent, UserKey, topics::Topic};
use endcap_tests::{Draw, Shoppers};
use serde_json::Value;

use crate::{
    fleet::{Doors, Fleet, LOOK_EVERY},
    patience::Patience,
};

/// Shoppers of a run.
const SHOPPERS: u64 = 40;
/// Most new events of one request.
const BATCH: u64 = 6;
/// Between two requests, ms.
const REST_MS: (u64, u64) = (100, 500);
/// How long a request may take before it is made again elsewhere.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Before a request is made again.
const AGAIN: Duration = Duration::from_millis(200);
/// Requests of a thousand that bring events of before as well.
const REPEATS_PER_MILLE: u64 = 200;
/// Most events that are sent again at once, and those that are remembered for it: fewer than the ids that a state remembers.
const REPEATED: u64 = 8;
const REMEMBERED: usize = 150;
/// Poisoned records of a thousand events, into the topic and at the door each.
const POISON_PER_MILLE: u64 = 10;

/// What was sent.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sent {
    /// Ids of the events that a door took.
    pub(crate) accepted: BTreeSet<String>,
    /// Events that were sent again on purpose.
    pub(crate) repeated: u64,
    /// Requests that were made again because nobody answered, or not well.
    pub(crate) retried: u64,
    /// Poisoned records that were written into the topic.
    pub(crate) poisoned: u64,
    /// Bodies and events that the door refused.
    pub(crate) refused: u64,
}

/// The thread that sends.
pub(crate) struct Load {
    end: Shutdown,
    thread: JoinHandle<Result<Sent>>,
}

impl Load {
    /// Begins to send.
    pub(crate) fn start(seed: u64, doors: Doors, sides: Sides, patience: &Patience) -> Result<Self> {
        let end = Shutdown::new();
        let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().new_agent();
        let sender = Sender {
            draw: Draw::new(seed, "load"),
            shoppers: Shoppers::of(seed, SHOPPERS),
            clock: SystemClock::default(),
            doors,
            sides,
            agent,
            past: VecDeque::new(),
            sent: Sent::default(),
            patience: patience.clone(),
        };
        let heard = end.clone();
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || sender.send_until(&heard));
        Ok(Self { end, thread: thread.context("cannot start the sender")? })
    }

    /// Ends sending, and answers what was sent: all of it was taken.
    ///
    /// # Errors
    /// When an event was not taken in time.
    pub(crate) fn finish(self, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<Sent> {
        self.end.trigger();
        patience.until("the last events to be taken", LOOK_EVERY, || {
            fleet.tend(patience)?;
            Ok(self.thread.is_finished())
        })?;
        self.thread.join().map_err(|_| anyhow!("the sender has panicked"))?
    }
}

struct Sender {
    draw: Draw,
    shoppers: Shoppers,
    clock: SystemClock,
    doors: Doors,
    sides: Sides,
    agent: ureq::Agent,
    /// The last events, to be sent again.
    past: VecDeque<ShopperEvent>,
    sent: Sent,
    patience: Patience,
}

impl Sender {
    fn send_until(mut self, end: &Shutdown) -> Result<Sent> {
        while !end.wait(Duration::from_millis(self.draw.between(REST_MS.0, REST_MS.1))) {
            let mut events: Vec<ShopperEvent> =
                (0..self.draw.between(1, BATCH + 1)).map(|_| self.shoppers.next_event(&self.clock)).collect();
            for event in &events {
                self.poison(event)?;
            }
            let new = events.clone();
            events.extend(self.repeats());
            self.insist(&events)?;
            self.past.extend(new);
            let surplus = self.past.len().saturating_sub(REMEMBERED);
            self.past.drain(..surplus);
        }
        Ok(self.sent)
    }

    /// Events of before, in another order: each comes behind itself.
    fn repeats(&mut self) -> Vec<ShopperEvent> {
        if self.past.is_empty() || !self.draw.per_mille(REPEATS_PER_MILLE) {
            return Vec::new();
        }
        let count = self.draw.between(1, REPEATED + 1);
        self.sent.repeated += count;
        (0..count).map(|_| self.past[self.draw.place(self.past.len())].clone()).collect()
    }

    /// Posts `events` until a door takes them.
    fn insist(&mut self, events: &[ShopperEvent]) -> Result<()> {
        let body = serde_json::to_string(events)?;
        loop {
            if let Some((200, answer)) = self.post(&body) {
                self.note(&answer);
                return Ok(());
            }
            self.sent.retried += 1;
            self.patience.pause(AGAIN).context("events are not taken")?;
        }
    }

    fn note(&mut self, answer: &Value) {
        for result in answer["results"].as_array().into_iter().flatten() {
            match (result["status"].as_str(), result["id"].as_str()) {
                (Some("accepted" | "repeated"), Some(id)) => drop(self.sent.accepted.insert(id.to_owned())),
                _ => self.sent.refused += 1,
            }
        }
    }

    /// Status and answer of a door; `None` where none is open, or nobody answers.
    fn post(&mut self, body: &str) -> Option<(u16, Value)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let door = doors.get(self.draw.place(doors.len().max(1)))?;
        let request = self.agent.post(format!("{door}/v1/events")).header("content-type", "application/json");
        let mut response = request.send(body.as_bytes()).ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    /// Now and then something that is no event: into the topic as a foreign producer would write it, and at the door.
    fn poison(&mut self, event: &ShopperEvent) -> Result<()> {
        if self.draw.per_mille(POISON_PER_MILLE) {
            let record = self.poisoned(event)?;
            // Where the log does not take it now there is one less: whether it did is seen in the log.
            self.sent.poisoned += u64::from(self.sides.log.append(&[record], None).is_ok());
        }
        if self.draw.per_mille(POISON_PER_MILLE) {
            let bodies = ["{\"id\": ", "[{\"id\":\"x\",\"user\":\"shopper-01\",\"at_ms\":\"noon\"}]", "no json\n", "[1, 2"];
            let body = *self.draw.one_of(&bodies);
            let answer = self.post(body);
            self.sent.refused += u64::from(answer.is_some_and(|(status, _)| status < 500));
        }
        Ok(())
    }

    fn poisoned(&mut self, event: &ShopperEvent) -> Result<Outgoing> {
        let whole = endcap_schemas::wire::encode(event)?;
        let values = [
            b"\x00\x00\x00\x00\x07 framed for a registry".to_vec(),
            b"\xc3\x01\x01\x02\x03\x04\x05\x06\x07\x08 of an unknown schema".to_vec(),
            whole[..whole.len() - 1].to_vec(),
            [&whole[..], b"and more"].concat(),
            b"noise".to_vec(),
            Vec::new(),
            // A whole event, under another shopper's key.
            endcap_schemas::wire::encode(&ShopperEvent { user: "somebody-else".to_owned(), ..event.clone() })?,
        ];
        let user: UserKey = event.key();
        let headers = Headers::root(format!("poison-{}", event.id), Topic::EVENTS, self.clock.now_ms());
        Ok(Outgoing { topic: Topic::EVENTS, key: user, headers, value: self.draw.one_of(&values).clone() })
    }
}
