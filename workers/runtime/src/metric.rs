//! Names, units and labels of every metric that the runtime writes. Nothing else names a metric of a stage. What a stage does is told by its
//! lane, too: `live` or `backfill`.

use std::time::Duration;

use endcap_schemas::topics::Lane;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{Backlog, Phase, Tally};

/// Records by stage (or `ingest`, the door for events from outside), lane, verdict (`passed`, `dropped`, `dead_lettered`) and reason.
pub const RECORDS: &str = "endcap_stage_records_total";
/// Seconds of each step by stage, lane and place (`poll`, `batch`, `infer`, `store`, `commit`, `idle`). Their sum, which only grows, is
/// `endcap_stage_seconds_sum`.
pub const SECONDS: &str = "endcap_stage_seconds";
/// Records in a batch handed to a stage.
pub const BATCH: &str = "endcap_stage_batch_records";
/// Dead letters by stage and kind of fault.
pub const DEAD_LETTERS: &str = "endcap_dead_letters_total";
/// What a stage itself counts, by stage and name: `context.lines_unknown`, `aiqa.products_judged`, ….
pub const COUNTS: &str = "endcap_stage_counts_total";
/// Records that wait for a stage.
pub const WAITING: &str = "endcap_stage_waiting_records";
/// Age of the oldest record that waits for a stage.
pub const OLDEST: &str = "endcap_stage_oldest_unprocessed_seconds";
/// From the acceptance of an event to its page being readable; pages of the live lane alone.
pub const FRESHNESS: &str = "endcap_page_freshness_seconds";
/// Attempts that met an unavailable dependency, by stage, lane and dependency.
pub const RETRIES: &str = "endcap_stage_retries_total";

/// 1 from when a lane of a stage has stopped, for good in this process, while the rest of the stage goes on.
pub const STOPPED: &str = "endcap_stage_lane_stopped";

/// Describes every metric to the recorder; call once, after it is installed.
pub fn describe() {
    describe_counter!(RECORDS, Unit::Count, "records by stage, verdict and reason");
    describe_histogram!(SECONDS, Unit::Seconds, "where the seconds of a stage went, step by step");
    describe_histogram!(BATCH, Unit::Count, "records in a batch handed to a stage");
    describe_counter!(DEAD_LETTERS, Unit::Count, "dead letters by stage and kind of fault");
    describe_counter!(COUNTS, Unit::Count, "what a stage itself counts, by name");
    describe_gauge!(WAITING, Unit::Count, "records that wait for a stage");
    describe_gauge!(OLDEST, Unit::Seconds, "age of the oldest record that waits for a stage");
    describe_histogram!(FRESHNESS, Unit::Seconds, "from the acceptance of an event to its page being readable");
    describe_counter!(RETRIES, Unit::Count, "attempts that met an unavailable dependency");
    describe_gauge!(STOPPED, Unit::Count, "1 from when a lane of a stage has stopped until the next start");
}

/// Writes down what a commit made durable, under the name of a stage or of the door.
pub fn committed(stage: &'static str, lane: Lane, tally: &Tally) {
    if tally.passed > 0 {
        counter!(RECORDS, "stage" => stage, "lane" => lane.name(), "verdict" => "passed", "reason" => "").increment(tally.passed);
    }
    for (reason, count) in &tally.dropped {
        counter!(RECORDS, "stage" => stage, "lane" => lane.name(), "verdict" => "dropped", "reason" => reason.clone())
            .increment(*count);
    }
    for (kind, count) in &tally.dead_lettered {
        counter!(RECORDS, "stage" => stage, "lane" => lane.name(), "verdict" => "dead_lettered", "reason" => kind.clone())
            .increment(*count);
        counter!(DEAD_LETTERS, "stage" => stage, "lane" => lane.name(), "kind" => kind.clone()).increment(*count);
    }
    for (name, count) in &tally.counters {
        counter!(COUNTS, "stage" => stage, "lane" => lane.name(), "name" => name.clone()).increment(*count);
    }
}

/// One step of a stage. Not a counter of its own, as those hold whole numbers here: the sum of the steps is one.
pub(crate) fn spent(stage: &'static str, lane: Lane, phase: Phase, time: Duration) {
    histogram!(SECONDS, "stage" => stage, "lane" => lane.name(), "where" => phase.label()).record(time.as_secs_f64());
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn batch(stage: &'static str, lane: Lane, records: usize) {
    histogram!(BATCH, "stage" => stage, "lane" => lane.name()).record(records as f64);
}

#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds far below 2^52")]
pub(crate) fn backlog(stage: &'static str, lane: Lane, backlog: Backlog, now_ms: i64) {
    gauge!(WAITING, "stage" => stage, "lane" => lane.name()).set(backlog.waiting as f64);
    let age_ms = backlog.oldest_ms.map_or(0, |oldest| (now_ms - oldest).max(0));
    gauge!(OLDEST, "stage" => stage, "lane" => lane.name()).set(age_ms as f64 / 1_000.0);
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds far below 2^52")]
pub(crate) fn freshness(ms: i64) {
    histogram!(FRESHNESS).record(ms.max(0) as f64 / 1_000.0);
}

pub(crate) fn retried(stage: &'static str, lane: Lane, dependency: &'static str) {
    counter!(RETRIES, "stage" => stage, "lane" => lane.name(), "dependency" => dependency).increment(1);
}

pub(crate) fn stopped(stage: &'static str, lane: Lane) {
    gauge!(STOPPED, "stage" => stage, "lane" => lane.name()).set(1.0);
}
