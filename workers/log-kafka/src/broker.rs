//! The log as a whole: the Kafka side of [`Broker`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use endcap_runtime::{
    Broker, Clock, DeadLetter, DeadLetterFilter, DeadLetterId, GroupState, Log, LogError, Outgoing, Received, Store,
    StoredDeadLetter, Tally,
};
use endcap_schemas::{
    UserKey,
    topics::{Lane, Topic},
};

use crate::{
    KafkaConfig, KafkaLog, client,
    dead_letters::{self, Index, Spot},
    inspect::Inspector,
    names::Names,
    notes::{self, Notes},
    producer::{Around, Ingest},
    reader::Reader,
    record::Record,
    registry::Registry,
};

/// How often a producer looks whether the groups are too far behind.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// The log on Kafka. Clones share it.
#[derive(Clone)]
pub struct Kafka {
    shared: Arc<Shared>,
}

/// What everything of one process shares.
pub(crate) struct Shared {
    pub(crate) config: KafkaConfig,
    pub(crate) names: Names,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) inspector: Inspector,
    pub(crate) registry: Option<Arc<Registry>>,
    /// Knows who was erased.
    store: Arc<dyn Store>,
    /// Locked in this order, where more than one is needed: door, notes, letters, the inspector's reader.
    door: Mutex<Door>,
    notes: Mutex<AllNotes>,
    letters: Mutex<Index>,
}

struct Door {
    ingest: Ingest,
    /// When the groups were last looked at, and what was too much then.
    looked: Option<(Duration, BTreeMap<Lane, (String, u64)>)>,
}

struct AllNotes {
    tallies: Notes,
    progress: Notes,
    redriven: Notes,
}

impl Kafka {
    /// Connects, and makes sure that the topics of the path are there and have equal numbers of partitions. `store` is asked who was
    /// erased: dead letters of those say nothing any more.
    ///
    /// # Errors
    /// [`LogError::Refused`] where a person must act: a login or certificate that is not accepted, topics that are not declared;
    /// [`LogError::Unavailable`] when no broker answers.
    pub fn connect(config: KafkaConfig, clock: Arc<dyn Clock>, store: Arc<dyn Store>) -> Result<Self, LogError> {
        client::connect(&config, config.request_timeout())?;
        let names = Names::of(config.settings());
        let inspector = Inspector::new(&config, &names)?;
        check_topics(&inspector.reader(), &names)?;
        let registry = config.registry().map(Arc::new);
        let door = Door { ingest: Ingest::new(&config, &names, registry.clone()), looked: None };
        let notes = AllNotes {
            tallies: Notes::new(names.tallies()),
            progress: Notes::new(names.progress()),
            redriven: Notes::new(names.redriven()),
        };
        let (door, notes, letters) = (Mutex::new(door), Mutex::new(notes), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { config, names, clock, inspector, registry, store, door, notes, letters }) })
    }

    /// A consumer of `topic` for `group`.
    ///
    /// # Errors
    /// [`LogError`] when it cannot be made.
    pub fn log(&self, group: &str, topic: Topic) -> Result<KafkaLog, LogError> {
        self.shared.inspector.declare(group, topic);
        KafkaLog::start(self.shared.clone(), group, topic)
    }

    /// Makes a group known before it has committed anything, so that what waits for it is seen.
    pub fn declare(&self, group: &str, topic: Topic) {
        self.shared.inspector.declare(group, topic);
    }
}

/// All topics must be there: a broker that makes them by itself makes them as it likes. Those of the path have equal numbers of partitions,
/// so that a stage's outputs keep their key.
fn check_topics(reader: &Reader, names: &Names) -> Result<(), LogError> {
    let mut counts = BTreeMap::new();
    for topic in Topic::all() {
        let name = names.topic(topic);
        counts.insert(name.clone(), reader.partitions(&name)?);
        reader.partitions(&names.dead_letters(topic))?;
    }
    for name in [names.tallies(), names.progress(), names.redriven()] {
        reader.partitions(&name)?;
    }
    let first = counts.values().next().copied();
    if counts.values().any(|count| Some(*count) != first) {
        let told: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        return Err(LogError::Refused(format!(
            "the topics of the path must have equal numbers of partitions, they have: {}; declare them anew in another namespace",
            told.join(", ")
        )));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Runs `work` at the door, with what it needs around it.
    fn at_door<R>(&self, work: impl FnOnce(&mut Ingest, Around<'_>) -> R) -> R {
        let (mut door, mut notes) = (lock(&self.door), lock(&self.notes));
        let reader = self.inspector.reader();
        let AllNotes { tallies, progress, .. } = &mut *notes;
        work(&mut door.ingest, Around { reader: &reader, tallies, progress })
    }

    /// Refuses more on a lane while one of its groups is too far behind; looks once a second.
    fn check_room(&self, records: &[Outgoing]) -> Result<(), LogError> {
        let (now, limit) = (self.clock.monotonic(), self.config.settings().waiting_max);
        let mut door = lock(&self.door);
        if door.looked.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) >= ROOM_EVERY) {
            let mut waiting: BTreeMap<(String, String), u64> = BTreeMap::new();
            for state in self.inspector.groups()? {
                *waiting.entry((state.group, state.topic)).or_default() += state.backlog.waiting;
            }
            let full = waiting.into_iter().filter(|(_, waiting)| *waiting >= limit);
            door.looked = Some((now, full.map(|((_, topic), waiting)| (Lane::of(&topic).1, (topic, waiting))).collect()));
        }
        // Records for both lanes wait for the slower one.
        let lane = records.iter().map(|record| record.topic.lane()).max().unwrap_or(Lane::Live);
        match door.looked.as_ref().and_then(|(_, full)| full.get(&lane)) {
            Some((topic, waiting)) => Err(LogError::Full { topic: topic.clone(), waiting: *waiting, limit }),
            None => Ok(()),
        }
    }

    /// The letters, masked where their users were erased since they happened, or since the log took them.
    fn masked(&self, letters: Vec<StoredDeadLetter>) -> Result<Vec<StoredDeadLetter>, LogError> {
        let user = |letter: &StoredDeadLetter| -> UserKey { letter.key.parse().unwrap_or_else(|never| match never {}) };
        let users = Vec::from_iter(letters.iter().map(user).collect::<BTreeSet<_>>());
        let erasures = self.store.erasures(&users).map_err(|error| LogError::Unavailable(error.to_string()))?;
        let erased: BTreeMap<_, _> = users.into_iter().zip(erasures).collect();
        let masked = letters.into_iter().map(|letter| {
            let since_ms = letter.headers.time_ms.min(letter.appended_ms);
            let is_erased = erased[&user(&letter)].is_some_and(|erasure| erasure.stamp.0 >= since_ms.saturating_mul(1_000));
            if is_erased { letter.mask() } else { letter }
        });
        Ok(masked.collect())
    }

    /// Letters that are to be sent again, in the order of `ids`, each once.
    fn redrivable(&self, ids: &[DeadLetterId]) -> Result<Vec<(Spot, StoredDeadLetter)>, LogError> {
        let mut found: Vec<(Spot, StoredDeadLetter)> = Vec::new();
        for spot in ids.iter().filter_map(Spot::of) {
            if found.iter().any(|(other, _)| *other == spot) {
                continue;
            }
            if let Some(letter) = self.letter(spot)?
                && !letter.masked
            {
                found.push((spot, letter));
            }
        }
        Ok(found)
    }

    /// One letter with its bytes, unless it was sent again.
    fn letter(&self, spot: Spot) -> Result<Option<StoredDeadLetter>, LogError> {
        let (mut notes, letters) = (lock(&self.notes), lock(&self.letters));
        let reader = self.inspector.reader();
        if notes.redriven.refresh(&reader)?.contains_key(spot.id().as_str()) {
            return Ok(None);
        }
        let found = dead_letters::find(&letters, &reader, &self.names, spot)?;
        Ok(self.masked(found.into_iter().collect())?.pop())
    }
}

impl Broker for Kafka {
    fn consumer(&self, group: &str, topic: Topic) -> Result<Box<dyn Log>, LogError> {
        Ok(Box::new(self.log(group, topic)?))
    }

    fn append(&self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<(), LogError> {
        self.shared.check_room(records)?;
        self.shared.at_door(|ingest, around| ingest.append(around, records, progress))
    }

    fn admit(&self, records: &[Outgoing], refused: &[DeadLetter]) -> Result<(), LogError> {
        self.shared.check_room(records)?;
        self.shared.at_door(|ingest, around| ingest.admit(around, records, refused, &*self.shared.clock))
    }

    fn insist(&self, records: &[Outgoing]) -> Result<(), LogError> {
        self.shared.at_door(|ingest, around| ingest.admit(around, records, &[], &*self.shared.clock))
    }

    fn progress(&self, name: &str) -> Result<Option<String>, LogError> {
        let mut notes = lock(&self.shared.notes);
        Ok(notes.progress.refresh(&self.shared.inspector.reader())?.get(name).cloned())
    }

    fn tallies(&self) -> Result<BTreeMap<String, Tally>, LogError> {
        let mut notes = lock(&self.shared.notes);
        notes::sum(notes.tallies.refresh(&self.shared.inspector.reader())?)
    }

    fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        self.shared.inspector.groups()
    }

    fn ends(&self, topic: Topic) -> Result<BTreeMap<i32, i64>, LogError> {
        let ends = self.shared.inspector.reader().ends(&self.shared.names.topic(topic))?;
        Ok(ends.into_iter().map(|(partition, (_, end))| (partition, end)).collect())
    }

    fn offsets_at(&self, topic: Topic, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        self.shared.inspector.reader().offsets_at(&self.shared.names.topic(topic), at_ms)
    }

    fn records(&self, topic: Topic, partition: i32, from: i64, max: usize) -> Result<Vec<Received>, LogError> {
        self.shared.inspector.records(self.shared.registry.as_deref(), topic, partition, from, max)
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, LogError> {
        let listed = {
            let (mut notes, mut letters) = (lock(&self.shared.notes), lock(&self.shared.letters));
            let reader = self.shared.inspector.reader();
            letters.refresh(&reader, &self.shared.names)?;
            letters.list(filter, notes.redriven.refresh(&reader)?)
        };
        self.shared.masked(listed)
    }

    fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<StoredDeadLetter>, LogError> {
        Spot::of(id).map_or(Ok(None), |spot| self.shared.letter(spot))
    }

    fn dead_letter_counts(&self) -> Result<BTreeMap<(String, String), u64>, LogError> {
        let (mut notes, mut letters) = (lock(&self.shared.notes), lock(&self.shared.letters));
        let reader = self.shared.inspector.reader();
        letters.refresh(&reader, &self.shared.names)?;
        Ok(letters.counts(notes.redriven.refresh(&reader)?))
    }

    /// Two calls that send the same letter again at the same moment may both send it.
    fn redrive(&self, ids: &[DeadLetterId]) -> Result<usize, LogError> {
        let found = self.shared.redrivable(ids)?;
        if found.is_empty() {
            return Ok(0);
        }
        let (names, now_ms) = (&self.shared.names, self.shared.clock.now_ms().to_string());
        let records = found.iter().flat_map(|(spot, letter)| {
            let note = Record::note(names.redriven(), spot.id().as_str(), &now_ms);
            let topic = Topic::named(&letter.topic).unwrap_or(spot.topic);
            [Record::redriven(names, topic, letter), note]
        });
        let records = records.collect();
        self.shared.at_door(|ingest, around| ingest.write(around, records, &Tally::default()))?;
        Ok(found.len())
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
