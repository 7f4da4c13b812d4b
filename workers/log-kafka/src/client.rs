//! librdkafka's clients: what they are configured with, what they complain of, and who must act on it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use endcap_runtime::{Clock, LogError, SystemClock};
use rdkafka::{
    ClientConfig, ClientContext,
    admin::AdminClient,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    KafkaConfig, Mechanism, Security,
    lock::lock,
    tender,
    tokens::{self, NoToken},
};

/// Largest record, with its key and headers, in bytes: a message of the wire's largest size, and a dead letter's words beside it.
pub(crate) const RECORD_MAX_BYTES: usize = 4 * 1024 * 1024;
/// A complaint that was not heard again for so long is over: connections are tried anew every two seconds at least, and what keeps them from
/// being made is told each time.
const OVER_AFTER: Duration = Duration::from_secs(10);
/// Longest wait for an answer while a connection is tried.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// Listens to a client's complaints and brings its tokens. `role` is what else a client's hooks work with.
#[derive(Debug, Clone)]
pub(crate) struct Watch<R = ()> {
    last: Arc<Mutex<Option<Complaint>>>,
    token_file: Option<PathBuf>,
    pub(crate) role: R,
}

/// What a client last complained of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) code: RDKafkaErrorCode,
    pub(crate) reason: String,
    /// When.
    pub(crate) at: Instant,
}

impl Watch {
    pub(crate) fn of(config: &KafkaConfig) -> Self {
        Watch::with(config, ())
    }
}

/// How much a complaint says: that a connection broke or that all brokers are down may follow from what was told before.
fn weight(code: RDKafkaErrorCode) -> u8 {
    match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL => 2,
        RDKafkaErrorCode::AllBrokersDown => 0,
        _ => 1,
    }
}

impl<R> Watch<R> {
    /// The token as its file has it now.
    pub(crate) fn token(&self) -> Result<OAuthToken, NoToken> {
        let path = self.token_file.as_deref().ok_or(NoToken::NoFile)?;
        tokens::token_of(path, SystemClock::default().now_ms()) // librdkafka compares a token's end with the machine's time
    }

    pub(crate) fn with(config: &KafkaConfig, role: R) -> Watch<R> {
        Watch { last: Arc::default(), token_file: config.settings().token_file.clone(), role }
    }

    pub(crate) fn last(&self) -> Option<Complaint> {
        lock(&self.last).clone()
    }

    /// Takes a complaint in, unless the last one says more and may still hold.
    fn hear(&self, complaint: Complaint) {
        let mut last = lock(&self.last);
        let is_over = |last: &Complaint| complaint.at.saturating_duration_since(last.at) >= OVER_AFTER;
        if last.as_ref().is_none_or(|last| weight(complaint.code) >= weight(last.code) || is_over(last)) {
            *last = Some(complaint);
        }
    }

    pub(crate) fn clear(&self) {
        *lock(&self.last) = None;
    }
}

impl<R: Send + Sync + 'static> ClientContext for Watch<R> {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
        let Some(code) = error.rdkafka_error_code() else { return };
        self.hear(Complaint { code, reason: reason.to_owned(), at: Instant::now() });
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Ok(self.token()?)
    }
}

impl ConsumerContext for Watch {}

impl KafkaConfig {
    /// What every client is configured with.
    fn client(&self) -> ClientConfig {
        let settings = self.settings();
        let mut client = ClientConfig::new();
        client.extend(settings.properties.iter().map(|(key, value)| (key.clone(), value.clone())));
        client
            .set("bootstrap.servers", settings.brokers.join(","))
            .set("security.protocol", settings.security.protocol())
            .set("message.max.bytes", RECORD_MAX_BYTES.to_string());
        self.usually(&mut client, "client.id", &format!("endcap.{}", settings.instance));
        self.usually(&mut client, "reconnect.backoff.ms", "50");
        self.usually(&mut client, "reconnect.backoff.max.ms", "2000");
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let mut set = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                client.set(key, value);
            }
        };
        set("ssl.ca.location", path(&settings.ca));
        set("ssl.certificate.location", path(&settings.certificate));
        set("ssl.key.location", path(&settings.key));
        set("ssl.key.password", settings.key_password.as_ref().map(|secret| secret.reveal().to_owned()));
        set("sasl.mechanisms", settings.mechanism.map(|mechanism| mechanism.name().to_owned()));
        if settings.mechanism != Some(Mechanism::OauthBearer) {
            set("sasl.username", settings.user.clone());
            set("sasl.password", settings.password.as_ref().map(|secret| secret.reveal().to_owned()));
        }
        client
    }

    /// Sets a property unless the settings do.
    pub(crate) fn usually(&self, client: &mut ClientConfig, key: &str, value: &str) {
        if !self.settings().properties.contains_key(key) {
            client.set(key, value);
        }
    }

    /// A client that asks for metadata and offsets and reads nothing.
    pub(crate) fn asker(&self) -> ClientConfig {
        self.client()
    }

    /// A client that reads committed records and is in `group`. Nothing is committed unless somebody says so.
    pub(crate) fn reader(&self, group: &str) -> ClientConfig {
        let mut client = self.client();
        client
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", (self.settings().session_timeout_s * 1_000).to_string());
        client
    }

    /// A client that writes transactions under `id`.
    pub(crate) fn writer(&self, id: &str) -> ClientConfig {
        let mut client = self.client();
        client
            .set("transactional.id", id)
            .set("transaction.timeout.ms", (self.settings().transaction_timeout_s * 1_000).to_string())
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1000") // a transaction's records go out together, when the writer flushes
            .set("delivery.report.only.error", "true");
        self.usually(&mut client, "compression.type", "lz4");
        if client.get("compression.type") == Some("zstd") {
            self.usually(&mut client, "compression.level", "1");
        }
        client
    }
}

/// Creates a client. Its own words about a bad setting may hold the value, so only the key is told.
pub(crate) fn create<C, T>(client: &ClientConfig, context: C) -> Result<T, LogError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    client.create_with_context(context).map_err(|error| match error {
        KafkaError::ClientConfig(_, _, key, _) => {
            LogError::Refused(format!("librdkafka does not take property `{key}` or its value: mend it"))
        }
        KafkaError::ClientCreation(cause) if cause.contains("ssl.key.location") => {
            LogError::Refused(format!("the private key cannot be read: check `key` and `key_password` ({cause})"))
        }
        KafkaError::ClientCreation(cause) if cause.contains("ssl.ca.location") => {
            LogError::Refused(format!("the authorities' certificates cannot be read: check `ca` ({cause})"))
        }
        error => LogError::Refused(format!("no client can be made: {error}")),
    })
}

/// A client for administration. It lives no longer than a token.
pub(crate) fn admin(config: &KafkaConfig) -> Result<AdminClient<Watch>, LogError> {
    let watch = Watch::of(config);
    let admin: AdminClient<Watch> = create(&config.asker(), watch.clone())?;
    if config.settings().mechanism == Some(Mechanism::OauthBearer) {
        let given = watch.token().and_then(|token| tokens::give(admin.inner(), &token));
        given.map_err(|error| LogError::Refused(error.to_string()))?;
    }
    Ok(admin)
}

/// Makes sure that a broker answers and takes the login, within `patience`.
///
/// # Errors
/// [`LogError::Refused`] where a person must act, as soon as that is known; [`LogError::Unavailable`] when nothing answers in time.
pub(crate) fn connect(config: &KafkaConfig, patience: Duration) -> Result<(), LogError> {
    let watch = Watch::of(config);
    let client: BaseConsumer<Watch> = create(&config.asker(), watch.clone())?;
    let deadline = Instant::now() + patience;
    tender::serve(&client); // its token, where it needs one
    loop {
        let answer = client.client().fetch_metadata(Some("endcap.connect"), TRY_EVERY);
        tender::serve(&client);
        let Err(error) = answer else { return Ok(()) };
        if let Some(complaint) = watch.last()
            && let Some(refused) = refusal(config, &complaint)
        {
            return Err(refused);
        }
        if Instant::now() >= deadline {
            let settings = config.settings();
            let cause = match watch.last() {
                // Of connections that were made and closed at once librdkafka tells no more than that nobody is there.
                Some(Complaint { code: RDKafkaErrorCode::AllBrokersDown, .. }) if settings.security == Security::Plaintext => {
                    "no connection lasts; if TLS is spoken at this port, set `security`".to_owned()
                }
                Some(complaint) => complaint.reason,
                None => error.to_string(),
            };
            let brokers = settings.brokers.join(", ");
            return Err(LogError::Unavailable(format!("no broker of {brokers} answers within {patience:?}: {cause}")));
        }
    }
}

/// What a complaint means where only a person can mend it.
pub(crate) fn refusal(config: &KafkaConfig, complaint: &Complaint) -> Option<LogError> {
    let settings = config.settings();
    let brokers = settings.brokers.join(", ");
    let Complaint { code, reason, .. } = complaint;
    let text = match code {
        RDKafkaErrorCode::Authentication if settings.mechanism == Some(Mechanism::OauthBearer) => {
            format!("{brokers}: no token is accepted: check `token_file` and what renews it ({reason})")
        }
        RDKafkaErrorCode::Authentication => {
            let who = settings.user.as_deref().unwrap_or("this client");
            format!("{brokers}: the login of {who} is not accepted: check user, password and mechanism ({reason})")
        }
        RDKafkaErrorCode::SSL if reason.contains("could not be verified") => {
            // librdkafka does not tell which of the three it is.
            let ca = settings.ca.as_ref().map_or_else(String::new, |ca| format!(" -CAfile {}", ca.display()));
            format!(
                "{brokers}: the certificate there cannot be verified: its authority is not the one in `ca`, it has expired, or it is \
                 another host's; `openssl s_client -connect {}{ca}` tells which ({reason})",
                settings.brokers[0]
            )
        }
        // After a handshake that looks well from here, the brokers say so in place of their first answer.
        RDKafkaErrorCode::BrokerTransportFailure if is_refused_certificate(reason) => {
            format!("{brokers}: this client's certificate is not accepted: check `certificate` and `key` ({reason})")
        }
        RDKafkaErrorCode::SSL => format!("{brokers}: no TLS connection: check `certificate` and `key`, and the port ({reason})"),
        _ => return None,
    };
    Some(LogError::Refused(text))
}

/// Whether these words tell of an alert of TLS that a server sends when it does not take a client's certificate, or misses it.
fn is_refused_certificate(reason: &str) -> bool {
    reason.contains(" alert ") && ["certificate", "unknown ca"].iter().any(|word| reason.contains(word))
}

/// What an answer means for whoever asked: most of all whether waiting helps.
pub(crate) fn failure(what: &str, error: &KafkaError) -> LogError {
    let text = format!("{what}: {error}");
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    match code {
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::Authentication,
        ) => LogError::Refused(text),
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition) => {
            LogError::Unavailable(format!("{text}: declare the topics (`endcap topics apply`)"))
        }
        Some(RDKafkaErrorCode::InvalidReplicationFactor) => {
            LogError::Refused(format!("{text}: there are fewer brokers than `replication` asks for copies"))
        }
        Some(RDKafkaErrorCode::InvalidConfig | RDKafkaErrorCode::InvalidPartitions | RDKafkaErrorCode::PolicyViolation) => {
            LogError::Refused(format!("{text}: the brokers do not take what `[topics]` asks for"))
        }
        Some(
            RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidRequest
            | RDKafkaErrorCode::UnsupportedVersion
            | RDKafkaErrorCode::SecurityDisabled,
        ) => LogError::Refused(text),
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            LogError::Refused(format!("{text}: raise the brokers' and the topics' `max.message.bytes` to {RECORD_MAX_BYTES}"))
        }
        _ => LogError::Unavailable(text),
    }
}

/// Whether whoever keeps groups or transactions is changing, as when a cluster has its first one: that mends by itself.
pub(crate) fn is_between_coordinators(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use endcap_runtime::Secret;
    use endcap_schemas::topics::Lane;

    use super::*;
    use crate::{KafkaSettings, config::OWN};

    fn config() -> KafkaConfig {
        let settings = KafkaSettings {
            brokers: vec!["a:1".into()],
            instance: "x".into(),
            security: Security::SaslSsl,
            mechanism: Some(Mechanism::ScramSha512),
            user: Some("anna".into()),
            password: Some(Secret::new("hunter2")),
            ..KafkaSettings::default()
        };
        settings.try_into().unwrap()
    }

    #[test]
    fn a_property_is_kept_as_given_or_refused() {
        let clients = |config: &KafkaConfig| {
            [Lane::Live, Lane::Backfill].map(|lane| config.member("g", lane)).into_iter().chain([config.writer("w")])
        };
        let usual: BTreeSet<String> = clients(&config())
            .flat_map(|client| client.config_map().keys().map(|key| (*key).to_owned()).collect::<Vec<_>>())
            .collect();
        for key in usual {
            let properties = BTreeMap::from([(key.clone(), "ours".to_owned())]);
            match KafkaConfig::try_from(KafkaSettings { properties, ..config().settings().clone() }) {
                Ok(config) => assert!(clients(&config).all(|client| client.get(&key) == Some("ours")), "{key}"),
                Err(faults) => assert!(OWN.contains(&key.as_str()), "{key}: {faults}"),
            }
        }
    }

    #[test]
    fn a_complaint_that_says_more_is_kept_for_as_long_as_it_is_heard() {
        let (watch, start) = (Watch::of(&config()), Instant::now());
        let hear = |at_s: u64, code: RDKafkaErrorCode| {
            watch.hear(Complaint { code, reason: format!("{code:?}"), at: start + Duration::from_secs(at_s) });
            watch.last().map(|complaint| complaint.code)
        };
        use RDKafkaErrorCode::{AllBrokersDown, Authentication, BrokerTransportFailure, SSL};
        for (at_s, code, kept) in [
            (0, AllBrokersDown, AllBrokersDown),
            (0, BrokerTransportFailure, BrokerTransportFailure),
            (0, AllBrokersDown, BrokerTransportFailure),
            (1, SSL, SSL),
            (2, BrokerTransportFailure, SSL),
            (3, Authentication, Authentication),
            (9, Authentication, Authentication),
            (18, AllBrokersDown, Authentication),
            // The login works again, and the brokers go: nobody is sent to look for a password.
            (19, BrokerTransportFailure, BrokerTransportFailure),
        ] {
            assert_eq!(hear(at_s, code), Some(kept), "{code:?} after {at_s} s");
        }
    }

    #[test]
    fn a_complaint_that_only_a_person_can_mend_says_so_without_the_secret() {
        for (code, reason, part) in [
            (RDKafkaErrorCode::Authentication, "invalid credentials", "login of anna is not accepted"),
            (RDKafkaErrorCode::SSL, "broker certificate could not be verified", "`openssl s_client -connect a:1` tells which"),
            (RDKafkaErrorCode::SSL, "wrong version number", "check `certificate`"),
            (
                RDKafkaErrorCode::BrokerTransportFailure,
                "Receive failed: SSL routines::tlsv13 alert certificate required",
                "certificate is not accepted",
            ),
        ] {
            let refused = refusal(&config(), &Complaint { code, reason: reason.into(), at: Instant::now() }).unwrap().to_string();
            assert!(refused.contains(part) && refused.contains(reason) && !refused.contains("hunter2"), "{refused}");
        }
        let (code, at) = (RDKafkaErrorCode::BrokerTransportFailure, Instant::now());
        let down = Complaint { code, reason: "connection refused".into(), at };
        assert!(refusal(&config(), &down).is_none(), "a broker that is down may come back");
    }
}
