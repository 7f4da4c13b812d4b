//! The themes stage (paper 4.2): LLM 1 writes a page of themes as JSON, guardrails read it, the merchandiser stands in.
//!
//! [`decide`] decides, [`ThemesStage`] waits. The model is asked once per batch; shoppers without history or consent never reach it.

mod config;
mod guard;
mod page;

use std::sync::Arc;

use endcap_inference::{Handle, Model, ModelError, TokenCounts, WriteThemes, WrittenThemes, prompts};
use endcap_market::Merchandiser;
use endcap_retrieval::{Market, PerVersion, Snapshot};
use endcap_runtime::{Input, Passed, Stage, StageError, Verdict};
use endcap_schemas::{ContextChanged, Origin, ThemesWritten};
use serde_json::json;

pub use config::{GuardConfig, ThemesConfig};
pub use guard::{Guard, Reason};
pub use page::{Decision, Source, decide, parse};

/// The stage.
pub struct ThemesStage<M: Model<Request = WriteThemes, Answer = WrittenThemes>> {
    config: ThemesConfig,
    market: Market,
    model: Handle<M>,
    /// Guardrails and merchandiser of a catalogue version.
    rules: PerVersion<Rules>,
}

struct Rules {
    guard: Guard,
    merchandiser: Merchandiser,
}

/// What stands behind a page: the model's answer with its prompt and cost, or why there is none.
#[derive(Clone)]
struct Reply {
    prompt: Option<String>,
    source: Source,
    tokens: TokenCounts,
}

impl<M: Model<Request = WriteThemes, Answer = WrittenThemes>> ThemesStage<M> {
    /// A stage that asks `model` and knows the taxonomy of `market`.
    pub fn new(config: ThemesConfig, market: Market, model: Handle<M>) -> Self {
        Self { config, market, model, rules: PerVersion::default() }
    }

    fn rules(&mut self, snapshot: &Snapshot) -> Arc<Rules> {
        self.rules.get(snapshot.catalogue_version(), || Rules {
            guard: Guard::over(self.config.guard.clone(), snapshot),
            merchandiser: Merchandiser::new(snapshot.categories().to_vec()),
        })
    }

    /// What stands behind every page of the batch.
    fn replies(&self, batch: &[Input<ContextChanged>], merchandiser: &Merchandiser) -> Result<Vec<Reply>, StageError> {
        let asked: Vec<usize> = (0..batch.len()).filter(|&i| !is_cold(&batch[i].value)).collect();
        let prompt = |context: &ContextChanged| prompts::themes(context, &merchandiser.nearby(context, self.config.themes));
        let requests: Vec<WriteThemes> =
            asked.iter().map(|&i| WriteThemes { prompt: prompt(&batch[i].value), themes: self.config.themes }).collect();
        let cold = Reply { prompt: None, source: Source::Cold, tokens: TokenCounts::default() };
        let mut replies = vec![cold; batch.len()];
        for (&i, request) in asked.iter().zip(&requests) {
            replies[i].prompt = Some(request.prompt.clone());
        }
        for (i, answer) in asked.into_iter().zip(self.model.ask_all(requests)) {
            match answer {
                Ok(written) => (replies[i].source, replies[i].tokens) = (Source::Model(written.json), written.tokens),
                Err(ModelError::Request(reason)) => {
                    replies[i].source = Source::Failed(format!("model cannot answer: {reason}"));
                }
                Err(error) => return Err(StageError::model("theme model", &error)),
            };
        }
        Ok(replies)
    }
}

impl<M: Model<Request = WriteThemes, Answer = WrittenThemes>> Stage for ThemesStage<M> {
    type In = ContextChanged;
    type Out = ThemesWritten;
    const NAME: &'static str = "themes";

    fn process(&mut self, batch: &[Input<ContextChanged>]) -> Result<Vec<Verdict<ThemesWritten>>, StageError> {
        let snapshot = self.market.snapshot();
        let rules = self.rules(&snapshot);
        let replies = self.replies(batch, &rules.merchandiser)?;
        Ok(batch
            .iter()
            .zip(replies)
            .map(|(input, reply)| {
                let context = &input.value;
                let decision = decide(context, &reply.source, self.config.themes, &rules.guard, &rules.merchandiser);
                verdict(context, reply, decision, self.model.version())
            })
            .collect())
    }
}

/// Whether a page for this shopper can only be season and popularity.
pub fn is_cold(context: &ContextChanged) -> bool {
    !context.brief.personalise || (context.favourites.is_empty() && context.recent.is_empty())
}

fn verdict(context: &ContextChanged, reply: Reply, decision: Decision, model: &str) -> Verdict<ThemesWritten> {
    let rejected = decision.rejected_themes();
    let Reply { prompt, source, tokens } = reply;
    let (asked, written) = match &source {
        Source::Model(json) => (true, Some(json.as_str())),
        Source::Failed(_) => (true, None),
        Source::Cold => (false, None),
    };
    let explanation = json!({
        "prompt": prompt,
        "written": written,
        "model": asked.then_some(model),
        "prompts": prompts::VERSION,
        "tokens": tokens,
        "failed": decision.failed,
        "rejected": rejected,
        "themes": decision.themes.iter().map(|theme| json!({ "title": theme.title, "origin": theme.origin })).collect::<Vec<_>>(),
    });
    let counters = counters(&source, tokens, &decision);
    let out = ThemesWritten {
        head: context.head.clone(),
        brief: context.brief.clone(),
        persona: decision.persona,
        themes: decision.themes,
        rejected,
        versions: [("themes".to_owned(), model.to_owned())].into(),
    };
    Verdict::Passed(Box::new(Passed { out, explanation, writes: Vec::new(), counters }))
}

fn counters(source: &Source, tokens: TokenCounts, decision: &Decision) -> Vec<(&'static str, u64)> {
    let of = |origin| decision.themes.iter().filter(|theme| theme.origin == origin).count() as u64;
    let mut counters = vec![
        ("themes.pages", 1),
        ("themes.pages_asked", u64::from(*source != Source::Cold)),
        ("themes.pages_failed", u64::from(decision.failed.is_some())),
        ("themes.from_model", of(Origin::Model)),
        ("themes.theme_fallback", of(Origin::ThemeFallback)),
        ("themes.page_fallback", of(Origin::PageFallback)),
        ("themes.cold", of(Origin::Cold)),
        ("themes.tokens_prefilled", tokens.prefilled),
        ("themes.tokens_generated", tokens.generated),
        ("themes.tokens_forced", tokens.forced),
    ];
    counters.extend(decision.rejected.iter().map(|(_, reason)| (reason.counter(), 1)));
    counters
}

#[cfg(test)]
mod tests;
