//! What is remembered of a shopper between two events, and the snapshot that later stages get.

use std::collections::{BTreeMap, VecDeque};

use endcap_runtime::Stamp;
use endcap_schemas::{
    Brief, Budget, CategoryWeight, Cause, ContextChanged, DietSet, EventKind, Head, Preference, Product, PurchaseMemory, Season,
    ShopperEvent, UserKey,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ContextConfig, Known, Position};

/// Version of the state's encoding. 2: with an epoch.
const VERSION: u32 = 2;
/// Weights are kept in millionths: whole numbers read back from JSON are the numbers that were written, which fractions need not be.
const MICRO: f64 = 1e6;
const DAY_MS: f64 = 86_400_000.0;

/// The fold of a shopper's events. Bounded: at most `leaves_max` categories, `recent_max` purchases, `ids_max` ids and one stated preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldState {
    version: u32,
    /// Which fold from scratch it goes back to: when that replay began, ms; 0 for the first one. It stands in front: of two states of one
    /// stamp a store keeps the greater bytes, and that is the later epoch (times have as many digits as each other until the year 2286).
    #[serde(default)]
    pub(crate) epoch: i64,
    /// Where the last folded event stood in the log.
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The hybrid clock: `context_ms` of the last snapshot.
    pub(crate) clock_ms: i64,
    /// When the log took the shopper's erasure; what it took before belongs to a life that is gone.
    pub(crate) erased_ms: Option<i64>,
    /// Where it stood in the log: partition and offset.
    #[serde(default)]
    pub(crate) erased_at: Option<(i32, i64)>,
    /// Latest time among the events, ms.
    newest_ms: i64,
    cause: Cause,
    seen: VecDeque<Seen>,
    diets: DietSet,
    budget: Budget,
    locale: String,
    dislikes: Vec<String>,
    pub(crate) personalise: bool,
    leaves: Vec<Leaf>,
    purchases: Vec<PurchaseMemory>,
}

/// An event that was folded: a short hash of its id, and its offset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Seen(u64, i64);

/// Weight of a category as of its last event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Leaf {
    category: String,
    micro: i64,
    at_ms: i64,
}

/// A state that cannot be read.
#[derive(Debug, Error)]
pub enum StateError {
    /// The bytes are no state.
    #[error("fold state is unreadable: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("fold state has version {0}, this build reads up to {VERSION}: roll the deployment forward")]
    Version(u32),
}

impl FoldState {
    /// The state of a shopper without one: a first life, or one after an erasure that the log took at `erased_ms`.
    pub fn fresh(known: &Known, erased_ms: Option<i64>, config: &ContextConfig) -> Self {
        Self {
            version: VERSION,
            epoch: 0,
            partition: -1,
            offset: -1,
            clock_ms: known.erased_until_ms.unwrap_or(0),
            erased_ms,
            erased_at: known.erased_at,
            newest_ms: 0,
            cause: Cause { event_id: String::new(), event_ms: 0, accepted_ms: 0 },
            seen: VecDeque::new(),
            diets: DietSet::NONE,
            budget: Budget::default(),
            locale: config.locale.clone(),
            dislikes: Vec::new(),
            personalise: config.personalise,
            leaves: Vec::new(),
            purchases: Vec::new(),
        }
    }

    /// Reads what [`FoldState::encode`] wrote.
    ///
    /// # Errors
    /// [`StateError`] when it is no state or a later version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version > VERSION {
            return Err(StateError::Version(version));
        }
        let state: Self = serde_json::from_slice(bytes)?;
        Ok(Self { version: VERSION, ..state })
    }

    /// Which fold from scratch it goes back to: when that replay began, ms; 0 where there was none.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The state as the store holds it: JSON with a version.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a state of strings and whole numbers is JSON")
    }

    /// The store's timestamp of the state under `generation`.
    pub fn stamp(&self, generation: i32) -> Stamp {
        Stamp::of(self.clock_ms, generation)
    }

    /// Whether an event with this id is known to be folded from before the end of its partition, as `ends` has it by partition.
    pub fn remembers(&self, event_id: &str, ends: &BTreeMap<i32, i64>) -> bool {
        let end = ends.get(&self.partition).copied().unwrap_or(0);
        self.folded_at(event_id).is_some_and(|offset| offset < end)
    }

    /// Offset at which an event with this id was folded, if it is remembered.
    pub(crate) fn folded_at(&self, event_id: &str) -> Option<i64> {
        let hash = short_hash(event_id);
        self.seen.iter().find(|seen| seen.0 == hash).map(|seen| seen.1)
    }

    /// Takes an event in; `products` are those of its lines, in order.
    pub(crate) fn take(&mut self, event: &ShopperEvent, products: &[Product], at: Position, config: &ContextConfig) {
        self.partition = at.partition;
        self.offset = at.offset;
        self.clock_ms = event.at_ms.max(self.clock_ms + 1);
        self.newest_ms = self.newest_ms.max(event.at_ms);
        self.cause = Cause { event_id: event.id.clone(), event_ms: event.at_ms, accepted_ms: at.appended_ms };
        self.seen.push_back(Seen(short_hash(&event.id), at.offset));
        while self.seen.len() > config.ids_max {
            self.seen.pop_front();
        }
        match event.kind {
            EventKind::Purchase | EventKind::CartAdd | EventKind::View => self.engage(event, products, config),
            EventKind::Preference => event.preference.iter().for_each(|stated| self.prefer(stated)),
            EventKind::Consent => self.consent(event.personalise.unwrap_or(false)),
            EventKind::Erase => unreachable!("an erasure is never folded"),
        }
    }

    fn engage(&mut self, event: &ShopperEvent, products: &[Product], config: &ContextConfig) {
        let weight = config.weight(event.kind);
        for product in products.iter().filter(|product| product.is_categorised()) {
            self.weigh(product.category(), weight, event.at_ms, config);
        }
        if event.kind == EventKind::Purchase {
            // The first line comes to stand in front; the sort is stable, so a late event finds its place by time.
            for product in products.iter().rev() {
                self.remember(product, event.at_ms);
            }
            self.purchases.sort_by_key(|purchase| std::cmp::Reverse(purchase.last_ms));
            self.purchases.truncate(config.recent_max);
        }
        if self.leaves.len() > config.leaves_max {
            let now_ms = self.newest_ms;
            self.leaves.sort_by(|a, b| heavier(a, b, now_ms, config));
            self.leaves.truncate(config.leaves_max);
        }
    }

    fn weigh(&mut self, category: &str, weight: f64, at_ms: i64, config: &ContextConfig) {
        match self.leaves.iter_mut().find(|leaf| leaf.category == category) {
            Some(leaf) => {
                let later_ms = leaf.at_ms.max(at_ms);
                let sum = leaf.weight(later_ms, config) + weight * decay(later_ms - at_ms, config);
                leaf.micro = (sum * MICRO).round() as i64;
                leaf.at_ms = later_ms;
            }
            None => self.leaves.push(Leaf { category: category.to_owned(), micro: (weight * MICRO).round() as i64, at_ms }),
        }
    }

    fn remember(&mut self, product: &Product, at_ms: i64) {
        let known = self.purchases.iter().position(|purchase| purchase.product == product.id).map(|i| self.purchases.remove(i));
        self.purchases.insert(
            0,
            PurchaseMemory {
                product: product.id.clone(),
                name: product.name.clone(),
                category: product.category().to_owned(),
                count: known.as_ref().map_or(0, |purchase| purchase.count).saturating_add(1),
                last_ms: known.map_or(at_ms, |purchase| purchase.last_ms.max(at_ms)),
            },
        );
    }

    fn prefer(&mut self, stated: &Preference) {
        if let Some(diets) = stated.diets {
            self.diets = diets;
        }
        if let Some(budget) = stated.budget {
            self.budget = budget;
        }
        if let Some(locale) = &stated.locale {
            self.locale.clone_from(locale);
        }
        if let Some(dislikes) = &stated.dislikes {
            self.dislikes = dislikes.iter().map(|word| word.trim().to_lowercase()).collect();
        }
    }

    /// Withdrawn consent forgets the history; what the household stated about its diets still protects it.
    fn consent(&mut self, personalise: bool) {
        self.personalise = personalise;
        if !personalise {
            self.leaves.clear();
            self.purchases.clear();
        }
    }

    /// What later stages get: a pure function of the state.
    pub fn snapshot(&self, user: &UserKey, generation: i32, config: &ContextConfig) -> ContextChanged {
        ContextChanged {
            head: Head {
                user: user.clone(),
                context_ms: self.clock_ms,
                generation,
                cause: self.cause.clone(),
                expires_ms: self.cause.accepted_ms.saturating_add(config.expires_ms()),
            },
            brief: Brief {
                diets: self.diets,
                budget: self.budget,
                locale: self.locale.clone(),
                season: Season::at(self.newest_ms),
                dislikes: self.dislikes.clone(),
                personalise: self.personalise,
            },
            favourites: if self.personalise { self.favourites(config) } else { Vec::new() },
            recent: if self.personalise { self.purchases.iter().take(config.recent_max).cloned().collect() } else { Vec::new() },
        }
    }

    fn favourites(&self, config: &ContextConfig) -> Vec<CategoryWeight> {
        let mut leaves: Vec<&Leaf> = self.leaves.iter().collect();
        leaves.sort_by(|a, b| heavier(a, b, self.newest_ms, config));
        leaves
            .into_iter()
            .take(config.favourites_max)
            .map(|leaf| CategoryWeight { category: leaf.category.clone(), weight: leaf.weight(self.newest_ms, config) })
            .collect()
    }
}

impl Leaf {
    /// Weight at `now_ms`, which is not before the leaf's time.
    fn weight(&self, now_ms: i64, config: &ContextConfig) -> f64 {
        self.micro as f64 / MICRO * decay(now_ms - self.at_ms, config)
    }
}

/// Heaviest first; names settle ties.
fn heavier(a: &Leaf, b: &Leaf, now_ms: i64, config: &ContextConfig) -> std::cmp::Ordering {
    b.weight(now_ms, config).total_cmp(&a.weight(now_ms, config)).then_with(|| a.category.cmp(&b.category))
}

/// What is left of a weight after `age_ms`.
fn decay(age_ms: i64, config: &ContextConfig) -> f64 {
    (-(age_ms as f64) / (config.half_life_days * DAY_MS)).exp2()
}

fn short_hash(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}
