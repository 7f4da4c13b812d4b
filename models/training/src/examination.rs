//! How the decoder is examined while it learns: pages for held-out households, keyword lists with terms it never saw.

use std::collections::{HashMap, HashSet};

use endcap_engine::{Segments, ops};
use endcap_schemas::ContextChanged;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Result,
    decoder::{CANDIDATES, Lessons},
    params::Weights,
    step::Scores,
    tasks::Micro,
};

/// Held-out households of an examination, and how many themes each page gets.
const HOUSEHOLDS: u64 = 16;
const THEMES: usize = 3;
/// Themes of the merchandiser's page that it is compared with.
const TEACHER_THEMES: usize = 8;
/// Longest answer, in tokens.
const ANSWER_MAX: usize = 130;
const LISTS: u64 = 40;
/// Picks that are compared.
const TOP: usize = 5;
/// 2026-06-01, the time at which held-out households shop.
const SHOPS_AT_MS: i64 = 1_780_272_000_000;

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
    pub(crate) fn theme_scores(&self, weights: &Weights) -> Result<Scores> {
        let contexts: Vec<ContextChanged> = (0..HOUSEHOLDS)
            .map(|n| {
                let mut rng = ChaCha8Rng::seed_from_u64(n);
                let household = self.source.market.held_out_household(n);
                self.source.samples.context(&household, 4 + n as usize % 8, SHOPS_AT_MS, &mut rng)
            })
            .collect();
        let mut prompts = Vec::new();
        for context in &contexts {
            let page = self.source.merchandiser.page(context, TEACHER_THEMES);
            let sample = endcap_market::ThemeSample { context: context.clone(), page };
            prompts.push((self.encode.themes(&sample)?.prompt, sample));
        }
        let answers = self.write(weights, prompts.iter().map(|(prompt, _)| prompt.clone()).collect())?;
        let mut counts = PageCounts::default();
        for ((_, sample), answer) in prompts.iter().zip(&answers) {
            self.count_page(&mut counts, sample, answer);
        }
        let themes = counts.themes.max(1.0);
        Ok(vec![
            ("anchor in teacher's page".into(), counts.anchors / themes),
            ("all concepts in teacher's page".into(), counts.all_in_teacher / themes),
            ("concepts that exist".into(), counts.known / counts.concepts.max(1.0)),
            ("concepts within the diets".into(), counts.diets_kept / counts.known.max(1.0)),
            ("pages complete".into(), counts.complete / HOUSEHOLDS as f64),
        ])
    }

    /// Greedy answers, several at a time, without a cache: slow and simple.
    fn write(&self, weights: &Weights, prompts: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let done = |answer: &[u32]| {
            let ends = answer.iter().filter(|id| **id == self.encode.next_title || **id == self.encode.close).count();
            ends >= THEMES || answer.last() == Some(&self.encode.close) || answer.len() >= ANSWER_MAX
        };
        loop {
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
            let logits = self.shape.logits(weights, &ops::select_rows(&hidden, &last)?)?.to_vec2::<f32>()?;
            for (i, row) in open.into_iter().zip(logits) {
                answers[i].push(best(&row, |_| true));
            }
        }
    }

    fn count_page(&self, counts: &mut PageCounts, sample: &endcap_market::ThemeSample, answer: &[u32]) {
        let anchors: HashSet<&str> = sample.page.themes.iter().filter_map(|theme| theme.concepts.first()).map(String::as_str).collect();
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
    pub(crate) fn keyword_scores(&self, weights: &Weights) -> Result<Scores> {
        let (mut overlap, mut lists) = (0f64, 0f64);
        let (mut plain, mut biased, mut choices) = (0f64, 0f64, 0f64);
        let (mut unseen, mut unseen_right) = (0f64, 0f64);
        for n in 0..LISTS {
            let mut rng = ChaCha8Rng::seed_from_u64(0x6b77_0000 + n);
            let (sequence, groups, picks) = self.keyword_task(&mut rng, CANDIDATES, true)?;
            if picks.is_empty() {
                continue;
            }
            let terms: Vec<usize> = groups.into_iter().flat_map(|group| group.1).collect();
            let mut micro = Micro::default();
            micro.push(&sequence, 1.0);
            let hidden = self.shape.hidden(weights, self.lora, &micro.ids, &micro.segments())?.detach();
            let scores: Vec<f32> =
                self.shape.candidate_scores(weights, &ops::select_rows(&hidden, &micro.candidate_rows)?)?.flatten_all()?.to_vec1()?;
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let top = picks.len().min(TOP);
            overlap += order[..top].iter().filter(|i| picks[..top].contains(i)).count() as f64 / top as f64;
            lists += 1.0;
            for i in (0..terms.len()).filter(|i| self.source.held_out[terms[*i]]) {
                unseen += 1.0;
                unseen_right += f64::from((scores[i] > 0.0) == picks.contains(&i));
            }
            // Rows that predict the first token of each keyword, and the end.
            let mut row = sequence.prompt.len() as u32 - 1;
            for (n, expected) in picks.iter().map(Some).chain([None]).enumerate() {
                let logits: Vec<f32> =
                    self.shape.logits(weights, &ops::select_rows(&hidden, &[row])?)?.flatten_all()?.to_vec1()?;
                let mut open: HashMap<u32, f32> = HashMap::new();
                for (i, term) in terms.iter().enumerate().filter(|(i, _)| !picks[..n].contains(i)) {
                    let best = open.entry(self.encode.terms[*term][0]).or_insert(f32::NEG_INFINITY);
                    *best = best.max(scores[i]);
                }
                if n >= crate::decoder::KEYWORDS.0 {
                    open.insert(self.encode.end, 0.0);
                }
                let right = expected.map_or(self.encode.end, |pick| self.encode.terms[terms[*pick]][0]);
                let choose = |weight: f32| {
                    let score = |id: &u32| logits[*id as usize] + weight * open[id];
                    open.keys().copied().max_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)))
                };
                plain += f64::from(choose(0.0) == Some(right));
                biased += f64::from(choose(1.0) == Some(right));
                choices += 1.0;
                if let Some(pick) = expected {
                    row += self.encode.terms[terms[*pick]].len() as u32 + 1;
                }
            }
        }
        let (lists, choices) = (lists.max(1.0), choices.max(1.0));
        Ok(vec![
            (format!("head top-{TOP} overlap"), overlap / lists),
            ("head right on unseen terms".into(), unseen_right / unseen.max(1.0)),
            ("next keyword, head's bias".into(), biased / choices),
            ("next keyword, no bias".into(), plain / choices),
        ])
    }
}

fn best(row: &[f32], allowed: impl Fn(usize) -> bool) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (i, x) in row.iter().enumerate().filter(|(i, _)| allowed(*i)) {
        if *x > best.0 {
            best = (*x, i);
        }
    }
    best.1 as u32
}
