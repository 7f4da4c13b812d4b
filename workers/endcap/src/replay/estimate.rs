//! What a replay would cost, by what pages have cost so far on the same log.

use std::collections::BTreeMap;

use endcap_runtime::Tally;
use endcap_schemas::topics::Lane;

use crate::monitor::{busy_seconds, tokens_of};

/// Stages behind the context stage, in path order.
const STAGES: [&str; 4] = ["themes", "keywords", "dedup", "aiqa"];

/// In words, what `contexts` contexts would cost; both lanes count as experience.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(super) fn cost(contexts: u64, tallies: &BTreeMap<String, Tally>) -> String {
    let lanes =
        |stage: &str| Lane::ALL.map(|lane| lane.named(stage)).into_iter().filter_map(|name| Some((tallies.get(&name)?, name)));
    let pages: u64 = lanes("aiqa").map(|(tally, _)| tally.received).sum();
    if pages == 0 {
        return "cost: not known, as no page was made on this log yet".to_owned();
    }
    let each = |sum: f64| sum / pages as f64;
    let seconds = STAGES.map(|stage| (stage, each(lanes(stage).map(|(tally, _)| busy_seconds(tally)).sum())));
    let (slowest, slow) = seconds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("aiqa", 0.0));
    let tokens = |(tally, name): (&Tally, String)| tokens_of(&name, tally).map_or(0, |t| t.prefilled + t.generated + t.forced);
    let tokens = each(STAGES.into_iter().flat_map(lanes).map(tokens).sum::<u64>() as f64);
    let all = contexts as f64;
    format!(
        "cost: about {:.0} s of one path without other work ({slowest} took longest so far, {slow:.3} s a page), {:.0} tokens ({tokens:.0} a \
         page); taken from {pages} pages",
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
        let mut tallies = BTreeMap::from([("themes.backfill".to_owned(), themes)]);
        assert!(cost(8, &tallies).contains("no page was made"));
        tallies.insert("aiqa".to_owned(), aiqa);
        let told = cost(8, &tallies);
        assert!(told.starts_with("cost: about 12 s") && told.contains("themes took longest so far, 1.500 s a page"), "{told}");
        assert!(told.contains("400 tokens (50 a page); taken from 20 pages"), "{told}");
    }
}
