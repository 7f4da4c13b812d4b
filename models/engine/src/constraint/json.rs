//! The theme document: a JSON schema, held to by `llguidance`, with what the schema leaves no choice about taken as forced tokens.

mod place;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, earley::SlicedBiasComputer};
use serde::Deserialize;
use toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::{Allowed, Constraint, ConstraintError};
use crate::Tokenizer;
use place::{Fits, Place, Position};

/// Most themes that a document is asked for.
const THEMES_MAX: usize = 32;
/// Concepts of every theme (design: three).
const CONCEPTS: usize = 3;
/// A text: words of letters, digits and `' & % - .` with single spaces; it begins with a letter or a digit, perhaps behind one space.
const TEXT: &str = r"^ ?[\p{L}\p{N}][\p{L}\p{N}'&%.\-]*( [\p{L}\p{N}'&%.\-]+)*$";
/// Tokens that end a text of their own accord, by vocabulary.
const ENDS: [&str; 7] = ["<end>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "</s>", "[SEP]"];

/// Longest texts of a document, in characters, a leading space included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextLimits {
    /// The persona.
    pub persona: usize,
    /// A title.
    pub title: usize,
    /// An intent.
    pub intent: usize,
    /// A concept.
    pub concept: usize,
}

impl Default for TextLimits {
    /// What fits into a prompt's field and on a page.
    fn default() -> Self {
        Self { persona: 80, title: 60, intent: 80, concept: 40 }
    }
}

/// The grammar of theme documents for one tokenizer. Compiled once per number of themes; sequences share the lexer's states and the masks.
pub struct JsonGrammar {
    factory: ParserFactory,
    compiled: HashMap<usize, Matcher>,
    shared: Arc<Shared>,
}

/// What all documents of a grammar have in common.
struct Shared {
    tokenizer: Arc<Tokenizer>,
    limits: TextLimits,
    fits: Fits,
    /// The grammar's mask at every place within a text, once it was computed.
    masks: [OnceLock<Vec<u32>>; Place::COUNT],
}

impl JsonGrammar {
    /// Prepares the grammar for `tokenizer`'s vocabulary.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`] when the vocabulary is refused.
    pub fn new(tokenizer: Arc<Tokenizer>, limits: TextLimits) -> Result<Self, ConstraintError> {
        if [limits.persona, limits.title, limits.intent, limits.concept].iter().any(|&chars| chars < 2) {
            return Err(ConstraintError::Request(
                "a text of less than two characters has no room behind its leading space".into(),
            ));
        }
        let env: TokEnv = Arc::new(Vocabulary::new(tokenizer.clone()));
        let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let mut factory = ParserFactory::new(&env, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|e| ConstraintError::Grammar(e.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        let shared = Shared { fits: Fits::new(&tokenizer), tokenizer, limits, masks: Default::default() };
        Ok(Self { factory, compiled: HashMap::new(), shared: Arc::new(shared) })
    }

    /// A constraint that a document of exactly `themes` themes satisfies.
    ///
    /// # Errors
    /// [`ConstraintError::Request`] for no themes or more than 32; [`ConstraintError::Grammar`].
    pub fn document(&mut self, themes: usize) -> Result<JsonConstraint, ConstraintError> {
        if !(1..=THEMES_MAX).contains(&themes) {
            return Err(ConstraintError::Request(format!("{themes} themes, where 1 to {THEMES_MAX} can be written")));
        }
        if !self.compiled.contains_key(&themes) {
            let grammar = TopLevelGrammar::from_json_schema(schema(themes));
            let matcher = Matcher::new(self.factory.create_parser(grammar));
            if let Some(error) = matcher.get_error() {
                return Err(ConstraintError::Grammar(error));
            }
            self.compiled.insert(themes, matcher);
        }
        Ok(JsonConstraint {
            matcher: self.compiled[&themes].clone(),
            position: Position::new(themes),
            shared: self.shared.clone(),
            mask: None,
        })
    }
}

/// The schema of [`endcap_inference::prompts::ThemesDocument`], its properties in the order in which they are written. Lengths are kept by
/// [`Position`].
fn schema(themes: usize) -> serde_json::Value {
    let text = serde_json::json!({"type": "string", "pattern": TEXT});
    let object = |properties: &[(&str, &serde_json::Value)]| {
        let names: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
        let properties: serde_json::Map<String, serde_json::Value> =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())).collect();
        serde_json::json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
    };
    let list =
        |item: &serde_json::Value, n: usize| serde_json::json!({"type": "array", "items": item, "minItems": n, "maxItems": n});
    let theme = object(&[("title", &text), ("intent", &text), ("concepts", &list(&text, CONCEPTS))]);
    let mut document = object(&[("persona", &text), ("themes", &list(&theme, themes))]);
    document["x-guidance"] = serde_json::json!({"whitespace_flexible": false});
    document
}

/// One document being written.
pub struct JsonConstraint {
    matcher: Matcher,
    position: Position,
    shared: Arc<Shared>,
    mask: Option<Vec<u32>>,
}

impl JsonConstraint {
    /// The grammar's mask here; from the places' masks where there is one.
    fn grammar_mask(&mut self) -> Result<Vec<u32>, ConstraintError> {
        let known = self.position.place().map(|place| &self.shared.masks[place.index()]);
        if let Some(mask) = known.and_then(OnceLock::get) {
            return Ok(mask.clone());
        }
        let mask = self.matcher.compute_mask().map_err(failed)?.as_slice().to_vec();
        if let Some(known) = known {
            // Another sequence may have come first, with the same mask.
            let _ = known.set(mask.clone());
        }
        Ok(mask)
    }

    fn take(&mut self, token: u32) {
        self.position.take(self.shared.tokenizer.token_bytes(token));
    }
}

fn failed(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError::Grammar(error.to_string())
}

impl Constraint for JsonConstraint {
    fn forced(&mut self) -> Result<Vec<u32>, ConstraintError> {
        // Inside a text nothing is forced, and asking costs more than the rest of a step.
        if self.finished() || self.position.place().is_some() {
            return Ok(Vec::new());
        }
        let tokens = self.matcher.consume_ff_tokens();
        if let Some(error) = self.matcher.get_error() {
            return Err(failed(error));
        }
        if !tokens.is_empty() {
            self.mask = None;
        }
        tokens.iter().for_each(|&token| self.take(token));
        Ok(tokens)
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => {
                let mut mask = self.grammar_mask()?;
                if let Some(room) = self.position.room(self.shared.limits) {
                    self.shared.fits.restrict(&mut mask, room);
                }
                mask
            }
        };
        Ok(Allowed::Mask(self.mask.insert(mask)))
    }

    fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        // A refused token leaves the machine in an error state, so it is looked up first.
        let Allowed::Mask(mask) = self.allowed()? else { return Err(ConstraintError::NotAllowed(token)) };
        if mask.get(token as usize / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
            return Err(ConstraintError::NotAllowed(token));
        }
        self.mask = None;
        self.matcher.consume_token(token).map_err(failed)?;
        self.take(token);
        Ok(())
    }

    fn finished(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

/// A tokenizer as `llguidance` sees it: the trie of its tokens' bytes.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let words: Vec<Vec<u8>> = (0..tokenizer.vocabulary_size() as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id);
                // Behind the marker no grammar reaches a token by its text.
                if tokenizer.is_control(id) { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat() } else { bytes.to_vec() }
            })
            .collect();
        let end = ENDS.iter().find_map(|name| tokenizer.id(name)).unwrap_or(INVALID_TOKEN);
        let info = TokRxInfo::new(words.len() as u32, end);
        let trie = TokTrie::from(&info, &words);
        Self { tokenizer, trie }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The canonical tokens of `text` where they say exactly `text`. A tokenizer that puts a space in front of every word cannot say a
    /// word without one in canonical tokens; then the longest tokens that fit are taken.
    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        let canonical = std::str::from_utf8(text).ok().and_then(|text| self.tokenizer.encode(text).ok());
        canonical.filter(|ids| self.tokenizer.decode_bytes(ids) == text).unwrap_or_else(|| self.trie.greedy_tokenize(text))
    }

    fn tokenize_is_canonical(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
