//! The demo market: its products, taxonomy and terms, the households that shop there, and the rule-based merchandiser.
//!
//! Pure: no I/O, no clock, and randomness only from seeds. The vocabulary (`vocabulary.txt`) is the project's own; everything else
//! follows from it and a seed, so the truth about every product, term and household is known and quality can be measured.

mod baskets;
mod households;
mod keywords;
mod market;
mod merchandiser;
mod random;
pub mod samples;
mod shoppers;
mod terms;
pub mod truth;
mod visits;
mod vocabulary;
mod wording;

pub use households::{Household, Taste};
pub use market::{DEMO_SEED, Market};
pub use merchandiser::{MerchandisedPage, Merchandiser};
pub use random::{fnv1a, hash};
pub use samples::{Samples, ThemeSample};
pub use shoppers::Shoppers;
pub use terms::held_out;
pub use visits::{Act, Deed, Expected};
pub use vocabulary::{Vocabulary, VocabularyError};
pub use wording::{LEAF_WORDS_MAX, sentence_case};
