//! The undisturbed run: one process on one file gets the events that the disturbed one's log holds, poisoned ones too, every shopper's in
//! their order there and the shoppers among each other in another one.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use endcap::sides::Sides;
use endcap_runtime::{Outgoing, Received};
use endcap_schemas::topics::Topic;

use crate::{
    facts::{Facts, key_of},
    patience::Patience,
    side::{self, Place},
};

/// Records of one append.
const APPEND: usize = 500;

/// Runs it, and reads what it left behind.
///
/// # Errors
/// When it fails, or takes too long.
pub(crate) fn run(place: &Place, disturbed: &Facts, patience: &Patience) -> Result<Facts> {
    let (program, data) = place.run_apart();
    let sides = Sides::embedded(side::open_file(&data)?);
    copy_dir(&place.market(), &data.join("market"))?;
    for records in shopper_by_shopper(&disturbed.events).chunks(APPEND) {
        sides.log.append(records, None).context("cannot append the events anew")?;
    }
    let args = ["--models", &place.models, "--shoppers", "0", "--debounce", "0s", "--exit-when-drained"];
    let mut process = program.start(&args)?;
    patience.until("the undisturbed run", Duration::from_millis(100), || process.has_ended())?;
    process.wait()?;
    Facts::read(&sides)
}

/// The events with one shopper's behind another's.
fn shopper_by_shopper(events: &[Received]) -> Vec<Outgoing> {
    let mut shoppers: BTreeMap<&str, Vec<Outgoing>> = BTreeMap::new();
    for event in events {
        let outgoing =
            Outgoing { topic: Topic::EVENTS, key: key_of(event), headers: event.headers.clone(), value: event.value.clone() };
        shoppers.entry(&event.key).or_default().push(outgoing);
    }
    shoppers.into_values().flatten().collect()
}

/// Copies a directory of files and directories: the market need not be made twice.
fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let (entry, target) = (entry?, to.to_owned());
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot copy to {}", target.display()))?;
        }
    }
    Ok(())
}
