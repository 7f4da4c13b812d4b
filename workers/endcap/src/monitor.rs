//! Reads the job's figures from the log and the store.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use anyhow::{Context, Result};
use endcap_inference::TokenCounts;
use endcap_runtime::{AtWork, GroupState, INGEST, LaneSnapshot, StageSnapshot, StageStats, Tally};
use endcap_schemas::{
    PagePublished,
    topics::{Lane, Topic},
    wire,
};
use std::sync::Arc;

use crate::{
    figures::{AtWorkFigures, CacheFigures, Figures, Freshness, PageFigures, StageFigures},
    sides::Sides,
};

/// Pages that freshness is taken from: the last ones.
const PAGES_MAX: usize = 500;
/// Pages read at once.
const READ_MAX: usize = 64;
/// Time that rates are taken over; where the last two readings are further apart, the time between these.
const RATES_OVER: Duration = Duration::from_secs(30);

/// Stages in path order, and what each tells of itself.
pub type Stages = Vec<(&'static str, Arc<StageStats>)>;

/// What reads.
pub struct Monitor {
    generation: i32,
    sides: Sides,
    stages: Stages,
    /// The first page of each partition that was not read.
    next: BTreeMap<i32, i64>,
    /// When the last pages were published, ms, and their freshness, s; in that order.
    fresh: Vec<(i64, f64)>,
    rates: Rates,
}

/// Reads what this process alone has done since its start: nobody is asked for it.
pub struct OwnMonitor {
    stages: Stages,
    rates: Rates,
}

/// What rates are taken over. Readings are as far apart as whoever looks: a rate is what was counted between two, over the time between them.
#[derive(Default)]
struct Rates {
    past: VecDeque<Count>,
}

/// What had been counted at a reading.
struct Count {
    /// Time since the start.
    at: Duration,
    /// Tokens per stage and lane.
    tokens: BTreeMap<String, u64>,
    pages: u64,
}

impl Monitor {
    /// A monitor over `sides` in a process that runs the manifest of this number; `stages` in path order.
    pub fn new(generation: i32, sides: Sides, stages: Stages) -> Self {
        Self { generation, sides, stages, next: BTreeMap::new(), fresh: Vec::new(), rates: Rates::default() }
    }

    /// A reading at `now_ms`. `up_for` is the time since the start; `feeder` says what the feeder is doing.
    ///
    /// # Errors
    /// When log or store do not answer.
    pub fn read(&mut self, up_for: Duration, now_ms: i64, feeder: Option<String>) -> Result<Figures> {
        self.read_pages()?;
        let tallies = self.sides.tallies()?;
        let groups = self.sides.groups()?;
        let Counts { events, pages: published, .. } = Counts::of(&tallies, &groups);
        let snapshots = snapshots(&self.stages);
        let mut stages = both_lanes(&snapshots, &tallies, now_ms, |name, lane| waiting(&groups, name, lane));
        let pages_per_second = self.rates.fill_in(up_for, published, &mut stages);
        Ok(Figures {
            generation: self.generation,
            uptime_s: up_for.as_secs_f64(),
            accepted: events,
            refused: tallies.get(INGEST).map_or(0, Tally::dead_lettered_total),
            stages,
            freshness: Freshness::of(self.fresh.iter().map(|(_, seconds)| *seconds).collect()),
            pages: PageFigures {
                published,
                shoppers: self.sides.store.pages_count().context("cannot count the pages")?,
                per_second: pages_per_second,
            },
            cache: cache_figures(&tallies),
            feeder,
        })
    }

    /// Takes the freshness of the pages that were published since the last reading: all of them, but those that would be forgotten at once.
    fn read_pages(&mut self) -> Result<()> {
        let ends = self.sides.log.ends(Topic::PAGES).context("cannot read the log")?;
        // Keys spread over the partitions, and so do the last pages.
        let each_max = i64::try_from(PAGES_MAX.div_ceil(ends.len().max(1))).unwrap_or(i64::MAX);
        for (partition, end) in ends {
            let next = self.next.entry(partition).or_insert(0);
            *next = (*next).max(end - each_max);
            while *next < end {
                let records = self.sides.log.records(Topic::PAGES, partition, *next, READ_MAX).context("cannot read the log")?;
                // Offsets without a record are a log's own: there is nothing left before its end, then.
                *next = records.last().map_or(end, |last| last.offset + 1);
                for record in &records {
                    if let Ok(page) = wire::decode::<PagePublished>(&record.value) {
                        let seconds = seconds_between(page.head.cause.accepted_ms, record.appended_ms);
                        self.fresh.push((record.appended_ms, seconds));
                    }
                }
            }
        }
        self.fresh.sort_by_key(|(published_ms, _)| *published_ms);
        self.fresh.drain(..self.fresh.len().saturating_sub(PAGES_MAX));
        Ok(())
    }
}

impl OwnMonitor {
    /// A monitor of `stages`, in path order.
    pub fn new(stages: Stages) -> Self {
        Self { stages, rates: Rates::default() }
    }

    /// A reading at `now_ms`; what a stage holds is what waits for it. `up_for` is the time since the start.
    pub fn read(&mut self, up_for: Duration, now_ms: i64) -> Vec<StageFigures> {
        let snapshots = snapshots(&self.stages);
        let tally = |lane: Lane| {
            let named = move |(name, own): &(&'static str, StageSnapshot)| (lane.named(name), own.lane(lane).tally.clone());
            snapshots.iter().map(named)
        };
        let tallies = Lane::ALL.into_iter().flat_map(tally).collect();
        let held = |name: &str, lane: Lane| {
            let found = snapshots.iter().find(|(other, _)| *other == name);
            found.map_or(0, |(_, own)| own.lane(lane).held as u64)
        };
        let mut stages = both_lanes(&snapshots, &tallies, now_ms, held);
        self.rates.fill_in(up_for, 0, &mut stages);
        stages
    }
}

fn snapshots(stages: &Stages) -> Vec<(&'static str, StageSnapshot)> {
    stages.iter().map(|(name, stats)| (*name, stats.snapshot())).collect()
}

/// What stages did on both lanes, as `tallies` have it; a lane that nobody uses is left out. `waiting` says what waits for a stage on a lane.
fn both_lanes(
    stages: &[(&'static str, StageSnapshot)],
    tallies: &BTreeMap<String, Tally>,
    now_ms: i64,
    waiting: impl Fn(&str, Lane) -> u64,
) -> Vec<StageFigures> {
    let figures = |lane: Lane, (name, snapshot): &(&'static str, StageSnapshot)| {
        let LaneSnapshot { trouble, stopped, at_work, .. } = snapshot.lane(lane).clone();
        let at_work =
            at_work.map(|AtWork { records, since_ms }| AtWorkFigures { records, seconds: seconds_between(since_ms, now_ms) });
        StageFigures { waiting: waiting(name, lane), trouble, stopped, at_work, ..stage_figures(name, lane, tallies) }
    };
    let is_used = |figures: &StageFigures| {
        figures.lane == Lane::Live || figures.received + figures.waiting > 0 || figures.trouble.is_some()
    };
    let all = Lane::ALL.into_iter().flat_map(|lane| stages.iter().map(move |stage| (lane, stage)));
    all.map(|(lane, stage)| figures(lane, stage)).filter(is_used).collect()
}

impl Rates {
    /// Fills in tokens a second; answers pages a second.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn fill_in(&mut self, now: Duration, published: u64, stages: &mut [StageFigures]) -> f64 {
        let count = |stage: &StageFigures| stage.tokens.map_or(0, |tokens| tokens.prefilled + tokens.generated + tokens.forced);
        let tokens = stages.iter().map(|stage| (stage.lane.named(&stage.name), count(stage))).collect();
        self.past.push_back(Count { at: now, tokens, pages: published });
        // The one before this one stays, however old it is.
        while self.past.len() > 2 && now.saturating_sub(self.past[0].at) > RATES_OVER {
            self.past.pop_front();
        }
        let (Some(before), Some(after)) = (self.past.front(), self.past.back()) else { return 0.0 };
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return 0.0;
        }
        for stage in stages {
            let count = |counts: &BTreeMap<String, u64>| counts.get(&stage.lane.named(&stage.name)).copied().unwrap_or(0);
            stage.tokens_per_second = count(&after.tokens).saturating_sub(count(&before.tokens)) as f64 / seconds;
        }
        published.saturating_sub(before.pages) as f64 / seconds
    }
}

/// What a stage did on a lane, as the log has it.
fn stage_figures(name: &str, lane: Lane, tallies: &BTreeMap<String, Tally>) -> StageFigures {
    let (none, counted) = (Tally::default(), lane.named(name));
    let tally = tallies.get(&counted).unwrap_or(&none);
    StageFigures {
        name: name.to_owned(),
        lane,
        received: tally.received,
        passed: tally.passed,
        dropped: tally.dropped.clone(),
        dead_lettered: tally.dead_lettered_total(),
        seconds: busy_seconds(tally),
        tokens: tokens_of(&counted, tally),
        ..StageFigures::default()
    }
}

/// What went through the whole path on the live lane. Taken from the stages' tallies: a log's offsets do not count records, as some are
/// the log's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Events that the log took.
    pub events: u64,
    /// Pages that were published.
    pub pages: u64,
    /// Records that wait, at all stages on both lanes.
    pub waiting: u64,
}

impl Counts {
    /// Reads them off.
    pub fn of(tallies: &BTreeMap<String, Tally>, groups: &[GroupState]) -> Self {
        let count = |stage: &str, of: fn(&Tally) -> u64| tallies.get(stage).map_or(0, of);
        Self {
            events: count("context", |tally| tally.received) + waiting(groups, "context", Lane::Live),
            pages: count("aiqa", |tally| tally.passed),
            waiting: groups.iter().map(|group| group.backlog.waiting).sum(),
        }
    }
}

/// Records that wait for a stage on a lane.
fn waiting(groups: &[GroupState], stage: &str, lane: Lane) -> u64 {
    let own = group_of(stage, lane);
    groups.iter().filter(|group| group.group == own).map(|group| group.backlog.waiting).sum()
}

/// The consumer group of a stage on a lane.
pub fn group_of(stage: &str, lane: Lane) -> String {
    format!("endcap.{stage}.{lane}")
}

/// Seconds in which a stage did something.
pub fn busy_seconds(tally: &Tally) -> f64 {
    tally
        .spent
        .iter()
        .filter(|(phase, _)| phase.as_str() != endcap_runtime::Phase::Idle.label())
        .map(|(_, time)| *time)
        .sum::<Duration>()
        .as_secs_f64()
}

/// Tokens of a stage's model, by the name that its tally has on either lane; `None` for a stage that counts none.
pub fn tokens_of(name: &str, tally: &Tally) -> Option<TokenCounts> {
    let (stage, _) = Lane::of(name);
    let count = |kind: &str| tally.counters.get(&format!("{stage}.tokens_{kind}")).copied();
    let prefilled = count("prefilled")?;
    Some(TokenCounts { prefilled, generated: count("generated").unwrap_or(0), forced: count("forced").unwrap_or(0) })
}

/// Hit rates of both caches.
pub fn cache_figures(tallies: &BTreeMap<String, Tally>) -> CacheFigures {
    let count = |stage: &str, name: &str| tallies.get(stage).and_then(|tally| tally.counters.get(name)).copied();
    CacheFigures {
        keywords: share(count("keywords", "keywords.cache_hits"), count("keywords", "keywords.asked")),
        verdicts: share(count("aiqa", "aiqa.cache_hits"), count("aiqa", "aiqa.asked")),
    }
}

/// `hits` of `hits + misses`; `None` where nothing was asked.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn share(hits: Option<u64>, misses: Option<u64>) -> Option<f64> {
    let (hits, misses) = (hits.unwrap_or(0), misses.unwrap_or(0));
    (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
}

/// From one moment to the other, s; never negative.
#[expect(clippy::cast_precision_loss, reason = "milliseconds far below 2^52")]
pub fn seconds_between(from_ms: i64, to_ms: i64) -> f64 {
    (to_ms - from_ms).max(0) as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
