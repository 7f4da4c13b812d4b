//! How the small models of the embedded default are made: tokenizer, encoder, cross-encoder, decoder and its adapters.
//!
//! Every run is the same loop ([`RunSettings`], [`RunReport`]): packed micro-batches, AdamW in place, a long flat learning rate with a
//! cosine at the end, checkpoints to resume from, held-out scores on the way. A run's result is a function of its seed, its data and its
//! steps; threads only share the work.

mod adamw;
mod bert;
mod candidates;
mod card;
mod checkpoint;
mod cross_encoder;
mod decoder;
mod encoder;
mod error;
mod examination;
mod files;
mod linear_map;
mod llama;
mod params;
mod run;
mod source;
mod step;
mod strange;
mod tasks;
mod teacher;
mod words;

pub use bert::BertShape;
pub use cross_encoder::{CrossEncoderRun, train_cross_encoder};
pub use decoder::{AdapterRun, AdapterTask, DecoderRun, DecoderStart, decoder_shape, train_adapter, train_decoder};
pub use encoder::{EncoderRun, encoder_shape, train_encoder};
pub use error::{Result, TrainError};
pub use llama::{LlamaShape, LoraShape};
pub use run::{Budget, RunReport, RunSettings, Surroundings};
pub use source::Source;
