//! Ways to arrange rows, side by side on the same storefronts: as the ranker leaves them, and by models of whole rows that were trained on the same
//! log. What the paper's table 6 reports online is told of each: clicks, value, cost and time-outs.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use endcap_market::Expected;
use endcap_ranker::{
    pier::{
        Dataset, FpsmSetting, HISTORY, Kind, Model, Order, PLACES, Reader, Schedule, Visit, beam, best_first,
        fpsm::Places,
        probability,
        serve::{ClickedPage, Interest, Orders, Scratch, Selector, Wanted},
        train,
    },
    seed,
};
use endcap_ranking::{Pier, RowInput};

use super::{
    rows::{FrontRow, RowLog, ValueRatio, Worths, train_ocpm},
    world::Shop,
};

/// Rows of a storefront that are arranged.
const ARRANGED_ROWS: usize = 4;
/// Orders that beam search and FPSM hand to the evaluator (K).
pub(super) const MOST: usize = 10;
/// Visits of a judged household from which FPSM has its history: more than enough for the pages that it looks at.
const HISTORY_ROUNDS: u64 = 10;
/// What arranging one row may take; longer is a time-out.
const ROW_TIME: Duration = Duration::from_millis(1);

/// A way to arrange rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As the ranker leaves them.
    Base,
    /// By PRM's scores, highest first.
    Prm,
    /// The best of a beam search over point-wise scores, by OCPM.
    Beam,
    /// The best of all orders, by OCPM: what the product serves.
    Full,
    /// The best of those that FPSM selects by what was clicked before, by OCPM.
    Pier,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 5] = [Way::Base, Way::Prm, Way::Beam, Way::Full, Way::Pier];

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Way::Base => "ranker's order",
            Way::Prm => "PRM",
            Way::Beam => "beam, OCPM",
            Way::Full => "all orders, OCPM",
            Way::Pier => "FPSM, OCPM (PIER)",
        }
    }

    /// What the paper's table 6 has of it: lifts in CTR and GMV, cost in ms, time-outs.
    pub(super) fn of_the_paper(self) -> &'static str {
        match self {
            Way::Base => "0 %, 0 %, 0, 0 %",
            Way::Prm => "+1.21 %, +0.92 %, 6.1, 0 %",
            Way::Beam => "+3.17 %, +2.54 %, 10.5, 0.052 %",
            Way::Full => "–, –, 52.4, 64.39 %",
            Way::Pier => "+5.46 %, +5.83 %, 11.1, 0.061 %",
        }
    }
}

/// What came of a way.
#[derive(Debug, Clone, PartialEq)]
pub struct Arranged {
    /// A visit, by the truth: the mean over households.
    pub worth: Expected,
    /// True value of the orders chosen over that of the best ones.
    pub ratio: f64,
    /// What arranging each row took.
    pub times: Vec<Duration>,
}

impl Arranged {
    /// Share of the rows that took too long.
    pub fn time_outs(&self) -> f64 {
        self.times.iter().filter(|time| **time > ROW_TIME).count() as f64 / self.times.len().max(1) as f64
    }
}

/// Trains the models on visits to `shop` of its households, `rounds` each, and arranges the storefronts that they see then in every way.
///
/// # Errors
/// When store or catalogue do not answer, or a model cannot be trained.
pub fn compare(shop: &Shop<'_>, others: &Shop<'_>, rounds: u64, schedule: &Schedule) -> Result<Vec<Arranged>> {
    let mut log = RowLog::default();
    log.watch(shop, rounds, seed(&[schedule.seed, 6]))?;
    let fronts = others.households().iter().map(|household| others.rows(household, "judged"));
    let fronts = fronts.collect::<Result<Vec<Vec<FrontRow<'_>>>>>()?;
    let bench = Bench::new(log, fronts.iter().flatten(), schedule)?;
    let mut past = RowLog::default();
    past.watch(others, rounds.min(HISTORY_ROUNDS), seed(&[schedule.seed, 7]))?;
    let judged = fronts.into_iter().enumerate().map(|(household, rows)| {
        let worths = rows.iter().take(ARRANGED_ROWS).map(|row| Worths::of(others, row)).collect();
        Ok(Judged { rows, worths, interest: bench.interest(&past, household)? })
    });
    let judged = judged.collect::<Result<Vec<_>>>()?;
    Way::ALL.into_iter().map(|way| bench.arrange(way, others, &judged)).collect()
}

/// What a household sees, that ways to arrange it are judged by.
struct Judged<'a> {
    rows: Vec<FrontRow<'a>>,
    /// Of the rows that are arranged.
    worths: Vec<Worths>,
    interest: Interest,
}

/// The models, trained.
struct Bench {
    log: RowLog,
    dataset: Dataset,
    prm: Model,
    pier: Pier,
    selector: Selector,
    /// Clicks at each place of a row, as the log has them.
    rates: Vec<f64>,
    all: Orders,
}

impl Bench {
    fn new<'a>(mut log: RowLog, judged: impl Iterator<Item = &'a FrontRow<'a>>, schedule: &Schedule) -> Result<Self> {
        judged.for_each(|row| log.know(&row.input));
        let (dataset, point) = log.dataset()?;
        let mut heard = |_| ControlFlow::Continue(());
        let mut prm = Model::new(Kind::Prm, &dataset.vocabulary, schedule.seed);
        train(&mut prm, &dataset, &point, schedule, None, &mut heard).context("cannot train PRM")?;
        let bytes = train_ocpm(&dataset, &point, schedule, &mut heard).context("cannot train OCPM")?;
        let pier = Pier::read(&bytes)?;
        let setting =
            FpsmSetting { places: Places::Plain, bits: 64, half_life_ms: None, ties_by_rank: false, seed: schedule.seed };
        let selector = Selector::new(setting, PLACES);
        let rates = (0..PLACES).map(|place| log.rate(place)).collect();
        Ok(Self { rates, prm, pier, selector, all: Orders::all(PLACES, PLACES)?, dataset, log })
    }

    /// What FPSM makes of the rows that a household of `past` clicked on.
    fn interest(&self, past: &RowLog, household: usize) -> Result<Interest> {
        let rows: Vec<Vec<u32>> = past.clicked(household).take(HISTORY).collect();
        let pages: Vec<_> = rows.iter().map(|items| ClickedPage { items, at_ms: 0 }).collect();
        Ok(self.selector.encode(self.pier.kernel(), &pages)?)
    }

    fn arrange(&self, way: Way, shop: &Shop<'_>, judged: &[Judged<'_>]) -> Result<Arranged> {
        let (mut worth, mut ratio, mut times) = (Vec::new(), ValueRatio::default(), Vec::new());
        let (prm, mut room) = (self.prm.reader()?, Scratch::default());
        for Judged { rows, worths, interest } in judged {
            let mut shown: Vec<_> = rows.iter().map(|row| row.products.clone()).collect();
            for ((row, worths), shown) in rows.iter().zip(worths).zip(&mut shown) {
                let start = Instant::now();
                let order = match way {
                    Way::Base => (0..PLACES).collect(),
                    Way::Prm => self.by_prm(&row.input, &prm)?,
                    Way::Beam => self.pier.best_of(&row.input, &self.beam(&row.input)?)?,
                    Way::Full => self.pier.arrange(&row.input)?,
                    Way::Pier => self.pier.best_of(&row.input, &self.nearest(&row.input, interest, times.len(), &mut room)?)?,
                };
                times.push(start.elapsed());
                ratio.add(worths.get(&order), worths);
                *shown = row.arranged(&order);
            }
            let Some(row) = rows.first() else { continue };
            worth.push(shop.demo().expected(row.household, &shown));
        }
        Ok(Arranged { worth: super::world::mean(&worth), ratio: ratio.ratio(), times })
    }

    fn beam(&self, input: &RowInput) -> Result<Orders> {
        let scores: Vec<f64> = input.point.iter().map(|point| probability(*point)).collect();
        Ok(Orders::of(PLACES, PLACES, &beam(&scores, &self.rates, MOST))?)
    }

    /// The orders that FPSM selects; equal distances fall by the row's number.
    fn nearest(&self, input: &RowInput, interest: &Interest, row: usize, room: &mut Scratch) -> Result<Orders> {
        let wanted = Wanted { most: MOST, at_ms: row as i64 };
        let nearest = self.selector.select(self.pier.kernel(), &input.request(), interest, &self.all, wanted, room)?;
        let mut some = self.all.clone();
        self.all.choose_into(nearest, &mut some);
        Ok(some)
    }

    fn by_prm(&self, input: &RowInput, prm: &Reader<'_>) -> Result<Order> {
        let items = self.log.numbers_of(input).context("a row that is judged is known")?;
        let visit = Visit { shopper: input.budget, at_ms: 0, history: &[], items: &items };
        let as_it_is: Order = (0..PLACES).collect();
        let clicks = prm.clicks(&self.dataset, &visit, &input.point, &[as_it_is])?;
        Ok(best_first(&clicks))
    }
}
