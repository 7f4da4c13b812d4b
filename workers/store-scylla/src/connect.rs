//! Connecting: the session with its limits of time, TLS, and what a failure to connect means for whoever starts the process.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode},
    x509::{X509, X509VerifyResult, store::X509StoreBuilder},
};
use scylla::{
    client::{
        execution_profile::ExecutionProfile,
        session::{OpenSsl010Config, Session},
        session_builder::SessionBuilder,
    },
    cluster::ClusterState,
    errors::NewSessionError,
    policies::load_balancing::{DefaultPolicy, LoadBalancingPolicy},
    statement::Consistency,
};
use thiserror::Error;

use crate::{
    config::{ScyllaConfig, TlsFiles},
    copies,
};

/// A connection is asked for a sign of life when it was idle for so long, and is given up when none comes within as long again.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why the store could not be opened or migrated. Never shows a secret.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file of the TLS connection cannot be used.
    #[error("cannot use {path}: {cause}: name a readable PEM file in the store's `tls` settings")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The server's certificate, or ours, is not accepted.
    #[error("cannot trust the store at {points}: {cause}: check the server's certificate and `tls.ca`")]
    Certificate {
        /// Where it was tried.
        points: String,
        /// What the handshake says.
        cause: String,
    },
    /// The login is refused.
    #[error("store at {points} refuses the login: {cause}: correct `user` and `password`")]
    Login {
        /// Where it was tried.
        points: String,
        /// What the server says.
        cause: String,
    },
    /// No server answers.
    #[error("cannot reach the store at {points}: {cause}: check `contact_points` and that a server runs there")]
    Unreachable {
        /// Where it was tried.
        points: String,
        /// What the driver says.
        cause: String,
    },
    /// No server is in the data centre that is to be asked.
    #[error("no server of the store is in data centre `{named}`: set `datacenter` to one of {there}, or leave it out")]
    Datacenter {
        /// What was configured.
        named: String,
        /// Data centres that there are.
        there: String,
    },
    /// The keyspace has no copies in the data centre that is to be asked.
    #[error(
        "keyspace `{keyspace}` keeps {kept}, but `datacenter` is `{named}`: alter its replication to NetworkTopologyStrategy with copies \
         there, or leave `datacenter` out"
    )]
    Copies {
        /// What was configured.
        named: String,
        /// The keyspace.
        keyspace: String,
        /// What it keeps, in words.
        kept: String,
    },
    /// The keyspace or its tables are not there, or older than this release needs.
    #[error("keyspace `{keyspace}` {found}, this release needs schema version {known}: run `endcap store migrate`")]
    Older {
        /// The keyspace.
        keyspace: String,
        /// What was found, in words.
        found: String,
        /// The version needed.
        known: i32,
    },
    /// A newer release has migrated it.
    #[error(
        "keyspace `{keyspace}` has schema version {found}, this release knows {known}: use the newer release, or another keyspace"
    )]
    Newer {
        /// The keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// The newest version known.
        known: i32,
    },
    /// Another process is migrating for longer than this one waits.
    #[error(
        "process `{owner}` has been migrating keyspace `{keyspace}` for longer than {waited:?}: wait for it, then run this again"
    )]
    Busy {
        /// The keyspace.
        keyspace: String,
        /// Who is at it.
        owner: String,
        /// How long this process waited.
        waited: Duration,
    },
    /// A statement failed.
    #[error("cannot {what}: {cause}")]
    Failed {
        /// What was tried.
        what: String,
        /// What the server or the driver says.
        cause: String,
    },
    /// Threads cannot be started.
    #[error("cannot start the store's threads: {0}")]
    Threads(#[from] io::Error),
}

impl OpenError {
    /// Of something that was tried.
    pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(&dyn Error) -> Self {
        let what = what.into();
        move |cause| Self::Failed { what, cause: told(cause) }
    }
}

/// An error with its causes, each told once.
pub(crate) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// The cause of all causes: a driver's whole chain tells of pools and connections, and its end of what happened.
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Connects within the configured time. Names no keyspace: it need not be there yet.
pub(crate) async fn connect(config: &ScyllaConfig) -> Result<Session, OpenError> {
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .connection_timeout(config.timeouts.connect)
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .schema_agreement_timeout(config.timeouts.migrate)
        .default_execution_profile_handle(
            ExecutionProfile::builder()
                .request_timeout(Some(config.timeouts.scan))
                .consistency(Consistency::LocalQuorum)
                .load_balancing_policy(balancing(config))
                .build()
                .into_handle(),
        );
    let distrust = Distrust::default();
    if let Some(login) = &config.login {
        builder = builder.user(&login.user, login.password.reveal());
    }
    if let Some(files) = &config.tls {
        builder = builder.tls_context(Some(tls(files, &distrust)?));
    }
    // Each attempt has its own limit; this one bounds them all.
    let limit = config.timeouts.connect * 2;
    match tokio::time::timeout(limit, builder.build()).await {
        Ok(Ok(session)) => near(config, &session.get_cluster_state()).map(|()| session),
        Ok(Err(error)) => Err(refused(config, &error, distrust.told())),
        Err(_) => Err(OpenError::Unreachable { points: points(config), cause: format!("no answer within {limit:?}") }),
    }
}

/// Refuses a data centre that no server is in, or no copy: nobody there could answer, request by request.
fn near(config: &ScyllaConfig, cluster: &ClusterState) -> Result<(), OpenError> {
    let Some(named) = &config.datacenter else { return Ok(()) };
    let there = copies::datacenters(cluster);
    if !there.contains(&**named) {
        let there = there.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(OpenError::Datacenter { named: named.clone(), there });
    }
    if let Some(kept) = copies::none_near(cluster, config) {
        return Err(OpenError::Copies { named: named.clone(), keyspace: config.keyspace.clone(), kept });
    }
    Ok(())
}

/// Token-aware, within the near data centre: another one answers for itself alone (`LOCAL_…`), and its answer may be older.
pub(crate) fn balancing(config: &ScyllaConfig) -> Arc<dyn LoadBalancingPolicy> {
    let builder = DefaultPolicy::builder().token_aware(true);
    match &config.datacenter {
        Some(datacenter) => builder.prefer_datacenter(datacenter.clone()).build(),
        None => builder.build(),
    }
}

fn points(config: &ScyllaConfig) -> String {
    config.contact_points.join(", ")
}

/// Sorts a failure to connect by who must act.
fn refused(config: &ScyllaConfig, error: &NewSessionError, distrust: Option<String>) -> OpenError {
    let (points, whole) = (points(config), told(error));
    let says = |words: &[&str]| words.iter().any(|word| whole.contains(word));
    let cause = innermost(error);
    if let Some(cause) = distrust {
        OpenError::Certificate { points, cause }
    } else if says(&["SSL routines", "certificate"]) {
        OpenError::Certificate { points, cause }
    } else if says(&["Authentication", "authentication", "credentials"]) {
        let cause = if config.login.is_some() { cause } else { "it asks for one, and none is set".to_owned() };
        OpenError::Login { points, cause }
    } else {
        OpenError::Unreachable { points, cause }
    }
}

/// Why a server's certificate was last not trusted: OpenSSL's error says only that it was not.
#[derive(Clone, Default)]
struct Distrust(Arc<Mutex<Option<String>>>);

impl Distrust {
    fn note(&self, reason: X509VerifyResult) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.error_string().to_owned());
    }

    fn told(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// TLS that checks a server's certificate: its authority, its time, and (the driver sees to that) that it names the address. No authority
/// is trusted but those of the file.
fn tls(files: &TlsFiles, distrust: &Distrust) -> Result<OpenSsl010Config, OpenError> {
    let authorities = certificates(&files.ca)?;
    let mut builder = trusting(authorities).map_err(|error| unusable(&files.ca, error.to_string()))?;
    let distrust = distrust.clone();
    builder.set_verify_callback(SslVerifyMode::PEER, move |is_trusted, context| {
        if !is_trusted {
            distrust.note(context.error());
        }
        is_trusted
    });
    if let (Some(certificate), Some(key)) = (&files.certificate, &files.key) {
        show(&mut builder, certificates(certificate)?, &private_key(key)?)
            .map_err(|_| unusable(certificate, format!("it does not fit the key {}", key.display())))?;
    }
    Ok(OpenSsl010Config::new(builder))
}

fn trusting(authorities: Vec<X509>) -> Result<SslConnectorBuilder, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for authority in authorities {
        store.add_cert(authority)?;
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_cert_store(store.build());
    Ok(builder)
}

/// Has the client show a certificate, the first of `chain`, and what leads from it to its authority.
fn show(builder: &mut SslConnectorBuilder, chain: Vec<X509>, key: &PKey<Private>) -> Result<(), ErrorStack> {
    let mut chain = chain.into_iter();
    if let Some(own) = chain.next() {
        builder.set_certificate(&own)?;
    }
    chain.try_for_each(|link| builder.add_extra_chain_cert(link))?;
    builder.set_private_key(key)?;
    builder.check_private_key()
}

fn certificates(path: &Path) -> Result<Vec<X509>, OpenError> {
    let certificates = X509::stack_from_pem(&bytes(path)?).map_err(|_| unusable(path, "it is no PEM file of certificates"))?;
    if certificates.is_empty() { Err(unusable(path, "it holds no certificate")) } else { Ok(certificates) }
}

/// A key with a passphrase is refused: there is nobody to ask.
fn private_key(path: &Path) -> Result<PKey<Private>, OpenError> {
    let no_passphrase = |_: &mut [u8]| Ok(0);
    PKey::private_key_from_pem_callback(&bytes(path)?, no_passphrase)
        .map_err(|_| unusable(path, "it is no PEM file of a private key without passphrase"))
}

fn bytes(path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, cause: impl Into<String>) -> OpenError {
    OpenError::TlsFile { path: path.to_owned(), cause: cause.into() }
}
