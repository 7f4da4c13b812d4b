//! Reads the body of `POST /v1/events`: one JSON event, an array of them, or one event a line (NDJSON).
//!
//! Each event of an array and each line is taken or rejected on its own, and what is rejected keeps its original text: a line that is
//! not JSON, too. Only a body that is neither JSON nor lines of events is refused as a whole, with the position of the fault.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use endcap_schemas::ShopperEvent;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::ApiError;

/// Most bytes of one body.
const BODY_MAX_BYTES: usize = 1 << 20;
/// So much of a body that is too long is read and thrown away, so that its sender hears why it was refused instead of a broken connection.
const DISCARDED_MAX_BYTES: usize = 32 << 20;
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
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => Ok(Layout::Json),
        "application/x-ndjson" | "application/jsonl" => Ok(Layout::Lines),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send `content-type: application/json` or `application/x-ndjson`",
        )),
    }
}

/// Takes in a whole body.
///
/// # Errors
/// `413` when it is too long, `400` when it breaks off.
pub(super) async fn collect(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| bad(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= BODY_MAX_BYTES {
            kept.extend_from_slice(&data);
        } else if length > DISCARDED_MAX_BYTES {
            break;
        }
    }
    if length > BODY_MAX_BYTES {
        let message = format!("the body is longer than {BODY_MAX_BYTES} bytes: send the events in several requests");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(kept)
}

/// Splits `body` into events.
///
/// # Errors
/// `400` when the body is neither JSON nor lines of events, is empty or has too many events.
pub(super) fn read(body: &[u8], layout: Layout) -> Result<Vec<Received>, ApiError> {
    let received = match layout {
        Layout::Json => read_json(body)?,
        Layout::Lines => read_lines(body),
    };
    match received.len() {
        0 => Err(bad("the body holds no event".to_owned())),
        n if n > EVENTS_MAX => Err(bad(format!("the body holds more than {EVENTS_MAX} events: send them in several requests"))),
        _ => Ok(received),
    }
}

fn read_json(body: &[u8]) -> Result<Vec<Received>, ApiError> {
    let start = body.trim_ascii_start();
    if start.is_empty() {
        return Ok(Vec::new());
    }
    let fault = |error| bad(format!("the body is not JSON: {error}"));
    if start.starts_with(b"[") {
        let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(fault)?;
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
            if lines.iter().any(|line| is_event(&line.entry)) { Ok(lines) } else { Err(fault(error)) }
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

fn bad(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
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
        for (body, part) in [
            (&b"{\"id\":"[..], "line 1 column 6"),
            (b"[1,2", "line 1 column 4"),
            (b"", "no event"),
            (b" \n", "no event"),
            (b"[]", "no event"),
            (b"\xff\xfe", "line 1 column 1"),
            (format!("{GOOD}\n").repeat(EVENTS_MAX + 1).as_bytes(), "more than"),
        ] {
            let error = format!("{:?}", read(body, Layout::Json).expect_err("a refusal"));
            assert!(error.contains(part), "`{error}` does not say `{part}`");
        }
        assert!(format!("{:?}", read(b"\n", Layout::Lines).expect_err("a refusal")).contains("no event"));
    }
}
