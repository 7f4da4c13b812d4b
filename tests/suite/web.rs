//! The way in from outside, where it goes wrong: requests that do not end, bodies that are refused as a whole, files that are not whole.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use endcap_tests::Endcap;
use serde_json::Value;

use crate::program::{Place, place, purchase};

/// What some programs put before UTF-8 text.
const BOM: &[u8] = b"\xef\xbb\xbf";

fn up(place: &Place, args: &[&str]) -> Endcap {
    let base = ["--models", &place.models, "--shoppers", "0", "--debounce", "0s"];
    place.program().up(&[&base[..], args].concat()).expect("a running endcap")
}

fn letters(up: &Endcap) -> Vec<Value> {
    up.get("/v1/dead-letters").unwrap().1["letters"].as_array().expect("dead letters").clone()
}

#[test]
fn requests_that_do_not_end_do_not_hold_up_the_end() {
    let place = place();
    let report = place.dir.path().join("report.json");
    let up = up(&place, &["--report", &report.display().to_string()]);
    let head =
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    let open = [format!("{head}5\r\n{{\"id\"\r\n"), "GET /v1/sho".to_owned()].map(|text| {
        let mut stream = TcpStream::connect(up.address().trim_start_matches("http://")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    });
    assert_eq!(up.get("/health/live").unwrap().0, 200, "both were let in before");
    up.interrupt().unwrap();
    up.wait().expect("an orderly end");
    assert!(report.is_file());
    for mut stream in open {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer); // closed or reset
        assert_eq!(answer, "");
    }
}

#[test]
fn a_body_that_is_refused_as_a_whole_is_one_dead_letter() {
    let place = place();
    let up = up(&place, &[]);
    let good = purchase("e1", "ada", "d00001").to_string();
    for (body, status, kind, part) in [
        (b"{\"id\": NaN}".to_vec(), 400, "malformed", "not JSON: expected value at line 1 column 8"),
        (b"{\"user\": \"Ren\xe9\"}".to_vec(), 400, "malformed", "not JSON"),
        (b"\xff\xfe{\0}\0".to_vec(), 400, "malformed", "not JSON"),
        (b"\x1f\x8b\x08\0".to_vec(), 400, "malformed", "not JSON"),
        (format!("[{good}, ada]").into(), 400, "malformed", "not JSON"),
        (format!("{good}\n").repeat(5_001).into(), 400, "too_many", "more than 5000 events"),
        (vec![b' '; 40 << 20], 413, "too_large", "longer than 1048576 bytes"),
    ] {
        let before = letters(&up).len();
        let length = body.len();
        let (answered, answer) = up.post("/v1/events", body).unwrap();
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(answered == status && error.contains(part) && error.contains("dead letter"), "{answered} {answer}");
        let letters = letters(&up);
        assert_eq!(letters.len(), before + 1);
        let (original, message) = (letters[0]["original"].as_str().unwrap(), letters[0]["message"].as_str().unwrap());
        assert!(letters[0]["reason"] == kind && message.contains(part), "{}", letters[0]);
        assert!(original.starts_with(&format!("({length} bytes, blake3 ")), "{original}");
    }
    let before = letters(&up).len();
    assert_eq!(up.post("/v1/events", " \n").unwrap().0, 400, "there is nothing to keep");
    let (status, answer) = up.post("/v1/events", [BOM, good.as_bytes()].concat()).unwrap();
    assert_eq!((status, &answer["accepted"], letters(&up).len()), (200, &Value::from(1), before), "{answer}");
}

#[test]
fn what_a_file_could_not_send_is_told_apart_from_what_was_rejected() {
    let place = place();
    let up = up(&place, &[]);
    let good = purchase("e1", "ada", "d00001").to_string();
    let send = |name: &str, text: &str| {
        let output = place.program().plain(&["send", &place.file(name, text), "--to", up.address()]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, said) = send("lines", &format!("\u{feff}{good}\n{}\nno json\n", "x".repeat(1_000_000)));
    assert_eq!((code, out.as_str()), (Some(1), "1 taken, 0 repeated, 1 rejected, 1 not sent"), "{said}");
    for part in
        ["line 2: longer than 900000 bytes, not sent", "line 3: not JSON", "1 events were rejected", "no dead letter holds them"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(letters(&up).len(), 1);
    let (code, out, said) = send("array", &format!("[{good},\n{good},\n{{\"id\": ]\n"));
    assert!(code == Some(1) && out.is_empty(), "{out}");
    assert!(said.contains("not a JSON array, nothing was sent") && said.contains("line 3 column 8"), "{said}");
    assert_eq!(letters(&up).len(), 1);
}
