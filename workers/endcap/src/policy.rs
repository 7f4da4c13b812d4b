//! `endcap policy`: what the ranking service has learnt, version by version, and the way back to an earlier one.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use endcap_ranking::read_policy;
use endcap_runtime::{Clock, Policies, SystemClock};
use endcap_schemas::Feedback;
use serde::Serialize;

use crate::{
    cli::{DataArgs, PolicyCommand},
    config::Config,
    serve::outgoing_of,
    sides::Sides,
};

const CANNOT_READ: &str = "cannot read the policies";

/// A policy for people.
#[derive(Debug, Serialize)]
struct Row {
    version: i64,
    /// Impressions that it has learnt from; none where it cannot be read.
    impressions: Option<u64>,
    bytes: usize,
    fault: Option<String>,
}

/// Lists policies, or asks for an earlier one to be put back.
///
/// # Errors
/// When there is no data directory, it cannot be read, or the policy that is named cannot be used.
pub fn command(command: &PolicyCommand, config: impl Fn(&DataArgs) -> Result<Config>) -> Result<()> {
    match command {
        PolicyCommand::Ls { json, data } => list(&*Sides::open_existing(&config(data)?)?.store, *json),
        PolicyCommand::PutBack { version, data } => put_back(&Sides::open_existing(&config(data)?)?, *version),
    }
}

fn list(policies: &(impl Policies + ?Sized), json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    for version in policies.policy_versions().context(CANNOT_READ)? {
        let Some(row) = row(policies, version)? else { continue };
        if json {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
            continue;
        }
        let told = match (row.impressions, row.fault) {
            (Some(impressions), _) => format!("learnt from {impressions} impressions"),
            (None, fault) => format!("cannot be used: {}", fault.unwrap_or_default()),
        };
        writeln!(out, "policy {version}: {told}, {} bytes", row.bytes)?;
    }
    Ok(())
}

fn row(policies: &(impl Policies + ?Sized), version: i64) -> Result<Option<Row>> {
    let Some(stored) = policies.policy(version).context(CANNOT_READ)? else { return Ok(None) };
    let read = read_policy(&stored);
    Ok(Some(Row {
        version,
        impressions: read.as_ref().ok().map(|policy| policy.ranker().observations()),
        bytes: stored.snapshot.len(),
        fault: read.err().map(|error| error.to_string()),
    }))
}

/// Appends the wish to the log: the learner carries it out where it stands among the feedback, so that nothing is learnt in between or lost.
fn put_back(sides: &Sides, version: i64) -> Result<()> {
    if version != 0 {
        let stored = sides.store.policy(version).context(CANNOT_READ)?;
        let Some(stored) = stored else { bail!("policy {version} is not kept: `endcap policy ls` lists those that are") };
        read_policy(&stored).with_context(|| format!("policy {version} cannot be put back"))?;
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
