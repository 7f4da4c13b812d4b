//! Which generation a process runs as: what it is configured to be, beside what the store says is active.
//!
//! A configuration that equals the active manifest runs under its number; any other is deployed, as the next number. Processes that start at
//! once agree, as the store keeps one manifest per number. After a rollback, a process whose configuration is still the one that was rolled
//! back runs the rolled-back manifest in its place: its models, from where they lay, and its settings.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use endcap_inference::{
    ChooseKeywords, ChosenKeywords, Embed, Embedding, Handle, Model, Pair, Relevance, WriteThemes, WrittenThemes,
};
use endcap_runtime::{Clock, StoreOverview};

use crate::{
    config::Config,
    data::DataDir,
    manifest::{Generation, Manifest, Settings, Version, runs_as},
    path::{Fleet, PathConfig, StageName},
    places::{ModelName, Places},
    versions::Remembered,
};

/// The models of a configuration, as their files tell them before anything is loaded.
pub struct Models {
    places: Places,
    /// Those whose files are here; the others are of stages that other processes run.
    found: BTreeMap<ModelName, Version>,
    remembered: Remembered,
    laid_out: PathBuf,
    stages: Vec<StageName>,
}

impl Models {
    /// Looks at the models of `config`, for a process that runs `stages`.
    ///
    /// # Errors
    /// When a file is missing that the process needs, or one cannot be read.
    pub fn look(config: &Config, data: &DataDir, stages: &[StageName]) -> Result<Self> {
        let (places, mut remembered) = (Places::of(config, &data.models())?, Remembered::open(data.model_versions()));
        let mut found = BTreeMap::new();
        for name in ModelName::ALL {
            let dir = places.dir(name);
            if dir.is_dir() || name.is_loaded_for(stages) {
                let version = remembered.version_in(&dir, name, SystemTime::now())?;
                found.insert(name, Version { version, place: places.place(name).clone() });
            }
        }
        remembered.keep();
        Ok(Self { places, found, remembered, laid_out: data.models(), stages: stages.to_vec() })
    }

    /// What to run on the market of identity `market` with the settings `path`: the configuration, or what is active in its place.
    ///
    /// # Errors
    /// When the store does not answer or holds something else than generations, or this machine cannot run what is active.
    pub fn plan(self, market: String, path: &PathConfig, store: &dyn StoreOverview) -> Result<Plan> {
        let wanted = Manifest::new(market, self.found.clone(), Settings::of(path));
        let newest = generation(store, None)?;
        match newest {
            Some(newest) if !wanted.agrees_with(&newest.manifest) && would_run_as(&wanted, &newest, store)? => {
                self.take_up(wanted, path, &newest)
            }
            _ => Ok(Plan { running: wanted.clone(), wanted, places: self.places, path: path.clone() }),
        }
    }

    /// Plans to run `active` in place of `wanted`. A model of both is taken from where it is configured.
    fn take_up(mut self, wanted: Manifest, path: &PathConfig, active: &Generation) -> Result<Plan> {
        let Generation { number, manifest, .. } = active;
        let known = manifest.models.iter().filter(|(name, _)| wanted.models.contains_key(name));
        let comparable = Manifest { models: known.map(|(name, model)| (*name, model.clone())).collect(), ..manifest.clone() };
        tracing::warn!(
            generation = number,
            back_to = active.back_to,
            in_place_of = active.in_place_of,
            differences = comparable.differences(&wanted).join("; "),
            "the configuration was rolled back: running the manifest that is active in its place, until the configuration is another"
        );
        let place = |(name, model): (&ModelName, &Version)| {
            let own = wanted.models.get(name).filter(|own| own.version == model.version);
            (*name, own.unwrap_or(model).place.clone())
        };
        let places = Places::told(manifest.models.iter().map(place).collect(), &self.laid_out)?;
        let cannot = || format!("cannot run as generation {number}, which is active");
        let faults = missing(manifest, |name| {
            let needed = name.is_loaded_for(&self.stages);
            needed.then(|| self.remembered.version_in(&places.dir(name), name, SystemTime::now()))
        });
        ensure!(faults.is_empty(), "{}: {}", cannot(), faults.join("; "));
        self.remembered.keep();
        let path = manifest.settings.path(path).with_context(cannot)?;
        Ok(Plan { wanted, running: manifest.clone(), places, path })
    }
}

/// What a process is about to run. It has a number once its models are loaded: what cannot run is not deployed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where its models lie.
    pub places: Places,
    /// What its stages are set to.
    pub path: PathConfig,
    /// What is configured.
    wanted: Manifest,
    /// What will run.
    running: Manifest,
}

impl Plan {
    /// Refuses models that are others than their files said before they were loaded; the next start looks at the files anew.
    ///
    /// # Errors
    /// When one is.
    pub fn check<T, K, E, X>(&self, fleet: &Fleet<T, K, E, X>, data: &DataDir) -> Result<()>
    where
        T: Model<Request = WriteThemes, Answer = WrittenThemes>,
        K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let loaded = [
            (ModelName::Themes, fleet.themes.as_ref().map(Handle::version)),
            (ModelName::Keywords, fleet.keywords.as_ref().map(|(model, _)| model.version())),
            (ModelName::Encoder, Some(fleet.encoder.version())),
            (ModelName::CrossEncoder, fleet.judge.as_ref().map(|(model, _)| model.version())),
        ];
        for (name, version) in loaded {
            let expected = self.running.models.get(&name).map(|model| model.version.as_str());
            if version.is_some() && version != expected {
                Remembered::forget(&data.model_versions());
                bail!("the files of model {name} changed while it was loaded: start again when they are whole");
            }
        }
        Ok(())
    }

    /// The number of what will run. What is new is deployed under the next one; of processes that do so at once, each sees what the others
    /// brought.
    ///
    /// # Errors
    /// When the store does not answer, nothing more can be deployed, this machine lacks models, or something else became active meanwhile.
    pub fn deploy(&self, store: &dyn StoreOverview, clock: &dyn Clock) -> Result<i32> {
        let mut newest = generation(store, None)?;
        loop {
            let runs = newest.as_ref().map_or(Ok(false), |newest| would_run_as(&self.wanted, newest, store))?;
            match newest {
                Some(active) if runs && self.running.agrees_with(&active.manifest) => {
                    tracing::info!(generation = active.number, "runs under this generation");
                    return Ok(active.number);
                }
                last if !runs && self.running == self.wanted => {
                    newest = Some(add(store, Generation::deployed(&self.wanted, last.as_ref(), clock.now_ms())?)?);
                }
                active => {
                    let number = active.map_or(0, |active| active.number);
                    bail!("generation {number} became active while this process was starting: start it again")
                }
            }
        }
    }
}

/// Whether a process that is configured as `wanted` runs as `newest` when it starts, without a deployment.
fn would_run_as(wanted: &Manifest, newest: &Generation, store: &dyn StoreOverview) -> Result<bool> {
    let (mut replaced, mut last) = (Vec::new(), newest.clone());
    // A rollback of a rollback stands in for what was rolled back, and for what that had stood in for.
    while let Some(number) = last.in_place_of.filter(|number| *number < last.number) {
        last = named(store, number)?;
        replaced.push(last.manifest.clone());
    }
    Ok(runs_as(wanted, newest, &replaced))
}

/// Which models of `manifest` are no longer where they were, in words. `found` says what lies there; `None` for what need not be there.
pub(crate) fn missing(manifest: &Manifest, mut found: impl FnMut(ModelName) -> Option<Result<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, Version { version, place }) in &manifest.models {
        let remedy = format!("put {version} back there");
        match found(*name) {
            Some(Ok(found)) if found != *version => {
                faults.push(format!("model {name} at {place} is {found} now: {remedy}"));
            }
            Some(Err(error)) => faults.push(format!("model {name} is not at {place}: {error:#}; {remedy}")),
            _ => {}
        }
    }
    faults
}

/// The generation of this number; without one, the newest.
///
/// # Errors
/// When the store does not answer or holds something else there.
pub(crate) fn generation(store: &dyn StoreOverview, number: Option<i32>) -> Result<Option<Generation>> {
    let found = store.generation(number).context("cannot read the generations")?;
    found.map(|(number, text)| Generation::read(number, &text)).transpose()
}

/// The generation of this number, which must be there.
///
/// # Errors
/// As [`generation`]; when it is not there.
pub(crate) fn named(store: &dyn StoreOverview, number: i32) -> Result<Generation> {
    generation(store, Some(number))?.with_context(|| format!("there is no generation {number}: `endcap manifests` lists them"))
}

/// Deploys `manifest`, the active one, once more; answers its new number.
///
/// # Errors
/// When the store does not answer, nothing more can be deployed, or another manifest became active meanwhile.
pub(crate) fn again(store: &dyn StoreOverview, manifest: &Manifest, clock: &dyn Clock) -> Result<i32> {
    loop {
        let newest = generation(store, None)?.context("no manifest was deployed yet")?;
        ensure!(newest.manifest == *manifest, "generation {} became active meanwhile: try again", newest.number);
        let made = Generation::again(&newest, clock.now_ms())?;
        let kept = add(store, made.clone())?;
        if kept == made {
            return Ok(made.number);
        }
    }
}

/// Keeps `made`; answers what is kept under its number, which another process may have brought.
fn add(store: &dyn StoreOverview, made: Generation) -> Result<Generation> {
    match store.add_generation(made.number, &made.text()).context("cannot deploy the manifest")? {
        Some(other) => Generation::read(made.number, &other),
        None => {
            tracing::info!(generation = made.number, "deployed a new manifest");
            Ok(made)
        }
    }
}

/// Sees, while a process runs, that a start would make it run another manifest.
#[derive(Debug)]
pub(crate) struct Watch {
    wanted: Manifest,
    running: Manifest,
    /// The highest number that was looked at.
    seen: i32,
}

impl Watch {
    /// Of a process that runs `plan` under the number `generation`.
    pub(crate) fn new(plan: &Plan, generation: i32) -> Self {
        Self { wanted: plan.wanted.clone(), running: plan.running.clone(), seen: generation }
    }

    /// The rollback that this process does not run yet and that a start would take up; told once. Of processes that are configured otherwise
    /// nothing is told: a start would deploy that again, for ever.
    ///
    /// # Errors
    /// When the store does not answer or holds something else than a generation; the latter is told once.
    pub(crate) fn look(&mut self, store: &dyn StoreOverview) -> Result<Option<Generation>> {
        let newest = store.generation(None).context("cannot read the generations")?;
        let Some((number, text)) = newest.filter(|(number, _)| *number > self.seen) else { return Ok(None) };
        let newest = Generation::read(number, &text).inspect_err(|_| self.seen = number)?;
        // A replay deploys what runs already once more, as a rollback to it does.
        let is_other = !self.running.agrees_with(&newest.manifest) && would_run_as(&self.wanted, &newest, store)?;
        self.seen = number; // not before: a store that does not answer is asked again
        Ok(is_other.then_some(newest))
    }
}

#[cfg(test)]
mod tests;
