//! `endcap dlq`: what could not be processed.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use endcap_runtime::{Broker, Clock, DeadLetterFilter, DeadLetterId, INGEST, SystemClock};

use crate::{
    cli::{DataArgs, DlqCommand, DlqFilter},
    config::Config,
    desk::{DeadLetterRow, original_text},
    printable::printable,
    sides::Sides,
};

const CANNOT_READ: &str = "cannot read dead letters";

/// Lists dead letters, shows one, or sends them again.
///
/// # Errors
/// When there is no data directory, it cannot be read, or nothing is named that could be sent again.
pub fn command(command: &DlqCommand, config: impl Fn(&DataArgs) -> Result<Config>) -> Result<()> {
    let log = |data| Ok::<_, anyhow::Error>(Sides::open_existing(&config(data)?)?.log);
    match command {
        DlqCommand::Ls { filter, json, data } => list(&*log(data)?, &filter_of(filter), *json),
        DlqCommand::Show { id, data } => show(&*log(data)?, id),
        DlqCommand::Redrive { ids, filter, data } => redrive(&*log(data)?, ids, filter),
    }
}

fn list(log: &dyn Broker, filter: &DeadLetterFilter, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    for letter in log.dead_letters(filter).context(CANNOT_READ)? {
        let whole = log.dead_letter(&letter.id).context(CANNOT_READ)?.unwrap_or(letter);
        let row = DeadLetterRow::of(&whole);
        if json { writeln!(out, "{}", serde_json::to_string(&row)?)? } else { writeln!(out, "{row}")? }
    }
    Ok(())
}

fn show(log: &dyn Broker, id: &DeadLetterId) -> Result<()> {
    let mut out = io::stdout().lock();
    let Some(letter) = log.dead_letter(id).context(CANNOT_READ)? else {
        bail!("no dead letter {id}: `endcap dlq ls` lists them");
    };
    writeln!(out, "{}", DeadLetterRow::of(&letter))?;
    writeln!(out, "topic {} partition {} offset {} group {}", letter.topic, letter.partition, letter.offset, letter.group)?;
    writeln!(out, "headers {}", printable(&serde_json::to_string(&letter.headers)?))?;
    writeln!(out, "{}", printable(&original_text(&letter)))?;
    Ok(())
}

fn redrive(log: &dyn Broker, ids: &[DeadLetterId], filter: &DlqFilter) -> Result<()> {
    let is_chosen = filter.reason.is_some() || filter.stage.is_some() || filter.user.is_some() || filter.since.is_some();
    let letters = match (ids.is_empty(), is_chosen) {
        (true, false) => {
            bail!("nothing is named: give ids of `endcap dlq ls`, or choose with --reason, --stage, --user or --since")
        }
        (false, true) => bail!("give ids or choose with --reason, --stage, --user and --since, not both"),
        (true, true) => log.dead_letters(&filter_of(filter)).context(CANNOT_READ)?,
        (false, false) => {
            let named =
                |id| log.dead_letter(id).context(CANNOT_READ)?.with_context(|| format!("no dead letter {id}, nothing was sent"));
            ids.iter().map(named).collect::<Result<_>>()?
        }
    };
    let (refused, rest): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.stage == INGEST);
    let wanted: Vec<DeadLetterId> = rest.into_iter().map(|letter| letter.id).collect();
    let sent = log.redrive(&wanted).context("cannot send dead letters again")?;
    println!(
        "{sent} sent again, {} of erased shoppers stay, {} that the interface refused stay",
        wanted.len() - sent,
        refused.len()
    );
    Ok(())
}

fn filter_of(filter: &DlqFilter) -> DeadLetterFilter {
    let ms = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    DeadLetterFilter {
        kind: filter.reason.clone(),
        stage: filter.stage.clone(),
        user: filter.user.clone(),
        since_ms: filter.since.map(|since| SystemClock::default().now_ms().saturating_sub(ms(since))),
        limit: filter.limit,
    }
}
