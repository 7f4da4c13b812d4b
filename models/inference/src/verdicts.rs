//! What a relevance verdict is about and what it is known by: shared by all who judge products, so that each pair is asked about once.

use endcap_schemas::Product;

use crate::{Pair, prompts};

/// Name of the cache of verdicts in a store: the probability, four bytes, little endian.
pub const CACHE: &str = "verdicts";
/// Version of what a verdict means: part of its key. Raise it when [`pair`] changes.
pub const POLICY_VERSION: &str = "1";

/// The pair that is judged for a theme's text and a product.
pub fn pair(theme_text: &str, product: &Product) -> Pair {
    Pair { theme: theme_text.to_owned(), product: prompts::product_text(product) }
}

/// What a verdict is known by: the texts that the model sees, and what makes and reads them. The product's id is left out on purpose:
/// sizes and brands of one thing share their text and so their verdict (in the demo market a fifth of the pairs), and a product that was
/// renamed is judged again.
pub fn verdict_key(pair: &Pair, model: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [&pair.theme, &pair.product, model, POLICY_VERSION, prompts::VERSION] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The probability that a cache's bytes hold; `None` where they hold none.
pub fn probability_of(bytes: &[u8]) -> Option<f32> {
    Some(f32::from_le_bytes(bytes.try_into().ok()?))
}
