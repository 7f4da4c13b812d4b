//! The events that were imported into a market, in their order, as a source of the feeder.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Lines, Seek},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use endcap_schemas::{Diet, EventKind, Preference, ShopperEvent, UserKey};

use crate::{
    feed::{Batch, Source},
    grounds,
};

/// One household in so many keeps a diet, where the data says nothing about diets.
const HOUSEHOLDS_PER_DIET: u64 = 5;
/// Begins the ids of preferences that no household stated.
pub const SEEDED: &str = "seeded-diet-";

/// Imported events. Every household that never states its diets has its first event come with the diet that the seed gives it, if any: such
/// a preference goes into the log beside the event and is not counted.
pub struct Imported {
    path: PathBuf,
    seed: u64,
    /// A hash of the events: another market's have a position of their own.
    hash: String,
    lines: Lines<BufReader<File>>,
    at: u64,
    seen: HashSet<UserKey>,
    /// Households that state their diets in some event.
    stating: HashSet<UserKey>,
}

impl Imported {
    /// The events of the market in `market`.
    ///
    /// # Errors
    /// When there are none.
    pub fn open(market: &Path, seed: u64) -> Result<Self> {
        let (path, file) = events(market)?;
        let mut file = BufReader::new(file);
        let read = look_through(&mut file).and_then(|found| file.rewind().map(|()| found));
        let (hash, stating) = read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, seed, hash, lines: file.lines(), at: 0, seen: HashSet::new(), stating })
    }

    /// Refuses a market without events.
    ///
    /// # Errors
    /// With the remedy.
    pub fn check(market: &Path) -> Result<()> {
        events(market).map(drop)
    }

    fn next(&mut self) -> Result<Option<ShopperEvent>> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        let line = line.with_context(|| format!("cannot read {}", self.path.display()))?;
        self.at += 1;
        let event = serde_json::from_str(&line)
            .with_context(|| format!("cannot read {} at line {}: import the events again", self.path.display(), self.at))?;
        Ok(Some(event))
    }

    /// The diet's statement of a household that comes for the first time.
    fn preference(&mut self, event: &ShopperEvent) -> Option<ShopperEvent> {
        if !self.seen.insert(event.key()) || self.stating.contains(&event.key()) {
            return None;
        }
        let diet = seeded_diet(self.seed, &event.key())?;
        Some(ShopperEvent {
            id: format!("{SEEDED}{}", event.user.chars().take(64).collect::<String>()),
            tenant: event.tenant.clone(),
            user: event.user.clone(),
            at_ms: event.at_ms,
            kind: EventKind::Preference,
            lines: Vec::new(),
            preference: Some(Preference { diets: Some([diet].into_iter().collect()), ..Preference::default() }),
            personalise: None,
        })
    }
}

impl Source for Imported {
    fn name(&self) -> String {
        format!("replay/{}/{}", self.seed, self.hash)
    }

    fn read(&mut self, n: u64, max: u64) -> Result<Batch> {
        while self.at < n {
            let Some(event) = self.next()? else { return Ok(Batch::default()) };
            self.seen.insert(event.key());
        }
        let mut batch = Batch::default();
        while batch.counted < max {
            let Some(event) = self.next()? else { break };
            batch.events.extend(self.preference(&event));
            batch.events.push(event);
            batch.counted += 1;
        }
        Ok(batch)
    }

    fn describe(&self) -> String {
        "replaying imported events".to_owned()
    }
}

/// The hash of a file of events, and the households that state their diets in it: one pass before the first event, a tenth of a second for
/// a hundred thousand.
fn look_through(file: &mut impl BufRead) -> io::Result<(String, HashSet<UserKey>)> {
    let (mut hasher, mut stating, mut line) = (blake3::Hasher::new(), HashSet::new(), String::new());
    while file.read_line(&mut line)? > 0 {
        hasher.update(line.as_bytes());
        // Few events are preferences; what cannot be read is told when its turn comes.
        if line.contains("\"diets\"")
            && let Ok(event) = serde_json::from_str::<ShopperEvent>(&line)
            && event.preference.as_ref().is_some_and(|preference| preference.diets.is_some())
        {
            stating.insert(event.key());
        }
        line.clear();
    }
    Ok((hasher.finalize().to_hex()[..12].to_owned(), stating))
}

/// Where the events of a market lie, and the file.
fn events(market: &Path) -> Result<(PathBuf, File)> {
    let path = grounds::events_of(market);
    let file =
        File::open(&path).with_context(|| format!("no events in {}: `endcap import events` brings them in", market.display()))?;
    Ok((path, file))
}

/// The diet that a seed gives a household: one in five keeps one.
pub fn seeded_diet(seed: u64, user: &UserKey) -> Option<Diet> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(user.to_string().as_bytes());
    let number = u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("eight bytes"));
    let diet = Diet::ALL[(number / HOUSEHOLDS_PER_DIET % Diet::ALL.len() as u64) as usize];
    number.is_multiple_of(HOUSEHOLDS_PER_DIET).then_some(diet)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn market(rows: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let row = |n: usize| {
            format!(r#"{{"id":"e{n}","user":"household-{}","at_ms":{n},"kind":"purchase","lines":[{{"product":"p"}}]}}"#, n % 40)
        };
        fs::write(grounds::events_of(dir.path()), (0..rows).map(|n| row(n) + "\n").collect::<String>()).unwrap();
        dir
    }

    fn ids(batches: &[Batch]) -> Vec<String> {
        batches.iter().flat_map(|batch| &batch.events).map(|event| event.id.clone()).collect()
    }

    #[test]
    fn a_replay_entered_in_its_middle_goes_on_as_if_it_had_never_stopped() {
        let dir = market(100);
        let whole = Imported::open(dir.path(), 7).unwrap().read(0, 1_000).unwrap();
        assert_eq!(whole.counted, 100);
        let diets = whole.events.iter().filter(|event| event.id.starts_with(SEEDED)).count();
        assert!((3..=16).contains(&diets), "{diets} of 40 households keep a diet");
        for cut in [1, 17, 39, 40, 99] {
            let first = Imported::open(dir.path(), 7).unwrap().read(0, cut).unwrap();
            let second = Imported::open(dir.path(), 7).unwrap().read(cut, 1_000).unwrap();
            assert_eq!(ids(&[first, second]), ids(std::slice::from_ref(&whole)), "cut at {cut}");
        }
    }

    #[test]
    fn a_household_that_states_its_diets_at_any_time_gets_none() {
        let dir = market(100);
        let path = grounds::events_of(dir.path());
        let seeded = || {
            let batch = Imported::open(dir.path(), 7).unwrap().read(0, 1_000).unwrap();
            let seeded = batch.events.iter().filter(|event| event.id.starts_with(SEEDED));
            seeded.map(|event| event.user.clone()).collect::<Vec<_>>()
        };
        let before = seeded();
        let stated =
            [(r#"{"diets":["vegan"]}"#, &before[0]), (r#"{"diets":[]}"#, &before[1]), (r#"{"dislikes":["peas"]}"#, &before[2])];
        let rows = stated.map(|(preference, user)| {
            format!(r#"{{"id":"s-{user}","user":"{user}","at_ms":900,"kind":"preference","preference":{preference}}}"#) + "\n"
        });
        fs::write(&path, fs::read_to_string(&path).unwrap() + &rows.concat()).unwrap();
        assert_eq!(seeded(), before[2..]);
    }

    #[test]
    fn every_market_has_a_position_of_its_own() {
        let name = |rows, seed| Imported::open(market(rows).path(), seed).unwrap().name();
        assert_eq!(name(3, 7), name(3, 7));
        assert_ne!(name(3, 7), name(4, 7), "other events");
        assert_ne!(name(3, 7), name(3, 8), "another seed");
    }

    #[test]
    fn about_a_fifth_of_the_households_gets_a_diet_and_keeps_it() {
        let diets =
            |seed| (0..2_000).filter_map(|n| seeded_diet(seed, &UserKey::of(format!("household-{n}")))).collect::<Vec<_>>();
        assert!((340..460).contains(&diets(1).len()), "{}", diets(1).len());
        assert_eq!(diets(1), diets(1));
        assert_ne!(diets(1), diets(2));
        assert!(Diet::ALL.iter().all(|diet| diets(1).contains(diet)));
    }
}
