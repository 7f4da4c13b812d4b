//! Rows of storefronts as the ranker leaves them: shown in orders by chance they are what a model of whole rows is trained on, and by the truth it is
//! known what each order of one is worth.

use std::{collections::HashMap, ops::ControlFlow};

use anyhow::Result;
use endcap_evaluation::mean;
use endcap_market::{Act, Household};
use endcap_ranker::{
    pier::{
        Cuts, Dataset, Kind, Model, Ocpm, Order, PLACES, PageView, PierError, Progress, Schedule, best, orders, serve, train,
    },
    seed,
};
use endcap_ranking::{ARRANGED, RowInput, vocabulary};
use endcap_schemas::Product;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::world::Shop;

// A row's products in sight first are a page of the model.
const _: () = assert!(ARRANGED == PLACES);

/// The parts of the data by time: what is trained on, what says what the loss is, and what it could be tested by.
const PARTS: Cuts = Cuts { train_ms: 0, valid_ms: 1, test_ms: 2 };
/// One household in so many is not trained on, and says what the loss is: whoever is trained on sees much the same rows again and again.
const VALIDATES: usize = 10;

/// A row in the ranker's order.
pub struct FrontRow<'a> {
    /// Whose.
    pub household: &'a Household,
    /// Its products.
    pub products: Vec<&'a Product>,
    /// Those in sight first, as the model sees them.
    pub input: RowInput,
}

impl<'a> FrontRow<'a> {
    /// The products with those in sight first in this order.
    pub fn arranged(&self, order: &[usize]) -> Vec<&'a Product> {
        order.iter().map(|place| self.products[*place]).chain(self.products[ARRANGED..].iter().copied()).collect()
    }
}

/// A row as it was shown: numbers of its items, place by place, and whether each was clicked.
struct Logged {
    /// Whose, by place among the households.
    household: usize,
    budget: u32,
    items: [u32; PLACES],
    clicks: [Option<bool>; PLACES],
}

/// What was shown and clicked.
#[derive(Default)]
pub struct RowLog {
    logged: Vec<Logged>,
    /// Fields and v of each item, and its number.
    items: Vec<([u32; 5], f32)>,
    numbers: HashMap<([u32; 5], u32), u32>,
}

impl RowLog {
    /// Has every household of `shop` visit `rounds` times, with the products in sight first of each row in an order by chance, each as likely.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn watch(&mut self, shop: &Shop<'_>, rounds: u64, by: u64) -> Result<()> {
        for round in 0..rounds {
            for (number, household) in shop.households().iter().enumerate() {
                let rows = shop.rows(household, &format!("logged-{round}"))?;
                let mut dice = ChaCha8Rng::seed_from_u64(seed(&[by, round, number as u64]));
                let orders: Vec<Vec<usize>> = rows.iter().map(|_| shuffled(&mut dice)).collect();
                let shown: Vec<Vec<&Product>> = rows.iter().zip(&orders).map(|(row, order)| row.arranged(order)).collect();
                let deeds = shop.demo().visit(household, &shown, seed(&[by, round]));
                for (place, (row, order)) in rows.iter().zip(&orders).enumerate() {
                    let of_row: Vec<_> = deeds.iter().filter(|deed| deed.row == place && deed.place < PLACES).collect();
                    if !of_row.is_empty() {
                        let is_clicked = |at| of_row.iter().any(|deed| deed.place == at && deed.act >= Act::Clicked);
                        self.note(number, &row.input, order, std::array::from_fn(|at| Some(is_clicked(at))));
                    }
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, household: usize, input: &RowInput, order: &[usize], clicks: [Option<bool>; PLACES]) {
        let items = std::array::from_fn(|at| self.number(input.items[order[at]], input.point[order[at]]));
        self.logged.push(Logged { household, budget: input.budget, items, clicks });
    }

    fn number(&mut self, fields: [u32; 5], point: f32) -> u32 {
        let next = self.items.len() as u32;
        let number = *self.numbers.entry((fields, point.to_bits())).or_insert(next);
        if number == next {
            self.items.push((fields, point));
        }
        number
    }

    /// Takes the items of a row in, so that [`RowLog::dataset`] has them, too.
    pub fn know(&mut self, input: &RowInput) {
        for (fields, point) in input.items.iter().zip(&input.point) {
            self.number(*fields, *point);
        }
    }

    /// Numbers of a row's items in the data; `None` where one is not known.
    pub fn numbers_of(&self, input: &RowInput) -> Option<Vec<u32>> {
        let items = input.items.iter().zip(&input.point);
        items.map(|(fields, point)| self.numbers.get(&(*fields, point.to_bits())).copied()).collect()
    }

    /// The rows that a household clicked on, newest first: fields of the items as they stood, `[PLACES, 5]` each.
    pub fn clicked(&self, household: usize) -> impl Iterator<Item = Vec<u32>> {
        let own = self.logged.iter().rev().filter(move |logged| logged.household == household);
        let clicked = own.filter(|logged| logged.clicks.contains(&Some(true)));
        clicked.map(|logged| logged.items.iter().flat_map(|item| self.items[*item as usize].0).collect())
    }

    /// Share of the rows that were clicked at `place`.
    pub fn rate(&self, place: usize) -> f64 {
        let clicked = self.logged.iter().filter(|logged| logged.clicks[place] == Some(true)).count();
        clicked as f64 / self.logged.len().max(1) as f64
    }

    /// Rows that were logged.
    pub fn len(&self) -> usize {
        self.logged.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.logged.is_empty()
    }

    /// The rows as data, with v of every page: those of most households to train on.
    ///
    /// # Errors
    /// When there are too few.
    pub fn dataset(&self) -> Result<(Dataset, Vec<f32>), PierError> {
        let at_ms = |household: usize| match household {
            1 => PARTS.test_ms,
            _ if household.is_multiple_of(VALIDATES) => PARTS.valid_ms,
            _ => PARTS.train_ms,
        };
        let page = |Logged { household, budget, items, clicks }: &Logged| PageView {
            shopper: *budget,
            at_ms: at_ms(*household),
            items: *items,
            clicks: *clicks,
        };
        let pages = self.logged.iter().map(page).collect();
        let items: Vec<Vec<u32>> = self.items.iter().map(|(fields, _)| fields.to_vec()).collect();
        // Whoever shares a budget is not one shopper.
        let dataset = Dataset::new(vocabulary(), &items, pages, PARTS)?.without_histories();
        let point = dataset.pages.iter().flat_map(|page| page.items.map(|item| self.items[item as usize].1)).collect();
        Ok((dataset, point))
    }
}

/// The weights of an OCPM with residuals that was trained on `dataset`, as a service reads them. `heard` is told after each step and may end it.
///
/// # Errors
/// When `heard` wants no more.
pub fn train_ocpm(
    dataset: &Dataset,
    point: &[f32],
    schedule: &Schedule,
    heard: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<u8>, PierError> {
    let mut model = Model::new(Kind::Ocpm(Ocpm::RESIDUAL), &dataset.vocabulary, schedule.seed);
    train(&mut model, dataset, point, schedule, None, heard)?;
    Ok(serve::write(model.weights(), &dataset.vocabulary, schedule.seed))
}

fn shuffled(dice: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..PLACES).collect();
    order.shuffle(dice);
    order
}

/// What every order of a row's first products is worth by the truth: the clicks to be expected of the row.
pub struct Worths(Vec<(Order, f64)>);

impl Worths {
    /// Those of a row, by the truth of the market.
    pub fn of(shop: &Shop<'_>, row: &FrontRow<'_>) -> Self {
        let worth = |order: &Order| shop.demo().expected(row.household, &[row.arranged(order)]).clicks;
        Self(orders(PLACES, PLACES).into_iter().map(|order| (order.clone(), worth(&order))).collect())
    }

    /// What an order is worth.
    ///
    /// # Panics
    /// When it is not one of all first products.
    pub fn get(&self, order: &[usize]) -> f64 {
        let place = self.0.binary_search_by(|(other, _)| other.as_slice().cmp(order));
        self.0[place.expect("an order of all products is among all orders")].1
    }

    /// As the ranker left the row.
    pub fn as_ranked(&self) -> f64 {
        self.0[0].1
    }

    /// An order by chance.
    pub fn by_chance(&self) -> f64 {
        mean(&self.each())
    }

    fn each(&self) -> Vec<f64> {
        self.0.iter().map(|(_, worth)| *worth).collect()
    }

    fn highest(&self) -> f64 {
        let each = self.each();
        best(&each).map_or(0.0, |best| each[best])
    }
}

/// V/V* of many rows: what the orders that were chosen are worth over what the best ones are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ValueRatio {
    chosen: f64,
    highest: f64,
}

impl ValueRatio {
    /// Adds a row of which an order is chosen that is worth so much.
    pub fn add(&mut self, chosen: f64, worths: &Worths) {
        self.chosen += chosen;
        self.highest += worths.highest();
    }

    /// The ratio.
    pub fn ratio(&self) -> f64 {
        self.chosen / self.highest
    }
}
