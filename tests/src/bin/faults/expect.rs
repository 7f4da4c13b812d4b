//! What must come of the events in a log, by the definitions alone: a second, smaller fold to hold the real one against.

use std::collections::{BTreeMap, BTreeSet};

use endcap_runtime::Received;
use endcap_schemas::{EventKind, ShopperEvent, UserKey, wire};

use crate::facts::key_of;

/// How far a sender's clock may run ahead of the log's, ms: the default of the context stage.
const FUTURE_MAX_MS: i64 = 300_000;

/// What must come of all events.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) shoppers: BTreeMap<UserKey, Shopper>,
    /// Dead letters of the context stage by kind.
    pub(crate) dead_lettered: BTreeMap<String, u64>,
    /// Those of them that an erasure of their shopper follows: where a crash came between its write and its commit, they came again and belonged to nobody.
    pub(crate) erasable: BTreeMap<String, u64>,
    /// Erasures.
    pub(crate) erasures: u64,
    /// Events that change nothing.
    pub(crate) duplicates: u64,
    /// Ids of everything that stands in the log as an event.
    pub(crate) ids: BTreeSet<String>,
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
    /// Kinds of the dead letters of this life.
    buried: Vec<&'static str>,
}

impl Expected {
    /// What must come of `events`, which stand in the order of the log per shopper. `is_known` tells products of the catalogue.
    pub(crate) fn of(events: &[Received], is_known: impl Fn(&str) -> bool) -> Self {
        let mut expected = Self::default();
        for record in events {
            match wire::decode::<ShopperEvent>(&record.value) {
                Ok(event) if event.key() != key_of(record) => expected.bury("wrong_key"),
                Ok(event) if event.check().is_ok() => expected.take(&event, record.appended_ms, &is_known),
                _ => expected.bury("malformed"),
            }
            expected.shoppers.entry(key_of(record)).or_default();
        }
        expected
    }

    fn bury(&mut self, kind: &str) {
        *self.dead_lettered.entry(kind.to_owned()).or_default() += 1;
    }

    fn take(&mut self, event: &ShopperEvent, appended_ms: i64, is_known: impl Fn(&str) -> bool) {
        self.ids.insert(event.id.clone());
        let shopper = self.shoppers.entry(event.key()).or_default();
        if event.kind == EventKind::Erase {
            self.erasures += 1;
            let erased = std::mem::take(shopper);
            erased.buried.into_iter().for_each(|kind| *self.erasable.entry(kind.to_owned()).or_default() += 1);
            return;
        }
        let known: Vec<&str> = event.lines.iter().map(|line| &line.product[..]).filter(|product| is_known(product)).collect();
        let fault = if event.at_ms > appended_ms + FUTURE_MAX_MS {
            Some("future")
        } else {
            (known.is_empty() && !event.lines.is_empty()).then_some("unknown_product")
        };
        if let Some(kind) = fault {
            shopper.buried.push(kind);
            return self.bury(kind);
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
        records.push(Received { value: b"noise".to_vec(), ..records[0].clone() });
        records.push(Received { key: "default/bert".to_owned(), ..records[0].clone() });
        Expected::of(&records, |product| product != "none")
    }

    #[test]
    fn each_event_counts_once_and_an_erasure_begins_anew() {
        let buy = |id: &str| event(id, EventKind::Purchase, "p");
        let late = ShopperEvent { at_ms: NOW_MS + FUTURE_MAX_MS + 1, ..buy("late") };
        let expected = of(&[buy("a"), buy("b"), buy("a"), late, event("u", EventKind::Purchase, "none")]);
        let anna = &expected.shoppers[&UserKey::of("anna")];
        assert_eq!((anna.bought["p"], anna.last.as_deref(), expected.duplicates), (2, Some("b"), 1));
        let letters: Vec<_> = expected.dead_lettered.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(letters, [("future", 1), ("malformed", 1), ("unknown_product", 1), ("wrong_key", 1)]);

        assert!(expected.erasable.is_empty(), "no erasure follows");

        let erase = || event("x", EventKind::Erase, "");
        let unknown = || event("u", EventKind::Purchase, "none");
        let erased = of(&[buy("a"), unknown(), erase(), unknown()]);
        assert_eq!((erased.erasures, &erased.erasable["unknown_product"]), (1, &1), "the second one stays");
        let erased = of(&[buy("a"), erase()]);
        assert_eq!(erased.shoppers[&UserKey::of("anna")], Shopper::default());
        let again = of(&[buy("a"), erase(), buy("a")]);
        assert_eq!(again.shoppers[&UserKey::of("anna")].bought["p"], 1, "behind an erasure an id is new");
        let private = of(&[buy("a"), event("c", EventKind::Consent, ""), buy("b")]);
        let anna = &private.shoppers[&UserKey::of("anna")];
        assert!(anna.bought.is_empty() && anna.last.as_deref() == Some("c"), "{anna:?}");
    }
}
