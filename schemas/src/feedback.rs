//! What shoppers did with a slate that they were shown: what the ranking service learns from.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ShopperEvent, UserKey};

/// What shoppers did with one slate, with all that is needed to learn from it. It names no shopper: what the ranking knew of them is in the
/// traits of each offer, and nothing else.
///
/// Or, with `put_back`, the wish that an earlier policy takes the place of the one that was learnt since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    /// Id of the slate, drawn when it was served.
    pub slate: String,
    /// When it was served, ms since 1970.
    pub served_ms: i64,
    /// Version of the policy that ordered it.
    pub policy: i64,
    /// Version of the traits.
    pub traits_version: i32,
    /// Of a shuffled slate, the odds that a given offer stands at a given place.
    pub propensity: Option<f64>,
    /// Every offer that was nominated: those of the slate in display order, then the others.
    pub offers: Vec<Offer>,
    /// How many of them stand on the slate.
    pub shown: i32,
    /// What was done.
    pub actions: Vec<Action>,
    /// Version of the policy to be put back; everything else is empty then.
    #[serde(default)]
    pub put_back: Option<i64>,
}

/// A product as it was offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Id of the product; empty where it was not shown.
    pub product: String,
    /// What the ranking knew of shopper, product and placement, each 0…255.
    pub traits: Vec<i32>,
    /// Who nominated it, one bit for each nominator.
    pub nominators: i32,
}

/// Something that a shopper did with an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Place of the offer on the slate, from 0.
    pub offer: i32,
    /// What was done.
    pub kind: ActionKind,
}

/// What can be done with an offer. Whatever comes after an impression says that there was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// It came into sight.
    Impression,
    /// It was looked at.
    Click,
    /// It was put into the cart.
    CartAdd,
}

impl ActionKind {
    /// Every kind.
    pub const ALL: [ActionKind; 3] = [ActionKind::Impression, ActionKind::Click, ActionKind::CartAdd];

    /// The kind as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            ActionKind::Impression => "impression",
            ActionKind::Click => "click",
            ActionKind::CartAdd => "cart_add",
        }
    }
}

/// Why nothing can be learnt from feedback.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FeedbackFault {
    /// A slate without a name, or with one that is too long.
    #[error("`slate` has {0} bytes, 1 to {max} are needed", max = ShopperEvent::TEXT_MAX_BYTES)]
    Slate(usize),
    /// The time is before 1970 or beyond what a timestamp of the store can hold.
    #[error("`served_ms` {0} is out of range")]
    Time(i64),
    /// Too many offers, or more shown than there are.
    #[error("{shown} of {offers} offers are shown, at most {max} may be, and no more than there are", max = Feedback::SHOWN_MAX)]
    Offers {
        /// Offers that are shown.
        shown: i32,
        /// Offers that there are.
        offers: usize,
    },
    /// A trait is out of range.
    #[error("trait {value} of offer {offer} is not within 0…255")]
    Trait {
        /// Place of the offer.
        offer: usize,
        /// What it is.
        value: i32,
    },
    /// An action is about an offer that was not shown.
    #[error("an action names place {0}, and the slate has no such place")]
    Place(i32),
}

impl Feedback {
    /// Most offers of a slate that are shown.
    pub const SHOWN_MAX: usize = 32;
    /// Most offers that were nominated.
    pub const OFFERS_MAX: usize = 256;

    /// Key of every record. They stand in one partition, in one order, as there is one policy that learns from them; no shopper has it, as
    /// no shopper's tenant is empty.
    pub fn key() -> UserKey {
        UserKey { tenant: String::new(), user: "ranking".to_owned() }
    }

    /// The wish that the policy of `version` is put back; `id` tells it from others.
    pub fn put_back(version: i64, id: String, at_ms: i64) -> Self {
        Self {
            slate: id,
            served_ms: at_ms,
            policy: version,
            traits_version: 0,
            propensity: None,
            offers: Vec::new(),
            shown: 0,
            actions: Vec::new(),
            put_back: Some(version),
        }
    }

    /// Checks everything that can be known without a policy.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), FeedbackFault> {
        if self.slate.is_empty() || self.slate.len() > ShopperEvent::TEXT_MAX_BYTES {
            return Err(FeedbackFault::Slate(self.slate.len()));
        }
        if !(0..=ShopperEvent::AT_MAX_MS).contains(&self.served_ms) {
            return Err(FeedbackFault::Time(self.served_ms));
        }
        let shown = usize::try_from(self.shown).unwrap_or(usize::MAX);
        if shown > Self::SHOWN_MAX || shown > self.offers.len() || self.offers.len() > Self::OFFERS_MAX {
            return Err(FeedbackFault::Offers { shown: self.shown, offers: self.offers.len() });
        }
        for (offer, Offer { traits, .. }) in self.offers.iter().enumerate() {
            if let Some(value) = traits.iter().find(|value| !(0..=255).contains(*value)) {
                return Err(FeedbackFault::Trait { offer, value: *value });
            }
        }
        let beyond = self.actions.iter().find(|action| !(0..self.shown).contains(&action.offer));
        beyond.map_or(Ok(()), |action| Err(FeedbackFault::Place(action.offer)))
    }
}
