//! The cross-encoder (paper 4.4): whether a product belongs to a theme.

use std::path::Path;

use candle_core::Device;
use endcap_inference::{Model, ModelError, Pair, Relevance};

use crate::{
    CrossEncoder, EncodeLimits, EngineError, ModelDir, PairEncoding, Result, Segments, Tokenizer,
    load::{read_tokenizer, setting, version},
    passes::{TEXT_TOKENS_MAX, passes},
};

/// Probability from which a pair passes, where `config.json` does not say otherwise.
const THRESHOLD: f32 = 0.5;

/// The relevance model.
pub struct RelevanceModel {
    encoder: CrossEncoder,
    tokenizer: Tokenizer,
    limits: EncodeLimits,
    tokens_max: usize,
    threshold: f32,
    temperature: f32,
    version: String,
}

impl RelevanceModel {
    /// Reads the cross-encoder in `dir`.
    ///
    /// `config.json` may set `endcap_threshold` (calibrated for precision) and `endcap_temperature` (what logits are divided by).
    ///
    /// # Errors
    /// [`EngineError`] when a file is missing or does not fit.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let encoder = CrossEncoder::load(dir, device)?;
        let tokenizer = read_tokenizer(&files)?;
        let threshold = setting(&files, "endcap_threshold")?.unwrap_or(THRESHOLD);
        let temperature: f32 = setting(&files, "endcap_temperature")?.unwrap_or(1.0);
        if !((0.0..=1.0).contains(&threshold) && temperature.is_finite() && temperature > 0.0) {
            let what = format!("endcap_threshold {threshold} or endcap_temperature {temperature} cannot be");
            return Err(EngineError::file(
                &dir.join("config.json"),
                what,
                "give a threshold within 0…1 and a positive temperature",
            ));
        }
        let version = version(&files, None)?;
        let tokens_max = encoder.positions().min(TEXT_TOKENS_MAX);
        let limits = EncodeLimits::for_device(device);
        Ok(Self { encoder, tokenizer, limits, tokens_max, threshold, temperature, version })
    }

    /// The model with other limits of its passes.
    #[must_use]
    pub fn with_limits(mut self, limits: EncodeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Probability from which a pair counts as relevant.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    fn pair(&self, request: &Pair) -> Result<PairEncoding, ModelError> {
        let pair = self
            .tokenizer
            .encode_pair(&request.theme, &request.product, self.tokens_max)
            .map_err(|error| ModelError::Request(error.to_string()))?;
        if pair.second.is_empty() {
            return Err(ModelError::Request("cannot judge a product without text".into()));
        }
        Ok(pair)
    }

    /// Logits of pairs, in their order.
    fn logits(&self, pairs: &[PairEncoding]) -> Result<Vec<f32>> {
        let lengths: Vec<usize> = pairs.iter().map(|pair| pair.ids.len()).collect();
        let mut logits = vec![0.0; pairs.len()];
        let (order, ranges) = passes(&lengths, self.limits);
        for pass in ranges.into_iter().map(|range| &order[range]) {
            let ids: Vec<u32> = pass.iter().flat_map(|&index| &pairs[index].ids).copied().collect();
            let types: Vec<u32> = pass.iter().flat_map(|&index| &pairs[index].types).copied().collect();
            let segments = Segments::of_lengths(pass.iter().map(|&index| lengths[index]));
            let of_pass = self.encoder.score(&ids, &types, &segments)?;
            for (&index, logit) in pass.iter().zip(of_pass) {
                logits[index] = logit;
            }
        }
        Ok(logits)
    }
}

impl Model for RelevanceModel {
    type Request = Pair;
    type Answer = Relevance;

    fn tokens(&self, request: &Pair) -> usize {
        ((request.theme.len() + request.product.len()) / 4 + 4).min(self.tokens_max)
    }

    fn answer(&mut self, batch: Vec<Pair>) -> Result<Vec<Result<Relevance, ModelError>>, ModelError> {
        let mut pairs = Vec::with_capacity(batch.len());
        let places: Vec<Result<(), ModelError>> =
            batch.iter().map(|request| self.pair(request).map(|pair| pairs.push(pair))).collect();
        let logits = self.logits(&pairs).map_err(|error| ModelError::Failed(error.to_string()))?;
        let mut judged = logits.into_iter().zip(&pairs).map(|(logit, pair)| Relevance {
            probability: 1.0 / (1.0 + (-logit / self.temperature).exp()),
            tokens: pair.ids.len() as u32,
        });
        Ok(places.into_iter().map(|place| place.map(|()| judged.next().expect("one logit per pair"))).collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn pairs() -> Vec<Pair> {
        [
            ("winter warmers ; lentil soup", "lentil soup ; soup"),
            ("oat milk", "oat milk ; milk"),
            ("vegan snacks ; dark chocolate ; green tea", "aged cheddar"),
        ]
        .map(|(theme, product)| Pair { theme: theme.into(), product: product.into() })
        .to_vec()
    }

    fn model(dir: &Path) -> RelevanceModel {
        fixture::write_cross_encoder(dir, 7).unwrap();
        RelevanceModel::load(dir, &Device::Cpu).unwrap()
    }

    #[test]
    fn probabilities_are_the_same_alone_and_in_any_company() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path());
        let alone: Vec<Relevance> =
            pairs().into_iter().map(|pair| model.answer(vec![pair]).unwrap().remove(0).unwrap()).collect();
        for pass_tokens_max in [2_048, 10] {
            model = model.with_limits(EncodeLimits { pass_tokens_max });
            let together: Vec<Relevance> = model.answer(pairs()).unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(together, alone, "passes of {pass_tokens_max}");
        }
        assert!(alone.iter().all(|judged| (0.0..=1.0).contains(&judged.probability) && judged.tokens > 4));
        assert_ne!(alone[0].probability, alone[1].probability);
        assert_eq!(model.threshold(), 0.5);
    }

    #[test]
    fn a_product_without_text_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let empty = Pair { product: String::new(), ..pairs().remove(0) };
        let answers = model(dir.path()).answer(vec![empty, pairs().remove(1)]).unwrap();
        assert!(matches!(answers[0], Err(ModelError::Request(_))));
        assert!(answers[1].is_ok());
    }

    #[test]
    fn a_temperature_softens_and_a_threshold_beyond_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sharp = model(dir.path()).answer(pairs()).unwrap().remove(0).unwrap().probability;
        let path = dir.path().join("config.json");
        let config: serde_json::Value = crate::read_json(&path).unwrap();
        let write = |key: &str, value: f32| {
            let mut config = config.clone();
            config[key] = value.into();
            std::fs::write(&path, config.to_string()).unwrap();
            RelevanceModel::load(dir.path(), &Device::Cpu)
        };
        let soft = write("endcap_temperature", 4.0).unwrap().answer(pairs()).unwrap().remove(0).unwrap().probability;
        assert!((soft - 0.5).abs() < (sharp - 0.5).abs(), "{soft} and {sharp}");
        assert!(write("endcap_threshold", 1.5).is_err());
        assert!(write("endcap_temperature", 0.0).is_err());
    }
}
