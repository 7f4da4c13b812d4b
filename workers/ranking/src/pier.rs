//! PIER at the border: OCPM, the evaluation model of whole pages (section 4.2), over what the service knows of a row. All 120 orders are evaluated,
//! and the one from which most clicks are expected is shown.
//!
//! No page of anybody is remembered, as feedback names no shopper: so there is no history (TAU has nothing to attend to), and in the place of a
//! shopper's embedding there is that of the household's budget. v is the log-odds of the expected reward, by the policy. A product is values of fields:
//!
//! | field | values | is |
//! |---|---|---|
//! | shelf | 5 | number of its shelf among the row's, in the order in which they come: so what is alike is known, in whatever market |
//! | price | 16 | its dearness |
//! | place by price | 5 | how many products of the row are cheaper |
//! | liking | 8 | the household's affinity to it |
//! | popularity | 8 | how much it sells |

use std::sync::{Mutex, PoisonError};

use endcap_ranker::{
    SlateError, WeightsError,
    pier::{
        Vocabulary, log_odds,
        serve::{self, EXACT_MAX, History, Kernel, Orders, RerankRequest, Scratch},
    },
};
use endcap_schemas::Budget;

use crate::{
    features::at,
    rerank::{ARRANGED, Rerank, Row},
};

/// Values of each field.
const FIELDS: [u32; 5] = [ARRANGED as u32, 16, ARRANGED as u32, 8, 8];
const BUDGETS: u32 = 3;
/// Expected rewards are taken for at least, and at most, this.
const EXPECTED: (f64, f64) = (1e-3, 0.999);

/// A row as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct RowInput {
    /// Number of the household's budget.
    pub budget: u32,
    /// Values of the products' fields, `[products, 5]`.
    pub items: Vec<[u32; 5]>,
    /// v of each product.
    pub point: Vec<f32>,
}

/// What the model knows of fields.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::new(&FIELDS, BUDGETS)
}

impl RowInput {
    /// Of `row`.
    pub fn of(row: &Row<'_>) -> Self {
        let trait_of = |place: usize, number: usize| u32::from(row.products[place].traits.0[number]);
        let dearness = |place: usize| trait_of(place, at::DEARNESS);
        let mut shelves: Vec<&str> = Vec::new();
        let mut shelf = |name| {
            let known = shelves.iter().position(|shelf| *shelf == name).unwrap_or(shelves.len());
            if known == shelves.len() {
                shelves.push(name);
            }
            known as u32
        };
        let item = |place: usize| {
            let cheaper = (0..row.products.len()).filter(|other| (dearness(*other), *other) < (dearness(place), place)).count();
            [
                shelf(row.products[place].product.category()),
                dearness(place) / 16,
                cheaper as u32,
                trait_of(place, at::AFFINITY) / 32,
                trait_of(place, at::POPULARITY) / 32,
            ]
        };
        Self {
            budget: match row.budget {
                Budget::Low => 0,
                Budget::Middle => 1,
                Budget::High => 2,
            },
            items: (0..row.products.len()).map(item).collect(),
            point: row.products.iter().map(|seen| point(seen.expected)).collect(),
        }
    }

    /// What a kernel is asked about it.
    pub fn request(&self) -> RerankRequest<'_> {
        RerankRequest { shopper: Some(self.budget), items: self.items.as_flattened(), point: &self.point }
    }
}

/// v of an expected reward.
fn point(expected: f64) -> f32 {
    log_odds(if expected.is_finite() { expected.clamp(EXPECTED.0, EXPECTED.1) } else { EXPECTED.0 })
}

/// The model, with room for as many threads as ask at once.
pub struct Pier {
    kernel: Kernel,
    nobody: History,
    rooms: Mutex<Vec<Scratch>>,
}

impl Pier {
    /// The model whose weights [`serve::write`] wrote.
    ///
    /// # Errors
    /// When the bytes are no whole, undamaged weights over these fields.
    pub fn read(bytes: &[u8]) -> Result<Self, WeightsError> {
        let kernel = serve::read(bytes)?;
        if *kernel.vocabulary() != vocabulary() {
            return Err(WeightsError::Vocabulary("it is over other fields than those of this release"));
        }
        let mut room = Scratch::default();
        let nobody = kernel.encode(&[], &mut room).map_err(|_| WeightsError::Vocabulary("it takes no empty history"))?;
        Ok(Self { kernel, nobody, rooms: Mutex::new(vec![room]) })
    }

    /// The version that whoever trained it gave it.
    pub fn version(&self) -> u64 {
        self.kernel.version()
    }

    /// The kernel, for whoever asks it in another way.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The best of all orders of a row of [`ARRANGED`] products: its places in the order in which they are to be shown.
    ///
    /// # Errors
    /// When the row is not such as the model can see.
    pub fn arrange(&self, input: &RowInput) -> Result<Vec<usize>, SlateError> {
        self.in_a_room(|room| {
            let arranged = self.kernel.arrange(&input.request(), &self.nobody, EXACT_MAX, room)?;
            Ok(places(arranged.order))
        })
    }

    /// The best of some orders of a row.
    ///
    /// # Errors
    /// When the row is not such as the model can see, or the orders are of other rows.
    pub fn best_of(&self, input: &RowInput, orders: &Orders) -> Result<Vec<usize>, SlateError> {
        self.in_a_room(|room| {
            let best = self.kernel.score(&input.request(), &self.nobody, orders, room)?.best;
            Ok(places(orders.get(best)))
        })
    }

    fn in_a_room<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let rooms = || self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = rooms().pop().unwrap_or_default();
        let done = work(&mut room);
        rooms().push(room);
        done
    }

    /// Arranges rows with it. One of fewer products than a page of the model has stays as it is; so does, with a word, what the model cannot see.
    pub fn into_rerank(self) -> Rerank {
        Box::new(move |row: &Row<'_>| {
            let is_whole = row.products.len() == ARRANGED;
            let arranged = is_whole.then(|| self.arrange(&RowInput::of(row)))?;
            let unseen = |error: &SlateError| tracing::warn!(%error, "a row cannot be arranged and stays in the ranker's order");
            arranged.inspect_err(unseen).ok()
        })
    }
}

fn places(order: &[u8]) -> Vec<usize> {
    order.iter().map(|place| usize::from(*place)).collect()
}

#[cfg(test)]
mod tests {
    use endcap_ranker::pier::{Kind, Model, Ocpm};
    use endcap_schemas::{DietSet, Product};

    use super::*;
    use crate::{
        features::{TRAITS, Traits},
        rerank::Seen,
    };

    fn weights(vocabulary: &Vocabulary) -> Vec<u8> {
        serve::write(Model::new(Kind::Ocpm(Ocpm::WHOLE), vocabulary, 3).weights(), vocabulary, 7)
    }

    fn product(id: &str, shelf: &str) -> Product {
        Product {
            id: id.to_owned(),
            name: id.to_owned(),
            brand: String::new(),
            size: String::new(),
            category_path: vec!["food".to_owned(), shelf.to_owned()],
            price_cents: Some(100),
            popularity: 0.5,
            violates: DietSet::NONE,
            age_restricted: false,
            in_stock: true,
        }
    }

    fn row(products: &[Product]) -> Row<'_> {
        let seen = |(n, product)| {
            let mut traits = Traits([128; TRAITS]);
            traits.0[at::DEARNESS] = [200, 90, 91, 255, 0][n % 5];
            Seen { product, traits, expected: [0.1, 0.0, f64::NAN, 7.0, 0.02][n % 5] }
        };
        Row { budget: Budget::High, products: products.iter().enumerate().map(seen).collect() }
    }

    #[test]
    fn a_row_is_told_by_what_is_alike_and_what_is_dear_in_it() {
        let products = ["tea", "jam", "tea", "oil", "jam"].map(|shelf| product(shelf, shelf));
        let RowInput { budget, items, point } = RowInput::of(&row(&products));
        assert_eq!(budget, 2);
        assert_eq!(items.iter().map(|item| item[0]).collect::<Vec<_>>(), [0, 1, 0, 2, 1]);
        assert_eq!(items.iter().map(|item| (item[1], item[2])).collect::<Vec<_>>(), [(12, 3), (5, 1), (5, 2), (15, 4), (0, 0)]);
        let known = |value: u32, field: usize| value < FIELDS[field];
        assert!(items.iter().all(|item| item.iter().enumerate().all(|(field, value)| known(*value, field))), "{items:?}");
        assert!(point.iter().all(|point| point.is_finite()) && point[0] > point[4] && point[3] > point[0], "{point:?}");
    }

    #[test]
    fn a_whole_row_is_arranged_and_a_short_one_stays() {
        let rerank = Pier::read(&weights(&vocabulary())).expect("weights").into_rerank();
        let products = ["tea", "jam", "tea", "oil", "jam"].map(|shelf| product(shelf, shelf));
        let mut order = rerank(&row(&products)).expect("an order");
        assert_eq!(rerank(&row(&products)).as_ref(), Some(&order), "the same row, the same order");
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert_eq!(rerank(&row(&products[..4])), None);
    }

    #[test]
    fn weights_that_are_none_or_of_others_are_refused() {
        let bytes = weights(&vocabulary());
        for length in (0..bytes.len()).step_by(997) {
            assert!(Pier::read(&bytes[..length]).is_err(), "{length} bytes were taken");
        }
        let other = weights(&Vocabulary::new(&FIELDS, BUDGETS + 1));
        assert!(Pier::read(&other).err().is_some_and(|error| error.to_string().contains("other fields")));
        assert_eq!(Pier::read(&bytes).expect("weights").version(), 7);
    }
}
