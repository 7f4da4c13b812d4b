//! FPSM (section 4.1) on packed embeddings: the same orders, to the bit, as `selection.rs` selects.
//!
//! A representation (Eq. 3) is a sum over places of what an item adds at a place, which is worked out once for each pair; sums go along the tree
//! of orders' beginnings. They are added in the same sequence as there, and products are never fused with sums: so every hash is the same.

use super::{
    super::{
        FpsmSetting, HISTORY,
        fpsm::{BITS_MAX, Behaviour, SimHash, Ties, distance, encode_places, history, represent, shuffle_ties},
    },
    kernel::Kernel,
    lanes::{LANES, Lane, on_this_processor, padded},
    request::{ClickedPage, Orders, RerankRequest},
    score::Scratch,
};
use crate::{SlateError, pier::PLACES};

/// Lanes of a hash's projections.
const BIT_LANES: usize = BITS_MAX / LANES;

/// FPSM with its hash functions, which are drawn once.
pub struct Selector {
    setting: FpsmSetting,
    hash: SimHash,
    /// How places are encoded, `[places, D]`.
    places: Vec<f32>,
    /// Directions of each slot, `[D, BIT_LANES]`.
    directions: Vec<Vec<Lane>>,
}

/// What is to be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Orders, at most (K).
    pub most: usize,
    /// The visit's time in milliseconds, which decides with the shopper how equal distances fall.
    pub at_ms: i64,
}

/// What a selector makes of a shopper's clicked pages: kept like a [`super::History`].
#[derive(Debug, Clone, PartialEq)]
pub struct Interest {
    print: u64,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq)]
struct Slot {
    hash: u64,
    weight: f32,
}

/// Numbers of a selection.
#[derive(Default)]
pub(super) struct Selection {
    /// What each item adds at each place, `[places, items]`.
    added: Vec<Lane>,
    distances: Vec<f32>,
    ties: Vec<u32>,
    keys: Vec<u64>,
    chosen: Vec<u32>,
}

impl Selector {
    /// Draws the hash functions, for pages of so many places.
    pub fn new(setting: FpsmSetting, places: usize) -> Self {
        let hash = SimHash::new(HISTORY, setting.bits, LANES, setting.seed);
        let wide = |slot: usize| -> Vec<Lane> {
            let of_dim = |row: &[f32]| padded(&[row, &vec![0.0; BITS_MAX - row.len()]].concat(), BITS_MAX);
            hash.directions(slot).chunks_exact(hash.bits()).flat_map(of_dim).collect()
        };
        let directions = (0..HISTORY).map(wide).collect();
        Self { setting, hash, places: encode_places(places, LANES, setting.places), directions }
    }

    /// Hashes a shopper's clicked pages, newest first.
    ///
    /// # Errors
    /// When a page is not such as the weights can see.
    pub fn encode(&self, kernel: &Kernel, newest_first: &[ClickedPage<'_>]) -> Result<Interest, SlateError> {
        kernel.check_pages(newest_first)?;
        let as_shown = (0..kernel.places()).collect();
        let behaviours = newest_first.iter().map(|page| {
            let pooled: Vec<Vec<f32>> = pooled(kernel, page.items).map(|lane| lane.0.to_vec()).collect();
            Behaviour { h: represent(&as_shown, &pooled, &self.places), at_ms: page.at_ms }
        });
        let history = history(behaviours, HISTORY);
        let weights = self.setting.weigh(&history);
        let slot = |(number, behaviour): (usize, Behaviour)| Slot {
            hash: self.hash.hash(number, &behaviour.h),
            weight: weights[number],
        };
        Ok(Interest { print: kernel.print, slots: history.into_iter().flatten().enumerate().map(slot).collect() })
    }

    /// Numbers of the orders that lie nearest to what the shopper clicked on, nearest first.
    ///
    /// # Errors
    /// When slate, orders or interest are not such as the weights can see.
    pub fn select<'a>(
        &self,
        kernel: &Kernel,
        request: &RerankRequest<'_>,
        interest: &Interest,
        orders: &Orders,
        wanted: Wanted,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u32], SlateError> {
        kernel.check(request)?;
        kernel.check_orders(orders, request.point.len())?;
        if interest.print != kernel.print {
            return Err(SlateError::Stale);
        }
        let selection = &mut scratch.selection;
        selection.place(kernel, request, &self.places);
        selection.distances.clear();
        selection.distances.resize(orders.len(), 0.0);
        distances(&self.directions, interest, &selection.added, orders, &mut selection.distances);
        let shopper = request.shopper.map_or(u64::MAX, u64::from);
        Ok(selection.nearest(wanted.most, self.setting.ties(shopper, wanted.at_ms)))
    }
}

impl Selection {
    fn place(&mut self, kernel: &Kernel, request: &RerankRequest<'_>, places: &[f32]) {
        self.added.clear();
        let count = places.len() / LANES;
        for place in places.chunks_exact(LANES) {
            let added = |item: Lane| Lane(std::array::from_fn(|dim| item.0[dim] * place[dim] / count as f32));
            self.added.extend(pooled(kernel, request.items).map(added));
        }
    }

    /// Numbers of the smallest distances, the smallest first.
    fn nearest(&mut self, most: usize, ties: Ties) -> &[u32] {
        let Self { distances, ties: order, keys, chosen, .. } = self;
        order.clear();
        order.extend(0..distances.len() as u32);
        shuffle_ties(order, ties);
        // Distances are not below zero, so that their bits grow with them; equal ones come as they were shuffled.
        let key = |(rank, number): (usize, &u32)| u64::from(distances[*number as usize].to_bits()) << 32 | rank as u64;
        keys.clear();
        keys.extend(order.iter().enumerate().map(key));
        let most = most.min(keys.len());
        if (1..keys.len()).contains(&most) {
            keys.select_nth_unstable(most - 1);
        }
        keys[..most].sort_unstable();
        chosen.clear();
        chosen.extend(keys[..most].iter().map(|key| order[*key as u32 as usize]));
        chosen
    }
}

/// Mean over the fields of each item's embeddings.
fn pooled(kernel: &Kernel, items: &[u32]) -> impl Iterator<Item = Lane> {
    let fields = kernel.vocabulary.fields();
    items.chunks_exact(fields).map(move |values| {
        let rows = values.iter().enumerate().map(|(field, value)| kernel.vocabulary.field(field, *value) as usize);
        let sum = rows.fold(Lane::default(), |sum, row| sum.plus::<false>(&kernel.table[row]));
        Lane(sum.0.map(|sum| sum / fields as f32))
    })
}

on_this_processor! {
    /// Time-aware distances of orders from a history (Eq. 5).
    fn distances(directions: &[Vec<Lane>], interest: &Interest, added: &[Lane], orders: &Orders, out: &mut [f32]) = distances_with
}

#[inline(always)]
fn distances_with<const WIDE: bool>(
    directions: &[Vec<Lane>],
    interest: &Interest,
    added: &[Lane],
    orders: &Orders,
    out: &mut [f32],
) {
    let mut sums = [Lane::default(); PLACES + 1];
    let mut before: &[u8] = &[];
    for (order, out) in orders.iter().zip(out) {
        let same = order.iter().zip(before).take_while(|(item, before)| item == before).count();
        for place in same..order.len() {
            sums[place + 1] = sums[place].plus::<WIDE>(&added[place * orders.items() + usize::from(order[place])]);
        }
        before = order;
        let h = &sums[order.len()];
        for (slot, directions) in interest.slots.iter().zip(directions) {
            *out += slot.weight * distance(hash::<WIDE>(h, directions), slot.hash) as f32;
        }
    }
}

/// The hash of `h`, as [`SimHash::hash`] has it.
#[inline(always)]
fn hash<const WIDE: bool>(h: &Lane, directions: &[Lane]) -> u64 {
    let mut sums = [Lane::default(); BIT_LANES];
    for (h, along) in h.0.iter().zip(directions.chunks_exact(BIT_LANES)) {
        for (sum, along) in sums.iter_mut().zip(along) {
            // Not fused, as where the models are: a sum near zero must fall on the same side.
            sum.add_then_product::<WIDE>(*h, along);
        }
    }
    let mut hash = [0; BIT_LANES];
    for (bits, sum) in hash.iter_mut().zip(&sums) {
        *bits = sum.positive::<WIDE>();
    }
    u64::from_le_bytes(hash)
}
