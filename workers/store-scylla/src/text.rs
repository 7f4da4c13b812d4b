//! The configuration as it is written down, and how it becomes values: all faults are told together.

use std::{fmt, time::Duration};

use endcap_runtime::{Secret, outside};
use serde::Deserialize;
use thiserror::Error;

use crate::config::{Lifetimes, Login, Replication, ScyllaConfig, Timeouts, TlsFiles};

/// Longest lifetime that a CQL server takes: twenty years of 365 days.
const TTL_MAX: Duration = Duration::from_secs(630_720_000);
/// Port where a contact point names none.
const PORT: u16 = 9042;
/// Longest name of a keyspace, in characters, as CQL has it.
const KEYSPACE_MAX: usize = 48;

/// The configuration as it is written down: durations as texts such as `2s`, `20ms`, `90days`; a lifetime may be `never`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScyllaText {
    /// Servers to begin with: `host` or `host:port`.
    pub contact_points: Vec<String>,
    /// The data centre next to this process, whose nodes alone are asked; absent where there is one only.
    pub datacenter: Option<String>,
    /// Name of the keyspace.
    pub keyspace: String,
    /// Copies of a row: a number for every data centre alike, or a table of numbers by data centre. Used when the keyspace is made.
    pub replication: Replication,
    /// Name to log in with.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Files of the TLS connection; absent for a plain one.
    pub tls: Option<TlsFiles>,
    /// Limits of time.
    pub timeouts: TimeoutsText,
    /// Lifetimes of rows.
    pub ttl: LifetimesText,
    /// Requests of one call that are under way at once.
    pub in_flight_max: usize,
}

impl Default for ScyllaText {
    fn default() -> Self {
        Self {
            contact_points: vec![format!("127.0.0.1:{PORT}")],
            datacenter: None,
            keyspace: "endcap".to_owned(),
            replication: Replication::Everywhere(3),
            user: None,
            password: None,
            tls: None,
            timeouts: TimeoutsText::default(),
            ttl: LifetimesText::default(),
            in_flight_max: 64,
        }
    }
}

/// Limits of time, as texts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsText {
    /// Making a connection.
    pub connect: String,
    /// Reading a page, results or a cached answer.
    pub read: String,
    /// A read that has no answer after so long is asked of another replica as well.
    pub speculate: String,
    /// Reading a state or an erasure.
    pub decide: String,
    /// Writing.
    pub write: String,
    /// One page of a scan over many users.
    pub scan: String,
    /// Waiting for another process that migrates, and for the servers to agree on a schema.
    pub migrate: String,
}

impl Default for TimeoutsText {
    fn default() -> Self {
        let text = str::to_owned;
        // After 20 ms another replica is asked. To give up after 20 ms would turn a pause of one server into errors: with one server on two
        // crowded cores, reads of pages took 20 ms at the median, 76 ms beside writes, 500 ms at most (`tests/src/bin/page_reads.rs`).
        Self {
            connect: text("5s"),
            read: text("500ms"),
            speculate: text("20ms"),
            decide: text("2s"),
            write: text("2s"),
            scan: text("10s"),
            migrate: text("60s"),
        }
    }
}

/// Lifetimes of rows, as texts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LifetimesText {
    /// Of pages.
    pub pages: String,
    /// Of fold states: a shopper who is away for longer begins anew.
    pub states: String,
    /// Of what `explain` tells.
    pub results: String,
    /// Of cached answers.
    pub cache: String,
}

impl Default for LifetimesText {
    fn default() -> Self {
        let text = str::to_owned;
        Self { pages: text("90days"), states: text("never"), results: text("7days"), cache: text("30days") }
    }
}

/// Everything that is wrong with the store's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl TryFrom<ScyllaText> for ScyllaConfig {
    type Error = ConfigFaults;

    fn try_from(text: ScyllaText) -> Result<Self, ConfigFaults> {
        let mut faults = Faults::default();
        let config = Self {
            contact_points: faults.contact_points(&text.contact_points),
            datacenter: faults.name("datacenter", text.datacenter),
            keyspace: faults.keyspace(text.keyspace),
            replication: faults.replication(text.replication),
            login: faults.login(text.user, text.password),
            tls: faults.tls(text.tls),
            timeouts: faults.timeouts(&text.timeouts),
            ttl: faults.lifetimes(&text.ttl),
            in_flight_max: text.in_flight_max,
        };
        faults.0.extend(outside("in_flight_max", text.in_flight_max, 1..=1_024));
        if faults.0.is_empty() { Ok(config) } else { Err(ConfigFaults(faults.0)) }
    }
}

/// Faults found so far; each method passes a value on and notes what is wrong with it.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn contact_points(&mut self, points: &[String]) -> Vec<String> {
        if points.is_empty() {
            self.0.push("`contact_points` must name at least one server, such as 10.0.0.1:9042".to_owned());
        }
        let completed: Vec<_> = points.iter().map(|point| (point, with_port(point.trim()))).collect();
        for (point, _) in completed.iter().filter(|(_, completed)| completed.is_none()) {
            self.0.push(format!("`contact_points` must be host or host:port, {point:?} is not"));
        }
        completed.into_iter().filter_map(|(_, completed)| completed).collect()
    }

    fn name(&mut self, key: &str, name: Option<String>) -> Option<String> {
        if name.as_deref().is_some_and(|name| name.trim().is_empty() || name.contains('\'')) {
            self.0.push(format!("`{key}` must be a name without quotes, {:?} is not", name.as_deref().unwrap_or_default()));
        }
        name
    }

    fn keyspace(&mut self, name: String) -> String {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins || name.len() > KEYSPACE_MAX || !name.chars().all(is_plain) {
            self.0.push(format!(
                "`keyspace` must be up to {KEYSPACE_MAX} of the characters a-z 0-9 _ and begin with a letter, {name:?} is not"
            ));
        }
        name
    }

    fn replication(&mut self, replication: Replication) -> Replication {
        match &replication {
            Replication::Everywhere(copies) => self.0.extend(outside("replication", *copies, 1..=10)),
            Replication::PerDatacenter(copies) if copies.is_empty() => {
                self.0.push("`replication` must name at least one data centre".to_owned());
            }
            Replication::PerDatacenter(copies) => {
                for (datacenter, copies) in copies {
                    self.name("replication", Some(datacenter.clone()));
                    self.0.extend(outside(&format!("replication.{datacenter}"), *copies, 0..=10));
                }
            }
        }
        replication
    }

    fn login(&mut self, user: Option<String>, password: Option<Secret>) -> Option<Login> {
        match (user, password) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (None, None) => None,
            (Some(_), None) => {
                self.0.push("`password` is missing: `user` needs one".to_owned());
                None
            }
            (None, Some(_)) => {
                self.0.push("`user` is missing: `password` belongs to one".to_owned());
                None
            }
        }
    }

    fn tls(&mut self, files: Option<TlsFiles>) -> Option<TlsFiles> {
        if files.as_ref().is_some_and(|files| files.certificate.is_some() != files.key.is_some()) {
            self.0.push("`tls.certificate` and `tls.key` belong together: name both or neither".to_owned());
        }
        files
    }

    fn timeouts(&mut self, text: &TimeoutsText) -> Timeouts {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        let timeouts = Timeouts {
            connect: self.duration("timeouts.connect", &text.connect, minute),
            read: self.duration("timeouts.read", &text.read, minute),
            speculate: self.duration("timeouts.speculate", &text.speculate, minute),
            decide: self.duration("timeouts.decide", &text.decide, minute),
            write: self.duration("timeouts.write", &text.write, minute),
            scan: self.duration("timeouts.scan", &text.scan, hour),
            migrate: self.duration("timeouts.migrate", &text.migrate, hour),
        };
        if timeouts.speculate > timeouts.read {
            let Timeouts { speculate, read, .. } = timeouts;
            self.0.push(format!(
                "`timeouts.speculate` must not be longer than `timeouts.read`, {speculate:?} is longer than {read:?}"
            ));
        }
        timeouts
    }

    fn lifetimes(&mut self, text: &LifetimesText) -> Lifetimes {
        Lifetimes {
            pages: self.lifetime("ttl.pages", &text.pages),
            states: self.lifetime("ttl.states", &text.states),
            results: self.lifetime("ttl.results", &text.results),
            cache: self.lifetime("ttl.cache", &text.cache),
        }
    }

    fn duration(&mut self, key: &str, text: &str, most: Duration) -> Duration {
        let parsed = humantime::parse_duration(text.trim()).ok();
        let good = parsed.filter(|time| (Duration::from_millis(1)..=most).contains(time));
        good.unwrap_or_else(|| {
            let most = humantime::format_duration(most);
            self.0.push(format!("`{key}` must be a time of 1ms to {most}, such as 500ms or 2s, {text:?} is not"));
            Duration::from_secs(1)
        })
    }

    fn lifetime(&mut self, key: &str, text: &str) -> Option<Duration> {
        if text.trim() == "never" {
            return None;
        }
        let parsed = humantime::parse_duration(text.trim()).ok();
        let good = parsed.filter(|time| (Duration::from_secs(1)..=TTL_MAX).contains(time));
        if good.is_none() {
            self.0.push(format!("`{key}` must be `never` or a time of 1s to 7300days, such as 90days, {text:?} is not"));
        }
        good
    }
}

/// `host:port` of `host` or `host:port`; IPv6 addresses with a port stand in brackets.
fn with_port(point: &str) -> Option<String> {
    let is_host = |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
    if let Ok(address) = point.parse::<std::net::IpAddr>() {
        return Some(std::net::SocketAddr::new(address, PORT).to_string());
    }
    match point.rsplit_once(':') {
        Some((host, port)) => (is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| point.to_owned()),
        None => is_host(point).then(|| format!("{point}:{PORT}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<ScyllaConfig, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    fn check(value: Value, parts: &[&str]) {
        let error = read(value).expect_err("a configuration with faults");
        assert_eq!(error.split("; ").count(), parts.len(), "{error}");
        for part in parts {
            assert!(error.contains(part), "`{error}` does not say `{part}`");
        }
    }

    #[test]
    fn nothing_written_is_a_whole_configuration() {
        let config = read(json!({})).unwrap();
        assert_eq!((config.keyspace(), config.contact_points()), ("endcap", &["127.0.0.1:9042".to_owned()][..]));
        assert_eq!((config.ttl.states, config.ttl.pages), (None, Some(Duration::from_secs(90 * 86_400))));
    }

    #[test]
    fn what_is_written_is_taken() {
        let config = read(json!({
            "contact_points": ["db1", "db2:19042", "::1", "[::1]:9"], "replication": { "east": 3, "west": 2 }, "datacenter": "east",
            "user": "endcap", "password": "hunter2", "tls": { "ca": "ca.pem" }, "ttl": { "states": "2years" }, "timeouts": { "read": "20ms" }
        }))
        .unwrap();
        assert_eq!(config.contact_points, ["db1:9042", "db2:19042", "[::1]:9042", "[::1]:9"]);
        assert_eq!((config.timeouts.read, config.timeouts.write), (Duration::from_millis(20), Duration::from_secs(2)));
        assert_eq!(config.replication, Replication::PerDatacenter([("east".to_owned(), 3), ("west".to_owned(), 2)].into()));
        let shown = format!("{config:?}");
        assert!(shown.contains("\"endcap\"") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn all_faults_are_told_together_and_no_secret_with_them() {
        check(
            json!({
                "contact_points": ["db:0", "http://db"], "keyspace": "End-cap", "replication": 0, "password": "hunter2",
                "tls": { "ca": "ca.pem", "key": "key.pem" }, "in_flight_max": 0,
                "timeouts": { "connect": "soon", "speculate": "1s" }, "ttl": { "pages": "0s", "cache": "21years" }
            }),
            &[
                "host or host:port, \"db:0\" is not",
                "\"http://db\" is not",
                "`keyspace` must be",
                "`replication` must be 1 to 10, 0 is not",
                "`user` is missing",
                "`tls.certificate` and `tls.key` belong together",
                "`timeouts.connect` must be",
                "`timeouts.speculate` must not be longer",
                "`ttl.pages` must be `never`",
                "`ttl.cache` must be `never`",
                "`in_flight_max` must be 1 to 1024, 0 is not",
            ],
        );
        check(json!({ "contact_points": [], "replication": {} }), &["at least one server", "at least one data centre"]);
        check(json!({ "keyspaces": "x" }), &["unknown field `keyspaces`"]);
        check(json!({ "user": "x" }), &["`password` is missing"]);
        for password in [json!("hunter2"), json!(4711), json!({ "is": 4711 })] {
            let error = read(json!({ "password": password })).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains("4711"), "{error}");
        }
    }
}
