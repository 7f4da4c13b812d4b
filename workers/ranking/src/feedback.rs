//! The way in for feedback: what shoppers did with a slate, as it is told over HTTP, to a record that can be learnt from. Pure.
//!
//! A body is one entry or an array of them. Each is judged on its own; what is wrong with one is told, all of it at once, and holds up no other.
//! An entry about a slate that was never shown is ignored: there is nothing to learn from it, and nothing to mend.

use std::collections::BTreeSet;

use endcap_schemas::{Action, ActionKind, Feedback};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::{
    metric,
    slate::{Key, Slate, SlateError},
};

/// Most entries of one body.
pub const ENTRIES_MAX: usize = 1_000;
/// Most products that one entry names in each of its lists.
const NAMED_MAX: usize = 100;

/// What a sender tells of one slate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with `slate`, `impressions`, `clicks` and `cart_adds`")]
struct Told {
    /// The slate, as it was answered.
    slate: String,
    /// Ids of products that came into sight.
    #[serde(default)]
    impressions: Vec<String>,
    /// Ids of products that were looked at.
    #[serde(default)]
    clicks: Vec<String>,
    /// Ids of products that were put into the cart.
    #[serde(default)]
    cart_adds: Vec<String>,
}

/// What became of a body.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeedbackTaken {
    /// Entries that will be learnt from, as far as they are news.
    pub accepted: usize,
    /// Entries about slates that were never shown.
    pub ignored: usize,
    /// Entries with faults.
    pub rejected: usize,
    /// One per entry, in order.
    pub results: Vec<EntryResult>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryResult {
    /// Its place in the body, from 0.
    pub index: usize,
    /// What became of it.
    pub status: EntryStatus,
    /// Why it is not accepted: everything that is wrong with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// What became of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryStatus {
    /// It goes to the learner.
    Accepted,
    /// Its slate was never shown.
    Ignored,
    /// Its sender must mend it.
    Rejected,
}

/// Why a body is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// It is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// It has nothing in it.
    #[error("the body holds no feedback")]
    Empty,
    /// It has too many entries.
    #[error("the body holds {0} entries, at most {ENTRIES_MAX} are taken: send them in several requests")]
    TooMany(usize),
}

/// Reads a body: what goes to the learner, and what is answered.
///
/// # Errors
/// [`BodyFault`] when it is refused as a whole.
pub fn read(body: &[u8], key: &Key) -> Result<(Vec<Feedback>, FeedbackTaken), BodyFault> {
    let entries = entries(body)?;
    let (mut taken, mut feedback) = (FeedbackTaken { accepted: 0, ignored: 0, rejected: 0, results: Vec::new() }, Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let (status, reasons) = match judge(entry.get(), key) {
            Ok(told) => {
                feedback.push(told);
                (EntryStatus::Accepted, Vec::new())
            }
            Err((status, reasons)) => (status, reasons),
        };
        taken.results.push(EntryResult { index, status, reasons });
    }
    let count = |status| taken.results.iter().filter(|result| result.status == status).count();
    (taken.accepted, taken.ignored, taken.rejected) =
        (count(EntryStatus::Accepted), count(EntryStatus::Ignored), count(EntryStatus::Rejected));
    Ok((feedback, taken))
}

impl FeedbackTaken {
    /// Counts what became of the entries; call once they are in the log.
    pub fn count(&self) {
        for (outcome, entries) in [("accepted", self.accepted), ("ignored", self.ignored), ("rejected", self.rejected)] {
            if entries > 0 {
                metric::feedback(outcome, entries);
            }
        }
    }
}

fn entries(body: &[u8]) -> Result<Vec<&RawValue>, BodyFault> {
    let not_json = |error: serde_json::Error| BodyFault::NotJson(error.to_string());
    let start = body.trim_ascii_start();
    let entries: Vec<&RawValue> = match start.first() {
        None => Vec::new(),
        Some(b'[') => serde_json::from_slice(body).map_err(not_json)?,
        Some(_) => vec![serde_json::from_slice(body).map_err(not_json)?],
    };
    match entries.len() {
        0 => Err(BodyFault::Empty),
        count if count > ENTRIES_MAX => Err(BodyFault::TooMany(count)),
        _ => Ok(entries),
    }
}

/// One entry as feedback, or what is wrong with it.
fn judge(entry: &str, key: &Key) -> Result<Feedback, (EntryStatus, Vec<String>)> {
    let told: Told =
        serde_json::from_str(entry).map_err(|error| (EntryStatus::Rejected, vec![format!("not feedback: {error}")]))?;
    let slate = Slate::read(&told.slate, key).map_err(|error| match error {
        SlateError::Unknown | SlateError::Outdated => (EntryStatus::Ignored, vec![error.to_string()]),
    })?;
    let (mut actions, mut faults) = (BTreeSet::new(), Vec::new());
    let lists = [
        ("impressions", ActionKind::Impression, &told.impressions),
        ("clicks", ActionKind::Click, &told.clicks),
        ("cart_adds", ActionKind::CartAdd, &told.cart_adds),
    ];
    for (name, kind, products) in lists {
        if products.len() > NAMED_MAX {
            faults.push(format!("`{name}` names {} products, at most {NAMED_MAX} may be named", products.len()));
            continue;
        }
        for product in products {
            match slate.offers[..slate.shown].iter().position(|offer| offer.product == *product) {
                Some(place) => {
                    actions.insert(Action { offer: i32::try_from(place).unwrap_or(i32::MAX), kind });
                }
                None => faults.push(format!("`{name}`: product {product:?} is not on this slate")),
            }
        }
    }
    if actions.is_empty() && faults.is_empty() {
        faults.push("it tells of nothing: name products in `impressions`, `clicks` or `cart_adds`".to_owned());
    }
    if !faults.is_empty() {
        return Err((EntryStatus::Rejected, faults));
    }
    Ok(Feedback { actions: actions.into_iter().collect(), ..slate.feedback() })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use serde_json::json;

    use super::*;
    use crate::{
        features::{TRAITS, Traits},
        slate::Offered,
    };

    fn key() -> Key {
        Key::of(Some("a secret of the tests"), "demo")
    }

    fn slate() -> String {
        let offer = |product: &str| Offered { product: product.to_owned(), traits: Traits([9; TRAITS]), nominators: 3 };
        let offers = vec![offer("a"), offer("b"), offer("")];
        Slate { id: [1; 16], served_ms: 5, policy: 0, shuffled: false, shown: 2, offers }.write(&key())
    }

    #[test]
    fn each_entry_is_judged_on_its_own_and_all_its_faults_are_told() {
        let (good, other) = (slate(), slate().to_lowercase());
        let body = json!([
            { "slate": good, "impressions": ["a", "b", "a"], "clicks": ["b"] },
            { "slate": other, "impressions": ["a"] },
            { "slate": good, "clicks": ["a", "x"], "cart_adds": ["", "y"] },
            { "slate": good },
            { "slate": good, "impressions": [1] },
            { "slate": good, "likes": ["a"] },
            { "slate": good, "impressions": vec!["a"; NAMED_MAX + 1] },
            7,
        ]);
        let (feedback, taken) = read(body.to_string().as_bytes(), &key()).unwrap();
        assert_eq!((taken.accepted, taken.ignored, taken.rejected), (1, 1, 6));
        let actions: Vec<(i32, ActionKind)> = feedback[0].actions.iter().map(|action| (action.offer, action.kind)).collect();
        assert_eq!(actions, [(0, ActionKind::Impression), (1, ActionKind::Impression), (1, ActionKind::Click)]);
        assert!(feedback[0].check().is_ok() && feedback[0].shown == 2 && feedback[0].offers.len() == 3);
        assert_eq!(taken.results[2].reasons.len(), 3, "{:?}", taken.results[2]);
        for (at, part) in [
            (1, "never shown"),
            (3, "tells of nothing"),
            (4, "invalid type"),
            (5, "likes"),
            (6, "at most 100"),
            (7, "not feedback"),
        ] {
            let reasons = taken.results[at].reasons.join("; ");
            assert!(reasons.contains(part), "`{reasons}` does not say `{part}`");
        }
        let one = json!({ "slate": slate(), "cart_adds": ["a"] }).to_string();
        assert_eq!(read(one.as_bytes(), &key()).unwrap().1.accepted, 1);
    }

    #[test]
    fn a_body_that_is_none_is_refused_as_a_whole() {
        for (body, part) in [("", "no feedback"), ("[]", "no feedback"), ("{\"slate\": ", "not JSON"), ("[1, 2", "not JSON")] {
            let fault = read(body.as_bytes(), &key()).unwrap_err().to_string();
            assert!(fault.contains(part), "{body}: {fault}");
        }
        let many = format!("[{}1]", "1,".repeat(ENTRIES_MAX));
        assert_eq!(read(many.as_bytes(), &key()), Err(BodyFault::TooMany(ENTRIES_MAX + 1)));
    }

    #[test]
    fn whatever_comes_in_is_answered() {
        const SEED: u64 = 21;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let good = json!([{ "slate": slate(), "impressions": ["a"], "clicks": ["b"] }]).to_string();
        for trial in 0..3_000 {
            let mut body = good.clone().into_bytes();
            for _ in 0..rng.random_range(1..6) {
                let place = rng.random_range(0..body.len());
                match rng.random_range(0..3) {
                    0 => body[place] = rng.random(),
                    1 => body.truncate(place.max(1)),
                    _ => body.insert(place, b"[]{}\",:0"[rng.random_range(0..8)]),
                }
            }
            if let Ok((feedback, taken)) = read(&body, &key()) {
                assert_eq!(taken.results.len(), taken.accepted + taken.ignored + taken.rejected, "seed {SEED}, trial {trial}");
                assert!(feedback.iter().all(|feedback| feedback.check().is_ok()), "seed {SEED}, trial {trial}");
            }
        }
    }
}
