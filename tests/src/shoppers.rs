//! What the shoppers of a test do: events of every kind drawn from a seed, with times around the clock's.

use endcap_market::{DEMO_SEED, Market};
use endcap_runtime::Clock;
use endcap_schemas::{Budget, Diet, EventKind, Line, Preference, ShopperEvent, UserKey};

use crate::Draw;

/// Products that one shopper ever buys: fewer than a state remembers, so that its counts are whole.
const PRODUCTS: usize = 12;
/// Most products of one event.
const LINES: u64 = 3;
/// How far a sender's clock may run ahead and is taken, ms: below the five minutes of the context stage, less the time that the log may be
/// down.
const AHEAD_MS: u64 = 270_000;
/// How far events lie back, ms.
const RECENT_MS: u64 = 60_000;
const LONG_AGO_MS: u64 = 200 * 86_400_000;
/// Beyond every skew that is taken, ms.
const FUTURE_MS: i64 = 86_400_000;
const UNKNOWN_PRODUCT: &str = "no-such-product";

/// Draws events. Some of them cannot be taken, or in part: unknown products, a time that lies too far ahead.
pub struct Shoppers {
    draw: Draw,
    products: Vec<String>,
    tenants: [String; 2],
    shoppers: u64,
    count: u64,
}

impl Shoppers {
    /// So many `shoppers` of a seed, of two tenants, who buy what the demo market has.
    pub fn of(seed: u64, shoppers: u64) -> Self {
        let products = Market::generate(DEMO_SEED).products.into_iter().map(|product| product.id).collect();
        let tenants = [UserKey::DEFAULT_TENANT, "alpine"].map(str::to_owned);
        Self { draw: Draw::new(seed, "shoppers"), products, tenants, shoppers, count: 0 }
    }

    /// From now on others, whose tenants' names begin with `name`: nobody has heard of them.
    pub fn anew(&mut self, name: &str) {
        self.tenants = ["a", "b"].map(|tenant| format!("{name}{tenant}"));
    }

    /// The next event of somebody.
    pub fn next_event(&mut self, clock: &dyn Clock) -> ShopperEvent {
        self.count += 1;
        let number = self.draw.below(self.shoppers);
        let mut event = ShopperEvent {
            id: format!("e{}", self.count),
            tenant: self.tenants[number as usize % 2].clone(),
            user: format!("shopper-{number:02}"),
            at_ms: self.moment(clock.now_ms()),
            kind: EventKind::Purchase,
            lines: Vec::new(),
            preference: None,
            personalise: None,
        };
        match self.draw.below(1_000) {
            0..700 => event.lines = self.lines(number),
            700..780 => (event.kind, event.lines) = (EventKind::View, self.lines(number)),
            780..840 => (event.kind, event.lines) = (EventKind::CartAdd, self.lines(number)),
            840..920 => (event.kind, event.preference) = (EventKind::Preference, Some(self.preference())),
            920..960 => (event.kind, event.personalise) = (EventKind::Consent, Some(self.draw.per_mille(800))),
            960..970 => event.kind = EventKind::Erase,
            970..985 => {
                event.lines = self.lines(number);
                event.at_ms = clock.now_ms() + FUTURE_MS;
            }
            985..992 => event.lines = vec![unknown()],
            _ => {
                event.lines = self.lines(number);
                event.lines.push(unknown());
            }
        }
        event
    }

    /// When it happened by its sender's clock.
    fn moment(&mut self, now_ms: i64) -> i64 {
        let back = |ms: u64| now_ms - i64::try_from(ms).unwrap_or(0);
        match self.draw.below(10) {
            0..6 => back(self.draw.below(RECENT_MS)),
            6..8 => back(self.draw.below(LONG_AGO_MS)),
            _ => now_ms + i64::try_from(self.draw.below(AHEAD_MS)).unwrap_or(0),
        }
    }

    /// Products of those that are the shopper's own.
    fn lines(&mut self, number: u64) -> Vec<Line> {
        let first = number as usize * PRODUCTS * 7;
        let count = self.draw.between(1, LINES + 1);
        let product = |at: usize| self.products[(first + at * 31) % self.products.len()].clone();
        let places: Vec<usize> = (0..count).map(|_| self.draw.place(PRODUCTS)).collect();
        places.into_iter().map(|at| Line { product: product(at), quantity: 1 }).collect()
    }

    fn preference(&mut self) -> Preference {
        let budgets = [Budget::Low, Budget::Middle, Budget::High];
        Preference {
            diets: self.draw.per_mille(500).then(|| [*self.draw.one_of(&Diet::ALL)].into_iter().collect()),
            budget: Some(*self.draw.one_of(&budgets)),
            locale: None,
            dislikes: self.draw.per_mille(300).then(|| vec!["peas".to_owned()]),
        }
    }
}

/// A product that no catalogue has.
fn unknown() -> Line {
    Line { product: UNKNOWN_PRODUCT.to_owned(), quantity: 1 }
}
