//! The omnidirectional attention unit (section 4.2.1) over many orders of one slate, without doing anything twice.
//!
//! - Attention within a field (Eq. 6) knows no places: it is worked out once for a set of items. Where a page shows all of a slate there is one
//!   set; else scores are worked out once for each pair of items, and an order's shares are those of its set.
//! - The first layer of MLP_1 (Eq. 8) is a sum over places: of rows of a table `[place, item]`, along the tree of orders' beginnings, so that
//!   orders that begin alike share what they have in common.
//! - Items with the same value of a field are one class to it, and orders that show the same classes place by place have the same h_j: the rest
//!   of MLP_1 and the projections of Eq. 10 run once for each of those, not for each order.

use std::ops::Range;

use super::{
    kernel::{FIRST_LANES, Kernel, QKV},
    lanes::{LANES, Lane, exp, on_this_processor},
    layer::{Out, Rows, times},
    request::Orders,
};
use crate::pier::{PLACES, nets::HIDDEN};

/// Rows that go through MLP_1 together: their first layer stays in the nearest cache.
const BLOCK: usize = 48;
/// Most different sequences of classes that there may be for them to be looked up.
const SHARED_MAX: usize = 4_096;
/// Scores that lie further apart than this have no shares of one that could all be told as numbers.
const STEEP: f64 = 60.0;
const NONE: u32 = u32::MAX;
const LANES_OF: [usize; 2] = [HIDDEN[1].div_ceil(LANES), HIDDEN[2].div_ceil(LANES)];

/// What one field knows of a slate and of orders of it.
#[derive(Default)]
pub(super) struct Field {
    /// Class of each item: items of the same value are of one class.
    class_of: Vec<u8>,
    /// Values of the classes.
    values: Vec<u32>,
    /// Embeddings of the classes, and what attention mixes of them.
    embedded: Vec<Lane>,
    own: Vec<Lane>,
    /// What goes into the tables: rows of H where there is one set, else values.
    mixed: Vec<Lane>,
    /// Scores of pairs of classes, and e to the power of each less the highest of its row, `[classes, classes]`.
    scores: Vec<f64>,
    powers: Vec<f32>,
    steep: bool,
    /// Whether an item's own value counts beside its share.
    residual: bool,
    /// What each class adds at each place, `[places, classes, FIRST_LANES]`.
    tables: Vec<Lane>,
    /// Different sequences of classes, `[rows, places]`, and the one of each order.
    sequences: Vec<u8>,
    pub(super) row_of: Vec<u32>,
    /// Query, key and value of each sequence's h_j, `[rows, QKV]`.
    pub(super) queries: Vec<Lane>,
}

/// Rows on their way through MLP_1.
#[derive(Default)]
struct Block {
    /// Sums over the first places of the order at hand, `[places, FIRST_LANES]`.
    sums: Vec<Lane>,
    first: Vec<Lane>,
    second: Vec<Lane>,
    third: Vec<Lane>,
}

/// The unit's state for a slate.
#[derive(Default)]
pub(super) struct Attention {
    pub(super) fields: Vec<Field>,
    /// Whether a page shows all items.
    whole: bool,
    places: usize,
    block: Block,
    /// Row of each sequence of classes.
    rows: Vec<u32>,
}

impl Attention {
    /// Takes a slate of `count` items, with their fields' values `[count, fields]`.
    pub(super) fn take(&mut self, kernel: &Kernel, items: &[u32], count: usize) {
        let fields = kernel.vocabulary.fields();
        self.fields.resize_with(fields, Field::default);
        (self.places, self.whole) = (kernel.places(), count == kernel.places());
        for (number, field) in self.fields.iter_mut().enumerate() {
            field.classify(items.iter().skip(number).step_by(fields));
            field.attend(kernel, number);
            field.mix(self.whole, kernel.residual);
            field.tabulate(kernel);
        }
    }

    /// Query, key and value of each field for each of these orders.
    pub(super) fn project(&mut self, kernel: &Kernel, orders: &Orders) {
        let Self { fields, whole, places, block, rows } = self;
        for field in fields {
            field.share(orders, rows);
            field.through(kernel, *places, *whole, block);
        }
    }

    /// What MLP_2 gets (Eq. 9) of some orders, `[orders, fields]`.
    pub(super) fn cross(&self, orders: Range<usize>, out: &mut [Lane]) {
        cross(&self.fields, orders, out);
    }
}

impl Field {
    fn classify<'a>(&mut self, values: impl Iterator<Item = &'a u32>) {
        self.values.clear();
        self.class_of.clear();
        for value in values {
            let class = self.values.iter().position(|known| known == value).unwrap_or(self.values.len());
            if class == self.values.len() {
                self.values.push(*value);
            }
            self.class_of.push(class as u8);
        }
    }

    fn classes(&self) -> usize {
        self.values.len()
    }

    /// Values of attention of the classes, and their scores.
    fn attend(&mut self, kernel: &Kernel, number: usize) {
        let (classes, first) = (self.classes(), kernel.vocabulary.field(number, 0));
        self.embedded.clear();
        self.embedded.extend(self.values.iter().map(|value| kernel.table[(first + value) as usize]));
        self.own.resize(classes, Lane::default());
        let (within, x) = (&kernel.within[number], Rows { lanes: &self.embedded, stride: 1 });
        times(&within.value, classes, x, Out { lanes: &mut self.own, stride: 1, from: 0 });
        self.scores.clear();
        within.score(&self.embedded, &mut self.scores);
    }

    /// Makes what the tables are of: H of each class where a page shows all items; else the values, and what makes shares of any set.
    fn mix(&mut self, whole: bool, residual: bool) {
        self.residual = residual;
        let (classes, scores) = (self.classes(), &self.scores);
        self.mixed.clear();
        if !whole {
            self.mixed.extend(&self.own);
            self.powers.clear();
            self.steep = false;
            for row in scores.chunks_exact(classes) {
                let highest = highest(row.iter());
                self.steep |= row.iter().any(|score| highest - score > STEEP);
                self.powers.extend(row.iter().map(|score| power(*score, highest)));
            }
            return;
        }
        for (own, row) in scores.chunks_exact(classes).enumerate() {
            let highest = highest(self.class_of.iter().map(|class| &row[usize::from(*class)]));
            let (mut sum, mut total) = (Lane::default(), 0.0);
            for class in self.class_of.iter().map(|class| usize::from(*class)) {
                let power = power(row[class], highest);
                sum.add_product::<false>(power, &self.own[class]);
                total += power;
            }
            let mut mixed = Lane(sum.0.map(|sum| sum / total));
            if residual {
                mixed = mixed.plus::<false>(&self.own[own]);
            }
            self.mixed.push(mixed);
        }
    }

    fn tabulate(&mut self, kernel: &Kernel) {
        let classes = self.classes();
        self.tables.resize(kernel.places() * classes * FIRST_LANES, Lane::default());
        let x = Rows { lanes: &self.mixed, stride: 1 };
        for (layer, table) in kernel.first.iter().zip(self.tables.chunks_exact_mut(classes * FIRST_LANES)) {
            times(layer, classes, x, Out { lanes: table, stride: FIRST_LANES, from: 0 });
        }
    }

    /// Finds the different sequences of classes among orders.
    fn share(&mut self, orders: &Orders, rows: &mut Vec<u32>) {
        self.sequences.clear();
        self.row_of.clear();
        let (classes, places) = (self.classes(), orders.shown());
        let sequences = classes.pow(places as u32);
        if classes == self.class_of.len() || sequences > SHARED_MAX {
            self.sequences.extend(orders.iter().flatten().map(|item| self.class_of[usize::from(*item)]));
            self.row_of.extend(0..orders.len() as u32);
            return;
        }
        rows.clear();
        rows.resize(sequences, NONE);
        for order in orders.iter() {
            let class = |item: &u8| self.class_of[usize::from(*item)];
            let row = &mut rows[order.iter().fold(0, |sequence, item| sequence * classes + usize::from(class(item)))];
            if *row == NONE {
                *row = (self.sequences.len() / places) as u32;
                self.sequences.extend(order.iter().map(class));
            }
            self.row_of.push(*row);
        }
    }

    /// MLP_1 and the projections of Eq. 10 of all sequences.
    fn through(&mut self, kernel: &Kernel, places: usize, whole: bool, block: &mut Block) {
        let rows = self.sequences.len() / places;
        let mut queries = std::mem::take(&mut self.queries);
        queries.resize(rows * QKV, Lane::default());
        block.resize(places);
        for (sequences, queries) in self.sequences.chunks(BLOCK * places).zip(queries.chunks_mut(BLOCK * QKV)) {
            let Block { sums, first, second, third } = block;
            match whole {
                true => add_places(self, &kernel.first_bias, sequences, sums, first),
                false => add_shares(self, &kernel.first_bias, sequences, places, first),
            }
            let (rows, [to_second, to_third, to_queries]) = (sequences.len() / places, &kernel.mlp1);
            let x = Rows { lanes: first, stride: FIRST_LANES };
            times(to_second, rows, x, Out { lanes: second, stride: LANES_OF[0], from: 0 });
            let x = Rows { lanes: second, stride: LANES_OF[0] };
            times(to_third, rows, x, Out { lanes: third, stride: LANES_OF[1], from: 0 });
            let x = Rows { lanes: third, stride: LANES_OF[1] };
            times(to_queries, rows, x, Out { lanes: queries, stride: QKV, from: 0 });
        }
        self.queries = queries;
    }
}

impl Block {
    fn resize(&mut self, places: usize) {
        self.sums.resize(places * FIRST_LANES, Lane::default());
        self.first.resize(BLOCK * FIRST_LANES, Lane::default());
        self.second.resize(BLOCK * LANES_OF[0], Lane::default());
        self.third.resize(BLOCK * LANES_OF[1], Lane::default());
    }
}

fn highest<'a>(scores: impl Iterator<Item = &'a f64>) -> f64 {
    scores.copied().fold(f64::NEG_INFINITY, f64::max)
}

/// e to the power of a score less the highest.
fn power(score: f64, highest: f64) -> f32 {
    ((score - highest) as f32).exp()
}

#[inline(always)]
fn dot<const WIDE: bool>(a: &Lane, b: &Lane) -> f32 {
    let mut products = Lane::default();
    products.add_products::<WIDE>(a, b);
    products.sum()
}

/// A row of a table.
#[inline(always)]
fn row(lanes: &[Lane], at: usize) -> &[Lane; FIRST_LANES] {
    lanes[at * FIRST_LANES..].first_chunk().expect("tables have whole rows")
}

on_this_processor! {
    /// The first layer of MLP_1 for sequences of classes, `[rows, FIRST_LANES]`, where a page shows all items: a sum over places.
    fn add_places(field: &Field, bias: &[Lane], sequences: &[u8], sums: &mut [Lane], out: &mut [Lane]) = add_places_with
}

#[inline(always)]
fn add_places_with<const WIDE: bool>(field: &Field, bias: &[Lane], sequences: &[u8], sums: &mut [Lane], out: &mut [Lane]) {
    let (places, classes) = (sums.len() / FIRST_LANES, field.classes());
    sums[..FIRST_LANES].copy_from_slice(bias);
    let mut before: &[u8] = &[];
    for (sequence, out) in sequences.chunks_exact(places).zip(out.chunks_exact_mut(FIRST_LANES)) {
        let same = sequence.iter().zip(before).take_while(|(class, before)| class == before).count();
        // Sums over the places before each that differ, but for the last place, whose sum is the row.
        for place in same..places - 1 {
            let of_place = row(&field.tables, place * classes + usize::from(sequence[place]));
            let (known, next) = sums[place * FIRST_LANES..].split_at_mut(FIRST_LANES);
            for ((next, known), added) in next.iter_mut().zip(known).zip(of_place) {
                *next = known.plus::<WIDE>(added);
            }
        }
        let last = row(&field.tables, (places - 1) * classes + usize::from(sequence[places - 1]));
        let known = row(sums, places - 1);
        for ((out, known), added) in out.iter_mut().zip(known).zip(last) {
            *out = known.plus::<WIDE>(added).above::<WIDE>(0.0);
        }
        before = sequence;
    }
}

on_this_processor! {
    /// The same where a page shows some items of a slate: every item of the set has its share at every place.
    fn add_shares(field: &Field, bias: &[Lane], sequences: &[u8], places: usize, out: &mut [Lane]) = add_shares_with
}

#[inline(always)]
fn add_shares_with<const WIDE: bool>(field: &Field, bias: &[Lane], sequences: &[u8], places: usize, out: &mut [Lane]) {
    const PART: usize = 4;
    let (classes, mut shares) = (field.classes(), [0.0; PLACES * PLACES]);
    for (sequence, out) in sequences.chunks_exact(places).zip(out.chunks_exact_mut(FIRST_LANES)) {
        field.shares(sequence, &mut shares);
        let parts = out.chunks_exact_mut(PART).zip(bias.chunks_exact(PART)).enumerate();
        for (part, (out, bias)) in parts {
            let mut sums: [Lane; PART] = std::array::from_fn(|at| bias[at]);
            for place in 0..places {
                let table = &field.tables[place * classes * FIRST_LANES..];
                for (class, share) in sequence.iter().zip(&shares[place * places..]) {
                    let added = &row(table, usize::from(*class))[part * PART..][..PART];
                    for (sum, added) in sums.iter_mut().zip(added) {
                        sum.add_product::<WIDE>(*share, added);
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = sum.above::<WIDE>(0.0);
            }
        }
    }
}

impl Field {
    /// Shares of a set's items in what each of them becomes (Eq. 6), `[places, places]`.
    #[inline(always)]
    fn shares(&self, sequence: &[u8], shares: &mut [f32]) {
        let classes = self.classes();
        for (own, (query, shares)) in sequence.iter().zip(shares.chunks_exact_mut(sequence.len())).enumerate() {
            let at = usize::from(*query) * classes..;
            let (scores, powers) = (&self.scores[at.clone()], &self.powers[at]);
            if self.steep {
                let highest = highest(sequence.iter().map(|class| &scores[usize::from(*class)]));
                let score = |class: &u8| scores[usize::from(*class)];
                shares.iter_mut().zip(sequence).for_each(|(share, class)| *share = power(score(class), highest));
            } else {
                shares.iter_mut().zip(sequence).for_each(|(share, class)| *share = powers[usize::from(*class)]);
            }
            let whole = 1.0 / shares.iter().sum::<f32>();
            shares.iter_mut().for_each(|share| *share *= whole);
            shares[own] += f32::from(self.residual);
        }
    }
}

on_this_processor! {
    /// Attention between the fields of each order (Eq. 9, Eq. 10), `[orders, fields]`.
    fn cross(fields: &[Field], orders: Range<usize>, out: &mut [Lane]) = cross_with
}

#[inline(always)]
fn cross_with<const WIDE: bool>(fields: &[Field], orders: Range<usize>, out: &mut [Lane]) {
    const MOST: usize = super::FIELDS_MAX.div_ceil(LANES);
    for (order, out) in orders.zip(out.chunks_exact_mut(fields.len())) {
        let queries = |field: &Field| field.row_of[order] as usize * QKV;
        for (query, out) in fields.iter().zip(out) {
            let query = &query.queries[queries(query)];
            let mut shares = [Lane::all(f32::NEG_INFINITY); MOST];
            let mut highest = f32::NEG_INFINITY;
            for (number, key) in fields.iter().enumerate() {
                let score = dot::<WIDE>(query, &key.queries[queries(key) + 1]);
                shares[number / LANES].0[number % LANES] = score;
                highest = if score > highest { score } else { highest };
            }
            let (mut sum, mut whole) = (Lane::default(), Lane::default());
            for (part, fields) in shares.iter().zip(fields.chunks(LANES)) {
                let powers = exp::<WIDE>(part.minus::<WIDE>(&Lane::all(highest)));
                whole = whole.plus::<WIDE>(&powers);
                for (field, power) in fields.iter().zip(&powers.0) {
                    sum.add_product::<WIDE>(*power, &field.queries[queries(field) + 2]);
                }
            }
            *out = Lane::default();
            out.add_product::<WIDE>(1.0 / whole.sum(), &sum);
        }
    }
}
