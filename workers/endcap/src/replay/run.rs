//! A run of a replay: what it was asked for, how far it is, and how it sends. How far it is is noted in the transaction that appends its
//! records, so that a run that was killed goes on behind them.

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
    /// Keys of the only shoppers that are meant; empty for all.
    pub(super) users: Vec<String>,
    /// Whether the range is all that the log keeps: then shoppers count whose live contexts are gone.
    pub(super) is_whole: bool,
    /// Records per second.
    pub(super) rate: Option<f64>,
    /// Records sent.
    pub(super) sent: u64,
    pub(super) place: Place,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// Contexts: in a stretch, before an offset.
    Contexts { stretch: usize, next: i64 },
    /// Events: a pass up to these offsets by partition, in a stretch, behind a shopper.
    Events { pass: u32, to: BTreeMap<i32, i64>, stretch: usize, after: Option<String> },
    /// Nothing is left.
    Done,
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
            Some(text) => serde_json::from_str(&text).with_context(|| format!("cannot read how far replay {run} is: {text}")),
            None => bail!(
                "no replay {run} was begun on this log: `endcap replay contexts` and `endcap replay events` tell their numbers"
            ),
        }
    }

    pub(super) fn is_meant(&self, key: &str) -> bool {
        self.users.is_empty() || self.users.iter().any(|user| user == key)
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
