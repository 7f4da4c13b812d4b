//! Does what the schedule says, and notes what was done.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Child, Command},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use endcap_runtime::Shutdown;
use rusqlite::Connection;
use serde::Serialize;

use crate::{
    fleet::{Fleet, LOOK_EVERY},
    patience::Patience,
    replays::Replays,
    schedule::{Deed, How, Schedule},
    side::Place,
};

/// Longest wait for a process that can be killed.
const NOBODY_WORKS: Duration = Duration::from_secs(120);
/// A slow store: how long it holds its breath, and how long it works between.
const BREATHLESS: Duration = Duration::from_millis(350);
const BREATH: Duration = Duration::from_millis(150);
/// How long the holder of a file's lock waits for its turn.
const LOCK_WAIT: Duration = Duration::from_secs(20);
/// No file may be written beyond this size while the disk is full, bytes: every write of log and store fails.
const FULL_BYTES: u64 = 4_096;

/// What was done of one sort of fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Entry {
    /// What it was, in words.
    pub(crate) what: &'static str,
    /// How often.
    pub(crate) times: u64,
    /// How long it lasted, all times together, s.
    pub(crate) seconds: f64,
}

/// What was done, by sort of fault.
pub(crate) type Entries = BTreeMap<&'static str, Entry>;

/// Does deeds. What it took away comes back at the latest when it is dropped.
pub(crate) struct Injector<'a> {
    place: &'a Place,
    entries: Entries,
    /// The server that comes back at the moment.
    returning: Option<Child>,
    /// What is away: its order to come back.
    away: Option<[&'static str; 2]>,
    /// Who holds the store's breath, or the file's lock.
    holder: Option<Holder>,
    replays: Replays<'a>,
    /// While the disk is full: the processes that know.
    full: Option<BTreeSet<u32>>,
    /// Kills that found nobody at work within an outage: they follow when it is over.
    put_off: Vec<u64>,
    began: Instant,
}

impl<'a> Injector<'a> {
    pub(crate) fn new(place: &'a Place) -> Self {
        Self {
            place,
            entries: Entries::new(),
            returning: None,
            away: None,
            holder: None,
            replays: Replays::new(place),
            full: None,
            put_off: Vec::new(),
            began: Instant::now(),
        }
    }

    /// Follows `schedule`, while the fleet is looked after.
    ///
    /// # Errors
    /// When a fault cannot be injected, or the run takes too long.
    pub(crate) fn follow(&mut self, schedule: &Schedule, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        let mut start = Instant::now();
        for (at, deed) in &schedule.deeds {
            patience.until("the next fault", LOOK_EVERY, || {
                fleet.tend(patience)?;
                self.replays.tend(patience)?;
                self.keep_full(fleet)?;
                Ok(start.elapsed() >= *at)
            })?;
            let began = Instant::now();
            self.inject(*deed, fleet, patience).with_context(|| format!("cannot inject {deed:?}"))?;
            if !self.is_outage() {
                std::mem::take(&mut self.put_off).into_iter().try_for_each(|number| self.kill(number, fleet, patience))?;
            }
            // While a server takes its time to come back, the schedule waits: deeds keep their distance.
            start += began.elapsed();
        }
        patience.until("the end of the replays", LOOK_EVERY, || {
            fleet.tend(patience)?;
            Ok(self.replays.tend(patience)? && self.is_back()?)
        })
    }

    /// What was done.
    pub(crate) fn into_entries(mut self) -> Entries {
        std::mem::take(&mut self.entries)
    }

    fn inject(&mut self, deed: Deed, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        match deed {
            Deed::Kill(number) => self.kill(number, fleet, patience),
            Deed::Guest(stage) => {
                let name = fleet.invite(stage);
                self.did("reassignment", "a further process of a stage comes and later leaves, or is killed", Duration::ZERO);
                patience.tell(&format!("{name} comes besides"));
                Ok(())
            }
            Deed::GuestLeaves { killed } => {
                if let Some(name) = fleet.see_off(killed)? {
                    patience.tell(&format!("{name} {}", if killed { "is killed, and does not come back" } else { "leaves" }));
                }
                Ok(())
            }
            Deed::Replay(what) => {
                self.replays.want(what);
                self.did("replay", "contexts are replayed, or all events, beside live ones", Duration::ZERO);
                Ok(())
            }
            Deed::ReplayDies => {
                if self.replays.kill() {
                    patience.tell("the replay is killed");
                    self.did("replay_killed", "a replay gets SIGKILL, and is resumed", Duration::ZERO);
                }
                Ok(())
            }
            Deed::Broker(how) => self.take_away("kafka", how, fleet, patience),
            Deed::BrokerBack(how) => self.bring_back("kafka", how, fleet, patience),
            Deed::Store(how) if self.place.services().is_some() => self.take_away("cql", how, fleet, patience),
            Deed::StoreBack(how) if self.place.services().is_some() => self.bring_back("cql", how, fleet, patience),
            Deed::Store(_) => self.begin("the file's lock is held", Holder::lock_for_good(self.place.file()), patience),
            Deed::StoreBack(_) => self.end("file_locked", "another program holds the file's write lock, log and store", patience),
            Deed::Slow if self.place.services().is_some() => {
                self.wait_for_server(fleet, patience)?;
                self.begin("the store is slow", Holder::pauses(self.script()?), patience)
            }
            Deed::Slow => self.begin("the file is slow", Holder::lock_in_breaths(self.place.file()), patience),
            Deed::Swift => self.end("slow_store", "the store answers in breaths of 150 ms, 350 ms apart", patience),
            Deed::Full => self.fill(fleet, patience),
            Deed::Room => self.make_room(fleet, patience),
        }
    }

    fn did(&mut self, kind: &'static str, what: &'static str, time: Duration) {
        let entry = self.entries.entry(kind).or_default();
        entry.what = what;
        entry.times += 1;
        entry.seconds += time.as_secs_f64();
    }

    /// Whether something is away that processes need to start.
    fn is_outage(&self) -> bool {
        self.holder.is_some() || self.away.is_some() || self.full.is_some()
    }

    fn kill(&mut self, number: u64, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        let asked = Instant::now();
        loop {
            if let Some(name) = fleet.kill(number) {
                self.did("kill", "a process of a stage gets SIGKILL, and is started again", Duration::ZERO);
                patience.tell(&format!("kill {}: {name}", self.entries["kill"].times));
                return Ok(());
            }
            if self.is_outage() {
                self.put_off.push(number);
                return Ok(());
            }
            ensure!(asked.elapsed() < NOBODY_WORKS, "no process has worked for {} s", NOBODY_WORKS.as_secs());
            patience.pause(LOOK_EVERY)?;
            fleet.tend(patience)?;
        }
    }

    // --- servers ---

    fn script(&self) -> Result<PathBuf> {
        self.place.services().map(Into::into).context("there are no servers to take away")
    }

    fn is_back(&mut self) -> Result<bool> {
        let Some(child) = &mut self.returning else { return Ok(true) };
        let Some(status) = child.try_wait()? else { return Ok(false) };
        ensure!(status.success(), "a server does not come back: {status}");
        self.returning = None;
        Ok(true)
    }

    fn wait_for_server(&mut self, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        patience.until("a server that comes back", LOOK_EVERY, || {
            fleet.tend(patience)?;
            self.is_back()
        })
    }

    fn take_away(&mut self, server: &'static str, how: How, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        self.wait_for_server(fleet, patience)?;
        let (go, back) = match how {
            How::Killed => ("kill", "start"),
            How::Stopped => ("stop", "start"),
            How::Paused => ("pause", "resume"),
        };
        patience.tell(&format!("{go} {server}"));
        order(&self.script()?, [go, server])?;
        (self.away, self.began) = (Some([back, server]), Instant::now());
        Ok(())
    }

    fn bring_back(&mut self, server: &'static str, how: How, fleet: &mut Fleet<'_>, patience: &Patience) -> Result<()> {
        let Some(back) = self.away.take() else { bail!("{server} is not away") };
        patience.tell(&format!("{} {server}", back[0]));
        self.returning = Some(Command::new(self.script()?).args(back).spawn().context("cannot run the services' script")?);
        self.wait_for_server(fleet, patience)?;
        let (kind, what) = match (server, how) {
            ("kafka", How::Paused) => ("broker_paused", "the broker holds still (SIGSTOP)"),
            ("kafka", _) => ("broker_killed", "the broker gets SIGKILL, and is started again"),
            (_, How::Killed) => ("store_killed", "the store gets SIGKILL, and is started again after the outage"),
            (_, How::Stopped) => ("store_stopped", "the store is stopped, and started again after the outage"),
            (_, How::Paused) => ("store_paused", "the store holds still (SIGSTOP)"),
        };
        self.did(kind, what, self.began.elapsed());
        Ok(())
    }

    // --- what somebody holds ---

    fn begin(&mut self, words: &str, holder: Holder, patience: &Patience) -> Result<()> {
        patience.tell(words);
        (self.holder, self.began) = (Some(holder), Instant::now());
        Ok(())
    }

    fn end(&mut self, kind: &'static str, what: &'static str, patience: &Patience) -> Result<()> {
        let Some(holder) = self.holder.take() else { bail!("nobody holds anything") };
        holder.end()?;
        patience.tell(&format!("{kind} is over"));
        self.did(kind, what, self.began.elapsed());
        Ok(())
    }

    // --- a disk without room ---

    fn fill(&mut self, fleet: &Fleet<'_>, patience: &Patience) -> Result<()> {
        patience.tell("the disk is full");
        (self.full, self.began) = (Some(BTreeSet::new()), Instant::now());
        self.keep_full(fleet)
    }

    /// While the disk is full, it is so for processes too that have come since.
    fn keep_full(&mut self, fleet: &Fleet<'_>) -> Result<()> {
        let Some(known) = &mut self.full else { return Ok(()) };
        let new: Vec<u32> = fleet.ids().into_iter().filter(|id| known.insert(*id)).collect();
        limit_files(&new, &format!("{FULL_BYTES}:"))
    }

    fn make_room(&mut self, fleet: &Fleet<'_>, patience: &Patience) -> Result<()> {
        patience.tell("the disk has room again");
        self.full = None;
        limit_files(&fleet.ids(), "unlimited:")?;
        self.did("disk_full", "every write beyond 4 KiB of a file fails (RLIMIT_FSIZE: EFBIG)", self.began.elapsed());
        Ok(())
    }
}

impl Drop for Injector<'_> {
    /// Also where the run has failed: the servers are others' too.
    fn drop(&mut self) {
        if let Some(child) = &mut self.returning {
            let _ = child.wait();
        }
        if let (Some(back), Some(script)) = (self.away, self.place.services()) {
            let _ = order(script, back);
        }
        let _ = self.holder.take().map(Holder::end);
    }
}

fn order(script: &std::path::Path, args: [&str; 2]) -> Result<()> {
    let status = Command::new(script).args(args).status().context("cannot run the services' script")?;
    ensure!(status.success(), "services {args:?}: {status}");
    Ok(())
}

/// Sets the soft limit on the size of files for processes; one that has ended meanwhile needs none.
fn limit_files(ids: &[u32], limit: &str) -> Result<()> {
    for id in ids {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &id.to_string(), &format!("--fsize={limit}")]);
        prlimit.status().context("cannot run prlimit: it is in the package util-linux")?;
    }
    Ok(())
}

/// A thread that keeps the store from answering, until it is told to end.
struct Holder {
    end: Shutdown,
    thread: JoinHandle<Result<()>>,
}

impl Holder {
    fn start(work: impl FnOnce(&Shutdown) -> Result<()> + Send + 'static) -> Self {
        let end = Shutdown::new();
        let heard = end.clone();
        Self { end, thread: std::thread::spawn(move || work(&heard)) }
    }

    /// Holds the write lock of `file`.
    fn lock_for_good(file: PathBuf) -> Self {
        Self::start(move |end| {
            let connection = locker(&file)?;
            connection.execute_batch("BEGIN IMMEDIATE")?;
            while !end.wait(Duration::from_secs(1)) {}
            Ok(connection.execute_batch("ROLLBACK")?)
        })
    }

    /// Holds the write lock of `file` most of the time.
    fn lock_in_breaths(file: PathBuf) -> Self {
        Self::start(move |end| {
            let connection = locker(&file)?;
            loop {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                let asked = end.wait(BREATHLESS);
                connection.execute_batch("ROLLBACK")?;
                if asked || end.wait(BREATH) {
                    return Ok(());
                }
            }
        })
    }

    /// Holds the CQL server still most of the time.
    fn pauses(script: PathBuf) -> Self {
        Self::start(move |end| {
            loop {
                order(&script, ["pause", "cql"])?;
                let asked = end.wait(BREATHLESS);
                order(&script, ["resume", "cql"])?;
                if asked || end.wait(BREATH) {
                    return Ok(());
                }
            }
        })
    }

    fn end(self) -> Result<()> {
        self.end.trigger();
        match self.thread.join() {
            Ok(ended) => ended,
            Err(_) => bail!("who held the store has panicked"),
        }
    }
}

fn locker(file: &std::path::Path) -> Result<Connection> {
    let connection = Connection::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    connection.busy_timeout(LOCK_WAIT)?;
    Ok(connection)
}
