use proptest::prelude::*;

use super::super::best;
use super::*;

const SEPARATOR: u32 = 90;
const END: [u32; 2] = [98, 99];

/// What a list looked like once it was written.
#[derive(Debug)]
struct Written {
    picks: Vec<usize>,
    tokens: Vec<u32>,
    choices: usize,
}

/// Writes a list; `logit` gives the model's logit for a token after so many choices.
fn write(mut trie: TrieConstraint, logit: impl Fn(usize, u32) -> f32) -> Written {
    let (mut tokens, mut choices) = (Vec::new(), 0);
    loop {
        tokens.extend(trie.forced().unwrap());
        if trie.finished() {
            return Written { picks: trie.picks().to_vec(), tokens, choices };
        }
        let allowed = trie.allowed().unwrap();
        let Allowed::Few { tokens: few, .. } = &allowed else { panic!("a trie allows a few tokens") };
        assert!(few.len() >= 2, "a choice between {few:?}");
        let logits: Vec<f32> = few.iter().map(|&token| logit(choices, token)).collect();
        let token = best(&allowed, &logits).unwrap();
        trie.advance(token).unwrap();
        tokens.push(token);
        choices += 1;
    }
}

fn trie(candidates: &[Vec<u32>], min: usize, max: usize) -> TrieConstraint {
    let candidates: Vec<&[u32]> = candidates.iter().map(Vec::as_slice).collect();
    TrieConstraint::new(&candidates, &END, KeywordLimits { min, max }, 1.0).unwrap()
}

/// `[[1, 2], [1]]` with the separator behind each.
fn separated(candidates: &[&[u32]]) -> Vec<Vec<u32>> {
    candidates.iter().map(|tokens| [tokens, [SEPARATOR].as_slice()].concat()).collect()
}

#[test]
fn single_children_are_forced_and_a_branch_is_between_children_only() {
    // smoked gouda; smoked salmon; oat milk;
    let mut trie = trie(&separated(&[&[1, 2], &[1, 3], &[4, 5]]), 2, 3);
    assert!(trie.forced().unwrap().is_empty());
    assert!(matches!(trie.allowed().unwrap(), Allowed::Few { tokens: [1, 4], .. }));
    assert_eq!(trie.advance(5), Err(ConstraintError::NotAllowed(5)));
    trie.advance(1).unwrap();
    assert!(matches!(trie.allowed().unwrap(), Allowed::Few { tokens: [2, 3], .. }));
    trie.advance(3).unwrap();
    assert_eq!(trie.forced().unwrap(), [SEPARATOR]);
    assert_eq!(trie.picks(), [1]);
    trie.advance(1).unwrap();
    // Salmon is counted out, so gouda is forced; from here on the end is open.
    assert_eq!(trie.forced().unwrap(), [2, SEPARATOR]);
    assert!(matches!(trie.allowed().unwrap(), Allowed::Few { tokens: [4, 98], .. }));
    trie.advance(98).unwrap();
    assert!(trie.finished());
    assert_eq!(trie.picks(), [1, 0]);
    assert_eq!(trie.advance(4), Err(ConstraintError::NotAllowed(4)));
}

#[test]
fn the_last_keyword_is_taken_as_soon_as_it_is_clear() {
    for (min, max) in [(1, 1), (0, 1)] {
        let mut trie = trie(&separated(&[&[1, 2, 3], &[4, 5, 6]]), min, max);
        trie.advance(4).unwrap();
        assert!(trie.finished(), "{min} to {max}");
        assert_eq!(trie.picks(), [1]);
    }
    let single = trie(&separated(&[&[1, 2, 3]]), 1, 8);
    assert!(single.finished());
    assert_eq!(single.picks(), [0]);
}

#[test]
fn a_candidate_that_begins_with_another_one_can_be_told_from_it() {
    // milk; milk chocolate; with a separator, neither begins the other.
    let trie = trie(&separated(&[&[1], &[1, 2]]), 2, 2);
    let written = write(trie, |_, token| token as f32);
    assert_eq!(written.picks, [0, 1]);
}

#[test]
fn what_cannot_be_chosen_from_is_refused() {
    let limits = KeywordLimits { min: 1, max: 3 };
    for (candidates, limits) in [
        (vec![vec![]], limits),
        (vec![vec![1, 2], vec![1]], limits),
        (vec![vec![98, 99]], limits),
        (vec![vec![98]], limits),
        (vec![vec![1; 257]], limits),
        (vec![vec![1]; 1_025], limits),
        (vec![vec![1]], KeywordLimits { min: 4, max: 3 }),
        (vec![vec![1]], KeywordLimits { min: 0, max: 0 }),
    ] {
        let slices: Vec<&[u32]> = candidates.iter().map(Vec::as_slice).collect();
        let refused = TrieConstraint::new(&slices, &END, limits, 1.0);
        assert!(matches!(refused, Err(ConstraintError::Request(_))), "{candidates:?} {limits:?}");
    }
    let none = TrieConstraint::new(&[], &END, limits, 1.0).unwrap();
    assert!(none.finished(), "a list without candidates is empty");
}

#[test]
fn scores_alone_give_the_best_candidates_in_order_and_stop_at_even_odds() {
    let mut trie = trie(&separated(&[&[1, 2], &[1, 3], &[4, 5], &[4, 6], &[7]]), 1, 5);
    trie.observe(&[0.5, -2.0, f32::NAN, 3.0, 1.0]);
    // The NaN counts as even odds and comes before the end, which is the root's last child.
    assert_eq!(write(trie, |_, _| 0.0).picks, [3, 4, 0, 2]);
}

#[test]
fn logits_and_scores_are_added() {
    let candidates = separated(&[&[1], &[2]]);
    for (score, first) in [(0.5, 1), (1.5, 0)] {
        let mut trie = trie(&candidates, 2, 2);
        trie.observe(&[score, 0.0]);
        assert_eq!(write(trie, |_, token| if token == 2 { 1.0 } else { 0.0 }).picks[0], first, "score {score}");
    }
}

fn pseudo_random(seed: u64, choice: usize, token: u32) -> f32 {
    let mut x = seed ^ (choice as u64) << 32 ^ u64::from(token) << 8;
    for _ in 0..3 {
        x = (x ^ (x >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
}

proptest! {
    #[test]
    fn lists_are_valid_distinct_and_within_their_limits(
        texts in prop::collection::vec(prop::collection::vec(0u32..4, 1..5), 0..40),
        (min, more) in (0usize..6, 0usize..6),
        scores in prop::option::of(prop::collection::vec(-3f32..3.0, 40)),
        seed in any::<u64>(),
    ) {
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let candidates = separated(&texts);
        let distinct = candidates.iter().collect::<std::collections::BTreeSet<_>>().len();
        let max = (min + more).max(1);
        let mut trie = trie(&candidates, min, max);
        if let Some(scores) = &scores {
            trie.observe(&scores[..candidates.len()]);
        }
        let written = write(trie, |choice, token| pseudo_random(seed, choice, token));
        let chosen: Vec<&Vec<u32>> = written.picks.iter().map(|&pick| &candidates[pick]).collect();
        prop_assert!(written.picks.len() <= max.min(distinct));
        prop_assert!(written.picks.len() >= min.min(distinct));
        prop_assert_eq!(chosen.iter().collect::<std::collections::BTreeSet<_>>().len(), chosen.len(), "a repeat");
        let whole: Vec<u32> = chosen.into_iter().flatten().chain(&END).copied().collect();
        prop_assert!(whole.starts_with(&written.tokens), "{:?} is not the beginning of {:?}", written.tokens, whole);
        prop_assert!(written.choices <= written.tokens.len());
    }
}
