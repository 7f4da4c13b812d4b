//! Tests of the learner, over the embedded store and log.

use std::{collections::BTreeMap, time::Duration};

use endcap_runtime::{
    Broker, Clocks, Embedded, EmbeddedConfig, Headers, LoopConfig, ManualClock, Outgoing, Shutdown, StageEnv, StageStats,
    StoredPolicy, SystemClock, run_stage,
};
use endcap_schemas::{
    Action, ActionKind, Offer,
    topics::{Lane, Topic},
    wire,
};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{features::TRAITS, serving::Serving};

const SEED: u64 = 17;
const SHOWN: usize = 4;
const NOW_MS: i64 = 1_750_000_000_000;

struct Place {
    file: Embedded,
    _dir: tempfile::TempDir,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(NOW_MS));
    Place { file: Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock).unwrap(), _dir: dir }
}

impl Place {
    fn learner(&self) -> Learner {
        Learner::new(RankingConfig::default(), Arc::new(self.file.clone()))
    }

    fn newest(&self) -> KeptPolicy {
        self.learner().begin(&self.file.policy_versions().unwrap()).unwrap()
    }
}

/// Feedback about slates of four out of six offers.
fn feedback(slates: u64, seed: u64) -> Vec<Feedback> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    for slate in 0..slates {
        let mut offer = |place: usize| Offer {
            product: if place < SHOWN { format!("d{place}") } else { String::new() },
            traits: (0..TRAITS).map(|_| rng.random_range(0..256)).collect(),
            nominators: rng.random_range(1..16),
        };
        let whole = Feedback {
            slate: format!("{slate:032x}"),
            served_ms: NOW_MS + slate as i64,
            policy: 0,
            traits_version: VERSION as i32,
            propensity: None,
            offers: (0..6).map(&mut offer).collect(),
            shown: SHOWN as i32,
            actions: (0..SHOWN as i32).map(|offer| Action { offer, kind: ActionKind::Impression }).collect(),
            put_back: None,
        };
        let kind = if rng.random_bool(0.3) { ActionKind::CartAdd } else { ActionKind::Click };
        let later = Feedback { actions: vec![Action { offer: rng.random_range(0..SHOWN as i32), kind }], ..whole.clone() };
        all.extend([whole, later]);
    }
    all
}

fn inputs(feedback: &[Feedback], from: i64) -> Vec<Input<Feedback>> {
    let input = |(value, offset): (&Feedback, i64)| Input { value: value.clone(), partition: 0, offset, appended_ms: NOW_MS };
    feedback.iter().zip(from..).map(input).collect()
}

fn labels(verdicts: &[Verdict<Feedback>]) -> Vec<&'static str> {
    let label = |verdict: &Verdict<Feedback>| match verdict {
        Verdict::Dropped(reason) => reason.label(),
        Verdict::Settled(settled) => settled.reason.label(),
        Verdict::Rejected(rejection) => rejection.kind,
        Verdict::Passed(_) => "passed",
    };
    verdicts.iter().map(label).collect()
}

/// What two policies think of the same offers.
fn apart(a: &TwoStage, b: &TwoStage) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut worst = 0.0_f64;
    for id in 0..50 {
        let item = Traits(std::array::from_fn(|_| rng.random())).item(id);
        let (a, b) = (a.ranker().score(&item.ranker), b.ranker().score(&item.ranker));
        worst = worst.max((a.mean - b.mean).abs()).max((a.deviation - b.deviation).abs());
    }
    worst
}

#[test]
fn what_comes_again_teaches_nothing_and_cuts_do_not_matter() {
    let all = feedback(30, SEED);
    let whole = place();
    let verdicts = whole.learner().process(&inputs(&all, 0)).unwrap();
    assert!(labels(&verdicts).iter().all(|label| *label == "learnt"), "{:?}", labels(&verdicts));
    assert_eq!(whole.file.policy_versions().unwrap(), [60]);

    // A crash hands out again what was learnt; a log that was made anew counts from 0.
    let cut = place();
    for (part, from) in [(0..7, 0), (0..7, 0), (7..8, 7), (3..40, 3), (40..55, 0), (50..60, 10), (0..60, 0)] {
        cut.learner().process(&inputs(&all[part], from)).unwrap();
    }
    assert_eq!(cut.file.policy_versions().unwrap(), [42, 41, 40, 8, 7]);
    let (a, b) = (whole.newest(), cut.newest());
    assert_eq!(a.ledger, b.ledger);
    assert!(apart(&a.policy, &b.policy) < 1e-9, "{} apart", apart(&a.policy, &b.policy));
    assert_eq!(a.policy.ranker().observations(), 30 * SHOWN as u64);

    // The same told again, by its senders: other records, no news.
    let verdicts = cut.learner().process(&inputs(&all, 60)).unwrap();
    assert!(labels(&verdicts).iter().all(|label| *label == "duplicate"), "{:?}", labels(&verdicts));
    assert_eq!(cut.file.policy_versions().unwrap()[0], 42, "where nothing was learnt no policy is kept");
}

#[test]
fn late_feedback_in_any_order_teaches_the_ranker_the_same() {
    let mut all = feedback(20, SEED);
    let (in_order, shuffled) = (place(), place());
    in_order.learner().process(&inputs(&all, 0)).unwrap();
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(SEED));
    for (batch, from) in all.chunks(7).zip((0..).step_by(7)) {
        shuffled.learner().process(&inputs(batch, from)).unwrap();
    }
    let distance = apart(&in_order.newest().policy, &shuffled.newest().policy);
    assert!(distance < 1e-9, "{distance} apart, seed {SEED}");
    assert_eq!(in_order.newest().ledger, shuffled.newest().ledger);
}

#[test]
fn what_cannot_be_learnt_from_says_why_and_holds_up_nothing() {
    let place = place();
    let good = feedback(1, SEED).remove(0);
    let with = |change: &dyn Fn(&mut Feedback)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    let batch = [
        with(&|bad| bad.offers[1].traits[0] = 256),
        with(&|bad| bad.offers[2].traits.push(1)),
        with(&|bad| bad.actions[0].offer = 4),
        with(&|bad| bad.shown = 9),
        with(&|bad| bad.traits_version = 9),
        with(&|bad| bad.slate.clear()),
        with(&|bad| bad.actions.clear()),
        good.clone(),
        Feedback::put_back(77, "wish".into(), 1),
    ];
    let verdicts = place.learner().process(&inputs(&batch, 0)).unwrap();
    let expected = ["malformed", "malformed", "malformed", "malformed", "expired", "malformed", "duplicate", "learnt"];
    assert_eq!(labels(&verdicts)[..8], expected);
    assert!(matches!(&verdicts[8], Verdict::Rejected(rejection) if rejection.kind == "unknown_policy"));
    assert_eq!(place.newest().policy.ranker().observations(), SHOWN as u64);
    let (old, ahead) = (with(&|old| old.served_ms -= 2 * 86_400_000), with(&|ahead| ahead.served_ms += 3 * 86_400_000));
    let other = with(&|other| other.slate = "another".into());
    let verdicts = place.learner().process(&inputs(&[old, ahead, other], 9)).unwrap();
    assert_eq!(labels(&verdicts), ["expired", "future", "learnt"], "a clock that runs ahead makes no other slate too old");
}

#[test]
fn an_earlier_policy_is_put_back_where_the_wish_stands_and_learning_goes_on() {
    let (place, all) = (place(), feedback(10, SEED));
    place.learner().process(&inputs(&all[..6], 0)).unwrap();
    let early = place.newest();
    place.learner().process(&inputs(&all[6..12], 6)).unwrap();
    let serving = Serving::new(0.1);
    assert!(serving.refresh(&place.file).unwrap() && serving.now().version == 12);
    let wish = [Feedback::put_back(6, "wish".into(), NOW_MS), all[12].clone()];
    let verdicts = place.learner().process(&inputs(&wish, 12)).unwrap();
    assert_eq!(labels(&verdicts), ["learnt", "learnt"]);
    let back = place.newest();
    assert_eq!((back.version, back.policy.ranker().observations()), (14, early.policy.ranker().observations() + 4));
    assert!(serving.refresh(&place.file).unwrap() && serving.now().version == 14);
    let verdicts = place.learner().process(&inputs(&[&wish[..], &all[6..12]].concat(), 14)).unwrap();
    assert!(labels(&verdicts).iter().all(|label| *label == "duplicate"), "neither a wish again nor what was given up is news");
    place.learner().process(&inputs(&[Feedback::put_back(0, "wish".into(), NOW_MS + 1)], 22)).unwrap();
    assert!(apart(&place.newest().policy, &untaught()) < 1e-12);
    let ahead = [Feedback::put_back(0, "ahead".into(), NOW_MS + 3 * 86_400_000)];
    assert_eq!(labels(&place.learner().process(&inputs(&ahead, 23)).unwrap()), ["future"]);
    let verdicts = place.learner().process(&inputs(&all[13..14], 24)).unwrap();
    assert_eq!(labels(&verdicts), ["duplicate"], "a click whose impression the policy that was put back does not know");
}

#[test]
fn a_damaged_or_foreign_policy_takes_nobodys_place() {
    let (place, all) = (place(), feedback(4, SEED));
    place.learner().process(&inputs(&all[..4], 0)).unwrap();
    let serving = Serving::new(1.0);
    assert!(serving.refresh(&place.file).unwrap());
    let good = place.file.policy(4).unwrap().unwrap();
    let mut flipped = good.snapshot.clone();
    flipped[100] ^= 1;
    let bad = [good.snapshot[..200].to_vec(), b"{\"policy\": []}".to_vec(), Vec::new(), flipped, good.snapshot.clone()];
    for (snapshot, version) in bad.into_iter().zip(5..) {
        place.file.put_policy(&StoredPolicy { version, snapshot, ledger: good.ledger.clone() }).unwrap();
        assert!(!serving.refresh(&place.file).unwrap(), "policy {version} was taken up");
        assert_eq!((serving.now().version, place.newest().version), (4, 4));
    }
    place.learner().process(&inputs(&all[4..6], 12)).unwrap();
    assert!(
        serving.refresh(&place.file).unwrap() && serving.now().version == 14,
        "whoever learns goes on from the last good one"
    );
    // Under a version that the log is far from: it is passed over, and so is its number.
    place.file.put_policy(&StoredPolicy { version: 900, snapshot: good.snapshot[..200].to_vec(), ledger: Vec::new() }).unwrap();
    assert!(!serving.refresh(&place.file).unwrap());
    place.learner().process(&inputs(&all[6..7], 14)).unwrap();
    assert!(serving.refresh(&place.file).unwrap() && serving.now().version == 901);
    // What is mended under the number that it had is taken up.
    let mut mended = KeptPolicy { version: 902, ..place.newest() }.store();
    let whole = std::mem::take(&mut mended.snapshot);
    place.file.put_policy(&mended).unwrap();
    assert!(!serving.refresh(&place.file).unwrap());
    place.file.put_policy(&StoredPolicy { snapshot: whole, ..mended }).unwrap();
    assert!((0..kept::LOOKS).all(|_| !serving.refresh(&place.file).unwrap()), "it is not read over and over");
    assert!(serving.refresh(&place.file).unwrap() && serving.now().version == 902);
    // No number is so great that none comes after it.
    place.file.put_policy(&StoredPolicy { version: i64::MAX, snapshot: Vec::new(), ledger: Vec::new() }).unwrap();
    place.learner().process(&inputs(&all[7..], 15)).unwrap();
    assert!(serving.refresh(&place.file).unwrap() && serving.now().version == 903);
}

/// `bytes` with some of them changed, cut off, put in or repeated.
fn damaged(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..4) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, rng.random()),
            _ => bytes.extend_from_within(..at),
        }
    }
    bytes
}

#[test]
fn whatever_stands_where_a_policy_should_the_last_good_one_serves() {
    let (place, all) = (place(), feedback(4, SEED));
    place.learner().process(&inputs(&all[..4], 0)).unwrap();
    let serving = Serving::new(1.0);
    assert!(serving.refresh(&place.file).unwrap());
    let good = place.file.policy(4).unwrap().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for trial in 0..400 {
        let bad = StoredPolicy { snapshot: damaged(&good.snapshot, &mut rng), ..good.clone() };
        assert!(bad == good || KeptPolicy::read(&bad).is_err(), "seed {SEED}, trial {trial}");
        place.file.put_policy(&StoredPolicy { version: 5, ..bad }).unwrap();
        assert!(!serving.refresh(&place.file).unwrap(), "seed {SEED}, trial {trial}: it was taken up");
        assert_eq!((serving.now().version, place.newest().version), (4, 4), "seed {SEED}, trial {trial}");
    }
    // Under a checksum that fits, as if whoever wrote it had lost its mind: refused, or a policy that can score.
    for trial in 0..400 {
        let body = damaged(&good.snapshot[..good.snapshot.len() - 32], &mut rng);
        let snapshot = [&body[..], blake3::hash(&body).as_bytes()].concat();
        if let Ok(KeptPolicy { policy, .. }) =
            KeptPolicy::read(&StoredPolicy { version: 4, snapshot, ledger: good.ledger.clone() })
        {
            let score = policy.ranker().score(&Traits([200; TRAITS]).item(1).ranker);
            assert!(score.mean.is_finite() && score.bonus.is_finite(), "seed {SEED}, trial {trial}: {score:?}");
        }
    }
    for trial in 0..400 {
        let bad = StoredPolicy { ledger: damaged(&good.ledger, &mut rng), ..good.clone() };
        assert!(
            bad == good || KeptPolicy::read(&bad).is_err(),
            "seed {SEED}, trial {trial}: it does not know what it has learnt from"
        );
        assert!(kept::policy_of(&bad).is_ok(), "seed {SEED}, trial {trial}: it can be put back all the same");
    }
    place.file.put_policy(&StoredPolicy { version: 4, ledger: damaged(&good.ledger, &mut rng), ..good }).unwrap();
    place.file.forget_policies(&[5]).unwrap();
    let verdicts = place.learner().process(&inputs(&all[4..], 4)).unwrap();
    assert_eq!(labels(&verdicts), ["learnt"; 4], "where no policy can be read whole, learning begins anew");
}

#[test]
fn through_the_log_every_record_is_accounted_for_and_a_restart_learns_nothing_twice() {
    let place = place();
    let all = feedback(25, SEED);
    let record = |feedback: &Feedback| Outgoing {
        topic: Topic::FEEDBACK,
        key: Feedback::key(),
        headers: Headers::root("f", Topic::FEEDBACK, 1),
        value: wire::encode(feedback).unwrap(),
    };
    let mut records: Vec<Outgoing> = all.iter().chain(&all[..10]).map(record).collect();
    records.push(Outgoing { value: b"no feedback".to_vec(), ..records[0].clone() });
    place.file.append(&records[..20], None).unwrap();
    run(&place);
    place.file.append(&records[20..], None).unwrap();
    run(&place);
    run(&place);
    let tally = place.file.tallies().unwrap().remove("learner").unwrap();
    let dropped = BTreeMap::from([("duplicate".to_owned(), 10), ("learnt".to_owned(), 50)]);
    assert_eq!((tally.received, &tally.dropped), (61, &dropped), "{tally:?}");
    assert!(tally.is_balanced() && tally.dead_lettered["malformed"] == 1, "{tally:?}");
    assert_eq!(tally.counters["learner.impressions"], 100);
    assert_eq!(place.newest().policy.ranker().observations(), 100);
}

/// Runs the learner until everything is worked off.
fn run(place: &Place) {
    let (shutdown, stats) = (Shutdown::new(), Arc::new(StageStats::default()));
    let env = StageEnv {
        store: Arc::new(place.file.clone()),
        clocks: Clocks::of(Arc::new(SystemClock::default())),
        config: LoopConfig { batch_records_max: 16, poll_wait: Duration::from_millis(5), ..LoopConfig::default() },
        stats,
        shutdown: shutdown.clone(),
    };
    let log = Broker::consumer(&place.file, &format!("endcap.learner.{}", Lane::Live), Topic::FEEDBACK).unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run_stage(&mut place.learner(), log, &env));
        let behind = || place.file.groups().unwrap().iter().any(|group| group.position < group.end);
        while behind() && !running.is_finished() {
            std::thread::yield_now();
        }
        shutdown.trigger();
        running.join().unwrap().unwrap();
    });
}
