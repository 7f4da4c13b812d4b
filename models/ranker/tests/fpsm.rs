//! The selection of orders by SimHash.

use std::f64::consts::PI;

use endcap_ranker::pier::{
    Order,
    fpsm::{
        Behaviour, Places, SimHash, Ties, distance, distances, encode_places, history, pool_fields, represent, select,
        time_weights,
    },
    orders,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 9;
const DIMS: usize = 8;
const DAY_MS: i64 = 86_400_000;

fn vector(rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..DIMS).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Five items' pooled embeddings, and the representation of each of their 120 orders.
fn slate(seed: u64, how: Places) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pooled: Vec<Vec<f32>> = (0..5).map(|_| vector(&mut rng)).collect();
    let places = encode_places(5, DIMS, how);
    let all = orders(5, 5).iter().map(|order| represent(order, &pooled, &places)).collect();
    (pooled, all)
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// Mean of vectors.
fn mean(vectors: &[Vec<f32>]) -> Vec<f32> {
    (0..DIMS).map(|dim| vectors.iter().map(|vector| vector[dim]).sum::<f32>() / vectors.len() as f32).collect()
}

#[test]
fn a_representation_is_equation_3_worked_out_the_long_way() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (fields, order): (usize, Order) = (4, vec![2, 0, 3, 1, 4]);
    let items: Vec<Vec<f32>> = (0..5).map(|_| (0..fields * DIMS).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
    let places = encode_places(5, DIMS, Places::Plain);
    let pooled: Vec<Vec<f32>> = items.iter().map(|item| pool_fields(item, DIMS)).collect();
    let h = represent(&order, &pooled, &places);
    for dim in 0..DIMS {
        let mut wanted = 0.0;
        for field in 0..fields {
            for (place, item) in order.iter().enumerate() {
                let rate = 10_000_f64.powf((2 * (dim / 2)) as f64 / DIMS as f64);
                let code = if dim % 2 == 0 { (place as f64 / rate).sin() } else { (place as f64 / rate).cos() };
                wanted += f64::from(items[*item][field * DIMS + dim]) * code / 5.0 / fields as f64;
            }
        }
        assert!((f64::from(h[dim]) - wanted).abs() < 1e-6, "dimension {dim}: {}, not {wanted}", h[dim]);
    }
}

#[test]
fn a_centred_representation_holds_the_arrangement_and_nothing_of_the_set() {
    for seed in 0..5 {
        let (_, centred) = slate(seed, Places::Centred);
        assert!(length(&mean(&centred)) < 1e-6, "slate {seed}");
        let (_, plain) = slate(seed, Places::Plain);
        let common = mean(&plain);
        for (plain, centred) in plain.iter().zip(&centred) {
            let rest: Vec<f32> = plain.iter().zip(&common).map(|(plain, common)| plain - common).collect();
            assert!(rest.iter().zip(centred).all(|(a, b)| (a - b).abs() < 1e-6), "slate {seed}");
        }
        let arrangement = centred.iter().map(|h| length(h)).sum::<f64>() / 120.0;
        assert!(
            length(&common) > arrangement,
            "slate {seed}: the set's part {}, the arrangement's {arrangement}",
            length(&common)
        );
    }
}

#[test]
fn bits_differ_as_often_as_the_angle_between_two_vectors_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (functions, bits) = (400, 64);
    let hash = SimHash::new(functions, bits, DIMS, SEED);
    for pair in 0..8 {
        let (a, b) = (vector(&mut rng), vector(&mut rng));
        let dot: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b)).sum();
        let probability = (dot / length(&a) / length(&b)).acos() / PI;
        let differ: u32 = (0..functions).map(|slot| distance(hash.hash(slot, &a), hash.hash(slot, &b))).sum();
        let count = (functions * bits) as f64;
        let error = (probability * (1.0 - probability) / count).sqrt();
        assert!(
            (f64::from(differ) / count - probability).abs() < 4.0 * error,
            "pair {pair}, seed {SEED}: {differ} of {count}, probability {probability}"
        );
    }
    let positive: Vec<f32> = (0..DIMS).map(|_| rng.random_range(0.1..1.0)).collect();
    let set: u32 = (0..functions).map(|slot| hash.hash(slot, &positive).count_ones()).sum();
    assert!((0.45..0.55).contains(&(f64::from(set) / (functions * bits) as f64)), "directions of one sign: {set} bits are set");
}

#[test]
fn hash_functions_differ_from_slot_to_slot_and_are_the_same_for_a_seed() {
    let (one, other) = (SimHash::new(5, 32, DIMS, SEED), SimHash::new(5, 32, DIMS, SEED + 1));
    let h = vector(&mut ChaCha8Rng::seed_from_u64(SEED));
    let hashes: Vec<u64> = (0..one.slots()).map(|slot| one.hash(slot, &h)).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]), "{hashes:?}");
    assert_eq!(one, SimHash::new(5, 32, DIMS, SEED));
    assert!((0..5).any(|slot| other.hash(slot, &h) != hashes[slot]));
    assert!(hashes.iter().all(|hash| *hash < 1 << 32));
}

#[test]
fn an_order_that_was_clicked_is_nearest_to_itself_and_newer_behaviour_counts_more() {
    let (_, all) = slate(SEED, Places::Centred);
    let hash = SimHash::new(5, 64, DIMS, SEED);
    for clicked in [0, 17, 63, 119] {
        let behaviour = |order: usize, at_ms: i64| Behaviour { h: all[order].clone(), at_ms };
        let slots = history([behaviour(clicked, DAY_MS)], 5);
        let weights = time_weights(&slots, DAY_MS as f64);
        let of_one = distances(&hash, &all, &slots, &weights);
        // Others may share its hash, where arranging two items the other way turns it by less than a bit.
        let alike = of_one.iter().filter(|distance| **distance == 0.0).count();
        assert!(of_one[clicked] == 0.0 && alike < 10, "{clicked}: {}, {alike} orders are as near", of_one[clicked]);
        assert!(select(&of_one, 10, Ties::Drawn(1)).contains(&clicked));

        let far = (0..120).max_by(|a, b| of_one[*a].total_cmp(&of_one[*b])).expect("there are orders");
        let slots = history([behaviour(clicked, 9 * DAY_MS), behaviour(far, 0)], 5);
        let weights = time_weights(&slots, DAY_MS as f64);
        let of_two = distances(&hash, &all, &slots, &weights);
        assert!(of_two[clicked] < of_two[far], "{} and {}", of_two[clicked], of_two[far]);
    }
}

#[test]
fn weights_halve_with_age_and_empty_slots_have_none() {
    let at = |days: i64| Behaviour { h: vec![0.0; DIMS], at_ms: days * DAY_MS };
    for (behaviours, wanted) in [
        (vec![at(10), at(9), at(8)], vec![4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0, 0.0]),
        (vec![at(10)], vec![1.0, 0.0, 0.0, 0.0, 0.0]),
        (vec![at(-4_000), at(-4_001)], vec![2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0]),
        (Vec::new(), vec![0.0; 5]),
        ((0..9).map(|_| at(3)).collect(), vec![0.2; 5]),
    ] {
        let weights = time_weights(&history(behaviours, 5), DAY_MS as f64);
        assert!(weights.iter().zip(&wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-6), "{weights:?}, not {wanted:?}");
    }
}

#[test]
fn a_slot_in_the_middle_without_a_behaviour_leaves_the_others_as_they_are() {
    let (_, all) = slate(SEED, Places::Plain);
    let hash = SimHash::new(3, 32, DIMS, SEED);
    let behaviour = |order: usize| Some(Behaviour { h: all[order].clone(), at_ms: 0 });
    let masked = distances(&hash, &all, &[behaviour(3), None, behaviour(70)], &[0.5, 0.0, 0.5]);
    let by_hand: Vec<f32> = all
        .iter()
        .map(|h| {
            let one = distance(hash.hash(0, h), hash.hash(0, &all[3]));
            let other = distance(hash.hash(2, h), hash.hash(2, &all[70]));
            0.5 * one as f32 + 0.5 * other as f32
        })
        .collect();
    assert_eq!(masked, by_hand);
}

#[test]
fn equal_distances_fall_by_seed_or_stay_in_order() {
    let distances = distances(&SimHash::new(5, 32, DIMS, SEED), &slate(SEED, Places::Plain).1, &history([], 5), &[0.0; 5]);
    assert_eq!(select(&distances, 3, Ties::InitialRank), [0, 1, 2]);
    assert_eq!(select(&distances, 7, Ties::Drawn(1)), select(&distances, 7, Ties::Drawn(1)));
    let mut counts = [0_u32; 120];
    for seed in 0..12_000 {
        counts[select(&distances, 1, Ties::Drawn(seed))[0]] += 1;
    }
    assert!(counts.iter().all(|count| (50..160).contains(count)), "of 12,000 draws: {counts:?}");
    assert_eq!(select(&[3.0, 1.0, 2.0, 1.0], 3, Ties::InitialRank), [1, 3, 2]);
}
