//! Waiting for the live context stage: what it had in work before an end of the log is stored when it has come past that end.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use endcap_runtime::{Broker, Clock, GroupState};
use endcap_schemas::topics::{Lane, Topic};

use super::run::Sender;
use crate::{monitor::group_of, progress};

/// How soon the context stage's position is looked at again: at first, and after a long wait.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_LATE: Duration = Duration::from_secs(2);

/// Waits until the context stage has come past `ends`.
///
/// # Errors
/// When the log does not answer, or somebody asks to end.
pub(super) fn wait_for(log: &dyn Broker, ends: &BTreeMap<i32, i64>, clock: &dyn Clock, sender: &Sender<'_>) -> Result<()> {
    const WHAT: &str = "waiting for the context stage (`endcap run context`); events before it";
    let (group, bar) = (group_of("context", Lane::Live), progress::steps(WHAT, 0));
    let start = clock.monotonic();
    let mut waited = false;
    while let Some(waiting) = before(ends, &log.group(&group, Topic::EVENTS).context("cannot read the positions")?) {
        bar.at(WHAT, waiting, 0);
        waited = true;
        sender.go_on(pause(clock.monotonic().saturating_sub(start)))?;
    }
    if waited {
        bar.at(WHAT, 0, 0);
    }
    Ok(())
}

/// Events before a group that stands so and has not come past `ends` yet; `None` where it has.
fn before(ends: &BTreeMap<i32, i64>, states: &[GroupState]) -> Option<u64> {
    let is_past = |partition: &i32, end: &i64| {
        let state = states.iter().find(|state| state.partition == *partition);
        // The end of a log may lie behind offsets of its own.
        *end <= 0 || state.is_some_and(|state| state.position >= *end || state.backlog.waiting == 0)
    };
    let behind: Vec<i32> =
        ends.iter().filter(|(partition, end)| !is_past(partition, end)).map(|(partition, _)| *partition).collect();
    let waiting = states.iter().filter(|state| behind.contains(&state.partition)).map(|state| state.backlog.waiting).sum();
    (!behind.is_empty()).then_some(waiting)
}

/// How long to wait before the next look, when so long was waited already.
fn pause(waited: Duration) -> Duration {
    (waited / 10).clamp(LOOK_SOON, LOOK_LATE)
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Backlog;

    use super::*;

    #[test]
    fn the_context_stage_is_waited_for_on_every_partition_and_asked_more_and_more_seldom() {
        let state = |partition, position, end, waiting| GroupState {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            partition,
            position,
            end,
            backlog: Backlog { waiting, oldest_ms: None },
        };
        let ends = BTreeMap::from([(0, 5), (1, 7), (2, 0)]);
        for (states, waiting) in [
            (vec![], Some(0)),
            (vec![state(0, 5, 9, 4), state(1, 6, 8, 2)], Some(2)),
            (vec![state(0, 5, 9, 4), state(1, 7, 8, 1)], None),
            (vec![state(0, 5, 5, 0), state(1, 6, 7, 0)], None),
            (vec![state(0, 5, 5, 0)], Some(0)),
        ] {
            assert_eq!(before(&ends, &states), waiting, "{states:?}");
        }
        let pauses = [0, 1, 5, 600].map(|waited_s| pause(Duration::from_secs(waited_s)).as_millis());
        assert_eq!(pauses, [100, 100, 500, 2_000]);
    }
}
