//! One theme's question, from candidates to keywords, and what is told about it.

use std::collections::HashSet;

use endcap_inference::{ChooseKeywords, ChosenKeywords, ModelError, TokenCounts, prompts};
use endcap_market::Merchandiser;
use endcap_retrieval::Snapshot;
use endcap_runtime::{Passed, Verdict};
use endcap_schemas::{Draft, Keyword, KeywordsChosen, Origin, Term, Theme, ThemesWritten};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{KeywordsConfig, PromptTokens, Savings, Shortlist, TokenCounter, Versions};

/// Who answered a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The model.
    Model,
    /// The model, some time ago.
    Cache,
    /// The merchandiser, as the model's answer could not be used.
    Fallback,
}

/// A question's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// Keywords in order; empty when there was nothing to choose from.
    pub keywords: Vec<Keyword>,
    /// Who chose them.
    pub source: Source,
    /// What was wrong with the model's answer.
    pub fault: Option<String>,
    /// What the model's answer cost.
    pub tokens: TokenCounts,
}

impl Answered {
    /// What the cache held.
    pub(crate) fn cached(keywords: Vec<Keyword>) -> Self {
        Self { keywords, source: Source::Cache, fault: None, tokens: TokenCounts::default() }
    }
}

/// Reads the model's choice; the merchandiser chooses where it cannot be used.
pub fn answer(
    page: &ThemesWritten,
    theme: &Theme,
    list: &Shortlist,
    chosen: Result<ChosenKeywords, ModelError>,
    config: &KeywordsConfig,
    merchandiser: &Merchandiser,
) -> Answered {
    let (fault, tokens) = match chosen {
        Ok(chosen) => match picks_fault(&chosen.picks, list.terms.len(), config) {
            None => {
                return Answered {
                    keywords: keywords(list, &chosen.picks),
                    source: Source::Model,
                    fault: None,
                    tokens: chosen.tokens,
                };
            }
            Some(fault) => (fault, chosen.tokens),
        },
        Err(error) => (error.to_string(), TokenCounts::default()),
    };
    let terms: Vec<Term> = list.terms.iter().map(|(_, term)| term.clone()).collect();
    let picks = merchandiser.choose_keywords(&page.brief, theme, &terms, config.keywords_min, config.keywords_max);
    Answered { keywords: keywords(list, &picks), source: Source::Fallback, fault: Some(fault), tokens }
}

fn picks_fault(picks: &[usize], candidates: usize, config: &KeywordsConfig) -> Option<String> {
    let mut seen = HashSet::new();
    if let Some(pick) = picks.iter().find(|pick| **pick >= candidates || !seen.insert(**pick)) {
        return Some(format!("pick {pick} is repeated or not among the {candidates} candidates"));
    }
    let least = config.keywords_min.min(candidates);
    let limits = least..=config.keywords_max;
    (!limits.contains(&picks.len()))
        .then(|| format!("model chose {} keywords, wanted {least} to {}", picks.len(), config.keywords_max))
}

fn keywords(list: &Shortlist, picks: &[usize]) -> Vec<Keyword> {
    let keyword = |&pick: &usize| {
        let (id, term) = list.terms.get(pick)?;
        Some(Keyword { id: *id, text: term.text.clone(), descriptor: term.descriptor })
    };
    picks.iter().filter_map(keyword).collect()
}

/// A distinct question of a batch.
pub(crate) struct Question<'a> {
    pub(crate) key: [u8; 32],
    pub(crate) page: &'a ThemesWritten,
    pub(crate) theme: &'a Theme,
    /// Themes of the batch that ask it.
    pub(crate) asked_by: usize,
    pub(crate) list: Shortlist,
    pub(crate) answered: Option<Answered>,
    tokens: Option<PromptTokens>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(key: [u8; 32], page: &'a ThemesWritten, theme: &'a Theme) -> Self {
        Self { key, page, theme, asked_by: 0, list: Shortlist::default(), answered: None, tokens: None }
    }

    /// The concepts in plain text.
    pub(crate) fn concepts(&self) -> impl Iterator<Item = String> {
        self.theme.concepts.iter().map(|concept| prompts::plain(concept))
    }

    pub(crate) fn request(&self, config: &KeywordsConfig) -> ChooseKeywords {
        ChooseKeywords {
            prompt: prompts::keywords(&self.page.persona, &self.page.brief, self.theme),
            candidates: self.list.groups.clone(),
            keywords_min: config.keywords_min,
            keywords_max: config.keywords_max,
        }
    }

    /// Counts the prompt and its alternatives, for a question that the model was asked.
    pub(crate) fn measure(&mut self, savings: &Savings, snapshot: &Snapshot, count: &TokenCounter) {
        if self.list.terms.is_empty() || self.answered.as_ref().is_none_or(|answered| answered.source == Source::Cache) {
            return;
        }
        let head = prompts::keywords(&self.page.persona, &self.page.brief, self.theme) + prompts::mark::OUT;
        let list = prompts::candidate_list(self.list.groups.iter().map(|group| (group.concept.as_str(), group.terms.as_slice())));
        let head = count(&head) as u64;
        self.tokens = Some(savings.prompt(head, head + count(&list) as u64, &departments(self.page, snapshot)));
    }

    fn explained(&self) -> Value {
        let answered = self.answered.as_ref();
        json!({
            "title": self.theme.title,
            "source": answered.map(|answered| answered.source),
            "fault": answered.and_then(|answered| answered.fault.as_deref()),
            "candidates": self.list.groups,
            "considered": self.list.considered,
            "against_diet": self.list.against_diet,
            "against_policy": self.list.against_policy,
            "keywords": answered.map(|answered| answered.keywords.iter().map(|keyword| keyword.text.as_str()).collect::<Vec<_>>()),
            "asked_by": self.asked_by,
            "tokens": answered.map(|answered| answered.tokens),
            "prompt_tokens": self.tokens,
        })
    }

    /// What the question adds to the tallies of the page that asked it first.
    fn counters(&self, add: &mut impl FnMut(&'static str, u64)) {
        let Some(answered) = &self.answered else { return };
        add("keywords.considered", self.list.considered as u64);
        add("keywords.candidates", self.list.terms.len() as u64);
        add("keywords.against_diet", self.list.against_diet as u64);
        add("keywords.against_policy", self.list.against_policy as u64);
        add("keywords.cache_hits", u64::from(answered.source == Source::Cache));
        add("keywords.asked", u64::from(answered.source != Source::Cache));
        add("keywords.fallback", u64::from(answered.source == Source::Fallback));
        add("keywords.tokens_prefilled", answered.tokens.prefilled);
        add("keywords.tokens_generated", answered.tokens.generated);
        add("keywords.tokens_forced", answered.tokens.forced);
        if let Some(tokens) = self.tokens {
            add("keywords.prompt_tokens_retrieved", tokens.retrieved);
            add("keywords.prompt_tokens_taxonomy", tokens.taxonomy);
            add("keywords.prompt_tokens_corpus", tokens.corpus);
        }
    }
}

/// The departments that the concepts of a page lie in, as far as the taxonomy knows them.
fn departments(page: &ThemesWritten, snapshot: &Snapshot) -> HashSet<String> {
    let concepts = page.themes.iter().flat_map(|theme| &theme.concepts);
    concepts.filter_map(|concept| Some(snapshot.category(&concept.to_lowercase())?.department.clone())).collect()
}

/// The page's verdict; `asked` has a question per theme and whether this page is the one that pays for it.
pub(crate) fn verdict(
    page: &ThemesWritten,
    asked: Vec<(&Question<'_>, bool)>,
    versions: Versions<'_>,
) -> Verdict<KeywordsChosen> {
    let mut counters: Vec<(&'static str, u64)> = Vec::new();
    let mut add = |name, amount| match counters.iter_mut().find(|(known, _)| *known == name) {
        Some((_, sum)) => *sum += amount,
        None => counters.push((name, amount)),
    };
    add("keywords.themes", page.themes.len() as u64);
    let mut drafts = Vec::with_capacity(page.themes.len());
    for (theme, (question, pays)) in page.themes.iter().zip(&asked) {
        match *pays {
            true => question.counters(&mut add),
            false => add("keywords.shared", 1),
        }
        match question.answered.as_ref().filter(|answered| !answered.keywords.is_empty()) {
            Some(answered) => drafts.push(draft(theme, answered)),
            None => add("keywords.without_candidates", 1),
        }
    }
    add("keywords.chosen", drafts.iter().map(|draft| draft.keywords.len() as u64).sum());
    let explanation = json!({
        "themes": asked.iter().map(|(question, _)| question.explained()).collect::<Vec<_>>(),
        "chooser": versions.chooser,
        "encoder": versions.encoder,
        "market": versions.market,
        "prompts": prompts::VERSION,
    });
    let own = [("keywords", versions.chooser), ("encoder", versions.encoder)];
    let own = own.into_iter().map(|(name, version)| (name.to_owned(), version.to_owned()));
    let ThemesWritten { head, brief, persona, versions, .. } = page.clone();
    let out = KeywordsChosen { head, brief, persona, drafts, versions: versions.into_iter().chain(own).collect() };
    Verdict::Passed(Box::new(Passed { out, explanation, writes: Vec::new(), counters }))
}

/// A theme of the model's whose keywords the merchandiser had to choose is no longer the model's alone.
fn draft(theme: &Theme, answered: &Answered) -> Draft {
    let mut theme = theme.clone();
    if answered.source == Source::Fallback && theme.origin == Origin::Model {
        theme.origin = Origin::ThemeFallback;
    }
    Draft { theme, keywords: answered.keywords.clone() }
}
