//! Requests to the four kinds of model and their answers.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Tokens spent on an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Prompt tokens computed.
    pub prefilled: u64,
    /// Tokens that the model chose.
    pub generated: u64,
    /// Tokens that the constraint left no choice about.
    pub forced: u64,
}

impl AddAssign for TokenCounts {
    fn add_assign(&mut self, other: Self) {
        self.prefilled += other.prefilled;
        self.generated += other.generated;
        self.forced += other.forced;
    }
}

/// Asks the theme model (LLM 1, paper 4.2) for a page of themes as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WriteThemes {
    /// See [`crate::prompts::themes`].
    pub prompt: String,
    /// Number of themes wanted.
    pub themes: usize,
}

/// The theme model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenThemes {
    /// A JSON document of the theme schema; see [`crate::prompts::ThemesDocument`].
    pub json: String,
    /// What it cost.
    pub tokens: TokenCounts,
}

/// Neighbours of a concept that are looked up where no setting says otherwise: by the keywords stage, and by training, whose lists are to be
/// like the stage's.
pub const NEIGHBOURS: usize = 96;

/// The candidates of one concept, nearest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidates {
    /// The concept, plain text.
    pub concept: String,
    /// Terms of the corpus, plain text.
    pub terms: Vec<String>,
}

/// Asks the keyword model (LLM 2, paper 4.3) to choose and order keywords among candidates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChooseKeywords {
    /// Persona, diet, season, theme; see [`crate::prompts::keywords`].
    pub prompt: String,
    /// What may be chosen, by the concept that retrieved it. Texts are distinct.
    pub candidates: Vec<Candidates>,
    /// Fewest keywords wanted; fewer only when there are fewer candidates.
    pub keywords_min: usize,
    /// Most keywords wanted.
    pub keywords_max: usize,
}

impl ChooseKeywords {
    /// Every candidate's text, group by group.
    pub fn terms(&self) -> impl Iterator<Item = &str> {
        self.candidates.iter().flat_map(|group| group.terms.iter().map(String::as_str))
    }
}

/// The keyword model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenKeywords {
    /// Indices into [`ChooseKeywords::terms`], best first, no repeats.
    pub picks: Vec<usize>,
    /// What it cost.
    pub tokens: TokenCounts,
}

/// Asks the encoder for a text's vector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Embed {
    /// The text.
    pub text: String,
}

/// A vector of unit length, `[hidden]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(pub Vec<f32>);

/// Asks the cross-encoder whether a product is relevant to a theme (paper 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    /// See [`crate::prompts::theme_text`].
    pub theme: String,
    /// See [`crate::prompts::product_text`].
    pub product: String,
}

/// The cross-encoder's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relevance {
    /// Probability of relevance, 0…1.
    pub probability: f32,
    /// Tokens of the pair.
    pub tokens: u32,
}
