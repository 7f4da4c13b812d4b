//! `endcap dlq`: what could not be processed.

use std::{
    io::{self, Write},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use endcap_runtime::{Embedded, EmbeddedConfig, SystemClock, embedded::DeadLetterFilter};

use crate::{
    cli::{DataArgs, DlqCommand},
    config::Config,
    data,
    desk::{DeadLetterRow, original_text},
    printable::printable,
};

/// Lists or shows dead letters.
///
/// # Errors
/// When there is no data directory or it cannot be read.
pub fn command(command: &DlqCommand, config: impl Fn(&DataArgs) -> Result<Config>) -> Result<()> {
    let mut out = io::stdout().lock();
    match command {
        DlqCommand::Ls { reason, limit, json, data } => {
            let file = open(&config(data)?)?;
            let filter = DeadLetterFilter { kind: reason.clone(), limit: *limit, ..DeadLetterFilter::default() };
            for letter in file.dead_letters(&filter).context("cannot read dead letters")? {
                let whole = file.dead_letter(letter.id).context("cannot read dead letters")?.unwrap_or(letter);
                let row = DeadLetterRow::of(&whole);
                if *json { writeln!(out, "{}", serde_json::to_string(&row)?)? } else { writeln!(out, "{row}")? }
            }
            Ok(())
        }
        DlqCommand::Show { id, data } => {
            let file = open(&config(data)?)?;
            let Some(letter) = file.dead_letter(*id).context("cannot read dead letters")? else {
                bail!("no dead letter {id}: `endcap dlq ls` lists them");
            };
            writeln!(out, "{}", DeadLetterRow::of(&letter))?;
            writeln!(
                out,
                "topic {} partition {} offset {} group {}",
                letter.topic, letter.partition, letter.offset, letter.group
            )?;
            writeln!(out, "headers {}", printable(&serde_json::to_string(&letter.headers)?))?;
            writeln!(out, "{}", printable(&original_text(&letter)))?;
            Ok(())
        }
    }
}

/// Opens log and store of a data directory that is there.
///
/// # Errors
/// When there is none, or it cannot be opened.
pub fn open(config: &Config) -> Result<Embedded> {
    data::must_exist(&config.data)?;
    let path = data::file_in(&config.data);
    if !path.is_file() {
        bail!("{} holds no log: `endcap up` makes one, --data names another directory", config.data.display());
    }
    Ok(Embedded::open(&path, EmbeddedConfig::default(), Arc::new(SystemClock::default()))?)
}
