//! The store as people's own tools see it: cqlsh, and a program with a driver and the page's schema.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use endcap_runtime::{Stamp, Store, Write};
use endcap_schemas::UserKey;
use serde_json::Value;

use crate::real::{Keyspace, Server, server};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Python with cqlsh beside it; `None`, said aloud, where it is absent and may be.
fn python() -> Option<PathBuf> {
    let python = env::var_os("ENDCAP_TEST_PYTHON").map(PathBuf::from).filter(|python| python.with_file_name("cqlsh").exists());
    if python.is_none() {
        let remedy = "tests/services/services fetch tools, and take on its env";
        assert!(env::var("ENDCAP_REQUIRE_SERVICES").is_err(), "no ENDCAP_TEST_PYTHON with cqlsh, and it is required: {remedy}");
        println!("skipped: no ENDCAP_TEST_PYTHON with cqlsh; {remedy}");
    }
    python
}

fn said(command: &mut Command, server: &Server) -> String {
    let command = command.env("CQL_USER", &server.user).env("CQL_PASSWORD", &server.password);
    let output = command.output().expect("a program that was found runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says text")
}

fn cqlsh(python: &Path, server: &Server, query: &str) -> String {
    let (host, port) = server.address.rsplit_once(':').expect("host:port");
    let login = ["-u", &server.user, "-p", &server.password];
    let times = ["--connect-timeout", "60", "--request-timeout", "60"];
    said(Command::new(python.with_file_name("cqlsh")).args([host, port]).args(login).args(times).args(["-e", query]), server)
}

/// The page that once was kept as a sample, and what it says.
fn sample() -> (Vec<u8>, Value) {
    let path = |kind: &str| root().join(format!("schemas/samples/endcap.page-published.v1.1.{kind}"));
    let words = fs::read(path("json")).expect("a sample's words");
    (fs::read(path("bin")).expect("a sample"), serde_json::from_slice(&words).expect("JSON"))
}

#[test]
fn cqlsh_shows_pages_with_their_titles_and_a_program_reads_them_whole() {
    let Some((server, _guard)) = server() else { return };
    let Some(python) = python() else { return };
    let keyspace = Keyspace::migrated(&server);
    let (page, says) = sample();
    let write = |user: &str, page: Option<&[u8]>| Write::Page {
        user: UserKey::of(user),
        stamp: Stamp(1_700_000_000_001_004),
        page: page.map(<[u8]>::to_vec),
    };
    keyspace.store().put_all(&[write("anna", Some(&page)), write("bert", None), write("carl", Some(b"odd"))], &[]).unwrap();

    let query = format!("SELECT user_id, stamp, bytes, titles FROM {}.pages", keyspace.name);
    let shown = cqlsh(&python, &server, &query);
    let row = |user: &str| {
        let line = shown.lines().find(|line| line.contains(user)).unwrap_or_else(|| panic!("{user} is not in {shown}"));
        line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let bytes = page.len().to_string();
    assert_eq!(row("anna"), ["anna", "1700000000001004", &bytes, "['Sunday Pasta']"], "{shown}");
    assert_eq!(row("bert"), ["bert", "1700000000001004", "0", "null"], "a withdrawn page");
    assert_eq!(row("carl"), ["carl", "1700000000001004", "3", "null"], "what is no page of this release is kept all the same");

    let script = root().join("docs/tools/read_page.py");
    let printed = said(Command::new(&python).arg(&script).args([&server.address, &keyspace.name, "anna"]), &server);
    assert_eq!(serde_json::from_str::<Value>(&printed).expect("JSON"), says);
    let mut asked = Command::new(&python);
    asked.arg(script).args([&server.address, &keyspace.name, "bert"]);
    let refused = asked.env("CQL_USER", &server.user).env("CQL_PASSWORD", &server.password).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("default/bert has no page"), "{refused:?}");
}
