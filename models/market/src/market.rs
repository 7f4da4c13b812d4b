//! The demo market from its vocabulary and a seed.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use endcap_inference::prompts;
use endcap_schemas::{Category, Product, Term, UNCATEGORISED};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::{
    Household, Merchandiser, Taste,
    random::{hash, one_of, stream, weighted},
    terms,
    vocabulary::{Department, Leaf, Modifier, Noun, Vocabulary},
};

/// Seed of the market that the demo models are trained on.
pub const DEMO_SEED: u64 = 1;

/// Products of the least popular leaf; every step of popularity brings one more.
const PRODUCTS_MIN: usize = 42;
/// Of every noun there are at least so many.
const PRODUCTS_PER_NOUN_MIN: usize = 3;

const PRODUCT_STREAM: u64 = 1;
const SHOPPER_STREAM: u64 = 2;
const HELD_OUT_STREAM: u64 = 3;
const TRAINING_STREAM: u64 = 4;

/// A whole market. The demo market is the same for the same seed.
#[derive(Debug, Clone)]
pub struct Market {
    /// What it was generated from; 0 for one that was not.
    pub seed: u64,
    /// Taxonomy leaves, department by department.
    pub categories: Vec<Category>,
    /// Products, leaf by leaf, most popular first; the demo market's ids run from `d00001` on.
    pub products: Vec<Product>,
    /// Terms of the keyword corpus.
    pub terms: Vec<Term>,
    /// What households may be fond of.
    pub tastes: Vec<Taste>,
    leaves: HashMap<String, usize>,
    /// Leaves by the shelves that their products stand on.
    leaves_below: HashMap<String, Vec<usize>>,
    products_by_leaf: Vec<Range<usize>>,
    /// Of each leaf, the mean of the prices that are known, cents.
    mean_prices: Vec<Option<f64>>,
    products_by_id: HashMap<String, usize>,
}

impl Market {
    /// The market of a seed: the same words, other products (brands, combinations, prices, popularity).
    pub fn generate(seed: u64) -> Self {
        let vocabulary = Vocabulary::embedded();
        let categories: Vec<Category> = vocabulary.leaves().map(|(department, leaf)| category(department, leaf)).collect();
        let mut products = Vec::new();
        for (i, (department, leaf)) in vocabulary.leaves().enumerate() {
            let rng = stream(&[seed, PRODUCT_STREAM, i as u64]);
            products.extend(Shelf { vocabulary: &vocabulary, department, leaf, rng }.fill());
        }
        for (i, product) in products.iter_mut().enumerate() {
            product.id = format!("d{:05}", i + 1);
        }
        let terms = terms::compose(&vocabulary);
        Self::assemble(seed, categories, products, terms, vocabulary.tastes)
    }

    /// A market of other people's products, to train on: every leaf with the leaves that go with it is a taste. Leaves without products, and
    /// products without a leaf, are left out.
    pub fn of(mut categories: Vec<Category>, mut products: Vec<Product>, terms: Vec<Term>) -> Self {
        let filled: HashSet<&str> = products.iter().map(Product::category).collect();
        categories.retain(|category| category.name != UNCATEGORISED && filled.contains(category.name.as_str()));
        let leaves: HashMap<&str, usize> = categories.iter().enumerate().map(|(i, leaf)| (leaf.name.as_str(), i)).collect();
        products.retain(|product| leaves.contains_key(product.category()));
        products.sort_by(|a, b| {
            let leaf = |product: &Product| leaves[product.category()];
            leaf(a).cmp(&leaf(b)).then(b.popularity.total_cmp(&a.popularity)).then_with(|| a.id.cmp(&b.id))
        });
        let taste = |leaf: &Category| {
            let related = leaf.related.iter().filter(|name| leaves.contains_key(name.as_str()));
            Taste { name: leaf.name.clone(), leaves: std::iter::once(&leaf.name).chain(related).cloned().collect() }
        };
        let tastes = categories.iter().map(taste).filter(|taste| taste.leaves.len() > 1).collect();
        Self::assemble(0, categories, products, terms, tastes)
    }

    /// Products lie leaf by leaf, in the order of `categories`.
    fn assemble(seed: u64, categories: Vec<Category>, products: Vec<Product>, terms: Vec<Term>, tastes: Vec<Taste>) -> Self {
        let mut at = 0;
        let shelf = |category: &Category| {
            let from = at;
            at += products[from..].iter().take_while(|product| product.category() == category.name).count();
            from..at
        };
        let products_by_leaf: Vec<Range<usize>> = categories.iter().map(shelf).collect();
        let mut leaves_below: HashMap<String, Vec<usize>> = HashMap::new();
        for (leaf, shelf) in products_by_leaf.iter().enumerate() {
            for name in products[shelf.clone()].first().iter().flat_map(|product| product.shelves()) {
                leaves_below.entry(name.to_owned()).or_default().push(leaf);
            }
        }
        let mean_price = |shelf: &Range<usize>| {
            let prices: Vec<f64> =
                products[shelf.clone()].iter().filter_map(|product| product.price_cents).map(|cents| cents as f64).collect();
            (!prices.is_empty()).then(|| prices.iter().sum::<f64>() / prices.len() as f64)
        };
        Self {
            seed,
            mean_prices: products_by_leaf.iter().map(mean_price).collect(),
            products_by_leaf,
            leaves_below,
            leaves: categories.iter().enumerate().map(|(i, category)| (category.name.clone(), i)).collect(),
            products_by_id: products.iter().enumerate().map(|(i, product)| (product.id.clone(), i)).collect(),
            categories,
            products,
            terms,
            tastes,
        }
    }

    /// The `n`-th household of `seed`: user `shopper-0001` for `n` = 0.
    pub fn household(&self, seed: u64, n: u64) -> Household {
        Household::draw(self, format!("shopper-{:04}", n + 1), &mut stream(&[SHOPPER_STREAM, seed, n]))
    }

    /// The `n`-th household that no training sample ever shows: user `held-out-0001` for `n` = 0.
    pub fn held_out_household(&self, n: u64) -> Household {
        Household::draw(self, format!("held-out-{:04}", n + 1), &mut stream(&[HELD_OUT_STREAM, n]))
    }

    /// The household of training seed `n`.
    pub(crate) fn training_household(&self, n: u64) -> Household {
        Household::draw(self, format!("training-{n}"), &mut stream(&[TRAINING_STREAM, n]))
    }

    /// A taxonomy leaf by name.
    pub fn category(&self, name: &str) -> Option<&Category> {
        self.leaf(name).map(|i| &self.categories[i])
    }

    /// A product by id.
    pub fn product(&self, id: &str) -> Option<&Product> {
        self.products_by_id.get(id).map(|i| &self.products[*i])
    }

    /// Products of a leaf, most popular first; none for an unknown leaf.
    pub fn products_of(&self, category: &str) -> &[Product] {
        self.leaf(category).map_or(&[], |i| self.shelf(i))
    }

    /// Mean price of a leaf's products, cents; none where no price is known.
    pub(crate) fn mean_price(&self, category: &str) -> Option<f64> {
        self.mean_prices[self.leaf(category)?]
    }

    /// The leaf of that name and the leaves below it.
    pub(crate) fn leaves_below(&self, category: &str) -> &[usize] {
        self.leaves_below.get(category).map_or(&[], Vec::as_slice)
    }

    /// The merchandiser of this market.
    pub fn merchandiser(&self) -> Merchandiser {
        Merchandiser::new(self.categories.clone())
    }

    /// Every plain text of the market: terms, product titles and what the cross-encoder reads of them, leaves, departments and tastes.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        let products = self.products.iter().flat_map(|product| [product.title(), prompts::product_text(product)]);
        let categories = self.categories.iter().flat_map(|category| [category.name.clone(), category.department.clone()]);
        let tastes = self.tastes.iter().map(|taste| taste.name.clone());
        self.terms.iter().map(|term| term.text.clone()).chain(products).chain(categories).chain(tastes)
    }

    pub(crate) fn leaf(&self, name: &str) -> Option<usize> {
        self.leaves.get(name).copied()
    }

    pub(crate) fn shelf(&self, leaf: usize) -> &[Product] {
        &self.products[self.products_by_leaf[leaf].clone()]
    }
}

fn category(department: &Department, leaf: &Leaf) -> Category {
    Category {
        name: leaf.name.clone(),
        department: department.name.clone(),
        violates: leaf.holds.violates(),
        age_restricted: leaf.adult,
        seasons: leaf.seasons,
        related: leaf.related.clone(),
        popularity: leaf.popularity,
    }
}

/// Fills one leaf with products.
struct Shelf<'a> {
    vocabulary: &'a Vocabulary,
    department: &'a Department,
    leaf: &'a Leaf,
    rng: ChaCha8Rng,
}

impl<'a> Shelf<'a> {
    fn fill(mut self) -> Vec<Product> {
        let wanted = PRODUCTS_MIN + (self.leaf.popularity * 9.0) as usize;
        let total: f32 = self.leaf.nouns.iter().map(|noun| noun.popularity).sum();
        let mut products: Vec<Product> = Vec::with_capacity(wanted);
        for noun in &self.leaf.nouns {
            let count = ((wanted as f32 * noun.popularity / total).round() as usize).max(PRODUCTS_PER_NOUN_MIN);
            let fitting = self.fitting(noun);
            for i in 0..count {
                // The first has no modifiers, so that every noun is there by itself.
                let modifiers = if i == 0 { Vec::new() } else { self.modifiers(&fitting) };
                let product = self.product(noun, &modifiers);
                if !products.iter().any(|other| (&other.name, &other.brand) == (&product.name, &product.brand)) {
                    products.push(product);
                }
            }
        }
        self.rank(&mut products);
        products
    }

    fn product(&mut self, noun: &Noun, modifiers: &[&Modifier]) -> Product {
        let mut name = noun.text.clone();
        let mut holds = noun.holds;
        // From the last to the first, so that the words stand in the vocabulary's order.
        for modifier in modifiers.iter().rev() {
            name = modifier.join(&name);
            holds = modifier.apply(self.department, self.leaf, "", holds).unwrap_or(holds);
        }
        let brands: Vec<&String> = self
            .vocabulary
            .brands
            .iter()
            .filter(|(group, _)| *group == self.department.group)
            .flat_map(|(_, brands)| brands)
            .collect();
        let brand = one_of(&mut self.rng, &brands).map(|brand| (*brand).clone()).unwrap_or_default();
        let size = self.rng.random_range(0..self.leaf.sizes.len().max(1));
        Product {
            id: String::new(),
            price_cents: Some(self.price(noun, modifiers, &brand, size)),
            name,
            brand,
            size: self.leaf.sizes.get(size).cloned().unwrap_or_default(),
            category_path: vec![self.department.name.clone(), self.leaf.name.clone()],
            violates: holds.violates(),
            age_restricted: self.leaf.adult,
            // Until `rank`: how well it would sell but for chance.
            popularity: noun.popularity * modifiers.iter().map(|modifier| 0.5 + 0.4 * modifier.popularity).product::<f32>(),
            in_stock: self.rng.random_bool(0.97),
        }
    }

    /// Per modifier of the vocabulary: how likely the noun carries it, 0 where the two do not go together.
    fn fitting(&self, noun: &Noun) -> Vec<f32> {
        let weight = |modifier: &Modifier| match modifier.apply(self.department, self.leaf, &noun.text, noun.holds) {
            Some(_) => 0.1 + modifier.popularity,
            None => 0.0,
        };
        self.vocabulary.modifiers.iter().map(weight).collect()
    }

    /// Up to two modifiers that fit the noun and each other, in the vocabulary's order.
    fn modifiers(&mut self, fitting: &[f32]) -> Vec<&'a Modifier> {
        let all = &self.vocabulary.modifiers;
        let mut weights = fitting.to_vec();
        let mut chosen = Vec::new();
        for share in [0.8, 0.25] {
            if !self.rng.random_bool(share) {
                break;
            }
            let Some(i) = weighted(&mut self.rng, &weights) else { break };
            chosen.push(i);
            for (other, weight) in weights.iter_mut().enumerate().filter(|(_, weight)| **weight > 0.0) {
                if other == i || self.vocabulary.conflict(&all[other], &all[i]) {
                    *weight = 0.0;
                }
            }
        }
        chosen.sort_unstable();
        chosen.into_iter().map(|i| &all[i]).collect()
    }

    /// A price within the department's band: by noun, modifiers, brand and size, ending in 9.
    fn price(&mut self, noun: &Noun, modifiers: &[&Modifier], brand: &str, size: usize) -> i64 {
        let share = |text: &str| (hash(text) % 1000) as f64 / 1000.0;
        let (low, high) = self.department.prices;
        let base = low as f64 * (high as f64 / low as f64).powf(0.15 + 0.7 * share(&noun.text));
        let by_modifiers: f64 = modifiers.iter().map(|modifier| price_factor(&modifier.text)).product();
        let by_brand = 0.85 + 0.35 * share(brand);
        let by_size = 0.7 + 0.2 * size as f64;
        let cents = base * by_modifiers * by_brand * by_size * self.rng.random_range(0.92..1.08);
        (cents / 10.0).round().max(3.0) as i64 * 10 - 1
    }

    /// Orders the leaf's products by how well they sell, with some chance, and gives them their popularity (a Zipf curve).
    fn rank(&mut self, products: &mut Vec<Product>) {
        let mut scored: Vec<(f32, Product)> =
            products.drain(..).map(|product| (product.popularity * self.rng.random_range(0.5..1.5), product)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let top = 0.4 + 0.6 * self.leaf.popularity;
        products.extend(scored.into_iter().enumerate().map(|(rank, (_, mut product))| {
            product.popularity = top / (1.0 + rank as f32).powf(0.6);
            product
        }));
    }
}

fn price_factor(modifier: &str) -> f64 {
    match modifier {
        "value" => 0.7,
        "organic" | "free range" | "grass fed" | "artisan" | "handmade" | "truffle" => 1.25,
        "premium" | "luxury" | "aged" | "wild" => 1.4,
        "family pack" | "refill pack" | "multipack" => 1.8,
        "gift set" => 2.2,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {

    use endcap_schemas::{Descriptor, Diet};

    use super::*;

    #[test]
    fn a_seed_gives_one_market() {
        let (one, same, other) = (Market::generate(3), Market::generate(3), Market::generate(4));
        assert_eq!(one.products, same.products);
        assert_eq!(one.terms, same.terms);
        assert_ne!(one.products, other.products);
        assert_eq!(one.terms, other.terms);
    }

    #[test]
    fn the_market_is_large_enough_and_has_no_repeats() {
        let market = Market::generate(DEMO_SEED);
        assert!(market.products.len() >= 5_000, "{}", market.products.len());
        assert!(market.terms.len() >= 20_000, "{}", market.terms.len());
        for category in &market.categories {
            let shelf = market.products_of(&category.name);
            assert!(shelf.len() >= 35, "{}: {}", category.name, shelf.len());
            assert!(shelf.windows(2).all(|pair| pair[0].popularity >= pair[1].popularity));
            assert!(shelf.iter().all(|product| product.category() == category.name && product.price_cents > Some(20)));
        }
        let titles: HashSet<String> = market.products.iter().map(Product::title).collect();
        assert_eq!(titles.len(), market.products.len());
        let terms: HashSet<&str> = market.terms.iter().map(|term| term.text.as_str()).collect();
        assert_eq!(terms.len(), market.terms.len());
        let nodes = market.terms.iter().filter(|term| term.descriptor == Descriptor::Node).count();
        assert!(nodes > market.categories.len());
    }

    #[test]
    fn a_market_of_other_peoples_products_has_shelves_tastes_and_households() {
        let demo = Market::generate(DEMO_SEED);
        let mut products: Vec<Product> = demo.products.iter().rev().cloned().collect();
        products.push(Product { id: "stray".into(), category_path: vec!["nowhere".into()], ..demo.products[0].clone() });
        let mut categories = demo.categories.clone();
        categories.push(Category { name: "an empty leaf".into(), ..demo.categories[0].clone() });
        let market = Market::of(categories, products, demo.terms.clone());
        assert_eq!(market.categories, demo.categories);
        assert!(market.product("stray").is_none() && market.products.len() == demo.products.len());
        for category in &market.categories {
            let ids = |market: &Market| market.products_of(&category.name).iter().map(|product| product.id.clone()).collect();
            let (ours, theirs): (HashSet<String>, HashSet<String>) = (ids(&market), ids(&demo));
            assert_eq!(ours, theirs, "{}", category.name);
        }
        let household = market.household(1, 0);
        assert!(household.favourites.len() >= Household::FAVOURITES.0, "{household:?}");
        assert!(household.favourites.iter().all(|like| market.category(&like.category).is_some()));
    }

    #[test]
    fn every_diet_finds_enough_products_in_the_leaves_that_it_may_have() {
        let market = Market::generate(DEMO_SEED);
        for diet in Diet::ALL {
            for category in market.categories.iter().filter(|category| !category.violates.contains(diet)) {
                let fit = market.products_of(&category.name).iter().filter(|product| !product.violates.contains(diet)).count();
                assert!(fit >= 12, "{}: {fit} for {diet:?}", category.name);
            }
        }
    }

    #[test]
    fn prompts_leave_names_and_terms_as_they_are() {
        let market = Market::generate(DEMO_SEED);
        let names = market.products.iter().map(|product| &product.name);
        for text in names.chain(market.terms.iter().map(|term| &term.text)) {
            assert_eq!(&prompts::plain(text), text);
        }
    }
}
