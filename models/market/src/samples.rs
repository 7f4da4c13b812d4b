//! Text-level training samples: contexts with the teacher's pages, relevance pairs, keyword tasks, catalogue facts.
//!
//! Everything is drawn from the caller's generator, so a seed gives the same samples. Held-out households are never among them.

use std::{collections::HashMap, sync::Arc};

use endcap_inference::prompts::{self, Nearby, ThemeDocument, ThemesDocument};
use endcap_schemas::{
    Brief, CategoryWeight, Cause, ContextChanged, DietSet, EventKind, Head, Origin, Product, PurchaseMemory, Season, Term, Theme,
};
use rand::{Rng, RngExt};

use crate::{
    Household, Market, MerchandisedPage, Merchandiser,
    baskets::Basket,
    random::{one_of, stream, weighted},
    truth,
    wording::sentence_case,
};

/// Themes of a sample's page.
const THEMES: usize = 8;
const DAY_MS: i64 = 86_400_000;
/// Weights of a purchase, cart add and view halve in this time.
const HALF_LIFE_MS: f64 = 60.0 * DAY_MS as f64;
/// Favourites and purchases that a context holds.
const CONTEXT_MAX: usize = 16;
/// Share of the households that like leaves at random, so that models learn to read favourites instead of guessing tastes.
const WANDERER_SHARE: f64 = 0.2;
/// Share of the pairs and keyword tasks with one concept exchanged, so that models learn to read concepts.
const EXCHANGED_SHARE: f64 = 0.15;
/// Households that are drawn for one theme: diets may leave nothing of a market that is not the demo's.
const HOUSEHOLDS_MAX: usize = 32;
/// Samples lie in the four years from here (2023-01-01).
const FROM_MS: i64 = 1_672_531_200_000;
const TEXT_STREAM: u64 = 31;

/// A context and what the teacher makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ThemeSample {
    /// Whom the page is for.
    pub context: ContextChanged,
    /// What the taxonomy holds around it.
    pub nearby: Nearby,
    /// What it should write: eight themes.
    pub page: MerchandisedPage,
}

impl ThemeSample {
    /// What the model reads.
    pub fn prompt(&self) -> String {
        prompts::themes(&self.context, &self.nearby)
    }

    /// The page as LLM 1 writes it.
    pub fn document(&self) -> ThemesDocument {
        let theme = |theme: &Theme| ThemeDocument {
            title: theme.title.clone(),
            intent: theme.intent.clone(),
            concepts: theme.concepts.clone(),
        };
        ThemesDocument { persona: self.page.persona.clone(), themes: self.page.themes.iter().map(theme).collect() }
    }
}

/// The catalogue's fact about a term: its leaf and the diets that it violates; `None` for terms without a leaf.
pub fn fact(term: &Term) -> Option<(&str, DietSet)> {
    term.category.as_deref().map(|category| (category, term.violates))
}

/// A source of samples on one market.
#[derive(Debug, Clone)]
pub struct Samples {
    market: Arc<Market>,
    merchandiser: Merchandiser,
}

impl Samples {
    /// Samples of `market`, taught by its merchandiser.
    pub fn new(market: Arc<Market>) -> Self {
        Self { merchandiser: market.merchandiser(), market }
    }

    /// The teacher.
    pub fn merchandiser(&self) -> &Merchandiser {
        &self.merchandiser
    }

    /// A random household of the training space at a random stage of its life (1 to 24 visits, early stages more often).
    pub fn theme<R: Rng>(&self, rng: &mut R) -> ThemeSample {
        let mut household = self.market.training_household(rng.random());
        if rng.random_bool(WANDERER_SHARE) {
            self.wander(&mut household, rng);
        }
        let visits = 1 + (24.0 * rng.random::<f64>().powi(3)) as usize;
        let end_ms = FROM_MS + rng.random_range(0..4 * 365) * DAY_MS + rng.random_range(0..DAY_MS);
        self.theme_of(&household, visits, end_ms, rng)
    }

    /// The sample of a given household (a held-out one, say) after `visits` visits, the last one at `end_ms`.
    pub fn theme_of<R: Rng>(&self, household: &Household, visits: usize, end_ms: i64, rng: &mut R) -> ThemeSample {
        let context = self.context(household, visits, end_ms, rng);
        let (nearby, page) = (self.merchandiser.nearby(&context, THEMES), self.merchandiser.page(&context, THEMES));
        ThemeSample { context, nearby, page }
    }

    /// What the context stage would know of the household after `visits` visits, the last one at `end_ms`.
    pub fn context<R: Rng>(&self, household: &Household, visits: usize, end_ms: i64, rng: &mut R) -> ContextChanged {
        let mut weights: HashMap<&str, f64> = HashMap::new();
        let mut recent: Vec<PurchaseMemory> = Vec::new();
        let mut at_ms = end_ms;
        // From the newest visit back, so that `recent` is in its order.
        for _ in 0..visits {
            let (kind, weight, lines) = match weighted(rng, &[0.84, 0.08, 0.08]) {
                Some(1) => (EventKind::CartAdd, 0.5, 1),
                Some(2) => (EventKind::View, 0.2, 1),
                _ => (EventKind::Purchase, 1.0, rng.random_range(1..=6)),
            };
            let decayed = weight * 0.5_f64.powf((end_ms - at_ms) as f64 / HALF_LIFE_MS);
            for product in Basket::new(&self.market, household, Season::at(at_ms)).fill(lines, rng) {
                *weights.entry(product.category()).or_default() += decayed;
                if kind == EventKind::Purchase {
                    remember(&mut recent, product, at_ms);
                }
            }
            at_ms -= rng.random_range(DAY_MS / 2..9 * DAY_MS);
        }
        recent.truncate(CONTEXT_MAX);
        let mut favourites: Vec<CategoryWeight> =
            weights.into_iter().map(|(category, weight)| CategoryWeight { category: category.to_owned(), weight }).collect();
        favourites.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.category.cmp(&b.category)));
        favourites.truncate(CONTEXT_MAX);
        ContextChanged { head: head(household, end_ms), brief: brief(household, end_ms), favourites, recent }
    }

    /// A theme, a product and whether the product is relevant to it: about half are, and those stand on the concept's shelf or below. Most of the others are close: of the same department, of
    /// another theme of the page, or of a leaf that goes with the theme's.
    ///
    /// # Panics
    /// When the market has no products.
    pub fn pair<R: Rng>(&self, rng: &mut R) -> (Theme, Product, bool) {
        let (_, _, theme) = self.keyword_theme(rng);
        for _ in 0..64 {
            let shelf = if rng.random_bool(0.5) {
                let leaves = one_of(rng, &theme.concepts).map_or(&[][..], |concept| self.market.leaves_below(concept));
                one_of(rng, leaves).map_or(&[][..], |leaf| self.market.shelf(*leaf))
            } else {
                self.beside(&theme, rng).map_or(&[][..], |category| self.market.products_of(&category))
            };
            if let Some(product) = one_of(rng, shelf) {
                return (theme.clone(), product.clone(), truth::relevant(&theme, product));
            }
        }
        let product = one_of(rng, &self.market.products).expect("a market to sample from has products").clone();
        let relevant = truth::relevant(&theme, &product);
        (theme, product, relevant)
    }

    /// A theme of a random household with its brief and persona; the candidates come from real retrieval.
    ///
    /// # Panics
    /// When the market has no leaves.
    pub fn keyword_theme<R: Rng>(&self, rng: &mut R) -> (Brief, String, Theme) {
        let (sample, mut theme) = self.household_theme(rng);
        if rng.random_bool(EXCHANGED_SHARE) {
            self.exchange(&mut theme, &sample.context.brief, rng);
        }
        (sample.context.brief, sample.page.persona, theme)
    }

    /// Every text of the market, and those of `samples` seeded samples: personas, titles, intents, what the cross-encoder reads of themes, and
    /// the prompts and documents of LLM 1 (the only ones with marks). For tokenizer training and encoder distillation.
    pub fn texts(&self, samples: usize, seed: u64) -> impl Iterator<Item = String> + '_ {
        let mut rng = stream(&[TEXT_STREAM, seed]);
        let of_samples = (0..samples).flat_map(move |_| {
            let sample = self.theme(&mut rng);
            let themes = sample.page.themes.iter();
            let mut texts: Vec<String> = themes
                .flat_map(|theme| [prompts::plain(&theme.title), theme.intent.clone(), prompts::theme_text(theme)])
                .collect();
            texts.push(prompts::plain(&sample.page.persona));
            texts.push(sample.prompt());
            texts.push(sample.document().to_training_text());
            texts
        });
        self.market.texts().chain(of_samples)
    }

    /// A household that may have something of the market, and one of its themes. Where there is none, a leaf stands for the theme.
    fn household_theme<R: Rng>(&self, rng: &mut R) -> (ThemeSample, Theme) {
        let mut sample = self.theme(rng);
        for _ in 1..HOUSEHOLDS_MAX {
            if !sample.page.themes.is_empty() {
                break;
            }
            sample = self.theme(rng);
        }
        let theme = one_of(rng, &sample.page.themes).cloned().unwrap_or_else(|| {
            let leaf = one_of(rng, &self.market.categories).expect("a market to sample from has leaves");
            Theme {
                title: sentence_case(&leaf.name),
                intent: "browse the shelf".to_owned(),
                concepts: vec![leaf.name.clone()],
                origin: Origin::Cold,
            }
        });
        (sample, theme)
    }

    /// Gives the household other favourites: any leaves that its diets allow.
    fn wander<R: Rng>(&self, household: &mut Household, rng: &mut R) {
        for like in &mut household.favourites {
            let leaf = one_of(rng, &self.market.categories).filter(|leaf| !leaf.violates.intersects(household.diets));
            if let Some(leaf) = leaf {
                like.category.clone_from(&leaf.name);
            }
        }
    }

    /// Puts another leaf in the place of the theme's second or third concept.
    fn exchange<R: Rng>(&self, theme: &mut Theme, brief: &Brief, rng: &mut R) {
        let leaf =
            one_of(rng, &self.market.categories).filter(|leaf| !leaf.violates.intersects(brief.diets) && !leaf.age_restricted);
        if let Some(leaf) = leaf.filter(|leaf| theme.concepts.iter().all(|concept| *concept != leaf.name)) {
            let at = rng.random_range(1..3);
            if let Some(concept) = theme.concepts.get_mut(at) {
                concept.clone_from(&leaf.name);
            }
        }
    }

    /// A leaf that is not the theme's: a neighbour more often than a stranger.
    fn beside<R: Rng>(&self, theme: &Theme, rng: &mut R) -> Option<String> {
        let concept = self.market.category(one_of(rng, &theme.concepts)?)?;
        let leaves: Vec<&String> = match weighted(rng, &[0.4, 0.35, 0.25])? {
            0 => {
                let same = self.market.categories.iter().filter(|leaf| leaf.department == concept.department);
                same.map(|leaf| &leaf.name).collect()
            }
            1 => concept.related.iter().collect(),
            _ => self.market.categories.iter().map(|leaf| &leaf.name).collect(),
        };
        let others: Vec<&String> = leaves.into_iter().filter(|leaf| !theme.concepts.contains(leaf)).collect();
        one_of(rng, &others).map(|leaf| (*leaf).clone())
    }
}

/// Adds a purchase that is older than all in `recent`.
fn remember(recent: &mut Vec<PurchaseMemory>, product: &Product, at_ms: i64) {
    match recent.iter_mut().find(|memory| memory.product == product.id) {
        Some(memory) => memory.count += 1,
        None => recent.push(PurchaseMemory {
            product: product.id.clone(),
            name: product.name.clone(),
            category: product.category().to_owned(),
            count: 1,
            last_ms: at_ms,
        }),
    }
}

fn head(household: &Household, at_ms: i64) -> Head {
    Head {
        user: household.user.clone(),
        context_ms: at_ms,
        generation: 1,
        cause: Cause { event_id: format!("sample-{}", household.seed), event_ms: at_ms, accepted_ms: at_ms },
        expires_ms: at_ms + DAY_MS,
    }
}

fn brief(household: &Household, at_ms: i64) -> Brief {
    Brief {
        diets: household.diets,
        budget: household.budget,
        locale: "en".to_owned(),
        season: Season::at(at_ms),
        dislikes: Vec::new(),
        personalise: true,
    }
}
