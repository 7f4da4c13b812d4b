//! The models on candle: decoder, encoders and cross-encoders with their loaders, fused operations with gradients, constraints, generation.
//!
//! A request's answer is the same alone and in any company: on the CPU bit by bit, elsewhere up to rounding. An answer that is constrained
//! keeps its constraint whatever the weights say. Files of a model are named by their contents: equal files, equal version.

mod bert;
mod constraint;
mod cross_encoder;
mod deberta;
mod decoder;
mod embed;
mod error;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod generate;
mod generator;
mod keywords;
mod layer;
mod load;
pub mod ops;
mod passes;
mod random;
mod relevance;
mod segments;
mod themes;
mod tokenizer;

pub use candle_core::Device;

pub use bert::{Bert, BertConfig, BertCrossEncoder, BertLayer, BertWeights, Norm, Pooling};
pub use cross_encoder::CrossEncoder;
pub use deberta::{Deberta, DebertaConfig};
pub use decoder::{
    Adapter, AdapterConfig, Decoder, DecoderConfig, DecoderLayer, DecoderWeights, KvCache, RopeScaling, StepInput, StepOutput,
    Want,
};
pub use error::{EngineError, Result};
pub use layer::Linear;
pub use load::{
    ModelDir, compute_dtype, model_files, model_version, parse_device, read_json, read_tensors, version_of, write_tensors,
};
pub use random::Random;
pub use segments::Segments;

pub use constraint::{
    Allowed, Constraint, ConstraintError, JsonConstraint, JsonGrammar, KeywordLimits, TextLimits, TrieConstraint,
};
pub use embed::EmbedModel;
pub use generate::{GenerateError, GenerateLimits, Generated, Job};
pub use keywords::{CANDIDATE_HEAD, KeywordEncoder, KeywordModel, KeywordPrompt, KeywordPromptError};
pub use passes::EncodeLimits;
pub use relevance::RelevanceModel;
pub use themes::ThemeModel;
pub use tokenizer::{PairEncoding, TEXT_MAX_BYTES, Tokenizer, TokenizerError, demo_tokenizer};
