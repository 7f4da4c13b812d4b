//! The log as a whole: the Kafka side of [`Broker`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use endcap_runtime::{
    Broker, Clock, DeadLetter, DeadLetterFilter, DeadLetterId, GroupState, Log, LogError, Outgoing, Received, Store,
    StoredDeadLetter, Tally,
};
use endcap_schemas::topics::{Lane, Topic};

use crate::{
    KafkaConfig, KafkaLog,
    asker::Asker,
    client,
    dead_letters::{self, Letters, Spot},
    inspect::Inspector,
    lock::lock,
    names::Names,
    notes::{self, Notes},
    producer::Ingest,
    reader::{Reader, Readers},
    record::Record,
    registry::Registry,
    tender::Tender,
    writer::{Stopped, Writer},
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
    pub(crate) tender: Arc<Tender>,
    pub(crate) inspector: Inspector,
    pub(crate) registry: Option<Arc<Registry>>,
    /// Knows who was erased.
    store: Arc<dyn Store>,
    /// Nobody holds two of these.
    door: Mutex<Ingest>,
    room: Mutex<Option<Room>>,
    /// Held by whoever looks where the groups are.
    looking: Mutex<()>,
    tallies: Arc<Notes>,
    progress: Arc<Notes>,
    letters: Letters,
    redriven: Notes,
}

/// When the groups were last looked at, and what was too much then, by lane.
struct Room {
    at: Duration,
    full: BTreeMap<Lane, (Topic, u64)>,
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
        let tender = Tender::start()?;
        let asker = Arc::new(Asker::new(&config, &names, &tender)?);
        check_topics(&asker, &names)?;
        let registry = config.registry().map(Arc::new);
        let readers = Arc::new(Readers::new(&config, &names, &asker, &tender));
        let (tallies, progress) = (Arc::new(Notes::new(names.tallies())), Arc::new(Notes::new(names.progress())));
        let writer = Writer::new(config.clone(), names.transactional_id("endcap.ingest"), tender.clone());
        let shared = Shared {
            inspector: Inspector::new(&names, &asker, &readers),
            door: Mutex::new(Ingest::new(&names, registry.clone(), writer, &readers, &tallies, &progress)),
            room: Mutex::default(),
            looking: Mutex::default(),
            tallies,
            progress,
            letters: Letters::default(),
            redriven: Notes::new(names.redriven()),
            config,
            names,
            clock,
            tender,
            registry,
            store,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A consumer of `topic` for `group`.
    ///
    /// # Errors
    /// [`LogError`] when it cannot be made, or the schema registry does not let this process in.
    pub fn log(&self, group: &str, topic: Topic) -> Result<KafkaLog, LogError> {
        if let Some(registry) = &self.shared.registry {
            registry.greet()?;
        }
        self.shared.inspector.declare(group, topic);
        KafkaLog::start(self.shared.clone(), group, topic)
    }
}

/// All topics must be there: a broker that makes them by itself makes them as it likes. Those of the path have equal numbers of partitions,
/// so that a stage's outputs keep their key.
fn check_topics(asker: &Asker, names: &Names) -> Result<(), LogError> {
    let mut counts = BTreeMap::new();
    for topic in Topic::all() {
        let name = names.topic(topic);
        counts.insert(name.clone(), asker.partitions(&name)?);
        asker.partitions(&names.dead_letters(topic))?;
    }
    for name in [names.tallies(), names.progress(), names.redriven()] {
        asker.partitions(&name)?;
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

impl Shared {
    /// Refuses more on a lane while one of its groups is too far behind; looks once a second.
    fn check_room(&self, records: &[Outgoing]) -> Result<(), LogError> {
        let (now, limit) = (self.clock.monotonic(), self.config.settings().waiting_max);
        let is_old = lock(&self.room).as_ref().is_none_or(|room| now.saturating_sub(room.at) >= ROOM_EVERY);
        // While one looks the others go by what was seen last: nobody waits for the brokers' answers to another.
        if let (true, Ok(_looking)) = (is_old, self.looking.try_lock()) {
            // Brokers that do not tell how full the lanes are refuse nobody: what is wrong with them is met by what is to be written.
            let seen = self.inspector.furthest_behind();
            let mut room = lock(&self.room);
            let mut full = seen.unwrap_or_else(|_| room.take().map(|room| room.full).unwrap_or_default());
            full.retain(|_, (_, waiting)| *waiting >= limit);
            *room = Some(Room { at: now, full });
        }
        let room = lock(&self.room);
        match room.as_ref().and_then(|room| room.full.get(&Outgoing::lane_of(records))) {
            Some((topic, waiting)) => Err(LogError::Full { topic: topic.name().to_owned(), waiting: *waiting, limit }),
            None => Ok(()),
        }
    }

    /// The letters without what erasures have taken.
    fn masked(&self, letters: Vec<StoredDeadLetter>) -> Result<Vec<StoredDeadLetter>, LogError> {
        let users = Vec::from_iter(letters.iter().flat_map(StoredDeadLetter::users).collect::<BTreeSet<_>>());
        let erasures = self.store.erasures(&users).map_err(|error| LogError::Unavailable(error.to_string()))?;
        let erasures: BTreeMap<_, _> =
            users.into_iter().zip(erasures).filter_map(|(user, erasure)| Some((user, erasure?))).collect();
        Ok(letters.into_iter().map(|letter| letter.erased_by(&erasures)).collect())
    }

    /// Letters that are to be sent again, in the order of `ids`, each once, without those that any call before has sent.
    fn redrivable(&self, ids: &[DeadLetterId]) -> Result<Vec<(Spot, StoredDeadLetter)>, LogError> {
        lock(&self.door).ready()?; // what it left open itself it would wait for in vain
        let reader = self.inspector.readers().lend()?;
        let (mut gone, mut found) = (self.redriven.whole(&reader, dead_letters::spots)?, Vec::new());
        for spot in ids.iter().filter_map(Spot::of) {
            if gone.insert(spot)
                && let Some(letter) = self.letter(&reader, spot)?
                && !letter.masked
            {
                found.push((spot, letter));
            }
        }
        Ok(found)
    }

    /// One letter with its bytes, be it sent again or not.
    fn letter(&self, reader: &Reader, spot: Spot) -> Result<Option<StoredDeadLetter>, LogError> {
        let kept = self.letters.kept(spot);
        let found = kept.map_or_else(|| dead_letters::find(reader, &self.names, spot), |letter| Ok(Some(letter)))?;
        Ok(self.masked(found.into_iter().collect())?.pop())
    }

    /// Brings the index of the letters up to now; answers which of them were sent again.
    fn follow_letters(&self, reader: &Reader) -> Result<BTreeSet<Spot>, LogError> {
        self.letters.refresh(reader, &self.names)?;
        self.redriven.refreshed(reader, dead_letters::spots)
    }
}

impl Broker for Kafka {
    fn declare(&self, group: &str, topic: Topic) -> Result<(), LogError> {
        self.shared.inspector.declare(group, topic);
        Ok(())
    }

    fn consumer(&self, group: &str, topic: Topic) -> Result<Box<dyn Log>, LogError> {
        Ok(Box::new(self.log(group, topic)?))
    }

    fn append(&self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<(), LogError> {
        self.shared.check_room(records)?;
        lock(&self.shared.door).append(records, progress)
    }

    fn admit(&self, records: &[Outgoing], refused: &[DeadLetter]) -> Result<(), LogError> {
        self.shared.check_room(records)?;
        lock(&self.shared.door).admit(records, refused, &*self.shared.clock)
    }

    fn insist(&self, records: &[Outgoing]) -> Result<(), LogError> {
        lock(&self.shared.door).admit(records, &[], &*self.shared.clock)
    }

    fn progress(&self, name: &str) -> Result<Option<String>, LogError> {
        let reader = self.shared.inspector.readers().lend()?;
        self.shared.progress.whole(&reader, |latest| latest.get(name).cloned())
    }

    fn tallies(&self) -> Result<BTreeMap<String, Tally>, LogError> {
        let reader = self.shared.inspector.readers().lend()?;
        self.shared.tallies.refreshed(&reader, notes::sum)?
    }

    fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        self.shared.inspector.groups()
    }

    fn group(&self, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError> {
        self.shared.inspector.group(group, topic)
    }

    fn ends(&self, topic: Topic) -> Result<BTreeMap<i32, i64>, LogError> {
        let ends = self.shared.inspector.ends(topic)?;
        Ok(ends.into_iter().map(|(partition, (_, end))| (partition, end)).collect())
    }

    fn offsets_at(&self, topic: Topic, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        self.shared.inspector.offsets_at(topic, at_ms)
    }

    fn records(&self, topic: Topic, partition: i32, from: i64, max: usize) -> Result<Vec<Received>, LogError> {
        self.shared.inspector.records(self.shared.registry.as_deref(), topic, partition, from, max)
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, LogError> {
        let reader = self.shared.inspector.readers().lend()?;
        let redriven = self.shared.follow_letters(&reader)?;
        let listed = self.shared.letters.list(&reader, &self.shared.names, filter, &redriven)?;
        self.shared.masked(listed)
    }

    fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<StoredDeadLetter>, LogError> {
        let Some(spot) = Spot::of(id) else { return Ok(None) };
        let reader = self.shared.inspector.readers().lend()?;
        let is_sent = self.shared.redriven.refreshed(&reader, |redriven| redriven.contains_key(spot.id().as_str()))?;
        if is_sent { Ok(None) } else { self.shared.letter(&reader, spot) }
    }

    fn dead_letter_counts(&self) -> Result<BTreeMap<(String, String), u64>, LogError> {
        let reader = self.shared.inspector.readers().lend()?;
        let redriven = self.shared.follow_letters(&reader)?;
        Ok(self.shared.letters.counts(&redriven))
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
        lock(&self.shared.door).write(records, &Tally::default()).map_err(Stopped::into_error)?;
        Ok(found.len())
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
