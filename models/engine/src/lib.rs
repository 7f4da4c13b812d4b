//! (being written)

mod decoder;
mod error;
mod layer;
mod load;
mod random;
mod segments;
mod constraint;
mod generate;
mod tokenizer;
pub mod ops;

pub use decoder::{
    Adapter, AdapterConfig, Decoder, DecoderConfig, DecoderLayer, DecoderWeights, KvCache, RopeScaling, StepInput, StepOutput, Want,
};
pub use error::{EngineError, Result};
pub use layer::{Linear, LowRank};
pub use load::{ModelDir, compute_dtype, parse_device, read_json, read_tensors, version_of, write_tensors};
pub use random::Random;
pub use segments::Segments;

pub use tokenizer::{PairEncoding, TEXT_MAX_BYTES, Tokenizer, TokenizerError, demo_tokenizer};
pub use constraint::{Allowed, Constraint, ConstraintError, JsonConstraint, JsonGrammar, KeywordLimits, TextLimits, TrieConstraint};
pub use generate::{GenerateError, GenerateLimits, Generated, Job};
