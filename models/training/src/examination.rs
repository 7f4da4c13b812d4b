//! How the decoder is examined while it learns: pages for held-out households, keyword lists with terms it never saw.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::AtomicBool,
};

use endcap_engine::{Segments, ops::select_rows};
use endcap_market::ThemeSample;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Result,
    decoder::{CANDIDATES, KEYWORDS, Lessons},
    params::Weights,
    step::{Scores, heed, spread},
    tasks::{Micro, Sequence},
};

/// Held-out households of an examination, and how many themes each page gets.
const HOUSEHOLDS: u64 = 8;
const THEMES: usize = 2;
/// Longest answer, in tokens.
const ANSWER_MAX: usize = 80;
const LISTS: u64 = 40;
/// Picks that are compared.
const TOP: usize = 5;
/// 2026-06-01, the time at which held-out households shop.
pub(crate) const SHOPS_AT_MS: i64 = 1_780_272_000_000;

/// What is counted over held-out pages.
#[derive(Default)]
struct PageCounts {
    themes: f64,
    anchors: f64,
    concepts: f64,
    all_in_teacher: f64,
    known: f64,
    diets_kept: f64,
    complete: f64,
}

impl Lessons<'_> {
    /// Free-running pages for held-out households against the merchandiser's.
    pub(crate) fn theme_scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
        let samples: Vec<ThemeSample> = (0..HOUSEHOLDS)
            .map(|n| {
                let mut rng = ChaCha8Rng::seed_from_u64(n);
                let household = self.source.market.held_out_household(n);
                self.source.samples.theme_of(&household, 1 + n as usize, SHOPS_AT_MS, &mut rng)
            })
            .collect();
        let sequences: Vec<Sequence> = samples.iter().map(|sample| self.encode.themes(sample)).collect::<Result<_>>()?;
        let answers = self.write(weights, sequences.iter().map(|sequence| sequence.prompt.clone()).collect(), stop)?;
        let mut counts = PageCounts::default();
        for (sample, answer) in samples.iter().zip(&answers) {
            self.count_page(&mut counts, sample, answer);
        }
        let themes = counts.themes.max(1.0);
        Ok(vec![
            ("anchor in teacher's page".into(), counts.anchors / themes),
            ("all concepts in teacher's page".into(), counts.all_in_teacher / themes),
            ("concepts that exist".into(), counts.known / counts.concepts.max(1.0)),
            ("concepts within the diets".into(), counts.diets_kept / counts.known.max(1.0)),
            ("pages complete".into(), counts.complete / HOUSEHOLDS as f64),
            ("anchor told after the teacher's".into(), self.next_anchors(weights, &sequences)?),
        ])
    }

    /// Share of the teacher's anchors, of all eight themes, that the model would have told in the title as well, after what the teacher wrote
    /// before it.
    fn next_anchors(&self, weights: &Weights, sequences: &[Sequence]) -> Result<f64> {
        let mut micro = Micro::default();
        let (mut rows, mut targets, mut anchors) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            let before = micro.ids.len() + sequence.prompt.len() - 1;
            micro.push(sequence, 1.0);
            for anchor in self.encode.told_anchors(sequence) {
                anchors.push(anchor.len());
                rows.extend(anchor.clone().map(|place| (before + place) as u32));
                targets.extend(anchor.map(|place| sequence.answer[place].0));
            }
        }
        let hidden = self.shape.hidden(weights, self.lora, &micro.ids, &micro.segments())?.detach();
        let logits = self.shape.logits(weights, &select_rows(&hidden, &rows)?)?.to_vec2::<f32>()?;
        let mut right = logits.iter().zip(&targets).map(|(row, target)| best(row) == *target);
        let whole = anchors.iter().filter(|tokens| right.by_ref().take(**tokens).filter(|right| !right).count() == 0).count();
        Ok(whole as f64 / anchors.len().max(1) as f64)
    }

    /// Greedy answers, several at a time, without a cache: slow and simple.
    fn write(&self, weights: &Weights, prompts: Vec<Vec<u32>>, stop: &AtomicBool) -> Result<Vec<Vec<u32>>> {
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let done = |answer: &[u32]| {
            let ends = answer.iter().filter(|id| **id == self.encode.next_title || **id == self.encode.close).count();
            ends >= THEMES || answer.last() == Some(&self.encode.close) || answer.len() >= ANSWER_MAX
        };
        loop {
            heed(stop)?;
            let open: Vec<usize> = (0..prompts.len()).filter(|i| !done(&answers[*i])).collect();
            if open.is_empty() {
                return Ok(answers);
            }
            let (mut ids, mut lengths, mut last) = (Vec::new(), Vec::new(), Vec::new());
            for i in &open {
                ids.extend(prompts[*i].iter().chain(&answers[*i]));
                lengths.push(prompts[*i].len() + answers[*i].len());
                last.push(ids.len() as u32 - 1);
            }
            let hidden = self.shape.hidden(weights, self.lora, &ids, &Segments::of_lengths(lengths))?.detach();
            let logits = self.shape.logits(weights, &select_rows(&hidden, &last)?)?.to_vec2::<f32>()?;
            for (i, row) in open.into_iter().zip(logits) {
                answers[i].push(best(&row));
            }
        }
    }

    fn count_page(&self, counts: &mut PageCounts, sample: &ThemeSample, answer: &[u32]) {
        let anchors: HashSet<&str> =
            sample.page.themes.iter().filter_map(|theme| theme.concepts.first()).map(String::as_str).collect();
        let all: HashSet<&str> = sample.page.themes.iter().flat_map(|theme| &theme.concepts).map(String::as_str).collect();
        let mut seen = HashSet::new();
        let mut whole = 0;
        for concepts in self.encode.concepts_of(answer) {
            counts.themes += 1.0;
            let anchor = concepts[0].as_str();
            counts.anchors += f64::from(anchors.contains(anchor) && seen.insert(anchor.to_owned()));
            counts.all_in_teacher += f64::from(concepts.iter().all(|concept| all.contains(concept.as_str())));
            whole += usize::from(concepts.len() == 3);
            for concept in &concepts {
                counts.concepts += 1.0;
                if let Some(category) = self.source.market.category(concept) {
                    counts.known += 1.0;
                    counts.diets_kept += f64::from(!category.violates.intersects(sample.context.brief.diets));
                }
            }
        }
        counts.complete += f64::from(whole == THEMES);
    }

    /// The candidate head's choice and the next keyword after the teacher's, over lists that hold unseen terms too.
    pub(crate) fn keyword_scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
        let lists = spread(LISTS as usize, self.threads, |n| {
            heed(stop)?;
            self.examine_list(weights, n as u64)
        });
        let mut sum = ListCounts::default();
        for list in lists {
            sum.add(&list?);
        }
        let (lists, choices) = (sum.lists.max(1.0), sum.choices.max(1.0));
        Ok(vec![
            (format!("head top-{TOP} overlap"), sum.overlap / lists),
            ("head right on unseen terms".into(), sum.unseen_right / sum.unseen.max(1.0)),
            ("next keyword, head's bias".into(), sum.biased / choices),
            ("next keyword, no bias".into(), sum.plain / choices),
        ])
    }

    fn examine_list(&self, weights: &Weights, n: u64) -> Result<ListCounts> {
        let mut counts = ListCounts::default();
        let mut rng = ChaCha8Rng::seed_from_u64(0x6b77_0000 + n);
        let (sequence, groups, picks) = self.keyword_task(&mut rng, CANDIDATES, true)?;
        if picks.is_empty() {
            return Ok(counts);
        }
        let terms: Vec<usize> = groups.into_iter().flat_map(|group| group.1).collect();
        let mut micro = Micro::default();
        micro.push(&sequence, 1.0);
        let hidden = self.shape.hidden(weights, self.lora, &micro.ids, &micro.segments())?.detach();
        let read = select_rows(&hidden, &micro.candidate_rows)?;
        let scores: Vec<f32> = self.shape.candidate_scores(weights, &read)?.flatten_all()?.to_vec1()?;

        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let top = picks.len().min(TOP);
        counts.lists = 1.0;
        counts.overlap = order[..top].iter().filter(|i| picks[..top].contains(i)).count() as f64 / top as f64;
        for i in (0..terms.len()).filter(|i| self.source.held_out[terms[*i]]) {
            counts.unseen += 1.0;
            counts.unseen_right += f64::from((scores[i] > 0.0) == picks.contains(&i));
        }
        // The row that predicts the first token of each keyword, at last that of the end.
        let mut row = sequence.prompt.len() as u32 - 1;
        for (place, expected) in picks.iter().map(Some).chain([None]).enumerate() {
            let logits: Vec<f32> = self.shape.logits(weights, &select_rows(&hidden, &[row])?)?.flatten_all()?.to_vec1()?;
            let open = self.open_tokens(&terms, &scores, &picks[..place]);
            let right = expected.map_or(self.encode.end, |pick| self.encode.terms[terms[*pick]][0]);
            counts.plain += f64::from(choose(&logits, &open, 0.0) == Some(right));
            counts.biased += f64::from(choose(&logits, &open, 1.0) == Some(right));
            counts.choices += 1.0;
            row += expected.map_or(0, |pick| self.encode.terms[terms[*pick]].len() as u32 + 1);
        }
        Ok(counts)
    }

    /// First tokens of the candidates that are left (and the end, where the list may end), each with its best score.
    fn open_tokens(&self, terms: &[usize], scores: &[f32], chosen: &[usize]) -> BTreeMap<u32, f32> {
        let mut open = BTreeMap::new();
        for i in (0..terms.len()).filter(|i| !chosen.contains(i)) {
            let best = open.entry(self.encode.terms[terms[i]][0]).or_insert(f32::NEG_INFINITY);
            *best = scores[i].max(*best);
        }
        if chosen.len() >= KEYWORDS.0 {
            open.insert(self.encode.end, 0.0);
        }
        open
    }
}

/// What is counted over keyword lists.
#[derive(Default)]
struct ListCounts {
    lists: f64,
    overlap: f64,
    unseen: f64,
    unseen_right: f64,
    choices: f64,
    plain: f64,
    biased: f64,
}

impl ListCounts {
    fn add(&mut self, more: &Self) {
        self.lists += more.lists;
        self.overlap += more.overlap;
        self.unseen += more.unseen;
        self.unseen_right += more.unseen_right;
        self.choices += more.choices;
        self.plain += more.plain;
        self.biased += more.biased;
    }
}

/// The open token with the best logit + `weight` × score.
fn choose(logits: &[f32], open: &BTreeMap<u32, f32>, weight: f32) -> Option<u32> {
    let value = |(id, score): (&u32, &f32)| logits[*id as usize] + weight * score;
    open.iter().max_by(|a, b| value(*a).total_cmp(&value(*b))).map(|(id, _)| *id)
}

/// Index of the largest value, the first of equals.
fn best(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}
