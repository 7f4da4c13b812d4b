//! Logins and certificates: what fits works, and what does not is one clear error within seconds that shows no secret.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use endcap_log_kafka::{KafkaSettings, Mechanism, Security, Topics};
use endcap_runtime::{
    Broker, Log, LogError, Secret,
    contract::{poll_all, record, through_all},
};
use endcap_schemas::topics::Topic;

use crate::server::{Server, address, checked, settings, small};

/// Longest time until an error is told.
const SOON: Duration = Duration::from_secs(8);

/// Settings for the broker's TLS port, with the login that the environment names.
fn login(broker: &str) -> Option<KafkaSettings> {
    Some(KafkaSettings {
        security: Security::SaslSsl,
        ca: Some(PathBuf::from(address("ENDCAP_TEST_CA")?)),
        mechanism: Some(Mechanism::ScramSha512),
        user: Some(env::var("ENDCAP_TEST_USER").ok()?),
        password: Some(Secret::new(env::var("ENDCAP_TEST_PASSWORD").ok()?)),
        ..settings(broker)
    })
}

/// Checks that these settings are refused soon, in words that have `parts`.
fn check_refused(settings: KafkaSettings, parts: &[&str]) {
    let start = Instant::now();
    let error = Topics::connect(&checked(settings), &small(1)).expect_err("such settings are refused");
    let text = error.to_string();
    assert!(start.elapsed() < SOON, "{:?}: {text}", start.elapsed());
    assert!(matches!(error, LogError::Refused(_)), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    println!("{text}");
}

#[test]
fn a_login_over_tls_works() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    let server = Server::with(login(&broker).expect("the environment names the login"), 2);
    server.kafka.append(&[record(Topic::EVENTS, "anna", b"1")], None).expect("an event is taken");
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 1);
    log.commit(&through_all("s", &got)).expect("a commit is taken");
}

#[test]
fn a_wrong_password_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    let login = login(&broker).expect("the environment names the login");
    let user = login.user.clone().expect("a user");
    let wrong = KafkaSettings { password: Some(Secret::new("hunter2")), ..login };
    check_refused(wrong, &[&format!("login of {user} is not accepted"), &broker]);
}

#[test]
fn a_wrong_authority_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(dir.path());
    let login = login(&broker).expect("the environment names the login");
    check_refused(
        KafkaSettings { ca: Some(authority.path("ca.pem")), ..login },
        &["cannot be verified: its authority is not the one in `ca`", &broker],
    );
}

#[test]
fn an_expired_certificate_is_one_clear_error() {
    // Any server that shows such a certificate will do.
    if address("ENDCAP_TEST_KAFKA_TLS").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(dir.path());
    authority.sign_expired();
    let server = Expired::start(&authority);
    let settings = KafkaSettings { security: Security::Ssl, ca: Some(authority.path("ca.pem")), ..settings(&server.address) };
    check_refused(settings, &["cannot be verified", "it has expired", &server.address]);
}

#[test]
fn a_broker_that_is_not_there_is_one_clear_error() {
    let config = checked(KafkaSettings { request_timeout_s: 1, ..settings("127.0.0.1:1") });
    let start = Instant::now();
    let error = Topics::connect(&config, &small(1)).expect_err("nobody is there");
    assert!(matches!(&error, LogError::Unavailable(cause) if cause.contains("127.0.0.1:1")), "{error}");
    assert!(start.elapsed() < SOON);
}

/// A throw-away authority, made with openssl.
struct Authority(PathBuf);

impl Authority {
    fn new(dir: &Path) -> Self {
        let authority = Self(dir.to_owned());
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=other",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a certificate for this machine that has ended in 2021.
    fn sign_expired(&self) {
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\ncertificate=ca.pem\nprivate_key=ca.key
            default_md=sha256\npolicy=p\nx509_extensions=e\nrand_serial=yes\n[p]\ncommonName=supplied
            [e]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n";
        std::fs::write(self.path("ca.cnf"), config).expect("a file");
        std::fs::write(self.path("index"), "").expect("a file");
        self.openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "key.pem",
            "-out",
            "csr.pem",
        ]);
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-in",
            "csr.pem",
            "-out",
            "old.pem",
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20210101000000Z",
        ]);
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(&self.0).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A TLS server with the expired certificate, on a port that the system chose.
struct Expired {
    child: Child,
    address: String,
}

impl Expired {
    fn start(authority: &Authority) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "0", "-cert", "old.pem", "-key", "key.pem"])
            .current_dir(&authority.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut accepts =
            lines.map_while(Result::ok).filter_map(|line| Some(line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.to_owned()));
        let port = accepts.next().expect("openssl tells its port");
        Self { child, address: format!("127.0.0.1:{port}") }
    }
}

impl Drop for Expired {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
