//! Reads the body of `POST /v1/events`: one JSON event, an array of them, or one event a line (NDJSON).
//!
//! Each event of an array and each line is taken or rejected on its own, and what is rejected keeps its original text: a line that is
//! not JSON, too. Only a body that is neither JSON nor lines of events, or that holds too much, is refused as a whole. It becomes one dead
//! letter: length and hash of the body.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use endcap_runtime::in_place_of;
use endcap_schemas::ShopperEvent;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::error::ApiError;

/// What some programs put before UTF-8 text.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// Most bytes of one body.
const BODY_MAX_BYTES: u64 = 1 << 20;
/// So much of a body that is too long is read and thrown away, so that its sender hears why it was refused instead of a broken connection.
const DISCARDED_MAX_BYTES: u64 = 256 << 20;
/// Most events of one body.
const EVENTS_MAX: usize = 5_000;

/// One event of a body, or what stands in the place of one.
#[derive(Debug, PartialEq)]
pub struct Received {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub entry: Entry,
}

/// Where in a body an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On this line, from 1.
    Line(usize),
    /// At this place of an array, from 0.
    Index(usize),
}

/// Whether an event may be taken.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// It may enter the log.
    Fit(Box<ShopperEvent>),
    /// It becomes a dead letter.
    Unfit {
        /// Its id, where one can be read.
        id: Option<String>,
        /// The kind of its fault, in words that hold nothing of it.
        fault: &'static str,
        /// What is wrong with it, in full.
        reason: String,
        /// Its bytes as they came.
        original: Vec<u8>,
    },
}

/// A body that is refused as a whole.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    /// Of its dead letter.
    pub kind: &'static str,
    /// What is wrong with it, in words that hold nothing of it.
    pub reason: String,
    /// What is known of its bytes.
    pub kept: String,
}

impl Refused {
    fn new(kind: &'static str, reason: String, body: &[u8]) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, reason, kept: in_place_of(blake3::Hasher::new().update(body)) }
    }

    /// What its sender hears where nothing is kept of it.
    pub(super) fn plain(&self) -> ApiError {
        ApiError::new(self.status, self.reason.clone())
    }

    /// What its sender hears.
    pub(super) fn answer(&self) -> ApiError {
        ApiError::new(self.status, format!("{}; it is kept as one dead letter (`endcap dlq ls`)", self.reason))
    }
}

/// How a body is laid out, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// JSON; lines of events are understood as well.
    Json,
    /// One event a line.
    Lines,
}

/// Only JSON types are taken: a foreign page's form cannot send those without the browser asking first.
///
/// # Errors
/// `415` for any other type.
pub(super) fn layout(headers: &HeaderMap) -> Result<Layout, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" => Ok(Layout::Json),
        "application/x-ndjson" | "application/jsonl" => Ok(Layout::Lines),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send `content-type: application/json` or `application/x-ndjson`",
        )),
    }
}

/// Takes in a whole body, or refuses one that is too long.
///
/// # Errors
/// `408` when it takes longer than `time`, `400` when it breaks off: its events were not received.
pub(super) async fn collect(body: Body, time: Duration) -> Result<Result<Vec<u8>, Refused>, ApiError> {
    let mut collected = Collected::default();
    let done = timeout(time, collected.fill(body)).await;
    if collected.length() > BODY_MAX_BYTES {
        return Ok(Err(collected.too_large()));
    }
    match done {
        Ok(Ok(())) => Ok(Ok(collected.bytes)),
        Ok(Err(error)) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        Err(_) => {
            let message = format!("the body did not come in within {} s: send it again", time.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// What has come in of a body.
#[derive(Default)]
struct Collected {
    /// As many as a body may have.
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    is_whole: bool,
}

impl Collected {
    fn length(&self) -> u64 {
        self.hasher.count()
    }

    async fn fill(&mut self, mut body: Body) -> Result<(), axum::Error> {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            self.hasher.update(&data);
            if self.length() <= BODY_MAX_BYTES {
                self.bytes.extend_from_slice(&data);
            } else if self.length() > DISCARDED_MAX_BYTES {
                return Ok(());
            }
        }
        self.is_whole = true;
        Ok(())
    }

    fn too_large(&self) -> Refused {
        Refused {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            kind: "too_large",
            reason: format!("the body is longer than {BODY_MAX_BYTES} bytes: send what it holds in several requests"),
            kept: if self.is_whole { in_place_of(&self.hasher) } else { format!("({} bytes and more)", self.length()) },
        }
    }
}

/// Splits `body` into events; what is empty has none.
///
/// # Errors
/// When the body is neither JSON nor lines of events, or has too many events.
pub(super) fn read(body: &[u8], layout: Layout) -> Result<Vec<Received>, Refused> {
    let text = body.strip_prefix(BOM).unwrap_or(body);
    let received = match layout {
        Layout::Json => {
            read_json(text).map_err(|error| Refused::new("malformed", format!("the body is not JSON: {error}"), body))?
        }
        Layout::Lines => read_lines(text),
    };
    if received.len() > EVENTS_MAX {
        let reason = format!("the body holds more than {EVENTS_MAX} events: send them in several requests");
        return Err(Refused::new("too_many", reason, body));
    }
    Ok(received)
}

fn read_json(body: &[u8]) -> serde_json::Result<Vec<Received>> {
    let start = body.trim_ascii_start();
    if start.is_empty() {
        return Ok(Vec::new());
    }
    if start.starts_with(b"[") {
        let events: Vec<&RawValue> = serde_json::from_slice(body)?;
        let places = (0..).map(Place::Index);
        return Ok(places.zip(events).map(|(place, event)| Received { place, entry: receive(event.get().as_bytes()) }).collect());
    }
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(event) => {
            let above = body[..body.len() - start.len()].iter().filter(|byte| **byte == b'\n').count();
            Ok(vec![Received { place: Place::Line(above + 1), entry: receive(event.get().as_bytes()) }])
        }
        Err(error) => {
            let lines = read_lines(body);
            let is_event = |entry: &Entry| matches!(entry, Entry::Fit(_) | Entry::Unfit { id: Some(_), .. });
            if lines.iter().any(|line| is_event(&line.entry)) { Ok(lines) } else { Err(error) }
        }
    }
}

fn read_lines(body: &[u8]) -> Vec<Received> {
    let lines = body.split(|byte| *byte == b'\n').enumerate().map(|(at, line)| (at + 1, line.trim_ascii()));
    let events = lines.filter(|(_, line)| !line.is_empty()).take(EVENTS_MAX + 1);
    events.map(|(at, line)| Received { place: Place::Line(at), entry: receive(line) }).collect()
}

fn receive(text: &[u8]) -> Entry {
    let unfit = |id, fault, reason| Entry::Unfit { id, fault, reason, original: text.to_owned() };
    match serde_json::from_slice::<ShopperEvent>(text) {
        Ok(event) => match event.check() {
            Ok(()) => Entry::Fit(Box::new(event)),
            Err(fault) => unfit(Some(event.id), "not a sound event", fault.to_string()),
        },
        Err(error) => {
            // Of what is not JSON only the parser's own fault is told: the event's may quote what nobody can be found to own.
            let (id, fault, error) = match serde_json::from_slice(text) {
                Ok(value) => (id_of(&value), "not a shopper event", error),
                Err(broken) => (None, "not JSON", broken),
            };
            // The place of the event is told beside the reason.
            let place = error.to_string().replace(" at line 1 column ", " at column ");
            unfit(id, fault, format!("{fault}: {place}"))
        }
    }
}

fn id_of(value: &serde_json::Value) -> Option<String> {
    Some(value.get("id")?.as_str()?.chars().take(ShopperEvent::TEXT_MAX_BYTES / 4).collect())
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use http_body_util::Full;

    use super::*;

    const GOOD: &str = r#"{"id":"e1","user":"u","at_ms":1,"kind":"purchase","lines":[{"product":"p"}]}"#;

    const LINE: fn(usize) -> Place = Place::Line;
    const INDEX: fn(usize) -> Place = Place::Index;

    fn check(body: impl AsRef<[u8]>, layout: Layout, expected: &[(Place, Result<&str, &str>)]) {
        let received = read(body.as_ref(), layout).expect("a body of events");
        assert_eq!(received.len(), expected.len(), "{received:?}");
        for (received, (place, expected)) in received.iter().zip(expected) {
            assert_eq!(received.place, *place);
            match (&received.entry, expected) {
                (Entry::Fit(event), Ok(id)) => assert_eq!(event.id, *id),
                (Entry::Unfit { reason, .. }, Err(part)) => assert!(reason.contains(part), "`{reason}` does not say `{part}`"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn one_event_an_array_and_lines_are_taken() {
        let spread = GOOD.replace(',', ",\n  ");
        check(GOOD, Layout::Json, &[(LINE(1), Ok("e1"))]);
        check(format!("\n\n{spread}\n"), Layout::Json, &[(LINE(3), Ok("e1"))]);
        check(format!(" [{GOOD}, {spread}]"), Layout::Json, &[(INDEX(0), Ok("e1")), (INDEX(1), Ok("e1"))]);
        for layout in [Layout::Json, Layout::Lines] {
            check(format!("{GOOD}\r\n\n {GOOD}\n\n"), layout, &[(LINE(1), Ok("e1")), (LINE(3), Ok("e1"))]);
        }
    }

    #[test]
    fn each_event_is_judged_on_its_own() {
        let no_lines = r#"{"id":"e2","user":"u","at_ms":1,"kind":"purchase"}"#;
        let unknown = r#"{"id":"e3","user":"u","at_ms":1,"kind":"dance"}"#;
        let extra = r#"{"id":"e4","user":"u","at_ms":1,"kind":"erase","colour":"red"}"#;
        let expected =
            [Ok("e1"), Err("needs `lines`"), Err("unknown variant"), Err("unknown field `colour`"), Err("not a shopper event")];
        let at = |place: fn(usize) -> Place, first| expected.iter().zip(first..).map(|(e, n)| (place(n), *e)).collect::<Vec<_>>();
        check(format!("[{GOOD},{no_lines},{unknown},{extra},7]"), Layout::Json, &at(INDEX, 0));
        check([GOOD, no_lines, unknown, extra, "7"].join("\n"), Layout::Lines, &at(LINE, 1));
    }

    #[test]
    fn a_line_that_is_not_json_does_not_hold_up_the_others() {
        let body = [b"{\"id\":\n".as_slice(), GOOD.as_bytes(), b"\n\xff\xfe\n[", GOOD.as_bytes(), b"\n"].concat();
        let expected = [
            (LINE(1), Err("not JSON: EOF while parsing a value at column 6")),
            (LINE(2), Ok("e1")),
            (LINE(3), Err("not JSON: expected value at column 1")),
            (LINE(4), Err("not")),
        ];
        for layout in [Layout::Json, Layout::Lines] {
            check(&body, layout, &expected);
        }
        let received = read(&body, Layout::Lines).unwrap();
        assert!(matches!(&received[2].entry, Entry::Unfit { original, .. } if original == b"\xff\xfe"), "as it came");
    }

    #[test]
    fn what_is_neither_json_nor_lines_of_events_is_refused_with_its_position() {
        for (body, kind, part) in [
            (&b"{\"id\":"[..], "malformed", "line 1 column 6"),
            (b"[1,2", "malformed", "line 1 column 4"),
            (b"{\"id\":NaN}", "malformed", "line 1 column 7"),
            (b"\xff\xfe{\0", "malformed", "line 1 column 1"),
            (b"{\"user\":\"Ren\xe9\"}", "malformed", "line 1 column"),
            (format!("{GOOD}\n").repeat(EVENTS_MAX + 1).as_bytes(), "too_many", "more than"),
        ] {
            let refused = read(body, Layout::Json).expect_err("a refusal");
            assert!(refused.kind == kind && refused.reason.contains(part), "{refused:?} does not say `{part}`");
            assert!(refused.kept.starts_with(&format!("({} bytes, blake3 ", body.len())), "{refused:?}");
        }
        for (body, layout) in [(&b""[..], Layout::Json), (b" \n", Layout::Json), (b"[]", Layout::Json), (b"\n", Layout::Lines)] {
            check(body, layout, &[]);
        }
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        for text in [GOOD.to_owned(), format!("{GOOD}\n")] {
            for layout in [Layout::Json, Layout::Lines] {
                check([BOM, text.as_bytes()].concat(), layout, &[(LINE(1), Ok("e1"))]);
            }
        }
        check([BOM, b"[", GOOD.as_bytes(), b"]"].concat(), Layout::Json, &[(INDEX(0), Ok("e1"))]);
    }

    #[test]
    fn the_type_is_known_in_any_case_and_with_parameters() {
        for (text, expected) in [
            ("Application/JSON", Some(Layout::Json)),
            ("application/json ; charset=utf-8", Some(Layout::Json)),
            ("application/X-NDJSON;x=y", Some(Layout::Lines)),
            ("text/plain", None),
        ] {
            let headers = [(header::CONTENT_TYPE, text.parse().unwrap())].into_iter().collect();
            assert_eq!(layout(&headers).ok(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_not_waited_for() {
        let long = vec![b' '; usize::try_from(BODY_MAX_BYTES).unwrap() + 1];
        let collect = |first: Vec<u8>| {
            let endless = Full::<Bytes>::from(first).with_trailers(std::future::pending());
            collect(Body::new(endless), Duration::ZERO)
        };
        assert!(format!("{:?}", collect(b"{".to_vec()).await.expect_err("a time-out")).contains("408"));
        let refused = collect(long).await.expect("a body").expect_err("a refusal");
        assert_eq!(
            (refused.status.as_u16(), refused.kind, refused.kept.as_str()),
            (413, "too_large", "(1048577 bytes and more)")
        );
    }
}
