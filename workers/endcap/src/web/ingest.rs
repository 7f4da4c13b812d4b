//! Reads the body of `POST /v1/events`: one JSON event, an array of them, or one after the other (NDJSON).
//!
//! A body that is not JSON is refused as a whole, with the position of the fault. In a body that is, each event is taken or
//! rejected on its own, and what is rejected keeps its original text.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use endcap_schemas::ShopperEvent;
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use super::error::ApiError;

/// Most bytes of one body.
const BODY_MAX_BYTES: usize = 1 << 20;
/// So much of a body that is too long is read and thrown away, so that its sender hears why it was refused instead of a broken connection.
const DISCARDED_MAX_BYTES: usize = 32 << 20;
/// Most events of one body.
const EVENTS_MAX: usize = 5_000;

/// One event of a body.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// It may enter the log.
    Fit(Box<ShopperEvent>),
    /// It becomes a dead letter.
    Unfit {
        /// Its id, where one can be read.
        id: Option<String>,
        /// What is wrong with it.
        reason: String,
        /// Its text as it came.
        original: String,
    },
}

/// Only JSON types are taken: a foreign page's form cannot send those without the browser asking first.
///
/// # Errors
/// `415` for any other type.
pub(super) fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" | "application/x-ndjson" | "application/jsonl" => Ok(()),
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
/// `400` when the body is not JSON, is empty or has too many events.
pub(super) fn read(body: &[u8]) -> Result<Vec<Received>, ApiError> {
    let text =
        std::str::from_utf8(body).map_err(|error| bad(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut events: Vec<&RawValue> = Vec::new();
    if text.trim_start().starts_with('[') {
        events = serde_json::from_str(text).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    } else {
        for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            events.push(value.map_err(|error| bad(format!("the body is not JSON: {error}")))?);
            if events.len() > EVENTS_MAX {
                break;
            }
        }
    }
    match events.len() {
        0 => Err(bad("the body holds no event".to_owned())),
        n if n > EVENTS_MAX => Err(bad(format!("the body holds more than {EVENTS_MAX} events: send them in several requests"))),
        _ => Ok(events.into_iter().map(|raw| receive(raw.get())).collect()),
    }
}

fn receive(text: &str) -> Received {
    let unfit = |id, reason| Received::Unfit { id, reason, original: text.to_owned() };
    match serde_json::from_str::<ShopperEvent>(text) {
        Ok(event) => match event.check() {
            Ok(()) => Received::Fit(Box::new(event)),
            Err(fault) => unfit(Some(event.id), fault.to_string()),
        },
        Err(error) => unfit(id_of(text), format!("not a shopper event: {error}")),
    }
}

fn id_of(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(value.get("id")?.as_str()?.chars().take(ShopperEvent::TEXT_MAX_BYTES / 4).collect())
}

fn bad(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"id":"e1","user":"u","at_ms":1,"kind":"purchase","lines":[{"product":"p"}]}"#;

    fn check(body: &str, expected: &[Result<&str, &str>]) {
        let received = read(body.as_bytes()).expect("a body of events");
        assert_eq!(received.len(), expected.len());
        for (received, expected) in received.iter().zip(expected) {
            match (received, expected) {
                (Received::Fit(event), Ok(id)) => assert_eq!(event.id, *id),
                (Received::Unfit { reason, .. }, Err(part)) => assert!(reason.contains(part), "`{reason}` does not say `{part}`"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn one_event_an_array_and_lines_are_taken() {
        check(GOOD, &[Ok("e1")]);
        check(&format!(" [{GOOD}, {GOOD}]"), &[Ok("e1"), Ok("e1")]);
        check(&format!("{GOOD}\n{GOOD}\n\n"), &[Ok("e1"), Ok("e1")]);
    }

    #[test]
    fn each_event_is_judged_on_its_own() {
        let no_lines = r#"{"id":"e2","user":"u","at_ms":1,"kind":"purchase"}"#;
        let unknown = r#"{"id":"e3","user":"u","at_ms":1,"kind":"dance"}"#;
        let extra = r#"{"id":"e4","user":"u","at_ms":1,"kind":"erase","colour":"red"}"#;
        let expected =
            [Ok("e1"), Err("needs `lines`"), Err("unknown variant"), Err("unknown field `colour`"), Err("not a shopper event")];
        check(&format!("[{GOOD},{no_lines},{unknown},{extra},7]"), &expected);
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_position() {
        for (body, part) in [
            (&b"{\"id\":"[..], "line 1 column 6"),
            (b"[1,2", "line 1 column 4"),
            (b"", "no event"),
            (b"[]", "no event"),
            (b"\xff\xfe", "not UTF-8 at byte 0"),
            ("1 ".repeat(EVENTS_MAX + 1).as_bytes(), "more than"),
        ] {
            let error = format!("{:?}", read(body).expect_err("a refusal"));
            assert!(error.contains(part), "`{error}` does not say `{part}`");
        }
    }
}
