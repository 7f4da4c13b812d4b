//! A schema registry (Confluent's HTTP API): values travel as `00`, the four bytes of a schema's id and the body, and are single-object
//! encoding inside of the process, as everywhere else. The body is the same in both.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use endcap_runtime::LogError;
use endcap_schemas::{topics::Topic, wire};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{RegistrySettings, lock::lock};

/// First byte of a framed value.
const FRAMED: u8 = 0x00;
/// That byte and the id.
const HEADER_BYTES: usize = 5;
/// The API's own media type.
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A registry, and what was learnt from it.
pub(crate) struct Registry {
    agent: ureq::Agent,
    settings: RegistrySettings,
    known: Mutex<Known>,
    greeted: Mutex<bool>,
}

/// Ids and fingerprints never change, so what is known once is known.
#[derive(Default)]
struct Known {
    ids: HashMap<(Topic, u64), u32>,
    /// `None` for one whose schema is not Avro, or none that can be read.
    fingerprints: HashMap<u32, Option<u64>>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Stored {
    schema: String,
    #[serde(rename = "schemaType", default)]
    kind: Option<String>,
}

impl Registry {
    pub(crate) fn new(settings: &RegistrySettings, timeout: Duration) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build().into();
        Self { agent, settings: settings.clone(), known: Mutex::default(), greeted: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Looks, the first time, whether it answers and takes the token. One that does not answer is told of, and waited for by whoever needs it.
    ///
    /// # Errors
    /// [`LogError::Refused`] when it does not take the token.
    pub(crate) fn greet(&self) -> Result<(), LogError> {
        let mut greeted = lock(&self.greeted);
        if *greeted {
            return Ok(());
        }
        match self.ask("be reached", || self.authorised(self.agent.get(self.url("schemas/ids/1"))).call()) {
            Ok(Err((401, text))) => return Err(refused("let this process in", 401, &text)),
            Ok(_) => {}
            Err(error) => tracing::warn!("{error}; records wait for it"),
        }
        *greeted = true;
        Ok(())
    }

    /// The value as it travels on `topic`, which is called `name` there. One in no framing of ours stays as it is.
    pub(crate) fn frame(&self, topic: Topic, name: &str, value: &[u8]) -> Result<Vec<u8>, LogError> {
        let Some((fingerprint, body)) = wire::parts_of(value) else { return Ok(value.to_vec()) };
        let known = self.known().ids.get(&(topic, fingerprint)).copied();
        let id = match known {
            Some(id) => id,
            None => match self.register(topic, name, fingerprint)? {
                Some(id) => id,
                None => return Ok(value.to_vec()),
            },
        };
        Ok(framed(id, body))
    }

    /// The value in single-object encoding, and the id that it came with. `None` for one that is not framed, or whose schema nobody knows:
    /// it is handed on as it is.
    pub(crate) fn unframe(&self, value: &[u8]) -> Result<Option<(Vec<u8>, u32)>, LogError> {
        let Some((id, body)) = split(value) else { return Ok(None) };
        let known = self.known().fingerprints.get(&id).copied();
        let fingerprint = match known {
            Some(fingerprint) => fingerprint,
            None => self.look_up(id)?,
        };
        Ok(fingerprint.map(|fingerprint| (wire::value_of(fingerprint, body), id)))
    }

    /// Registers the version of the topic's schema that has this fingerprint; `None` where this release knows none.
    fn register(&self, topic: Topic, name: &str, fingerprint: u64) -> Result<Option<u32>, LogError> {
        let schemas = wire::schemas_of(topic);
        let Some(schema) = schemas.into_iter().find(|schema| wire::fingerprint_of_schema(schema) == Ok(fingerprint)) else {
            return Ok(None);
        };
        let path = format!("subjects/{name}-value/versions");
        let answer = self.ask("register a schema", || {
            self.authorised(self.agent.post(self.url(&path))).content_type(MEDIA_TYPE).send_json(json!({ "schema": schema }))
        })?;
        let registered: Registered = match answer {
            Ok(text) => parse(&text)?,
            Err((409, text)) => {
                return Err(LogError::Refused(format!(
                    "the registry takes the schema of {name} for incompatible: {}",
                    message(&text)
                )));
            }
            Err((status, text)) => return Err(refused("register a schema", status, &text)),
        };
        self.known().ids.insert((topic, fingerprint), registered.id);
        self.known().fingerprints.insert(registered.id, Some(fingerprint));
        Ok(Some(registered.id))
    }

    fn look_up(&self, id: u32) -> Result<Option<u64>, LogError> {
        let path = format!("schemas/ids/{id}");
        let answer = self.ask("look a schema up", || self.authorised(self.agent.get(self.url(&path))).call())?;
        let fingerprint = match answer {
            Ok(text) => {
                let stored: Stored = parse(&text)?;
                let is_avro = stored.kind.as_deref().is_none_or(|kind| kind == "AVRO");
                if is_avro { wire::fingerprint_of_schema(&stored.schema).ok() } else { None }
            }
            // What it does not know now it may know a moment later.
            Err((404, _)) => return Ok(None),
            Err((status, text)) => return Err(refused("look a schema up", status, &text)),
        };
        self.known().fingerprints.insert(id, fingerprint);
        Ok(fingerprint)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.settings.url.trim_end_matches('/'))
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.settings.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.reveal())),
            None => request,
        }
    }

    /// Sends a request; answers the body, or status and body of a refusal.
    fn ask(
        &self,
        what: &str,
        send: impl FnOnce() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Result<String, (u16, String)>, LogError> {
        let down = |error: ureq::Error| {
            LogError::Unavailable(format!("the schema registry at {} cannot {what}: {error}", self.settings.url))
        };
        let mut answer = send().map_err(down)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(down)?;
        match status {
            200..=299 => Ok(Ok(text)),
            // It mends by itself or it does not, but no record is to blame.
            429 | 500..=599 => Err(LogError::Unavailable(format!("the schema registry cannot {what}: status {status}"))),
            _ => Ok(Err((status, text))),
        }
    }
}

fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, LogError> {
    serde_json::from_str(text).map_err(|error| LogError::Refused(format!("the schema registry's answer cannot be read: {error}")))
}

fn refused(what: &str, status: u16, text: &str) -> LogError {
    let remedy = if status == 401 { ": check `registry.token`" } else { "" };
    LogError::Refused(format!("the schema registry does not {what}{remedy}: status {status}, {}", message(text)))
}

/// The registry's own words.
fn message(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let told = value.as_ref().and_then(|value| value["message"].as_str()).unwrap_or(text);
    told.chars().take(300).collect()
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[FRAMED][..], &id.to_be_bytes(), body].concat()
}

fn split(value: &[u8]) -> Option<(u32, &[u8])> {
    let (header, body) = value.split_at_checked(HEADER_BYTES)?;
    match header {
        [FRAMED, a, b, c, d] => Some((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        _ => None,
    }
}

/// The value as it travelled under `id`.
pub(crate) fn framed_again(id: u32, value: &[u8]) -> Vec<u8> {
    wire::parts_of(value).map_or_else(|| value.to_vec(), |(_, body)| framed(id, body))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    /// A registry that answers one request after the other with these statuses, and how often it was asked.
    fn answering(statuses: &'static [&'static str]) -> (Registry, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = RegistrySettings { url: format!("http://{}", listener.local_addr().unwrap()), token: None };
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        thread::spawn(move || {
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                assert!(stream.read(&mut [0; 4_096]).unwrap() > 0);
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            }
        });
        (Registry::new(&settings, Duration::from_secs(10)), asked)
    }

    #[test]
    fn a_registry_is_greeted_until_it_lets_this_process_in_and_then_no_more() {
        let (registry, asked) = answering(&["401 Unauthorized", "404 Not Found", "200 OK"]);
        let Err(LogError::Refused(told)) = registry.greet() else { panic!("a token that is not taken ends the process") };
        assert!(told.contains("check `registry.token`"), "{told}");
        registry.greet().unwrap();
        registry.greet().unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_value_is_framed_and_comes_back() {
        let value = wire::value_of(7, b"body");
        let travels = framed_again(0x0102_0304, &value);
        assert_eq!(travels, b"\x00\x01\x02\x03\x04body");
        assert_eq!(split(&travels), Some((0x0102_0304, &b"body"[..])));
        for other in [&b""[..], b"\x00\x01", b"{}abcdef", &value] {
            assert_eq!(split(other), None);
        }
        assert_eq!(framed_again(1, b"{}"), b"{}", "what is in no framing of ours stays as it is");
    }

    #[test]
    fn the_schemas_of_every_topic_are_known() {
        for topic in Topic::all() {
            let schemas = wire::schemas_of(topic);
            assert!(!schemas.is_empty(), "{topic}");
            assert!(schemas.iter().all(|schema| wire::fingerprint_of_schema(schema).is_ok()), "{topic}");
        }
    }
}
