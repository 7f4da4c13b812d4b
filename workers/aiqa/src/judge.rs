//! Relevance of products to themes (paper 4.4): every distinct pair is read from the cache or asked once.

use std::{collections::HashMap, sync::Arc};

use endcap_inference::{
    Handle, Model, ModelError, Pair, Relevance, prompts,
    verdicts::{CACHE, pair, probability_of, verdict_key},
};
use endcap_runtime::{StageError, Store};

use crate::Slate;

/// Where the verdicts of a batch came from. A pair counts for the page that brought it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairCounts {
    /// Asked of the model.
    pub asked: u64,
    /// Read from the cache.
    pub cached: u64,
    /// Known from another placement of the batch.
    pub shared: u64,
    /// Refused by the model: they count as irrelevant.
    pub refused: u64,
    /// Tokens of the pairs asked.
    pub tokens: u64,
}

/// The cross-encoder and the memory of its verdicts.
pub(crate) struct Judge<R: Model<Request = Pair, Answer = Relevance>> {
    pub(crate) model: Handle<R>,
    pub(crate) store: Arc<dyn Store>,
}

/// A distinct pair of a batch.
struct Open {
    key: [u8; 32],
    pair: Pair,
    page: usize,
    score: Option<f32>,
}

impl<R: Model<Request = Pair, Answer = Relevance>> Judge<R> {
    /// Scores what is not scored yet in `slates`, each with the number of its page; `counts` has an entry per page.
    pub(crate) fn score(&self, slates: &mut [(usize, &mut Slate)], counts: &mut [PairCounts]) -> Result<(), StageError> {
        let mut open: Vec<Open> = Vec::new();
        let mut places: HashMap<[u8; 32], usize> = HashMap::new();
        let mut asked: Vec<Vec<usize>> = Vec::with_capacity(slates.len());
        for (page, slate) in slates.iter() {
            let theme_text = prompts::theme_text(&slate.theme);
            let mut own = Vec::new();
            for product in &slate.products[slate.scores.len()..] {
                let pair = pair(&theme_text, product);
                let key = verdict_key(&pair, self.model.version());
                let known = places.len();
                let place = *places.entry(key).or_insert(known);
                if place == known {
                    open.push(Open { key, pair, page: *page, score: None });
                } else {
                    counts[*page].shared += 1;
                }
                own.push(place);
            }
            asked.push(own);
        }
        self.recall(&mut open, counts)?;
        self.ask(&mut open, counts)?;
        for ((_, slate), own) in slates.iter_mut().zip(asked) {
            slate.scores.extend(own.into_iter().map(|place| open[place].score.unwrap_or(0.0)));
        }
        Ok(())
    }

    fn recall(&self, open: &mut [Open], counts: &mut [PairCounts]) -> Result<(), StageError> {
        if open.is_empty() {
            return Ok(());
        }
        let keys: Vec<[u8; 32]> = open.iter().map(|open| open.key).collect();
        for (open, cached) in open.iter_mut().zip(self.store.cached(CACHE, &keys)?) {
            open.score = cached.and_then(|bytes| probability_of(&bytes));
            counts[open.page].cached += u64::from(open.score.is_some());
        }
        Ok(())
    }

    fn ask(&self, open: &mut [Open], counts: &mut [PairCounts]) -> Result<(), StageError> {
        let missing: Vec<usize> = (0..open.len()).filter(|&i| open[i].score.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let pairs = missing.iter().map(|&i| open[i].pair.clone()).collect();
        let mut remembered = Vec::with_capacity(missing.len());
        for (i, answer) in missing.into_iter().zip(self.model.ask_all(pairs)) {
            let count = &mut counts[open[i].page];
            match answer {
                Ok(relevance) => {
                    count.asked += 1;
                    count.tokens += u64::from(relevance.tokens);
                    open[i].score = Some(relevance.probability);
                    remembered.push((open[i].key, relevance.probability.to_le_bytes().to_vec()));
                }
                Err(ModelError::Request(_)) => count.refused += 1,
                Err(error) => return Err(StageError::model("cross-encoder", &error)),
            }
        }
        Ok(self.store.remember(CACHE, &remembered)?)
    }
}
