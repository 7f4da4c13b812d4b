//! Who is let in, who is trusted, and what an error shows: each fault is told once, within seconds, without a secret.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{ManualClock, Stamp, Store, Write};
use endcap_schemas::UserKey;
use endcap_store_scylla::{OpenError, ScyllaConfig, ScyllaStore};
use openssl::{
    asn1::{Asn1Integer, Asn1Time},
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, Private},
    rsa::Rsa,
    ssl::{SslAcceptor, SslMethod},
    x509::{
        X509, X509NameBuilder,
        extension::{BasicConstraints, SubjectAlternativeName},
    },
};
use serde_json::{Value, json};

use crate::real::{Keyspace, NOW_MS, order, server, server_alone};

const DAY_S: i64 = 86_400;
const SECRET: &str = "hunter2-and-more";
/// Each error comes within this time; the limit to connect is 2 s, all attempts together twice that.
const SOON: Duration = Duration::from_secs(15);

/// A certificate with its key.
struct Identity {
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate of `address`, valid from `from_s` to `to_s` around now, signed by `authority`; without one it is an authority.
fn identity(authority: Option<&Identity>, address: IpAddr, from_s: i64, to_s: i64) -> Identity {
    let key = PKey::from_rsa(Rsa::generate(2_048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", if authority.is_some() { "server" } else { "authority" }).unwrap();
    let name = name.build();
    let now_s = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&Asn1Integer::from_bn(&BigNum::from_u32(1).unwrap()).unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(authority.map_or(&*name, |authority| authority.certificate.subject_name())).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(now_s + from_s).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(now_s + to_s).unwrap()).unwrap();
    match authority {
        None => builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap(),
        Some(_) => {
            let mut names = SubjectAlternativeName::new();
            let names = names.ip(&address.to_string()).build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
    }
    builder.sign(authority.map_or(&key, |authority| &authority.key), MessageDigest::sha256()).unwrap();
    Identity { certificate: builder.build(), key }
}

fn authority() -> Identity {
    identity(None, IpAddr::V4(Ipv4Addr::LOCALHOST), -DAY_S, DAY_S)
}

fn pem(dir: &Path, name: &str, identity: &Identity) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, identity.certificate.to_pem().unwrap()).unwrap();
    path
}

/// A server that shakes hands with this identity and says nothing more.
fn handshaking(identity: &Identity) -> String {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&identity.certificate).unwrap();
    acceptor.set_private_key(&identity.key).unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming().take(16) {
            held.extend(stream.ok().and_then(|stream| acceptor.accept(stream).ok()));
        }
    });
    address
}

fn config(address: &str, more: Value) -> ScyllaConfig {
    let mut settings =
        json!({ "contact_points": [address], "timeouts": { "connect": "2s" }, "user": "endcap", "password": SECRET });
    let Value::Object(more) = more else { panic!("settings are an object") };
    settings.as_object_mut().unwrap().extend(more);
    serde_json::from_value(settings).unwrap()
}

/// The error of a store that cannot be opened.
fn refused(config: &ScyllaConfig) -> OpenError {
    let start = Instant::now();
    let error = ScyllaStore::open(config, Arc::new(ManualClock::at(NOW_MS))).err().expect("this cannot be opened");
    println!("after {:?}: {error}", start.elapsed());
    assert!(start.elapsed() < SOON, "after {:?}: {error}", start.elapsed());
    let shown = format!("{error} {error:?} {config:?}");
    assert!(!shown.contains(SECRET), "{shown}");
    error
}

#[test]
fn certificates_that_do_not_hold_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (authority(), authority());
    let (here, there) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    let cases = [
        ("expired", identity(Some(&own), here, -9 * DAY_S, -DAY_S), "expired"),
        ("not yet valid", identity(Some(&own), here, DAY_S, 9 * DAY_S), "not yet valid"),
        ("of another authority", identity(Some(&other), here, -DAY_S, DAY_S), "certificate signature failure"),
        ("of another address", identity(Some(&own), there, -DAY_S, DAY_S), "mismatch"),
        ("its own authority", authority(), "self-signed certificate"),
    ];
    let ca = pem(dir.path(), "ca.pem", &own);
    for (name, server, says) in cases {
        let error = refused(&config(&handshaking(&server), json!({ "tls": { "ca": ca } })));
        assert!(matches!(error, OpenError::Certificate { .. }), "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (authority(), authority());
    let ca = pem(dir.path(), "ca.pem", &own);
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let key = dir.path().join("key.pem");
    fs::write(&key, other.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let cases = [
        (json!({ "ca": dir.path().join("none.pem") }), "none.pem"),
        (json!({ "ca": empty }), "holds no certificate"),
        (json!({ "ca": key }), "key.pem"),
        (json!({ "ca": ca, "certificate": ca, "key": ca }), "no PEM file of a private key"),
        (json!({ "ca": ca, "certificate": ca, "key": key }), "does not fit the key"),
    ];
    for (tls, says) in cases {
        let error = refused(&config("127.0.0.1:1", json!({ "tls": tls })));
        assert!(matches!(error, OpenError::TlsFile { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_told_within_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), free] {
        let error = refused(&config(&address.to_string(), json!({})));
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    let Some((server, _guard)) = server() else { return };
    let tls = std::env::var("ENDCAP_TEST_CA").ok().map(|ca| json!({ "ca": ca }));
    for tls in [None, tls] {
        let error = refused(&config(&server.address, json!({ "user": server.user, "tls": tls })));
        assert!(matches!(error, OpenError::Login { .. }), "over {tls:?}: {error}");
    }
    let error = refused(&config(&server.address, json!({ "user": null, "password": null })));
    assert!(matches!(error, OpenError::Login { .. }), "without a login: {error}");
}

/// The server with a certificate that has expired; it shows its own again when the value is dropped.
struct Expired(String);

impl Expired {
    fn of(services: String) -> Self {
        let expired = Self(services);
        expired.show("expired");
        expired
    }

    fn show(&self, certificate: &str) {
        order(&self.0, &["certificate", certificate]);
        order(&self.0, &["stop", "cql"]);
        order(&self.0, &["start", "cql"]);
    }
}

impl Drop for Expired {
    fn drop(&mut self) {
        self.show("server");
    }
}

#[test]
fn a_servers_expired_certificate_is_refused_and_its_own_is_taken_again() {
    let Some((server, _guard)) = server_alone() else { return };
    let of = |name| std::env::var(name).ok();
    let Some((services, ca)) = of("ENDCAP_TEST_SERVICES").zip(of("ENDCAP_TEST_CA")) else {
        println!("skipped: no ENDCAP_TEST_SERVICES and ENDCAP_TEST_CA; see tests/services");
        return;
    };
    let keyspace = Keyspace::migrated(&server);
    let tls = json!({ "tls": { "ca": ca } });
    let expired = Expired::of(services);
    // A server that has just started is slow to shake hands.
    let error = refused(&config(&server.address, json!({ "tls": { "ca": ca }, "timeouts": { "connect": "7s" } })));
    assert!(matches!(error, OpenError::Certificate { .. }) && error.to_string().contains("expired"), "{error}");
    drop(expired);
    keyspace.store_with(tls).put_all(&[], &[]).unwrap();
}

#[test]
fn a_store_over_tls_trusts_its_authority_and_no_other() {
    let Some((server, _guard)) = server() else { return };
    let Ok(ca) = std::env::var("ENDCAP_TEST_CA") else {
        println!("skipped: no ENDCAP_TEST_CA; see tests/services");
        return;
    };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store_with(json!({ "tls": { "ca": ca } }));
    let user = UserKey::of("anna");
    store.put_all(&[Write::State { user: user.clone(), stamp: Stamp(1), state: vec![1] }], &[]).unwrap();
    assert_eq!(store.state(&user).unwrap(), Some(vec![1]));

    let dir = tempfile::tempdir().unwrap();
    let stranger = pem(dir.path(), "stranger.pem", &authority());
    let error = refused(&keyspace.config(json!({ "tls": { "ca": stranger } })));
    assert!(matches!(error, OpenError::Certificate { .. }), "{error}");
}
