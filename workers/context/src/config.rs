//! Limits and weights of the fold.

use std::time::Duration;

use endcap_runtime::outside;
use endcap_schemas::EventKind;
use serde::{Deserialize, Serialize};

/// Settings of the context stage. Units stand in the names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextConfig {
    /// Favourite categories in a snapshot.
    pub favourites_max: usize,
    /// Purchases in a snapshot, and in the state.
    pub recent_max: usize,
    /// Categories that the state remembers; the lightest are forgotten first.
    pub leaves_max: usize,
    /// Event ids that the state remembers, to know a sender's repetition.
    pub ids_max: usize,
    /// After this many days an event weighs half, on the clock of the events.
    pub half_life_days: f64,
    /// Weight of a purchased product.
    pub purchase_weight: f64,
    /// Weight of a product put into the cart.
    pub cart_weight: f64,
    /// Weight of a product looked at.
    pub view_weight: f64,
    /// How far the sender's clock may run ahead of the log's, in seconds.
    pub future_max_s: u64,
    /// How long a page is worth making after the log took its event, in seconds.
    pub expires_s: u64,
    /// Locale of a household that stated none.
    pub locale: String,
    /// Whether pages are personal before a household said anything about it.
    pub personalise: bool,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self {
            favourites_max: 16,
            recent_max: 16,
            leaves_max: 64,
            ids_max: 256,
            half_life_days: 60.0,
            purchase_weight: 1.0,
            cart_weight: 0.5,
            view_weight: 0.2,
            future_max_s: 300,
            expires_s: 86_400,
            locale: "en".to_owned(),
            personalise: true,
        }
    }
}

impl ContextConfig {
    /// Weight of a product in an event of `kind`; 0 for events without products.
    pub fn weight(&self, kind: EventKind) -> f64 {
        match kind {
            EventKind::Purchase => self.purchase_weight,
            EventKind::CartAdd => self.cart_weight,
            EventKind::View => self.view_weight,
            EventKind::Preference | EventKind::Consent | EventKind::Erase => 0.0,
        }
    }

    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        [
            outside("favourites_max", self.favourites_max, 1..=100),
            outside("recent_max", self.recent_max, 1..=100),
            outside("leaves_max", self.leaves_max, 1..=1_000),
            outside("ids_max", self.ids_max, 1..=10_000),
            outside("half_life_days", self.half_life_days, 0.01..=36_500.0),
            outside("purchase_weight", self.purchase_weight, 0.0..=1_000.0),
            outside("cart_weight", self.cart_weight, 0.0..=1_000.0),
            outside("view_weight", self.view_weight, 0.0..=1_000.0),
            outside("future_max_s", self.future_max_s, 0..=86_400),
            outside("expires_s", self.expires_s, 1..=315_576_000),
        ]
        .into_iter()
        .flatten()
        .chain(
            self.locale.trim().is_empty().then(|| "`locale` must be a language tag such as en, an empty text is not".to_owned()),
        )
        .collect()
    }

    /// The largest skew allowed, ms.
    pub fn future_max_ms(&self) -> i64 {
        millis(self.future_max_s)
    }

    /// From acceptance to expiry, ms.
    pub fn expires_ms(&self) -> i64 {
        millis(self.expires_s)
    }
}

fn millis(seconds: u64) -> i64 {
    i64::try_from(Duration::from_secs(seconds).as_millis()).unwrap_or(i64::MAX / 4)
}
