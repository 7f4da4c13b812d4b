//! What the models learn from: a market, its terms, its merchandiser.

use std::{collections::HashMap, sync::Arc};

use endcap_engine::{Tokenizer, demo_tokenizer};
use endcap_market::{DEMO_SEED, Market, Merchandiser, Samples, held_out};
use endcap_schemas::Term;

use crate::{Result, TrainError};

/// Largest vocabulary of the demo tokenizer.
const VOCABULARY_MAX: usize = 4_096;
/// Pages whose wording the tokenizer sees.
const TOKENIZER_PAGES: usize = 400;

/// A market with what training asks of it. Any market fits: the demo's or an imported one.
pub struct Source {
    /// Which market it is, for the models' cards.
    pub(crate) name: String,
    pub(crate) market: Arc<Market>,
    pub(crate) samples: Samples,
    pub(crate) merchandiser: Merchandiser,
    /// Category of each term, as an index into the market's categories.
    pub(crate) categories: Vec<Option<usize>>,
    /// Whether training never sees the term.
    pub(crate) held_out: Vec<bool>,
    /// Per category `(cosine, term)`, nearest first, where an index has told.
    pub(crate) nearest: Option<Vec<Vec<(f32, usize)>>>,
}

impl Source {
    /// A source over the demo market.
    pub fn demo() -> Self {
        Self::new("the demo market", Arc::new(Market::generate(DEMO_SEED)))
    }

    /// A source over `market`, which cards call `name`.
    pub fn new(name: &str, market: Arc<Market>) -> Self {
        let index: HashMap<&str, usize> =
            market.categories.iter().enumerate().map(|(i, category)| (category.name.as_str(), i)).collect();
        let categories = market.terms.iter().map(|term| index.get(term.category.as_deref()?).copied()).collect();
        let held_out = market.terms.iter().map(held_out).collect();
        let (samples, merchandiser) = (Samples::new(market.clone()), market.merchandiser());
        Self { name: name.to_owned(), samples, merchandiser, categories, held_out, nearest: None, market }
    }

    /// With the nearest terms of every category's name, as an index finds them: per category `(cosine, index of the term)`, nearest first.
    /// Without it training compares every term with every category.
    ///
    /// # Panics
    /// When it is not one list per category.
    pub fn with_nearest(self, nearest: Vec<Vec<(f32, usize)>>) -> Self {
        assert_eq!(nearest.len(), self.market.categories.len(), "one list per category");
        Self { nearest: Some(nearest), ..self }
    }

    /// Which market it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The market.
    pub fn market(&self) -> &Market {
        &self.market
    }

    /// Terms that training may see, with their indexes.
    pub(crate) fn seen_terms(&self) -> impl Iterator<Item = (usize, &Term)> {
        self.market.terms.iter().enumerate().filter(|(i, _)| !self.held_out[*i])
    }

    /// Whether the term's category is for adults only.
    pub(crate) fn is_age_restricted(&self, term: usize) -> bool {
        self.categories[term].is_some_and(|category| self.market.categories[category].age_restricted)
    }

    /// Trains the tokenizer that the demo models share.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let texts: Vec<String> = self.samples.texts(TOKENIZER_PAGES, 0).collect();
        demo_tokenizer(texts.iter().map(String::as_str), VOCABULARY_MAX).map_err(|error| TrainError::Tokenizer(error.to_string()))
    }
}

/// Ids of `text` without frame.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    tokenizer.encode(text).map_err(|error| TrainError::Tokenizer(error.to_string()))
}

/// Ids of `text` in an encoder's frame.
pub(crate) fn encode_single(tokenizer: &Tokenizer, text: &str, tokens_max: usize) -> Result<Vec<u32>> {
    tokenizer.encode_single(text, tokens_max).map_err(|error| TrainError::Tokenizer(error.to_string()))
}

/// The id of a token that the demo tokenizer always has.
pub(crate) fn token(tokenizer: &Tokenizer, text: &'static str) -> Result<u32> {
    tokenizer.id(text).ok_or_else(|| TrainError::Tokenizer(format!("it has no token `{text}`; train it anew")))
}
