//! Generators of candidates beside one evaluator: how often they have the best order, and what they cost.

use std::time::Instant;

use anyhow::{Context, Result};
use endcap_evaluation::quantile;
use endcap_ranker::{
    pier::{Fpsm, Model, Order, PLACES, Reader, beam, best, best_of, hits, of_page, probability, random_choice, value_ratio},
    seed,
};

use super::{
    Stop,
    keep::Outcome,
    plan::{ALL, MOST, PAPER_MOST, Scale},
    world::World,
};

/// How candidates of a slate are generated.
pub(super) enum Generator {
    Chance,
    Beam,
    /// FPSM, and its name.
    Fpsm(&'static str, Fpsm),
    All,
}

impl Generator {
    fn name(&self) -> &'static str {
        match self {
            Self::Chance => "random",
            Self::Beam => "beam",
            Self::Fpsm(name, _) => name,
            Self::All => "full",
        }
    }

    /// How many candidates there may be.
    fn mosts(&self) -> &'static [usize] {
        if matches!(self, Self::All) { &[ALL] } else { &MOST }
    }
}

/// An evaluator, and the data that it judges.
pub(super) struct Bench<'a> {
    world: &'a World,
    model: &'a Model,
    reader: Reader<'a>,
    point: &'a [f32],
    /// What a place has of the clicks that point-wise scores foretell.
    rates: [f64; PLACES],
}

impl<'a> Bench<'a> {
    pub(super) fn new(world: &'a World, model: &'a Model, point: &'a [f32]) -> Result<Self> {
        Ok(Self { world, model, reader: model.reader()?, point, rates: place_rates(world, point) })
    }

    /// What the evaluator says of all orders of a slate.
    pub(super) fn values(&self, page: u32) -> Result<Vec<f64>> {
        let World { dataset, orders, .. } = self.world;
        Ok(self.reader.values(dataset, &dataset.visit(page), of_page(self.point, page), orders)?)
    }

    /// Candidates of a slate.
    fn candidates(&self, generator: &Generator, page: u32, most: usize) -> Vec<usize> {
        let World { dataset, orders, seed: of_run, .. } = self.world;
        match generator {
            Generator::Chance => random_choice(orders.len(), most, seed(&[*of_run, u64::from(page), most as u64])),
            Generator::Beam => {
                let scores: Vec<f64> = of_page(self.point, page).iter().map(|score| probability(*score)).collect();
                beam(&scores, &self.rates, most).iter().filter_map(|order| orders.binary_search(order).ok()).collect()
            }
            Generator::Fpsm(_, fpsm) => fpsm.select(self.model.weights(), dataset, &dataset.visit(page), orders, most),
            Generator::All => (0..orders.len()).collect(),
        }
    }

    /// Candidates of a slate for each K. FPSM's nearest are the same for all, so that they are selected once.
    fn candidates_for_each(&self, generator: &Generator, page: u32) -> Vec<Vec<usize>> {
        let mosts = generator.mosts();
        match (generator, mosts) {
            (Generator::Fpsm(..), [.., highest]) => {
                let nearest = self.candidates(generator, page, *highest);
                mosts.iter().map(|most| nearest[..*most].to_vec()).collect()
            }
            _ => mosts.iter().map(|most| self.candidates(generator, page, *most)).collect(),
        }
    }

    /// Hit ratios of the generators over all slates, and V/V* of what the evaluator chooses of their candidates. `frozen` has the best order of
    /// each slate under the evaluator without contrastive loss.
    pub(super) fn hit_ratios(&self, generators: &[Generator], frozen: &[usize], stop: Stop, outcome: &mut Outcome) -> Result<()> {
        let share = 1.0 / self.world.slates.len() as f64;
        for (slate, page) in self.world.slates.iter().enumerate() {
            stop.heed()?;
            let (values, truth) = (self.values(*page)?, self.world.truth(*page));
            for generator in generators {
                for (most, candidates) in generator.mosts().iter().zip(self.candidates_for_each(generator, *page)) {
                    let mut add = |what: &str, figure: f64| {
                        *outcome.figures.entry(format!("{}.{what}@{most}", generator.name())).or_default() += figure * share;
                    };
                    add("hr_self", f64::from(hits(&candidates, &values)));
                    if let Some(frozen) = frozen.get(slate) {
                        add("hr_frozen", f64::from(candidates.contains(frozen)));
                    }
                    if let Some(truth) = &truth {
                        add("hr_true", f64::from(hits(&candidates, truth)));
                        add("ratio", value_ratio(best_of(&candidates, &values).unwrap_or(0), truth));
                    }
                }
            }
        }
        Ok(())
    }

    /// Milliseconds that a slate takes with each generator, one at a time, on candle and on one thread, in the median: the paper's K candidates are
    /// generated and evaluated.
    pub(super) fn costs(&self, generators: &[Generator], scale: &Scale, outcome: &mut Outcome) -> Result<()> {
        let slates = &self.world.slates[..self.world.slates.len().min(scale.timed)];
        for generator in generators {
            let mut costs: Vec<f64> = slates.iter().map(|page| self.cost_ms(generator, *page)).collect::<Result<_>>()?;
            costs.sort_by(f64::total_cmp);
            let cost = quantile(&costs, 0.5).context("no slate is timed")?;
            outcome.set(format!("{}.cost_ms", generator.name()), cost);
        }
        Ok(())
    }

    fn cost_ms(&self, generator: &Generator, page: u32) -> Result<f64> {
        let World { dataset, orders, .. } = self.world;
        let began = Instant::now();
        let candidates = self.candidates(generator, page, PAPER_MOST);
        let chosen: Vec<Order> = candidates.iter().map(|order| orders[*order].clone()).collect();
        best(&self.reader.values(dataset, &dataset.visit(page), of_page(self.point, page), &chosen)?);
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}

/// Clicks at each place over what point-wise scores foretell there, on the training pages.
pub(super) fn place_rates(world: &World, point: &[f32]) -> [f64; PLACES] {
    let (mut clicks, mut foretold) = ([0.0; PLACES], [0.0; PLACES]);
    for page in &world.dataset.train {
        let shown = world.dataset.pages[*page as usize].clicks.iter().zip(of_page(point, *page)).enumerate();
        for (place, (click, score)) in shown {
            if let Some(click) = click {
                clicks[place] += f64::from(*click);
                foretold[place] += probability(*score);
            }
        }
    }
    std::array::from_fn(|place| if foretold[place] > 0.0 { clicks[place] / foretold[place] } else { 1.0 })
}
