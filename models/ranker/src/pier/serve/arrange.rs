//! The best order of a slate: of all, or of those that a search comes upon.

use super::{
    super::{Order, guided, orders::count},
    EXACT_MAX,
    kernel::Kernel,
    request::{History, Orders, RerankRequest},
    score::Scratch,
};
use crate::SlateError;

/// An arranged slate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arranged<'a> {
    /// Places in the slate of the items that are shown, from the first on.
    pub order: &'a [u8],
    /// What the order is worth.
    pub value: f32,
    /// Orders that were scored.
    pub calls: usize,
}

impl Kernel {
    /// The best order of a slate: of all, where those are at most [`EXACT_MAX`]; else the best of at most `calls_max`, one at least, that [`guided`]
    /// comes upon from the order in which the items come.
    ///
    /// # Errors
    /// When the slate or the history is not such as the weights can see.
    pub fn arrange<'a>(
        &'a self,
        request: &RerankRequest<'a>,
        history: &'a History,
        calls_max: usize,
        scratch: &'a mut Scratch,
    ) -> Result<Arranged<'a>, SlateError> {
        self.check(request)?;
        let (items, shown) = (request.point.len(), self.places());
        if count(items, shown) > EXACT_MAX {
            return self.search(request, history, calls_max, scratch);
        }
        let orders = scratch.all_orders(items, shown)?;
        let scored = self.score(request, history, &orders, scratch).map(|scores| (scores.best, scores.values[scores.best]));
        let found = scored.map(|(best, value)| (best, value, orders.len()));
        if let Ok((best, ..)) = found {
            scratch.found.clear();
            scratch.found.extend(orders.get(best));
        }
        scratch.all.push(orders);
        let (_, value, calls) = found?;
        Ok(Arranged { order: &scratch.found, value, calls })
    }

    fn search<'a>(
        &'a self,
        request: &RerankRequest<'a>,
        history: &'a History,
        calls_max: usize,
        scratch: &'a mut Scratch,
    ) -> Result<Arranged<'a>, SlateError> {
        let (items, shown) = (request.point.len(), self.places());
        let as_they_come: Order = (0..shown).collect();
        let mut prepared = self.prepare(request, history, scratch)?;
        let found = guided(items, &[as_they_come], calls_max.max(1), |orders: &[Order]| -> Result<Vec<f64>, SlateError> {
            if orders.is_empty() {
                return Ok(Vec::new());
            }
            let scores = prepared.score(&Orders::of(items, shown, orders)?)?;
            Ok(scores.values.iter().map(|value| f64::from(*value)).collect())
        })?;
        let scratch = prepared.into_scratch();
        scratch.found.clear();
        scratch.found.extend(found.order.iter().map(|item| *item as u8));
        Ok(Arranged { order: &scratch.found, value: found.value as f32, calls: found.calls })
    }
}

impl Scratch {
    /// All orders of slates of a size, taken out: they are made once.
    fn all_orders(&mut self, items: usize, shown: usize) -> Result<Orders, SlateError> {
        match self.all.iter().position(|orders| (orders.items(), orders.shown()) == (items, shown)) {
            Some(at) => Ok(self.all.swap_remove(at)),
            None => Orders::all(items, shown),
        }
    }
}
