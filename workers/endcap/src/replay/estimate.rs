//! What a replay would cost, by what pages have cost so far on the same log.

use std::collections::BTreeMap;

use endcap_runtime::Tally;
use endcap_schemas::topics::Lane;

use crate::monitor::{busy_seconds, tokens_of};

/// Stages behind the context stage, in path order.
const STAGES: [&str; 4] = ["themes", "keywords", "dedup", "aiqa"];

/// In words, what `contexts` contexts would cost. Live pages count as experience: replayed ones find much in the caches, which says nothing of
/// models that are new. Where there are no live ones they count all the same.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(super) fn cost(contexts: u64, tallies: &BTreeMap<String, Tally>) -> String {
    let on = |lane: Lane, stage: &str| tallies.get(&lane.named(stage));
    let pages_on = |lane| on(lane, "aiqa").map_or(0, |tally| tally.received);
    let Some(lane) = Lane::ALL.into_iter().find(|lane| pages_on(*lane) > 0) else {
        return "cost: not known, as no page was made on this log yet".to_owned();
    };
    let (pages, stages) = (pages_on(lane), STAGES.map(|stage| (stage, on(lane, stage).cloned().unwrap_or_default())));
    let each = |sum: f64| sum / pages as f64;
    let seconds = stages.iter().map(|(stage, tally)| (*stage, each(busy_seconds(tally))));
    let (slowest, slow) = seconds.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("aiqa", 0.0));
    let tokens = |(stage, tally): &(&str, Tally)| {
        tokens_of(stage, tally).map_or(0, |tokens| tokens.prefilled + tokens.generated + tokens.forced)
    };
    let tokens = each(stages.iter().map(tokens).sum::<u64>() as f64);
    let kind = match lane {
        Lane::Live => "live pages",
        Lane::Backfill => "replayed pages, as there are no live ones: models that are new may cost more",
    };
    let all = contexts as f64;
    format!(
        "cost: about {:.0} s of one path without other work ({slowest} took longest so far, {slow:.3} s a page), {:.0} tokens ({tokens:.0} a \
         page); taken from {pages} {kind}",
        all * slow,
        all * tokens,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use endcap_runtime::Phase;

    use super::*;

    #[test]
    fn pages_so_far_tell_what_pages_cost() {
        let mut themes = Tally::default();
        themes.spend(Phase::Infer, Duration::from_secs(30));
        themes.spend(Phase::Idle, Duration::from_secs(900));
        themes.count("themes.tokens_prefilled", 900);
        themes.count("themes.tokens_generated", 100);
        let mut aiqa = Tally::default();
        (0..20).for_each(|_| aiqa.pass());
        let mut tallies = BTreeMap::from([("themes".to_owned(), themes.clone())]);
        assert!(cost(8, &tallies).contains("no page was made"));
        tallies.insert("aiqa".to_owned(), aiqa.clone());
        // As many replayed ones, whose answers were in the caches.
        tallies.insert("aiqa.backfill".to_owned(), aiqa);
        let told = cost(8, &tallies);
        assert!(told.starts_with("cost: about 12 s") && told.contains("themes took longest so far, 1.500 s a page"), "{told}");
        assert!(told.contains("400 tokens (50 a page); taken from 20 live pages"), "{told}");
        let replayed =
            BTreeMap::from([("aiqa.backfill".to_owned(), tallies["aiqa"].clone()), ("themes.backfill".to_owned(), themes)]);
        assert!(cost(8, &replayed).contains("400 tokens (50 a page); taken from 20 replayed pages"), "better than nothing");
    }
}
