//! `endcap manifests` and `endcap rollback`: what the pipeline was deployed with, and how an earlier manifest becomes active again.

use std::{
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use endcap_inference::{prompts, verdicts::POLICY_VERSION};
use endcap_runtime::{Clock, StoreOverview, SystemClock};
use serde_json::json;

use crate::{
    cli::{ManifestsArgs, RollbackArgs},
    config::Config,
    data,
    deploy::{missing, named},
    grounds,
    manifest::{Generation, Manifest},
    path::PathConfig,
    places::{self, Place, dir_of},
    printable::printable,
    running::ROLLED_BACK,
    sides::Sides,
    versions::version_in,
};

/// Lists the generations, the newest first, each with what differs from the one before it.
///
/// # Errors
/// When there is no store, or it does not answer.
pub fn manifests(args: &ManifestsArgs, config: &Config) -> Result<()> {
    let store = Sides::open_existing(config)?.store;
    let kept = store.generations().context("cannot read the generations")?;
    let mut out = io::stdout().lock();
    for (place, (number, text)) in kept.iter().enumerate() {
        let read = Generation::read(*number, text);
        // An older one that cannot be read is passed over: the one before it is the next that can.
        let older = kept[place + 1..].iter().find_map(|(number, text)| Generation::read(*number, text).ok());
        let line = if args.json {
            json_line(*number, &read, older.as_ref(), place == 0)
        } else {
            told(&read, older.as_ref(), place == 0)
        };
        writeln!(out, "{line}")?;
    }
    if kept.is_empty() && !args.json {
        writeln!(out, "no manifest was deployed yet: `endcap up` or `endcap run` deploys the first")?;
    }
    Ok(())
}

fn json_line(number: i32, read: &Result<Generation>, older: Option<&Generation>, active: bool) -> String {
    let line = match read {
        Ok(Generation { at_ms, back_to, in_place_of, manifest, .. }) => json!({
            "generation": number, "active": active, "at_ms": at_ms, "back_to": back_to, "in_place_of": in_place_of,
            "differences": differences(manifest, older), "manifest": manifest,
        }),
        Err(error) => json!({ "generation": number, "active": active, "error": format!("{error:#}") }),
    };
    line.to_string()
}

/// A generation for people: all of the first one, of a later one what is new.
fn told(read: &Result<Generation>, older: Option<&Generation>, active: bool) -> String {
    let Generation { number, at_ms, back_to, manifest, .. } = match read {
        Ok(read) => read,
        Err(error) => return format!("{error:#}"),
    };
    let back = back_to.map_or_else(String::new, |back| format!(", back to generation {back}"));
    let active = if active { ", active" } else { "" };
    let mut lines = vec![format!("generation {number}, {}{back}{active}", date(*at_ms))];
    let details = match older {
        Some(_) => differences(manifest, older),
        None => manifest.entries().into_iter().map(|(name, value)| format!("{name}: {value}")).collect(),
    };
    lines.extend(details.iter().map(|line| format!("    {}", printable(line))));
    if details.is_empty() {
        lines.push("    nothing differs from the one before".to_owned());
    }
    lines.join("\n")
}

fn differences(manifest: &Manifest, older: Option<&Generation>) -> Vec<String> {
    older.map_or_else(Vec::new, |older| manifest.differences(&older.manifest))
}

fn date(at_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(at_ms).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// Makes the manifest of an earlier generation active again, as a new one.
///
/// # Errors
/// When there is no such generation, its models are no longer where they were, this release cannot take it, or another process deploys
/// something at the same time; with the remedy. Then nothing has changed.
pub fn rollback(args: &RollbackArgs, config: &Config) -> Result<()> {
    let sides = Sides::open_existing(config)?;
    let store = &*sides.store;
    let Some((number, text)) = store.generation(None).context("cannot read the generations")? else {
        bail!("there is nothing to roll back: no manifest was deployed yet");
    };
    let active = Generation::read(number, &text)?;
    let target = match args.to {
        Some(number) => named(store, number)?,
        None => earlier(store, &active)?,
    };
    let made = Generation::rolled_back(&target, &active, SystemClock::default().now_ms())?;
    let differences = made.manifest.differences(&active.manifest);
    ensure!(!differences.is_empty(), "generation {number} is active, and its manifest is that of generation {}", target.number);
    check(&made.manifest, config, &sides).with_context(|| format!("cannot roll back to generation {}", target.number))?;
    let verb = if args.dry_run { "would be" } else { "is" };
    if !args.dry_run && store.add_generation(made.number, &made.text()).context("cannot roll back")?.is_some() {
        bail!("another process has deployed a manifest meanwhile: look at `endcap manifests`, then roll back again");
    }
    println!("generation {} {verb} active: the manifest of generation {} in place of {}", made.number, target.number, number);
    differences.iter().for_each(|line| println!("    {}", printable(line)));
    if !args.dry_run {
        println!(
            "processes that run end within seconds, with exit code {ROLLED_BACK}, and take it up when they are started again with the \
             configuration that they had; then `endcap replay contexts` makes the pages anew"
        );
    }
    Ok(())
}

/// The latest generation before `active` that was something else and can be read.
fn earlier(store: &dyn StoreOverview, active: &Generation) -> Result<Generation> {
    let kept = store.generations().context("cannot read the generations")?;
    let older = kept.iter().filter(|(number, _)| *number < active.number);
    let mut older = older.filter_map(|(number, text)| Generation::read(*number, text).ok());
    let other = older.find(|older| !older.manifest.differences(&active.manifest).is_empty());
    other.with_context(|| format!("there is nothing to roll back to: no generation before {} was another", active.number))
}

/// Refuses a manifest that this program cannot run any more; tells all reasons at once.
fn check(manifest: &Manifest, config: &Config, sides: &Sides) -> Result<()> {
    let laid_out = data::models_in(&config.data);
    let mut faults = missing(manifest, |name| match &manifest.models[&name].place {
        Place::BuiltIn(folder) if places::is_own(folder) => None, // what is inside this binary is as it was
        place => Some(version_in(&dir_of(place, name, &laid_out), name)),
    });
    for (what, its, own) in [("prompts", &manifest.prompts, prompts::VERSION), ("policy", &manifest.policy, POLICY_VERSION)] {
        if its != own {
            faults.push(format!(
                "it has {what} of version {its}, this program has {own}: use the release that it was deployed with"
            ));
        }
    }
    if let Some(market) = grounds::noted_identity(&*sides.store)?.filter(|market| *market != manifest.market) {
        faults.push(format!("it is about the market {}, the store is about {market}", manifest.market));
    }
    if let Err(error) = manifest.settings.path(&PathConfig::default()) {
        faults.push(format!("{error:#}"));
    }
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}
