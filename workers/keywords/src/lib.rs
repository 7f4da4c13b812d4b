//! The keywords stage (paper 4.3): retrieves candidates for each theme's concepts and has LLM 2 choose among them.
//!
//! What contradicts the household's diets or dislikes never becomes a candidate, so no choice of the model can. A question that was
//! answered before is read from the cache; one that stands twice in a batch is asked once. [`shortlist`] and [`answer`] decide,
//! [`KeywordsStage`] waits.

mod cache;
mod candidates;
mod config;
mod savings;
mod work;

use std::{collections::HashMap, sync::Arc};

use endcap_inference::{ChooseKeywords, ChosenKeywords, Embed, Embedding, Handle, Model, ModelError};
use endcap_market::Merchandiser;
use endcap_retrieval::{Market, MarketError, PerVersion, Snapshot};
use endcap_runtime::{Input, Stage, StageError, Store, Verdict};
use endcap_schemas::{KeywordsChosen, ThemesWritten};

pub use cache::{CACHE, Remembered, Versions, question};
pub use candidates::{Found, Shortlist, neighbours, shortlist};
pub use config::KeywordsConfig;
pub use savings::{PromptTokens, Savings, TokenCounter};
pub use work::{Answered, Source, answer};

use work::{Question, verdict};

/// The stage.
pub struct KeywordsStage<E, K>
where
    E: Model<Request = Embed, Answer = Embedding>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
{
    config: KeywordsConfig,
    market: Market,
    store: Arc<dyn Store>,
    encoder: Handle<E>,
    chooser: Handle<K>,
    count: TokenCounter,
    rules: PerVersion<Rules>,
}

/// An entry of the cache.
type Entry = ([u8; 32], Vec<u8>);

/// What is known of a version of the market.
struct Rules {
    merchandiser: Merchandiser,
    savings: Savings,
}

impl<E, K> KeywordsStage<E, K>
where
    E: Model<Request = Embed, Answer = Embedding>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
{
    /// A stage over `market`, with its cache in `store`. `count` counts tokens as the keyword model does: for the figures on what
    /// retrieval saves, and for nothing else.
    pub fn new(
        config: KeywordsConfig,
        market: Market,
        store: Arc<dyn Store>,
        encoder: Handle<E>,
        chooser: Handle<K>,
        count: TokenCounter,
    ) -> Self {
        Self { config, market, store, encoder, chooser, count, rules: PerVersion::default() }
    }

    fn rules(&mut self, snapshot: &Snapshot) -> Result<Arc<Rules>, StageError> {
        self.rules.try_get(snapshot.version(), || {
            Ok(Rules {
                merchandiser: Merchandiser::new(snapshot.categories().to_vec()),
                savings: Savings::measure(snapshot, &self.count).map_err(market)?,
            })
        })
    }

    /// The batch's distinct questions in order of appearance.
    fn questions<'a>(&self, batch: &'a [Input<ThemesWritten>], snapshot: &Snapshot) -> Vec<Question<'a>> {
        let versions = Versions { chooser: self.chooser.version(), encoder: self.encoder.version(), market: snapshot.version() };
        let mut questions: Vec<Question<'a>> = Vec::new();
        let mut places: HashMap<[u8; 32], usize> = HashMap::new();
        for page in batch.iter().map(|input| &input.value) {
            for theme in &page.themes {
                let key = question(&page.persona, &page.brief, theme, &self.config, versions);
                let place = *places.entry(key).or_insert_with(|| {
                    questions.push(Question::new(key, page, theme));
                    questions.len() - 1
                });
                questions[place].asked_by += 1;
            }
        }
        questions
    }

    /// Answers from the cache what it holds. An entry that cannot be read is asked again.
    fn recall(&self, questions: &mut [Question<'_>]) -> Result<(), StageError> {
        let keys: Vec<[u8; 32]> = questions.iter().map(|question| question.key).collect();
        for (question, cached) in questions.iter_mut().zip(self.store.cached(CACHE, &keys)?) {
            if let Some(known) = cached.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok()) {
                question.list.groups = known.candidates;
                question.answered = Some(Answered::cached(known.keywords));
            }
        }
        Ok(())
    }

    /// Finds the candidates of the open questions; every distinct concept is embedded and looked up once.
    fn retrieve(&self, questions: &mut [Question<'_>], snapshot: &Snapshot) -> Result<(), StageError> {
        let open: Vec<&mut Question<'_>> = questions.iter_mut().filter(|question| question.answered.is_none()).collect();
        let mut texts: Vec<Embed> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for concept in open.iter().flat_map(|question| question.concepts()) {
            places.entry(concept.clone()).or_insert_with(|| {
                texts.push(Embed { text: concept });
                texts.len() - 1
            });
        }
        let mut found = Vec::with_capacity(texts.len());
        for vector in self.encoder.ask_all(texts) {
            found.push(match vector {
                Ok(vector) => neighbours(snapshot, &vector, self.config.neighbours).map_err(market)?,
                Err(ModelError::Request(_)) => Vec::new(),
                Err(error) => return Err(StageError::model("encoder", &error)),
            });
        }
        for question in open {
            let mut all = Vec::new();
            for (place, concept) in question.concepts().enumerate() {
                all.extend(found[places[&concept]].iter().cloned().map(|found| Found { concept: place, ..found }));
            }
            let concepts = &question.theme.concepts;
            question.list = shortlist(concepts, all, &question.page.brief, &self.config.descriptors, self.config.candidates_max);
        }
        Ok(())
    }

    /// Asks the model what is open and has candidates, once for all shoppers.
    fn choose(&self, questions: &mut [Question<'_>], rules: &Rules) -> Result<Vec<Entry>, StageError> {
        let (asked, requests): (Vec<usize>, Vec<ChooseKeywords>) = questions
            .iter()
            .enumerate()
            .filter(|(_, question)| question.answered.is_none() && !question.list.terms.is_empty())
            .map(|(i, question)| (i, question.request(&self.config)))
            .unzip();
        let mut remembered = Vec::new();
        for (i, chosen) in asked.into_iter().zip(self.chooser.ask_all(requests)) {
            if let Err(error @ (ModelError::Failed(_) | ModelError::Gone)) = &chosen {
                return Err(StageError::model("keyword model", error));
            }
            let question = &mut questions[i];
            let answered = answer(question.page, question.theme, &question.list, chosen, &self.config, &rules.merchandiser);
            if answered.source == Source::Model {
                let known = Remembered { keywords: answered.keywords.clone(), candidates: question.list.groups.clone() };
                remembered.push((question.key, serde_json::to_vec(&known).expect("keywords are JSON")));
            }
            question.answered = Some(answered);
        }
        Ok(remembered)
    }
}

impl<E, K> Stage for KeywordsStage<E, K>
where
    E: Model<Request = Embed, Answer = Embedding>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
{
    type In = ThemesWritten;
    type Out = KeywordsChosen;
    const NAME: &'static str = "keywords";

    fn process(&mut self, batch: &[Input<ThemesWritten>]) -> Result<Vec<Verdict<KeywordsChosen>>, StageError> {
        let snapshot = self.market.snapshot();
        let rules = self.rules(&snapshot)?;
        let mut questions = self.questions(batch, &snapshot);
        self.recall(&mut questions)?;
        self.retrieve(&mut questions, &snapshot)?;
        let remembered = self.choose(&mut questions, &rules)?;
        self.store.remember(CACHE, &remembered)?;
        for question in &mut questions {
            question.measure(&rules.savings, &snapshot, &self.count);
        }
        let by_key: HashMap<[u8; 32], usize> = questions.iter().enumerate().map(|(i, question)| (question.key, i)).collect();
        let versions = Versions { chooser: self.chooser.version(), encoder: self.encoder.version(), market: snapshot.version() };
        let place =
            |page: &ThemesWritten, theme: &_| by_key[&question(&page.persona, &page.brief, theme, &self.config, versions)];
        // The cost of a shared question is counted once, on the first page that asks it.
        let mut paid = vec![false; questions.len()];
        Ok(batch
            .iter()
            .map(|input| {
                let asked = input.value.themes.iter().map(|theme| {
                    let i = place(&input.value, theme);
                    (&questions[i], !std::mem::replace(&mut paid[i], true))
                });
                verdict(&input.value, asked.collect(), versions)
            })
            .collect())
    }
}

/// The market lies on this machine's disk or is not indexed yet: what is wrong with it mends without the record.
fn market(error: MarketError) -> StageError {
    StageError::unavailable("market", error)
}

#[cfg(test)]
mod tests;
