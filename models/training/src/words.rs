//! What words mean before training begins: a distilled encoder's vectors of the tokens' own texts.

use std::path::Path;

use endcap_engine::Tokenizer;
use rand_chacha::ChaCha8Rng;

use crate::{
    BertShape, Result,
    encoder::{read_encoder, vectors},
    linear_map::unit,
    params::{Weights, normal},
};

/// A distilled encoder, frozen: where other models' words get their first meaning.
pub(crate) struct Distilled {
    pub(crate) shape: BertShape,
    pub(crate) weights: Weights,
}

impl Distilled {
    pub(crate) fn read(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let (shape, mut params) = read_encoder(folder, tokenizer.vocabulary_size())?;
        params.freeze(|_| true);
        Ok(Self { shape, weights: params.weights()? })
    }
}

/// The first embedding of every token: the encoder's vector of its text, centred, with some noise to tell neighbours apart.
pub(crate) fn embedding(encoder: &Distilled, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
    const STD: f32 = 0.04;
    const NOISE: f32 = 0.6;
    let (count, hidden) = (tokenizer.vocabulary_size(), encoder.shape.hidden);
    let texts: Vec<String> = (0..count as u32).map(|id| tokenizer.decode(&[id]).trim().to_owned()).collect();
    let words: Vec<usize> = (0..count).filter(|i| texts[*i].len() > 1 && texts[*i].chars().all(char::is_alphabetic)).collect();
    let known =
        vectors(&encoder.shape, &encoder.weights, tokenizer, &words.iter().map(|i| texts[*i].as_str()).collect::<Vec<_>>(), 1)?;
    let mut mean = vec![0f32; hidden];
    known.iter().for_each(|vector| mean.iter_mut().zip(vector).for_each(|(m, x)| *m += x / known.len() as f32));
    let mut rows: Vec<Vec<f32>> = (0..count).map(|_| unit((0..hidden).map(|_| normal(rng)).collect())).collect();
    for (word, vector) in words.iter().zip(&known) {
        let centred = unit(vector.iter().zip(&mean).map(|(x, m)| x - m).collect());
        rows[*word] = unit(rows[*word].iter().zip(&centred).map(|(noise, x)| x + NOISE * noise).collect());
    }
    let scale = STD * (hidden as f32).sqrt();
    Ok(rows.into_iter().flatten().map(|x| x * scale).collect())
}
