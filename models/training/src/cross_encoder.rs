//! The cross-encoder: starts from the distilled encoder and learns which products belong to a theme.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use candle_core::Tensor;
use endcap_engine::{Tokenizer, ops};
use endcap_inference::prompts;
use endcap_schemas::Product;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Result, RunReport, RunSettings, Surroundings, TrainError,
    bert::{BertShape, Packed},
    card::{Card, write_model},
    files::Tensors,
    params::{Params, Weights},
    run,
    source::Source,
    step::{Loss, Scores, Task, heed, spread},
    strange,
    words::{Distilled, embedding},
};

/// How the cross-encoder is made.
pub struct CrossEncoderRun {
    /// Budget, seed, threads.
    pub settings: RunSettings,
    /// Directory of the distilled encoder.
    pub encoder: PathBuf,
    /// Directory of a finished cross-encoder to go on from, with another market; `None` starts from the encoder's words.
    pub from: Option<PathBuf>,
    /// Directory of the result.
    pub out: PathBuf,
}

const CLASSIFIER: &str = "classifier.weight";
const CLASSIFIER_BIAS: &str = "classifier.bias";
/// Heads of the questions that are asked in training only: the product's category, and its place among the theme's concepts.
const CATEGORY_HEAD: &str = "category_head";
const PLACE_HEAD: &str = "place_head";
/// First, second, third concept, none of them.
const PLACES: usize = 4;
const CATEGORY_WEIGHT: f64 = 0.3;
const PLACE_WEIGHT: f64 = 0.5;
const LAYERS: usize = 2;
/// Weight of a word's own features in the first block's queries and keys.
const COMPARER: f32 = 1.0;
const INNER: usize = 512;
/// Longest pair in tokens.
const TOKENS_MAX: usize = 96;
/// Precision that the threshold is set for, and the lowest threshold: below even odds nothing passes.
const PRECISION: f64 = 0.9;
const THRESHOLD_MIN: f32 = 0.5;
/// One product in so many is never seen in training.
const HELD_OUT_ONE_IN: u64 = 10;
const EXAMINED: usize = 1_200;
const BATCH: usize = 60;

/// Trains the cross-encoder and writes it with its threshold.
///
/// # Errors
/// Files that cannot be read or written, a loss that is no number.
pub fn train_cross_encoder(
    run: &CrossEncoderRun,
    source: &Source,
    tokenizer: &Tokenizer,
    around: &mut Surroundings<'_>,
) -> Result<RunReport> {
    let mut rng = ChaCha8Rng::seed_from_u64(run.settings.seed);
    // Words only: the encoder's blocks blend a text into one meaning, and here two texts must stay apart to be compared.
    let encoder = Distilled::read(&run.encoder, tokenizer)?;
    let shape = BertShape { layers: LAYERS, inner: INNER, ..encoder.shape };
    let mut params = match &run.from {
        Some(folder) => read_cross_encoder(folder, shape)?,
        None => {
            let mut params = shape.init(&mut rng);
            let words = params.get_mut("word").expect("an encoder has words");
            words.value = embedding(&encoder, tokenizer, &mut rng)?;
            compare_words(&mut params, shape);
            params.push_normal(CLASSIFIER, &[1, shape.hidden], 0.05, &mut rng);
            params.push_full(CLASSIFIER_BIAS, &[1], 0.0);
            params
        }
    };
    // Two questions beside the real one, asked in training only: one bit per pair teaches slowly.
    params.push_normal(CATEGORY_HEAD, &[source.market.categories.len(), shape.hidden], 0.05, &mut rng);
    params.push_normal(PLACE_HEAD, &[PLACES, shape.hidden], 0.05, &mut rng);
    let held_out = source.market.products.iter().filter(|product| Relevance::is_held_out(product)).count();
    if held_out == 0 || held_out == source.market.products.len() {
        let count = source.market.products.len();
        return Err(TrainError::Setting(format!("{count} products are too few to hold some out: import a larger catalogue")));
    }
    let task = Relevance {
        shape,
        source,
        tokenizer,
        words: strange::words(source),
        tokens: run.settings.micro_tokens,
        threads: run.settings.threads,
    };
    let mut report = run::train(&task, &mut params, &run.settings, around)?;
    let weights = params.weights()?;
    let threshold = threshold(&task.examine(&weights, 1, Leaf::Named, around.stop)?);
    report.scores.push(("threshold".into(), f64::from(threshold)));
    let config = serde_json::json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types, "num_labels": 1, "pad_token_id": 0, "torch_dtype": "bfloat16",
        "endcap_pooling": "second_segment_mean", "endcap_threshold": threshold,
    });
    let card = Card {
        title: "Cross-encoder of the embedded default",
        made: format!(
            "A BERT of {} layers × {}, {}, trained on pairs of a theme and a product of {}; read at the mean of the product's tokens. \
             A third of the products came without their category's name, so that their own name must carry it; a third of the pairs had strange names in place of \
             categories, so that it compares words that it does not know. One product in {HELD_OUT_ONE_IN} was never seen. \
             The threshold is the lowest from {THRESHOLD_MIN} on with a precision of {PRECISION} on held-out products.",
            shape.layers,
            shape.hidden,
            if run.from.is_some() { "gone on from a finished cross-encoder" } else { "its words from the distilled encoder" },
            source.name
        ),
        command: if run.from.is_some() { "endcap train cross-encoder --from DIR" } else { "endcap train cross-encoder" },
        not_for: "Products beyond a grocery market's words, themes whose concepts are no categories of its market, judging quality, safety or diets: \
                  it knows belonging only.",
        source,
        settings: &run.settings,
        report: &report,
    };
    let mut tensors: Vec<_> =
        shape.export(&params).into_iter().map(|(name, size, values)| (format!("bert.{name}"), size, values)).collect();
    for name in [CLASSIFIER, CLASSIFIER_BIAS] {
        let param = params.get(name).expect("the classifier was added above");
        tensors.push((name.into(), param.shape.clone(), param.value.clone()));
    }
    write_model(&run.out, &config, tokenizer, &tensors, &card)?;
    Ok(report)
}

/// Lets the first block begin as a comparer of words: queries and keys are the words themselves, so that a word looks at its equals. From
/// random matrices this was not found in four million tokens: strange leaves stayed at even odds.
fn compare_words(params: &mut Params, shape: BertShape) {
    let matrix = params.get_mut("layer.0.qkv").expect("a block has queries and keys");
    for row in 0..2 * shape.hidden {
        matrix.value[row * shape.hidden + row % shape.hidden] += COMPARER;
    }
}

/// Reads a finished cross-encoder.
fn read_cross_encoder(folder: &Path, shape: BertShape) -> Result<Params> {
    let tensors = Tensors::read(&folder.join("model.safetensors"))?;
    let mut params = shape.import(&tensors)?;
    for name in [CLASSIFIER, CLASSIFIER_BIAS] {
        let (size, values) = tensors.get(name)?;
        params.push(name, &size, values);
    }
    Ok(params)
}

struct Relevance<'a> {
    shape: BertShape,
    source: &'a Source,
    tokenizer: &'a Tokenizer,
    /// Words that strange leaves are named with.
    words: Vec<String>,
    tokens: usize,
    threads: usize,
}

/// How a pair shows its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    /// By its name, as the AIQA stage sends it.
    Named,
    /// Not at all: the product's own name must carry it.
    Missing,
    /// By a name that no market has.
    Strange,
}

/// Packed pairs: the rows of the products' side, and whether each product is relevant.
struct Pairs {
    packed: Packed,
    product: Vec<bool>,
    relevant: Vec<f32>,
    category: Vec<u32>,
    /// Whether the category is one of the market's.
    known: Vec<f32>,
    place: Vec<u32>,
}

impl Relevance<'_> {
    fn is_held_out(product: &Product) -> bool {
        endcap_market::hash(&product.id).is_multiple_of(HELD_OUT_ONE_IN)
    }

    /// Adds a pair of held-out or seen products.
    fn push(&self, pairs: &mut Pairs, held_out: bool, leaf: Leaf, rng: &mut ChaCha8Rng) -> Result<()> {
        let (mut theme, mut product, relevant) = loop {
            let pair = self.source.samples.pair(rng);
            if Self::is_held_out(&pair.1) == held_out {
                break pair;
            }
        };
        if leaf == Leaf::Strange {
            strange::rename(&mut theme, &mut product, &self.words, rng);
        }
        let text = if leaf == Leaf::Missing { prompts::plain(&product.name) } else { prompts::product_text(&product) };
        let pair = self
            .tokenizer
            .encode_pair(&prompts::theme_text(&theme), &text, TOKENS_MAX)
            .map_err(|error| TrainError::Tokenizer(error.to_string()))?;
        pairs.packed.push(&pair.ids, Some(&pair.types));
        pairs.product.extend(pair.types.iter().map(|kind| *kind == 1));
        pairs.relevant.push(f32::from(relevant));
        let place = theme.concepts.iter().position(|concept| concept == product.category()).unwrap_or(PLACES);
        pairs.place.push(place.min(PLACES - 1) as u32);
        let category = self.source.market.categories.iter().position(|category| category.name == product.category());
        pairs.category.push(category.unwrap_or(0) as u32);
        pairs.known.push(f32::from(category.is_some()));
        Ok(())
    }

    /// Mean of the product's rows, `[pairs, hidden]`.
    fn pooled(&self, weights: &Weights, pairs: &Pairs) -> Result<Tensor> {
        let hidden = self.shape.hidden(weights, &pairs.packed)?;
        Ok(ops::segment_mean(&hidden, &pairs.packed.segments(), |row| pairs.product[row])?)
    }

    /// Logits of relevance, `[pairs, 1]`.
    fn logits(weights: &Weights, pooled: &Tensor) -> Result<Tensor> {
        Ok(ops::linear_t(pooled, weights.get(CLASSIFIER), Some(weights.get(CLASSIFIER_BIAS)))?)
    }

    /// Logits and labels of pairs with held-out products.
    fn examine(&self, weights: &Weights, seed: u64, leaf: Leaf, stop: &AtomicBool) -> Result<Vec<(f32, bool)>> {
        let batches = spread(EXAMINED / BATCH, self.threads, |batch| -> Result<Vec<(f32, bool)>> {
            heed(stop)?;
            let mut rng = ChaCha8Rng::seed_from_u64(seed * 1_000 + batch as u64);
            let mut pairs = Pairs::default();
            for _ in 0..BATCH {
                self.push(&mut pairs, true, leaf, &mut rng)?;
            }
            let logits: Vec<f32> = Self::logits(weights, &self.pooled(weights, &pairs)?)?.flatten_all()?.to_vec1()?;
            Ok(logits.into_iter().zip(pairs.relevant.iter().map(|y| *y > 0.5)).collect())
        });
        let mut all = Vec::with_capacity(EXAMINED);
        for batch in batches {
            all.extend(batch?);
        }
        Ok(all)
    }
}

impl Default for Pairs {
    fn default() -> Self {
        Self {
            packed: Packed::new(),
            product: Vec::new(),
            relevant: Vec::new(),
            category: Vec::new(),
            known: Vec::new(),
            place: Vec::new(),
        }
    }
}

impl Task for Relevance<'_> {
    type Micro = Pairs;

    fn data(&self) -> &str {
        &self.source.name
    }

    fn micro(&self, _: f32, rng: &mut ChaCha8Rng) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        while pairs.packed.ids.len() < self.tokens {
            let leaf = [Leaf::Named, Leaf::Missing, Leaf::Strange][rng.random_range(0..3)];
            self.push(&mut pairs, false, leaf, rng)?;
        }
        Ok(pairs)
    }

    fn loss(&self, weights: &Weights, pairs: &Pairs) -> Result<Loss> {
        let count = pairs.relevant.len();
        let even = vec![1.0; count];
        let pooled = self.pooled(weights, pairs)?;
        let aside = |head: &str, targets: &[u32], which: &[f32]| -> Result<Tensor> {
            Ok((ops::cross_entropy(&ops::linear_t(&pooled, weights.get(head), None)?, targets, which)? / count as f64)?)
        };
        let relevance = (ops::binary_cross_entropy(&Self::logits(weights, &pooled)?, &pairs.relevant, &even)? / count as f64)?;
        let (category, place) = (aside(CATEGORY_HEAD, &pairs.category, &pairs.known)?, aside(PLACE_HEAD, &pairs.place, &even)?);
        let parts =
            vec![("relevance", relevance.to_scalar()?), ("category", category.to_scalar()?), ("place", place.to_scalar()?)];
        let total = ((relevance + (category * CATEGORY_WEIGHT)?)? + (place * PLACE_WEIGHT)?)?;
        Ok(Loss { total, parts, tokens: pairs.packed.ids.len() })
    }

    fn scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
        let right = |pairs: &[(f32, bool)]| {
            pairs.iter().filter(|(logit, relevant)| (*logit > 0.0) == *relevant).count() as f64 / pairs.len() as f64
        };
        let named = self.examine(weights, 2, Leaf::Named, stop)?;
        let bare = self.examine(weights, 3, Leaf::Missing, stop)?;
        let strange = self.examine(weights, 4, Leaf::Strange, stop)?;
        let base = named.iter().filter(|(_, relevant)| *relevant).count() as f64 / named.len() as f64;
        Ok(vec![
            ("accuracy".into(), right(&named)),
            ("accuracy without category".into(), right(&bare)),
            ("accuracy with strange leaves".into(), right(&strange)),
            ("share of relevant pairs".into(), base),
        ])
    }
}

/// The lowest threshold (from [`THRESHOLD_MIN`] on) that keeps [`PRECISION`] over `pairs` of logit and label.
fn threshold(pairs: &[(f32, bool)]) -> f32 {
    let mut pairs: Vec<(f32, bool)> = pairs.iter().map(|(logit, relevant)| (1.0 / (1.0 + (-logit).exp()), *relevant)).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut right, mut best) = (0, 1.0);
    for (i, (probability, relevant)) in pairs.iter().enumerate() {
        right += usize::from(*relevant);
        if f64::from(right as u32) >= PRECISION * (i + 1) as f64 {
            best = *probability;
        }
    }
    best.max(THRESHOLD_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_keeps_the_precision_and_never_falls_below_even_odds() {
        let logit = |p: f32| (p / (1.0 - p)).ln();
        // Ten right ones, then wrong ones from 0.7 down.
        let mut pairs: Vec<(f32, bool)> = (0..10).map(|i| (logit(0.9 - 0.01 * i as f32), true)).collect();
        assert_eq!(threshold(&pairs), 0.81f32.max(threshold(&pairs)).min(0.811));
        pairs.extend((0..10).map(|i| (logit(0.7 - 0.01 * i as f32), false)));
        assert!((threshold(&pairs) - 0.7).abs() < 1e-3, "one wrong of eleven is still 0.909");
        let all_right: Vec<(f32, bool)> = (1..9).map(|i| (logit(0.1 * i as f32), true)).collect();
        assert_eq!(threshold(&all_right), 0.5);
    }
}
