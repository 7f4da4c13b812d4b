//! A placement in the making: what its keywords retrieved, what was scored, and whether it stays. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use endcap_schemas::{Keyword, Placement, Product, ShownProduct, Theme};
use serde_json::{Value, json};

use crate::AiqaConfig;

/// A placement in the making.
#[derive(Debug, Clone, PartialEq)]
pub struct Slate {
    /// Its theme.
    pub theme: Theme,
    /// Its keywords.
    pub keywords: Vec<Keyword>,
    /// What is judged, best match first; at most `products_max`.
    pub products: Vec<Arc<Product>>,
    /// Probability of relevance of `products`, as far as they were judged.
    pub scores: Vec<f32>,
    /// Distinct products behind the keywords.
    pub retrieved: usize,
    /// Products that a banned term kept out.
    pub banned: usize,
    /// Products that came later: from the keywords that stayed, and from the concepts' categories.
    pub widened: usize,
    /// Keywords that brought too little that is relevant.
    pub given_up: Vec<Keyword>,
    /// Products that were judged and went with those keywords, as no other brought them.
    pub gone: usize,
}

/// What judging says about a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Kept,
    /// Too few products are relevant.
    TooFew,
    /// Too small a share of them is.
    TooMixed,
}

impl Fate {
    /// The fate as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Fate::Kept => "kept",
            Fate::TooFew => "too_few_products",
            Fate::TooMixed => "too_mixed",
        }
    }
}

impl Slate {
    /// The slate of a theme whose keywords found `found`, a list per keyword; `banned` of their products were kept out.
    pub fn new(theme: Theme, keywords: Vec<Keyword>, found: &[Vec<Arc<Product>>], banned: usize, config: &AiqaConfig) -> Self {
        let mut products = interleave(found);
        let retrieved = products.len();
        products.truncate(config.products_max);
        Self { theme, keywords, products, scores: Vec::new(), retrieved, banned, widened: 0, given_up: Vec::new(), gone: 0 }
    }

    /// How the slate fares.
    pub fn fate(&self, config: &AiqaConfig) -> Fate {
        let relevant = self.relevant(config).count();
        if relevant < config.products_min {
            Fate::TooFew
        } else if (relevant as f64) < config.share_min * self.products.len() as f64 {
            Fate::TooMixed
        } else {
            Fate::Kept
        }
    }

    /// Gives up the keywords that brought too small a share of relevant products, and what they alone brought; answers which of `found`, the
    /// lists of its keywords, are left. Where no keyword is better, all stay.
    pub fn correct(&mut self, found: Vec<Vec<Arc<Product>>>, config: &AiqaConfig) -> Vec<Vec<Arc<Product>>> {
        let relevant: HashMap<&str, bool> = self
            .products
            .iter()
            .zip(&self.scores)
            .map(|(product, score)| (product.id.as_str(), *score >= config.threshold()))
            .collect();
        let is_good = |list: &Vec<Arc<Product>>| {
            let judged: Vec<bool> = list.iter().filter_map(|product| relevant.get(product.id.as_str()).copied()).collect();
            let right = judged.iter().filter(|relevant| **relevant).count();
            right > 0 && right as f64 >= config.share_min * judged.len() as f64
        };
        let good: Vec<bool> = found.iter().map(is_good).collect();
        if good.iter().all(|good| !good) {
            return found;
        }
        let left: Vec<Vec<Arc<Product>>> =
            found.into_iter().zip(&good).filter(|(_, good)| **good).map(|(list, _)| list).collect();
        let brought: HashSet<&str> = left.iter().flatten().map(|product| product.id.as_str()).collect();
        let judged_before = self.scores.len();
        let judged = std::mem::take(&mut self.products).into_iter().zip(std::mem::take(&mut self.scores));
        (self.products, self.scores) = judged.filter(|(product, _)| brought.contains(product.id.as_str())).unzip();
        self.gone += judged_before - self.scores.len();
        let keywords = std::mem::take(&mut self.keywords).into_iter().zip(good);
        for (keyword, good) in keywords {
            if good { &mut self.keywords } else { &mut self.given_up }.push(keyword);
        }
        self.retrieved = brought.len();
        left
    }

    /// Adds what `more` holds, up to the limit.
    pub fn widen(&mut self, more: &[Vec<Arc<Product>>], config: &AiqaConfig) {
        let room = config.products_max.saturating_sub(self.products.len());
        let known: HashSet<&str> = self.products.iter().map(|product| product.id.as_str()).collect();
        let is_new = |product: &Arc<Product>| !known.contains(product.id.as_str());
        let new: Vec<Arc<Product>> = interleave(more).into_iter().filter(is_new).take(room).collect();
        self.widened += new.len();
        self.products.extend(new);
    }

    /// The placement with its relevant products, best first; equals stay in the order of retrieval.
    pub fn placement(&self, config: &AiqaConfig) -> Placement {
        let mut shown: Vec<ShownProduct> = self
            .relevant(config)
            .map(|(product, score)| ShownProduct { product: product.id.clone(), score: f64::from(score) })
            .collect();
        shown.sort_by(|a, b| b.score.total_cmp(&a.score));
        let retrieved = i32::try_from(self.retrieved).unwrap_or(i32::MAX);
        Placement { theme: self.theme.clone(), keywords: self.keywords.clone(), products: shown, retrieved }
    }

    /// Products that were judged irrelevant.
    pub fn pruned(&self, config: &AiqaConfig) -> usize {
        self.scores.len() - self.relevant(config).count()
    }

    /// What is told about it.
    pub fn explained(&self, config: &AiqaConfig) -> Value {
        let scored = |(product, score): (&Arc<Product>, &f32)| json!({ "id": product.id, "name": product.name, "score": score, "relevant": *score >= config.threshold() });
        json!({
            "title": self.theme.title,
            "origin": self.theme.origin,
            "keywords": self.keywords.iter().map(|keyword| keyword.text.as_str()).collect::<Vec<_>>(),
            "given_up": self.given_up.iter().map(|keyword| keyword.text.as_str()).collect::<Vec<_>>(),
            "fate": self.fate(config).label(),
            "retrieved": self.retrieved,
            "widened": self.widened,
            "pruned": { "irrelevant": self.pruned(config), "with_keywords": self.gone, "banned": self.banned },
            "products": self.products.iter().zip(&self.scores).map(scored).collect::<Vec<_>>(),
        })
    }

    fn relevant(&self, config: &AiqaConfig) -> impl Iterator<Item = (&Arc<Product>, f32)> {
        let threshold = config.threshold();
        self.products.iter().zip(self.scores.iter().copied()).filter(move |(_, score)| *score >= threshold)
    }
}

/// Takes one product of each list in turn, so that every keyword has its say; each product once.
pub fn interleave(lists: &[Vec<Arc<Product>>]) -> Vec<Arc<Product>> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let mut seen = HashSet::new();
    (0..longest)
        .flat_map(|row| lists.iter().filter_map(move |list| list.get(row)))
        .filter(|product| seen.insert(product.id.as_str()))
        .cloned()
        .collect()
}
