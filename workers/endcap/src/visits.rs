//! Simulated shoppers who visit their storefronts: they look, click and buy by the market's truth, and what they do goes the way of all
//! feedback. So the loop closes: the policy learns what they like, and they see what it has learnt.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use endcap_market::{Act, Deed, Market};
use endcap_ranking::{Ranking, Request, Storefront, feedback};
use endcap_runtime::{LogError, Shutdown};
use endcap_schemas::Product;
use serde_json::{Value, json};

use crate::desk::Desk;

/// Who visits.
pub struct Visitors {
    /// The market, whose truth they go by.
    pub market: Arc<Market>,
    /// Seed of the shoppers.
    pub seed: u64,
    /// How many there are.
    pub shoppers: u32,
    /// Visits a second, more than 0.
    pub rate: f64,
}

impl Visitors {
    /// Visits until `end`. What fails is told, and left out.
    pub fn run(&self, desk: &Desk, ranking: &Ranking, end: &Shutdown) {
        let (began_ms, every) = (desk.clock.now_ms(), Duration::from_secs_f64((1.0 / self.rate).clamp(0.001, 3_600.0)));
        for n in 0.. {
            if end.wait(every) {
                return;
            }
            if let Err(error) = self.visit(desk, ranking, &format!("visit-{}-{began_ms}-{n}", self.seed), n) {
                tracing::warn!(error = format!("{error:#}"), "a simulated shopper was not served");
            }
        }
    }

    /// The `n`-th visit: of whom, and what is done, follows from it and the seed.
    fn visit(&self, desk: &Desk, ranking: &Ranking, id: &str, n: u64) -> Result<()> {
        let household = self.market.household(self.seed, endcap_market::fnv1a([self.seed, n]) % u64::from(self.shoppers.max(1)));
        let request = Request { user: household.user.clone(), id: id.to_owned(), rerank: None };
        let storefront = ranking.storefront(&request).context("cannot show a storefront")?;
        let rows = rows(&storefront, &self.market);
        let deeds = self.market.visit(&household, &rows, n);
        let body = told(&storefront, &deeds);
        if body.is_empty() {
            return Ok(());
        }
        let (feedback, taken) = feedback::read(Value::from(body).to_string().as_bytes(), ranking.key())?;
        match desk.learn(&feedback, taken) {
            // The learner is behind: what is lost of a simulation is no harm.
            Err(error) if matches!(error.downcast_ref(), Some(LogError::Full { .. })) => Ok(()),
            learnt => learnt.map(drop),
        }
    }
}

/// The products of a storefront, as the market knows them.
pub(crate) fn rows<'a>(storefront: &Storefront, market: &'a Market) -> Vec<Vec<&'a Product>> {
    let placements = storefront.placements.iter();
    placements.map(|placement| placement.products.iter().filter_map(|shown| market.product(&shown.card.id)).collect()).collect()
}

/// What was done, as a program tells it: an entry for each slate.
pub(crate) fn told(storefront: &Storefront, deeds: &[Deed]) -> Vec<Value> {
    let mut entries = Vec::new();
    for (row, placement) in storefront.placements.iter().enumerate() {
        let of = |least: Act| {
            let done = deeds.iter().filter(|deed| deed.row == row && deed.act >= least);
            done.filter_map(|deed| Some(placement.products.get(deed.place)?.card.id.as_str())).collect::<Vec<_>>()
        };
        let seen = of(Act::Seen);
        if !seen.is_empty() {
            let (clicks, cart_adds) = (of(Act::Clicked), of(Act::Carted));
            entries.push(json!({ "slate": placement.slate, "impressions": seen, "clicks": clicks, "cart_adds": cart_adds }));
        }
    }
    entries
}
