//! `endcap policy`: what the ranking service has learnt, version by version, and the way back to an earlier one.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use endcap_ranking::{KeptPolicy, can_be_put_back};
use endcap_runtime::{Clock, Policies, StoredPolicy, SystemClock};
use endcap_schemas::Feedback;
use serde::Serialize;

use crate::{
    cli::{DataArgs, PolicyCommand},
    config::Config,
    serve::outgoing_of,
    sides::Sides,
    times,
};

const CANNOT_READ: &str = "cannot read the policies";

/// A policy for people.
#[derive(Debug, Serialize)]
struct Row {
    version: i64,
    /// Whether whoever serves goes by it.
    serves: bool,
    /// Impressions that it has learnt from; none where it cannot be read.
    impressions: Option<u64>,
    /// When the newest slate that it has learnt from was served.
    learnt_until_ms: Option<i64>,
    bytes: usize,
    fault: Option<String>,
}

/// Lists policies, or asks for an earlier one to be put back.
///
/// # Errors
/// When there is no data directory, it cannot be read, or the policy that is named cannot be put back.
pub fn command(command: &PolicyCommand, config: impl Fn(&DataArgs) -> Result<Config>) -> Result<()> {
    match command {
        PolicyCommand::Ls { json, data } => list(&*Sides::open_existing(&config(data)?)?.store, *json),
        PolicyCommand::PutBack { version, data } => put_back(&Sides::open_existing(&config(data)?)?, *version),
    }
}

fn list(policies: &(impl Policies + ?Sized), json: bool) -> Result<()> {
    let (mut out, mut none_serves) = (io::stdout().lock(), true);
    let versions = policies.policy_versions().context(CANNOT_READ)?;
    if versions.is_empty() && !json {
        writeln!(out, "nothing was learnt yet: the policy that has learnt nothing serves")?;
    }
    for version in versions {
        let Some(stored) = policies.policy(version).context(CANNOT_READ)? else { continue };
        let row = Row::of(&stored, none_serves);
        none_serves &= row.fault.is_some();
        let line = if json { serde_json::to_string(&row)? } else { row.told() };
        writeln!(out, "{line}")?;
    }
    Ok(())
}

impl Row {
    /// That of `stored`, which serves if it can be used and `none_serves` of those that are newer.
    fn of(stored: &StoredPolicy, none_serves: bool) -> Self {
        let row = Self {
            version: stored.version,
            serves: false,
            impressions: None,
            learnt_until_ms: None,
            bytes: stored.snapshot.len(),
            fault: None,
        };
        match KeptPolicy::read(stored) {
            Ok(kept) => Self {
                serves: none_serves,
                impressions: Some(kept.impressions()),
                learnt_until_ms: kept.learnt_until_ms(),
                ..row
            },
            Err(error) => {
                let remedy = if can_be_put_back(stored).is_ok() { "; it can be put back" } else { "" };
                Self { fault: Some(format!("{error}{remedy}")), ..row }
            }
        }
    }

    fn told(&self) -> String {
        let Self { version, serves, impressions, learnt_until_ms, bytes, fault } = self;
        let until = learnt_until_ms.map(|ms| format!(", until {}", times::at(ms))).unwrap_or_default();
        let told = match impressions {
            Some(impressions) => format!("learnt from {impressions} impressions{until}"),
            None => format!("cannot serve: {}", fault.as_deref().unwrap_or_default()),
        };
        format!("policy {version}: {told}, {bytes} bytes{}", if *serves { ", serves" } else { "" })
    }
}

/// Appends the wish to the log: the learner carries it out where it stands among the feedback, so that nothing is learnt in between or lost.
fn put_back(sides: &Sides, version: i64) -> Result<()> {
    if version != 0 {
        let stored = sides.store.policy(version).context(CANNOT_READ)?;
        let Some(stored) = stored else { bail!("policy {version} is not kept: `endcap policy ls` lists those that are") };
        can_be_put_back(&stored).with_context(|| format!("policy {version} cannot be put back"))?;
    }
    let now_ms = SystemClock::default().now_ms();
    let wish = Feedback::put_back(version, format!("put-back-{version}-{now_ms}"), now_ms);
    sides.log.append(&[outgoing_of(&wish)?], None).context("cannot append the wish")?;
    println!(
        "the wish is in the log: whoever learns (`endcap serve`, `endcap up`) goes on from policy {version}, under a new version, and every \
         storefront follows within seconds"
    );
    Ok(())
}
