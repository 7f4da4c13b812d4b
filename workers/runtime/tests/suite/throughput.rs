//! How fast records pass three hops of toy stages: measured on demand, with `--ignored --nocapture`.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{
    Clocks, Embedded, EmbeddedConfig, LoopConfig, ManualClock, Shutdown, StageEnv, StageStats, SystemClock, run_stage,
};
use endcap_schemas::{Message, ShopperEvent, topics::Topic};

use crate::toys::{Choose, Compose, Fold, Hop, NOW_MS, Toy, event, sent};

const EVENTS: i64 = 20_000;

fn consume<H: Hop>(file: &Embedded, batch: usize, shutdown: &Shutdown) {
    let clocks = Clocks { events: Arc::new(ManualClock::at(NOW_MS)), ..Clocks::system() };
    let env = StageEnv {
        store: Arc::new(file.clone()),
        clocks,
        config: LoopConfig { batch_records_max: batch, ..LoopConfig::default() },
        stats: Arc::new(StageStats::default()),
        shutdown: shutdown.clone(),
    };
    let log = file.consumer(&format!("endcap.{}.live", H::NAME), H::In::TOPIC).unwrap();
    run_stage(&mut Toy::<H>::new(), Box::new(log), &env).unwrap();
}

fn until_done(file: &Embedded, events: i64) {
    while file.end(Topic::KEYWORDS).unwrap() < events {
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[ignore = "a measurement"]
fn records_per_second_through_three_hops() {
    for batch in [16, 64, 256] {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock::default());
        let file = Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock).unwrap();
        let shutdown = Shutdown::new();
        let events: Vec<_> =
            (0..EVENTS).map(|n| sent::<ShopperEvent>(&event(&format!("u{n}"), NOW_MS, "e"), &format!("e{n}"))).collect();
        thread::scope(|scope| {
            scope.spawn(|| consume::<Fold>(&file, batch, &shutdown));
            scope.spawn(|| consume::<Compose>(&file, batch, &shutdown));
            scope.spawn(|| consume::<Choose>(&file, batch, &shutdown));
            let start = Instant::now();
            for some in events.chunks(500) {
                file.producer().append(some, None).unwrap();
            }
            until_done(&file, EVENTS);
            let passed = start.elapsed();
            let lone = Instant::now();
            for n in 0..20 {
                let record = sent(&event(&format!("lone{n}"), NOW_MS, "e"), &format!("lone{n}"));
                file.producer().append(&[record], None).unwrap();
                until_done(&file, EVENTS + n + 1);
            }
            shutdown.trigger();
            let (rate, each) = (f64::from(20_000) / passed.as_secs_f64(), lone.elapsed() / 20);
            println!("batches of {batch}: {rate:.0} events/s through three hops; a lone event takes {each:?}");
        });
        for (stage, tally) in file.tallies().unwrap() {
            println!("  {stage}: {} batches, {:?}", tally.batches, tally.spent);
        }
    }
}
