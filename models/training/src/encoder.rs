//! The small encoder: distilled from a teacher encoder, on the market's texts and on word combinations that the market lacks.

use std::{collections::HashSet, path::PathBuf, sync::atomic::AtomicBool};

use candle_core::{Device, Tensor};
use endcap_engine::{Tokenizer, ops};
use endcap_inference::prompts;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Result, RunReport, RunSettings, Surroundings,
    bert::{BertShape, Packed},
    card::{Card, write_model},
    linear_map::{dot, principal_directions, project, unit},
    params::{Params, Weights},
    run,
    source::{Source, encode_single},
    step::{Loss, Scores, Task, heed},
    teacher::{Teacher, embed},
};

/// How the small encoder is made.
pub struct EncoderRun {
    /// Budget, seed, threads.
    pub settings: RunSettings,
    /// Directory of the teacher (all-MiniLM-L6-v2).
    pub teacher: PathBuf,
    /// Directory of the result.
    pub out: PathBuf,
    /// How far a term's target is led from the teacher's vector towards its category's name: 0 copies the teacher.
    pub lead: f32,
    /// Texts composed of the market's words, for coverage.
    pub composed: usize,
}

/// Longest text in tokens.
pub(crate) const TOKENS_MAX: usize = 48;
/// Weight of the loss between similarity matrices, beside that of the cosine.
const SIMILARITY_WEIGHT: f64 = 4.0;
const NEIGHBOURS: usize = 10;
const PURITY_NEIGHBOURS: usize = 64;
const HELD_OUT_MAX: usize = 600;
/// Texts beside terms that the teacher is asked about.
const OTHERS_MAX: usize = 40_000;

/// Sizes of the demo's encoder for a vocabulary.
pub fn encoder_shape(vocabulary: usize) -> BertShape {
    BertShape { vocabulary, hidden: 256, inner: 1_024, layers: 3, heads: 8, positions: 128, types: 2 }
}

/// Trains the encoder and writes it.
///
/// # Errors
/// Files that cannot be read or written, a teacher that is no BERT, a loss that is no number.
pub fn train_encoder(
    run: &EncoderRun,
    source: &Source,
    tokenizer: &Tokenizer,
    around: &mut Surroundings<'_>,
) -> Result<RunReport> {
    let shape = encoder_shape(tokenizer.vocabulary_size());
    let task = Distil::new(run, source, tokenizer, shape, around)?;
    let mut params = shape.init(&mut ChaCha8Rng::seed_from_u64(run.settings.seed));
    let report = run::train(&task, &mut params, &run.settings, around)?;
    let config = serde_json::json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types, "pad_token_id": 0, "torch_dtype": "bfloat16", "endcap_pooling": "mean",
    });
    let card = Card {
        title: "Encoder of the embedded default",
        made: format!(
            "A BERT of {} layers × {} (inner {}), mean pooled, distilled from all-MiniLM-L6-v2: its vectors, projected to {} dimensions, \
             each term's led towards its category's name by {}. Texts: terms, names and titles of {}, and {} combinations of its words.",
            shape.layers, shape.hidden, shape.inner, shape.hidden, run.lead, source.name, run.composed
        ),
        command: "endcap train encoder --teacher DIR",
        not_for: "Texts beyond a grocery market's words, other languages, sentences. Terms outside the demo market's vocabulary are spelled in \
                  fragments and land anywhere.",
        source,
        settings: &run.settings,
        report: &report,
    };
    write_model(&run.out, &config, tokenizer, &shape.export(&params), &card)?;
    Ok(report)
}

/// Reads a finished encoder's weights.
pub(crate) fn read_encoder(folder: &std::path::Path, vocabulary: usize) -> Result<(BertShape, Params)> {
    let shape = encoder_shape(vocabulary);
    let params = shape.import(&crate::files::Tensors::read(&folder.join("model.safetensors"))?)?;
    Ok((shape, params))
}

/// Vectors of texts by a small encoder.
pub(crate) fn vectors(
    shape: &BertShape,
    weights: &Weights,
    tokenizer: &Tokenizer,
    texts: &[&str],
    threads: usize,
) -> Result<Vec<Vec<f32>>> {
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| encode_single(tokenizer, text, TOKENS_MAX)).collect::<Result<_>>()?;
    embed(shape, weights, &ids, threads)
}

struct Distil {
    data: String,
    shape: BertShape,
    tokens: usize,
    threads: usize,
    /// Token ids and target of each training text.
    texts: Vec<(Vec<u32>, Vec<f32>)>,
    held_out: Vec<(Vec<u32>, Vec<f32>)>,
    /// Neighbours of each held-out text among `pool`, by target.
    neighbours: Vec<HashSet<usize>>,
    /// Every term of the market: ids, target, category.
    terms: Vec<(Vec<u32>, Vec<f32>, Option<usize>)>,
    /// Names of the categories.
    names: Vec<Vec<u32>>,
}

impl Distil {
    fn new(
        run: &EncoderRun,
        source: &Source,
        tokenizer: &Tokenizer,
        shape: BertShape,
        around: &mut Surroundings<'_>,
    ) -> Result<Self> {
        let threads = run.settings.threads;
        let terms: Vec<String> = source.market.terms.iter().map(|term| prompts::plain(&term.text)).collect();
        let others = other_texts(run, source, &terms);
        let names: Vec<String> = source.market.categories.iter().map(|category| prompts::plain(&category.name)).collect();
        (around.say)(&format!("teacher reads {} terms, {} other texts, {} names", terms.len(), others.len(), names.len()));
        let teacher = Teacher::read(&run.teacher)?;
        let all: Vec<String> = terms.iter().chain(&others).chain(&names).cloned().collect();
        let mut targets = teacher.vectors(&all, threads)?;
        let plain_names = targets.split_off(terms.len() + others.len());
        let plain_terms = targets[..terms.len()].to_vec();
        for (target, category) in targets.iter_mut().zip(&source.categories) {
            if let Some(category) = category {
                target.iter_mut().zip(&plain_names[*category]).for_each(|(x, name)| *x += run.lead * name);
                *target = unit(std::mem::take(target));
            }
        }
        (around.say)(&format!(
            "purity of the {PURITY_NEIGHBOURS} terms nearest to a category's name: teacher {:.3}, targets {:.3}",
            purity(&plain_names, &plain_terms, &source.categories),
            purity(&plain_names, &targets[..terms.len()], &source.categories),
        ));
        let basis = principal_directions(&targets, shape.hidden);
        let encode = |text: &String| encode_single(tokenizer, text, TOKENS_MAX);
        let mut rows = Vec::with_capacity(targets.len());
        for (text, target) in all.iter().zip(&targets) {
            rows.push((encode(text)?, project(&basis, target)));
        }
        let term_rows: Vec<_> = rows[..terms.len()]
            .iter()
            .zip(&source.categories)
            .map(|((ids, target), category)| (ids.clone(), target.clone(), *category))
            .collect();
        let held: Vec<usize> = (0..terms.len()).filter(|i| source.held_out[*i]).take(HELD_OUT_MAX).collect();
        let held_out: Vec<_> = held.iter().map(|i| rows[*i].clone()).collect();
        let neighbours =
            held.iter().map(|i| nearest(&rows[*i].1, term_rows.iter().map(|row| &row.1), NEIGHBOURS, Some(*i))).collect();
        let mut texts: Vec<_> =
            rows.into_iter().enumerate().filter(|(i, _)| *i >= terms.len() || !source.held_out[*i]).map(|(_, row)| row).collect();
        // A category's name is what concepts are: it counts as often as its terms do together.
        for (name, target) in names.iter().zip(&plain_names) {
            let row = (encode(name)?, project(&basis, target));
            texts.extend(std::iter::repeat_n(row, 20));
        }
        let names = names.iter().map(encode).collect::<Result<_>>()?;
        Ok(Self {
            data: source.name.clone(),
            shape,
            tokens: run.settings.micro_tokens,
            threads,
            texts,
            held_out,
            neighbours,
            terms: term_rows,
            names,
        })
    }
}

/// Texts that are no terms: product names, titles with concepts, and combinations of words from different terms.
fn other_texts(run: &EncoderRun, source: &Source, terms: &[String]) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(run.settings.seed ^ 0x7e87);
    // Prompts and documents, the only texts with marks, are no encoder's food.
    let plain = source.samples.texts(run.composed / 20, run.settings.seed).filter(|text| !text.contains(['<', '{']));
    let mut texts: HashSet<String> = plain.collect();
    let mut left = run.composed;
    while left > 0 {
        left -= 1;
        let mut pick = || &terms[rng.random_range(0..terms.len())];
        let (a, b) = (pick(), pick());
        let (first, last) = (a.split(' ').next().unwrap_or(a), b.rsplit(' ').next().unwrap_or(b));
        texts.insert(if left.is_multiple_of(3) { format!("{a} {b}") } else { format!("{first} {last}") });
    }
    terms.iter().for_each(|term| {
        texts.remove(term);
    });
    texts.remove("");
    let mut texts: Vec<String> = texts.into_iter().collect();
    texts.sort();
    let step = texts.len().div_ceil(OTHERS_MAX).max(1);
    texts.into_iter().step_by(step).collect()
}

impl Task for Distil {
    type Micro = (Packed, Vec<f32>);

    fn data(&self) -> &str {
        &self.data
    }

    fn micro(&self, _: f32, rng: &mut ChaCha8Rng) -> Result<Self::Micro> {
        let (mut batch, mut targets) = (Packed::new(), Vec::new());
        while batch.ids.len() < self.tokens {
            let (ids, target) = &self.texts[rng.random_range(0..self.texts.len())];
            batch.push(ids, None);
            targets.extend_from_slice(target);
        }
        Ok((batch, targets))
    }

    fn loss(&self, weights: &Weights, (batch, targets): &Self::Micro) -> Result<Loss> {
        let hidden = self.shape.hidden(weights, batch)?;
        let rows = batch.lengths.len();
        let pooled = ops::l2_normalise(&ops::segment_mean(&hidden, &batch.segments(), |_| true)?)?;
        let targets = Tensor::from_slice(targets, (rows, self.shape.hidden), &Device::Cpu)?;
        let cosine = ops::cosine_loss(&pooled, &targets)?;
        let similarity = ops::mse_loss(&pooled.matmul(&pooled.t()?)?, &targets.matmul(&targets.t()?)?)?;
        let parts = vec![("cosine", cosine.to_scalar()?), ("similarity", similarity.to_scalar()?)];
        Ok(Loss { total: (cosine + (similarity * SIMILARITY_WEIGHT)?)?, parts, tokens: batch.ids.len() })
    }

    fn scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
        let all = |ids: Vec<Vec<u32>>| {
            heed(stop)?;
            embed(&self.shape, weights, &ids, self.threads)
        };
        let terms = all(self.terms.iter().map(|term| term.0.clone()).collect())?;
        let held = all(self.held_out.iter().map(|text| text.0.clone()).collect())?;
        let names = all(self.names.clone())?;
        let count = held.len().max(1) as f64;
        let cosine: f64 = held.iter().zip(&self.held_out).map(|(ours, (_, target))| f64::from(dot(ours, target))).sum();
        let found: usize = held
            .iter()
            .zip(&self.neighbours)
            .map(|(ours, expected)| nearest(ours, terms.iter(), NEIGHBOURS + 1, None).intersection(expected).count())
            .sum();
        let categories: Vec<_> = self.terms.iter().map(|term| term.2).collect();
        Ok(vec![
            ("cosine to target".into(), cosine / count),
            (format!("recall@{NEIGHBOURS}"), found as f64 / (count * NEIGHBOURS as f64)),
            (format!("category purity@{PURITY_NEIGHBOURS}"), purity(&names, &terms, &categories)),
        ])
    }
}

/// Indexes of the `count` rows nearest to `to`, without `but`.
fn nearest<'a>(to: &[f32], rows: impl Iterator<Item = &'a Vec<f32>>, count: usize, but: Option<usize>) -> HashSet<usize> {
    ranked(to, rows, count, but).into_iter().collect()
}

pub(crate) fn ranked<'a>(to: &[f32], rows: impl Iterator<Item = &'a Vec<f32>>, count: usize, but: Option<usize>) -> Vec<usize> {
    let mut all: Vec<(f32, usize)> =
        rows.enumerate().filter(|(i, _)| Some(*i) != but).map(|(i, row)| (dot(to, row), i)).collect();
    let count = count.min(all.len());
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    all.select_nth_unstable_by(count - 1, order);
    all.truncate(count);
    all.sort_by(order);
    all.into_iter().map(|(_, i)| i).collect()
}

/// Share of the nearest terms of each category's name that belong to it, of as many as the category has.
fn purity(names: &[Vec<f32>], terms: &[Vec<f32>], categories: &[Option<usize>]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (category, name) in names.iter().enumerate() {
        let size = categories.iter().filter(|c| **c == Some(category)).count().min(PURITY_NEIGHBOURS);
        if size == 0 {
            continue;
        }
        let right = nearest(name, terms.iter(), size, None).into_iter().filter(|i| categories[*i] == Some(category)).count();
        sum += right as f64 / size as f64;
        count += 1;
    }
    sum / f64::from(count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purity_is_the_share_of_right_neighbours() {
        let (x, y) = (vec![1.0, 0.0], vec![0.0, 1.0]);
        let terms = [x.clone(), unit(vec![0.9, 0.1]), y.clone(), unit(vec![0.8, 0.2])];
        let categories = [Some(0), Some(0), Some(1), Some(1)];
        // Category 0: its two nearest are its own. Category 1: (0, 1) is its own, (0.8, 0.2) is nearer to it than the others.
        assert_eq!(purity(&[x.clone(), y.clone()], &terms, &categories), 1.0);
        assert_eq!(purity(&[y, x], &terms, &categories), 0.0);
    }

    #[test]
    fn the_nearest_come_best_first_and_ties_by_place() {
        let rows = [vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 0.0], vec![0.7, 0.7]];
        assert_eq!(ranked(&[1.0, 0.0], rows.iter(), 3, None), [0, 2, 3]);
        assert_eq!(ranked(&[1.0, 0.0], rows.iter(), 9, Some(0)), [2, 3, 1]);
    }
}
