//! What a question is known by: everything that its answer depends on, and nobody's name.

use endcap_inference::{
    Candidates,
    prompts::{self, plain},
};
use endcap_schemas::{Brief, Keyword, Theme};
use serde::{Deserialize, Serialize};

use crate::KeywordsConfig;

/// Name of the cache in the store.
pub const CACHE: &str = "keywords";

/// What answers a question besides its own words.
#[derive(Debug, Clone, Copy)]
pub struct Versions<'a> {
    /// The keyword model.
    pub chooser: &'a str,
    /// The encoder.
    pub encoder: &'a str,
    /// Catalogue and index.
    pub market: &'a str,
}

/// A remembered answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The keywords in order.
    pub keywords: Vec<Keyword>,
    /// What they were chosen from, for `explain`; empty in answers of earlier releases.
    #[serde(default)]
    pub candidates: Vec<Candidates>,
}

/// The key of a theme's question: equal keys ask the same prompt over the same candidates under the same limits.
pub fn question(persona: &str, brief: &Brief, theme: &Theme, config: &KeywordsConfig, versions: Versions<'_>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for text in [versions.chooser, versions.encoder, versions.market, prompts::VERSION, &brief.locale] {
        part(text.as_bytes());
    }
    for text in [plain(persona), plain(&theme.title)] {
        part(text.as_bytes());
    }
    part(&[brief.diets.bits(), brief.budget as u8, brief.season as u8]);
    let mut descriptors: Vec<u8> = config.descriptors.iter().map(|kind| *kind as u8).collect();
    descriptors.sort_unstable();
    part(&descriptors);
    for limit in [config.neighbours, config.candidates_max, config.keywords_min, config.keywords_max] {
        part(&(limit as u64).to_le_bytes());
    }
    let mut dislikes: Vec<String> = brief.dislikes.iter().map(|word| plain(word)).collect();
    dislikes.sort_unstable();
    for list in [&theme.concepts.iter().map(|concept| plain(concept)).collect(), &dislikes] {
        part(&(list.len() as u64).to_le_bytes());
        list.iter().for_each(|text| part(text.as_bytes()));
    }
    *hasher.finalize().as_bytes()
}
