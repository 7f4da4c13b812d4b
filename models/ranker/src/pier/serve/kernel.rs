//! The weights of OCPM as the kernel reads them.
//!
//! What two layers do one after the other with nothing between is one layer here (MLP_1's last and the projections of Eq. 10), and scales are in
//! the weights. What is the same for every slate is worked out once: places' share of MLP_3's first layer.

use std::array;

use super::{
    super::{
        DIMS, Ocpm, Vocabulary, Weights,
        nets::{HEAD, HIDDEN, MLP2, PAGE},
    },
    FIELDS_MAX, WEIGHT_MAX,
    lanes::{LANES, Lane, padded},
    layer::Layer,
};
use crate::WeightsError;

/// Lanes of a page's representation.
pub(super) const PAGE_LANES: usize = PAGE.div_ceil(LANES);
/// Lanes of the first layer of MLP_1.
pub(super) const FIRST_LANES: usize = HIDDEN[0].div_ceil(LANES);
/// Lanes of query, key and value.
pub(super) const QKV: usize = 3;
/// Lanes of MLP_3's hidden layers, and of MLP_Att's.
pub(super) const HEAD_LANES: [usize; 2] = [HEAD[0].div_ceil(LANES), HEAD[1].div_ceil(LANES)];

// An embedding is a lane.
const _: () = assert!(DIMS == LANES);

/// OCPM (section 4.2), packed for serving.
pub struct Kernel {
    pub(super) vocabulary: Vocabulary,
    version: u64,
    /// Tells these weights from others.
    pub(super) print: u64,
    /// Embeddings, `[rows]`.
    pub(super) table: Vec<Lane>,
    /// Attention within each field.
    pub(super) within: Vec<Within>,
    /// Whether an item's value counts beside what attention makes of it ([`Ocpm::residual`]).
    pub(super) residual: bool,
    /// The first layer of MLP_1, a part for each place, and its biases.
    pub(super) first: Vec<Layer>,
    pub(super) first_bias: Vec<Lane>,
    /// The rest of MLP_1 and the projections of Eq. 10.
    pub(super) mlp1: [Layer; 3],
    pub(super) mlp2: [Layer; 3],
    pub(super) attend: Attend,
    pub(super) predict: Predict,
}

/// Attention within a field (Eq. 6, Eq. 7).
pub(super) struct Within {
    /// The score of a pair of items, the query of one times the key of the other over √D, is a form of their embeddings, with a 1 behind each:
    /// `[key, query]`. In f64, as f32 loses of large scores what shows in the clicks (`docs/ranking.md` has how much).
    by_key: [[f64; DIMS + 1]; DIMS + 1],
    pub(super) value: Layer,
}

/// MLP_Att (Eq. 11), whose first layer is taken apart: MLP(q ‖ b ‖ q ⊙ b ‖ q − b) is q · (W_q + W_− + diag(b) W_⊙) + b · (W_b − W_−).
pub(super) struct Attend {
    pub(super) base: Layer,
    pub(super) scaled: Layer,
    pub(super) shifted: Layer,
    pub(super) second: Layer,
    pub(super) last: Head,
}

/// MLP_3 (Eq. 12), whose first layer is taken apart into page, item, shopper and place.
pub(super) struct Predict {
    /// Of u and w, `[2 · PAGE_LANES]` lanes.
    pub(super) page: Layer,
    /// Of an item's embeddings and its point-wise log-odds, `[fields + 1]` lanes.
    pub(super) item: Layer,
    /// Of the shopper's embedding, with the biases.
    pub(super) shopper: Layer,
    /// What each place adds, `[places, HEAD_LANES[0]]`.
    pub(super) places: Vec<Lane>,
    pub(super) second: Layer,
    pub(super) last: Head,
}

impl Within {
    /// Adds the scores of each row of embeddings as a query with each as a key, `[rows, rows]`.
    pub(super) fn score(&self, embedded: &[Lane], scores: &mut Vec<f64>) {
        let form = |form: &[f64; DIMS + 1], x: &Lane| {
            x.0.iter().zip(form).fold(form[DIMS], |sum, (x, weight)| sum + f64::from(*x) * weight)
        };
        for query in embedded {
            let of_keys: [f64; DIMS + 1] = array::from_fn(|key| form(&self.by_key[key], query));
            scores.extend(embedded.iter().map(|key| form(&of_keys, key)));
        }
    }
}

/// A layer with one output.
pub(super) struct Head {
    pub(super) weights: [Lane; HEAD_LANES[1]],
    pub(super) bias: f32,
}

impl Kernel {
    /// Packs the weights of a whole OCPM, [`Ocpm::WHOLE`] or [`Ocpm::RESIDUAL`]. `version` is whatever their maker counts them by.
    ///
    /// # Errors
    /// When the weights are of another model or vocabulary, or hold numbers that are none.
    pub fn new(weights: &Weights, vocabulary: &Vocabulary, version: u64) -> Result<Self, WeightsError> {
        if !(1..=FIELDS_MAX).contains(&vocabulary.fields()) {
            return Err(WeightsError::Vocabulary("it has no fields, or too many"));
        }
        let (source, fields, places) = (Source(weights), vocabulary.fields(), vocabulary.places());
        let table = source.tensor("embeddings", &[vocabulary.rows(), DIMS])?;
        let residual = source.0.get(&format!("{}.0.weight", Ocpm::RESIDUAL.within(0))).is_some();
        let parts = Ocpm { residual, ..Ocpm::WHOLE };
        let within = |field| source.within(&format!("{}.0", parts.within(field)));
        let within = (0..fields).map(within).collect::<Result<_, _>>()?;
        let [first, second, third, fourth] =
            [[places * DIMS, HIDDEN[0]], [HIDDEN[0], HIDDEN[1]], [HIDDEN[1], HIDDEN[2]], [HIDDEN[2], DIMS]];
        let (weights, bias) = source.layer("ocpm.mlp1.0", first)?;
        let of_place = |weights: &[f32]| Layer::new(weights, &[0.0; HIDDEN[0]], false);
        let kernel = Self {
            vocabulary: vocabulary.clone(),
            version,
            print: source.print(vocabulary),
            within,
            residual,
            first: weights.chunks_exact(DIMS * HIDDEN[0]).map(of_place).collect(),
            first_bias: padded(bias, HIDDEN[0]),
            mlp1: [
                source.hidden("ocpm.mlp1.1", second)?,
                source.hidden("ocpm.mlp1.2", third)?,
                source.through("ocpm.mlp1.3", fourth, "ocpm.across.0")?,
            ],
            mlp2: [
                source.hidden("ocpm.mlp2.0", [fields * DIMS, MLP2[0]])?,
                source.hidden("ocpm.mlp2.1", [MLP2[0], MLP2[1]])?,
                source.hidden("ocpm.mlp2.2", [MLP2[1], MLP2[2]])?,
            ],
            attend: source.attend()?,
            predict: source.predict(vocabulary, table)?,
            table: padded(table, DIMS),
        };
        Ok(kernel)
    }

    /// Items of a page.
    pub fn places(&self) -> usize {
        self.vocabulary.places()
    }

    /// What it knows of fields, shoppers and places.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The version that its maker gave the weights.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// Tensors that must be there.
struct Source<'a>(&'a Weights);

impl<'a> Source<'a> {
    /// Values of a tensor of this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&'a [f32], WeightsError> {
        match self.0.get(name) {
            Some((got, values)) if got == shape => match values.iter().all(|value| value.abs() <= WEIGHT_MAX) {
                true => Ok(values),
                false => Err(WeightsError::Number { name: name.to_owned() }),
            },
            other => Err(WeightsError::Shape {
                name: name.to_owned(),
                got: other.map(|(shape, _)| shape.to_vec()),
                wanted: shape.to_vec(),
            }),
        }
    }

    fn layer(&self, name: &str, [inputs, outputs]: [usize; 2]) -> Result<(&'a [f32], &'a [f32]), WeightsError> {
        let weights = self.tensor(&format!("{name}.weight"), &[inputs, outputs])?;
        Ok((weights, self.tensor(&format!("{name}.bias"), &[outputs])?))
    }

    fn hidden(&self, name: &str, shape: [usize; 2]) -> Result<Layer, WeightsError> {
        let (weights, bias) = self.layer(name, shape)?;
        Ok(Layer::new(weights, bias, true))
    }

    fn head(&self, name: &str) -> Result<Head, WeightsError> {
        let (weights, bias) = self.layer(name, [HEAD[1], 1])?;
        let mut packed = [Lane::default(); HEAD_LANES[1]];
        packed.copy_from_slice(&padded(weights, HEAD[1]));
        Ok(Head { weights: packed, bias: bias[0] })
    }

    fn within(&self, name: &str) -> Result<Within, WeightsError> {
        let (weights, bias) = self.layer(name, [DIMS, QKV * DIMS])?;
        let rows: Vec<&[f32]> = weights.chunks_exact(QKV * DIMS).chain([bias]).collect();
        let score = |query: usize, key: usize| {
            let products = rows[query].iter().zip(&rows[key][DIMS..2 * DIMS]).map(|(q, k)| f64::from(*q) * f64::from(*k));
            products.sum::<f64>() / (DIMS as f64).sqrt()
        };
        let value: Vec<f32> = rows[..DIMS].iter().flat_map(|row| &row[2 * DIMS..]).copied().collect();
        Ok(Within {
            by_key: array::from_fn(|key| array::from_fn(|query| score(query, key))),
            value: Layer::new(&value, &bias[2 * DIMS..], false),
        })
    }

    /// A linear layer and the projections behind it, as one.
    fn through(&self, name: &str, [inputs, inner]: [usize; 2], queries: &str) -> Result<Layer, WeightsError> {
        let ((weights, bias), (project, project_bias)) =
            (self.layer(name, [inputs, inner])?, self.layer(queries, [inner, QKV * DIMS])?);
        let row = |row: &[f32], to: usize| -> f64 {
            row.iter().enumerate().map(|(at, value)| f64::from(*value) * f64::from(project[at * QKV * DIMS + to])).sum()
        };
        let both: Vec<f32> =
            weights.chunks_exact(inner).flat_map(|from| (0..QKV * DIMS).map(move |to| row(from, to) as f32)).collect();
        let both_bias: Vec<f32> = (0..QKV * DIMS).map(|to| (row(bias, to) + f64::from(project_bias[to])) as f32).collect();
        Ok(Layer::new(&scale_queries(&both), &scale_queries(&both_bias), false))
    }

    fn attend(&self) -> Result<Attend, WeightsError> {
        let (weights, bias) = self.layer("ocpm.attend.0", [4 * PAGE, HEAD[0]])?;
        let part = |part: usize| &weights[part * PAGE * HEAD[0]..(part + 1) * PAGE * HEAD[0]];
        let combine =
            |a: usize, sign: f32, b: usize| -> Vec<f32> { part(a).iter().zip(part(b)).map(|(a, b)| a + sign * b).collect() };
        let none = [0.0; HEAD[0]];
        Ok(Attend {
            base: Layer::new(&combine(0, 1.0, 3), &none, true),
            scaled: Layer::new(part(2), &none, true),
            shifted: Layer::new(&combine(1, -1.0, 3), bias, false),
            second: self.hidden("ocpm.attend.1", HEAD)?,
            last: self.head("ocpm.attend.2")?,
        })
    }

    fn predict(&self, vocabulary: &Vocabulary, table: &[f32]) -> Result<Predict, WeightsError> {
        let item = vocabulary.fields() * DIMS;
        let (weights, bias) = self.layer("ocpm.mlp3.0", [2 * PAGE + item + 2 * DIMS + 1, HEAD[0]])?;
        let rows = |from: usize, count: usize| &weights[from * HEAD[0]..(from + count) * HEAD[0]];
        let none = [0.0; HEAD[0]];
        // u and w are in lanes of their own: what pads them is nothing.
        let gap = vec![0.0; (PAGE_LANES * LANES - PAGE) * HEAD[0]];
        let page = [rows(0, PAGE), &gap, rows(PAGE, PAGE), &gap].concat();
        let item_and_point = [rows(2 * PAGE, item), rows(2 * PAGE + item + 2 * DIMS, 1)].concat();
        let of_place = Layer::new(rows(2 * PAGE + item + DIMS, DIMS), &none, false);
        let first = vocabulary.place(0) as usize * DIMS;
        let places = padded(&table[first..first + vocabulary.places() * DIMS], DIMS);
        Ok(Predict {
            page: Layer::new(&page, &none, false),
            item: Layer::new(&item_and_point, &none, false),
            shopper: Layer::new(rows(2 * PAGE + item, DIMS), bias, false),
            places: of_place.of(&places),
            second: self.hidden("ocpm.mlp3.1", HEAD)?,
            last: self.head("ocpm.mlp3.2")?,
        })
    }

    /// A number that other weights do not have.
    fn print(&self, vocabulary: &Vocabulary) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{vocabulary:?}").as_bytes());
        for (name, _, values) in self.0.iter() {
            hash.update(name.as_bytes());
            hash.update(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        }
        let [a, b, c, d, e, f, g, h, ..] = *hash.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Rows of query, key and value with the query over √D.
fn scale_queries(rows: &[f32]) -> Vec<f32> {
    let scale = |(at, value): (usize, &f32)| if at % (QKV * DIMS) < DIMS { value / (DIMS as f32).sqrt() } else { *value };
    rows.iter().enumerate().map(scale).collect()
}
