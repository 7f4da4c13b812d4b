//! The manifest: what makes pages what they are, under the number of its deployment, the generation.
//!
//! In it stand the models by their versions, the texts of prompts and the policy, the program, the market, and the stages' own settings.
//! What changes no page is left out: device, sizes of batches, addresses, rates, retention, and how long a shopper must rest. Catalogue and
//! index are left out too: they change with every import while processes run and follow it, and each page says which it was made from.
//! Everything here is pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use endcap_aiqa::AiqaConfig;
use endcap_context::ContextConfig;
use endcap_dedup::DedupConfig;
use endcap_inference::{prompts, verdicts::POLICY_VERSION};
use endcap_keywords::KeywordsConfig;
use endcap_themes::ThemesConfig;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    path::PathConfig,
    places::{ModelName, Place},
};

/// The number of the first deployment.
const FIRST: i32 = 1;
/// The greatest number: a stamp has three decimal digits for it.
const LAST: i32 = 999;
/// Digits of a digest.
const DIGITS: usize = 12;

/// What makes pages what they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the program.
    pub program: String,
    /// Version of the texts of prompts.
    pub prompts: String,
    /// Version of the policy that products are checked with.
    pub policy: String,
    /// Identity of the market.
    pub market: String,
    /// The models. A process that has no files of some, as it does not run them, leaves those out when it asks.
    pub models: BTreeMap<ModelName, Version>,
    /// The stages' own settings.
    pub settings: Settings,
}

/// A model in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its names and fingerprints, as pages tell them.
    pub version: String,
    /// Where it lay for the process that deployed it; elsewhere it may lie elsewhere.
    pub place: Place,
}

/// The stages' own settings, defaults included: a table per stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What they are compared by.
    pub digest: String,
    stages: Value,
}

impl Settings {
    /// Those of `path`.
    pub fn of(path: &PathConfig) -> Self {
        let PathConfig { context, themes, keywords, dedup, aiqa, debounce: _, backfill_share: _ } = path;
        let text = serde_json::to_string(&(context, themes, keywords, dedup, aiqa)).expect("settings are JSON");
        let tables: [Value; 5] = serde_json::from_str(&text).expect("it was just written");
        let stages = crate::config::STAGES.into_iter().map(str::to_owned).zip(tables).collect::<serde_json::Map<_, _>>();
        Self { digest: blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_owned(), stages: Value::Object(stages) }
    }

    /// The same as values, with what else the path of `beside` has.
    ///
    /// # Errors
    /// When this release does not know a setting or does not allow its value.
    pub fn path(&self, beside: &PathConfig) -> Result<PathConfig> {
        Ok(PathConfig {
            context: self.table("context", ContextConfig::check)?,
            themes: self.table("themes", ThemesConfig::check)?,
            keywords: self.table("keywords", KeywordsConfig::check)?,
            dedup: self.table("dedup", DedupConfig::check)?,
            aiqa: self.table("aiqa", AiqaConfig::check)?,
            debounce: beside.debounce,
            backfill_share: beside.backfill_share,
        })
    }

    fn table<T: DeserializeOwned>(&self, stage: &str, check: impl Fn(&T) -> Vec<String>) -> Result<T> {
        let what = || format!("this release cannot take the settings of stage {stage}");
        let table = T::deserialize(&self.stages[stage]).with_context(what)?;
        let faults = check(&table);
        ensure!(faults.is_empty(), "{}: {}", what(), faults.join("; "));
        Ok(table)
    }
}

impl Manifest {
    /// What this program makes pages with, on the market of identity `market`.
    pub fn new(market: String, models: BTreeMap<ModelName, Version>, settings: Settings) -> Self {
        let (program, prompts) = (env!("CARGO_PKG_VERSION").to_owned(), prompts::VERSION.to_owned());
        Self { program, prompts, policy: POLICY_VERSION.to_owned(), market, models, settings }
    }

    /// Whether a process that knows this much of what it runs may run as `whole`. Where models lie does not matter.
    pub fn agrees_with(&self, whole: &Manifest) -> bool {
        let parts = |manifest: &Manifest| {
            let Manifest { program, prompts, policy, market, models: _, settings } = manifest.clone();
            (program, prompts, policy, market, settings.digest)
        };
        let version = |name| whole.models.get(name).map(|model: &Version| &model.version);
        parts(self) == parts(whole) && self.models.iter().all(|(name, model)| version(name) == Some(&model.version))
    }

    /// Models that it says nothing of.
    pub fn unknown(&self) -> Vec<&'static str> {
        let unknown = ModelName::ALL.into_iter().filter(|name| !self.models.contains_key(name));
        unknown.map(ModelName::name).collect()
    }

    /// What differs from `before`, a line each.
    pub fn differences(&self, before: &Manifest) -> Vec<String> {
        let (before, after) = (before.entries(), self.entries());
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let shown = |value: Option<&String>| value.map_or("none", String::as_str).to_owned();
        let lines = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        lines.map(|name| format!("{name}: {} → {}", shown(before.get(name)), shown(after.get(name)))).collect()
    }

    /// Every value under its path, such as `aiqa.floor`; a model by its version.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let Manifest { program, prompts, policy, market, models, settings } = self;
        let mut entries = BTreeMap::new();
        flatten("", &json!({ "program": program, "prompts": prompts, "policy": policy, "market": market }), &mut entries);
        flatten("", &settings.stages, &mut entries);
        entries.extend(models.iter().map(|(name, model)| (format!("model {name}"), model.version.clone())));
        entries
    }
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            flatten(&path, value, into);
        }),
        Value::String(text) => {
            into.insert(path.to_owned(), text.clone());
        }
        Value::Null => {}
        other => {
            into.insert(path.to_owned(), other.to_string());
        }
    }
}

/// A deployment, as the store keeps it under its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    #[serde(skip)]
    pub number: i32,
    /// When it was deployed, ms.
    pub at_ms: i64,
    /// The one whose manifest this is again, where it is a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub back_to: Option<i32>,
    /// The one that was rolled back, where it is a rollback. Processes that are configured as that one, or as what that one stood in for
    /// itself, run this one in its place.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub in_place_of: Option<i32>,
    /// What it consists of.
    pub manifest: Manifest,
}

impl Generation {
    /// The deployment of `manifest` behind `newest`.
    ///
    /// # Errors
    /// When the numbers are used up, or `manifest` does not know all models.
    pub fn deployed(manifest: &Manifest, newest: Option<&Generation>, at_ms: i64) -> Result<Self> {
        let unknown = manifest.unknown();
        ensure!(
            unknown.is_empty(),
            "cannot deploy a new manifest from here, as this machine lacks files of the models {}: first start a process where all models \
             are, with the same configuration; the others follow it",
            unknown.join(" and ")
        );
        let number = next(newest)?;
        Ok(Self { number, at_ms, back_to: None, in_place_of: None, manifest: manifest.clone() })
    }

    /// The rollback from `active` to `target`, by this program.
    ///
    /// # Errors
    /// When the numbers are used up.
    pub fn rolled_back(target: &Generation, active: &Generation, at_ms: i64) -> Result<Self> {
        let manifest = Manifest { program: env!("CARGO_PKG_VERSION").to_owned(), ..target.manifest.clone() };
        Ok(Self { number: next(Some(active))?, at_ms, back_to: Some(target.number), in_place_of: Some(active.number), manifest })
    }

    /// The manifest of `newest` once more: what a replay makes under it wins against what was made of the same contexts before.
    ///
    /// # Errors
    /// When the numbers are used up.
    pub fn again(newest: &Generation, at_ms: i64) -> Result<Self> {
        Ok(Self { number: next(Some(newest))?, at_ms, ..newest.clone() })
    }

    /// Reads what the store keeps under `number`.
    ///
    /// # Errors
    /// When it is not a deployment; with the remedy.
    pub fn read(number: i32, text: &str) -> Result<Self> {
        let what = || {
            format!(
                "cannot read generation {number} of the store: use the release that has written it, put its row in the table `generations` \
                 back from a copy of the store, or delete the row, and the next start deploys its own configuration"
            )
        };
        let mut read: Self = serde_json::from_str(text).with_context(what)?;
        let unknown = read.manifest.unknown();
        if !unknown.is_empty() {
            return Err(anyhow::anyhow!("models {} are missing", unknown.join(", "))).with_context(what);
        }
        read.number = number;
        Ok(read)
    }

    /// What the store keeps.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("a generation is JSON")
    }
}

fn next(newest: Option<&Generation>) -> Result<i32> {
    let number = newest.map_or(FIRST, |newest| newest.number + 1);
    if number > LAST {
        bail!(
            "cannot deploy another manifest: generation {LAST} is the last that the pages' timestamps have room for: go on with the manifest \
             that is active (`endcap manifests` shows it), or begin with an empty store (another --data, or another keyspace)"
        );
    }
    Ok(number)
}

/// Whether a process that is configured as `wanted` runs as `newest`, without a deployment. `replaced` are the manifests that `newest` stands
/// in for, where it is a rollback.
pub fn runs_as(wanted: &Manifest, newest: &Generation, replaced: &[Manifest]) -> bool {
    wanted.agrees_with(&newest.manifest) || replaced.iter().any(|replaced| wanted.agrees_with(replaced))
}

#[cfg(test)]
pub(crate) mod tests;
