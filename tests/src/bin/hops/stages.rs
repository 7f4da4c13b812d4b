//! Stages that hand their record on as it is.

use endcap_runtime::{Input, Passed, Stage, StageError, Verdict};
use endcap_schemas::{Head, Message, UserKey, topics::Topic};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SCHEMA: &str = r#"{"type": "record", "name": "Parcel", "fields": [
    {"name": "user", "type": "string"}, {"name": "payload", "type": "string"}]}"#;

macro_rules! parcel {
    ($name:ident, $topic:ident) => {
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(rename = "Parcel")]
        pub(crate) struct $name {
            pub(crate) user: String,
            pub(crate) payload: String,
        }

        impl Message for $name {
            const TOPIC: Topic = Topic::$topic;
            const SCHEMA: &'static str = SCHEMA;

            fn head(&self) -> Option<&Head> {
                None
            }

            fn user(&self) -> UserKey {
                UserKey::of(&self.user)
            }
        }
    };
}

parcel!(First, EVENTS);
parcel!(Second, CONTEXTS);
parcel!(Third, THEMES);
parcel!(Fourth, KEYWORDS);
parcel!(Fifth, DEDUPED);

macro_rules! hop {
    ($name:ident, $from:ident => $to:ident, $words:literal) => {
        pub(crate) struct $name;

        impl Stage for $name {
            type In = $from;
            type Out = $to;
            const NAME: &'static str = $words;

            fn process(&mut self, batch: &[Input<$from>]) -> Result<Vec<Verdict<$to>>, StageError> {
                let pass = |input: &Input<$from>| {
                    let $from { user, payload } = input.value.clone();
                    let out = $to { user, payload };
                    Verdict::Passed(Box::new(Passed { out, explanation: Value::Null, writes: Vec::new(), counters: Vec::new() }))
                };
                Ok(batch.iter().map(pass).collect())
            }
        }
    };
}

hop!(One, First => Second, "hop-one");
hop!(Two, Second => Third, "hop-two");
hop!(Three, Third => Fourth, "hop-three");
hop!(Four, Fourth => Fifth, "hop-four");
