//! Four exactly-once hops without a model, beside Kafka Streams doing the same on the same broker: what the runtime costs by itself.
//!
//! `cargo run --release -p endcap-tests --bin hops -- --report FILE`. The broker's address comes from `ENDCAP_TEST_KAFKA`, the class path
//! of Kafka Streams from `ENDCAP_TEST_STREAMS` (`tests/services/services env` and `… classpath streams` print them); javac and java stand on the PATH. Each round fills
//! the first topic, starts the process that is measured, and counts what comes out of the last one, from the first record to the last;
//! then single records go through the idle path. Rounds of both sides alternate, and so does who begins. Before them some go by that do not count, without
//! single records: a broker's cold start is no part of what is compared. The processes that are measured are new in every round, Kafka Streams' JVM too: so
//! the second half of each round is told by itself. Kafka Streams runs with its defaults (it commits every
//! 100 ms, which decides how long a single record takes), with the codec of ours (LZ4, unless `--compression` names another),
//! and with two threads.

mod stages;
mod worker;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use endcap as _; // for where its memory comes from
use endcap_evaluation::quantile;
use endcap_log_kafka::{Kafka, KafkaConfig, KafkaSettings, TopicSettings, Topics};
use endcap_runtime::{Broker as _, Embedded, EmbeddedConfig, Headers, Outgoing, Store, SystemClock};
use endcap_schemas::{UserKey, topics::Topic, wire};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    consumer::{BaseConsumer, Consumer as _},
};
use serde::Serialize;
use serde_json::json;

use crate::stages::First;

/// The hops' topics in order.
const TOPICS: [Topic; 5] = [Topic::EVENTS, Topic::CONTEXTS, Topic::THEMES, Topic::KEYWORDS, Topic::DEDUPED];
/// Records of one append while the first topic is filled.
const FILL: usize = 5_000;
/// Records that go through the idle path one by one.
const SINGLES: usize = 100;
/// Longest wait for the next record, and for an answer of the broker.
const PATIENCE: Duration = Duration::from_secs(60);
/// Quiet before each single record.
const QUIET: Duration = Duration::from_millis(100);
/// Unit of `/proc/PID/stat`, which Linux has kept for its users whatever its own is.
const TICKS_PER_SECOND: u64 = 100;
/// Threads of Kafka Streams: one for each core of the smallest machine that this is meant for.
const STREAMS_THREADS: &str = "2";

#[derive(Parser)]
struct Args {
    /// What this process is; the bench itself where nothing is named.
    #[command(subcommand)]
    role: Option<Role>,
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Records of a round.
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Bytes of a record's payload.
    #[arg(long, default_value_t = 500)]
    bytes: usize,
    /// Partitions of every topic.
    #[arg(long, default_value_t = 4)]
    partitions: u16,
    /// Codec of what both sides write: none, lz4, zstd and so on.
    #[arg(long, default_value = "lz4")]
    compression: String,
    /// Records of one commit of ours at most, and so many are fetched ahead. A commit costs 30 to 60 ms under load, whatever it holds; four stages
    /// commit beside each other.
    #[arg(long, default_value_t = 4_096)]
    batch: u32,
    /// Rounds of each side.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rounds of each side before those, which do not count: a broker's first ones cost it up to four times as much processor time.
    #[arg(long, default_value_t = 2)]
    warm_up: usize,
}

#[derive(Subcommand)]
enum Role {
    /// Runs the four stages until standard input ends.
    Worker {
        /// The broker.
        broker: String,
        /// Where the topics are.
        namespace: String,
        /// Codec of its records.
        compression: String,
        /// Records of one commit, and fetched ahead.
        batch: u32,
    },
}

/// A namespace on a broker.
pub(crate) struct Place {
    broker: String,
    namespace: String,
    compression: String,
    /// Records of one commit at most, and fetched ahead.
    pub(crate) batch: u32,
}

impl Place {
    fn config(&self, instance: &str) -> Result<KafkaConfig> {
        Ok(KafkaConfig::try_from(KafkaSettings {
            brokers: vec![self.broker.clone()],
            namespace: self.namespace.clone(),
            instance: instance.to_owned(),
            waiting_max: u64::MAX,
            ahead_records_max: self.batch,
            properties: BTreeMap::from([("compression.type".to_owned(), self.compression.clone())]),
            ..KafkaSettings::default()
        })?)
    }

    pub(crate) fn kafka(&self, instance: &str, store: Arc<dyn Store>) -> Result<Kafka> {
        Ok(Kafka::connect(self.config(instance)?, Arc::new(SystemClock::default()), store)?)
    }

    /// Takes the topics away, without which a broker would keep half a gigabyte of every round; it frees that a minute later.
    fn clear(&self) -> Result<()> {
        let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &self.broker).create()?;
        let (metadata, prefix) = (admin.inner().fetch_metadata(None, PATIENCE)?, format!("{}.", self.namespace));
        let topics = metadata.topics().iter().map(|topic| topic.name()).filter(|name| name.starts_with(&prefix));
        let deleted = pollster::block_on(admin.delete_topics(&Vec::from_iter(topics), &AdminOptions::new()))?;
        let refused = deleted.into_iter().find_map(Result::err);
        refused.map_or(Ok(()), |(topic, code)| bail!("cannot delete topic {topic}: {code}"))
    }

    fn topic(&self, topic: Topic) -> String {
        format!("{}.{topic}", self.namespace)
    }

    fn topics(&self) -> Vec<String> {
        TOPICS.map(|topic| self.topic(topic)).into()
    }
}

/// Figures of one round.
#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    records_per_second: f64,
    /// The same of its second half.
    late_records_per_second: f64,
    memory_bytes: u64,
    /// Processor time of the process that is measured until then, per record through all hops.
    cpu_us_per_record: f64,
    single_ms_p50: f64,
    single_ms_p99: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        Some(Role::Worker { broker, namespace, compression, batch }) => {
            let place =
                Place { broker: broker.clone(), namespace: namespace.clone(), compression: compression.clone(), batch: *batch };
            worker::work(&place)
        }
        None => bench(&args),
    }
}

fn bench(args: &Args) -> Result<()> {
    let from_env = |name: &str, how: &str| {
        env::var(name).with_context(|| format!("{name} is not set: `tests/services/services {how}` prints it"))
    };
    let broker = from_env("ENDCAP_TEST_KAFKA", "env")?;
    let streams = from_env("ENDCAP_TEST_STREAMS", "classpath streams")?;
    let dir = tempfile::tempdir()?;
    let classes = compile(&streams, dir.path())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=args.warm_up + args.rounds {
        let (is_counted, order) = (round > args.warm_up, if round % 2 == 1 { [true, false] } else { [false, true] });
        let name = if is_counted { format!("round {}", round - args.warm_up) } else { format!("warm-up {round}") };
        for is_ours in order {
            let side = if is_ours { "endcap" } else { "streams" };
            let namespace = format!("hops-{}-{round}-{side}", std::process::id());
            let place = Place { broker: broker.clone(), namespace, compression: args.compression.clone(), batch: args.batch };
            let command = if is_ours { worker_command(&place)? } else { streams_command(&place, &classes, dir.path()) };
            let measured = measure(args, &place, command, dir.path(), if is_counted { SINGLES } else { 0 });
            let cleared = place.clear();
            let figures = measured.with_context(|| format!("{name} of {side} failed"))?;
            cleared?;
            if !is_counted {
                println!("{name} {side}: {:.0} records per second", figures.records_per_second);
                continue;
            }
            println!("{name} {side}: {}", serde_json::to_string(&figures)?);
            if is_ours { ours.push(figures) } else { theirs.push(figures) }
        }
    }
    let (endcap, kafka_streams) = (median(&ours), median(&theirs));
    let report = json!({
        "records": args.records,
        "payload_bytes": args.bytes,
        "partitions": args.partitions,
        "compression": args.compression,
        "batch_records_max": args.batch,
        "warm_up_rounds": args.warm_up,
        "endcap": endcap,
        "kafka_streams": kafka_streams,
        "throughput_ratio": endcap.records_per_second / kafka_streams.records_per_second,
        "late_throughput_ratio": endcap.late_records_per_second / kafka_streams.late_records_per_second,
        "memory_ratio": endcap.memory_bytes as f64 / kafka_streams.memory_bytes as f64,
        "rounds": { "endcap": ours, "kafka_streams": theirs },
    });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    args.report.as_ref().map_or(Ok(()), |path| fs::write(path, text).with_context(|| format!("cannot write {}", path.display())))
}

fn worker_command(place: &Place) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["worker", &place.broker, &place.namespace, &place.compression, &place.batch.to_string()]);
    Ok(command)
}

fn streams_command(place: &Place, class_path: &str, dir: &Path) -> Command {
    let state = dir.join(&place.namespace);
    let mut command = Command::new("java");
    command.args(["-cp", class_path, "KafkaStreamsHops", &place.broker, &place.namespace, &place.compression]);
    command.arg(state).arg(STREAMS_THREADS).args(place.topics());
    command
}

/// Compiles the other side; answers its class path.
fn compile(streams: &str, dir: &Path) -> Result<String> {
    let source = dir.join("KafkaStreamsHops.java");
    fs::write(&source, include_str!("KafkaStreamsHops.java"))?;
    let status = Command::new("javac").args(["-cp", streams, "-d"]).arg(dir).arg(&source).status();
    ensure!(status.context("cannot run javac: Java 17 or later is needed")?.success(), "javac failed");
    Ok(format!("{streams}:{}", dir.display()))
}

/// Fills the first topic, lets `command` hand everything on, and times it.
fn measure(args: &Args, place: &Place, command: Command, dir: &Path, singles_count: usize) -> Result<Round> {
    let settings = TopicSettings { partitions: args.partitions, replication: 1, min_in_sync: 1, ..TopicSettings::default() };
    Topics::connect(&place.config("bench")?, &settings)?.apply()?;
    let store = Embedded::open(dir.join("bench-store"), EmbeddedConfig::default(), Arc::new(SystemClock::default()))?;
    let kafka = place.kafka("bench", Arc::new(store))?;
    let records: Vec<Outgoing> = (0..args.records).map(|n| parcel(n, args.bytes)).collect::<Result<_>>()?;
    records.chunks(FILL).try_for_each(|chunk| kafka.append(chunk, None))?;
    let out = Counter::of(place, args.partitions)?;

    let mut running = Running::start(command)?;
    let (records_per_second, late_records_per_second) = throughput(&out, args.records)?;
    let cpu_us_per_record = running.cpu_time()?.as_secs_f64() * 1e6 / args.records as f64;
    let mut singles = (0..singles_count).map(|n| single(&kafka, &out, n, args.bytes)).collect::<Result<Vec<f64>>>()?;
    let memory_bytes = running.peak_memory()?;
    running.end()?;
    singles.sort_by(f64::total_cmp);
    let at = |share: f64| quantile(&singles, share).unwrap_or(f64::NAN);
    Ok(Round {
        records_per_second,
        late_records_per_second,
        memory_bytes,
        cpu_us_per_record,
        single_ms_p50: at(0.5),
        single_ms_p99: at(0.99),
    })
}

fn parcel(n: usize, bytes: usize) -> Result<Outgoing> {
    let user = format!("shopper-{}", n % 10_007);
    let payload = noise(n, bytes);
    let headers = Headers::root(format!("p{n}"), Topic::EVENTS, 1_700_000_000_000);
    let value = wire::encode(&First { user: user.clone(), payload })?;
    Ok(Outgoing { topic: Topic::EVENTS, key: UserKey::of(user), headers, value })
}

/// Text that hardly compresses.
fn noise(seed: usize, bytes: usize) -> String {
    let mut state = seed as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    (0..bytes).map(letter).collect()
}

/// Records a second between the first and the last of `count`, and of their second half. What came with the first is not counted: nobody knows when it
/// started.
fn throughput(out: &Counter, count: usize) -> Result<(f64, f64)> {
    let mut seen = out.next()?;
    let first = (Instant::now(), seen);
    let mut half = first;
    while seen < count {
        seen += out.next()?;
        if half.1 < count / 2 {
            half = (Instant::now(), seen);
        }
    }
    ensure!(seen == count, "{count} records went in, {seen} came out");
    let since = |(start, before): (Instant, usize)| (seen - before) as f64 / start.elapsed().as_secs_f64();
    Ok((since(first), since(half)))
}

/// How long one record takes through the idle path, ms.
fn single(kafka: &Kafka, out: &Counter, n: usize, bytes: usize) -> Result<f64> {
    ensure!(out.poll(QUIET)? == 0, "a record came out twice");
    let record = parcel(n, bytes)?;
    kafka.append(&[record], None)?;
    let start = Instant::now();
    out.next()?;
    Ok(start.elapsed().as_secs_f64() * 1_000.0)
}

/// Counts what comes out of the last topic, and does nothing else with it: the cores are the measured process's and the broker's.
struct Counter(BaseConsumer);

impl Counter {
    fn of(place: &Place, partitions: u16) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &place.broker)
            .set("group.id", format!("{}.bench", place.namespace))
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "20") // as a stage's on the live lane
            .create()?;
        let [.., last] = TOPICS;
        let (topic, mut all) = (place.topic(last), TopicPartitionList::new());
        for partition in 0..i32::from(partitions) {
            all.add_partition_offset(&topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        Ok(Self(consumer))
    }

    /// How many records have come, waiting up to `wait` for the first.
    fn poll(&self, mut wait: Duration) -> Result<usize> {
        let mut polled = 0;
        while let Some(message) = self.0.poll(wait) {
            message?;
            (polled, wait) = (polled + 1, Duration::ZERO);
        }
        Ok(polled)
    }

    /// How many records come next.
    fn next(&self) -> Result<usize> {
        match self.poll(PATIENCE)? {
            0 => bail!("nothing comes out any more"),
            polled => Ok(polled),
        }
    }
}

/// The process that is measured. Killed when dropped.
struct Running(Child);

impl Running {
    /// Starts it and waits until it says that it runs.
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the process")?;
        let mut said = BufReader::new(child.stdout.take().context("standard output is piped")?);
        let running = Self(child);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim() == "running", "the process said {line:?} instead of running");
        // What else it says is of no use, but somebody must take it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(running)
    }

    /// Most memory that it ever held, bytes.
    fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the system tells no peak of memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
    }

    /// Processor time that it has taken, with threads that have ended.
    fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // Behind the name, which may hold anything, the 12th and 13th field are the time of the process and that of the system for it.
        let (_, fields) = stat.rsplit_once(')').context("the system tells nothing of the process")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    fn end(&mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "the process ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already needs no ending.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The median of each figure.
fn median(rounds: &[Round]) -> Round {
    let of = |figure: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        quantile(&values, 0.5).unwrap_or(f64::NAN)
    };
    Round {
        records_per_second: of(|round| round.records_per_second),
        late_records_per_second: of(|round| round.late_records_per_second),
        memory_bytes: of(|round| round.memory_bytes as f64) as u64,
        cpu_us_per_record: of(|round| round.cpu_us_per_record),
        single_ms_p50: of(|round| round.single_ms_p50),
        single_ms_p99: of(|round| round.single_ms_p99),
    }
}
