//! From a purchase to the page, stage by stage: what each was asked, what it answered, how long it took, and with which versions.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::{Context, Result, bail};
use endcap_runtime::StageResult;
use endcap_schemas::UserKey;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{cli::ExplainArgs, config::Config, desk, grounds, printable::printable, sides::Sides, times, view::PageView};

/// Longest text on one line of the terminal; longer texts get lines of their own.
const LINE: usize = 100;

/// How a shopper's page came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Story {
    /// Whose.
    pub user: String,
    /// The event behind the page, where there is a page.
    pub event: Option<EventRef>,
    /// Latest result of every stage, in path order.
    pub stages: Vec<StageStory>,
    /// The page.
    pub page: Option<PageView>,
}

/// The event behind a page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRef {
    /// Its id.
    pub id: String,
    /// When the log took it, ms.
    pub accepted_ms: i64,
}

/// What one stage did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStory {
    /// Its name.
    pub stage: String,
    /// The context that it worked on.
    pub context_ms: i64,
    /// When it was done, ms.
    pub at_ms: i64,
    /// `passed`, `dropped` or `dead_lettered`.
    pub verdict: String,
    /// Why it was not passed on; empty where it was.
    pub reason: String,
    /// Time inside the stage, with the other records of its batch, ms.
    pub infer_ms: f64,
    /// Time in the topic before it, ms.
    pub waited_ms: f64,
    /// Records of the batch.
    pub batch_records: u64,
    /// What the stage itself wrote down: prompts, candidates, outputs, versions.
    pub explanation: Value,
}

/// `endcap explain`.
///
/// # Errors
/// When there is no data directory, it cannot be read, or nothing is known of the shopper.
pub fn command(args: &ExplainArgs, config: &Config) -> Result<()> {
    let store = Sides::open_existing(config)?.store;
    let market = grounds::open_existing(config)?;
    let mut found = None;
    for user in readings(&args.user) {
        found = desk::story_of(&*store, &market, &user)?;
        if found.is_some() {
            break;
        }
    }
    let Some(story) = found else {
        let slash = if args.user.contains('/') { ", neither as `tenant/user` nor as an id with a slash" } else { "" };
        bail!("nothing is known of shopper {}{slash}: no event of theirs was processed, or it was too long ago", args.user);
    };
    let text = if args.json { serde_json::to_string_pretty(&story)? + "\n" } else { story.to_text() };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Whom `text` may mean: `tenant/user`, else a user of the default tenant whose id holds the slash.
fn readings(text: &str) -> Vec<UserKey> {
    let mut users = vec![UserKey::named(text), UserKey::of(text)];
    users.dedup();
    users
}

impl StageStory {
    /// Reads what the loop stored.
    ///
    /// # Errors
    /// When it is not what this version stores.
    pub fn of(result: &StageResult) -> Result<Self> {
        let mut told: Map<String, Value> = serde_json::from_str(&result.explanation)
            .with_context(|| format!("cannot read what stage {} stored", result.stage))?;
        let mut text = |key: &str| told.remove(key).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        let (verdict, reason) = (text("verdict"), text("reason"));
        let number = |key: &str| told.get(key).and_then(Value::as_f64).unwrap_or_default();
        Ok(Self {
            stage: result.stage.clone(),
            context_ms: result.stamp.0.div_euclid(1_000),
            at_ms: result.at_ms,
            verdict,
            reason,
            infer_ms: number("infer_ms"),
            waited_ms: number("waited_ms"),
            batch_records: told.get("batch_records").and_then(Value::as_u64).unwrap_or_default(),
            explanation: told.remove("explanation").unwrap_or_default(),
        })
    }

    /// Id of the event that the context stage folded last; none for other stages.
    pub fn event_id(&self) -> Option<&str> {
        self.explanation.get("event")?.get("id")?.as_str()
    }
}

impl Story {
    /// For the terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        line(&mut text, 0, &format!("shopper {}", self.user));
        if let Some(event) = &self.event {
            line(&mut text, 0, &format!("event {} accepted at {}", event.id, times::at(event.accepted_ms)));
        }
        for stage in &self.stages {
            let after =
                self.event.as_ref().filter(|_| self.page.as_ref().is_some_and(|page| page.context_ms == stage.context_ms));
            let after = after.map_or_else(String::new, |event| {
                format!(", {} after the event", times::lasted((stage.at_ms - event.accepted_ms) as f64))
            });
            text.push('\n');
            line(&mut text, 0, &format!("── {} ── {}{}{after}", stage.stage, stage.verdict, bracket(&stage.reason)));
            let timing = format!(
                "waited {}, worked {} in a batch of {}, context of {}",
                times::lasted(stage.waited_ms),
                times::lasted(stage.infer_ms),
                stage.batch_records,
                times::at(stage.context_ms)
            );
            line(&mut text, 1, &timing);
            tell(&mut text, 1, &times::written_out(&stage.explanation));
        }
        if let Some(page) = &self.page {
            text.push('\n');
            line(&mut text, 0, &told_of(page));
            for (position, placement) in page.placements.iter().enumerate() {
                let keywords: Vec<&str> = placement.keywords.iter().map(|keyword| keyword.text.as_str()).collect();
                line(
                    &mut text,
                    1,
                    &format!("{}. {} ({:?}): {}", position + 1, placement.title, placement.origin, placement.intent),
                );
                line(&mut text, 2, &format!("keywords: {}", keywords.join(", ")));
                line(&mut text, 2, &format!("{} products of {} retrieved", placement.products.len(), placement.retrieved));
            }
            for (name, version) in &page.versions {
                line(&mut text, 1, &format!("{name}: {version}"));
            }
        }
        text
    }
}

fn told_of(page: &PageView) -> String {
    let after = times::lasted(page.freshness_ms as f64);
    format!("── page ── {}, readable {after} after the event, generation {}", page.persona, page.generation)
}

fn bracket(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

fn line(text: &mut String, depth: usize, words: &str) {
    for row in words.split('\n') {
        let _ = writeln!(text, "{:indent$}{}", "", printable(row), indent = depth * 2); // writing to a String cannot fail
    }
}

/// Any JSON value as indented lines.
fn tell(text: &mut String, depth: usize, value: &Value) {
    let Value::Object(entries) = value else { return line(text, depth, &flat(value)) };
    for (key, value) in entries {
        let short = flat(value);
        if short.len() <= LINE {
            line(text, depth, &format!("{key}: {short}"));
            continue;
        }
        line(text, depth, &format!("{key}:"));
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (i, item) in items.iter().enumerate() {
                    line(text, depth + 1, &format!("[{i}]"));
                    tell(text, depth + 2, item);
                }
            }
            Value::Object(_) => tell(text, depth + 1, value),
            _ => line(text, depth + 1, &short),
        }
    }
}

fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(flat).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Stamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slash_may_end_the_tenant_or_belong_to_the_id() {
        let key = |tenant: &str, user: &str| UserKey { tenant: tenant.into(), user: user.into() };
        assert_eq!(readings("ada"), [key("default", "ada")]);
        assert_eq!(readings("a/b"), [key("a", "b"), key("default", "a/b")]);
        assert_eq!(readings("default/a/b"), [key("default", "a/b"), key("default", "default/a/b")]);
    }

    #[test]
    fn a_stored_result_is_told_in_lines() {
        let stored = json!({
            "verdict": "passed", "reason": "", "infer_ms": 12.5, "waited_ms": 3, "batch_records": 4,
            "explanation": { "prompt": "<themes>\nbuy", "dislikes": ["\u{202e}evil"], "themes": [{ "title": "Tea time", "concepts": ["tea".repeat(40)] }] },
        });
        let result = StageResult {
            user: UserKey::of("u"),
            stage: "themes".into(),
            stamp: Stamp::of(7, 1),
            explanation: stored.to_string(),
            at_ms: 20,
        };
        let stage = StageStory::of(&result).unwrap();
        assert_eq!((stage.context_ms, stage.batch_records, stage.verdict.as_str()), (7, 4, "passed"));
        let text = Story { user: "u".into(), event: None, stages: vec![stage], page: None }.to_text();
        for part in [
            "── themes ── passed",
            "waited 3 ms, worked 12 ms in a batch of 4, context of 1970-01-01T00:00:00.007Z",
            "prompt: <themes>\n  buy",
            "\\u{202e}evil",
            "title: Tea time",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
