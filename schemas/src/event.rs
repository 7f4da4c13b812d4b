//! What shoppers do: the events that enter at `endcap.shopper-events.v1`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{DietSet, UserKey};

/// One thing a shopper did. Flat, so that it reads the same in JSON and in Avro; [`ShopperEvent::check`] says what each kind needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShopperEvent {
    /// Chosen by the sender; a repeated id of the same user is harmless.
    pub id: String,
    /// Tenant of the user.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// The user.
    pub user: String,
    /// When it happened, milliseconds since 1970.
    pub at_ms: i64,
    /// What happened.
    pub kind: EventKind,
    /// The products of a purchase, cart add or view.
    #[serde(default)]
    pub lines: Vec<Line>,
    /// What a `preference` event states.
    #[serde(default)]
    pub preference: Option<Preference>,
    /// What a `consent` event states: whether pages may be personal.
    #[serde(default)]
    pub personalise: Option<bool>,
}

fn default_tenant() -> String {
    UserKey::DEFAULT_TENANT.to_owned()
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Products were bought.
    Purchase,
    /// A product was put into the cart.
    CartAdd,
    /// A product was looked at.
    View,
    /// The household stated diets, budget, locale or dislikes.
    Preference,
    /// Consent to personal pages was given or withdrawn.
    Consent,
    /// The user asked to be forgotten.
    Erase,
}

/// One product of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Id of the product in the catalogue.
    pub product: String,
    /// How many, at least 1.
    #[serde(default = "one")]
    pub quantity: i32,
}

fn one() -> i32 {
    1
}

/// What a household states about itself; absent parts stay as they were.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preference {
    /// The diets kept from now on.
    pub diets: Option<DietSet>,
    /// The budget from now on.
    pub budget: Option<Budget>,
    /// A BCP 47 language tag.
    pub locale: Option<String>,
    /// Words the household does not want to see.
    pub dislikes: Option<Vec<String>>,
}

/// How much a household looks at prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Looks for the lowest price.
    Low,
    /// Neither.
    #[default]
    Middle,
    /// Looks for quality.
    High,
}

impl Budget {
    /// The budget's word, as prompts write it.
    pub fn word(self) -> &'static str {
        match self {
            Budget::Low => "low",
            Budget::Middle => "middle",
            Budget::High => "high",
        }
    }
}

/// Season of the northern year, by month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Season {
    /// March to May.
    Spring,
    /// June to August.
    Summer,
    /// September to November.
    Autumn,
    /// December to February.
    Winter,
}

impl Season {
    /// Every season, from spring.
    pub const ALL: [Season; 4] = [Season::Spring, Season::Summer, Season::Autumn, Season::Winter];

    /// The season at `at_ms` (milliseconds since 1970, UTC).
    pub fn at(at_ms: i64) -> Self {
        // Days since 1 March 0000 in the proleptic Gregorian calendar; the month of the March-based year follows
        // from the day of that year (see "chrono-Compatible Low-Level Date Algorithms", H. Hinnant).
        let days = at_ms.div_euclid(86_400_000) + 719_468;
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        Self::ALL[(month_from_march / 3) as usize]
    }

    /// The season's word, as prompts and pages write it.
    pub fn word(self) -> &'static str {
        match self {
            Season::Spring => "spring",
            Season::Summer => "summer",
            Season::Autumn => "autumn",
            Season::Winter => "winter",
        }
    }
}

/// Why an event cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventFault {
    /// A required text is empty.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// A text or list is longer than the limit.
    #[error("`{field}` has {got} entries or bytes, at most {limit} are taken")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its size.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// A text holds a control character.
    #[error("`{0}` holds a control character")]
    Control(&'static str),
    /// A text holds the slash that separates tenant and user in a key.
    #[error("`{0}` holds a slash")]
    Slash(&'static str),
    /// The kind needs a part that is not there.
    #[error("a `{kind:?}` event needs `{needs}`")]
    Missing {
        /// The event's kind.
        kind: EventKind,
        /// The absent part.
        needs: &'static str,
    },
    /// A quantity is not between 1 and the limit.
    #[error("quantity {0} is not between 1 and {max}", max = ShopperEvent::QUANTITY_MAX)]
    Quantity(i32),
    /// The time is before 1970 or beyond what a timestamp of the store can hold.
    #[error("time {0} ms is out of range")]
    Time(i64),
}

impl ShopperEvent {
    /// Longest id, user, tenant, product id or word, in bytes.
    pub const TEXT_MAX_BYTES: usize = 256;
    /// Most lines of one event.
    pub const LINES_MAX: usize = 200;
    /// Most disliked words.
    pub const DISLIKES_MAX: usize = 50;
    /// Largest quantity of one line.
    pub const QUANTITY_MAX: i32 = 10_000;
    /// Latest time, the end of the year 9999: the store's timestamps are milliseconds × 1000 in an i64.
    pub const AT_MAX_MS: i64 = 253_402_300_799_000;

    /// The key of the event's record.
    pub fn key(&self) -> UserKey {
        UserKey { tenant: self.tenant.clone(), user: self.user.clone() }
    }

    /// Checks everything that can be known without a catalogue or a clock.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), EventFault> {
        text("id", &self.id)?;
        text("tenant", &self.tenant)?;
        text("user", &self.user)?;
        if self.tenant.contains('/') {
            return Err(EventFault::Slash("tenant"));
        }
        if !(0..=Self::AT_MAX_MS).contains(&self.at_ms) {
            return Err(EventFault::Time(self.at_ms));
        }
        limit("lines", self.lines.len(), Self::LINES_MAX)?;
        for line in &self.lines {
            text("product", &line.product)?;
            if !(1..=Self::QUANTITY_MAX).contains(&line.quantity) {
                return Err(EventFault::Quantity(line.quantity));
            }
        }
        if let Some(dislikes) = self.preference.as_ref().and_then(|p| p.dislikes.as_ref()) {
            limit("dislikes", dislikes.len(), Self::DISLIKES_MAX)?;
            dislikes.iter().try_for_each(|word| text("dislikes", word))?;
        }
        if let Some(locale) = self.preference.as_ref().and_then(|p| p.locale.as_ref()) {
            text("locale", locale)?;
        }
        let missing = |needs| Err(EventFault::Missing { kind: self.kind, needs });
        match self.kind {
            EventKind::Purchase | EventKind::CartAdd | EventKind::View if self.lines.is_empty() => missing("lines"),
            EventKind::Preference if self.preference.is_none() => missing("preference"),
            EventKind::Consent if self.personalise.is_none() => missing("personalise"),
            _ => Ok(()),
        }
    }
}

fn text(field: &'static str, value: &str) -> Result<(), EventFault> {
    if value.trim().is_empty() {
        return Err(EventFault::Empty(field));
    }
    limit(field, value.len(), ShopperEvent::TEXT_MAX_BYTES)?;
    if value.chars().any(char::is_control) {
        return Err(EventFault::Control(field));
    }
    Ok(())
}

fn limit(field: &'static str, got: usize, limit: usize) -> Result<(), EventFault> {
    if got > limit { Err(EventFault::TooLarge { field, got, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seasons_turn_on_the_first_of_their_month() {
        for (at_ms, season) in [
            (0, Season::Winter),                 // 1970-01-01
            (1_709_251_199_000, Season::Winter), // 2024-02-29 23:59:59
            (1_709_251_200_000, Season::Spring), // 2024-03-01
            (1_717_200_000_000, Season::Summer), // 2024-06-01
            (1_725_148_800_000, Season::Autumn), // 2024-09-01
            (1_733_011_200_000, Season::Winter), // 2024-12-01
        ] {
            assert_eq!(Season::at(at_ms), season, "{at_ms}");
        }
    }
}
