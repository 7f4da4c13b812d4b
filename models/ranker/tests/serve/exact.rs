//! OCPM (section 4.2) in f64, equation by equation: what candle and the kernel both come near to, and how near.

use endcap_ranker::pier::{HISTORY, Order, Vocabulary, Weights};

use crate::world::World;

/// Size of an embedding.
const DIMS: usize = 8;

/// The model of a world.
pub(crate) struct Exact<'a> {
    weights: &'a Weights,
    vocabulary: &'a Vocabulary,
    /// Name of the layers within fields, which says whether their values count by themselves.
    within: &'static str,
}

/// What is seen, and by whom.
pub(crate) struct Seen<'a> {
    pub(crate) shopper: u32,
    /// Values of the items' fields, `[items, fields]`.
    pub(crate) items: &'a [u32],
    pub(crate) point: &'a [f32],
    /// The same of the clicked pages, newest first, `[places, fields]` each.
    pub(crate) clicked: &'a [(Vec<u32>, i64)],
}

impl<'a> Exact<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        let weights = world.model.weights();
        let residual = weights.get("ocpm.residual0.0.weight").is_some();
        Self { weights, vocabulary: &world.dataset.vocabulary, within: if residual { "residual" } else { "within" } }
    }

    /// Click probabilities at each place of an order (Eq. 12).
    pub(crate) fn clicks(&self, seen: &Seen<'_>, order: &Order) -> Vec<f64> {
        let fields = self.vocabulary.fields();
        let of_item = |item: &usize| &seen.items[item * fields..(item + 1) * fields];
        let page = self.page(&order.iter().map(of_item).collect::<Vec<_>>());
        let mut interest = vec![0.0; page.len()];
        for (items, _) in seen.clicked.iter().take(HISTORY) {
            let clicked = self.page(&items.chunks_exact(fields).collect::<Vec<_>>());
            let pairs = page.iter().zip(&clicked);
            let products = pairs.clone().map(|(q, b)| q * b);
            let rows = page.iter().chain(&clicked).copied().chain(products).chain(pairs.map(|(q, b)| q - b));
            let weight = self.perceptron("ocpm.attend", rows.collect(), 3, true)[0];
            interest.iter_mut().zip(&clicked).for_each(|(sum, b)| *sum += weight * b);
        }
        let values: u32 = self.vocabulary.values().iter().sum();
        let shopper = self.embedding(values + seen.shopper);
        let click = |(place, item): (usize, &usize)| {
            let fields = of_item(item).iter().enumerate().flat_map(|(field, value)| self.field(field, *value));
            let of_place = self.embedding(values + self.vocabulary.shoppers() + place as u32);
            let own = fields.chain(shopper.clone()).chain(of_place).chain([f64::from(seen.point[*item])]);
            let row = page.iter().chain(&interest).copied().chain(own).collect();
            1.0 / (1.0 + (-self.perceptron("ocpm.mlp3", row, 3, true)[0]).exp())
        };
        order.iter().enumerate().map(click).collect()
    }

    /// u of a page (Eq. 6 to Eq. 10), given its items' values of fields.
    fn page(&self, items: &[&[u32]]) -> Vec<f64> {
        let of_field = |field: usize| {
            let rows: Vec<Vec<f64>> = items
                .iter()
                .map(|item| self.perceptron(&format!("ocpm.{}{field}", self.within), self.field(field, item[field]), 1, true))
                .collect();
            let mut attended = attend(&rows);
            if self.within == "residual" {
                attended.iter_mut().zip(&rows).for_each(|(h, row)| h.iter_mut().zip(&row[2 * DIMS..]).for_each(|(h, v)| *h += v));
            }
            let own = self.perceptron("ocpm.mlp1", attended.concat(), 4, true);
            self.perceptron("ocpm.across", own, 1, true)
        };
        let rows: Vec<Vec<f64>> = (0..self.vocabulary.fields()).map(of_field).collect();
        self.perceptron("ocpm.mlp2", attend(&rows).concat(), 3, false)
    }

    /// Layers one after the other, of which the last keeps what is below zero where it is open.
    fn perceptron(&self, name: &str, mut row: Vec<f64>, layers: usize, open: bool) -> Vec<f64> {
        for layer in 0..layers {
            let [(_, weights), (_, bias)] =
                ["weight", "bias"].map(|part| self.weights.get(&format!("{name}.{layer}.{part}")).expect("a layer of OCPM"));
            let floor = if open && layer + 1 == layers { f64::NEG_INFINITY } else { 0.0 };
            let sum = |to: usize| -> f64 {
                let column = weights.iter().skip(to).step_by(bias.len());
                row.iter().zip(column).map(|(x, weight)| x * f64::from(*weight)).sum()
            };
            row = bias.iter().enumerate().map(|(to, bias)| (sum(to) + f64::from(*bias)).max(floor)).collect();
        }
        row
    }

    fn field(&self, field: usize, value: u32) -> Vec<f64> {
        self.embedding(self.vocabulary.values()[..field].iter().sum::<u32>() + value)
    }

    fn embedding(&self, row: u32) -> Vec<f64> {
        let (_, table) = self.weights.get("embeddings").expect("embeddings");
        table[row as usize * DIMS..][..DIMS].iter().copied().map(f64::from).collect()
    }
}

/// Scaled dot-product attention (Eq. 6) among rows of query, key and value.
fn attend(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let attended = |of: &Vec<f64>| {
        let score = |row: &Vec<f64>| of[..DIMS].iter().zip(&row[DIMS..]).map(|(q, k)| q * k).sum::<f64>() / (DIMS as f64).sqrt();
        let scores: Vec<f64> = rows.iter().map(score).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let whole: f64 = powers.iter().sum();
        let sum = |dim: usize| rows.iter().zip(&powers).map(|(row, power)| row[2 * DIMS + dim] * power / whole).sum();
        (0..DIMS).map(sum).collect()
    };
    rows.iter().map(attended).collect()
}
