//! The figures of a run as JSON.

use std::{collections::BTreeMap, time::Duration};

use endcap_runtime::Tally;
use endcap_schemas::topics::Topic;
use serde::Serialize;

use crate::{
    facts::{Facts, Records},
    fleet::STAGES,
    inject::{Entries, Entry},
    judge::Figures,
    load::Sent,
    schedule::Wish,
    side::Side,
};

/// All sides together, and each by itself.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seed: u64,
    #[serde(flatten)]
    total: Counts,
    seconds: f64,
    sides: BTreeMap<String, SideReport>,
}

/// Figures that are summed up. All but the first two must be 0.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Counts {
    kills: u64,
    accepted: u64,
    lost: u64,
    duplicated: u64,
    torn: u64,
    differing_pages: u64,
    unbalanced: u64,
}

/// One side's run.
#[derive(Debug, Serialize)]
pub(crate) struct SideReport {
    #[serde(flatten)]
    counts: Counts,
    seconds: f64,
    /// Events in the log, those that came twice and poisoned ones included.
    records: u64,
    shoppers: usize,
    pages: usize,
    /// Requests that were made again, as the process that was asked was gone or could not take them.
    retried: u64,
    /// Processes that had been at work and ended by themselves; they were started again.
    stopped: u64,
    faults: BTreeMap<&'static str, Entry>,
    stages: BTreeMap<String, Balance>,
    /// What was wrong, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
}

/// `in = passed + dropped + dead_lettered`.
#[derive(Debug, Serialize)]
struct Balance {
    #[serde(rename = "in")]
    received: u64,
    passed: u64,
    dropped: BTreeMap<String, u64>,
    dead_lettered: BTreeMap<String, u64>,
}

impl Balance {
    fn of(tally: &Tally) -> Self {
        let Tally { received, passed, dropped, dead_lettered, .. } = tally.clone();
        Self { received, passed, dropped, dead_lettered }
    }
}

impl Report {
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed, total: Counts::default(), seconds: 0.0, sides: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, side: Side, report: SideReport) {
        let (total, more) = (&mut self.total, &report.counts);
        total.kills += more.kills;
        total.accepted += more.accepted;
        total.lost += more.lost;
        total.duplicated += more.duplicated;
        total.torn += more.torn;
        total.differing_pages += more.differing_pages;
        total.unbalanced += more.unbalanced;
        self.seconds += report.seconds;
        self.sides.insert(side.to_string(), report);
    }

    /// Whether nothing is wrong, and something was tried.
    pub(crate) fn is_clean(&self) -> bool {
        let Counts { accepted, lost, duplicated, torn, differing_pages, unbalanced, .. } = self.total;
        accepted > 0 && [lost, duplicated, torn, differing_pages, unbalanced] == [0; 5]
    }
}

impl SideReport {
    pub(crate) fn of(wish: &Wish, took: Duration, figures: Figures, mut faults: Entries, sent: &Sent, run: &Facts) -> Self {
        let kills = faults.get("kill").map_or(0, |entry| entry.times);
        assert_eq!(kills, u64::from(wish.kills), "every kill of the schedule is made");
        let mut add = |kind, what, times| {
            faults.insert(kind, Entry { what, times, seconds: 0.0 });
        };
        add("repeated", "an event is posted again later, among others' in another order", sent.repeated);
        add("poisoned", "a record that is no event is written into the topic", sent.poisoned);
        add("refused", "a body or an event that cannot be taken is posted", sent.refused);
        let context = run.tallies.get(STAGES[0]).cloned().unwrap_or_default();
        let future = context.dead_lettered.get("future").copied().unwrap_or(0);
        add("skewed", "an event lies a day ahead; others, not counted here, up to 270 s ahead or 200 days back", future);
        let Figures { accepted, lost, duplicated, torn, differing_pages, unbalanced, findings, stopped } = figures;
        Self {
            counts: Counts { kills, accepted, lost, duplicated, torn, differing_pages, unbalanced },
            seconds: took.as_secs_f64(),
            records: run.records.get(&Topic::EVENTS).copied().map_or(0, |Records { count, .. }| count),
            shoppers: run.rows.len(),
            pages: run.rows.values().filter(|rows| rows.page.as_ref().is_some_and(|page| page.page.is_some())).count(),
            retried: sent.retried,
            stopped,
            faults,
            stages: run.tallies.iter().map(|(stage, tally)| (stage.clone(), Balance::of(tally))).collect(),
            findings,
        }
    }
}
