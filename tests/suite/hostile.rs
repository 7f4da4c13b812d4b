//! The ranking service under requests that nobody should send: each is answered, and none of them as a fault of the program.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use endcap_tests::Endcap;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::program::place;

const SEED: u64 = 23;
const REQUESTS: usize = 600;
const PATHS: [&str; 7] = [
    "/v1/storefronts/ada",
    "/v1/storefronts/tenant/ada?rerank=4",
    "/v1/storefronts/%F0%9F%92%A5",
    "/v1/storefronts/",
    "/v1/feedback",
    "/v1/openapi.json",
    "/v1/storefronts/ada/../../feedback",
];
const HEADERS: [&str; 6] = [
    "content-type: application/json",
    "content-type: text/plain",
    "x-request-id: a",
    "x-request-id: \u{e9}\u{0}",
    "content-type: application/json; charset=utf-16",
    "x-request-id:",
];

/// Characters that programs stumble over.
const BITES: &[u8] = b"\0\x7f\xff%/\\?&#\"'{}[]:,.-+eE019NaN \xc3\xa9";

#[test]
fn whatever_is_sent_is_answered_and_the_service_goes_on() {
    let place = place();
    let up = place.program().up(&["--models", &place.models, "--shoppers", "0"]).expect("a running endcap");
    let front = up.get("/v1/storefronts/ada").unwrap().1;
    let slate = &front["placements"][0]["slate"];
    let product = &front["placements"][0]["products"][0]["id"];
    let good = json!([{ "slate": slate, "impressions": [product], "clicks": [product], "cart_adds": [] }]).to_string();
    let bodies = [
        good.clone(),
        "[]".to_owned(),
        "[".repeat(5_000),
        format!("{{\"slate\": {slate}, \"impressions\": [NaN], \"clicks\": 1e999}}"),
        json!({ "slate": "A".repeat(70_000), "clicks": [product] }).to_string(),
        json!(vec![json!({ "slate": slate, "clicks": vec!["x"; 101] }); 20]).to_string(),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut answers = std::collections::BTreeMap::new();
    for n in 0..REQUESTS {
        let request = request(&mut rng, &bodies);
        let status = send(&up, &request);
        let shown = || String::from_utf8_lossy(&request[..request.len().min(400)]).into_owned();
        // What is no HTTP at all may be cut off without a word.
        assert!(status.is_none_or(|status| status < 500), "seed {SEED}, request {n}: {status:?} to {}", shown());
        *answers.entry(status).or_insert(0) += 1;
    }
    assert!(answers.len() >= 5, "all alike, so little was tried: {answers:?}");
    assert_eq!(up.get("/health/live").unwrap().0, 200);
    assert_eq!(up.get("/v1/storefronts/ada").unwrap().0, 200);
    let (status, answer) = up.post("/v1/feedback", good).unwrap();
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    let said = up.kill();
    assert!(!said.contains("panicked"), "{said}");
}

/// A request that is sound in most parts.
fn request(rng: &mut ChaCha8Rng, bodies: &[String]) -> Vec<u8> {
    let method = *["GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "G\u{0}T"].choose(rng).expect("a method");
    let path = *PATHS.choose(rng).expect("a path");
    let path = bitten(rng, path.as_bytes(), 0.3);
    let mut headers = vec![b"host: localhost".to_vec(), b"connection: close".to_vec()];
    for _ in 0..rng.random_range(0..3) {
        let header = *HEADERS.choose(rng).expect("a header");
        headers.push(bitten(rng, header.as_bytes(), 0.1));
    }
    let body = bodies.choose(rng).expect("a body");
    let body = bitten(rng, body.as_bytes(), 0.6);
    headers.push(format!("content-length: {}", body.len()).into_bytes());
    let head = [method.as_bytes(), b" ", &path, b" HTTP/1.1\r\n", &headers.join(&b"\r\n"[..]), b"\r\n\r\n"].concat();
    [head, body].concat()
}

/// `text`, which in `share` of all cases is changed in some places, or cut.
fn bitten(rng: &mut ChaCha8Rng, text: &[u8], share: f64) -> Vec<u8> {
    let mut bytes = text.to_vec();
    if bytes.is_empty() || !rng.random_bool(share) {
        return bytes;
    }
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..bytes.len());
        let bite = *BITES.choose(rng).expect("a bite");
        match rng.random_range(0..4) {
            0 => bytes[at] = bite,
            1 => bytes.insert(at, bite),
            2 => bytes[at] ^= 1 << rng.random_range(0..8),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

/// The status of the answer; `None` where the connection was closed without one.
fn send(up: &Endcap, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(up.address().trim_start_matches("http://")).expect("a connection");
    // Refused early, the rest may not be taken any more.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let line = answer.split(|byte| *byte == b' ').nth(1)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}
