//! Whatever comes from outside is scored or refused, and harms nothing that comes after it.

use endcap_ranker::{
    SlateError, WeightsError,
    pier::{
        Kind, Model, Vocabulary, Weights,
        serve::{self, ClickedPage, History, Kernel, Orders, RerankRequest, Scratch},
    },
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::world::{World, check_kernel, rng};

/// A change to a slate, and what is said of it.
type Case = (&'static str, fn(&mut Asked), &'static str);

/// What is asked, as it may come from outside.
#[derive(Clone)]
struct Asked {
    shopper: Option<u32>,
    items: Vec<u32>,
    point: Vec<f32>,
}

impl Asked {
    fn score<'a>(
        &'a self,
        kernel: &'a Kernel,
        history: &'a History,
        orders: &Orders,
        scratch: &'a mut Scratch,
    ) -> Result<serve::Scores<'a>, SlateError> {
        let request = RerankRequest { shopper: self.shopper, items: &self.items, point: &self.point };
        kernel.score(&request, history, orders, scratch)
    }
}

#[test]
fn what_cannot_be_scored_is_refused_with_a_reason() {
    let world = World::new(3, (5, 5), 1.0);
    let (kernel, other, mut scratch) = (world.kernel(), World::new(4, (5, 5), 1.0).kernel(), Scratch::default());
    let (_, items, point) = world.visits().remove(0);
    let good = Asked { shopper: Some(0), items: world.dataset.values(&items), point };
    let (all, history) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let cases: [Case; 7] = [
        ("NaN", |asked| asked.point[3] = f32::NAN, "log-odds of item 3 are NaN"),
        ("no bounds", |asked| asked.point[0] = f32::INFINITY, "log-odds of item 0 are inf"),
        ("a field too few", |asked| _ = asked.items.pop(), "values of fields"),
        ("an item too few", |asked| _ = asked.point.pop(), "slate has 4 items"),
        ("far too many items", |asked| asked.point = vec![0.0; 65], "slate has 65 items"),
        ("an unknown value", |asked| asked.items[0] = 40, "field 0 of item 0 is 40"),
        ("an unknown shopper", |asked| asked.shopper = Some(6), "shopper 6 is not known"),
    ];
    for (what, change, needle) in cases {
        let mut asked = good.clone();
        change(&mut asked);
        let error = asked.score(&kernel, &history, &all, &mut scratch).expect_err(what).to_string();
        assert!(error.contains(needle), "{what}: {error}");
    }
    let of_four = Orders::all(4, 4).expect("orders");
    assert!(matches!(good.score(&kernel, &history, &of_four, &mut scratch), Err(SlateError::Count { .. })));
    let of_other = other.encode(&[], &mut scratch).expect("no history");
    assert_eq!(good.score(&kernel, &of_other, &all, &mut scratch), Err(SlateError::Stale));
    let page = ClickedPage { items: &good.items[1..], at_ms: 0 };
    assert!(matches!(kernel.encode(&[page], &mut scratch), Err(SlateError::Count { .. })));
    assert!(good.score(&kernel, &history, &all, &mut scratch).is_ok());
}

#[test]
fn requests_that_chance_has_spoilt_are_scored_or_refused_and_harm_no_later_one() {
    let world = World::new(5, (5, 5), 1.0);
    let (kernel, mut scratch, mut rng) = (world.kernel(), Scratch::default(), rng(&[5, 9]));
    let (_, items, point) = world.visits().remove(0);
    let good = Asked { shopper: Some(0), items: world.dataset.values(&items), point };
    let (all, history) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let wanted = good.score(&kernel, &history, &all, &mut scratch).expect("scores").values.to_vec();
    let (mut refused, rounds) = (0, 2_000);
    for round in 0..rounds {
        let mut asked = good.clone();
        for _ in 0..rng.random_range(1..4) {
            spoil(&mut asked, &mut rng);
        }
        let count = asked.point.len();
        let orders = Orders::all(count, rng.random_range(0..6)).unwrap_or_else(|_| all.clone());
        match asked.score(&kernel, &history, &orders, &mut scratch) {
            Ok(scores) => assert!(scores.values.iter().all(|value| value.is_finite()), "round {round} of seed 5"),
            Err(_) => refused += 1,
        }
        let again = good.score(&kernel, &history, &all, &mut scratch).expect("scores");
        assert_eq!(again.values, wanted, "round {round} of seed 5 has left something behind");
    }
    assert!((rounds / 4..rounds).contains(&refused), "{refused} of {rounds} were refused");
}

fn spoil(asked: &mut Asked, rng: &mut ChaCha8Rng) {
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0, 100.0, -100.0];
    match rng.random_range(0..5) {
        0 if !asked.point.is_empty() => {
            let at = rng.random_range(0..asked.point.len());
            asked.point[at] = strange[rng.random_range(0..strange.len())];
        }
        1 if !asked.items.is_empty() => {
            let at = rng.random_range(0..asked.items.len());
            asked.items[at] = if rng.random_bool(0.5) { rng.random() } else { rng.random_range(0..4) };
        }
        2 => asked.point.resize(rng.random_range(0..70), 0.5),
        3 => asked.items.resize(rng.random_range(0..300), 0),
        _ => asked.shopper = if rng.random_bool(0.5) { None } else { Some(rng.random()) },
    }
}

#[test]
fn weights_travel_in_bytes_and_whatever_else_comes_is_refused_with_a_reason() {
    let world = World::new(6, (10, 3), 1.0);
    let (weights, vocabulary) = (world.model.weights(), &world.dataset.vocabulary);
    let bytes = serve::write(weights, vocabulary, 7);
    let length = bytes.len() as u64;
    let sealed = |bytes: &[u8]| [bytes, blake3::hash(bytes).as_bytes()].concat();
    let body = &bytes[..bytes.len() - 32];
    let mut newer = bytes.clone();
    newer[8] = 2;
    let mut flipped = bytes.clone();
    flipped[1_000] ^= 1;
    let mut crowded = body.to_vec();
    crowded[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut placeless = body.to_vec();
    placeless[28] = 0;
    let nan = Weights::from_bytes(&with_nan(weights)).expect("tensors");
    let other = Model::new(Kind::Prm, vocabulary, 1);
    for (what, bytes, wanted) in [
        ("nothing", Vec::new(), Some(WeightsError::Foreign)),
        ("JSON", b"{\"weights\": []}".to_vec(), Some(WeightsError::Foreign)),
        ("tensors alone", weights.to_bytes(), Some(WeightsError::Foreign)),
        ("the name alone", bytes[..8].to_vec(), Some(WeightsError::Length { got: 8, wanted: 72 })),
        ("half", bytes[..bytes.len() / 2].to_vec(), Some(WeightsError::Length { got: length / 2, wanted: length })),
        ("more", [&bytes[..], b"x"].concat(), Some(WeightsError::Length { got: length + 1, wanted: length })),
        ("a newer form", newer, Some(WeightsError::Form { got: 2, reads: 1 })),
        ("a flipped bit", flipped, Some(WeightsError::Damaged)),
        ("too many values", sealed(&crowded), Some(WeightsError::Vocabulary("it has more values than can be counted"))),
        ("no places", sealed(&placeless), Some(WeightsError::Vocabulary("its pages have no places, or too many"))),
        ("NaN", serve::write(&nan, vocabulary, 8), Some(WeightsError::Number { name: "ocpm.mlp2.1.bias".to_owned() })),
        ("another model", serve::write(other.weights(), vocabulary, 8), None),
        ("another vocabulary", serve::write(weights, &Vocabulary::new(vocabulary.values(), 99).of_places(3), 8), None),
    ] {
        let error = serve::read(&bytes).err().expect(what);
        match wanted {
            Some(wanted) => assert_eq!(error, wanted, "{what}"),
            None => assert!(matches!(error, WeightsError::Shape { .. }), "{what}: {error}"),
        }
    }
    let again = serve::read(&bytes).expect("weights");
    assert_eq!((again.version(), again.vocabulary()), (7, vocabulary));
    let model = Model::from_bytes(world.model.kind(), vocabulary, &weights.to_bytes()).expect("a model");
    check_kernel(&World { model, ..world }, &again, &mut Scratch::default());
}

fn with_nan(weights: &Weights) -> Vec<u8> {
    let mut bytes = weights.to_bytes();
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let names = String::from_utf8(bytes[8..8 + header].to_vec()).expect("a header");
    let entry = names.split("\"ocpm.mlp2.1.bias\"").nth(1).expect("the tensor is there");
    let from = entry.split("\"data_offsets\":[").nth(1).and_then(|rest| rest.split(',').next()).expect("it has an offset");
    let at = 8 + header + from.parse::<usize>().expect("an offset is a number");
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes
}

#[test]
fn bytes_that_chance_has_spoilt_are_refused() {
    let world = World::new(7, (5, 5), 1.0);
    let bytes = serve::write(world.model.weights(), &world.dataset.vocabulary, 7);
    let mut rng = rng(&[7, 9]);
    for round in 0..300 {
        let mut spoilt = bytes.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..spoilt.len());
            match rng.random_range(0..3) {
                0 => spoilt.truncate(at.max(1)),
                1 => spoilt[at] ^= 1 << rng.random_range(0..8),
                _ => spoilt.insert(at, rng.random()),
            }
        }
        // Half of them are sealed again, as if whoever spoilt them had written them.
        let sealed = spoilt.len() > 72 && rng.random_bool(0.5) && spoilt != bytes;
        if sealed {
            spoilt.truncate(spoilt.len() - 32);
            let length = (spoilt.len() + 32) as u64;
            spoilt[12..20].copy_from_slice(&length.to_le_bytes());
            spoilt.extend(*blake3::hash(&spoilt).as_bytes());
        }
        // What was sealed may be good weights with other numbers; it is never a panic.
        assert!(serve::read(&spoilt).is_err() || sealed || spoilt == bytes, "round {round} of seed 7");
    }
}
