//! Records between librdkafka's form and the runtime's.

use std::borrow::Cow;

use endcap_runtime::{
    CAME_UNDER, DeadLetter, DeadLetterId, Headers, LogError, Outgoing, Received, StoredDeadLetter, in_place_of,
};
use endcap_schemas::topics::Topic;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message, OwnedHeaders};

use crate::{
    client::RECORD_MAX_BYTES,
    headers::{self, Pairs, Place},
    names::Names,
    registry::{self, Registry},
};

/// Name of the header that keeps the schema id under which a value travelled, until it is processed: a dead letter travels under it again.
const SCHEMA_ID: &str = "endcap_schema_id";

/// Bytes that a record and each of its headers take beside what they hold, at most.
const RECORD_BYTES: usize = 1_024;
const HEADER_BYTES: usize = 16;

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) topic: String,
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) headers: Pairs<'a>,
    /// `None` takes a compacted key away.
    pub(crate) value: Option<Cow<'a, [u8]>>,
}

impl<'a> Record<'a> {
    /// What is passed on by the stage that is its `source`, framed for the registry where there is one.
    pub(crate) fn passed(
        names: &Names,
        registry: Option<&Registry>,
        outgoing: &'a Outgoing,
        source: &'a str,
    ) -> Result<Self, LogError> {
        let topic = names.topic(outgoing.topic);
        let value = match registry {
            Some(registry) => registry.frame(outgoing.topic, &topic, &outgoing.value)?.into(),
            None => Cow::from(&outgoing.value),
        };
        let (key, headers) = (outgoing.key.written().into_bytes().into(), headers::write(&outgoing.headers, source.into()));
        Ok(Self { topic, key, headers, value: Some(value) })
    }

    /// What could not be processed, with its original key and bytes.
    pub(crate) fn dead(names: &Names, letter: &'a DeadLetter, at_ms: i64) -> Self {
        let mut pairs = headers::write_dead(letter, at_ms);
        let key = take_key(&mut pairs, &letter.record.key);
        let value = match take(&mut pairs, SCHEMA_ID).map(|id| <[u8; 4]>::try_from(&id[..])) {
            Some(Ok(id)) => registry::framed_again(u32::from_be_bytes(id), &letter.record.value).into(),
            _ => Cow::from(&letter.record.value),
        };
        let record = Self { topic: names.dead_letters(letter.record.topic), key, headers: pairs, value: Some(value) };
        record.within(RECORD_MAX_BYTES)
    }

    /// The record without what it does not fit with: length and hash in place of its value, no foreign headers, and length and hash in place
    /// of its key, in this order. One that no broker takes would hold up its partition for ever.
    fn within(mut self, bytes_max: usize) -> Self {
        let hash = |bytes: &[u8]| in_place_of(blake3::Hasher::new().update(bytes)).into_bytes().into();
        if self.bytes() > bytes_max {
            self.value = self.value.map(|value| hash(&value));
        }
        if self.bytes() > bytes_max {
            self.headers.retain(|(name, value)| headers::is_short(name, value));
        }
        if self.bytes() > bytes_max {
            self.key = hash(&self.key);
        }
        self
    }

    /// Bytes that it takes, at most.
    fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_BYTES).sum();
        self.key.len() + headers + self.value.as_ref().map_or(0, |value| value.len()) + RECORD_BYTES
    }

    /// A dead letter on its way back, as if it had come under the key that it is filed under.
    pub(crate) fn redriven(names: &Names, topic: Topic, letter: &'a StoredDeadLetter) -> Self {
        let mut pairs = headers::write(&letter.headers, headers::source_of(&letter.stage).into());
        let key = take_key(&mut pairs, &letter.key);
        pairs.retain(|(name, _)| name != CAME_UNDER);
        Self { topic: names.topic(topic), key, headers: pairs, value: Some(Cow::from(&letter.value)) }
    }

    /// An entry of a compacted topic.
    pub(crate) fn note(topic: String, key: &str, value: &str) -> Self {
        let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
        Self { topic, key, headers: Pairs::new(), value: Some(value) }
    }

    /// The headers as librdkafka takes them.
    pub(crate) fn owned_headers(&self) -> OwnedHeaders {
        let headers = OwnedHeaders::new_with_capacity(self.headers.len());
        self.headers.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(&value[..]) }))
    }
}

/// The key of this text; where it was no text, its bytes, taken out of the headers.
fn take_key<'a>(pairs: &mut Pairs<'a>, text: &'a str) -> Cow<'a, [u8]> {
    let is_of = |name: &str, value: &[u8]| name == CAME_UNDER && String::from_utf8_lossy(value) == text;
    let kept = pairs.iter().position(|(name, value)| is_of(name, value));
    kept.map_or_else(|| Cow::from(text.as_bytes()), |at| pairs.remove(at).1)
}

fn take<'a>(pairs: &mut Pairs<'a>, name: &str) -> Option<Cow<'a, [u8]>> {
    let at = pairs.iter().position(|(found, _)| found == name)?;
    Some(pairs.remove(at).1)
}

/// Takes a received value out of the registry's framing, as the runtime knows no registry.
pub(crate) fn unframe(registry: &Registry, record: &mut Received) -> Result<(), LogError> {
    if let Some((value, id)) = registry.unframe(&record.value)? {
        record.value = value;
        record.headers.foreign.push((SCHEMA_ID.to_owned(), id.to_be_bytes().to_vec()));
    }
    Ok(())
}

/// Names and bytes of a message's headers; one without a value has an empty one.
fn pairs_of<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    let headers = message.headers();
    headers.into_iter().flat_map(|headers| headers.iter()).map(|header| (header.key, header.value.unwrap_or_default()))
}

/// When the log took a message, ms.
fn appended_ms(message: &BorrowedMessage<'_>) -> i64 {
    message.timestamp().to_millis().unwrap_or(0)
}

/// A message's key as text; one that is no text is kept in `headers` as it was.
fn key_of(message: &BorrowedMessage<'_>, headers: &mut Headers) -> String {
    let key = message.key().unwrap_or_default();
    let text = String::from_utf8_lossy(key);
    if let Cow::Owned(_) = text {
        headers.foreign.push((CAME_UNDER.to_owned(), key.to_vec()));
    }
    text.into_owned()
}

/// A message of `topic` as a stage gets it.
pub(crate) fn received(topic: Topic, message: &BorrowedMessage<'_>) -> Received {
    let (partition, offset, appended_ms) = (message.partition(), message.offset(), appended_ms(message));
    let place = Place { topic, name: message.topic(), partition, offset, appended_ms };
    let mut headers = headers::read(pairs_of(message), place);
    let key = key_of(message, &mut headers);
    let value = message.payload().unwrap_or_default().to_vec();
    Received { topic, partition, offset, appended_ms, key, headers, value }
}

/// A message of the dead letters of `topic`.
pub(crate) fn stored(topic: Topic, id: DeadLetterId, message: &BorrowedMessage<'_>) -> StoredDeadLetter {
    let dead = headers::read_dead(pairs_of(message), appended_ms(message));
    let place =
        Place { topic, name: topic.name(), partition: dead.partition, offset: dead.offset, appended_ms: dead.appended_ms };
    let own = pairs_of(message).filter(|(name, _)| !headers::is_of_the_dead(name));
    let mut headers = headers::read(own, place);
    let key = key_of(message, &mut headers);
    StoredDeadLetter {
        id,
        at_ms: dead.at_ms,
        stage: dead.stage,
        group: dead.group,
        attempts: dead.attempts,
        kind: dead.kind,
        message: dead.message,
        topic: if dead.topic.is_empty() { topic.name().to_owned() } else { dead.topic },
        partition: dead.partition,
        offset: dead.offset,
        appended_ms: dead.appended_ms,
        key,
        headers,
        value: message.payload().unwrap_or_default().to_vec(),
        masked: false,
    }
}

#[cfg(test)]
mod tests {
    use endcap_schemas::UserKey;

    use super::*;
    use crate::KafkaSettings;

    /// A record that came under `key`, as it goes back from the dead letters when it was filed under `user`, or as it was.
    fn redriven(key: &[u8], user: Option<&str>) -> (Vec<u8>, Vec<String>) {
        let shop = ("shop".to_owned(), b"berlin".to_vec());
        let mut headers = Headers { foreign: vec![shop], ..Headers::root("e1", Topic::EVENTS, 1) };
        let text = String::from_utf8_lossy(key).into_owned();
        if text.as_bytes() != key {
            headers.foreign.push((CAME_UNDER.to_owned(), key.to_vec()));
        }
        let received =
            Received { topic: Topic::EVENTS, partition: 0, offset: 1, appended_ms: 1, key: text, headers, value: vec![1] };
        let record = match user {
            Some(user) => received.under(&UserKey::of(user)),
            None => received,
        };
        let letter = StoredDeadLetter {
            id: DeadLetterId::new("1"),
            at_ms: 1,
            stage: "context".to_owned(),
            group: "g".to_owned(),
            attempts: 1,
            kind: "k".to_owned(),
            message: String::new(),
            topic: Topic::EVENTS.name().to_owned(),
            partition: 0,
            offset: 1,
            appended_ms: 1,
            key: record.key,
            headers: record.headers,
            value: record.value,
            masked: false,
        };
        let sent = Record::redriven(&Names::of(&KafkaSettings::default()), Topic::EVENTS, &letter);
        let own = sent.headers.iter().map(|(name, _)| name.to_string()).filter(|name| !name.starts_with("ce_"));
        (sent.key.to_vec(), own.collect())
    }

    #[test]
    fn a_dead_letter_fits_whatever_of_it_was_too_large() {
        const MAX: usize = 8 * 1_024;
        let large = vec![b'x'; MAX];
        let text = String::from_utf8(large.clone()).unwrap();
        for part in ["value", "header", "name", "id", "key", "all"] {
            let of = |name: &str| part == name || part == "all";
            let mut pairs: Pairs<'_> = vec![("ce_id".into(), if of("id") { large.clone() } else { vec![b'1'] }.into())];
            if of("header") {
                pairs.push(("shop".into(), large.clone().into()));
            }
            if of("name") {
                pairs.push((text.clone().into(), vec![].into()));
            }
            pairs.push(("__dlq.errors.kind".into(), b"malformed"[..].into()));
            let key = if of("key") { large.clone() } else { b"default/anna".to_vec() };
            let value = if of("value") { large.clone() } else { vec![1] };
            let record = Record { topic: "t".to_owned(), key: key.into(), headers: pairs, value: Some(value.into()) };
            let record = record.within(MAX);
            assert!(record.bytes() <= MAX, "{part}: {} bytes", record.bytes());
            assert!(record.headers.iter().any(|(name, _)| name == "__dlq.errors.kind"), "{part}: why it died is kept");
            assert_eq!(*record.key == b"default/anna"[..], !of("key"), "{part}");
        }
    }

    #[test]
    fn a_letter_goes_back_as_it_was_or_as_if_it_had_come_under_its_users_key() {
        for (key, user, back) in [
            (&b"default/anna"[..], None, &b"default/anna"[..]),
            (&[0xFF, 0x01], None, &[0xFF, 0x01]),
            (b"default/bert", Some("anna"), b"default/anna"),
            (&[0xFF, 0x01], Some("anna"), b"default/anna"),
        ] {
            assert_eq!(redriven(key, user), (back.to_vec(), vec!["shop".to_owned()]), "{key:?} filed under {user:?}");
        }
    }
}
