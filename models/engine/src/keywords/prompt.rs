//! How a keyword request stands in tokens. Training lays its samples out by itself and must give the same tokens.

use std::{collections::HashMap, sync::Arc};

use endcap_inference::{
    ChooseKeywords,
    prompts::{mark, plain},
};
use thiserror::Error;

use crate::{Tokenizer, TokenizerError};

/// Terms whose tokens are kept: more than a corpus of 300,000 has.
const TERMS_MAX: usize = 1 << 19;

/// Why a request cannot be laid out.
#[derive(Debug, Error)]
pub enum KeywordPromptError {
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A candidate has nothing that can be written.
    #[error("candidate {0} has no text: leave it out")]
    NoText(usize),
}

/// A keyword request in tokens: the prompt, the candidates by concept, [`mark::OUT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordPrompt {
    /// Tokens of the whole prompt.
    pub tokens: Vec<u32>,
    /// Position in `tokens` of every candidate's last token, where the candidate head reads its score, `[candidates]`. Concepts are no candidates.
    pub ends: Vec<usize>,
    /// Tokens of every candidate with its separator, as the answer writes it, `[candidates]`.
    pub terms: Vec<Arc<[u32]>>,
}

/// Lays requests out. Tokens of a term are computed once.
///
/// The prompt is encoded piece by piece, so that a candidate has the same tokens in the prompt and in the answer, whatever stands beside
/// it; with the demo tokenizer the pieces together are the tokens of the whole text.
pub struct KeywordEncoder {
    tokenizer: Arc<Tokenizer>,
    terms: HashMap<Box<str>, Arc<[u32]>>,
    out: Vec<u32>,
    end: Vec<u32>,
}

impl KeywordEncoder {
    /// An encoder for `tokenizer`'s models.
    ///
    /// # Errors
    /// [`KeywordPromptError::Tokenizer`] when it cannot write the marks.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, KeywordPromptError> {
        let (out, end) = (tokenizer.encode(mark::OUT)?, tokenizer.encode(mark::END)?);
        Ok(Self { tokenizer, terms: HashMap::new(), out, end })
    }

    /// Tokens of the end mark; one where the tokenizer knows it.
    pub fn end(&self) -> &[u32] {
        &self.end
    }

    /// `request` in tokens.
    ///
    /// # Errors
    /// [`KeywordPromptError`] for a candidate without text and for texts that are too long.
    pub fn prompt(&mut self, request: &ChooseKeywords) -> Result<KeywordPrompt, KeywordPromptError> {
        let mut tokens = self.tokenizer.encode(&request.prompt)?;
        let (mut ends, mut terms) = (Vec::new(), Vec::new());
        for group in &request.candidates {
            let concept = format!("{} {}{}", mark::CONCEPT, plain(&group.concept), mark::ITEM);
            tokens.extend(self.tokenizer.encode(&concept)?);
            for term in &group.terms {
                let term = self.term(term, terms.len())?;
                tokens.extend(term.iter());
                ends.push(tokens.len() - 1);
                terms.push(term);
            }
        }
        tokens.extend(&self.out);
        Ok(KeywordPrompt { tokens, ends, terms })
    }

    fn term(&mut self, term: &str, index: usize) -> Result<Arc<[u32]>, KeywordPromptError> {
        if let Some(tokens) = self.terms.get(term) {
            return Ok(tokens.clone());
        }
        let text = plain(term);
        if text.is_empty() {
            return Err(KeywordPromptError::NoText(index));
        }
        let tokens: Arc<[u32]> = self.tokenizer.encode(&format!(" {text}{}", mark::ITEM))?.into();
        if self.terms.len() >= TERMS_MAX {
            self.terms.clear();
        }
        self.terms.insert(term.into(), tokens.clone());
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use endcap_inference::{Candidates, prompts};

    use super::*;
    use crate::demo_tokenizer;

    fn request() -> ChooseKeywords {
        let group = |concept: &str, terms: &[&str]| Candidates {
            concept: concept.to_owned(),
            terms: terms.iter().map(|&term| term.to_owned()).collect(),
        };
        ChooseKeywords {
            prompt: "<keywords><diet> vegan;<season> winter<budget> low<persona> busy cook<title> winter warmers".into(),
            candidates: vec![
                group("Oat Milk", &["oat milk", "Barista oat; milk", "寿司 rice"]),
                group("soups", &["lentil soup"]),
            ],
            keywords_min: 1,
            keywords_max: 3,
        }
    }

    #[test]
    fn pieces_are_the_tokens_of_the_whole_text_and_ends_are_the_candidates_separators() {
        let texts = ["oat milk lentil soup soups winter warmers barista rice"; 3];
        let tokenizer = Arc::new(demo_tokenizer(texts.into_iter(), 420).unwrap());
        let request = request();
        let mut encoder = KeywordEncoder::new(tokenizer.clone()).unwrap();
        let prompt = encoder.prompt(&request).unwrap();
        let groups = request.candidates.iter().map(|group| (group.concept.as_str(), group.terms.as_slice()));
        let text = format!("{}{}{}", request.prompt, prompts::candidate_list(groups), mark::OUT);
        assert_eq!(prompt.tokens, tokenizer.encode(&text).unwrap());
        let separator = tokenizer.id(mark::ITEM).unwrap();
        assert_eq!(prompt.ends.len(), 4);
        assert!(prompt.ends.iter().all(|&end| prompt.tokens[end] == separator));
        let separators = prompt.tokens.iter().filter(|&&token| token == separator).count();
        assert_eq!(separators, 4 + 2 + 1, "of candidates, concepts and diets");
        let answer = [&*prompt.terms[3], &*prompt.terms[0], encoder.end()].concat();
        assert_eq!(tokenizer.decode(&answer), " lentil soup; oat milk;<end>");
        assert_eq!(encoder.prompt(&request).unwrap(), prompt, "kept tokens are the same");
    }

    #[test]
    fn a_tokenizer_without_the_marks_spells_them_and_candidates_stay_apart() {
        let tokenizer = Arc::new(crate::tokenizer::tests::byte_level());
        let mut encoder = KeywordEncoder::new(tokenizer.clone()).unwrap();
        assert!(encoder.end().len() > 1);
        let prompt = encoder.prompt(&request()).unwrap();
        assert!(tokenizer.decode(&prompt.tokens).ends_with("<concept> soups; lentil soup;<out>"));
        for (&end, term) in prompt.ends.iter().zip(&prompt.terms) {
            assert_eq!(prompt.tokens[end + 1 - term.len()..=end], **term);
        }
        let terms: Vec<&[u32]> = prompt.terms.iter().map(Arc::as_ref).collect();
        let mut trie = crate::TrieConstraint::new(&terms, encoder.end(), crate::KeywordLimits { min: 1, max: 3 }, 1.0).unwrap();
        let mut said = Vec::new();
        use crate::{Allowed, Constraint};
        while !trie.finished() {
            said.extend(trie.forced().unwrap());
            let Allowed::Few { tokens, .. } = trie.allowed().unwrap() else { panic!("a trie allows a few tokens") };
            let Some(&last) = tokens.last() else { break };
            trie.advance(last).unwrap();
            said.push(last);
        }
        assert_eq!(trie.picks().len(), 1, "the end mark is the last child and ends the list");
        assert!(
            tokenizer.decode(&said).starts_with(" 寿司 rice;") || tokenizer.decode(&said).starts_with(" lentil soup;"),
            "{:?}",
            tokenizer.decode(&said)
        );
    }

    #[test]
    fn a_candidate_without_text_is_named() {
        let tokenizer = Arc::new(demo_tokenizer(std::iter::once("oat milk"), 400).unwrap());
        let mut request = request();
        request.candidates[1].terms.push("<>;".into());
        let refused = KeywordEncoder::new(tokenizer).unwrap().prompt(&request);
        assert!(matches!(refused, Err(KeywordPromptError::NoText(4))));
    }
}
