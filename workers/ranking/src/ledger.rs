//! What was learnt from already, slate by slate: so that feedback may come in parts, late, again and in any order, and counts once.
//!
//! A slate is known by its id and the time at which it was served. The oldest ones are forgotten first, and whatever was served before the last
//! one that was forgotten is too late from then on: what is not remembered is never learnt twice.
//!
//! In bytes, little endian: form 2 (4), horizon (8), number of slates (4), then each slate: served (8), id (16), three sets of places (4 each); at
//! the end BLAKE3 of all that (32). Form 1 had no hash.

use std::collections::BTreeMap;

use endcap_schemas::{Action, ActionKind, Feedback};

/// Form of a ledger: today's, and the first one, which had no hash at its end.
const FORM: u32 = 2;
const FORM_WITHOUT_HASH: u32 = 1;
const HEAD_BYTES: usize = 16;
const SLATE_BYTES: usize = 36;

/// Reward of a click, and of an addition to the cart; together no more than the latter.
const CLICK: f64 = 0.3;
const CART_ADD: f64 = 1.0;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ledger {
    /// Slates served up to here, ms, are forgotten.
    horizon_ms: i64,
    /// By time and id.
    slates: BTreeMap<(i64, u128), Marks>,
}

/// Places of a slate, one bit each, by what was done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Marks {
    seen: u32,
    clicked: u32,
    carted: u32,
}

/// What is new in feedback.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct News {
    /// Whether nothing was known of the slate.
    pub(crate) is_first: bool,
    /// Places that came into sight, in display order, each with its reward so far.
    pub(crate) seen: Vec<(usize, f64)>,
    /// Places that were known to have been in sight, each with what its reward grows by.
    pub(crate) more: Vec<(usize, f64)>,
}

/// What becomes of feedback.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Taken {
    /// There is something to learn.
    News(News),
    /// All of it was known.
    Known,
    /// Its slate is forgotten, or too old.
    Late,
}

impl Marks {
    fn with(mut self, action: Action) -> Self {
        let bit = 1_u32.checked_shl(action.offer.unsigned_abs()).unwrap_or(0);
        self.seen |= bit;
        match action.kind {
            ActionKind::Impression => {}
            ActionKind::Click => self.clicked |= bit,
            ActionKind::CartAdd => self.carted |= bit,
        }
        self
    }

    fn reward(self, place: usize) -> f64 {
        let has = |set: u32| f64::from(set >> place & 1);
        (CLICK * has(self.clicked) + CART_ADD * has(self.carted)).min(CART_ADD)
    }

    fn has_seen(self, place: usize) -> bool {
        self.seen >> place & 1 == 1
    }
}

impl Ledger {
    /// Takes `feedback` in, which is well formed; remembers at most `slates_max` slates, none older than `age_max_ms` beside the newest.
    pub(crate) fn take(&mut self, feedback: &Feedback, slates_max: usize, age_max_ms: i64) -> Taken {
        if feedback.served_ms <= self.horizon_ms {
            return Taken::Late;
        }
        let key = (feedback.served_ms, id_of(&feedback.slate));
        let known = self.slates.get(&key).copied();
        let before = known.unwrap_or_default();
        let after = feedback.actions.iter().fold(before, |marks, action| marks.with(*action));
        if after == before {
            return Taken::Known;
        }
        self.slates.insert(key, after);
        self.forget(slates_max, age_max_ms);
        let mut news = News { is_first: known.is_none(), ..News::default() };
        for place in (0..u32::BITS as usize).filter(|place| after.has_seen(*place)) {
            let (had, has) = (before.reward(place), after.reward(place));
            if !before.has_seen(place) {
                news.seen.push((place, has));
            } else if has > had {
                news.more.push((place, has - had));
            }
        }
        if news.seen.is_empty() && news.more.is_empty() { Taken::Known } else { Taken::News(news) }
    }

    /// Takes in that another policy is put back by `wish`; says whether that is news. From now on nothing that comes of what was in sight before is:
    /// whoever is put back has not learnt that it was, and a reward without its impression would be learnt as more than it is.
    pub(crate) fn put_back(&mut self, wish: &Feedback) -> bool {
        let key = (wish.served_ms, id_of(&wish.slate));
        if self.slates.contains_key(&key) {
            return false;
        }
        for marks in self.slates.values_mut() {
            marks.clicked |= marks.seen;
            marks.carted |= marks.seen;
        }
        self.slates.insert(key, Marks::default());
        true
    }

    fn forget(&mut self, slates_max: usize, age_max_ms: i64) {
        let newest_ms = self.slates.last_key_value().map_or(0, |((served_ms, _), _)| *served_ms);
        self.horizon_ms = self.horizon_ms.max(newest_ms.saturating_sub(age_max_ms));
        while self.slates.len() > slates_max {
            let Some(((served_ms, _), _)) = self.slates.pop_first() else { break };
            self.horizon_ms = self.horizon_ms.max(served_ms);
        }
        while self.slates.first_key_value().is_some_and(|((served_ms, _), _)| *served_ms <= self.horizon_ms) {
            self.slates.pop_first();
        }
    }

    /// When the newest slate that is remembered was served, ms since 1970; none where none is.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.slates.last_key_value().map(|((served_ms, _), _)| *served_ms)
    }

    /// The ledger in bytes.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.slates.len() * SLATE_BYTES + blake3::OUT_LEN);
        bytes.extend(FORM.to_le_bytes());
        bytes.extend(self.horizon_ms.to_le_bytes());
        bytes.extend(u32::try_from(self.slates.len()).unwrap_or(u32::MAX).to_le_bytes());
        for ((served_ms, id), Marks { seen, clicked, carted }) in &self.slates {
            bytes.extend(served_ms.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            [seen, clicked, carted].into_iter().for_each(|set| bytes.extend(set.to_le_bytes()));
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// The ledger that [`Ledger::write`] wrote; `None` for anything else.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let form = u32::from_le_bytes(*bytes.first_chunk()?);
        let body = match form {
            FORM_WITHOUT_HASH => bytes,
            FORM => {
                let (body, hash) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>()?;
                (blake3::hash(body) == *hash).then_some(body)?
            }
            _ => return None,
        };
        let (head, slates) = body.split_first_chunk::<HEAD_BYTES>()?;
        let number = |range: std::ops::Range<usize>| head[range].try_into().ok().map(u32::from_le_bytes);
        let horizon_ms = i64::from_le_bytes(head[4..12].try_into().ok()?);
        if slates.len() != number(12..16)? as usize * SLATE_BYTES {
            return None;
        }
        let slate = |bytes: &[u8]| {
            let set = |from: usize| Some(u32::from_le_bytes(bytes[from..from + 4].try_into().ok()?));
            let key = (i64::from_le_bytes(bytes[..8].try_into().ok()?), u128::from_le_bytes(bytes[8..24].try_into().ok()?));
            Some((key, Marks { seen: set(24)?, clicked: set(28)?, carted: set(32)? }))
        };
        let slates = slates.chunks_exact(SLATE_BYTES).map(slate).collect::<Option<_>>()?;
        Some(Self { horizon_ms, slates })
    }
}

/// A slate's id as a number; one that is no number has that of its hash.
fn id_of(slate: &str) -> u128 {
    u128::from_str_radix(slate, 16).unwrap_or_else(|_| {
        let hash = blake3::hash(slate.as_bytes());
        u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes"))
    })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, seq::SliceRandom};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn feedback(slate: u32, served_ms: i64, actions: &[(i32, ActionKind)]) -> Feedback {
        let actions = actions.iter().map(|(offer, kind)| Action { offer: *offer, kind: *kind }).collect();
        Feedback { actions, put_back: None, ..Feedback::put_back(1, format!("{slate:032x}"), served_ms) }
    }

    fn take(ledger: &mut Ledger, feedback: &Feedback) -> Taken {
        ledger.take(feedback, 100, DAY_MS)
    }

    #[test]
    fn a_ledger_comes_back_as_it_was_and_one_of_the_first_form_too() {
        let mut ledger = Ledger::default();
        (1..=3).for_each(|slate| drop(take(&mut ledger, &feedback(slate, i64::from(slate), &[(0, ActionKind::Click)]))));
        let bytes = ledger.write();
        assert_eq!(Ledger::read(&bytes).as_ref(), Some(&ledger));
        let first = [&FORM_WITHOUT_HASH.to_le_bytes()[..], &bytes[4..bytes.len() - blake3::OUT_LEN]].concat();
        assert_eq!(Ledger::read(&first), Some(ledger));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Ledger::read(&bad).is_none() && Ledger::read(&bytes[..at]).is_none(), "byte {at}");
        }
    }

    #[test]
    fn each_thing_counts_once_and_rewards_grow_to_one_at_most() {
        use ActionKind::{CartAdd, Click, Impression};
        let mut ledger = Ledger::default();
        let first = feedback(1, 10, &[(2, Impression), (0, Impression), (0, Click), (0, Click)]);
        let news = News { is_first: true, seen: vec![(0, 0.3), (2, 0.0)], more: vec![] };
        assert_eq!(take(&mut ledger, &first), Taken::News(news));
        assert_eq!(take(&mut ledger, &first), Taken::Known);
        let later = feedback(1, 10, &[(2, CartAdd), (0, CartAdd), (5, Click)]);
        let news = News { is_first: false, seen: vec![(5, 0.3)], more: vec![(0, 0.7), (2, 1.0)] };
        assert_eq!(take(&mut ledger, &later), Taken::News(news), "a click without an impression says that there was one");
        assert_eq!(take(&mut ledger, &feedback(1, 10, &[(2, Click)])), Taken::Known, "a click after the cart adds nothing");
        assert_eq!(take(&mut ledger, &feedback(1, 10, &[])), Taken::Known);
    }

    #[test]
    fn whatever_order_and_repetition_the_rewards_end_alike() {
        const SEED: u64 = 5;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let parts: Vec<Feedback> = (0..60)
            .map(|_| {
                let action = (rng.random_range(0..8), ActionKind::ALL[rng.random_range(0..3)]);
                feedback(rng.random_range(0..4), 50, &[action])
            })
            .collect();
        let mut ends = Vec::new();
        for order in 0..20 {
            let (mut ledger, mut sums) = (Ledger::default(), BTreeMap::new());
            let mut all: Vec<&Feedback> = parts.iter().chain(&parts).collect();
            all.shuffle(&mut rng);
            for part in all {
                let Taken::News(news) = take(&mut ledger, part) else { continue };
                for (place, reward) in news.seen.iter().chain(&news.more) {
                    *sums.entry((part.slate.clone(), *place)).or_insert(0.0) += reward;
                }
            }
            let sums: Vec<_> = sums.into_iter().map(|(key, sum): (_, f64)| (key, (sum * 1e6).round())).collect();
            ends.push((sums, ledger));
            assert_eq!(ends[0], ends[order], "seed {SEED}, order {order}");
        }
    }

    #[test]
    fn what_is_forgotten_is_too_late_and_never_learnt_twice() {
        let mut ledger = Ledger::default();
        let seen = |slate, served_ms| feedback(slate, served_ms, &[(0, ActionKind::Impression)]);
        for slate in 0..3 {
            assert!(matches!(ledger.take(&seen(slate, 100 + i64::from(slate)), 2, DAY_MS), Taken::News(_)));
        }
        assert_eq!((ledger.slates.len(), ledger.take(&seen(0, 100), 2, DAY_MS)), (2, Taken::Late));
        assert_eq!(ledger.take(&seen(9, 99), 2, DAY_MS), Taken::Late, "unknown, but as old as what is forgotten");
        assert!(matches!(ledger.take(&seen(10, 101 + DAY_MS), 2, DAY_MS), Taken::News(_)));
        assert_eq!(ledger.take(&seen(1, 101), 2, DAY_MS), Taken::Late);
    }

    #[test]
    fn a_ledger_comes_back_as_it_went_and_nothing_else_is_one() {
        let mut ledger = Ledger::default();
        for slate in 0..50 {
            take(&mut ledger, &feedback(slate, i64::from(slate), &[(1, ActionKind::Click), (31, ActionKind::CartAdd)]));
        }
        let bytes = ledger.write();
        assert_eq!(Ledger::read(&bytes), Some(ledger));
        for length in 0..bytes.len() {
            assert_eq!(Ledger::read(&bytes[..length]), None, "{length} of {} bytes", bytes.len());
        }
        assert_eq!(Ledger::read(b"ENDCLUCB and then something"), None);
        assert_eq!(Ledger::read(&Ledger::default().write()), Some(Ledger::default()));
    }
}
