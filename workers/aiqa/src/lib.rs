//! The AIQA stage (paper 4.4): judges the products behind every placement, prunes what is not relevant, and publishes the page.
//!
//! [`Slate::fate`] and [`outcome`] decide, [`AiqaStage`] waits: for the catalogue, and for the cross-encoder in at most three rounds
//! per batch (the drafts; failing drafts with corrected keywords and their concepts' categories; the merchandiser's replacements for pages below the floor), each of
//! them once for all shoppers.

mod config;
mod floor;
mod judge;
mod shelf;
mod slate;
mod work;

use std::{collections::BTreeMap, sync::Arc};

use endcap_inference::{Handle, Model, Pair, Relevance, prompts, verdicts::POLICY_VERSION};
use endcap_market::Merchandiser;
use endcap_retrieval::{Filter, Market, MarketError, PerVersion, Snapshot};
use endcap_runtime::{Input, Stage, StageError, Stamp, Store, Verdict};
use endcap_schemas::{Page, PagePublished, ThemesDeduped, Versions, wire};

pub use config::AiqaConfig;
pub use floor::{Allowed, Outcome, fits, outcome, replacements};
pub use judge::PairCounts;
pub use slate::{Fate, Slate, interleave};

use judge::Judge;
use shelf::Shelf;
use work::Work;

/// The stage.
pub struct AiqaStage<R: Model<Request = Pair, Answer = Relevance>> {
    config: AiqaConfig,
    market: Market,
    judge: Judge<R>,
    merchandiser: PerVersion<Merchandiser>,
}

impl<R: Model<Request = Pair, Answer = Relevance>> AiqaStage<R> {
    /// A stage that judges with `model` and keeps verdicts in `store`. To the versions that made a page so far it adds those that it knows:
    /// `cross-encoder`, `catalogue`, `index`, `prompts`, `policy`.
    pub fn new(config: AiqaConfig, market: Market, store: Arc<dyn Store>, model: Handle<R>) -> Self {
        Self { config, market, judge: Judge { model, store }, merchandiser: PerVersion::default() }
    }

    /// The three rounds. Every slate of `works` is judged when they are over.
    fn rounds(&self, works: &mut [Work<'_>], shelf: &mut Shelf<'_>, merchandiser: &Merchandiser) -> Result<(), StageError> {
        for work in works.iter_mut() {
            for draft in &work.page.drafts {
                work.slates.push(shelf.slate(draft, &work.page.brief).map_err(market)?);
            }
        }
        self.score(works)?;
        self.mend(works, shelf)?;
        for work in works.iter_mut() {
            let gap = self.config.floor.saturating_sub(work.kept(&self.config).len());
            let tried: Vec<_> = work.slates.iter().map(|slate| slate.theme.clone()).collect();
            let count = gap * self.config.replacements_per_gap;
            for theme in replacements(&work.page.head, &work.page.brief, &tried, count, merchandiser) {
                work.slates.push(shelf.node_slate(theme, &work.page.brief).map_err(market)?);
            }
        }
        self.score(works)
    }

    fn mend(&self, works: &mut [Work<'_>], shelf: &mut Shelf<'_>) -> Result<(), StageError> {
        for work in works.iter_mut() {
            let failing = work.slates.iter_mut().filter(|slate| slate.fate(&self.config) != Fate::Kept);
            for slate in failing {
                shelf.mend(slate, &work.page.brief).map_err(market)?;
            }
        }
        self.score(works)
    }

    fn score(&self, works: &mut [Work<'_>]) -> Result<(), StageError> {
        let mut counts: Vec<PairCounts> = works.iter().map(|work| work.pairs).collect();
        let mut slates: Vec<(usize, &mut Slate)> =
            works.iter_mut().enumerate().flat_map(|(i, work)| work.slates.iter_mut().map(move |slate| (i, slate))).collect();
        self.judge.score(&mut slates, &mut counts)?;
        works.iter_mut().zip(counts).for_each(|(work, counts)| work.pairs = counts);
        Ok(())
    }

    /// Whether the store holds an older page that still fits.
    fn older_fits(&self, page: &ThemesDeduped, stamp: Stamp, snapshot: &Snapshot) -> Result<bool, StageError> {
        let stored = self.judge.store.page(&page.head.user)?;
        let Some(bytes) = stored.filter(|stored| stored.stamp < stamp).and_then(|stored| stored.page) else { return Ok(false) };
        // A page that this version cannot read is one that it cannot vouch for.
        let Ok(older) = wire::decode::<PagePublished>(&bytes) else { return Ok(false) };
        let ids: Vec<&str> = older.page.placements.iter().flat_map(|p| &p.products).map(|shown| shown.product.as_str()).collect();
        let products = snapshot.products(&ids).map_err(market)?;
        let sold: BTreeMap<&str, _> = products.iter().map(|product| (product.id.as_str(), product)).collect();
        let in_stock = Filter::of_page(page.brief.diets, &page.brief.dislikes);
        let ever = Filter { in_stock: false, ..in_stock.clone() };
        let allowed = |id: &str| match sold.get(id) {
            None => Allowed::NotNow,
            Some(product) if !ever.allows(product) => Allowed::Never,
            Some(product) if !in_stock.allows(product) => Allowed::NotNow,
            Some(_) => Allowed::Yes,
        };
        Ok(fits(&older.page, &page.brief, self.config.products_min, allowed))
    }

    fn versions(&self, page: &ThemesDeduped, snapshot: &Snapshot) -> Versions {
        let own = [
            ("cross-encoder", self.judge.model.version()),
            ("catalogue", snapshot.catalogue_version()),
            ("index", snapshot.index_version()),
            ("prompts", prompts::VERSION),
            ("policy", POLICY_VERSION),
        ];
        let own = own.into_iter().map(|(name, version)| (name.to_owned(), version.to_owned()));
        page.versions.clone().into_iter().chain(own).collect()
    }

    fn verdict(&self, work: &Work<'_>, snapshot: &Snapshot) -> Result<Verdict<PagePublished>, StageError> {
        let head = &work.page.head;
        let stamp = Stamp::of(head.context_ms, head.generation);
        let kept = work.kept(&self.config);
        let below = kept.len() < self.config.floor;
        let outcome = outcome(kept.len(), self.config.floor, below && self.older_fits(work.page, stamp, snapshot)?);
        if outcome != Outcome::Publish {
            return Ok(work.settled(outcome, stamp, &self.config));
        }
        let page = Page {
            persona: work.page.persona.clone(),
            diets: work.page.brief.diets,
            placements: kept.into_iter().map(|slate| slate.placement(&self.config)).collect(),
            versions: self.versions(work.page, snapshot),
        };
        Ok(work.published(page, stamp, &self.config))
    }
}

impl<R: Model<Request = Pair, Answer = Relevance>> Stage for AiqaStage<R> {
    type In = ThemesDeduped;
    type Out = PagePublished;
    const NAME: &'static str = "aiqa";

    fn process(&mut self, batch: &[Input<ThemesDeduped>]) -> Result<Vec<Verdict<PagePublished>>, StageError> {
        let snapshot = self.market.snapshot();
        let merchandise = || Merchandiser::new(snapshot.categories().to_vec());
        let merchandiser = self.merchandiser.get(snapshot.catalogue_version(), merchandise);
        let mut shelf = Shelf::new(&snapshot, &self.config);
        let mut works: Vec<Work<'_>> = batch.iter().map(|input| Work::new(&input.value)).collect();
        self.rounds(&mut works, &mut shelf, &merchandiser)?;
        works.iter().map(|work| self.verdict(work, &snapshot)).collect()
    }
}

/// The market lies on this machine's disk or is not indexed yet: what is wrong with it mends without the record.
fn market(error: MarketError) -> StageError {
    StageError::unavailable("market", error)
}

#[cfg(test)]
mod tests;
