//! The process that is measured: four stages, each on a thread of its own, until standard input ends.

use std::{
    io::{self, Read as _},
    process,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use endcap_log_kafka::Kafka;
use endcap_runtime::{
    Broker, Clocks, Embedded, EmbeddedConfig, LoopConfig, Shutdown, Stage, StageEnv, StageStats, Store, SystemClock, run_stage,
};
use endcap_schemas::Message;

use crate::{
    Place,
    stages::{Four, One, Three, Two},
};

/// Runs the four stages in `place`.
pub(crate) fn work(place: &Place) -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Nothing is ever stored: the stages' records have no context.
    let store: Arc<dyn Store> =
        Arc::new(Embedded::open(dir.path().join("store"), EmbeddedConfig::default(), Arc::new(SystemClock::default()))?);
    let kafka = place.kafka("worker", store.clone())?;
    let batch = place.batch as usize;
    let env = StageEnv {
        store,
        clocks: Clocks::system(),
        config: LoopConfig { poll_max: batch, held_max: batch, batch_records_max: batch, ..LoopConfig::default() },
        stats: Arc::new(StageStats::default()),
        shutdown: Shutdown::new(),
    };
    let stages = [start(One, &kafka, &env)?, start(Two, &kafka, &env)?, start(Three, &kafka, &env)?, start(Four, &kafka, &env)?];
    println!("running");
    io::stdin().read_to_end(&mut Vec::new()).context("cannot wait for the end")?;
    env.shutdown.trigger();
    stages.into_iter().try_for_each(|stage| stage.join().map_err(|_| anyhow!("a stage panicked")))
}

fn start<S: Stage + 'static>(mut stage: S, kafka: &Kafka, env: &StageEnv) -> Result<thread::JoinHandle<()>> {
    let log = Broker::consumer(kafka, S::NAME, S::In::TOPIC)?;
    let env = StageEnv { stats: Arc::new(StageStats::default()), ..env.clone() };
    Ok(thread::spawn(move || {
        run_stage(&mut stage, log, &env).unwrap_or_else(|error| {
            eprintln!("{}: {error}", S::NAME);
            process::exit(1); // else nobody would be told
        });
    }))
}
