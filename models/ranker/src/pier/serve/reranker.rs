//! What a service holds and calls: the weights in use, and the best order of a slate.

use std::sync::{Arc, PoisonError, RwLock};

use super::{
    super::{EXACT_MAX, Order, guided, orders::count},
    file::read,
    kernel::Kernel,
    request::{History, Orders, RerankRequest},
    score::Scratch,
};
use crate::{SlateError, WeightsError};

/// The weights in use. New ones take their place while slates are being arranged: whoever has begun ends with those that it began with.
pub struct Reranker {
    current: RwLock<Arc<Kernel>>,
}

impl Reranker {
    /// Serves with these weights.
    pub fn new(kernel: Kernel) -> Self {
        Self { current: RwLock::new(Arc::new(kernel)) }
    }

    /// The weights in use, for one request.
    pub fn kernel(&self) -> Arc<Kernel> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves with what [`super::write`] gave from now on; returns its version.
    ///
    /// # Errors
    /// When the bytes are no such weights. Those in use go on serving.
    pub fn take(&self, bytes: &[u8]) -> Result<u64, WeightsError> {
        let kernel = Arc::new(read(bytes)?);
        let version = kernel.version();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = kernel;
        Ok(version)
    }
}

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
    /// The best order of a slate: of all, where those are at most [`EXACT_MAX`]; else the best of at most `calls_max` that [`guided`] comes upon
    /// from `start`, or from the order in which the items come where `start` is empty.
    ///
    /// # Errors
    /// When the slate, the history or an order of `start` is not such as the weights can see.
    pub fn arrange<'a>(
        &'a self,
        request: &RerankRequest<'a>,
        history: &'a History,
        (start, calls_max): (&[Order], usize),
        scratch: &'a mut Scratch,
    ) -> Result<Arranged<'a>, SlateError> {
        self.check(request)?;
        let (items, shown) = (request.point.len(), self.places());
        if count(items, shown) > EXACT_MAX {
            return self.search(request, history, (start, calls_max), scratch);
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
        (start, calls_max): (&[Order], usize),
        scratch: &'a mut Scratch,
    ) -> Result<Arranged<'a>, SlateError> {
        let (items, shown) = (request.point.len(), self.places());
        let as_they_come = [(0..shown).collect::<Order>()];
        let start = if start.is_empty() { &as_they_come } else { start };
        let mut prepared = self.prepare(request, history, scratch)?;
        let found = guided(items, start, calls_max.max(1), |orders: &[Order]| -> Result<Vec<f64>, SlateError> {
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
