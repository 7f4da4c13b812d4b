//! Names, units and labels of what the ranking service measures. Nothing else names a metric of it.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

/// Storefronts by outcome: `page`, `default` (no page of the shopper), `refused` (too many at once), `failed`.
pub const STOREFRONTS: &str = "endcap_storefronts_total";
/// Seconds of a storefront by part: `read`, `nominate`, `rank`, `rerank`, `whole`.
pub const SECONDS: &str = "endcap_storefront_seconds";
/// Placements that were ranked, by whether their pool was complete: `whole`, `partial` (only what the page has of it).
pub const POOLS: &str = "endcap_storefront_pools_total";
/// Feedback by outcome at the door: `accepted`, `ignored` (its slate was never shown), `rejected`; `refused` counts bodies, when too many come at
/// once.
pub const FEEDBACK: &str = "endcap_feedback_total";
/// Version of the policy that is served.
pub const POLICY: &str = "endcap_policy_version";
/// Kept policies that could not be used when they were looked at.
pub const POLICIES_REFUSED: &str = "endcap_policies_refused_total";

/// Describes every metric to the recorder; call once, after it is installed.
pub fn describe() {
    describe_counter!(STOREFRONTS, Unit::Count, "storefronts by outcome");
    describe_histogram!(SECONDS, Unit::Seconds, "seconds of a storefront by part");
    describe_counter!(POOLS, Unit::Count, "placements ranked, by whether all nominators had their say");
    describe_counter!(FEEDBACK, Unit::Count, "feedback by outcome at the door");
    describe_gauge!(POLICY, Unit::Count, "version of the policy that is served");
    describe_counter!(POLICIES_REFUSED, Unit::Count, "kept policies that could not be used");
}

/// Where the time of a storefront went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Reading page and history.
    pub read: Duration,
    /// Finding what may be shown, and nominating.
    pub nominate: Duration,
    /// Ranking slates and placements.
    pub rank: Duration,
    /// Re-ranking slates.
    pub rerank: Duration,
    /// All of it, from the question to what is answered.
    pub whole: Duration,
}

pub(crate) fn served(outcome: &'static str, parts: &Parts) {
    counter!(STOREFRONTS, "outcome" => outcome).increment(1);
    let named = [
        ("read", parts.read),
        ("nominate", parts.nominate),
        ("rank", parts.rank),
        ("rerank", parts.rerank),
        ("whole", parts.whole),
    ];
    named.into_iter().for_each(|(part, time)| histogram!(SECONDS, "part" => part).record(time.as_secs_f64()));
}

/// A storefront that was not answered.
pub fn unanswered(outcome: &'static str) {
    counter!(STOREFRONTS, "outcome" => outcome).increment(1);
}

pub(crate) fn pool(is_whole: bool) {
    counter!(POOLS, "pool" => if is_whole { "whole" } else { "partial" }).increment(1);
}

/// Feedback that was answered.
pub fn feedback(outcome: &'static str, entries: usize) {
    counter!(FEEDBACK, "outcome" => outcome).increment(entries as u64);
}

#[expect(clippy::cast_precision_loss, reason = "places in the log far below 2^52")]
pub(crate) fn policy(version: i64) {
    gauge!(POLICY).set(version as f64);
}

pub(crate) fn policy_refused() {
    counter!(POLICIES_REFUSED).increment(1);
}
