use std::collections::BTreeMap;

use super::*;
use crate::{KeywordLimits, TrieConstraint};

const END: [u32; 1] = [99];

/// A model whose logits depend on every token before, computed without a network.
#[derive(Default)]
struct Toy {
    caches: BTreeMap<usize, Vec<u32>>,
    opened: usize,
    kept: Vec<u64>,
    steps: Vec<usize>,
    fail_at: Option<usize>,
}

fn mixed(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0x1234_5678, |x: u64, part| {
        let x = (x ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^ (x >> 29)
    })
}

fn unit(x: u64) -> f32 {
    (mixed([x]) >> 40) as f32 / (1 << 24) as f32
}

impl Machine for Toy {
    fn positions(&self) -> usize {
        1_000
    }

    fn open(&mut self, _: usize) -> usize {
        self.opened += 1;
        self.caches.insert(self.opened, Vec::new());
        self.opened
    }

    fn close(&mut self, slot: usize) {
        assert!(self.caches.remove(&slot).is_some(), "slot {slot} was open");
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<(), EngineError> {
        if self.fail_at == Some(self.steps.len()) {
            return Err(EngineError::model("the device is gone"));
        }
        self.steps.push(chunks.iter().map(|chunk| chunk.tokens.len()).sum());
        self.kept.clear();
        for chunk in chunks {
            assert!(!chunk.tokens.is_empty());
            let cache = self.caches.get_mut(&chunk.slot).expect("an open slot");
            let before = cache.len();
            cache.extend(&chunk.tokens);
            let states = chunk.wanted.iter().map(|row| mixed(cache[..=before + row].iter().map(|&token| u64::from(token))));
            self.kept.extend(states);
        }
        Ok(())
    }

    fn logits(&self, rows: &[usize]) -> Result<Vec<Vec<f32>>, EngineError> {
        let vocabulary: Vec<u32> = (0..100).collect();
        rows.iter().map(|&row| self.logits_of(row, &vocabulary)).collect()
    }

    fn logits_of(&self, row: usize, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        Ok(tokens.iter().map(|&token| unit(self.kept[row] ^ u64::from(token))).collect())
    }

    fn probe(&self, rows: &[usize]) -> Result<Vec<f32>, EngineError> {
        Ok(rows.iter().map(|&row| unit(self.kept[row]) - 0.5).collect())
    }
}

/// Says any `length` tokens of an even number; `5` is forced behind every one.
struct Pairs {
    length: usize,
    forced: bool,
}

impl Constraint for Pairs {
    fn forced(&mut self) -> Result<Vec<u32>, ConstraintError> {
        Ok(if std::mem::take(&mut self.forced) { vec![5, 5] } else { Vec::new() })
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        Ok(Allowed::Mask(&[0x5555_5555, 0x5555_5555, 0x5555_5555]))
    }

    fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert!(token.is_multiple_of(2));
        self.length -= 1;
        self.forced = true;
        Ok(())
    }

    fn finished(&self) -> bool {
        self.length == 0
    }
}

/// Jobs of two kinds in one run.
impl Constraint for Box<dyn Constraint> {
    fn forced(&mut self) -> Result<Vec<u32>, ConstraintError> {
        (**self).forced()
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        (**self).allowed()
    }

    fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        (**self).advance(token)
    }

    fn finished(&self) -> bool {
        (**self).finished()
    }

    fn observe(&mut self, scores: &[f32]) {
        (**self).observe(scores);
    }
}

fn keywords(n: u32) -> Job<Box<dyn Constraint>> {
    let prompt: Vec<u32> = (0..20 + n * 7).map(|i| (i * 31 + n) % 90).collect();
    let candidates: Vec<Vec<u32>> = (0..6 + n).map(|i| vec![i % 3, 10 + i, 20 + i % 2, 90]).collect();
    let slices: Vec<&[u32]> = candidates.iter().map(Vec::as_slice).collect();
    let trie = TrieConstraint::new(&slices, &END, KeywordLimits { min: 2, max: 5 }, 1.0).unwrap();
    let probes = (0..candidates.len()).map(|i| 2 * i + 3).collect();
    Job { prompt, probes, constraint: Box::new(trie), answer_tokens_max: 40 }
}

fn pairs(n: u32, answer_tokens_max: usize) -> Job<Box<dyn Constraint>> {
    let constraint = Pairs { length: 3 + n as usize % 4, forced: n.is_multiple_of(2) };
    Job { prompt: vec![n, 1, 2], probes: Vec::new(), constraint: Box::new(constraint), answer_tokens_max }
}

fn jobs() -> Vec<Job<Box<dyn Constraint>>> {
    (0..12).map(|n| if n % 3 == 0 { pairs(n, 60) } else { keywords(n) }).collect()
}

type Plain = Result<(Vec<u32>, TokenCounts), GenerateError>;

fn run(jobs: Vec<Job<Box<dyn Constraint>>>, limits: GenerateLimits) -> (Vec<Plain>, Toy) {
    let mut toy = Toy::default();
    let outcomes = generate(&mut toy, jobs, limits).unwrap();
    assert!(toy.caches.is_empty(), "every cache is given back");
    (outcomes.into_iter().map(|outcome| outcome.map(|done| (done.tokens, done.counts))).collect(), toy)
}

#[test]
fn an_answer_is_the_same_alone_and_in_any_company() {
    let alone: Vec<Plain> = jobs().into_iter().flat_map(|job| run(vec![job], GenerateLimits::default()).0).collect();
    for (step_tokens_max, cache_tokens_max, sequences_max, masks_beside) in [
        (512, 65_536, 64, false),
        (512, 65_536, 64, true),
        (7, 65_536, 64, false),
        (1, 65_536, 3, false),
        (64, 200, 64, true),
        (33, 500, 1, false),
    ] {
        let limits = GenerateLimits { step_tokens_max, cache_tokens_max, sequences_max, masks_beside };
        let (together, toy) = run(jobs(), limits);
        assert_eq!(together, alone, "{limits:?}");
        assert!(toy.steps.iter().all(|&tokens| tokens <= step_tokens_max), "{limits:?}: {:?}", toy.steps);
    }
}

#[test]
fn prompts_forced_and_chosen_tokens_are_counted() {
    let lengths: Vec<u64> = jobs().iter().map(|job| job.prompt.len() as u64).collect();
    let (answers, _) = run(jobs(), GenerateLimits::default());
    for (answer, prompt) in answers.into_iter().zip(lengths) {
        let (tokens, counts) = answer.unwrap();
        assert_eq!(counts.prefilled, prompt);
        assert_eq!(counts.generated + counts.forced, tokens.len() as u64);
        assert!(counts.generated > 0 && counts.forced > 0, "{counts:?}");
    }
}

#[test]
fn company_shares_forward_passes() {
    let (_, alone) = run(vec![keywords(5)], GenerateLimits::default());
    let (_, together) = run((0..8).map(|_| keywords(5)).collect(), GenerateLimits::default());
    assert_eq!(alone.steps.len(), together.steps.len());
}

#[test]
fn what_fails_alone_leaves_the_others_their_answers() {
    let (good, _) = run(vec![keywords(1), pairs(3, 60)], GenerateLimits::default());
    let empty = Job { prompt: Vec::new(), ..pairs(0, 60) };
    let long = Job { prompt: vec![1; 990], ..pairs(0, 60) };
    let mixed = vec![empty, keywords(1), pairs(2, 4), long, pairs(3, 60)];
    let (answers, _) = run(mixed, GenerateLimits::default());
    assert_eq!(answers[0], Err(GenerateError::Empty));
    assert_eq!(answers[2], Err(GenerateError::Unfinished(4)));
    assert_eq!(answers[3], Err(GenerateError::TooLong { needed: 1_050, limit: 1_000 }));
    assert_eq!([answers[1].clone(), answers[4].clone()], good[..]);
}

#[test]
fn a_failing_device_ends_the_call_and_gives_its_caches_back() {
    let mut toy = Toy { fail_at: Some(2), ..Toy::default() };
    let failed = generate(&mut toy, jobs(), GenerateLimits::default());
    assert!(matches!(failed, Err(EngineError::Model(_))));
    assert!(toy.caches.is_empty());
}
