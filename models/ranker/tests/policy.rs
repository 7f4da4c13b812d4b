//! The two-stage system as a service uses it: slates, propensities, late feedback, refusals, snapshots.

use endcap_ranker::{
    RankerError, SnapshotError,
    linucb::{
        Item, LinUcb, Nomination, Shown, Sync, TwoStage,
        snapshot::{self, Versions},
    },
    seed,
};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

const VERSIONS: Versions = Versions { features: 3, policy: 17 };

fn item(id: u64, rng: &mut ChaCha8Rng) -> Item {
    let mut draw = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f64>>();
    Item { id, ranker: draw(5), nominators: vec![draw(3), draw(2)] }
}

fn items(count: u64, seed: u64) -> Vec<Item> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|id| item(id, &mut rng)).collect()
}

fn policy(sync: Sync) -> TwoStage {
    TwoStage::new(LinUcb::new(5, 0.1), vec![LinUcb::new(3, 0.1), LinUcb::new(2, 0.1)], sync)
}

/// A policy that has learnt from some requests.
fn taught(sync: Sync, requests: u64) -> TwoStage {
    let (mut policy, items) = (policy(sync), items(40, 1));
    for request in 0..requests {
        let of = |n: u64| &items[(seed(&[request, n]) % 40) as usize];
        let shown: Vec<Shown> = (0..4).map(|n| Shown { item: of(n), reward: (n % 2) as f64 }).collect();
        let nominations: Vec<Nomination> = (0..6).map(|n| Nomination { nominator: (n % 2) as usize, item: of(n) }).collect();
        policy.learn(&shown, &nominations).expect("well-formed feedback");
    }
    policy
}

#[test]
fn a_slate_is_in_order_of_its_bounds_and_ties_fall_as_often_each_way() {
    let (policy, items) = (taught(Sync::AfterUpdate, 30), items(25, 2));
    let candidates: Vec<&Item> = items.iter().collect();
    let slate = policy.rank(&candidates, 20, 0.0, 1).unwrap();
    assert_eq!((slate.placed.len(), slate.propensity), (20, None));
    assert!(slate.placed.windows(2).all(|pair| pair[0].score.ucb() >= pair[1].score.ucb()));
    let nominated = policy.nominate(1, &candidates, 20, 1).unwrap();
    let bound = |place: &usize| policy.nominators()[1].score(&items[*place].nominators[1]).ucb();
    assert!(nominated.windows(2).all(|pair| bound(&pair[0]) >= bound(&pair[1])));
    assert_eq!(policy.rank(&candidates[..3], 20, 0.0, 1).unwrap().placed.len(), 3);
    assert_eq!(policy.rank(&[], 20, 1.0, 1).unwrap().placed, []);

    let twins: Vec<Item> = (0..3).map(|id| Item { id, ..items[0].clone() }).collect();
    let twins: Vec<&Item> = twins.iter().collect();
    let first = (0..3_000).filter(|ties| policy.rank(&twins, 1, 0.0, *ties).unwrap().placed[0].candidate == 0).count();
    let error = (3_000.0_f64 * (1.0 / 3.0) * (2.0 / 3.0)).sqrt();
    assert!((first as f64 - 1_000.0).abs() < 4.0 * error, "{first} of 3,000 ties go to the first of three");
}

#[test]
fn shuffled_requests_are_as_many_as_they_should_be_and_their_propensities_are_true() {
    const REQUESTS: u64 = 40_000;
    let (policy, items) = (taught(Sync::BeforeUpdate, 30), items(5, 3));
    let candidates: Vec<&Item> = items.iter().collect();
    let own = policy.rank(&candidates, 4, 0.0, 0).unwrap();
    let (mut shuffled, mut at) = (0_u64, [[0_u64; 4]; 5]);
    for request in 0..REQUESTS {
        let slate = policy.rank(&candidates, 4, 0.25, request).unwrap();
        let Some(propensity) = slate.propensity else {
            assert_eq!(slate.placed, own.placed);
            continue;
        };
        assert_eq!(propensity, 0.25);
        shuffled += 1;
        slate.placed.iter().enumerate().for_each(|(place, placed)| at[placed.candidate][place] += 1);
    }
    let near = |count: u64, of: u64, probability: f64| {
        let (expected, error) = (of as f64 * probability, (of as f64 * probability * (1.0 - probability)).sqrt());
        assert!((count as f64 - expected).abs() < 4.5 * error, "{count} of {of}, probability {probability}");
    };
    near(shuffled, REQUESTS, 0.25);
    for placed in &own.placed {
        at[placed.candidate].iter().for_each(|count| near(*count, shuffled, 0.25));
    }
}

#[test]
fn slates_of_one_shuffled_request_have_orders_of_their_own() {
    const REQUESTS: u64 = 6_000;
    let (policy, items) = (taught(Sync::BeforeUpdate, 30), items(6, 3));
    let (one, other): (Vec<&Item>, Vec<&Item>) = (items[..3].iter().collect(), items[3..].iter().collect());
    // Where the best of a slate stands then.
    let best = |candidates: &[&Item], request: u64| {
        let own = policy.rank(candidates, 3, 0.0, request).unwrap().placed[0].candidate;
        let slate = policy.rank(candidates, 3, 1.0, request).unwrap();
        slate.placed.iter().position(|placed| placed.candidate == own).unwrap()
    };
    let equal = (0..REQUESTS).filter(|request| best(&one, *request) == best(&other, *request)).count() as f64;
    let (expected, error) = (REQUESTS as f64 / 3.0, (REQUESTS as f64 * 2.0 / 9.0).sqrt());
    assert!((equal - expected).abs() < 4.5 * error, "{equal} of {REQUESTS} stand at the same place");
}

#[test]
fn late_feedback_teaches_the_same_in_any_order() {
    let items = items(40, 4);
    let feedback: Vec<Vec<Shown>> = items
        .chunks(4)
        .map(|slate| slate.iter().map(|item| Shown { item, reward: (item.id % 3) as f64 * 0.3 }).collect())
        .collect();
    let mut in_order = policy(Sync::Never);
    feedback.iter().for_each(|shown| in_order.learn(shown, &[]).unwrap());
    for order_seed in 0..5 {
        let mut late = feedback.clone();
        late.shuffle(&mut ChaCha8Rng::seed_from_u64(order_seed));
        let mut other = policy(Sync::Never);
        late.iter().for_each(|shown| other.learn(shown, &[]).unwrap());
        for item in &items {
            let (a, b) = (in_order.ranker().score(&item.ranker), other.ranker().score(&item.ranker));
            assert!((a.mean - b.mean).abs() < 1e-9 && (a.bonus - b.bonus).abs() < 1e-9, "order {order_seed}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn a_click_that_comes_after_its_impression_teaches_what_both_at_once_do() {
    let items = items(12, 8);
    let (mut at_once, mut late) = (policy(Sync::Never), policy(Sync::Never));
    for item in &items {
        at_once.learn(&[Shown { item, reward: 0.3 }], &[]).unwrap();
        late.learn(&[Shown { item, reward: 0.0 }], &[]).unwrap();
    }
    late.amend(&items.iter().map(|item| Shown { item, reward: 0.3 }).collect::<Vec<_>>()).unwrap();
    for item in &items {
        let (a, b) = (at_once.ranker().score(&item.ranker), late.ranker().score(&item.ranker));
        assert!((a.mean - b.mean).abs() < 1e-9 && (a.bonus - b.bonus).abs() < 1e-12, "{a:?}, {b:?}");
    }
    let bad = Item { ranker: vec![f64::NAN; 5], ..items[0].clone() };
    assert!(late.amend(&[Shown { item: &bad, reward: 0.3 }]).is_err());
}

#[test]
fn without_exploration_the_expected_reward_alone_decides() {
    let (policy, items) = (taught(Sync::AfterUpdate, 30).exploring(0.0), items(25, 2));
    let slate = policy.rank(&items.iter().collect::<Vec<_>>(), 20, 0.0, 1).unwrap();
    assert!(slate.placed.windows(2).all(|pair| pair[0].score.mean >= pair[1].score.mean));
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_teaches_nothing() {
    let mut policy = taught(Sync::AfterUpdate, 10);
    let before = policy.clone();
    let good = items(1, 5).remove(0);
    let with = |change: &dyn Fn(&mut Item)| {
        let mut item = Item { id: 99, ..good.clone() };
        change(&mut item);
        item
    };
    let cases: [(Item, f64, &str); 7] = [
        (with(&|item| item.ranker[2] = f64::NAN), 0.0, "feature 2 of item 99 for the ranker is NaN"),
        (with(&|item| item.nominators[1][0] = f64::INFINITY), 0.0, "feature 0 of item 99 for nominator 1 is inf"),
        (
            with(&|item| item.ranker[0] = -1e7),
            0.0,
            "feature 0 of item 99 for the ranker is -10000000: features are finite and within ±1000",
        ),
        (with(&|item| item.ranker.push(1.0)), 0.0, "item 99 has 6 features for the ranker, which takes 5"),
        (with(&|item| item.nominators.truncate(1)), 0.0, "item 99 has features for 1 nominators, the policy has 2"),
        (with(&|_| ()), f64::NAN, "reward of item 99 is NaN"),
        (with(&|_| ()), 1e9, "reward of item 99 is 1000000000: rewards are finite and within ±1000"),
    ];
    for (bad, reward, message) in cases {
        let shown = [Shown { item: &good, reward: 1.0 }, Shown { item: &bad, reward }];
        let error = policy.learn(&shown, &[]).expect_err(message).to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let unknown = policy.learn(&[], &[Nomination { nominator: 2, item: &good }]).unwrap_err();
    assert_eq!(unknown, RankerError::NoNominator { nominator: 2, have: 2 });
    assert!(policy.nominate(7, &[&good], 1, 0).is_err());
    assert!(policy.rank(&[&good, &with(&|item| item.ranker[0] = f64::NAN)], 2, 0.0, 0).is_err());
    assert_eq!(policy, before, "a refused lesson left traces");
}

#[test]
fn whoever_goes_on_from_a_snapshot_stays_equal_to_whoever_wrote_it() {
    for sync in [Sync::Never, Sync::BeforeUpdate, Sync::AfterUpdate] {
        let mut writer = taught(sync, 700);
        let bytes = snapshot::write(&mut writer, VERSIONS);
        let (mut reader, version) = snapshot::read(&bytes, 3).unwrap();
        assert_eq!((&reader, version), (&writer, 17), "{sync:?}");
        let items = items(30, 6);
        for item in &items {
            let (shown, nomination) = ([Shown { item, reward: 0.3 }], [Nomination { nominator: 0, item }]);
            writer.learn(&shown, &nomination).unwrap();
            reader.learn(&shown, &nomination).unwrap();
        }
        assert_eq!(reader, writer, "{sync:?}");
        assert_eq!(snapshot::write(&mut reader, VERSIONS), snapshot::write(&mut writer, VERSIONS));
    }
}

#[test]
fn a_snapshot_that_is_cut_off_changed_or_foreign_is_refused() {
    let bytes = snapshot::write(&mut taught(Sync::AfterUpdate, 5), VERSIONS);
    for length in 0..bytes.len() {
        assert!(snapshot::read(&bytes[..length], 3).is_err(), "the first {length} bytes of {} were taken", bytes.len());
    }
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 1 << (place % 8);
        assert!(snapshot::read(&changed, 3).is_err(), "byte {place} of {} was changed and nobody saw it", bytes.len());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    let newer = [&bytes[..8], &2_u32.to_le_bytes(), &bytes[12..]].concat();
    let length = bytes.len() as u64;
    for (bytes, features, expected) in [
        (b"{\"policy\": []}".to_vec(), 3, SnapshotError::Foreign),
        (Vec::new(), 3, SnapshotError::Foreign),
        (bytes[..7].to_vec(), 3, SnapshotError::Length { got: 7, wanted: 72 }),
        (bytes[..300].to_vec(), 3, SnapshotError::Length { got: 300, wanted: length }),
        (longer, 3, SnapshotError::Length { got: length + 1, wanted: length }),
        (newer, 3, SnapshotError::Form { got: 2, reads: 1 }),
        (bytes.clone(), 4, SnapshotError::Features { got: 3, wanted: 4 }),
    ] {
        assert_eq!(snapshot::read(&bytes, features).unwrap_err(), expected);
    }
}

/// Puts a fitting length and checksum on bytes, as somebody might who wants to be believed.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as u64;
    bytes[12..20].copy_from_slice(&length.to_le_bytes());
    let body = bytes.len() - 32;
    let checksum = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(checksum.as_bytes());
    bytes
}

#[test]
fn bytes_with_a_fitting_checksum_are_a_policy_that_scores_or_an_error_but_no_panic() {
    const SEED: u64 = 11;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (bytes, items) = (snapshot::write(&mut taught(Sync::AfterUpdate, 5), VERSIONS), items(3, 7));
    let mut refused = 0;
    for trial in 0..4_000 {
        let mut changed = bytes.clone();
        for _ in 0..rng.random_range(1..6) {
            let place = rng.random_range(24..changed.len() - 32);
            changed[place] = rng.random();
        }
        if rng.random_bool(0.2) {
            changed.truncate(rng.random_range(72..changed.len()));
        }
        let Ok((policy, _)) = snapshot::read(&signed(changed), 3) else {
            refused += 1;
            continue;
        };
        if let Ok(slate) = policy.rank(&items.iter().collect::<Vec<_>>(), 3, 0.0, 1) {
            assert!(slate.placed.iter().all(|placed| !placed.score.ucb().is_nan()), "seed {SEED}, trial {trial}");
        }
    }
    assert!(refused > 500, "only {refused} of 4,000 were refused, seed {SEED}");
}
