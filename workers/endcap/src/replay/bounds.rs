//! Which part of the log a replay reads.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use endcap_runtime::{Broker, Received};
use endcap_schemas::topics::Topic;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const CANNOT_READ: &str = "cannot read the log";
/// Records read at once.
const READ_MAX: usize = 2_000;

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The oldest record that is kept.
    Earliest,
    /// The first record that the log took at this time or later, ms since 1970.
    Time(i64),
    /// The same, so long before now.
    Last(Duration),
    /// This offset, in every partition that is read.
    Offset(i64),
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = match text.split_once('=') {
            None if text == "earliest" => Some(Bound::Earliest),
            Some(("ts", time)) => millis(time).map(Bound::Time),
            Some(("last", time)) => humantime::parse_duration(time).ok().map(Bound::Last),
            Some(("offset", offset)) => offset.parse().ok().filter(|offset| *offset >= 0).map(Bound::Offset),
            _ => None,
        };
        found.ok_or_else(|| {
            "give earliest, ts=2026-05-01T08:00:00Z, ts=1777622400000 (milliseconds), last=24h or offset=1200".to_owned()
        })
    }
}

/// Milliseconds since 1970, written as such or as RFC 3339.
fn millis(text: &str) -> Option<i64> {
    if let Ok(ms) = text.parse::<i64>() {
        return (ms >= 0).then_some(ms);
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok().filter(|ms| *ms >= 0)
}

/// A part of one partition: from an offset to before another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// Name of the topic, which tells the lane.
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Stretch {
    pub(super) fn topic(&self) -> Result<Topic> {
        Topic::named(&self.topic).with_context(|| format!("no topic is called {}: a newer release began this replay", self.topic))
    }

    /// Hands its records from offset `from` on to `see`, some at once.
    ///
    /// # Errors
    /// When the log does not answer, or of `see`.
    pub(super) fn read(&self, log: &dyn Broker, from: i64, see: &mut dyn FnMut(&[Received]) -> Result<()>) -> Result<()> {
        let (topic, mut next) = (self.topic()?, from.max(self.from));
        while next < self.to {
            let records = log.records(topic, self.partition, next, READ_MAX).context(CANNOT_READ)?;
            // Offsets without a record are a log's own.
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            let ours = records.partition_point(|record| record.offset < self.to);
            see(&records[..ours])?;
        }
        Ok(())
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} partition {} offsets {} to {}", self.topic, self.partition, self.from, self.to - 1)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) from: Bound,
    /// `None` for the end as it is now.
    pub(super) to: Option<Bound>,
    /// Empty for all.
    pub(super) partitions: Vec<i32>,
}

impl Wanted {
    /// The stretches of `topic` that are meant at `now_ms`, without empty ones. They end at the latest where the log ends now.
    ///
    /// # Errors
    /// When the log does not answer, or has no such partition.
    pub(super) fn stretches(&self, log: &dyn Broker, topic: Topic, now_ms: i64) -> Result<Vec<Stretch>> {
        let ends = log.ends(topic).context(CANNOT_READ)?;
        for partition in &self.partitions {
            let last = ends.len().saturating_sub(1);
            ensure!(ends.contains_key(partition), "{topic} has no partition {partition}: its last one is {last}");
        }
        let at = |bound: Bound| offsets(log, topic, bound, now_ms, &ends);
        let from = at(self.from)?;
        let to = self.to.map_or_else(|| Ok(ends.clone()), at)?;
        let is_meant = |partition: &i32| self.partitions.is_empty() || self.partitions.contains(partition);
        let stretch = |(partition, end): (i32, i64)| {
            let (from, to) = (from.get(&partition).copied().unwrap_or(0), to.get(&partition).copied().unwrap_or(end).min(end));
            Stretch { topic: topic.name().to_owned(), partition, from, to }
        };
        let all = ends.iter().map(|(partition, end)| (*partition, *end)).filter(|(partition, _)| is_meant(partition));
        Ok(all.map(stretch).filter(|stretch| stretch.from < stretch.to).collect())
    }

    /// Where to look for what earlier replays have made of the same contexts: it was sent after them, and an offset means another topic.
    pub(super) fn behind(&self) -> Self {
        let from = if matches!(self.from, Bound::Offset(_)) { Bound::Earliest } else { self.from };
        Self { from, to: None, partitions: self.partitions.clone() }
    }

    /// Whether it is all that the log keeps.
    pub(super) fn is_whole(&self) -> bool {
        self.from == Bound::Earliest && self.to.is_none()
    }
}

fn offsets(log: &dyn Broker, topic: Topic, bound: Bound, now_ms: i64, ends: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, i64>> {
    let at_ms = match bound {
        Bound::Earliest => return Ok(ends.keys().map(|partition| (*partition, 0)).collect()),
        Bound::Offset(offset) => return Ok(ends.keys().map(|partition| (*partition, offset)).collect()),
        Bound::Time(ms) => ms,
        Bound::Last(time) => now_ms.saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
    };
    log.offsets_at(topic, at_ms).with_context(|| format!("cannot find the records of {topic} by time"))
}

/// Refuses a range without a record.
pub(super) fn not_empty(stretches: &[Stretch], topic: Topic) -> Result<()> {
    if stretches.is_empty() {
        bail!(
            "the range holds no record of {topic}: `--from earliest` takes all that is kept, and `--to` must lie behind `--from`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock, contract::record};

    use super::*;

    #[test]
    fn bounds_are_read_from_words() {
        for (text, bound) in [
            ("earliest", Some(Bound::Earliest)),
            ("ts=1700000000000", Some(Bound::Time(1_700_000_000_000))),
            ("ts=2023-11-14T23:13:20.5+01:00", Some(Bound::Time(1_700_000_000_500))),
            ("last=36h", Some(Bound::Last(Duration::from_secs(36 * 3_600)))),
            ("offset=12", Some(Bound::Offset(12))),
            ("offset=-1", None),
            ("ts=yesterday", None),
            ("last=", None),
            ("latest", None),
        ] {
            assert_eq!(text.parse::<Bound>().ok(), bound, "{text}");
        }
    }

    #[test]
    fn a_range_is_found_in_the_log_and_ends_where_the_log_ended() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(1_000));
        let log = Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), clock.clone()).unwrap();
        for n in 0..6 {
            Broker::append(&log, &[record(Topic::CONTEXTS, "anna", &[n])], None).unwrap();
            clock.advance(Duration::from_secs(1));
        }
        let stretches = |from: &str, to: Option<&str>, partitions: &[i32]| {
            let to = to.map(|to| to.parse().unwrap());
            let wanted = Wanted { from: from.parse().unwrap(), to, partitions: partitions.to_vec() };
            let found = wanted.stretches(&log, Topic::CONTEXTS, 7_000);
            found.map(|found| found.iter().map(|stretch| (stretch.from, stretch.to)).collect::<Vec<_>>())
        };
        for (from, to, found) in [
            ("earliest", None, &[(0, 6)][..]),
            ("ts=3000", None, &[(2, 6)]),
            ("ts=3001", Some("ts=5000"), &[(3, 4)]),
            ("last=2s", None, &[(4, 6)]),
            ("offset=5", Some("offset=99"), &[(5, 6)]),
            ("ts=99000", None, &[]),
            ("offset=4", Some("offset=2"), &[]),
        ] {
            assert_eq!(stretches(from, to, &[0]).unwrap(), found, "{from} {to:?}");
        }
        assert!(stretches("earliest", None, &[3]).unwrap_err().to_string().contains("has no partition 3: its last one is 0"));
    }
}
