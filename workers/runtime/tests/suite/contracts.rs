//! The contracts of the borders, run against the embedded side.

use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Instant,
};

use endcap_runtime::{
    Broker, Embedded, EmbeddedConfig, Log, ManualClock, Stamp, Write,
    contract::{
        LogUnderTest, check_any_order, check_broker, check_full, check_log, check_overview, check_policies, check_rivals,
        check_schedules, check_store,
    },
};
use endcap_schemas::{UserKey, topics::Topic};
use proptest::{collection::vec, prelude::*};

/// A fresh file. Each consumer opens it anew, as another process would.
struct Fresh {
    file: Embedded,
    dir: tempfile::TempDir,
}

fn open(dir: &tempfile::TempDir, config: EmbeddedConfig) -> Embedded {
    Embedded::open(dir.path().join("endcap.db"), config, Arc::new(ManualClock::at(5_000))).unwrap()
}

fn fresh_with(config: EmbeddedConfig) -> Fresh {
    let dir = tempfile::tempdir().unwrap();
    Fresh { file: open(&dir, config), dir }
}

fn fresh() -> Fresh {
    fresh_with(EmbeddedConfig::default())
}

impl LogUnderTest for Fresh {
    fn consumer(&self, group: &str, topic: Topic) -> Box<dyn Log> {
        Box::new(open(&self.dir, EmbeddedConfig::default()).consumer(group, topic).unwrap())
    }

    fn broker(&self) -> &dyn Broker {
        &self.file
    }
}

#[test]
fn the_embedded_log_keeps_its_contract() {
    check_log(fresh);
    check_rivals(fresh);
}

#[test]
fn the_embedded_file_keeps_policies() {
    check_policies(&fresh().file);
}

#[test]
fn the_embedded_broker_keeps_its_contract() {
    check_broker(fresh);
    check_full(|| fresh_with(EmbeddedConfig { waiting_max: 3, ..EmbeddedConfig::default() }));
}

/// Gives fresh stores under `dir`.
fn stores(dir: &tempfile::TempDir) -> impl Fn() -> Embedded {
    let count = std::cell::Cell::new(0);
    move || {
        count.set(count.get() + 1);
        let path = dir.path().join(format!("{}.db", count.get()));
        Embedded::open(path, EmbeddedConfig::default(), Arc::new(ManualClock::at(5_000))).unwrap()
    }
}

#[test]
fn the_embedded_store_keeps_its_contract() {
    check_store(stores(&tempfile::tempdir().unwrap()));
    check_overview(stores(&tempfile::tempdir().unwrap()));
}

fn write() -> impl Strategy<Value = Write> {
    let user = prop_oneof![Just("anna"), Just("bert")].prop_map(UserKey::of);
    (user, 1..6_i64, 0..3_u8, option_bytes()).prop_map(|(user, stamp, kind, bytes)| {
        let stamp = Stamp(stamp);
        match kind {
            0 => Write::State { user, stamp, state: bytes.unwrap_or_default() },
            1 => Write::Page { user, stamp, page: bytes },
            _ => Write::Erase { user, stamp, at: bytes.map(|bytes| (0, i64::try_from(bytes.len()).unwrap())) },
        }
    })
}

fn option_bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(vec(0..3_u8, 0..3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn writes_end_in_the_same_rows_in_any_order(
        (writes, orders) in vec(write(), 1..12).prop_flat_map(|writes| {
            let places: Vec<usize> = (0..writes.len()).chain(0..writes.len()).collect();
            (Just(writes), vec(Just(places).prop_shuffle(), 2..4))
        })
    ) {
        check_any_order(stores(&tempfile::tempdir().unwrap()), &writes, &orders);
    }
}

/// Schedules of a run; `ENDCAP_TEST_SCHEDULES` sets another number.
const SCHEDULES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

/// The long mode: `TMPDIR=/dev/shm ENDCAP_TEST_SCHEDULES=100000 cargo test -p endcap-runtime -- --nocapture schedules_end`.
#[test]
fn random_schedules_end_in_the_rows_that_their_greatest_writes_name() {
    let seed = number("ENDCAP_TEST_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("ENDCAP_TEST_SEED={seed}");
    let schedules = number("ENDCAP_TEST_SCHEDULES").unwrap_or(SCHEDULES);
    let (mut state, start, dir) = (seed, Instant::now(), tempfile::tempdir().unwrap());
    // Two connections, as two processes would have them.
    check_schedules(&[open(&dir, EmbeddedConfig::default()), open(&dir, EmbeddedConfig::default())], schedules, &mut |below| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % below
    });
    println!("{schedules} schedules in {:.1} s", start.elapsed().as_secs_f64());
}
