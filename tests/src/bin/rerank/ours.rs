//! The kernel and the candle model.

use std::{hint::black_box, time::Instant};

use anyhow::{Context, Result};
use endcap_ranker::pier::{
    FpsmSetting, Order, Reader, best,
    fpsm::{BITS_MAX, Places},
    serve::{History, Interest, Kernel, Orders, RerankRequest, Scratch, Selector, Wanted},
};

use crate::slates::{Asked, World};

const FPSM: FpsmSetting =
    FpsmSetting { places: Places::Plain, bits: BITS_MAX, half_life_ms: Some(3.0 * 86_400_000.0), ties_by_rank: false, seed: 5 };

/// Times by what was timed, µs.
type Times = Vec<(&'static str, Vec<f64>)>;

pub(crate) struct Ours<'a> {
    world: &'a World,
    kernel: Kernel,
    selector: Selector,
    reader: Reader<'a>,
    scratch: Scratch,
    all: Orders,
    /// Of each slate: what is known of its shopper, and the orders that FPSM selects.
    known: Vec<(History, Interest)>,
    selected: Vec<Vec<usize>>,
    some: Vec<Orders>,
}

impl<'a> Ours<'a> {
    pub(crate) fn new(world: &'a World) -> Result<Self> {
        let (size, mut scratch) = (world.size, Scratch::default());
        let kernel = Kernel::new(world.model.weights(), &world.dataset.vocabulary, 1)?;
        let (selector, all) = (Selector::new(FPSM, size.places), Orders::all(size.items, size.places)?);
        let (mut known, mut selected, mut some) = (Vec::new(), Vec::new(), Vec::new());
        for asked in &world.slates {
            let (pages, visit) = (asked.pages(), world.visit(asked));
            let of_shopper = (kernel.encode(&pages, &mut scratch)?, selector.encode(&kernel, &pages)?);
            let wanted = Wanted { most: size.some, at_ms: visit.at_ms };
            let numbers = selector.select(&kernel, &request(world, asked), &of_shopper.1, &all, wanted, &mut scratch)?;
            let numbers: Vec<usize> = numbers.iter().map(|number| *number as usize).collect();
            let orders: Vec<Order> = numbers.iter().map(|number| world.all[*number].clone()).collect();
            some.push(Orders::of(size.items, size.places, &orders)?);
            known.push(of_shopper);
            selected.push(numbers);
        }
        Ok(Self { world, kernel, selector, reader: world.model.reader()?, scratch, all, known, selected, some })
    }

    /// Numbers of the orders that FPSM selects of each slate.
    pub(crate) fn selected(&self) -> &[Vec<usize>] {
        &self.selected
    }

    /// Times of the kernel: what a page's slates need, and what a history needs once.
    pub(crate) fn kernel(&mut self, count: usize) -> Result<Times> {
        let Self { world, kernel, selector, scratch, all, known, some, .. } = self;
        let (mut chosen, most) = (all.clone(), world.size.some);
        let times = vec![
            (
                "score all",
                timed(world, count, |at, asked| Ok(kernel.score(&request(world, asked), &known[at].0, all, scratch)?.best))?,
            ),
            (
                "score some",
                timed(world, count, |at, asked| {
                    Ok(kernel.score(&request(world, asked), &known[at].0, &some[at], scratch)?.best)
                })?,
            ),
            (
                "select",
                timed(world, count, |at, asked| {
                    let wanted = Wanted { most, at_ms: world.visit(asked).at_ms };
                    Ok(selector.select(kernel, &request(world, asked), &known[at].1, all, wanted, scratch)?.len())
                })?,
            ),
            (
                "select and score",
                timed(world, count, |at, asked| {
                    let (request, wanted) = (request(world, asked), Wanted { most, at_ms: world.visit(asked).at_ms });
                    all.choose_into(selector.select(kernel, &request, &known[at].1, all, wanted, scratch)?, &mut chosen);
                    Ok(kernel.score(&request, &known[at].0, &chosen, scratch)?.best)
                })?,
            ),
            ("encode history", timed(world, count, |_, asked| Ok(kernel.encode(&asked.pages(), scratch)?.len()))?),
        ];
        Ok(times)
    }

    /// Times of the candle model, which encodes the history each time.
    pub(crate) fn candle(&mut self, count: usize) -> Result<Times> {
        let Self { world, reader, selected, .. } = self;
        let some: Vec<Vec<Order>> =
            selected.iter().map(|numbers| numbers.iter().map(|number| world.all[*number].clone()).collect()).collect();
        let arrange = |asked: &Asked, orders: &[Order]| -> Result<usize> {
            let values = reader.values(&world.dataset, &world.visit(asked), &asked.point, orders)?;
            best(&values).context("there are orders")
        };
        Ok(vec![
            ("all", timed(world, count, |_, asked| arrange(asked, &world.all))?),
            ("some", timed(world, count, |at, asked| arrange(asked, &some[at]))?),
        ])
    }

    /// What the kernel says of all orders of all slates.
    pub(crate) fn values_all(&mut self) -> Result<Vec<Vec<f64>>> {
        let Self { world, kernel, scratch, all, known, .. } = self;
        let values = |(asked, known): (&Asked, &(History, Interest))| -> Result<Vec<f64>> {
            let scores = kernel.score(&request(world, asked), &known.0, all, scratch)?;
            Ok(scores.values.iter().map(|value| f64::from(*value)).collect())
        };
        world.slates.iter().zip(&*known).map(values).collect()
    }

    /// What the candle model says of them.
    pub(crate) fn candle_values_all(&self) -> Result<Vec<Vec<f64>>> {
        let world = self.world;
        let values = |asked: &Asked| Ok(self.reader.values(&world.dataset, &world.visit(asked), &asked.point, &world.all)?);
        world.slates.iter().map(values).collect()
    }

    /// Of the sequences of values that MLP_1 would see, the share that are different, over all orders of all slates.
    pub(crate) fn sharing(&self) -> f64 {
        let (fields, world) = (self.world.fields(), self.world);
        let different = |asked: &Asked, field: usize| {
            let value = |item: &usize| asked.values[item * fields + field];
            let mut sequences: Vec<Vec<u32>> = world.all.iter().map(|order| order.iter().map(value).collect()).collect();
            sequences.sort_unstable();
            sequences.dedup();
            sequences.len()
        };
        let total: usize = world.slates.iter().flat_map(|asked| (0..fields).map(move |field| different(asked, field))).sum();
        total as f64 / (world.slates.len() * fields * world.all.len()) as f64
    }
}

fn request<'a>(world: &World, asked: &'a Asked) -> RerankRequest<'a> {
    let shopper = Some(world.dataset.visit(asked.page).shopper);
    RerankRequest { shopper, items: &asked.values, point: &asked.point }
}

/// Times of `arrange` over so many slates, one after the other, µs.
fn timed(world: &World, count: usize, mut arrange: impl FnMut(usize, &Asked) -> Result<usize>) -> Result<Vec<f64>> {
    let mut times_us = Vec::with_capacity(count);
    for at in (0..world.slates.len()).cycle().take(count) {
        let start = Instant::now();
        black_box(arrange(at, &world.slates[at])?);
        times_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times_us)
}
