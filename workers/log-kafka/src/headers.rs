//! Headers on the wire: CloudEvents in binary mode, W3C trace context, and the `__dlq.errors.*` of dead letters (named as in KIP-1191).
//! Pure: a list of names and bytes on one side, the runtime's types on the other.

use std::{borrow::Cow, ops::Range};

use endcap_runtime::{DeadLetter, Headers};
use endcap_schemas::topics::{Lane, Topic};
use time::{Date, Month, OffsetDateTime, format_description::well_known::Rfc3339};

/// Names and bytes, in order.
pub(crate) type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, [u8]>)>;

const SPEC_VERSION: &str = "ce_specversion";
const ID: &str = "ce_id";
const SOURCE: &str = "ce_source";
const KIND: &str = "ce_type";
const TIME: &str = "ce_time";
const CAUSATION: &str = "ce_causationid";
const TRACE: &str = "traceparent";
/// Before the name of everything that is said of a dead letter.
const DEAD: &str = "__dlq.errors.";
/// Longest id, kind, cause and trace that are handed on to a record's children; a longer one stays with the record alone, as a foreign header.
const TEXT_MAX_BYTES: usize = 256;
/// Where a record comes from that this crate wrote: this and the stage.
const OWN_SOURCE: &str = "/endcap/";

/// Where a record stands: what is told of one whose producer told nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) topic: Topic,
    pub(crate) name: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) appended_ms: i64,
}

/// Where the records come from that `stage` writes.
pub(crate) fn source_of(stage: &str) -> String {
    [OWN_SOURCE, stage].concat()
}

/// The headers of a record that comes from `source`.
pub(crate) fn write<'a>(headers: &'a Headers, source: Cow<'a, str>) -> Pairs<'a> {
    let foreign_source = headers.foreign.iter().any(|(name, _)| name == SOURCE);
    let mut pairs = Pairs::with_capacity(7 + headers.foreign.len());
    pairs.extend([text(SPEC_VERSION, "1.0"), text(ID, &headers.id)]);
    if !foreign_source {
        pairs.push(match source {
            Cow::Borrowed(source) => text(SOURCE, source),
            Cow::Owned(source) => made(SOURCE, source),
        });
    }
    pairs.extend([text(KIND, &headers.kind), made(TIME, rfc3339(headers.time_ms))]);
    pairs.extend(headers.causation.iter().map(|causation| text(CAUSATION, causation)));
    pairs.extend(headers.traceparent.iter().map(|trace| text(TRACE, trace)));
    pairs.extend(headers.foreign.iter().map(|(name, value)| (Cow::from(name), Cow::from(value))));
    pairs
}

fn text<'a>(name: &'a str, value: &'a str) -> (Cow<'a, str>, Cow<'a, [u8]>) {
    (Cow::from(name), Cow::from(value.as_bytes()))
}

fn made(name: &str, value: String) -> (Cow<'_, str>, Cow<'_, [u8]>) {
    (Cow::from(name), Cow::from(value.into_bytes()))
}

/// The headers of a record at `place`. What its producer left out is derived from there, so that it comes out the same every time.
pub(crate) fn read<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>, place: Place<'_>) -> Headers {
    let mut headers = Headers::default();
    let own_kind = place.topic.on(Lane::Live).name();
    let (mut id, mut kind, mut time_ms) = (None, None, None);
    for (name, value) in pairs {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= TEXT_MAX_BYTES);
        if name == TIME
            && let Some(ms) = text.and_then(millis)
        {
            time_ms = Some(ms);
            continue;
        }
        match (name, text) {
            (SPEC_VERSION, _) => {}
            (SOURCE, Some(source)) if source.starts_with(OWN_SOURCE) => {}
            (ID, Some(text)) if !text.is_empty() => id = Some(text.to_owned()),
            (KIND, Some(text)) if text == own_kind => kind = Some(Cow::from(own_kind)),
            (KIND, Some(text)) if !text.is_empty() => kind = Some(Cow::from(text.to_owned())),
            (CAUSATION, Some(text)) => headers.causation = Some(text.to_owned()),
            (TRACE, Some(text)) => headers.traceparent = Some(text.to_owned()),
            _ => headers.foreign.push((name.to_owned(), value.to_vec())),
        }
    }
    headers.id = id.unwrap_or_else(|| format!("{}/{}/{}", place.name, place.partition, place.offset));
    headers.kind = kind.unwrap_or(Cow::from(own_kind));
    headers.time_ms = time_ms.unwrap_or(place.appended_ms);
    headers
}

/// What is said of a dead letter beside its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// When the log took the record, ms.
    pub(crate) appended_ms: i64,
    pub(crate) group: String,
    pub(crate) stage: String,
    pub(crate) attempts: u32,
    pub(crate) kind: String,
    pub(crate) message: String,
    /// When it was given up, ms.
    pub(crate) at_ms: i64,
}

/// The headers of a dead letter: those of its record, and what is said of it.
pub(crate) fn write_dead(letter: &DeadLetter, at_ms: i64) -> Pairs<'_> {
    let record = &letter.record;
    let mut pairs = write(&record.headers, source_of(&letter.stage).into());
    let mut text = |name: &str, value: &str| pairs.push((format!("{DEAD}{name}").into(), value.as_bytes().to_vec().into()));
    text("topic", record.topic.name());
    text("partition", &record.partition.to_string());
    text("offset", &record.offset.to_string());
    text("timestamp", &record.appended_ms.to_string());
    text("group", &letter.group);
    text("stage", &letter.stage);
    text("attempts", &letter.attempts.to_string());
    text("kind", &letter.kind);
    text("message", &letter.message);
    text("time", &rfc3339(at_ms));
    pairs
}

/// What is said of the dead letter with these headers. What somebody else's tool left out is told as unknown.
pub(crate) fn read_dead<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>, appended_ms: i64) -> Dead {
    let mut dead = Dead {
        topic: String::new(),
        partition: -1,
        offset: -1,
        appended_ms,
        group: String::new(),
        stage: "unknown".to_owned(),
        attempts: 1,
        kind: "unknown".to_owned(),
        message: String::new(),
        at_ms: appended_ms,
    };
    for (name, value) in pairs {
        let (Some(name), Ok(text)) = (name.strip_prefix(DEAD), std::str::from_utf8(value)) else { continue };
        match name {
            "topic" => text.clone_into(&mut dead.topic),
            "partition" => dead.partition = text.parse().unwrap_or(dead.partition),
            "offset" => dead.offset = text.parse().unwrap_or(dead.offset),
            "timestamp" => dead.appended_ms = text.parse().unwrap_or(dead.appended_ms),
            "group" => text.clone_into(&mut dead.group),
            "stage" => text.clone_into(&mut dead.stage),
            "attempts" => dead.attempts = text.parse().unwrap_or(dead.attempts),
            "kind" => text.clone_into(&mut dead.kind),
            "message" => text.clone_into(&mut dead.message),
            "time" => dead.at_ms = millis(text).unwrap_or(dead.at_ms),
            _ => {}
        }
    }
    dead
}

/// Whether a header is short for certain: written by this crate and not taken along from a foreign producer.
pub(crate) fn is_short(name: &str, value: &[u8]) -> bool {
    is_of_the_dead(name) || ([SPEC_VERSION, ID, KIND, TIME, CAUSATION, TRACE].contains(&name) && value.len() <= TEXT_MAX_BYTES)
}

/// Whether a header tells of a dead letter and not of its record.
pub(crate) fn is_of_the_dead(name: &str) -> bool {
    name.starts_with(DEAD)
}

/// A time as RFC 3339 has it, in UTC with milliseconds; beyond the year 9999 that year's end. By hand, as every record has one: a formatter
/// took a fiftieth of all the time of a busy path without models.
pub(crate) fn rfc3339(ms: i64) -> String {
    let last = OffsetDateTime::from_unix_timestamp(253_402_300_799).expect("the end of the year 9999 is a time");
    let at = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1_000));
    let (at, ms) = at.map_or((last, 0), |at| (at, ms.rem_euclid(1_000)));
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let year = u32::try_from(at.year()).unwrap_or(0);
    let clock = [at.hour(), at.minute(), at.second()].map(u32::from);
    let numbers = [(0, 4, year), (5, 2, u32::from(u8::from(at.month()))), (8, 2, at.day().into())];
    let times = [(11, 2, clock[0]), (14, 2, clock[1]), (17, 2, clock[2]), (20, 3, ms as u32)];
    for (start, digits, mut number) in numbers.into_iter().chain(times) {
        for place in text[start..start + digits].iter_mut().rev() {
            *place += (number % 10) as u8;
            number /= 10;
        }
    }
    str::from_utf8(&text).expect("digits and signs are text").to_owned()
}

/// Milliseconds since 1970 of an RFC 3339 time.
fn millis(text: &str) -> Option<i64> {
    let at = in_own_form(text).or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok())?;
    Some(at.unix_timestamp() * 1_000 + i64::from(at.millisecond()))
}

/// A time that is written as [`rfc3339`] does, read by hand too; `None` for every other one.
fn in_own_form(text: &str) -> Option<OffsetDateTime> {
    let text: &[u8; 24] = text.as_bytes().try_into().ok()?;
    let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
    if signs.iter().any(|(place, sign)| text[*place] != *sign) {
        return None;
    }
    let number = |places: Range<usize>| {
        text[places].iter().try_fold(0_u16, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u16::from(digit - b'0')))
    };
    let two_digits = |start| number(start..start + 2).and_then(|number| u8::try_from(number).ok());
    let date = Date::from_calendar_date(number(0..4)?.into(), Month::try_from(two_digits(5)?).ok()?, two_digits(8)?).ok()?;
    Some(date.with_hms_milli(two_digits(11)?, two_digits(14)?, two_digits(17)?, number(20..23)?).ok()?.assume_utc())
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Received;

    use super::*;

    const PLACE: Place<'_> = Place { topic: Topic::EVENTS, name: "shop.events", partition: 3, offset: 41, appended_ms: 1_500 };

    fn borrowed<'a>(pairs: &'a Pairs<'_>) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    fn headers() -> Headers {
        Headers {
            causation: Some("cause".into()),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            ..Headers::root("e1", Topic::EVENTS, 1_700_000_000_123)
        }
    }

    #[test]
    fn headers_come_back_as_they_were_written() {
        let headers = headers();
        let pairs = write(&headers, source_of("context").into());
        let text: Vec<_> = borrowed(&pairs).map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value))).collect();
        assert_eq!(
            text,
            [
                "ce_specversion=1.0",
                "ce_id=e1",
                "ce_source=/endcap/context",
                "ce_type=endcap.shopper-events.v1",
                "ce_time=2023-11-14T22:13:20.123Z",
                "ce_causationid=cause",
                "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ]
        );
        assert_eq!(read(borrowed(&pairs), PLACE), headers);
    }

    #[test]
    fn what_a_foreign_producer_left_out_is_derived_from_the_records_place() {
        let bare = read([], PLACE);
        assert_eq!((bare.id.as_str(), bare.kind.as_ref(), bare.time_ms), ("shop.events/3/41", "endcap.shopper-events.v1", 1_500));
        let pairs: Pairs<'_> = vec![
            ("ce_id".into(), Cow::from(&[0xFF])),
            text("ce_time", "2023-11-14T23:13:20.1239+01:00"),
            text("ce_source", "/shop"),
            text("tenant", "t1"),
        ];
        let read = read(borrowed(&pairs), PLACE);
        assert_eq!((read.id.as_str(), read.time_ms), ("shop.events/3/41", 1_700_000_000_123));
        let kept: Vec<_> = read.foreign.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(kept, ["ce_id", "ce_source", "tenant"], "what is not understood is kept");
        let again = write(&read, source_of("context").into());
        assert_eq!(again.iter().filter(|(name, _)| name == SOURCE).count(), 1, "a foreign source stays the only one");
    }

    #[test]
    fn times_are_written_with_milliseconds_and_never_fail() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (1_709_164_800_007, "2024-02-29T00:00:00.007Z"),
            (i64::MAX, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn times_are_read_as_written_and_in_every_other_form_of_the_standard() {
        for ms in [0, -1, -62_135_596_800_000, 951_782_399_999, 1_709_164_800_007, 253_402_300_799_999] {
            let text = rfc3339(ms);
            assert_eq!((in_own_form(&text).is_some(), millis(&text)), (true, Some(ms)), "{text}");
        }
        for (text, ms) in [
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("2024-02-29T01:00:00.007+01:00", Some(1_709_164_800_007)),
            ("2024-02-29t00:00:00.007000z", Some(1_709_164_800_007)),
            ("2023-02-29T00:00:00.000Z", None),
            ("2024-13-01T00:00:00.000Z", None),
            ("2024-02-29T24:00:00.000Z", None),
            ("2024-02-29T00:00:0/.000Z", None),
            ("+024-02-29T00:00:00.000Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!((in_own_form(text).is_some(), millis(text)), (false, ms), "{text}");
        }
    }

    #[test]
    fn a_dead_letter_keeps_its_records_headers_and_says_what_happened() {
        let record = Received {
            topic: Topic::EVENTS,
            partition: 3,
            offset: 41,
            appended_ms: 1_500,
            key: "default/anna".into(),
            headers: headers(),
            value: vec![1],
        };
        let letter = DeadLetter {
            record,
            group: "endcap.context.live".into(),
            stage: "context".into(),
            attempts: 2,
            kind: "malformed".into(),
            message: "no: «x»".into(),
        };
        let pairs = write_dead(&letter, 9_000);
        let dead = read_dead(borrowed(&pairs), 1);
        assert_eq!((dead.topic.as_str(), dead.partition, dead.offset, dead.appended_ms), (Topic::EVENTS.name(), 3, 41, 1_500));
        assert_eq!((dead.group.as_str(), dead.stage.as_str(), dead.attempts), ("endcap.context.live", "context", 2));
        assert_eq!((dead.kind.as_str(), dead.message.as_str(), dead.at_ms), ("malformed", "no: «x»", 9_000));
        let own = borrowed(&pairs).filter(|(name, _)| !is_of_the_dead(name));
        assert_eq!(read(own, PLACE), headers());
        let unknown = read_dead([], 7);
        assert_eq!((unknown.kind.as_str(), unknown.at_ms, unknown.offset), ("unknown", 7, -1));
    }
}
