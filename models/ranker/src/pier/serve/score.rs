//! Orders of a slate, scored: attention (OAU), the shopper's interest (TAU, section 4.2.2) and prediction (CPU, section 4.2.3).
//!
//! MLP_Att and MLP_3 have their first layers taken apart, so that what is the same for many rows is worked out once: of MLP_Att what a page of
//! the history has in it, of MLP_3 the page's part for all its places and the item's part for all orders.

use super::{
    super::{HISTORY, measure::first_highest, model::LOG_ODDS_MAX},
    attention::Attention,
    kernel::{HEAD_LANES, Head, Kernel, PAGE_LANES},
    lanes::{LANES, Lane, exp, on_this_processor},
    layer::{Layer, Out, Rows, times},
    request::{ClickedPage, History, Orders, RerankRequest},
    select::Selection,
};
use crate::{SlateError, pier::nets::MLP2};

/// Orders that are scored together: their rows stay in the nearest cache.
const BLOCK: usize = 24;
/// Lanes of u and w side by side.
const UW: usize = 2 * PAGE_LANES;
const MLP2_LANES: [usize; 2] = [MLP2[0].div_ceil(LANES), MLP2[1].div_ceil(LANES)];

/// What a kernel writes its numbers into. It grows at first and allocates nothing once slates of a size have been seen; keep one for each thread.
#[derive(Default)]
pub struct Scratch {
    attention: Attention,
    /// MLP_Att's first layer for each page of the history.
    slots: Vec<Layer>,
    /// Inputs and outputs of MLP_3's first layer for items; then of items at places, `[items, places, HEAD_LANES[0]]`.
    items: Vec<Lane>,
    of_items: Vec<Lane>,
    placed: Vec<Lane>,
    block: Block,
    clicks: Vec<f32>,
    values: Vec<f32>,
    pub(super) selection: Selection,
    pub(super) all: Vec<Orders>,
    pub(super) found: Vec<u8>,
}

/// Rows of a block of orders on their way.
#[derive(Default)]
struct Block {
    crossed: Vec<Lane>,
    first: Vec<Lane>,
    second: Vec<Lane>,
    /// u and w, `[orders, UW]`.
    pages: Vec<Lane>,
    /// Hidden layers of MLP_Att and of MLP_3, for orders and for their places.
    head: [Vec<Lane>; 2],
    of_pages: Vec<Lane>,
    log_odds: Vec<Lane>,
}

/// What came of scoring orders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores<'a> {
    /// What each order is worth: the clicks to be expected of it.
    pub values: &'a [f32],
    /// Click probabilities, `[orders, places]`.
    pub clicks: &'a [f32],
    /// Number of the best order, the first of equals.
    pub best: usize,
}

/// A slate that is ready to have its orders scored.
pub(super) struct Prepared<'a> {
    kernel: &'a Kernel,
    history: &'a History,
    items: usize,
    scratch: &'a mut Scratch,
}

impl Kernel {
    /// What the weights make of a shopper's clicked pages, newest first; those beyond [`HISTORY`] are left out.
    ///
    /// # Errors
    /// When a page is not such as the weights can see.
    pub fn encode(&self, newest_first: &[ClickedPage<'_>], scratch: &mut Scratch) -> Result<History, SlateError> {
        self.check_pages(newest_first)?;
        let as_shown = Orders::of(self.places(), self.places(), &[(0..self.places()).collect()])?;
        let encode = |page: &ClickedPage<'_>| {
            scratch.attention.take(self, page.items, self.places());
            scratch.attention.project(self, &as_shown);
            scratch.block.resize(self);
            scratch.block.represent(self, &scratch.attention, 0, 1);
            *scratch.block.pages.first_chunk().expect("a page has its lanes")
        };
        Ok(History { print: self.print, pages: newest_first.iter().take(HISTORY).map(encode).collect() })
    }

    /// Gets a slate ready: everything that is the same for all its orders.
    ///
    /// # Errors
    /// When the slate or the history is not such as the weights can see.
    pub(super) fn prepare<'a>(
        &'a self,
        request: &RerankRequest<'a>,
        history: &'a History,
        scratch: &'a mut Scratch,
    ) -> Result<Prepared<'a>, SlateError> {
        self.check(request)?;
        if history.print != self.print {
            return Err(SlateError::Stale);
        }
        let items = request.point.len();
        scratch.attention.take(self, request.items, items);
        scratch.blend(self, history);
        scratch.place(self, request);
        scratch.block.resize(self);
        Ok(Prepared { kernel: self, history, items, scratch })
    }

    /// Scores orders of a slate.
    ///
    /// # Errors
    /// When the slate or the history is not such as the weights can see, or the orders are not of such a slate.
    pub fn score<'a>(
        &'a self,
        request: &RerankRequest<'a>,
        history: &'a History,
        orders: &Orders,
        scratch: &'a mut Scratch,
    ) -> Result<Scores<'a>, SlateError> {
        let mut prepared = self.prepare(request, history, scratch)?;
        prepared.run(orders)?;
        Ok(prepared.into_scratch().scores())
    }
}

impl<'a> Prepared<'a> {
    pub(super) fn into_scratch(self) -> &'a mut Scratch {
        self.scratch
    }

    /// Scores orders.
    ///
    /// # Errors
    /// When the orders are not of such a slate.
    pub(super) fn score(&mut self, orders: &Orders) -> Result<Scores<'_>, SlateError> {
        self.run(orders)?;
        Ok(self.scratch.scores())
    }

    fn run(&mut self, orders: &Orders) -> Result<(), SlateError> {
        let Self { kernel, history, items, scratch } = self;
        kernel.check_orders(orders, *items)?;
        let Scratch { attention, slots, placed, block, clicks, values, .. } = &mut **scratch;
        attention.project(kernel, orders);
        let places = kernel.places();
        clicks.resize(orders.len() * places, 0.0);
        values.resize(orders.len(), 0.0);
        for from in (0..orders.len()).step_by(BLOCK) {
            let count = BLOCK.min(orders.len() - from);
            block.represent(kernel, attention, from, count);
            block.interest(kernel, history, slots, count);
            block.predict(kernel, placed, orders, from, &mut clicks[from * places..][..count * places]);
        }
        values.iter_mut().zip(clicks.chunks_exact(places)).for_each(|(value, clicks)| *value = clicks.iter().sum());
        Ok(())
    }
}

impl Scratch {
    fn scores(&self) -> Scores<'_> {
        let best = first_highest(self.values.iter().map(|value| f64::from(*value)).enumerate());
        Scores { values: &self.values, clicks: &self.clicks, best: best.unwrap_or(0) }
    }

    /// MLP_Att's first layer for each page of the history.
    fn blend(&mut self, kernel: &Kernel, history: &History) {
        let attend = &kernel.attend;
        self.slots.resize_with(HISTORY, || attend.base.clone());
        for (slot, page) in self.slots.iter_mut().zip(&history.pages) {
            slot.blend(&attend.base, &attend.scaled, &attend.shifted, page);
        }
    }

    /// MLP_3's first layer for each item at each place, without the page's part.
    fn place(&mut self, kernel: &Kernel, request: &RerankRequest<'_>) {
        let (vocabulary, predict) = (&kernel.vocabulary, &kernel.predict);
        let (fields, stride) = (vocabulary.fields(), vocabulary.fields() + 1);
        self.items.clear();
        for (values, point) in request.items.chunks_exact(fields).zip(request.point) {
            let embedding = |(field, value): (usize, &u32)| kernel.table[vocabulary.field(field, *value) as usize];
            self.items.extend(values.iter().enumerate().map(embedding));
            self.items.push(Lane(std::array::from_fn(|at| if at == 0 { *point } else { 0.0 })));
        }
        let embedding = request.shopper.map_or_else(Lane::default, |shopper| kernel.table[vocabulary.shopper(shopper) as usize]);
        let (mut of_shopper, width) = ([Lane::default(); HEAD_LANES[0]], HEAD_LANES[0]);
        let x = Rows { lanes: &[embedding], stride: 1 };
        times(&predict.shopper, 1, x, Out { lanes: &mut of_shopper, stride: width, from: 0 });
        self.of_items.resize(request.point.len() * width, Lane::default());
        let x = Rows { lanes: &self.items, stride };
        times(&predict.item, request.point.len(), x, Out { lanes: &mut self.of_items, stride: width, from: 0 });
        self.placed.clear();
        for of_item in self.of_items.chunks_exact(width) {
            for of_place in predict.places.chunks_exact(width) {
                self.placed.extend((0..width).map(|at| of_item[at].plus::<false>(&of_place[at]).plus::<false>(&of_shopper[at])));
            }
        }
    }
}

impl Block {
    fn resize(&mut self, kernel: &Kernel) {
        let (fields, rows) = (kernel.vocabulary.fields(), BLOCK * kernel.places());
        let Self { crossed, first, second, pages, head, of_pages, log_odds } = self;
        let sizes = [BLOCK * fields, BLOCK * MLP2_LANES[0], BLOCK * MLP2_LANES[1], BLOCK * UW, BLOCK * HEAD_LANES[0]];
        for (lanes, size) in [crossed, first, second, pages, of_pages].into_iter().zip(sizes) {
            lanes.resize(size, Lane::default());
        }
        head.iter_mut().zip(HEAD_LANES).for_each(|(lanes, width)| lanes.resize(rows * width, Lane::default()));
        log_odds.resize(rows.div_ceil(LANES), Lane::default());
    }

    /// u of some orders (Eq. 9); w becomes nothing.
    fn represent(&mut self, kernel: &Kernel, attention: &Attention, from: usize, count: usize) {
        attention.cross(from..from + count, &mut self.crossed);
        let [to_first, to_second, to_pages] = &kernel.mlp2;
        let x = Rows { lanes: &self.crossed, stride: kernel.vocabulary.fields() };
        times(to_first, count, x, Out { lanes: &mut self.first, stride: MLP2_LANES[0], from: 0 });
        let x = Rows { lanes: &self.first, stride: MLP2_LANES[0] };
        times(to_second, count, x, Out { lanes: &mut self.second, stride: MLP2_LANES[1], from: 0 });
        self.pages.fill(Lane::default());
        let x = Rows { lanes: &self.second, stride: MLP2_LANES[1] };
        times(to_pages, count, x, Out { lanes: &mut self.pages, stride: UW, from: 0 });
    }

    /// w of the orders (Eq. 11).
    fn interest(&mut self, kernel: &Kernel, history: &History, slots: &[Layer], count: usize) {
        let [first, second] = &mut self.head;
        for (slot, page) in slots.iter().zip(&history.pages) {
            let x = Rows { lanes: &self.pages, stride: UW };
            times(slot, count, x, Out { lanes: first, stride: HEAD_LANES[0], from: 0 });
            let x = Rows { lanes: first, stride: HEAD_LANES[0] };
            times(&kernel.attend.second, count, x, Out { lanes: second, stride: HEAD_LANES[1], from: 0 });
            add_interest(&kernel.attend.last, &second[..count * HEAD_LANES[1]], page, &mut self.pages);
        }
    }

    /// Click probabilities at each place of the orders (Eq. 12).
    fn predict(&mut self, kernel: &Kernel, placed: &[Lane], orders: &Orders, from: usize, clicks: &mut [f32]) {
        let (predict, places) = (&kernel.predict, kernel.places());
        let (count, [first, second]) = (clicks.len() / places, &mut self.head);
        let x = Rows { lanes: &self.pages, stride: UW };
        times(&predict.page, count, x, Out { lanes: &mut self.of_pages, stride: HEAD_LANES[0], from: 0 });
        add_places(&self.of_pages, placed, orders, from, &mut first[..clicks.len() * HEAD_LANES[0]]);
        let x = Rows { lanes: first, stride: HEAD_LANES[0] };
        times(&predict.second, clicks.len(), x, Out { lanes: second, stride: HEAD_LANES[1], from: 0 });
        click(&predict.last, &second[..clicks.len() * HEAD_LANES[1]], &mut self.log_odds, clicks);
    }
}

#[inline(always)]
fn answer<const WIDE: bool>(head: &Head, row: &[Lane]) -> f32 {
    let mut sum = Lane::default();
    for (weights, row) in head.weights.iter().zip(row) {
        sum.add_products::<WIDE>(weights, row);
    }
    sum.sum() + head.bias
}

on_this_processor! {
    /// Adds a page of the history to w of each order, as much as MLP_Att says.
    fn add_interest(head: &Head, hidden: &[Lane], page: &[Lane; PAGE_LANES], pages: &mut [Lane]) = add_interest_with
}

#[inline(always)]
fn add_interest_with<const WIDE: bool>(head: &Head, hidden: &[Lane], page: &[Lane; PAGE_LANES], pages: &mut [Lane]) {
    for (hidden, pages) in hidden.chunks_exact(HEAD_LANES[1]).zip(pages.chunks_exact_mut(UW)) {
        let weight = answer::<WIDE>(head, hidden);
        for (sum, page) in pages[PAGE_LANES..].iter_mut().zip(page) {
            sum.add_product::<WIDE>(weight, page);
        }
    }
}

on_this_processor! {
    /// The first hidden layer of MLP_3 for each place of each order from `from` on.
    fn add_places(of_pages: &[Lane], placed: &[Lane], orders: &Orders, from: usize, out: &mut [Lane]) = add_places_with
}

#[inline(always)]
fn add_places_with<const WIDE: bool>(of_pages: &[Lane], placed: &[Lane], orders: &Orders, from: usize, out: &mut [Lane]) {
    const WIDTH: usize = HEAD_LANES[0];
    let places = orders.shown();
    for (at, (page, out)) in of_pages.chunks_exact(WIDTH).zip(out.chunks_exact_mut(places * WIDTH)).enumerate() {
        let items = orders.get(from + at).iter().enumerate();
        for ((place, item), out) in items.zip(out.chunks_exact_mut(WIDTH)) {
            let placed = &placed[(usize::from(*item) * places + place) * WIDTH..][..WIDTH];
            for ((out, page), placed) in out.iter_mut().zip(page).zip(placed) {
                *out = page.plus::<WIDE>(placed).above::<WIDE>(0.0);
            }
        }
    }
}

on_this_processor! {
    /// Click probabilities out of MLP_3's last hidden layer.
    fn click(head: &Head, hidden: &[Lane], log_odds: &mut [Lane], clicks: &mut [f32]) = click_with
}

#[inline(always)]
fn click_with<const WIDE: bool>(head: &Head, hidden: &[Lane], log_odds: &mut [Lane], clicks: &mut [f32]) {
    for (at, hidden) in hidden.chunks_exact(HEAD_LANES[1]).enumerate() {
        log_odds[at / LANES].0[at % LANES] = answer::<WIDE>(head, hidden);
    }
    for (clicks, log_odds) in clicks.chunks_mut(LANES).zip(log_odds) {
        let held = log_odds.above::<WIDE>(-LOG_ODDS_MAX).below::<WIDE>(LOG_ODDS_MAX);
        let odds_against = exp::<WIDE>(Lane::default().minus::<WIDE>(&held));
        for (click, against) in clicks.iter_mut().zip(&odds_against.0) {
            *click = 1.0 / (1.0 + against);
        }
    }
}
