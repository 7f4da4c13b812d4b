//! The encoder: texts to vectors of unit length.

use std::path::Path;

use candle_core::{DType, Device};
use endcap_inference::{Embed, Embedding, Model, ModelError};

use crate::{
    Bert, EncodeLimits, ModelDir, Result, Segments, Tokenizer,
    load::{read_tokenizer, version},
    passes::{TEXT_TOKENS_MAX, passes},
};

/// The embedding model.
pub struct EmbedModel {
    encoder: Bert,
    tokenizer: Tokenizer,
    limits: EncodeLimits,
    tokens_max: usize,
    version: String,
}

impl EmbedModel {
    /// Reads the encoder in `dir`. An adapter is not known to encoders: fine-tuned weights are a directory of their own.
    ///
    /// # Errors
    /// [`crate::EngineError`] when a file is missing or does not fit.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let (encoder, tokenizer) = (Bert::load(dir, device)?, read_tokenizer(&files)?);
        let version = version(&files, None)?;
        let tokens_max = encoder.config().positions.min(TEXT_TOKENS_MAX);
        Ok(Self { encoder, tokenizer, limits: EncodeLimits::for_device(device), tokens_max, version })
    }

    /// The model with other limits of its passes.
    #[must_use]
    pub fn with_limits(mut self, limits: EncodeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Width of a vector.
    pub fn dimensions(&self) -> usize {
        self.encoder.config().hidden
    }

    /// Vectors of token rows, in their order.
    fn vectors(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        let (order, ranges) = passes(&lengths, self.limits);
        for pass in ranges.into_iter().map(|range| &order[range]) {
            let ids: Vec<u32> = pass.iter().flat_map(|&index| &texts[index]).copied().collect();
            let segments = Segments::of_lengths(pass.iter().map(|&index| lengths[index]));
            let rows: Vec<Vec<f32>> = self.encoder.embed(&ids, &segments)?.to_dtype(DType::F32)?.to_vec2()?;
            for (&index, row) in pass.iter().zip(rows) {
                vectors[index] = row;
            }
        }
        Ok(vectors)
    }
}

impl Model for EmbedModel {
    type Request = Embed;
    type Answer = Embedding;

    fn tokens(&self, request: &Embed) -> usize {
        (request.text.len() / 4 + 3).min(self.tokens_max)
    }

    fn answer(&mut self, batch: Vec<Embed>) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        let mut texts = Vec::with_capacity(batch.len());
        let places: Vec<Result<(), ModelError>> = batch
            .iter()
            .map(|request| match self.tokenizer.encode_single(&request.text, self.tokens_max) {
                Ok(ids) => {
                    texts.push(ids);
                    Ok(())
                }
                Err(error) => Err(ModelError::Request(error.to_string())),
            })
            .collect();
        let mut vectors = self.vectors(&texts).map_err(|error| ModelError::Failed(error.to_string()))?.into_iter();
        Ok(places.into_iter().map(|place| place.map(|()| Embedding(vectors.next().expect("one vector per text")))).collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn texts() -> Vec<Embed> {
        [
            "oat milk",
            "",
            "lentil soup",
            "smoked gouda and olive oil for winter warmers",
            "寿司 rice",
            "oat milk",
            &"soup ".repeat(600),
        ]
        .map(|text| Embed { text: text.to_owned() })
        .to_vec()
    }

    #[test]
    fn vectors_have_unit_length_and_are_the_same_alone_and_in_any_company() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_encoder(dir.path(), 5).unwrap();
        let mut model = EmbedModel::load(dir.path(), &Device::Cpu).unwrap();
        let alone: Vec<Embedding> =
            texts().into_iter().map(|text| model.answer(vec![text]).unwrap().remove(0).unwrap()).collect();
        for pass_tokens_max in [2_048, 12, 1] {
            model = model.with_limits(EncodeLimits { pass_tokens_max });
            let together: Vec<Embedding> = model.answer(texts()).unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(together, alone, "passes of {pass_tokens_max}");
        }
        for Embedding(vector) in &alone {
            assert_eq!(vector.len(), model.dimensions());
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
        }
        assert_eq!(alone[0], alone[5]);
        assert_ne!(alone[0], alone[2]);
    }

    #[test]
    fn an_endless_text_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_encoder(dir.path(), 5).unwrap();
        let mut model = EmbedModel::load(dir.path(), &Device::Cpu).unwrap();
        let endless = Embed { text: "a".repeat(crate::TEXT_MAX_BYTES + 1) };
        let answers = model.answer(vec![texts().remove(0), endless, texts().remove(2)]).unwrap();
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert!(matches!(answers[1], Err(ModelError::Request(_))));
    }

    #[test]
    fn a_cross_encoder_is_no_encoder() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_cross_encoder(dir.path(), 5).unwrap();
        let error = EmbedModel::load(dir.path(), &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()) && error.contains("use an encoder's directory"), "{error}");
        fixture::write_encoder(dir.path(), 5).unwrap();
        EmbedModel::load(dir.path(), &Device::Cpu).unwrap();
    }
}
