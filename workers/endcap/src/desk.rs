//! What can be asked of the running job: the web interface's questions, answered from store, log and market. Everything here may block.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use endcap_ranking::Ranking;
use endcap_retrieval::{Market, PerVersion};
use endcap_runtime::{Clock, DeadLetterFilter, DeadLetterId, StageSnapshot, StageStats, Store, StoredDeadLetter};
use endcap_schemas::{Feedback, Message, PagePublished, PurchaseMemory, ShopperEvent, UserKey, topics::Topic, wire};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use crate::{
    control::{self, ControlView},
    explain::{EventRef, StageStory, Story},
    figures_cache::FiguresCache,
    logging::Anonymiser,
    printable::printable,
    sides::Sides,
    times,
    view::{self, PageView},
};

/// A stage whose loop has not gone round for so long hangs, ms. Large batches on a slow machine take minutes.
const STALLED_MS: i64 = 600_000;
/// Longest original text that a list shows, in bytes.
const ORIGINAL_SHOWN: usize = 400;

/// The desk.
pub struct Desk {
    /// Log and store.
    pub sides: Sides,
    /// The market.
    pub market: Market,
    /// The clock of acceptance.
    pub clock: Arc<dyn Clock>,
    /// Metrics, as text on demand.
    pub prometheus: PrometheusHandle,
    /// Stages in path order.
    pub stages: Vec<(&'static str, Arc<StageStats>)>,
    /// The job's figures.
    pub figures: FiguresCache,
    /// Names users in log lines.
    pub names: Anonymiser,
    /// The ranking service, where this process has it.
    pub ranking: Option<Arc<Ranking>>,
    /// The control page: it is asked for often and changes with the catalogue alone.
    pub control: Mutex<PerVersion<ControlView>>,
}

/// Shoppers with a page.
#[derive(Debug, Serialize)]
pub struct Shoppers {
    shoppers: Vec<ShopperRow>,
}

#[derive(Debug, Serialize)]
struct ShopperRow {
    user: String,
    persona: String,
    placements: usize,
    context_ms: i64,
}

/// How far a stage is with a shopper.
#[derive(Debug, Serialize)]
pub struct Mark {
    stage: String,
    context_ms: i64,
    at_ms: i64,
    event_id: Option<String>,
}

/// Dead letters, newest first.
#[derive(Debug, Serialize)]
pub struct DeadLetters {
    total: u64,
    letters: Vec<DeadLetterRow>,
}

/// A dead letter for people.
#[derive(Debug, Serialize)]
pub struct DeadLetterRow {
    id: DeadLetterId,
    at_ms: i64,
    stage: String,
    reason: String,
    message: String,
    user: String,
    attempts: u32,
    original: String,
}

/// Whether the job is well.
#[derive(Debug, Serialize)]
pub struct Health {
    /// Whether it is.
    pub ok: bool,
    /// What is not; beside a job that is well, what does not hold it up.
    pub troubles: Vec<String>,
}

impl Desk {
    /// Shoppers with a page whose id holds `search`, by id.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn shoppers(&self, search: &str, limit: usize) -> Result<Shoppers> {
        let store = &self.sides.store;
        let found = if search.is_empty() { store.pages_after(None, limit) } else { store.pages_like(search, limit) };
        let market = self.market.snapshot();
        let mut shoppers = Vec::new();
        for (user, stored) in found.context("cannot read pages")? {
            let Some(Ok(published)) = stored.page.as_deref().map(decode) else { continue };
            let (page, context_ms) = (published.page, stored.stamp.0.div_euclid(1_000));
            let placements = view::shown(&page, &market)?;
            shoppers.push(ShopperRow { user: user.short(), persona: page.persona, placements, context_ms });
        }
        Ok(Shoppers { shoppers })
    }

    /// A shopper's page.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn page(&self, user: &UserKey) -> Result<Option<PageView>> {
        page_of(&*self.sides.store, &self.market, user)
    }

    /// The control page.
    ///
    /// # Errors
    /// When the catalogue does not answer.
    pub fn control(&self) -> Result<Arc<ControlView>> {
        let snapshot = self.market.snapshot();
        let mut kept = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        kept.try_get(snapshot.catalogue_version(), || control::page(&snapshot))
    }

    /// How far every stage is with a shopper.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn journey(&self, user: &UserKey) -> Result<Vec<Mark>> {
        let results = self.sides.store.results(user).context("cannot read stage results")?;
        results
            .iter()
            .map(|result| {
                let story = StageStory::of(result)?;
                let event_id = story.event_id().map(str::to_owned);
                Ok(Mark { stage: story.stage, context_ms: story.context_ms, at_ms: story.at_ms, event_id })
            })
            .collect()
    }

    /// How a shopper's page came about; `None` for one that nothing is known of.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn explain(&self, user: &UserKey) -> Result<Option<Story>> {
        story_of(&*self.sides.store, &self.market, user)
    }

    /// Dead letters, newest first, with the beginning of what they hold.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn dead_letters(&self, reason: Option<&str>, limit: usize) -> Result<DeadLetters> {
        let filter = DeadLetterFilter { kind: reason.map(str::to_owned), limit, ..DeadLetterFilter::default() };
        let letters = self.sides.log.dead_letters(&filter).context("cannot read dead letters")?;
        let counts = self.sides.log.dead_letter_counts().context("cannot read dead letters")?;
        let total =
            counts.iter().filter(|((_, kind), _)| reason.is_none_or(|reason| reason == kind)).map(|(_, count)| count).sum();
        let letters = letters
            .into_iter()
            .map(|letter| {
                let whole = self.sides.log.dead_letter(&letter.id).context("cannot read dead letters")?.unwrap_or(letter);
                Ok(DeadLetterRow::of(&whole))
            })
            .collect::<Result<_>>()?;
        Ok(DeadLetters { total, letters })
    }

    /// Every metric in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.prometheus.run_upkeep();
        self.prometheus.render()
    }

    /// Whether every stage makes progress.
    pub fn live(&self) -> Health {
        let now_ms = self.clock.now_ms();
        let stalled = |alive_ms: i64| alive_ms > 0 && now_ms - alive_ms > STALLED_MS;
        let troubles = self.stages.iter().filter_map(|(name, stats)| {
            let snapshot = stats.snapshot();
            stalled(snapshot.alive_ms)
                .then(|| format!("stage {name} has not gone round for {} s", (now_ms - snapshot.alive_ms) / 1_000))
        });
        let troubles: Vec<String> = troubles.collect();
        Health { ok: troubles.is_empty(), troubles }
    }

    /// Whether every stage runs and no dependency is down. What troubles a backfill lane is told, and takes no process out of service, and so is
    /// it that a stage waits for its group: events and requests are taken all the same.
    pub fn ready(&self) -> Health {
        let mut health = Health { ok: true, troubles: Vec::new() };
        self.stages.iter().for_each(|(name, stats)| health.see(name, stats.snapshot()));
        health
    }
}

impl Health {
    fn see(&mut self, stage: &str, StageSnapshot { running, live, backfill, .. }: StageSnapshot) {
        if !running {
            self.ok = false;
            return self.troubles.push(format!("stage {stage} does not run"));
        }
        self.ok &= live.trouble.is_none();
        self.troubles.extend(live.trouble.map(|trouble| format!("stage {stage} waits: {trouble}")));
        self.troubles.extend(live.awaits.map(|awaited| format!("stage {stage} gets no records yet: {awaited}")));
        let how = if backfill.stopped { "has stopped" } else { "waits" };
        self.troubles.extend(backfill.trouble.map(|trouble| format!("the backfill lane of stage {stage} {how}: {trouble}")));
    }
}

impl DeadLetterRow {
    /// A dead letter with the beginning of its original bytes.
    pub fn of(letter: &StoredDeadLetter) -> Self {
        let text = original_text(letter);
        let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= ORIGINAL_SHOWN).last().unwrap_or(0);
        let original = if text.len() <= ORIGINAL_SHOWN { text } else { format!("{}…", &text[..end]) };
        Self {
            id: letter.id.clone(),
            at_ms: letter.at_ms,
            stage: letter.stage.clone(),
            reason: letter.kind.clone(),
            message: letter.message.clone(),
            user: letter.key.clone(),
            attempts: letter.attempts,
            original,
        }
    }
}

impl fmt::Display for DeadLetterRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, original) = (printable(&self.message), printable(&self.original));
        write!(f, "{:>6}  {}  {}  {}: {message}  {original}", self.id, times::at(self.at_ms), self.stage, self.reason)
    }
}

/// What a dead letter holds, readable: an event or feedback as JSON where it is that, else the bytes as text.
pub fn original_text(letter: &StoredDeadLetter) -> String {
    if letter.masked {
        return "(erased with its user)".to_owned();
    }
    let json = if letter.topic == Topic::FEEDBACK.name() {
        json_of::<Feedback>(&letter.value)
    } else {
        json_of::<ShopperEvent>(&letter.value)
    };
    json.unwrap_or_else(|| String::from_utf8_lossy(&letter.value).into_owned())
}

/// The record in `bytes` as JSON, where it is one.
fn json_of<M: Message + Serialize>(bytes: &[u8]) -> Option<String> {
    serde_json::to_string(&wire::decode::<M>(bytes).ok()?).ok()
}

/// Shows the stored page of `user`.
///
/// # Errors
/// When store or catalogue do not answer.
pub fn page_of(store: &dyn Store, market: &Market, user: &UserKey) -> Result<Option<PageView>> {
    let Some(stored) = store.page(user).context("cannot read the page")? else { return Ok(None) };
    let Some(bytes) = stored.page else { return Ok(None) };
    let published = decode(&bytes)?;
    let recent = recent_purchases(store, user)?;
    view::page(&published.head, &published.page, stored.written_ms, &recent, &market.snapshot()).map(Some)
}

/// Tells how the page of `user` came about.
///
/// # Errors
/// When store or catalogue do not answer.
pub fn story_of(store: &dyn Store, market: &Market, user: &UserKey) -> Result<Option<Story>> {
    let results = store.results(user).context("cannot read stage results")?;
    let page = page_of(store, market, user)?;
    if results.is_empty() && page.is_none() {
        return Ok(None);
    }
    let stages = results.iter().map(StageStory::of).collect::<Result<_>>()?;
    let event = page.as_ref().map(|page| EventRef { id: page.event_id.clone(), accepted_ms: page.accepted_ms });
    Ok(Some(Story { user: user.short(), event, stages, page }))
}

/// A page as the store holds it.
///
/// # Errors
/// When it is not one.
pub fn decode(bytes: &[u8]) -> Result<PagePublished> {
    wire::decode(bytes).context("cannot read a stored page")
}

/// Purchases as the context stage last told them; stage results are kept for a short time only.
fn recent_purchases(store: &dyn Store, user: &UserKey) -> Result<Vec<PurchaseMemory>> {
    let results = store.results(user).context("cannot read stage results")?;
    let Some(context) = results.iter().find(|result| result.stage == "context") else { return Ok(Vec::new()) };
    let told = StageStory::of(context)?.explanation["recent"].take();
    Ok(serde_json::from_value(told).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use endcap_runtime::LaneSnapshot;

    use super::*;

    #[test]
    fn what_troubles_a_backfill_lane_is_told_and_leaves_the_process_in_service() {
        let lane =
            |trouble: Option<&str>, stopped| LaneSnapshot { trouble: trouble.map(str::to_owned), stopped, ..Default::default() };
        let (well, down, stopped) = (lane(None, false), lane(Some("store: down"), false), lane(Some("all fail"), true));
        for (running, live, backfill, ok, told) in [
            (true, &well, &well, true, &[][..]),
            (false, &down, &well, false, &["stage themes does not run"]),
            (true, &down, &well, false, &["stage themes waits: store: down"]),
            (true, &well, &down, true, &["the backfill lane of stage themes waits: store: down"]),
            (true, &well, &stopped, true, &["the backfill lane of stage themes has stopped: all fail"]),
        ] {
            let mut health = Health { ok: true, troubles: Vec::new() };
            let (live, backfill) = (live.clone(), backfill.clone());
            health.see("themes", StageSnapshot { running, live, backfill, ..StageSnapshot::default() });
            assert_eq!(
                (health.ok, &health.troubles[..]),
                (ok, &told.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()[..])
            );
        }
    }
}
