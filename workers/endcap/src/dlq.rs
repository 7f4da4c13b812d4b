//! `endcap dlq`: what could not be processed.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use anyhow::{Context, Result, bail};
use endcap_runtime::{Broker, Clock, DeadLetterFilter, DeadLetterId, INGEST, LogError, StoredDeadLetter, SystemClock};
use serde_json::json;

use crate::{
    cli::{DataArgs, DlqCommand, DlqFilter},
    config::Config,
    desk::{DeadLetterRow, original_text},
    printable::printable,
    progress,
    sides::Sides,
};

const CANNOT_READ: &str = "cannot read dead letters";
/// Letters of one transaction: so few are sent well within the time that a log allows.
const SENT_AT_ONCE: usize = 100;

/// Lists dead letters, shows one, or sends them again.
///
/// # Errors
/// When there is no data directory, it cannot be read, or nothing is named that could be sent again.
pub fn command(command: &DlqCommand, config: impl Fn(&DataArgs) -> Result<Config>) -> Result<()> {
    let log = |data| Ok::<_, anyhow::Error>(Sides::open_existing(&config(data)?)?.log);
    match command {
        DlqCommand::Ls { filter, json, data } => list(&*log(data)?, &filter_of(filter), *json),
        DlqCommand::Show { id, raw, data } => show(&*log(data)?, id, *raw),
        DlqCommand::Redrive { ids, filter, data } => redrive(&*log(data)?, ids, filter),
    }
}

fn list(log: &dyn Broker, filter: &DeadLetterFilter, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    for letter in chosen(log, filter)? {
        let whole = log.dead_letter(&letter.id).context(CANNOT_READ)?.unwrap_or(letter);
        let row = DeadLetterRow::of(&whole);
        if json { writeln!(out, "{}", serde_json::to_string(&row)?)? } else { writeln!(out, "{row}")? }
    }
    Ok(())
}

/// The letters that `filter` lets through. Where it names a stage or reason and there are none, it says what could have been named.
fn chosen(log: &dyn Broker, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>> {
    let letters = log.dead_letters(filter).context(CANNOT_READ)?;
    if letters.is_empty() && (filter.stage.is_some() || filter.kind.is_some()) {
        progress::say(&what_there_is(&log.dead_letters(&DeadLetterFilter::default()).context(CANNOT_READ)?));
    }
    Ok(letters)
}

/// Which stages and reasons could have been chosen: a name that is mistyped should not look like a path without faults.
fn what_there_is(newest: &[StoredDeadLetter]) -> String {
    let listed = |names: BTreeSet<&str>| Vec::from_iter(names).join(", ");
    let stages = listed(newest.iter().map(|letter| letter.stage.as_str()).collect());
    let reasons = listed(newest.iter().map(|letter| letter.kind.as_str()).collect());
    match newest.len() {
        0 => "there are no dead letters".to_owned(),
        count => format!("none of these; the newest {count} are of the stages {stages}, for the reasons {reasons}"),
    }
}

fn show(log: &dyn Broker, id: &DeadLetterId, raw: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let Some(letter) = log.dead_letter(id).context(CANNOT_READ)? else {
        bail!("no dead letter {id}: `endcap dlq ls` lists them");
    };
    if raw {
        return Ok(out.write_all(&letter.value)?);
    }
    writeln!(out, "{}", DeadLetterRow::of(&letter))?;
    writeln!(out, "topic {} partition {} offset {} group {}", letter.topic, letter.partition, letter.offset, letter.group)?;
    let mut headers = serde_json::to_value(&letter.headers)?;
    let as_text = |value: &[u8]| str::from_utf8(value).map_or_else(|_| json!(value), |text| json!(text));
    if !letter.headers.foreign.is_empty() {
        headers["foreign"] = letter.headers.foreign.iter().map(|(name, value)| json!([name, as_text(value)])).collect();
    }
    writeln!(out, "headers {}", printable(&headers.to_string()))?;
    writeln!(out, "{}", printable(&original_text(&letter)))?;
    Ok(())
}

fn redrive(log: &dyn Broker, ids: &[DeadLetterId], filter: &DlqFilter) -> Result<()> {
    let is_chosen = filter.reason.is_some() || filter.stage.is_some() || filter.user.is_some() || filter.since.is_some();
    let (letters, missing) = match (ids.is_empty(), is_chosen) {
        (true, false) => {
            bail!("nothing is named: give ids of `endcap dlq ls`, or choose with --reason, --stage, --user or --since")
        }
        (false, true) => bail!("give ids or choose with --reason, --stage, --user and --since, not both"),
        (true, true) => (chosen(log, &filter_of(filter))?, Vec::new()),
        (false, false) => named(log, ids)?,
    };
    let (refused, rest): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.stage == INGEST);
    let wanted: Vec<DeadLetterId> = rest.into_iter().map(|letter| letter.id).collect();
    let sent = in_parts(&wanted, |part| log.redrive(part))?;
    println!(
        "{sent} sent again, {} of erased shoppers stay, {} that the interface refused stay",
        wanted.len() - sent,
        refused.len()
    );
    if !missing.is_empty() {
        bail!("no such dead letters, sent already or never there: {}", missing.join(", "));
    }
    Ok(())
}

/// The letters of these ids, each once, and the ids of which there is none: whoever repeats a call that was cut short names some that were sent.
fn named(log: &dyn Broker, ids: &[DeadLetterId]) -> Result<(Vec<StoredDeadLetter>, Vec<String>)> {
    let mut letters: Vec<StoredDeadLetter> = Vec::new();
    let mut missing = Vec::new();
    for id in ids {
        if letters.iter().any(|letter| letter.id == *id) {
            continue;
        }
        match log.dead_letter(id).context(CANNOT_READ)? {
            Some(letter) => letters.push(letter),
            None => missing.push(id.to_string()),
        }
    }
    Ok((letters, missing))
}

/// Sends letters part by part; answers how many were sent. What is sent is off the list with the transaction that sends it, so nothing is sent
/// twice by whoever goes on.
fn in_parts(wanted: &[DeadLetterId], redrive: impl Fn(&[DeadLetterId]) -> Result<usize, LogError>) -> Result<usize> {
    let mut sent = 0;
    for part in wanted.chunks(SENT_AT_ONCE) {
        sent += redrive(part).with_context(|| {
            format!(
                "cannot send dead letters again: {sent} were sent and are off the list, the same command goes on with the rest"
            )
        })?;
    }
    Ok(sent)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn many_letters_are_sent_in_parts_and_a_fault_tells_how_many_were() {
        let wanted: Vec<DeadLetterId> = (0..250).map(|n| DeadLetterId::new(n.to_string())).collect();
        let parts = RefCell::new(Vec::new());
        let sent_until = |last: usize| {
            in_parts(&wanted, |part| {
                parts.borrow_mut().push(part.to_vec());
                // One of each is an erased shopper's and stays.
                if parts.borrow().len() > last { Err(LogError::Unavailable("gone".into())) } else { Ok(part.len() - 1) }
            })
        };
        assert_eq!(sent_until(3).unwrap(), 247);
        let sizes: Vec<usize> = parts.borrow().iter().map(Vec::len).collect();
        assert_eq!((sizes, parts.take().concat()), (vec![100, 100, 50], wanted.clone()));
        let fault = format!("{:#}", sent_until(2).unwrap_err());
        assert!(fault.contains("198 were sent") && fault.contains("gone"), "{fault}");
    }
}
