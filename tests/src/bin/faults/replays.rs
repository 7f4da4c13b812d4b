//! Replays under load: contexts sent again, or events folded anew, beside live events and faults. One that dies or fails is resumed.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{patience::Patience, side::Place};

/// Records per second: slow enough to be met by faults.
const RATE: &str = "20";
/// Before a replay that failed is resumed.
const AGAIN: Duration = Duration::from_secs(2);

/// Replays of a run, one at a time; whoever comes while one is under way waits for it.
pub(crate) struct Replays<'a> {
    place: &'a Place,
    /// What is still to be replayed, the one in work first: `contexts` or `events`.
    wanted: Vec<&'static str>,
    child: Option<Child>,
    /// Number of the one in work, where it was told, and where the last attempt tells it.
    number: Option<String>,
    told: PathBuf,
    /// When the next attempt may begin.
    next: Instant,
    /// Attempts, resumptions included.
    begun: u32,
}

impl<'a> Replays<'a> {
    pub(crate) fn new(place: &'a Place) -> Self {
        Self { place, wanted: Vec::new(), child: None, number: None, told: PathBuf::new(), next: Instant::now(), begun: 0 }
    }

    /// One more is wanted.
    pub(crate) fn want(&mut self, what: &'static str) {
        self.wanted.push(what);
    }

    /// The one in work dies; answers whether there was one.
    pub(crate) fn kill(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        // One that has ended by itself needs no killing.
        child.kill().is_ok()
    }

    /// Begins, resumes or ends what is due; answers whether nothing is left to do.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn tend(&mut self, patience: &Patience) -> Result<bool> {
        if let Some(child) = &mut self.child {
            let Some(status) = child.try_wait()? else { return Ok(false) };
            self.child = None;
            if status.success() {
                patience.tell(&format!("replay of {} is done", self.wanted.remove(0)));
                self.number = None;
            } else {
                // An attempt may fail before it tells the number again.
                self.number = number_in(&self.told).or(self.number.take());
                self.next = Instant::now() + AGAIN;
            }
        }
        let Some(what) = self.wanted.first().copied() else { return Ok(true) };
        if Instant::now() >= self.next {
            self.begin(what, patience)?;
        }
        Ok(false)
    }

    fn begin(&mut self, what: &'static str, patience: &Patience) -> Result<()> {
        self.begun += 1;
        let name = format!("replay-{}", self.begun);
        let config = self.place.config(&name)?;
        let told = self.place.out(&name);
        let out = File::create(&told).with_context(|| format!("cannot write {}", told.display()))?;
        let subcommand = match &self.number {
            Some(number) => vec!["replay", "resume", number],
            None => vec!["replay", what],
        };
        patience.tell(&subcommand.join(" "));
        self.child = Some(self.place.run().begin(&subcommand, &["--rate", RATE, "--config", &config], out)?);
        self.told = told;
        Ok(())
    }
}

impl Drop for Replays<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that has ended already needs no ending.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The number of the run that was told in a file; `None` where none was.
fn number_in(told: &PathBuf) -> Option<String> {
    let text = fs::read_to_string(told).ok()?;
    let mut words = text.lines().find_map(|line| line.strip_prefix("replay "))?.split([':', ' ']);
    words.next().filter(|word| word.parse::<u64>().is_ok()).map(str::to_owned)
}
