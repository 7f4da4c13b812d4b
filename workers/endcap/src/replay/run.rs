//! A run of a replay: what it was asked for, how far it is, and how it sends. How far it is is noted in the transaction that appends its
//! records, so that a run that was killed goes on behind them. Notes stay in the log for good, where no erasure reaches them: they hold marks
//! in place of shoppers' keys.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use endcap_runtime::{Broker, Clock, Outgoing, Shutdown};
use serde::{Deserialize, Serialize};

use super::bounds::Stretch;
use crate::feed;

/// Records of one append, and shoppers of one write to the store.
const BATCH: usize = 100;

/// What is noted of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// When it began, ms since 1970: its number, and the epoch of the states that it makes.
    pub(super) run: i64,
    /// The generation that it sends under; `None` until it begins.
    pub(super) generation: Option<i32>,
    /// What it reads.
    pub(super) stretches: Vec<Stretch>,
    /// The only shoppers that are meant; empty for all.
    pub(super) users: Vec<Mark>,
    /// Whether the range is all that the log keeps: then shoppers count whose live contexts are gone.
    pub(super) is_whole: bool,
    /// Records per second.
    pub(super) rate: Option<f64>,
    /// Records sent.
    pub(super) sent: u64,
    /// Shoppers whose contexts were not sent, as they were erased since.
    #[serde(default)]
    pub(super) erased: u64,
    pub(super) place: Place,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// Contexts: in a stretch, before an offset.
    Contexts { stretch: usize, next: i64 },
    /// Events: a pass up to these offsets by partition, in a stretch, behind a shopper.
    Events { pass: u32, to: BTreeMap<i32, i64>, stretch: usize, after: Option<Mark> },
    /// Nothing is left.
    Done,
}

/// Stands for a shopper in the notes of a run: a short hash of both. Two shoppers of a run share one as good as never, and what comes of it
/// is that one more or less is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Mark(u64);

impl Mark {
    /// Of the shopper with this key in the replay `run`.
    pub(super) fn of(run: i64, key: &str) -> Self {
        let hash = blake3::Hasher::new().update(&run.to_le_bytes()).update(key.as_bytes()).finalize();
        Self(u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes")))
    }
}

impl Note {
    /// The name that progress is noted under.
    fn name(run: i64) -> String {
        format!("replay/{run}")
    }

    /// What is noted of `run`.
    ///
    /// # Errors
    /// When the log does not answer, or knows no such run.
    pub(super) fn of(log: &dyn Broker, run: i64) -> Result<Self> {
        match log.progress(&Self::name(run)).context("cannot read how far the replay is")? {
            Some(text) => serde_json::from_str(&text)
                .with_context(|| format!("cannot read how far replay {run} is: another release began it; begin a new one")),
            None => bail!(
                "no replay {run} was begun on this log: `endcap replay contexts` and `endcap replay events` tell their numbers"
            ),
        }
    }

    pub(super) fn is_meant(&self, key: &str) -> bool {
        self.users.is_empty() || self.users.contains(&self.mark(key))
    }

    /// What stands for the shopper with this key.
    pub(super) fn mark(&self, key: &str) -> Mark {
        Mark::of(self.run, key)
    }

    /// Nothing is left to be done, and nobody to be told from others.
    pub(super) fn finish(&mut self) {
        self.place = Place::Done;
        self.users.clear();
    }
}

/// Appends what a run sends, at its pace.
pub(super) struct Sender<'a> {
    log: &'a dyn Broker,
    clock: &'a dyn Clock,
    shutdown: &'a Shutdown,
    rate: Option<f64>,
    start: Duration,
    sent: u64,
}

impl<'a> Sender<'a> {
    pub(super) fn new(log: &'a dyn Broker, clock: &'a dyn Clock, shutdown: &'a Shutdown, rate: Option<f64>) -> Self {
        Self { log, clock, shutdown, rate, start: clock.monotonic(), sent: 0 }
    }

    /// Records of one append: none waits for long, however slow the pace.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 100")]
    pub(super) fn batch_max(&self) -> usize {
        self.rate.map_or(BATCH, |rate| rate.ceil().clamp(1.0, BATCH as f64) as usize)
    }

    /// Appends `records`, and with them that `note` is how far the run is now.
    ///
    /// # Errors
    /// When somebody asks to end, or the log fails for good.
    pub(super) fn send(&mut self, records: &[Outgoing], note: &mut Note) -> Result<()> {
        self.keep_pace()?;
        let count = records.len() as u64;
        note.sent += count;
        let text = serde_json::to_string(note).context("cannot note how far the replay is")?;
        if !feed::append(self.log, records, &Note::name(note.run), &text, self.shutdown)? {
            bail!("told to end");
        }
        self.sent += count;
        Ok(())
    }

    /// Ends the run where somebody asks for it: between two appends.
    ///
    /// # Errors
    /// When somebody does.
    pub(super) fn go_on(&self, wait: Duration) -> Result<()> {
        if self.shutdown.is_triggered() || (!wait.is_zero() && self.shutdown.wait(wait)) {
            bail!("told to end");
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn keep_pace(&self) -> Result<()> {
        let due = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64((self.sent as f64 / rate).min(1e9)));
        self.go_on(due.saturating_sub(self.clock.monotonic().saturating_sub(self.start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_knows_its_shoppers_and_names_none() {
        let (ada, bob) = ("default/ada", "shop/bob");
        let place = Place::Events { pass: 1, to: BTreeMap::from([(0, 9)]), stretch: 0, after: Some(Mark::of(5, bob)) };
        let users = vec![Mark::of(5, ada)];
        let mut note = Note {
            run: 5,
            generation: None,
            stretches: Vec::new(),
            users,
            is_whole: true,
            rate: None,
            sent: 0,
            erased: 0,
            place,
        };
        let text = serde_json::to_string(&note).unwrap();
        assert!(!text.contains("ada") && !text.contains("bob"), "{text}");
        let read: Note = serde_json::from_str(&text).unwrap();
        assert_eq!(read, note);
        assert!(read.is_meant(ada) && !read.is_meant(bob));
        assert_ne!(Mark::of(6, ada), Mark::of(5, ada), "notes of two runs tell nothing of each other");
        note.finish();
        assert_eq!((note.place, note.users), (Place::Done, Vec::new()));
    }
}
