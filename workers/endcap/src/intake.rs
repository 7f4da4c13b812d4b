//! The way in: events of the web interface into the log, what cannot be taken into the dead letters.
//!
//! A dead letter keeps its original bytes under its shopper, so that an erasure masks them. Where no shopper can be read (a line that is
//! not JSON, an event without a user, a body that is refused as a whole) no erasure could find them: their length and hash stand in their
//! place.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter,
};

use anyhow::{Context, Result, anyhow};
use endcap_context::FoldState;
use endcap_runtime::{Broker, DeadLetter, Headers, INGEST, LogError, Outgoing, Received as Record, in_place_of};
use endcap_schemas::{EventKind, ShopperEvent, UserKey, topics::Topic, wire};
use serde::Serialize;
use serde_json::Value;

use crate::{
    desk::Desk,
    web::{Entry, Place, Received, Refused},
};

/// Most characters of a reason that is stored.
const REASON_MAX: usize = 500;

/// What became of the events of a request.
#[derive(Debug, Serialize)]
pub struct Taken {
    /// Before the log took them, ms: pages that hold them were accepted at or after it.
    pub accepted_ms: i64,
    /// How many are new.
    pub accepted: usize,
    /// How many change nothing.
    pub repeated: usize,
    /// How many are kept as dead letters.
    pub rejected: usize,
    /// In the order of the request.
    pub results: Vec<EventResult>,
}

/// What became of one event.
#[derive(Debug, Serialize)]
pub struct EventResult {
    #[serde(flatten)]
    place: Place,
    id: Option<String>,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Accepted,
    /// Its shopper's id stood above it in the request, or is folded already. One that still waits in the log is not seen here: it counts
    /// as accepted, and the fold passes over it all the same.
    Repeated,
    Rejected,
}

/// Where a shopper's events stand among the results.
type Places = HashMap<UserKey, Vec<(usize, EventKind)>>;

impl Desk {
    /// Lets what fits into the log and keeps the rest as dead letters. Durable when it answers.
    ///
    /// # Errors
    /// When the log is full, then nothing was taken; when it does not answer, then it may have been all the same. The request may be sent again: events
    /// are known by their ids; what is refused is a dead letter each time.
    pub fn take(&self, received: Vec<Received>) -> Result<Taken> {
        let accepted_ms = self.clock.now_ms();
        let (mut outgoing, mut letters, mut results) = (Vec::new(), Vec::new(), Vec::with_capacity(received.len()));
        let mut places = Places::new();
        for Received { place, entry } in received {
            let (id, fault, reason, original) = match entry {
                Entry::Fit(event) => match outgoing_of(&event) {
                    Ok(record) => {
                        tracing::debug!(user = self.names.name(&record.key), kind = ?event.kind, "event taken");
                        places.entry(record.key.clone()).or_default().push((results.len(), event.kind));
                        outgoing.push(record);
                        results.push(EventResult { place, id: Some(event.id), status: Status::Accepted, reason: None });
                        continue;
                    }
                    Err(error) => {
                        let original = serde_json::to_vec(&event).unwrap_or_default();
                        (Some(event.id), "beyond the wire", error.to_string(), original)
                    }
                },
                Entry::Unfit { id, fault, reason, original } => (id, fault, reason, original),
            };
            let user = user_of(&original);
            let value = kept(original, user.as_ref());
            // Neither id nor reason: a sender may have put a user into either.
            tracing::warn!(user = user.as_ref().map(|user| self.names.name(user)), fault, "event refused");
            letters.push(letter("malformed", id.as_deref(), &reason, user.as_ref(), value, accepted_ms));
            results.push(EventResult { place, id, status: Status::Rejected, reason: Some(reason) });
        }
        // Offsets from here on are this request's or later.
        let ends = self.sides.log.ends(Topic::EVENTS).unwrap_or_default();
        let erases = places.values().flatten().all(|(_, kind)| *kind == EventKind::Erase);
        if erases && letters.is_empty() {
            // A full log takes erasures all the same.
            self.sides.log.insist(&outgoing).context("cannot append erasures")?;
        } else {
            admit(&*self.sides.log, &outgoing, &letters)?;
        }
        self.mark_repeated(&places, &ends, &mut results);
        let count = |status| results.iter().filter(|result| result.status == status).count();
        let (accepted, repeated, rejected) = (count(Status::Accepted), count(Status::Repeated), count(Status::Rejected));
        Ok(Taken { accepted_ms, accepted, repeated, rejected, results })
    }

    /// Keeps one dead letter for a body that is refused as a whole. Durable when it answers.
    ///
    /// # Errors
    /// When the log is full or does not answer.
    pub fn refuse(&self, body: Refused) -> Result<()> {
        tracing::warn!(kind = body.kind, "body refused");
        let letter = letter(body.kind, None, &body.reason, None, body.kept.into_bytes(), self.clock.now_ms());
        admit(&*self.sides.log, &[], &[letter])
    }

    /// Finds the events that change nothing, as far as can be told: those that repeat one above them or one folded from before the log's
    /// `ends`. They are in the log all the same, as an erasure may wait there, after which they are new. It is a word in the answer only:
    /// where the store does not answer, they stay accepted.
    fn mark_repeated(&self, places: &Places, ends: &BTreeMap<i32, i64>, results: &mut [EventResult]) {
        let users = Vec::from_iter(places.keys().cloned());
        let states = self.sides.store.states(&users).unwrap_or_default().into_iter().chain(iter::repeat(None));
        for (user, state) in users.iter().zip(states) {
            // A state that cannot be read is the fold's affair.
            let mut state = state.and_then(|bytes| FoldState::decode(&bytes).ok());
            let mut above = HashSet::new();
            for (at, kind) in &places[user] {
                if *kind == EventKind::Erase {
                    state = None;
                    above.clear();
                    continue;
                }
                let id = results[*at].id.clone().unwrap_or_default();
                let is_folded = state.as_ref().is_some_and(|state| state.remembers(&id, ends));
                if !above.insert(id) || is_folded {
                    results[*at].status = Status::Repeated;
                }
            }
        }
    }
}

/// An event as the log takes it.
///
/// # Errors
/// When it does not fit the wire.
pub fn outgoing_of(event: &ShopperEvent) -> Result<Outgoing, wire::WireError> {
    let headers = Headers::root(event.id.clone(), Topic::EVENTS, event.at_ms);
    Ok(Outgoing { topic: Topic::EVENTS, key: event.key(), headers, value: wire::encode(event)? })
}

/// Takes events and keeps what was refused beside them: both or neither, so that a request may be sent again.
fn admit(log: &dyn Broker, records: &[Outgoing], refused: &[DeadLetter]) -> Result<()> {
    match log.admit(records, refused) {
        Ok(()) => Ok(()),
        Err(error @ LogError::Full { .. }) => Err(anyhow!(error)).context("events cannot be taken now"),
        Err(error) => Err(anyhow!(error)).context("cannot append events"),
    }
}

/// Whose event was refused, where that can be read; a user that is a number is its digits.
fn user_of(original: &[u8]) -> Option<UserKey> {
    let event: Value = serde_json::from_slice(original).ok()?;
    let part = |key: &str| {
        let text = match event.get(key)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        (1..=ShopperEvent::TEXT_MAX_BYTES).contains(&text.len()).then_some(text)
    };
    Some(UserKey { user: part("user")?, tenant: part("tenant").unwrap_or_else(|| UserKey::DEFAULT_TENANT.to_owned()) })
}

/// What keeps `value`, which was refused at the door.
fn letter(kind: &str, id: Option<&str>, reason: &str, user: Option<&UserKey>, value: Vec<u8>, now_ms: i64) -> DeadLetter {
    let nobody = || UserKey { tenant: UserKey::DEFAULT_TENANT.to_owned(), user: String::new() };
    DeadLetter {
        record: Record {
            topic: Topic::EVENTS,
            partition: 0,
            offset: -1,
            appended_ms: now_ms,
            key: user.cloned().unwrap_or_else(nobody).to_string(),
            headers: Headers::root(id.unwrap_or_default(), Topic::EVENTS, now_ms),
            value,
        },
        group: INGEST.to_owned(),
        stage: INGEST.to_owned(),
        attempts: 1,
        kind: kind.to_owned(),
        message: reason.chars().take(REASON_MAX).collect(),
    }
}

/// What may be kept of an event that was refused.
fn kept(original: Vec<u8>, user: Option<&UserKey>) -> Vec<u8> {
    if user.is_some() { original } else { in_place_of(blake3::Hasher::new().update(&original)).into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(original: &str, key: &str, value: &str) {
        let user = user_of(original.as_bytes());
        let letter = letter("malformed", None, "no", user.as_ref(), kept(original.as_bytes().to_owned(), user.as_ref()), 1);
        assert_eq!(letter.record.key, key, "{original}");
        let kept = String::from_utf8(letter.record.value).unwrap();
        assert!(kept.starts_with(value), "{original}: {kept}");
    }

    #[test]
    fn only_bytes_that_an_erasure_can_find_are_kept() {
        for (original, key) in [
            (r#"{"user":"ada","at_ms":"noon"}"#, "default/ada"),
            (r#"{"user":12345}"#, "default/12345"),
            (r#"{"user":"ada","tenant":"shop"}"#, "shop/ada"),
        ] {
            check(original, key, original);
        }
        for original in [r#"{"user":"ada","#, r#"{"usr":"ada"}"#, r#"{"user":["ada"]}"#, r#""ada""#, r#"{"user":""}"#, "ada"] {
            check(original, "default/", &format!("({} bytes, blake3 ", original.len()));
        }
    }
}
