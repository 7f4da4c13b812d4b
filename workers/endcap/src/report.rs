//! What happened, counted from the log and the store when the run is over: nothing here was hoped for while it ran.
//!
//! It tells of the data directory, over all its runs; only `seconds`, `pages_per_second`, `events_in_run`, `pages_in_run` and the memory
//! are of the run that has just ended.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, OpenOptions},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use endcap_inference::TokenCounts;
use endcap_retrieval::{Market, Snapshot};
use endcap_runtime::{StageStats, Tally};
use endcap_schemas::{DietSet, Keyword, Origin, Page, PagePublished, UserKey, topics::Topic, wire};
use serde::Serialize;
use serde_json::Value;

use crate::{
    desk,
    explain::StageStory,
    figures::Freshness,
    imported,
    monitor::{Counts, busy_seconds, cache_figures, seconds_between, tokens_of},
    sides::Sides,
    view,
};

/// Placements that make a page.
const FLOOR: usize = 5;
/// Records or rows read at once.
const READ_MAX: usize = 128;
/// Events read at once.
const EVENTS_MAX: usize = 2_000;

/// Where a run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    at_ms: i64,
    /// What had gone through by then.
    counts: Counts,
    /// Where the events ended.
    ends: BTreeMap<i32, i64>,
}

impl Began {
    /// Notes a run's beginning: before its stages and its feeder start.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn note(sides: &Sides, now_ms: i64) -> Result<Self> {
        let counts = Counts::of(&sides.tallies()?, &sides.groups()?);
        Ok(Self { at_ms: now_ms, counts, ends: sides.log.ends(Topic::EVENTS).context("cannot read the log")? })
    }

    /// From the first event of the run (from its beginning, where an earlier one had left work) to the last commit of a stage; 0 where
    /// nothing was to be done. Of events that retention has taken meanwhile nothing is known.
    fn seconds(&self, sides: &Sides, stages: &[(&'static str, Arc<StageStats>)]) -> Result<f64> {
        let first_ms = sides.first_after(Topic::EVENTS, &self.ends)?;
        let from_ms = if self.counts.waiting > 0 { Some(self.at_ms) } else { first_ms };
        let to_ms = stages.iter().map(|(_, stats)| stats.snapshot().committed_ms).max();
        Ok(from_ms.zip(to_ms).map_or(0.0, |(from_ms, to_ms)| seconds_between(from_ms, to_ms)))
    }
}

/// The report of a data directory and of the run that has just ended on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Events in the log.
    pub events_accepted: u64,
    /// Shoppers whose context changed (erased ones excepted).
    pub shoppers_changed: u64,
    /// Shoppers whose page has at least 5 placements that still show a product of the catalogue.
    pub shoppers_with_page: u64,
    /// Pages published.
    pub pages_published: u64,
    /// Placements of all published pages.
    pub placements_published: u64,
    /// Share of those placements that the merchandiser made in the model's place.
    pub fallback_share: f64,
    /// Keywords of stored pages that were not among their theme's candidates, or (where none are known) not in the corpus.
    pub keywords_outside_candidates: u64,
    /// Products and keywords of published pages that violate the household's diets.
    pub dietary_contradictions: u64,
    /// Themes that the guardrails turned away, by reason.
    pub themes_rejected: BTreeMap<String, u64>,
    /// Placements that dedup and AIQA removed, by reason.
    pub placements_pruned: BTreeMap<String, u64>,
    /// Records that could not be processed, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Lines of folded events that were passed over, as the catalogue does not have their product.
    pub lines_unknown: u64,
    /// From an accepted event to its page in the log.
    pub freshness_seconds: Freshness,
    /// Pages that this run published ÷ seconds.
    pub pages_per_second: f64,
    /// From this run's first event (from its start, where an earlier run had left work) to the last thing that a stage did.
    pub seconds: f64,
    /// Events that the log took in this run.
    pub events_in_run: u64,
    /// Pages that this run published.
    pub pages_in_run: u64,
    /// Most memory that this process ever held.
    pub peak_memory_bytes: Option<u64>,
    /// What every stage did.
    pub stages: BTreeMap<String, StageReport>,
    /// Tokens of all generating models.
    pub tokens: TokenCounts,
    /// What retrieval looked at and saved.
    pub candidates: CandidateReport,
    /// How often answers came from a cache.
    pub cache: CacheReport,
    /// Model, index and prompt versions of the stored pages; several where pages of several versions are stored.
    pub models: BTreeMap<String, String>,
    /// Stored pages by the number of the manifest that they were made under.
    pub generations: BTreeMap<i32, u64>,
    /// Records of the log that this was counted from had gone by retention before the end.
    pub log_trimmed: bool,
    /// Households whose diet was given by a seed, as the replayed data holds none.
    pub seeded_diets: u64,
}

/// What a stage did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    #[serde(rename = "in")]
    received: u64,
    passed: u64,
    dropped: BTreeMap<String, u64>,
    dead_lettered: u64,
    seconds: f64,
}

/// What retrieval looked at and saved.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CandidateReport {
    /// Neighbours looked at.
    pub considered: u64,
    /// Prompt tokens that the candidates saved against the whole taxonomy of the page's departments.
    pub tokens_saved: i64,
    /// The same against the whole corpus.
    pub tokens_saved_against_corpus: i64,
}

/// Hit rates, 0…1; none where nothing was asked.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CacheReport {
    /// Keyword lists.
    pub keywords_hit_rate: Option<f64>,
    /// Verdicts on products.
    pub verdicts_hit_rate: Option<f64>,
}

/// Counts everything, once the `stages` of the run that began at `began` have ended.
///
/// # Errors
/// When log, store or market cannot be read.
pub fn make(sides: &Sides, market: &Market, began: &Began, stages: &[(&'static str, Arc<StageStats>)]) -> Result<Report> {
    let snapshot = market.snapshot();
    let tallies = sides.tallies()?;
    let counts = Counts::of(&tallies, &sides.groups()?);
    let published = read_published(sides, &snapshot)?;
    let stored = read_stored(sides, &snapshot)?;
    let events = read_events(sides)?;
    let pages_in_run = counts.pages.saturating_sub(began.counts.pages);
    let seconds = began.seconds(sides, stages)?;
    let cache = cache_figures(&tallies);
    Ok(Report {
        events_accepted: counts.events,
        shoppers_changed: sides.store.states_count().context("cannot count the shoppers")?,
        shoppers_with_page: stored.with_page,
        pages_published: counts.pages,
        placements_published: published.placements,
        fallback_share: ratio(published.fallbacks, published.placements),
        keywords_outside_candidates: stored.keywords_outside,
        dietary_contradictions: published.contradictions,
        themes_rejected: counters(&tallies, "themes", "themes.rejected."),
        placements_pruned: pruned(&tallies),
        dead_letters: dead_letters(sides)?,
        lines_unknown: counter(&tallies, "context", "context.lines_unknown"),
        freshness_seconds: Freshness::of(published.freshness),
        pages_per_second: if seconds > 0.0 { pages_in_run as f64 / seconds } else { 0.0 },
        seconds,
        events_in_run: counts.events.saturating_sub(began.counts.events),
        pages_in_run,
        peak_memory_bytes: peak_memory_bytes(),
        stages: tallies.iter().map(|(name, tally)| (name.clone(), stage_report(tally))).collect(),
        tokens: tokens(&tallies),
        candidates: candidates(&tallies),
        cache: CacheReport { keywords_hit_rate: cache.keywords, verdicts_hit_rate: cache.verdicts },
        models: stored.versions.into_iter().map(|(name, versions)| (name, versions.join(", "))).collect(),
        generations: stored.generations,
        log_trimmed: published.pages < counts.pages || events.kept < counts.events,
        seeded_diets: events.seeded_diets,
    })
}

/// Makes sure that a report can be written to `path`, and leaves everything there as it was.
///
/// # Errors
/// When it cannot.
pub fn check(path: &Path) -> Result<()> {
    let absent = !path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    let tried = opened.and_then(|_| if absent { fs::remove_file(path) } else { Ok(()) });
    tried.with_context(|| cannot_write(path))
}

/// Writes the report as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report).context("cannot write the report")?;
    fs::write(path, text + "\n").with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write the report to {}", path.display())
}

/// What the published pages say.
#[derive(Debug, Default)]
struct Published {
    pages: u64,
    placements: u64,
    fallbacks: u64,
    contradictions: u64,
    freshness: Vec<f64>,
}

fn read_published(sides: &Sides, market: &Snapshot) -> Result<Published> {
    let mut published = Published::default();
    let mut facts = Facts { market, products: HashMap::new(), terms: HashMap::new() };
    sides.each_record(Topic::PAGES, READ_MAX, &mut |record| {
        let message: PagePublished = wire::decode(&record.value).context("cannot read a published page")?;
        let placements = &message.page.placements;
        published.pages += 1;
        published.placements += placements.len() as u64;
        published.fallbacks += placements.iter().filter(|placement| placement.theme.origin.is_fallback()).count() as u64;
        published.contradictions += facts.contradictions(&message.page)?;
        published.freshness.push(seconds_between(message.head.cause.accepted_ms, record.appended_ms));
        Ok(())
    })?;
    Ok(published)
}

/// Dietary facts of the market, remembered.
struct Facts<'a> {
    market: &'a Snapshot,
    products: HashMap<String, DietSet>,
    terms: HashMap<i64, DietSet>,
}

impl Facts<'_> {
    /// Products and keywords of a page that violate its diets.
    fn contradictions(&mut self, page: &Page) -> Result<u64> {
        if page.diets.is_empty() {
            return Ok(0);
        }
        let mut count = 0;
        for placement in &page.placements {
            for shown in &placement.products {
                count += u64::from(page.diets.intersects(self.product(&shown.product)?));
            }
            for keyword in &placement.keywords {
                count += u64::from(page.diets.intersects(self.term(keyword)?));
            }
        }
        Ok(count)
    }

    fn product(&mut self, id: &str) -> Result<DietSet> {
        if let Some(violates) = self.products.get(id) {
            return Ok(*violates);
        }
        // A product that was withdrawn since is no contradiction of today's catalogue.
        let violates =
            self.market.product(id).context("cannot read the catalogue")?.map_or(DietSet::NONE, |product| product.violates);
        self.products.insert(id.to_owned(), violates);
        Ok(violates)
    }

    fn term(&mut self, keyword: &Keyword) -> Result<DietSet> {
        if let Some(violates) = self.terms.get(&keyword.id) {
            return Ok(*violates);
        }
        let violates =
            self.market.term(keyword.id).context("cannot read the keyword corpus")?.map_or(DietSet::NONE, |term| term.violates);
        self.terms.insert(keyword.id, violates);
        Ok(violates)
    }
}

/// What the stored pages say.
#[derive(Debug, Default)]
struct Stored {
    with_page: u64,
    keywords_outside: u64,
    versions: BTreeMap<String, Vec<String>>,
    generations: BTreeMap<i32, u64>,
}

fn read_stored(sides: &Sides, market: &Snapshot) -> Result<Stored> {
    let mut stored = Stored::default();
    let mut after: Option<UserKey> = None;
    loop {
        let rows = sides.store.pages_after(after.as_ref(), READ_MAX).context("cannot read the pages")?;
        let Some((last, _)) = rows.last() else { return Ok(stored) };
        after = Some(last.clone());
        for (user, row) in &rows {
            let Some(bytes) = &row.page else { continue };
            let published = desk::decode(bytes)?;
            stored.with_page += u64::from(view::shown(&published.page, market)? >= FLOOR);
            stored.keywords_outside += keywords_outside(sides, market, user, &published)?;
            *stored.generations.entry(published.head.generation).or_default() += 1;
            for (name, version) in &published.page.versions {
                let versions = stored.versions.entry(name.clone()).or_default();
                if !versions.contains(version) {
                    versions.push(version.clone());
                }
            }
        }
    }
}

/// Keywords of a page that its theme's candidates do not have. Placements of the floor have keywords by the merchandiser's own rules
/// and are compared with the corpus, as are answers that an earlier release remembered without their candidates.
fn keywords_outside(sides: &Sides, market: &Snapshot, user: &UserKey, published: &PagePublished) -> Result<u64> {
    let results = sides.store.results(user).context("cannot read stage results")?;
    let told = results.iter().find(|result| result.stage == "keywords").map(StageStory::of).transpose()?;
    let candidates = told
        .filter(|story| story.context_ms == published.head.context_ms)
        .map(|story| candidates_by_title(&story.explanation))
        .unwrap_or_default();
    let mut outside = 0;
    for placement in &published.page.placements {
        let listed = candidates.get(&placement.theme.title).filter(|_| placement.theme.origin != Origin::FloorFallback);
        for keyword in &placement.keywords {
            let inside = match listed {
                Some(terms) => terms.contains(&endcap_inference::prompts::plain(&keyword.text)),
                None => market
                    .term(keyword.id)
                    .context("cannot read the keyword corpus")?
                    .is_some_and(|term| term.text == keyword.text),
            };
            outside += u64::from(!inside);
        }
    }
    Ok(outside)
}

/// Candidates that the keywords stage wrote down, by title; themes without any are left out.
fn candidates_by_title(explanation: &Value) -> HashMap<String, HashSet<String>> {
    let themes = explanation["themes"].as_array().into_iter().flatten();
    themes
        .filter_map(|theme| {
            let groups = theme["candidates"].as_array()?.iter().flat_map(|group| group["terms"].as_array().into_iter().flatten());
            let terms: HashSet<String> =
                groups.filter_map(|term| Some(endcap_inference::prompts::plain(term.as_str()?))).collect();
            (!terms.is_empty()).then(|| Some((theme["title"].as_str()?.to_owned(), terms)))?
        })
        .collect()
}

/// What the log still holds of events.
#[derive(Debug, Default)]
struct Events {
    kept: u64,
    seeded_diets: u64,
}

fn read_events(sides: &Sides) -> Result<Events> {
    let mut events = Events::default();
    sides.each_record(Topic::EVENTS, EVENTS_MAX, &mut |record| {
        events.kept += 1;
        events.seeded_diets += u64::from(record.headers.id.starts_with(imported::SEEDED));
        Ok(())
    })?;
    Ok(events)
}

fn dead_letters(sides: &Sides) -> Result<BTreeMap<String, u64>> {
    let mut by_reason = BTreeMap::new();
    for ((_, kind), count) in sides.log.dead_letter_counts().context("cannot read dead letters")? {
        *by_reason.entry(kind).or_default() += count;
    }
    Ok(by_reason)
}

fn stage_report(tally: &Tally) -> StageReport {
    StageReport {
        received: tally.received,
        passed: tally.passed,
        dropped: tally.dropped.clone(),
        dead_lettered: tally.dead_lettered_total(),
        seconds: busy_seconds(tally),
    }
}

/// What a stage counted under `name`.
fn counter(tallies: &BTreeMap<String, Tally>, stage: &str, name: &str) -> u64 {
    tallies.get(stage).and_then(|tally| tally.counters.get(name)).copied().unwrap_or(0)
}

/// A stage's counters below `prefix`, without it.
fn counters(tallies: &BTreeMap<String, Tally>, stage: &str, prefix: &str) -> BTreeMap<String, u64> {
    let counters = tallies.get(stage).map(|tally| &tally.counters).into_iter().flatten();
    counters.filter_map(|(name, count)| Some((name.strip_prefix(prefix)?.to_owned(), *count))).collect()
}

/// Placements that dedup and AIQA took away, by reason.
fn pruned(tallies: &BTreeMap<String, Tally>) -> BTreeMap<String, u64> {
    let reasons = [
        ("repeated", "dedup", "dedup.dropped"),
        ("too_few_products", "aiqa", "aiqa.drafts_too_few_products"),
        ("too_mixed", "aiqa", "aiqa.drafts_too_mixed"),
    ];
    reasons.into_iter().map(|(reason, stage, name)| (reason.to_owned(), counter(tallies, stage, name))).collect()
}

fn tokens(tallies: &BTreeMap<String, Tally>) -> TokenCounts {
    let mut sum = TokenCounts::default();
    tallies.iter().filter_map(|(stage, tally)| tokens_of(stage, tally)).for_each(|tokens| sum += tokens);
    sum
}

fn candidates(tallies: &BTreeMap<String, Tally>) -> CandidateReport {
    let count = |name: &str| counter(tallies, "keywords", name);
    let saved = |against: &str| count(against).cast_signed() - count("keywords.prompt_tokens_retrieved").cast_signed();
    CandidateReport {
        considered: count("keywords.considered"),
        tokens_saved: saved("keywords.prompt_tokens_taxonomy"),
        tokens_saved_against_corpus: saved("keywords.prompt_tokens_corpus"),
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Most memory that this process ever held, where the system tells.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1_024)
}
