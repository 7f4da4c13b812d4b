//! One page on its way through a batch, and what is told about it.

use endcap_runtime::{DropReason, Passed, Rejection, Settled, Stamp, Verdict, Write};
use endcap_schemas::{Origin, Page, PagePublished, ThemesDeduped, wire};
use serde_json::{Value, json};

use crate::{AiqaConfig, Fate, Outcome, PairCounts, Slate};

/// A page in the making.
pub(crate) struct Work<'a> {
    pub(crate) page: &'a ThemesDeduped,
    /// The drafts' slates in page order, then those of replacements.
    pub(crate) slates: Vec<Slate>,
    pub(crate) pairs: PairCounts,
}

impl<'a> Work<'a> {
    pub(crate) fn new(page: &'a ThemesDeduped) -> Self {
        Self { page, slates: Vec::with_capacity(page.drafts.len()), pairs: PairCounts::default() }
    }

    /// The slates that make the page: every draft that stays, and as many replacements as the floor asks for.
    pub(crate) fn kept(&self, config: &AiqaConfig) -> Vec<&Slate> {
        let stays = |slate: &&Slate| slate.fate(config) == Fate::Kept;
        let (drafts, replacements) = self.slates.split_at(self.page.drafts.len().min(self.slates.len()));
        let mut kept: Vec<&Slate> = drafts.iter().filter(stays).collect();
        let gap = config.floor.saturating_sub(kept.len());
        kept.extend(replacements.iter().filter(stays).take(gap));
        kept
    }

    pub(crate) fn published(&self, page: Page, stamp: Stamp, config: &AiqaConfig) -> Verdict<PagePublished> {
        let head = &self.page.head;
        let counters = self.counters(&page, config);
        let out = PagePublished { head: head.clone(), page };
        // The store holds the message itself: who reads a page learns when and why it was made in the same read.
        let bytes = match wire::encode(&out) {
            Ok(bytes) => bytes,
            Err(error) => {
                let message = format!("page cannot be written: {error}; lower `products_max` or the number of themes");
                return Verdict::Rejected(Rejection { kind: "too_large", message });
            }
        };
        let writes = vec![Write::Page { user: head.user.clone(), stamp, page: Some(bytes) }];
        Verdict::Passed(Box::new(Passed { out, explanation: self.explained(Outcome::Publish, config), writes, counters }))
    }

    pub(crate) fn settled(&self, outcome: Outcome, stamp: Stamp, config: &AiqaConfig) -> Verdict<PagePublished> {
        let nothing =
            Page { persona: String::new(), diets: self.page.brief.diets, placements: Vec::new(), versions: Default::default() };
        let mut counters = self.counters(&nothing, config);
        let withdrawn = outcome == Outcome::Withdraw;
        counters.push((if withdrawn { "aiqa.pages_withdrawn" } else { "aiqa.pages_kept_older" }, 1));
        let writes =
            if withdrawn { vec![Write::Page { user: self.page.head.user.clone(), stamp, page: None }] } else { Vec::new() };
        Verdict::Settled(Box::new(Settled {
            reason: DropReason::BelowFloor,
            explanation: self.explained(outcome, config),
            writes,
            counters,
        }))
    }

    fn explained(&self, outcome: Outcome, config: &AiqaConfig) -> Value {
        let drafts = self.page.drafts.len();
        json!({
            "outcome": match outcome { Outcome::Publish => "published", Outcome::KeepOlder => "older_page_stays", Outcome::Withdraw => "withdrawn" },
            "threshold": config.threshold(),
            "floor": config.floor,
            "placements": self.slates.iter().take(drafts).map(|slate| slate.explained(config)).collect::<Vec<_>>(),
            "replacements": self.slates.iter().skip(drafts).map(|slate| slate.explained(config)).collect::<Vec<_>>(),
            "pairs": { "asked": self.pairs.asked, "cached": self.pairs.cached, "shared": self.pairs.shared, "refused": self.pairs.refused },
        })
    }

    fn counters(&self, page: &Page, config: &AiqaConfig) -> Vec<(&'static str, u64)> {
        let drafts = &self.slates[..self.page.drafts.len().min(self.slates.len())];
        let fate = |fate| drafts.iter().filter(|slate| slate.fate(config) == fate).count() as u64;
        let sum = |of: fn(&Slate) -> usize| drafts.iter().map(|slate| of(slate) as u64).sum::<u64>();
        let filled = page.placements.iter().filter(|placement| placement.theme.origin == Origin::FloorFallback).count();
        vec![
            ("aiqa.drafts", drafts.len() as u64),
            ("aiqa.drafts_kept", fate(Fate::Kept)),
            ("aiqa.drafts_too_few_products", fate(Fate::TooFew)),
            ("aiqa.drafts_too_mixed", fate(Fate::TooMixed)),
            ("aiqa.drafts_corrected", drafts.iter().filter(|slate| !slate.given_up.is_empty()).count() as u64),
            ("aiqa.drafts_widened", drafts.iter().filter(|slate| slate.widened > 0).count() as u64),
            ("aiqa.retrieved_before", sum(|slate| slate.retrieved)),
            ("aiqa.products_judged", sum(|slate| slate.scores.len() + slate.gone)),
            ("aiqa.products_gone", sum(|slate| slate.gone)),
            ("aiqa.products_irrelevant", drafts.iter().map(|slate| slate.pruned(config) as u64).sum()),
            ("aiqa.products_banned", sum(|slate| slate.banned)),
            ("aiqa.placements", page.placements.len() as u64),
            ("aiqa.placements_filled", filled as u64),
            ("aiqa.retrieved", page.placements.iter().map(|placement| placement.retrieved.max(0) as u64).sum()),
            ("aiqa.products_shown", page.placements.iter().map(|placement| placement.products.len() as u64).sum()),
            ("aiqa.asked", self.pairs.asked),
            ("aiqa.cache_hits", self.pairs.cached),
            ("aiqa.shared", self.pairs.shared),
            ("aiqa.refused", self.pairs.refused),
            ("aiqa.tokens_prefilled", self.pairs.tokens),
        ]
    }
}
