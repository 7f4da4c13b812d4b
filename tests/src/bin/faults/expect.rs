//! What must come of the events in a log, by the definitions alone: a second, smaller fold to hold the real one against.

use std::collections::{BTreeMap, BTreeSet};

use endcap_runtime::Received;
use endcap_schemas::{EventKind, ShopperEvent, UserKey, wire};

use crate::facts::{Place, key_of, place_of};

/// How far a sender's clock may run ahead of the log's, ms: the default of the context stage.
const FUTURE_MAX_MS: i64 = 300_000;

/// What must come of all events.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) shoppers: BTreeMap<UserKey, Shopper>,
    /// Dead letters of the context stage, by the place of their event.
    pub(crate) letters: BTreeMap<Place, Letter>,
    /// Erasures.
    pub(crate) erasures: u64,
    /// Events that change nothing.
    pub(crate) duplicates: u64,
    /// Ids of everything that stands in the log as an event.
    pub(crate) ids: BTreeSet<String>,
}

/// A dead letter that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) kind: &'static str,
    /// Whether an erasure of its shopper follows. Where a crash came between the erasure's write and the batch's commit, the event came again, and is
    /// dropped as an erased shopper's.
    pub(crate) is_erasable: bool,
}

/// What must be known of a shopper at the end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Shopper {
    /// How often each product was bought.
    pub(crate) bought: BTreeMap<String, i64>,
    /// Id of the last event that changed something; `None` for a shopper of whom nothing may be known.
    pub(crate) last: Option<String>,
    /// Whether pages may not be personal.
    is_private: bool,
    seen: BTreeSet<String>,
    /// Dead letters of this life.
    buried: Vec<Place>,
}

impl Expected {
    /// What must come of `events`, which stand in the order of the log per shopper. `is_known` tells products of the catalogue.
    pub(crate) fn of(events: &[Received], is_known: impl Fn(&str) -> bool) -> Self {
        let mut expected = Self::default();
        for record in events {
            match wire::decode::<ShopperEvent>(&record.value) {
                Ok(event) if event.key() != key_of(record) => expected.bury("wrong_key", place_of(record)),
                Ok(event) if event.check().is_ok() => expected.take(&event, record, &is_known),
                _ => expected.bury("malformed", place_of(record)),
            }
            expected.shoppers.entry(key_of(record)).or_default();
        }
        expected
    }

    fn bury(&mut self, kind: &'static str, place: Place) {
        self.letters.insert(place, Letter { kind, is_erasable: false });
    }

    fn take(&mut self, event: &ShopperEvent, record: &Received, is_known: impl Fn(&str) -> bool) {
        self.ids.insert(event.id.clone());
        let shopper = self.shoppers.entry(event.key()).or_default();
        if event.kind == EventKind::Erase {
            self.erasures += 1;
            for place in std::mem::take(shopper).buried {
                self.letters.entry(place).and_modify(|letter| letter.is_erasable = true);
            }
            return;
        }
        let known: Vec<&str> = event.lines.iter().map(|line| &line.product[..]).filter(|product| is_known(product)).collect();
        let fault = if event.at_ms > record.appended_ms + FUTURE_MAX_MS {
            Some("future")
        } else {
            (known.is_empty() && !event.lines.is_empty()).then_some("unknown_product")
        };
        if let Some(kind) = fault {
            shopper.buried.push(place_of(record));
            return self.bury(kind, place_of(record));
        }
        if shopper.seen.contains(&event.id) {
            self.duplicates += 1;
            return;
        }
        shopper.fold(event, &known);
    }
}

impl Shopper {
    /// Takes an event in; of its products those that are `known`.
    fn fold(&mut self, event: &ShopperEvent, known: &[&str]) {
        let engages = matches!(event.kind, EventKind::Purchase | EventKind::CartAdd | EventKind::View);
        if engages && self.is_private {
            return;
        }
        self.seen.insert(event.id.clone());
        self.last = Some(event.id.clone());
        if event.kind == EventKind::Purchase {
            for product in known {
                *self.bought.entry((*product).to_owned()).or_default() += 1;
            }
        }
        if let Some(personalise) = event.personalise {
            self.is_private = !personalise;
            if self.is_private {
                self.bought.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Headers;
    use endcap_schemas::{Line, topics::Topic};

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn event(id: &str, kind: EventKind, product: &str) -> ShopperEvent {
        let lines = if product.is_empty() { Vec::new() } else { vec![Line { product: product.to_owned(), quantity: 1 }] };
        let personalise = (kind == EventKind::Consent).then_some(false);
        ShopperEvent {
            id: id.to_owned(),
            tenant: "default".to_owned(),
            user: "anna".to_owned(),
            at_ms: NOW_MS,
            kind,
            lines,
            preference: None,
            personalise,
        }
    }

    fn of(events: &[ShopperEvent]) -> Expected {
        let record = |(offset, event): (usize, &ShopperEvent)| Received {
            topic: Topic::EVENTS,
            partition: 0,
            offset: offset as i64,
            appended_ms: NOW_MS,
            key: event.key().to_string(),
            headers: Headers::default(),
            value: wire::encode(event).expect("an event is written"),
        };
        let mut records: Vec<Received> = events.iter().enumerate().map(record).collect();
        records.push(Received { offset: 100, value: b"noise".to_vec(), ..records[0].clone() });
        records.push(Received { offset: 101, key: "default/bert".to_owned(), ..records[0].clone() });
        Expected::of(&records, |product| product != "none")
    }

    #[test]
    fn each_event_counts_once_and_an_erasure_begins_anew() {
        let buy = |id: &str| event(id, EventKind::Purchase, "p");
        let late = ShopperEvent { at_ms: NOW_MS + FUTURE_MAX_MS + 1, ..buy("late") };
        let expected = of(&[buy("a"), buy("b"), buy("a"), late, event("u", EventKind::Purchase, "none")]);
        let anna = &expected.shoppers[&UserKey::of("anna")];
        assert_eq!((anna.bought["p"], anna.last.as_deref(), expected.duplicates), (2, Some("b"), 1));
        let letters =
            |of: &Expected| of.letters.iter().map(|((_, at), letter)| (*at, letter.kind, letter.is_erasable)).collect::<Vec<_>>();
        let noise = [(100, "malformed", false), (101, "wrong_key", false)];
        assert_eq!(letters(&expected), [&[(3, "future", false), (4, "unknown_product", false)], &noise[..]].concat());

        let erase = || event("x", EventKind::Erase, "");
        let unknown = || event("u", EventKind::Purchase, "none");
        let erased = of(&[buy("a"), unknown(), erase(), unknown()]);
        let due = [(1, "unknown_product", true), (3, "unknown_product", false)];
        assert_eq!((erased.erasures, letters(&erased)), (1, [&due, &noise[..]].concat()), "the second one stays");
        let erased = of(&[buy("a"), erase()]);
        assert_eq!(erased.shoppers[&UserKey::of("anna")], Shopper::default());
        let again = of(&[buy("a"), erase(), buy("a")]);
        assert_eq!(again.shoppers[&UserKey::of("anna")].bought["p"], 1, "behind an erasure an id is new");
        let private = of(&[buy("a"), event("c", EventKind::Consent, ""), buy("b")]);
        let anna = &private.shoppers[&UserKey::of("anna")];
        assert!(anna.bought.is_empty() && anna.last.as_deref() == Some("c"), "{anna:?}");
    }
}
