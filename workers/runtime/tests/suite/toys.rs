//! Toy stages whose faults are knobs, and borders that can be made to fail.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use endcap_runtime::{
    Backlog, Clock, Clocks, Commit, Embedded, EmbeddedConfig, Erasure, Headers, Input, Log, LogError, LoopConfig, ManualClock,
    Outgoing, Passed, Received, RetryConfig, Shutdown, Stage, StageEnv, StageError, StageResult, StageStats, Stamp, Store,
    StoreError, StoredPage, Verdict, Write, embedded::Consumer,
};
use endcap_schemas::{
    Brief, Budget, Cause, ContextChanged, DietSet, EventKind, Head, KeywordsChosen, Message, Season, ShopperEvent, ThemesWritten,
    UserKey, Versions,
    topics::{Lane, Topic},
    wire,
};
use serde_json::json;

/// What the toys' clock shows at first, ms.
pub(crate) const NOW_MS: i64 = 1_700_000_000_000;

/// One hop of a toy path.
pub(crate) trait Hop: Send + 'static {
    type In: Message;
    type Out: Message;
    const NAME: &'static str;
    fn next(value: &Self::In) -> Self::Out;
    fn writes(_out: &Self::Out) -> Vec<Write> {
        Vec::new()
    }
}

/// Event → context, whose clock is the event's; the state is the event's id.
pub(crate) struct Fold;
/// Context → themes.
pub(crate) struct Compose;
/// Themes → keywords.
pub(crate) struct Choose;

impl Hop for Fold {
    type In = ShopperEvent;
    type Out = ContextChanged;
    const NAME: &'static str = "context";

    fn next(event: &ShopperEvent) -> ContextChanged {
        context(&event.user, event.at_ms, &event.id)
    }

    fn writes(out: &ContextChanged) -> Vec<Write> {
        let Head { user, context_ms, generation, cause, .. } = &out.head;
        let (stamp, state) = (Stamp::of(*context_ms, *generation), cause.event_id.clone().into_bytes());
        vec![Write::State { user: user.clone(), stamp, state }]
    }
}

impl Hop for Compose {
    type In = ContextChanged;
    type Out = ThemesWritten;
    const NAME: &'static str = "themes";

    fn next(context: &ContextChanged) -> ThemesWritten {
        let ContextChanged { head, brief, .. } = context.clone();
        ThemesWritten {
            persona: head.cause.event_id.clone(),
            head,
            brief,
            themes: Vec::new(),
            rejected: Vec::new(),
            versions: Versions::new(),
        }
    }
}

impl Hop for Choose {
    type In = ThemesWritten;
    type Out = KeywordsChosen;
    const NAME: &'static str = "keywords";

    fn next(themes: &ThemesWritten) -> KeywordsChosen {
        let ThemesWritten { head, brief, persona, .. } = themes.clone();
        KeywordsChosen { head, brief, persona, drafts: Vec::new(), versions: Versions::new() }
    }
}

type Ask<In, Out> = Box<dyn FnMut(&[Input<In>]) -> Result<Option<Vec<Verdict<Out>>>, StageError> + Send>;

/// A stage that takes one hop, unless its knob decides otherwise.
pub(crate) struct Toy<H: Hop> {
    ask: Ask<H::In, H::Out>,
    hop: PhantomData<H>,
}

impl<H: Hop> Toy<H> {
    pub(crate) fn new() -> Self {
        Self::with(|_| Ok(None))
    }

    /// Asks `knob` first: an error is the stage's, verdicts are its answer, `None` lets the hop be taken.
    pub(crate) fn with(
        knob: impl FnMut(&[Input<H::In>]) -> Result<Option<Vec<Verdict<H::Out>>>, StageError> + Send + 'static,
    ) -> Self {
        Self { ask: Box::new(knob), hop: PhantomData }
    }
}

impl<H: Hop> Stage for Toy<H> {
    type In = H::In;
    type Out = H::Out;
    const NAME: &'static str = H::NAME;

    fn process(&mut self, batch: &[Input<H::In>]) -> Result<Vec<Verdict<H::Out>>, StageError> {
        Ok((self.ask)(batch)?.unwrap_or_else(|| batch.iter().map(|input| pass::<H>(&input.value)).collect()))
    }
}

pub(crate) fn pass<H: Hop>(value: &H::In) -> Verdict<H::Out> {
    let out = H::next(value);
    let writes = H::writes(&out);
    Verdict::Passed(Box::new(Passed { out, explanation: json!({ "toy": true }), writes, counters: vec![("hops", 1)] }))
}

pub(crate) fn event(user: &str, at_ms: i64, id: &str) -> ShopperEvent {
    ShopperEvent {
        id: id.to_owned(),
        tenant: UserKey::DEFAULT_TENANT.to_owned(),
        user: user.to_owned(),
        at_ms,
        kind: EventKind::Erase,
        lines: Vec::new(),
        preference: None,
        personalise: None,
    }
}

pub(crate) fn context(user: &str, context_ms: i64, event_id: &str) -> ContextChanged {
    let cause = Cause { event_id: event_id.to_owned(), event_ms: context_ms, accepted_ms: context_ms };
    let head = Head { user: UserKey::of(user), context_ms, generation: 1, cause, expires_ms: NOW_MS + 3_600_000 };
    let brief = Brief {
        diets: DietSet::NONE,
        budget: Budget::Middle,
        locale: "en".to_owned(),
        season: Season::Winter,
        dislikes: Vec::new(),
        personalise: true,
    };
    ContextChanged { head, brief, favourites: Vec::new(), recent: Vec::new() }
}

/// `message` as the record `id`.
pub(crate) fn sent<M: Message>(message: &M, id: &str) -> Outgoing {
    let value = wire::encode(message).expect("toys fit the wire");
    Outgoing { topic: M::TOPIC, key: message.user(), headers: Headers::root(id, M::TOPIC, NOW_MS), value }
}

/// A stage's surroundings on a fresh file, in which time stands still.
pub(crate) struct Bench {
    pub(crate) file: Embedded,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) env: StageEnv,
    pub(crate) faults: Arc<Faults>,
    _dir: tempfile::TempDir,
}

/// How often each border still fails as unavailable.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) store: AtomicU32,
    pub(crate) poll: AtomicU32,
    pub(crate) commit: AtomicU32,
}

fn fails(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::at(NOW_MS));
        let file = Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock.clone()).expect("a file");
        let faults = Arc::new(Faults::default());
        let env = StageEnv {
            store: Arc::new(FlakyStore { file: file.clone(), faults: faults.clone() }),
            clocks: Clocks::of(clock.clone()),
            config: LoopConfig {
                gather_under_load: Duration::ZERO,
                retry: RetryConfig { first: Duration::from_micros(10), longest: Duration::from_micros(50) },
                ..LoopConfig::default()
            },
            stats: Arc::new(StageStats::default()),
            shutdown: Shutdown::new(),
        };
        Self { file, clock, env, faults, _dir: dir }
    }

    pub(crate) fn append(&self, records: &[Outgoing]) {
        self.file.producer().append(records, None).expect("records are taken");
    }

    /// Runs a stage until nothing waits for it; each empty poll before that moves the clock on by `tick`.
    pub(crate) fn run_ticking<S: Stage>(&mut self, mut stage: S, tick: Duration) -> Result<(), endcap_runtime::StageStopped> {
        self.env.shutdown = Shutdown::new();
        let group = format!("endcap.{}.live", S::NAME);
        let log = self.until_done(&group, S::In::TOPIC, tick, nothing_waits(&self.file, &group));
        endcap_runtime::run_stage(&mut stage, Box::new(log), &self.env)
    }

    /// Runs a stage on both lanes until nothing waits for it on either.
    pub(crate) fn run_lanes<S: Stage>(&mut self, stage: S) {
        self.run_lanes_ticking(stage, Duration::ZERO);
    }

    pub(crate) fn run_lanes_ticking<S: Stage>(&mut self, stage: S, tick: Duration) {
        let done = nothing_waits(&self.file, &format!("endcap.{}.", S::NAME));
        self.run_lanes_until(stage, tick, done);
    }

    /// Runs a stage on both lanes until a poll of the live one finds nothing and `done` is true.
    pub(crate) fn run_lanes_until<S: Stage>(&mut self, stage: S, tick: Duration, done: impl FnMut() -> bool + Send + 'static) {
        let group = format!("endcap.{}.backfill", S::NAME);
        let backfill = self.file.consumer(&group, S::In::TOPIC.on(Lane::Backfill)).expect("a consumer");
        self.run_lanes_over(Box::new(backfill), stage, tick, done);
    }

    /// As [`Bench::run_lanes_until`], with a log of the test's own for the backfill lane.
    pub(crate) fn run_lanes_over<S: Stage>(
        &mut self,
        backfill: Box<dyn Log + '_>,
        mut stage: S,
        tick: Duration,
        done: impl FnMut() -> bool + Send + 'static,
    ) {
        self.env.shutdown = Shutdown::new();
        let live = self.until_done(&format!("endcap.{}.live", S::NAME), S::In::TOPIC, tick, done);
        endcap_runtime::run_lanes(&mut stage, Box::new(live), backfill, &self.env).expect("the stage finishes");
    }

    fn until_done(
        &self,
        group: &str,
        topic: Topic,
        tick: Duration,
        done: impl FnMut() -> bool + Send + 'static,
    ) -> UntilDone<Consumer> {
        UntilDone {
            log: self.file.consumer(group, topic).expect("a consumer"),
            shutdown: self.env.shutdown.clone(),
            clock: self.clock.clone(),
            tick,
            faults: self.faults.clone(),
            done: Box::new(done),
        }
    }

    pub(crate) fn run<S: Stage>(&mut self, stage: S) {
        self.run_ticking(stage, Duration::ZERO).expect("the stage finishes");
    }

    /// Everything in `M`'s topic.
    pub(crate) fn all<M: Message>(&self) -> Vec<M> {
        self.records(M::TOPIC).iter().map(|record| wire::decode(&record.value).expect("a message")).collect()
    }

    pub(crate) fn records(&self, topic: Topic) -> Vec<Received> {
        self.file.records(topic, 0, usize::MAX).expect("records are read")
    }

    pub(crate) fn tally<H: Hop>(&self) -> endcap_runtime::Tally {
        self.file.tallies().expect("tallies are read").remove(H::NAME).unwrap_or_default()
    }
}

/// Whether nothing waits for the groups that begin so.
fn nothing_waits(file: &Embedded, groups: &str) -> impl Fn() -> bool + Send + 'static {
    let (file, groups) = (file.clone(), groups.to_owned());
    move || {
        let states = file.groups().expect("groups are told");
        states.iter().filter(|state| state.group.starts_with(&groups)).all(|state| state.backlog.waiting == 0)
    }
}

/// A log that asks its stage to finish when everything is done.
struct UntilDone<L> {
    log: L,
    shutdown: Shutdown,
    clock: Arc<ManualClock>,
    tick: Duration,
    faults: Arc<Faults>,
    done: Box<dyn FnMut() -> bool + Send>,
}

impl<L: Log> Log for UntilDone<L> {
    fn poll(&mut self, max: usize, _: Duration) -> Result<Vec<Received>, LogError> {
        if fails(&self.faults.poll) {
            return Err(LogError::Unavailable("toy log is down".to_owned()));
        }
        let polled = self.log.poll(max, Duration::ZERO)?;
        if polled.is_empty() {
            if (self.done)() {
                self.shutdown.trigger();
            }
            self.clock.advance(self.tick);
        }
        Ok(polled)
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        if fails(&self.faults.commit) {
            return Err(LogError::Unavailable("toy log is down".to_owned()));
        }
        self.log.commit(commit)
    }

    fn backlog(&mut self) -> Result<Backlog, LogError> {
        self.log.backlog()
    }

    fn group(&self) -> &str {
        self.log.group()
    }
}

/// The file as a store that fails on demand.
struct FlakyStore {
    file: Embedded,
    faults: Arc<Faults>,
}

impl FlakyStore {
    fn up(&self) -> Result<&Embedded, StoreError> {
        if fails(&self.faults.store) { Err(StoreError::Unavailable("toy store is down".to_owned())) } else { Ok(&self.file) }
    }
}

impl Store for FlakyStore {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        self.up()?.put_all(writes, results)
    }
    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.up()?.states(users)
    }
    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        self.up()?.page(user)
    }
    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        self.up()?.results(user)
    }
    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.up()?.erasures(users)
    }
    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.up()?.cached(cache, keys)
    }
    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        self.up()?.remember(cache, entries)
    }
}

/// The wall clock's time on the bench, for tests that place records in time.
pub(crate) fn now_ms(bench: &Bench) -> i64 {
    bench.clock.now_ms()
}
