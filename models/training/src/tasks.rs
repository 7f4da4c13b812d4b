//! What the decoder reads and writes, as token ids with a weight on every token that it has to learn.

use std::ops::Range;

use endcap_engine::{Segments, Tokenizer};
use endcap_inference::prompts::{self, json, mark};
use endcap_market::{ThemeSample, samples};
use endcap_schemas::{Brief, Term, Theme};

use crate::{
    Result,
    candidates::Group,
    source::{Source, encode, token},
};

/// Weights of tokens in the loss: what decides above what follows from it. A token that the constraint forces has none.
mod weight {
    pub(super) const CONCEPT: f32 = 1.0;
    pub(super) const TITLE: f32 = 0.6;
    pub(super) const WORDING: f32 = 0.25;
    pub(super) const STRUCTURE: f32 = 0.25;
    pub(super) const PICK: f32 = 1.0;
    pub(super) const PICK_REST: f32 = 0.4;
    pub(super) const SEPARATOR: f32 = 0.1;
    pub(super) const FACT: f32 = 0.5;
}

/// A packed micro-batch of the decoder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Micro {
    pub(crate) ids: Vec<u32>,
    pub(crate) lengths: Vec<usize>,
    /// Rows whose next token is learned, that token and its weight.
    pub(crate) rows: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    /// Rows where the candidate head reads, and whether the candidate is chosen.
    pub(crate) candidate_rows: Vec<u32>,
    pub(crate) chosen: Vec<f32>,
}

/// One sample before it is packed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) prompt: Vec<u32>,
    /// The answer's tokens with their weights.
    pub(crate) answer: Vec<(u32, f32)>,
    /// Places of the candidates' separators in the prompt, and whether each is chosen.
    pub(crate) candidates: Vec<(usize, bool)>,
}

impl Micro {
    pub(crate) fn push(&mut self, sequence: &Sequence, scale: f32) {
        let begin = self.ids.len();
        self.ids.extend_from_slice(&sequence.prompt);
        // The last token of the answer is predicted, never read.
        let read = sequence.answer.len().saturating_sub(1);
        self.ids.extend(sequence.answer[..read].iter().map(|token| token.0));
        self.lengths.push(self.ids.len() - begin);
        let before = begin + sequence.prompt.len() - 1;
        for (i, (target, weight)) in sequence.answer.iter().enumerate().filter(|(_, token)| token.1 > 0.0) {
            self.rows.push((before + i) as u32);
            self.targets.push(*target);
            self.weights.push(weight * scale);
        }
        for (place, chosen) in &sequence.candidates {
            self.candidate_rows.push((begin + place) as u32);
            self.chosen.push(f32::from(*chosen));
        }
    }

    pub(crate) fn segments(&self) -> Segments {
        Segments::of_lengths(self.lengths.iter().copied())
    }
}

/// Writes samples as token ids.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of every term.
    pub(crate) terms: Vec<Vec<u32>>,
    pub(crate) item: u32,
    pub(crate) end: u32,
    concept: u32,
    out: u32,
    fact: u32,
    diet: u32,
    pub(crate) next_title: u32,
    pub(crate) close: u32,
    first_title: u32,
    intent: u32,
    pub(crate) concepts: u32,
    next_concept: u32,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, terms: &[Term]) -> Result<Self> {
        let id = |text| token(tokenizer, text);
        Ok(Self {
            terms: terms.iter().map(|term| encode(tokenizer, &prompts::plain(&term.text))).collect::<Result<_>>()?,
            item: id(mark::ITEM)?,
            end: id(mark::END)?,
            concept: id(mark::CONCEPT)?,
            out: id(mark::OUT)?,
            fact: id(mark::FACT)?,
            diet: id(mark::DIET)?,
            next_title: id(json::NEXT_TITLE)?,
            close: id(json::CLOSE)?,
            first_title: id(json::FIRST_TITLE)?,
            intent: id(json::INTENT)?,
            concepts: id(json::CONCEPTS)?,
            next_concept: id(json::NEXT_CONCEPT)?,
            tokenizer,
        })
    }

    /// LLM 1's task: a context, then the merchandiser's page as JSON.
    pub(crate) fn themes(&self, sample: &ThemeSample) -> Result<Sequence> {
        let mut prompt = encode(self.tokenizer, &sample.prompt())?;
        let mut answer = encode(self.tokenizer, &sample.document().to_training_text())?;
        prompt.push(answer.remove(0)); // the document's beginning is forced
        let mut now = weight::WORDING;
        let answer = answer
            .into_iter()
            .map(|id| {
                let structure = [self.first_title, self.next_title, self.intent, self.concepts, self.next_concept, self.close];
                if !structure.contains(&id) {
                    return (id, now);
                }
                now = match id {
                    id if id == self.intent => weight::WORDING,
                    id if id == self.concepts || id == self.next_concept => weight::CONCEPT,
                    _ => weight::TITLE,
                };
                (id, weight::STRUCTURE)
            })
            .collect();
        Ok(Sequence { prompt, answer, candidates: Vec::new() })
    }

    /// LLM 2's task: a theme with its candidates, then the merchandiser's choice (indexes into the candidates, in order).
    pub(crate) fn keywords(
        &self,
        brief: &Brief,
        persona: &str,
        theme: &Theme,
        groups: &[Group],
        picks: &[usize],
    ) -> Result<Sequence> {
        let mut prompt = encode(self.tokenizer, &prompts::keywords(persona, brief, theme))?;
        let (mut places, mut terms) = (Vec::new(), Vec::new());
        for (concept, group) in groups {
            prompt.push(self.concept);
            prompt.extend(encode(self.tokenizer, concept)?);
            prompt.push(self.item);
            for term in group {
                prompt.extend(&self.terms[*term]);
                places.push(prompt.len());
                terms.push(*term);
                prompt.push(self.item);
            }
        }
        prompt.push(self.out);
        let mut answer = Vec::new();
        for pick in picks {
            for (i, id) in self.terms[terms[*pick]].iter().enumerate() {
                answer.push((*id, if i == 0 { weight::PICK } else { weight::PICK_REST }));
            }
            answer.push((self.item, weight::SEPARATOR));
        }
        answer.push((self.end, weight::PICK));
        let candidates = places.into_iter().enumerate().map(|(i, place)| (place, picks.contains(&i))).collect();
        Ok(Sequence { prompt, answer, candidates })
    }

    /// The concepts of each finished theme in an answer.
    pub(crate) fn concepts_of(&self, answer: &[u32]) -> Vec<Vec<String>> {
        let mut themes = Vec::new();
        let mut rest = answer;
        while let Some(begin) = rest.iter().position(|id| *id == self.concepts) {
            rest = &rest[begin + 1..];
            let Some(end) = rest.iter().position(|id| *id == self.next_title || *id == self.close) else { break };
            let concepts = rest[..end].split(|id| *id == self.next_concept);
            themes.push(concepts.map(|ids| self.tokenizer.decode(ids).trim().to_owned()).collect());
            rest = &rest[end..];
        }
        themes
    }

    /// Places in the answer where a title tells its theme's first concept, of the themes whose title does.
    pub(crate) fn told_anchors(&self, sequence: &Sequence) -> Vec<Range<usize>> {
        let ids: Vec<u32> = sequence.answer.iter().map(|token| token.0).collect();
        let ends = [self.next_concept, self.next_title, self.close];
        let titles = (0..ids.len()).filter(|place| ids[*place] == self.first_title || ids[*place] == self.next_title);
        let told = |title: usize| {
            let place = |of: u32| Some(title + ids[title..].iter().position(|id| *id == of)?);
            let (intent, concept) = (place(self.intent)?, place(self.concepts)? + 1);
            let length = ids[concept..].iter().position(|id| ends.contains(id))?;
            let anchor = &ids[concept..concept + length];
            let begin = (title + 1..intent).find(|begin| ids[*begin..intent].starts_with(anchor))?;
            Some(begin..begin + length)
        };
        titles.filter_map(told).collect()
    }

    /// A line of the catalogue: a term, its category, the diets that it violates.
    pub(crate) fn fact(&self, source: &Source, term: usize) -> Result<Option<Sequence>> {
        let Some((category, violates)) = samples::fact(&source.market.terms[term]) else { return Ok(None) };
        let mut prompt = vec![self.fact];
        prompt.extend(&self.terms[term]);
        prompt.push(self.concept);
        let mut answer = encode(self.tokenizer, &prompts::plain(category))?;
        answer.extend([self.item, self.diet]);
        for diet in violates.iter() {
            answer.extend(encode(self.tokenizer, diet.words())?);
            answer.push(self.item);
        }
        answer.push(self.end);
        let answer = answer.into_iter().map(|id| (id, weight::FACT)).collect();
        Ok(Some(Sequence { prompt, answer, candidates: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The demo market with a small tokenizer over its terms: enough to compare ids with texts.
    fn demo() -> (Source, Tokenizer) {
        let source = Source::demo();
        let texts: Vec<String> = source.market.terms.iter().take(2_000).map(|term| term.text.clone()).collect();
        let tokenizer = endcap_engine::demo_tokenizer(texts.iter().map(String::as_str), 900).unwrap();
        (source, tokenizer)
    }

    #[test]
    fn a_keyword_task_is_the_prompt_that_the_stage_sends_and_heads_read_at_separators() {
        let (source, tokenizer) = demo();
        let encoder = Encoder::new(&tokenizer, &source.market.terms).unwrap();
        let (brief, persona, theme) = source.samples.keyword_theme(&mut ChaCha8Rng::seed_from_u64(1));
        let groups: Vec<Group> =
            vec![(prompts::plain(&theme.concepts[0]), vec![20, 700, 3]), (prompts::plain(&theme.concepts[1]), vec![5, 1_999])];
        let sequence = encoder.keywords(&brief, &persona, &theme, &groups, &[1, 4]).unwrap();

        let texts: Vec<(&str, Vec<String>)> = groups
            .iter()
            .map(|(concept, terms)| {
                (concept.as_str(), terms.iter().map(|term| source.market.terms[*term].text.clone()).collect())
            })
            .collect();
        let list = prompts::candidate_list(texts.iter().map(|(concept, terms)| (*concept, terms.as_slice())));
        let whole = format!("{}{list}{}", prompts::keywords(&persona, &brief, &theme), mark::OUT);
        assert_eq!(sequence.prompt, tokenizer.encode(&whole).unwrap());
        let (first, second) = (&source.market.terms[700].text, &source.market.terms[1_999].text);
        let answer: Vec<u32> = sequence.answer.iter().map(|token| token.0).collect();
        assert_eq!(answer, tokenizer.encode(&format!(" {first}; {second};<end>")).unwrap());
        let chosen: Vec<bool> = sequence.candidates.iter().map(|candidate| candidate.1).collect();
        assert_eq!(chosen, [false, true, false, false, true]);
        assert!(sequence.candidates.iter().all(|(place, _)| sequence.prompt[*place] == encoder.item));
    }

    #[test]
    fn a_page_is_learned_from_behind_its_forced_beginning_and_its_concepts_can_be_read_back() {
        let (source, tokenizer) = demo();
        let encoder = Encoder::new(&tokenizer, &source.market.terms).unwrap();
        let sample = source.samples.theme(&mut ChaCha8Rng::seed_from_u64(2));
        let sequence = encoder.themes(&sample).unwrap();
        let whole = format!("{}{}", sample.prompt(), sample.document().to_training_text());
        let ids: Vec<u32> = sequence.prompt.iter().copied().chain(sequence.answer.iter().map(|token| token.0)).collect();
        assert_eq!(ids, tokenizer.encode(&whole).unwrap());
        let answer: Vec<u32> = sequence.answer.iter().map(|token| token.0).collect();
        let anchors: Vec<String> = sample.page.themes.iter().map(|theme| prompts::plain(&theme.concepts[0])).collect();
        let told = encoder.told_anchors(&sequence);
        let told: Vec<String> = told.into_iter().map(|place| tokenizer.decode(&answer[place]).trim().to_owned()).collect();
        assert!(told.len() > 4 && told.iter().all(|leaf| anchors.contains(leaf)), "{told:?} of {anchors:?}");
        let concepts: Vec<Vec<String>> = sample.page.themes.iter().map(|theme| theme.concepts.clone()).collect();
        assert_eq!(encoder.concepts_of(&answer), concepts);
    }

    #[test]
    fn a_packed_sequence_predicts_each_weighted_token_from_the_row_before_it() {
        let sequence =
            Sequence { prompt: vec![7, 8, 9], answer: vec![(4, 1.0), (5, 0.0), (6, 0.5)], candidates: vec![(1, true)] };
        let mut micro = Micro::default();
        micro.push(&sequence, 1.0);
        micro.push(&sequence, 0.5);
        assert_eq!(micro.ids, [7, 8, 9, 4, 5, 7, 8, 9, 4, 5]);
        assert_eq!(micro.lengths, [5, 5]);
        assert_eq!((micro.rows, micro.targets, micro.weights), (vec![2, 4, 7, 9], vec![4, 6, 4, 6], vec![1.0, 0.5, 0.5, 0.25]));
        assert_eq!((micro.candidate_rows, micro.chosen), (vec![1, 6], vec![1.0, 1.0]));
    }
}
