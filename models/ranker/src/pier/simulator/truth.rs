//! What really makes shoppers click: hidden from the log, the models and the logging policy.
//!
//! The log-odds of a click on the item at a place are a sum, whose terms are what list-wise models are about: what the shopper thinks of the item
//! by itself; the place; its price beside its neighbours'; whether its neighbours are something else, or the same thing again; what the whole
//! set has in it, in whatever order; and how the shopper likes the page to be arranged, which changes slowly from visit to visit.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Catalogue, Product, SLATE};
use crate::{
    pier::Order,
    random::{normal, stream},
};

const PRODUCT_STREAM: u64 = 71;
const SHOPPER_STREAM: u64 = 72;

/// Log-odds of a click, all else being nothing.
const BASE: f64 = -1.6;
/// Loss from one place to the next, in logarithms of the place.
const PLACE: f64 = 0.8;
/// Worth of being cheaper than the item before and than the one after, per unit of price and of sensitivity.
const CHEAPER_THAN_BEFORE: f64 = 0.4;
const CHEAPER_THAN_NEXT: f64 = 0.2;
/// Worth of neighbours of other categories.
const VARIETY: f64 = 0.35;
/// Loss by a substitute right beside, and one further.
const SUBSTITUTES: [f64; 2] = [0.5, 0.2];
/// Order-free: worth of a much dearer item somewhere on the page, and loss by each item of the own category.
const ANCHOR: f64 = 0.25;
const CROWD: f64 = 0.12;
/// A price that is so much higher makes an anchor.
const ANCHOR_GAP: f64 = 0.4;
/// Strength of the interest in arrangements, if nothing else is said, and how much of it stays from one visit to the next.
const ARRANGEMENT: f64 = 0.3;
const STAYS: f64 = 0.95;
/// Ways in which an arrangement is looked at: cheap to dear, popular first, categories together.
pub const LOOKS: usize = 3;
/// Kinds of product within a category; products of one kind replace each other.
const KINDS: usize = 3;

/// A shopper on one visit.
#[derive(Debug, Clone, PartialEq)]
pub struct Shopper {
    /// Fondness of each category.
    tastes: Vec<f64>,
    /// How much prices count.
    thrift: f64,
    /// Interest in each look of an arrangement, on this visit.
    pub interest: [f64; LOOKS],
}

impl Shopper {
    /// The same, but to whom all arrangements are alike.
    pub fn without_interest(self) -> Self {
        Self { interest: [0.0; LOOKS], ..self }
    }
}

/// The truth about products and shoppers.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    seed: u64,
    categories: usize,
    /// Strength of the interest in arrangements.
    arrangement: f64,
    /// What each product is worth by itself, by number.
    quality: Vec<f64>,
    /// The kind of each product within its category.
    kind: Vec<usize>,
}

impl Truth {
    /// Draws the truth about a catalogue's products. Popular ones are better on the whole.
    pub fn new(seed: u64, catalogue: &Catalogue) -> Self {
        let mut rng = stream(&[PRODUCT_STREAM, seed]);
        let drawn = catalogue.products.iter().map(|product| {
            let quality = 1.6 * (product.popularity - 0.5) + 0.6 * normal(&mut rng);
            (quality, rng.random_range(0..KINDS))
        });
        let (quality, kind) = drawn.unzip();
        Self { seed, categories: catalogue.size.categories, arrangement: ARRANGEMENT, quality, kind }
    }

    /// The same, but that the interest in arrangements counts so many times as much.
    pub fn with_interest(self, times: f64) -> Self {
        Self { arrangement: times * ARRANGEMENT, ..self }
    }

    /// A shopper on their visit `session`, from 0.
    pub fn shopper(&self, shopper: u64, session: u64) -> Shopper {
        let mut rng = stream(&[SHOPPER_STREAM, self.seed, shopper]);
        let tastes = (0..self.categories).map(|_| 0.6 * normal(&mut rng)).collect();
        let thrift = rng.random_range(0.2..2.0);
        let look = |rng: &mut ChaCha8Rng| [(); LOOKS].map(|()| normal(rng));
        let mut interest = look(&mut rng);
        for _ in 0..session {
            let change = look(&mut rng);
            interest.iter_mut().zip(change).for_each(|(now, change)| *now = STAYS * *now + (1.0 - STAYS * STAYS).sqrt() * change);
        }
        Shopper { tastes, thrift, interest }
    }

    /// Click probability of the item at each place of `order`, which shows [`SLATE`] of the products.
    pub fn clicks(&self, shopper: &Shopper, products: &[&Product], order: &Order) -> [f64; SLATE] {
        let page: [&Product; SLATE] = std::array::from_fn(|place| products[order[place]]);
        let liked = shopper.interest.iter().zip(looks(&page)).map(|(interest, look)| interest * look).sum::<f64>();
        std::array::from_fn(|place| {
            let log_odds = BASE + self.alone(shopper, page[place]) - PLACE * (1.0 + place as f64).ln()
                + prices(shopper, &page, place)
                + self.neighbours(&page, place)
                + in_company(&page, place)
                + self.arrangement * liked;
            1.0 / (1.0 + (-log_odds).exp())
        })
    }

    /// What the shopper thinks of an item by itself.
    fn alone(&self, shopper: &Shopper, product: &Product) -> f64 {
        self.quality[product.id] + shopper.tastes[product.category]
    }

    /// Variety beside an item, and substitutes near by.
    fn neighbours(&self, page: &[&Product; SLATE], place: usize) -> f64 {
        let own = page[place];
        page.iter().enumerate().filter(|(other, _)| *other != place).fold(0.0, |sum, (other, product)| {
            let (gap, same) = (other.abs_diff(place), product.category == own.category);
            let variety = if gap == 1 && !same { VARIETY / 2.0 } else { 0.0 };
            let replaces = same && self.kind[product.id] == self.kind[own.id];
            sum + variety - if replaces { SUBSTITUTES.get(gap - 1).copied().unwrap_or(0.0) } else { 0.0 }
        })
    }
}

/// The item's price beside those of the item before and the one after.
fn prices(shopper: &Shopper, page: &[&Product; SLATE], place: usize) -> f64 {
    let contrast = |other: Option<&&Product>| other.map_or(0.0, |other| other.price - page[place].price);
    let before = contrast(place.checked_sub(1).map(|before| &page[before]));
    shopper.thrift * (CHEAPER_THAN_BEFORE * before + CHEAPER_THAN_NEXT * contrast(page.get(place + 1)))
}

/// What the set means to an item of it, in whatever order: a dear one beside makes it look cheap, others of its category crowd it.
fn in_company(page: &[&Product; SLATE], place: usize) -> f64 {
    let own = page[place];
    let anchored = page.iter().any(|other| other.price - own.price >= ANCHOR_GAP);
    let crowd = page.iter().filter(|other| other.category == own.category).count() - 1;
    let anchor = if anchored { ANCHOR } else { 0.0 };
    anchor - CROWD * crowd as f64
}

/// How much a page has of each look.
pub(super) fn looks(page: &[&Product; SLATE]) -> [f64; LOOKS] {
    let together = page.windows(2).filter(|pair| pair[0].category == pair[1].category).count() as f64 / (SLATE - 1) as f64;
    [slope(page.map(|product| product.price)), -slope(page.map(|product| product.popularity)), together]
}

/// How much values rise along the places: about −1…1.
fn slope(values: [f64; SLATE]) -> f64 {
    let middle = (SLATE - 1) as f64 / 2.0;
    values.iter().enumerate().map(|(place, value)| (place as f64 - middle) * value).sum::<f64>() / (SLATE as f64 / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pier::simulator::CatalogueSize;

    fn product(id: usize, category: usize, price: f64) -> Product {
        Product { id, category, brand: 0, price_level: 0, price, popularity: 0.5 }
    }

    /// A truth in which products are worth the same and are of one kind, and a shopper without any taste or interest.
    fn plain(thrift: f64, interest: [f64; LOOKS]) -> (Truth, Shopper) {
        let truth = Truth { seed: 0, categories: 5, arrangement: ARRANGEMENT, quality: vec![0.0; 9], kind: vec![0; 9] };
        (truth, Shopper { tastes: vec![0.0; 5], thrift, interest })
    }

    fn log_odds(probability: f64) -> f64 {
        (probability / (1.0 - probability)).ln()
    }

    /// Log-odds at each place of a page of these categories and prices.
    fn page_of(thrift: f64, interest: [f64; LOOKS], categories: [usize; SLATE], prices: [f64; SLATE]) -> [f64; SLATE] {
        let (truth, shopper) = plain(thrift, interest);
        let products: [Product; SLATE] = std::array::from_fn(|id| product(id, categories[id], prices[id]));
        let products: [&Product; SLATE] = std::array::from_fn(|id| &products[id]);
        truth.clicks(&shopper, &products, &(0..SLATE).collect()).map(log_odds)
    }

    #[test]
    fn each_effect_has_its_sign_and_its_size() {
        let (mixed, level) = ([0, 1, 2, 3, 4], [0.5; SLATE]);
        let plain = page_of(0.0, [0.0; LOOKS], mixed, level);
        let near = |got: f64, wanted: f64, what: &str| assert!((got - wanted).abs() < 1e-9, "{what}: {got}, not {wanted}");
        near(plain[3] - plain[1], -PLACE * 2.0_f64.ln(), "place");
        let dear_first = page_of(1.0, [0.0; LOOKS], mixed, [0.8, 0.5, 0.5, 0.5, 0.5]);
        near(dear_first[1] - plain[1], 0.3 * CHEAPER_THAN_BEFORE, "cheaper than the one before");
        near(dear_first[0] - plain[0], -0.3 * CHEAPER_THAN_NEXT, "dearer than the next");
        let crowded = page_of(0.0, [0.0; LOOKS], [0, 0, 2, 0, 4], level);
        near(
            crowded[0] - plain[0],
            -VARIETY / 2.0 - SUBSTITUTES[0] - 2.0 * CROWD,
            "one of its kind beside, one too far to matter",
        );
        near(crowded[1] - plain[1], -VARIETY / 2.0 - SUBSTITUTES[0] - SUBSTITUTES[1] - 2.0 * CROWD, "one beside, one further");
        let anchored = page_of(0.0, [0.0; LOOKS], mixed, [0.5, 0.5, 0.5, 0.5, 0.95]);
        near(anchored[0] - plain[0], ANCHOR, "a dear one somewhere");
        near(anchored[4] - plain[4], 0.0, "the dear one itself");
        let rising = page_of(0.0, [1.0, 0.0, 0.0], mixed, [0.1, 0.2, 0.3, 0.4, 0.5]);
        let falling = page_of(0.0, [1.0, 0.0, 0.0], mixed, [0.5, 0.4, 0.3, 0.2, 0.1]);
        near(rising[4] - plain[4], ARRANGEMENT * 0.4, "cheap to dear, for somebody who likes it");
        near(falling[0] - plain[0], -ARRANGEMENT * 0.4, "dear to cheap, for the same");
    }

    #[test]
    fn the_set_counts_in_any_order_alike() {
        let catalogue = Catalogue::new(1, CatalogueSize::default());
        for session in 0..50 {
            let set = catalogue.candidate_set(1, session);
            let products = catalogue.of(&set);
            let backwards: [&Product; SLATE] = std::array::from_fn(|place| products[SLATE - 1 - place]);
            for place in 0..SLATE {
                assert_eq!(in_company(&products, place), in_company(&backwards, SLATE - 1 - place));
            }
        }
    }

    #[test]
    fn interest_in_arrangements_drifts_and_keeps_its_spread() {
        let truth = Truth::new(3, &Catalogue::new(1, CatalogueSize::default()));
        let (mut together, mut squares) = ([0.0; 2], 0.0);
        const SHOPPERS: u64 = 2_000;
        for shopper in 0..SHOPPERS {
            let [first, next, late] = [4, 5, 44].map(|session| truth.shopper(shopper, session).interest[0]);
            together[0] += first * next / SHOPPERS as f64;
            together[1] += first * late / SHOPPERS as f64;
            squares += late * late / SHOPPERS as f64;
        }
        assert!((squares - 1.0).abs() < 0.15, "variance {squares}");
        assert!((together[0] - STAYS).abs() < 0.15, "from one visit to the next {}", together[0]);
        assert!((together[1] - STAYS.powi(40)).abs() < 0.1, "after forty visits {}", together[1]);
    }
}
