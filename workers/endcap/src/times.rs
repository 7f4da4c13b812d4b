//! Times as people read them: moments in UTC after RFC 3339, durations with their unit. JSON keeps numbers.

use std::time::{Duration, UNIX_EPOCH};

use endcap_schemas::ShopperEvent;
use serde_json::Value;

/// Fields that stages tell a moment in; every other one in `_ms` is a duration.
const MOMENTS: [&str; 2] = ["at_ms", "last_ms"];

/// The moment `ms` milliseconds after 1970: `2025-06-15T15:06:40.000Z`.
pub(crate) fn at(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(after) if ms <= ShopperEvent::AT_MAX_MS => {
            humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(after)).to_string()
        }
        _ => format!("{ms} ms after 1970"),
    }
}

/// A duration of `ms` milliseconds: `640 ms`, `12.3 s`, `2 min 5 s`, `3 h 20 min`.
pub(crate) fn lasted(ms: f64) -> String {
    let seconds = ms / 1_000.0;
    let (hours, minutes) = ((seconds / 3_600.0).floor(), (seconds / 60.0).floor());
    if seconds.abs() < 1.0 {
        format!("{ms:.0} ms")
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else if minutes < 100.0 {
        format!("{minutes} min {:.0} s", (seconds % 60.0).floor())
    } else {
        format!("{hours} h {} min", minutes % 60.0)
    }
}

/// What a stage told, with its times written out.
pub(crate) fn written_out(told: &Value) -> Value {
    match told {
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), field(key, value))).collect(),
        Value::Array(items) => items.iter().map(written_out).collect(),
        other => other.clone(),
    }
}

fn field(key: &str, value: &Value) -> Value {
    match value {
        Value::Number(ms) if MOMENTS.contains(&key) => ms.as_i64().map_or_else(|| value.clone(), |ms| at(ms).into()),
        Value::Number(ms) if key.ends_with("_ms") => ms.as_f64().map_or_else(|| value.clone(), |ms| lasted(ms).into()),
        other => written_out(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_moment_is_told_in_utc() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_750_000_000_123, "2025-06-15T15:06:40.123Z"),
            (ShopperEvent::AT_MAX_MS, "9999-12-31T23:59:59.000Z"),
            (i64::MAX, "9223372036854775807 ms after 1970"),
            (-1, "-1 ms after 1970"),
        ] {
            assert_eq!(at(ms), expected);
        }
    }

    #[test]
    fn a_duration_has_the_unit_that_suits_it() {
        for (ms, expected) in [
            (0.0, "0 ms"),
            (12.5, "12 ms"),
            (-3.0, "-3 ms"),
            (1_234.0, "1.2 s"),
            (125_900.0, "2 min 5 s"),
            (12_000_000.0, "3 h 20 min"),
        ] {
            assert_eq!(lasted(ms), expected);
        }
    }

    #[test]
    fn times_within_what_a_stage_told_are_written_out() {
        let told = json!({ "event": { "at_ms": 1_000, "id": "e1" }, "recent": [{ "last_ms": 0, "count": 3 }], "took_ms": 1_500 });
        let expected = json!({ "event": { "at_ms": "1970-01-01T00:00:01.000Z", "id": "e1" },
                               "recent": [{ "last_ms": "1970-01-01T00:00:00.000Z", "count": 3 }], "took_ms": "1.5 s" });
        assert_eq!(written_out(&told), expected);
    }
}
