//! The dedup stage (paper 4.4): removes drafts that say again what a better-placed draft of the page says.
//!
//! A draft is its title and its keywords; two are repeats when the cosine of their vectors reaches the threshold. Repeats of *earlier*
//! pages are left alone on purpose: a page stays a function of its context.

use endcap_inference::{Embed, Embedding, Handle, Model, ModelError, prompts};
use endcap_runtime::{Input, Passed, Stage, StageError, Verdict, outside};
use endcap_schemas::{Draft, DroppedDraft, KeywordsChosen, ThemesDeduped};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Settings of the dedup stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DedupConfig {
    /// Cosine (−1…1) from which a draft repeats a better-placed one.
    pub cosine_min: f64,
    /// Keywords of a draft that are looked at, best first.
    pub keywords_max: usize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { cosine_min: 0.92, keywords_max: 8 }
    }
}

impl DedupConfig {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        let keywords = outside("keywords_max", self.keywords_max, 0..=64);
        outside("cosine_min", self.cosine_min, -1.0..=1.0).into_iter().chain(keywords).collect()
    }
}

/// The stage.
pub struct DedupStage<E: Model<Request = Embed, Answer = Embedding>> {
    config: DedupConfig,
    encoder: Handle<E>,
}

impl<E: Model<Request = Embed, Answer = Embedding>> DedupStage<E> {
    /// A stage that compares drafts with `encoder`.
    pub fn new(config: DedupConfig, encoder: Handle<E>) -> Self {
        Self { config, encoder }
    }

    /// The vectors of the batch's texts; a text that the encoder cannot take has none.
    fn vectors(&self, texts: &[Embed]) -> Result<Vec<Option<Embedding>>, StageError> {
        self.encoder
            .ask_distinct(texts)
            .into_iter()
            .map(|answer| match answer {
                Ok(vector) => Ok(Some(vector)),
                Err(ModelError::Request(_)) => Ok(None),
                Err(error) => Err(StageError::model("encoder", &error)),
            })
            .collect()
    }
}

impl<E: Model<Request = Embed, Answer = Embedding>> Stage for DedupStage<E> {
    type In = KeywordsChosen;
    type Out = ThemesDeduped;
    const NAME: &'static str = "dedup";

    fn process(&mut self, batch: &[Input<KeywordsChosen>]) -> Result<Vec<Verdict<ThemesDeduped>>, StageError> {
        let texts: Vec<Embed> = batch
            .iter()
            .flat_map(|input| &input.value.drafts)
            .map(|draft| Embed { text: draft_text(draft, self.config.keywords_max) })
            .collect();
        let mut vectors = self.vectors(&texts)?.into_iter();
        Ok(batch
            .iter()
            .map(|input| {
                let page = &input.value;
                let vectors: Vec<_> = vectors.by_ref().take(page.drafts.len()).collect();
                verdict(page, decide(&page.drafts, &vectors, self.config.cosine_min), self.encoder.version())
            })
            .collect())
    }
}

/// What a draft is compared by: its title, then its keywords, in plain text.
pub fn draft_text(draft: &Draft, keywords_max: usize) -> String {
    let mut text = prompts::plain(&draft.theme.title);
    for keyword in draft.keywords.iter().take(keywords_max) {
        text.push_str(" ; ");
        text.push_str(&prompts::plain(&keyword.text));
    }
    text
}

/// What became of a page's drafts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Indexes of the drafts that stay, in page order.
    pub kept: Vec<usize>,
    /// Those that go.
    pub dropped: Vec<DroppedDraft>,
    /// Largest cosine among drafts that stay; 0 where fewer than two do.
    pub closest: f64,
}

/// Walks down the page; a draft goes when it comes as close as `cosine_min` to one that stays above it. `vectors` are those of
/// `drafts`, of unit length; a draft without one stays.
pub fn decide(drafts: &[Draft], vectors: &[Option<Embedding>], cosine_min: f64) -> Decision {
    let mut decision = Decision::default();
    for (i, draft) in drafts.iter().enumerate() {
        let nearest = decision
            .kept
            .iter()
            .filter_map(|&above| Some((above, cosine(vectors[above].as_ref()?, vectors[i].as_ref()?))))
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        match nearest {
            Some((above, cosine)) if cosine >= cosine_min => decision.dropped.push(DroppedDraft {
                title: draft.theme.title.clone(),
                repeats: drafts[above].theme.title.clone(),
                cosine,
            }),
            nearest => {
                decision.closest = nearest.map_or(decision.closest, |(_, cosine)| decision.closest.max(cosine));
                decision.kept.push(i);
            }
        }
    }
    decision
}

fn cosine(a: &Embedding, b: &Embedding) -> f64 {
    a.0.iter().zip(&b.0).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn verdict(page: &KeywordsChosen, decision: Decision, encoder: &str) -> Verdict<ThemesDeduped> {
    let explanation =
        json!({ "kept": decision.kept, "dropped": decision.dropped, "closest": decision.closest, "encoder": encoder });
    let counters = vec![("dedup.drafts", page.drafts.len() as u64), ("dedup.dropped", decision.dropped.len() as u64)];
    let out = ThemesDeduped {
        head: page.head.clone(),
        brief: page.brief.clone(),
        persona: page.persona.clone(),
        drafts: decision.kept.iter().map(|&i| page.drafts[i].clone()).collect(),
        dropped: decision.dropped,
        versions: page.versions.clone(),
    };
    Verdict::Passed(Box::new(Passed { out, explanation, writes: Vec::new(), counters }))
}

#[cfg(test)]
mod tests;
