//! Simulated shoppers: a deterministic source of events that can be entered anywhere.

use std::sync::Arc;

use endcap_schemas::{EventKind, Line, Preference, Season, ShopperEvent};
use rand::RngExt;

use crate::{
    Market,
    baskets::Basket,
    random::{stream, weighted},
};

const EVENT_STREAM: u64 = 21;
const TURN_STREAM: u64 = 22;

/// Households that state their preferences and then shop. In the first turn each shopper comes with a preference (diets and budget, if there is
/// anything to state) and a purchase; in every later turn each comes once, in another order.
#[derive(Debug, Clone)]
pub struct Shoppers {
    market: Arc<Market>,
    seed: u64,
    shoppers: u64,
    start_ms: i64,
    step_ms: i64,
    /// The first turn: who, and whether it is the preference.
    first: Vec<(u32, bool)>,
}

impl Shoppers {
    /// `shoppers` households of `seed`. The `n`-th event happens within `[n, n + 1) × step_ms` after `start_ms`: choose a start that far in the
    /// past, as events from the future are refused.
    pub fn new(market: Arc<Market>, seed: u64, shoppers: u32, start_ms: i64, step_ms: i64) -> Self {
        let shoppers = shoppers.max(1);
        let mut first = Vec::with_capacity(shoppers as usize * 2);
        for shopper in 0..shoppers {
            let household = market.household(seed, u64::from(shopper));
            if !household.diets.is_empty() || household.budget != Default::default() {
                first.push((shopper, true));
            }
            first.push((shopper, false));
        }
        Self { market, seed, shoppers: u64::from(shoppers), start_ms, step_ms: step_ms.max(1), first }
    }

    /// The `n`-th event (from 0), id `sim-<seed>-<n>`: a function of `n` and the arguments of [`Shoppers::new`] alone.
    pub fn event(&self, n: u64) -> ShopperEvent {
        let mut rng = stream(&[EVENT_STREAM, self.seed, n]);
        let at_ms = self.start_ms + n as i64 * self.step_ms + rng.random_range(0..self.step_ms);
        let (shopper, kind) = self.turn(n, &mut rng);
        let household = self.market.household(self.seed, shopper);
        let preference = (kind == EventKind::Preference).then(|| Preference {
            diets: Some(household.diets),
            budget: Some(household.budget),
            ..Preference::default()
        });
        let lines = match kind {
            EventKind::Preference => 0,
            EventKind::Purchase => rng.random_range(2..=6),
            _ => 1,
        };
        let basket = Basket::new(&self.market, &household, Season::at(at_ms));
        let products = basket.fill(lines, &mut rng);
        ShopperEvent {
            id: format!("sim-{}-{n}", self.seed),
            tenant: household.user.tenant.clone(),
            user: household.user.user.clone(),
            at_ms,
            kind,
            lines: products
                .into_iter()
                .map(|product| Line { product: product.id.clone(), quantity: rng.random_range(1..=3) })
                .collect(),
            preference,
            personalise: None,
        }
    }

    /// Events from the `n`-th on, without end.
    pub fn from(&self, n: u64) -> impl Iterator<Item = ShopperEvent> + '_ {
        (n..).map(|n| self.event(n))
    }

    /// Whose turn the `n`-th event is, and for what.
    fn turn(&self, n: u64, rng: &mut rand_chacha::ChaCha8Rng) -> (u64, EventKind) {
        if let Some((shopper, states)) = self.first.get(n as usize) {
            return (u64::from(*shopper), if *states { EventKind::Preference } else { EventKind::Purchase });
        }
        let n = n - self.first.len() as u64;
        let (turn, place) = (n / self.shoppers, n % self.shoppers);
        // An affine permutation: every shopper once a turn, each turn in another order, without remembering anything.
        let mut order = stream(&[TURN_STREAM, self.seed, turn]);
        let stride =
            (0..64).map(|_| order.random_range(0..self.shoppers)).find(|stride| coprime(*stride, self.shoppers)).unwrap_or(1);
        let shopper = (place * stride + order.random_range(0..self.shoppers)) % self.shoppers;
        let kinds = [EventKind::Purchase, EventKind::CartAdd, EventKind::View];
        (shopper, kinds[weighted(rng, &[0.84, 0.08, 0.08]).unwrap_or(0)])
    }
}

fn coprime(a: u64, b: u64) -> bool {
    if b == 0 { a == 1 } else { coprime(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::DEMO_SEED;

    const START_MS: i64 = 1_750_000_000_000;

    fn shoppers(count: u32) -> Shoppers {
        Shoppers::new(Arc::new(Market::generate(DEMO_SEED)), 5, count, START_MS, 60_000)
    }

    #[test]
    fn an_event_is_the_same_wherever_reading_began() {
        let source = shoppers(20);
        let all: Vec<ShopperEvent> = source.from(0).take(200).collect();
        assert_eq!(source.from(150).take(50).collect::<Vec<_>>(), all[150..]);
        assert_eq!(shoppers(20).event(77), all[77]);
        assert!(all.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
        assert!(all.iter().all(|event| event.check().is_ok()), "every event is acceptable");
    }

    #[test]
    fn shoppers_state_their_diets_before_they_buy_and_never_break_them() {
        let source = shoppers(100);
        let mut stated = HashMap::new();
        let (mut purchases, mut lines, mut liked) = (0, 0, 0);
        for event in source.from(0).take(1500) {
            let n: u64 = event.user.trim_start_matches("shopper-").parse::<u64>().unwrap() - 1;
            let household = source.market.household(5, n);
            if let Some(preference) = &event.preference {
                stated.insert(event.user.clone(), preference.diets.unwrap());
            }
            assert_eq!(stated.get(&event.user).copied().unwrap_or_default(), household.diets, "{}", event.user);
            purchases += usize::from(event.kind == EventKind::Purchase);
            for line in &event.lines {
                let product = source.market.product(&line.product).unwrap();
                assert!(!product.violates.intersects(household.diets), "{} bought {}", event.user, product.name);
                assert!(product.in_stock);
                lines += 1;
                liked += usize::from(household.favourites.iter().any(|like| like.category == product.category()));
            }
        }
        assert!(purchases > 1100, "{purchases} purchases of 1500 events");
        assert!((0.72..0.86).contains(&(liked as f64 / lines as f64)), "{liked} of {lines} lines follow the tastes");
    }

    #[test]
    fn every_shopper_comes_once_a_turn() {
        let source = shoppers(30);
        let first = source.first.len() as u64;
        for turn in 0..5 {
            let users: HashSet<String> = source.from(first + turn * 30).take(30).map(|event| event.user).collect();
            assert_eq!(users.len(), 30);
        }
    }

    #[test]
    fn households_buy_again_what_they_are_used_to() {
        let source = shoppers(10);
        let mut counts: HashMap<(String, String), usize> = HashMap::new();
        for event in source.from(0).take(300).filter(|event| event.kind == EventKind::Purchase) {
            for line in event.lines {
                *counts.entry((event.user.clone(), line.product)).or_default() += 1;
            }
        }
        let again = counts.values().filter(|count| **count >= 3).count();
        assert!(again >= 40, "{again} products were bought three times by the same household");
    }
}
