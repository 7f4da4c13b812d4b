//! The program from outside: what it takes, refuses, keeps and tells. Its models are tiny and random here, so pages are the merchandiser's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use endcap::desk;
use endcap_engine::fixture;
use endcap_runtime::{Embedded, EmbeddedConfig, StoreOverview, SystemClock};
use endcap_schemas::{EventKind, Page, ShopperEvent};
use endcap_tests::{Endcap, Run};
use serde_json::{Value, json};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_endcap-under-test");

/// A place with models for the program.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) models: String,
}

pub(crate) fn place() -> Place {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let models = dir.path().join("models");
    fixture::write_decoder(&models.join("decoder"), 1).expect("a decoder");
    fixture::write_encoder(&models.join("encoder"), 2).expect("an encoder");
    fixture::write_cross_encoder(&models.join("cross-encoder"), 3).expect("a cross-encoder");
    Place { models: models.display().to_string(), dir }
}

impl Place {
    pub(crate) fn program(&self) -> Run {
        Run::new(PROGRAM, &self.data())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    }
}

pub(crate) fn purchase(id: &str, user: &str, product: &str) -> Value {
    json!({ "id": id, "user": user, "at_ms": 1_750_000_000_000_i64, "kind": "purchase", "lines": [{ "product": product }] })
}

/// What stands in the dead letters once `count` of them are there.
fn dead_letters(up: &Endcap, count: usize) -> Vec<Value> {
    up.wait_for(&format!("/v1/dead-letters?limit={}", count * 2), |answer| {
        let letters = answer["letters"].as_array()?;
        (letters.len() >= count).then(|| letters.clone())
    })
    .expect("dead letters")
}

#[test]
fn bad_events_become_dead_letters_with_reasons_and_good_ones_pages() {
    let place = place();
    let up = place.program().up(&["--models", &place.models, "--shoppers", "0", "--debounce", "0s"]).expect("a running endcap");
    let hostile = "<img src=x onerror=alert(1)> '; DROP TABLE pages; --";
    let body = json!([
        purchase("good", "ada", "d00001"),
        purchase("unknown", "ada", "no-such-product"),
        { "id": "basket", "user": "bea", "at_ms": 1_750_000_000_000_i64, "kind": "purchase",
          "lines": [{ "product": "deposit" }, { "product": "d00001" }] },
        { "id": "future", "user": "ada", "at_ms": 4_000_000_000_000_i64, "kind": "purchase", "lines": [{ "product": "d00001" }] },
        { "id": "absurd", "user": "ada", "at_ms": 1, "kind": "purchase", "lines": [{ "product": "d00001", "quantity": 2_000_000_000 }] },
        { "id": "shape-of-12345678", "user": 12_345_678, "at_ms": "yesterday" },
        { "id": "slash", "user": "a/b", "at_ms": 1_750_000_000_000_i64, "kind": "consent", "personalise": false },
        { "id": "hostile", "user": hostile, "at_ms": 1_750_000_000_000_i64, "kind": "preference", "preference": { "dislikes": [hostile] } },
    ]);
    let (status, answer) = up.post("/v1/events", body.to_string()).unwrap();
    let statuses: Vec<&str> =
        answer["results"].as_array().unwrap().iter().map(|result| result["status"].as_str().unwrap()).collect();
    let (accepted, rejected) = ("accepted", "rejected");
    let expected = vec![accepted, accepted, accepted, accepted, rejected, rejected, accepted, accepted];
    assert_eq!((status, statuses), (200, expected));
    assert_eq!(answer["results"][4]["index"], 4, "{answer}");

    let letters = dead_letters(&up, 4);
    let mut reasons: Vec<&str> = letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["future", "malformed", "malformed", "unknown_product"]);
    assert!(letters.iter().all(|letter| !letter["message"].as_str().unwrap().is_empty()), "{letters:?}");

    let page = up.wait_for("/v1/pages/ada", |page| page["placements"].as_array().map(|_| page.clone())).expect("a page");
    assert!(page["placements"].as_array().unwrap().len() >= 5, "{page}");
    let path = hostile.replace(' ', "%20").replace('<', "%3C").replace('>', "%3E").replace(';', "%3B");
    up.wait_for(&format!("/v1/pages/{path}"), |page| page["persona"].as_str().map(|_| ())).expect("a page for a hostile name");

    up.wait_for("/v1/pages/default/a/b", |page| page["persona"].as_str().map(|_| ())).expect("a page for an id with a slash");
    let (status, answer) = up.get("/v1/pages/a/b").unwrap();
    assert!(status == 404 && answer["error"].as_str().unwrap().contains("asked for as `default/a/b`"), "{answer}");

    let metrics = up.text("/metrics").unwrap().1;
    for line in [
        "# TYPE endcap_stage_records_total counter",
        "# TYPE endcap_page_freshness_seconds summary",
        "# TYPE endcap_stage_seconds summary",
        "endcap_stage_seconds_sum{stage=\"aiqa\",lane=\"live\",where=\"infer\"} ",
        "endcap_dead_letters_total{stage=\"context\",lane=\"live\",kind=\"unknown_product\"} 1",
        "endcap_dead_letters_total{stage=\"ingest\",lane=\"live\",kind=\"malformed\"} 2",
        "endcap_stage_counts_total{stage=\"context\",lane=\"live\",name=\"context.lines_unknown\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    up.wait_for("/v1/pipeline", |figures| (figures["refused"] == 2).then_some(())).expect("refused events in the figures");

    let (status, answer) = up.post("/v1/events", "{\"id\": ").unwrap();
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().contains("line 1 column"), "{answer}");
    let (status, _) = up.post("/v1/events", "x".repeat(2 << 20)).unwrap();
    assert_eq!(status, 413);
    let said = up.kill();
    assert!(said.matches("event refused").count() == 2 && said.contains("not a shopper event"), "{said}");
    for user in ["12345678", "ada"] {
        assert!(!said.contains(user), "a log line holds a user's id: {said}");
    }
    check_offline(&place);
}

/// What the data directory tells when the program has ended.
fn check_offline(place: &Place) {
    let program = place.program();
    let listed = program.succeed(&["dlq", "ls"], &["--json"]).unwrap();
    assert_eq!(listed.lines().count(), 6, "four events and two bodies: {listed}");
    let first: Value = serde_json::from_str(listed.lines().last().unwrap()).unwrap();
    let shown = program.succeed(&["dlq", "show", first["id"].as_str().unwrap()], &[]).unwrap();
    assert!(shown.contains("headers"), "{shown}");
    let story = program.succeed(&["explain", "ada"], &[]).unwrap();
    for stage in ["context", "themes", "keywords", "dedup", "aiqa", "page"] {
        assert!(story.contains(&format!("── {stage} ──")), "{story}");
    }
    assert!(story.contains("accepted at 20") && story.contains("at_ms: 2025-06-15T15:06:40.000Z"), "{story}");
    let json = |user: &str| serde_json::from_str::<Value>(&program.succeed(&["explain", user], &["--json"]).unwrap()).unwrap();
    let story = json("ada");
    assert_eq!(story["stages"].as_array().unwrap().len(), 5);
    assert!(story["event"]["accepted_ms"].is_i64(), "JSON keeps numbers");
    assert_eq!(json("bea")["stages"][0]["explanation"]["event"]["unknown_products"], json!(["deposit"]));
    let listed = program.succeed(&["dlq", "ls"], &[]).unwrap();
    assert!(listed.lines().all(|line| line.contains("Z  ")), "{listed}");
    let mistyped = program.output(&["dlq", "ls"], &["--stage", "contxt"]).unwrap();
    let said = String::from_utf8_lossy(&mistyped.stderr);
    assert!(
        mistyped.stdout.is_empty() && said.contains("the newest 6 are of the stages context, ingest, for the reasons"),
        "{said}"
    );
    for user in ["a/b", "default/a/b"] {
        let story = json(user);
        let event = &story["stages"][0]["explanation"]["event"];
        assert_eq!((&story["user"], &event["personalise"]), (&json!("default/a/b"), &json!(false)));
    }
    let erase = program.output(&["erase", "a/b"], &[]).unwrap();
    let said = String::from_utf8_lossy(&erase.stderr);
    assert!(erase.status.code() == Some(1) && said.contains("but of `default/a/b`"), "another shopper is not erased: {said}");
    for (user, part) in [("nobody", "shopper nobody: no event"), ("b/a", "neither as `tenant/user` nor as an id with a slash")] {
        let output = program.output(&["explain", user], &[]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(part), "{said}");
    }
    let letters = program.succeed(&["dlq", "ls"], &["--json", "--stage", "context"]).unwrap();
    let letter: Value = serde_json::from_str(letters.lines().next().unwrap()).unwrap();
    let id = letter["id"].as_str().unwrap();
    let redriven = program.output(&["dlq", "redrive"], &[id, id, "no-such"]).unwrap();
    let (done, said) = (String::from_utf8_lossy(&redriven.stdout), String::from_utf8_lossy(&redriven.stderr));
    assert!(
        redriven.status.code() == Some(1) && done.starts_with("1 sent again") && said.contains("never there: no-such"),
        "{done}{said}"
    );
}

#[test]
fn lines_that_are_no_events_hold_up_no_others() {
    let place = place();
    let up = place.program().up(&["--models", &place.models, "--shoppers", "0", "--debounce", "0s"]).expect("a running endcap");
    let body = format!("{0}\nno json\n\n{0}\n", purchase("e1", "ada", "d00001"));
    let (status, answer) = up.post("/v1/events", &body).unwrap();
    assert_eq!((status, &answer["accepted"], &answer["repeated"], &answer["rejected"]), (200, &json!(1), &json!(1), &json!(1)));
    let lines: Vec<&Value> = answer["results"].as_array().unwrap().iter().map(|result| &result["line"]).collect();
    assert_eq!(lines, [1, 2, 4]);
    assert!(answer["results"][1]["reason"].as_str().unwrap().contains("not JSON"), "{answer}");
    let letter = &dead_letters(&up, 1)[0];
    assert!(letter["original"].as_str().unwrap().starts_with("(7 bytes, blake3 "), "no erasure would find it: {letter}");
    up.wait_for("/v1/journey/ada", |answer| answer["stages"].as_array()?.first().map(|_| ())).expect("a folded event");
    assert_eq!(up.post("/v1/events", purchase("e1", "ada", "d00001").to_string()).unwrap().1["repeated"], 1);
    let erase = json!({ "id": "e0", "user": "ida", "at_ms": 1_750_000_000_000_i64, "kind": "erase" });
    let body = json!([purchase("e1", "ida", "d00001"), erase, purchase("e1", "ida", "d00001")]);
    let (_, answer) = up.post("/v1/events", body.to_string()).unwrap();
    assert_eq!(answer["accepted"], 3, "behind an erasure an id is new: {answer}");

    let view = |n: usize| format!("{}\n", purchase(&format!("v{n}"), "bob", "d00001")).replace("purchase", "view");
    let mut lines: Vec<String> = (1..=520).map(view).collect();
    let unknown = view(511).replace("{", "{\"\\u001b[2J\":1,");
    (lines[1], lines[2], lines[509], lines[510]) = ("{\"id\": \n".into(), "\n".into(), view(509), unknown);
    let file = place.file("events.jsonl", &lines.concat());
    let address = up.address().trim_start_matches("http://");
    let output = place.program().plain(&["send", &file, "--to", address]).unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), out.trim()), (Some(1), "516 taken, 1 repeated, 2 rejected"), "{said}");
    let parts = ["line 2: not JSON", "line 511: not a shopper event: unknown field `\\u{1b}[2J`", "2 events were rejected"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    let output = place.program().plain(&["send", &file, "--to", address, "--from-line", "520"]).unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let one = ["1 taken, 0 repeated, 0 rejected", "0 taken, 1 repeated, 0 rejected"];
    assert!(one.contains(&out.trim()), "the last line alone, folded by now or not: {output:?}");
    let listed = place.program().succeed(&["dlq", "ls"], &[]).unwrap();
    assert!(listed.lines().count() == 3 && listed.contains("\\u{1b}[2J"), "what a terminal would obey is written out: {listed}");
}

#[test]
fn the_events_in_the_readme_are_events() {
    let readme = include_str!("../../README.md");
    let mut kinds = Vec::new();
    for line in readme.lines().filter(|line| line.starts_with("{\"id\"")) {
        let event: ShopperEvent = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        event.check().unwrap_or_else(|fault| panic!("{line}: {fault}"));
        kinds.push(event.kind);
    }
    assert_eq!(kinds, [EventKind::Preference, EventKind::Consent, EventKind::Erase]);
}

#[test]
fn a_bounded_run_ends_by_itself_with_a_report_and_starts_again_where_it_was() {
    let place = place();
    let report = place.dir.path().join("report.json");
    let target = report.display().to_string();
    for events in [10, 24, 24] {
        let events = events.to_string();
        let args =
            ["--models", &place.models, "--shoppers", "6", "--events", &events, "--exit-when-drained", "--report", &target];
        place.program().finish(&args).unwrap();
        let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
        assert_eq!(report["events_accepted"].to_string(), events);
        let worked = report["events_in_run"].as_u64().unwrap() > 0;
        assert_eq!(report["seconds"].as_f64().unwrap() > 0.0, worked, "a run without work takes no time: {report}");
        check_report(&report);
    }
}

fn check_report(report: &Value) {
    for field in ["shoppers_changed", "shoppers_with_page", "pages_published", "placements_published", "fallback_share"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
    for field in ["keywords_outside_candidates", "dietary_contradictions"] {
        assert_eq!(report[field], 0, "{field}: {report}");
    }
    for field in
        ["themes_rejected", "placements_pruned", "dead_letters", "freshness_seconds", "tokens", "candidates", "cache", "models"]
    {
        assert!(report[field].is_object(), "{field}: {report}");
    }
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1_000_000);
}

#[test]
fn the_page_and_its_interface_are_guarded() {
    let place = place();
    let program = place.program();
    let args = ["--models", &place.models, "--shoppers", "0", "--token", "correct-horse-battery"];
    let up = program.up(&args).unwrap();
    for path in ["/", "/app.js", "/v1/shoppers", "/v1/pipeline", "/metrics", "/health", "/healthy/live"] {
        assert_eq!(up.text(path).unwrap().0, 401, "{path}");
    }
    for path in ["/health/live", "/health/ready", "/app.css"] {
        assert_eq!(up.text(path).unwrap().0, 200, "{path}: a probe brings no token, and a sign-in page is drawn without it");
    }
    check_sign_in(up.address());
    let second = program.output(&["up"], &["--models", &place.models, "--bind", "127.0.0.1:0"]).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr)
            .contains("another `endcap up`, `endcap run` or `endcap serve` uses the data directory"),
        "{second:?}"
    );
    up.kill();

    let up = program.up(&["--models", &place.models, "--shoppers", "0"]).unwrap();
    for (path, part) in [
        ("/", "<!doctype html>"),
        ("/app.js", "startPicker"),
        ("/metrics", "endcap_build_info{version="),
        ("/health/live", "\"ok\":true"),
    ] {
        let (status, text) = up.text(path).unwrap();
        assert!(status == 200 && text.contains(part), "{path}: {status} {text}");
    }
    assert_eq!(up.get("/v1/pages/nobody").unwrap().0, 404);
    assert_eq!(up.get("/nothing").unwrap().0, 404);
    let (_, control) = up.get("/v1/control/anybody").unwrap();
    assert_eq!(control["placements"].as_array().unwrap().len(), 8, "{control}");
}

/// A browser without the token is asked for it, and is let in with it; a program is told in JSON.
fn check_sign_in(address: &str) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().new_agent();
    let get = |path: &str, header: (&str, &str)| agent.get(format!("{address}{path}")).header(header.0, header.1).call().unwrap();
    for (path, accept, kind) in [
        ("/", "text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("/v1/pages/ada", "text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("/", "*/*", "application/json"),
        ("/v1/pages/ada", "application/json", "application/json"),
    ] {
        let response = get(path, ("accept", accept));
        assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (401, kind), "{path}");
    }
    let sign_in = |form: &'static str| {
        let request = agent.post(format!("{address}/sign-in")).header("content-type", "application/x-www-form-urlencoded");
        request.send(form).unwrap()
    };
    let mut refused = sign_in("token=correct-horse-batterY");
    assert!(refused.status() == 401 && !refused.headers().contains_key("set-cookie"));
    assert!(refused.body_mut().read_to_string().unwrap().contains("not the right token"));
    let entered = sign_in("token=correct-horse-battery");
    assert_eq!((entered.status().as_u16(), entered.headers()["location"].to_str().unwrap()), (303, "/"));
    let cookie = entered.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(get("/", ("cookie", cookie)).status(), 200);
}

#[test]
fn wrong_usage_and_wrong_files_are_one_clear_error() {
    let place = place();
    let program = place.program();
    let config = place.file("endcap.toml", "colour = \"red\"\nrate = -1\n[aiqa]\nbeauty = 9\n");
    let broken = Path::new(&place.models).join("decoder").join("model.safetensors");
    for (subcommand, args, code, parts) in [
        (vec!["up"], vec!["--bind", "0.0.0.0:0"], 2, vec!["`token` is needed"]),
        (vec!["up"], vec!["--config", &config], 2, vec!["unknown key `colour`", "`rate` must be", "unknown field `beauty`"]),
        (vec!["up"], vec!["--rate", "-1"], 2, vec!["`rate` must be events per second, more than 0", "-1"]),
        (vec!["up"], vec!["--exit-when-drained"], 1, vec!["--events"]),
        (vec!["up"], vec!["--models", "/nowhere"], 1, vec!["/nowhere"]),
        (
            vec!["up"],
            vec!["--market", "/nowhere", "--models", "/nowhere/either", "--bind", "127.0.0.1:0"],
            1,
            vec!["no market in /nowhere"],
        ),
        (
            vec!["up"],
            vec!["--models", "/nowhere", "--report", "/nowhere/r.json"],
            1,
            vec!["cannot write the report to /nowhere/r.json"],
        ),
        (vec!["up"], vec!["--models", "/nowhere", "--replay-events"], 1, vec!["name it with --market"]),
        (vec!["dlq", "ls"], vec![], 1, vec!["holds no log"]),
        (vec!["frobnicate"], vec![], 2, vec!["unrecognized subcommand"]),
    ] {
        let output = program.output(&subcommand, &args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{subcommand:?} {args:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{subcommand:?} {args:?}: {said}");
    }
    let whole = fs::read(&broken).unwrap();
    fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    let output = program.output(&["up"], &["--models", &place.models, "--bind", "127.0.0.1:0"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("model.safetensors"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_idle_process_gives_memory_back_too() {
    let run = Run::new(PROGRAM, Path::new("unused")).with("MALLOC_CONF", "confirm_conf:true");
    let said = String::from_utf8(run.plain(&["--version"]).unwrap().stderr).unwrap();
    assert!(said.contains("-- Set conf value: background_thread:true"), "{said}");
}

#[test]
fn health_answers_from_the_first_moment_and_tells_what_the_start_is_at() {
    let place = place();
    let up = place.program().start(&["--models", &place.models, "--shoppers", "0"]).unwrap();
    let (status, answer) = up.get("/health/ready").unwrap();
    assert_eq!(status, 503, "{answer}");
    assert!(answer["troubles"][0].as_str().unwrap().starts_with("starting: "), "{answer}");
    assert_eq!(up.get("/health/live").unwrap().0, 200);
    for (status, answer) in
        [up.get("/v1/shoppers").unwrap(), up.post("/v1/events", purchase("e", "ada", "d00001").to_string()).unwrap()]
    {
        assert!(status == 503 && answer["error"].as_str().unwrap().starts_with("starting: "), "{status} {answer}");
    }
    let counted = |answer: &Value| answer["troubles"][0].as_str()?.contains("keywords: ").then_some(());
    up.wait_for("/health/ready", counted).expect("how far the index is");
    up.wait_for("/health/ready", |answer| (answer["ok"] == true).then_some(())).expect("a start that ends");
}

#[test]
fn the_first_ctrl_c_works_everything_off() {
    let place = place();
    let args = ["--models", &place.models, "--shoppers", "5", "--rate", "20", "--debounce", "0s"];
    let up = place.program().up(&args).unwrap();
    post_purchases(&up);
    up.interrupt().unwrap();
    up.wait().expect("an orderly end");
    assert_eq!(waiting_in(&place), 0, "everything that was accepted is worked off");
    assert!(pages(&place.data()).len() >= 16);
}

#[test]
fn the_second_ctrl_c_leaves_the_rest_to_the_next_start() {
    let place = place();
    let base = ["--models", &place.models, "--shoppers", "0"];
    let up = place.program().up(&[&base[..], &["--debounce", "1h"]].concat()).unwrap();
    post_purchases(&up);
    up.interrupt().unwrap();
    let draining = |answer: &Value| answer["troubles"][0].as_str()?.starts_with("draining: ").then_some(());
    up.wait_for("/health/ready", draining).unwrap();
    let (status, answer) = up.post("/v1/events", purchase("late", "ada", "d00001").to_string()).unwrap();
    assert!(status == 503 && answer["error"].as_str().unwrap().starts_with("ending: "), "{status} {answer}");
    up.interrupt().unwrap();
    up.wait().expect("an orderly end");
    assert!(waiting_in(&place) > 0, "shoppers that still rest are left");
    assert!(pages(&place.data()).is_empty());

    place.program().finish(&[&base[..], &["--debounce", "0s", "--exit-when-drained"]].concat()).unwrap();
    assert_eq!(waiting_in(&place), 0);
    assert_eq!(pages(&place.data()).len(), 16);
}

/// One purchase each of sixteen shoppers.
fn post_purchases(up: &Endcap) {
    let events: Vec<Value> = (0..16).map(|n| purchase(&format!("e{n}"), &format!("user-{n}"), "d00001")).collect();
    assert_eq!(up.post("/v1/events", json!(events).to_string()).unwrap().0, 200);
}

/// Records that wait for any stage.
fn waiting_in(place: &Place) -> u64 {
    open(&place.data()).groups().unwrap().iter().map(|group| group.backlog.waiting).sum()
}

#[test]
fn with_json_logs_standard_error_holds_json_alone() {
    let place = place();
    let up = ["--models", &place.models, "--bind", "127.0.0.1:0", "--log-format", "json"];
    let bounded = [&up[..], &["--shoppers", "3", "--events", "6", "--exit-when-drained"]].concat();
    let unknown = place.file("endcap.toml", "colour = \"red\"\nlog_format = \"json\"\n");
    for (args, code, last) in [
        (bounded, 0, ""),
        (vec!["--models", "/nowhere", "--bind", "127.0.0.1:0", "--log-format", "json"], 1, "/nowhere"),
        (vec!["--config", &unknown], 2, "unknown key `colour`"),
    ] {
        // What the program says of itself is no log line that could be filtered out.
        let output = place.program().with("RUST_LOG", "off").output(&["up"], &args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        let lines: Vec<Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect();
        let end = lines.last().unwrap();
        assert!(end["message"].as_str().unwrap().contains(last), "{end}");
        assert_eq!(end["level"] == "ERROR", code != 0, "{end}");
        assert!(end["timestamp"].as_str().unwrap().ends_with('Z'), "{end}");
    }
}

#[test]
fn products_that_are_imported_and_withdrawn_are_followed_without_a_restart() {
    let place = place();
    let market = place.dir.path().join("market").display().to_string();
    let product = |id: &str, name: &str| {
        json!({ "id": id, "name": name, "brand": "", "size": "", "price_cents": 100, "category_path": ["pantry", "tea"], "violates": [],
                "age_restricted": false, "popularity": 0.5, "in_stock": true })
        .to_string()
    };
    let import = |what: &str, file: &str| {
        let args = ["import", what, file, "--format", "endcap-json", "--market", &market, "--models", &place.models];
        Run::new(PROGRAM, place.dir.path()).plain(&args).unwrap()
    };
    let first = place.file("first.jsonl", &format!("{}\nnot json\n{}\n", product("p1", "green tea"), product("p2", "black tea")));
    let output = import("catalog", &first);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 rows taken, 1 rejected") && said.contains("rejects-first"), "{output:?}");

    let up = place.program().up(&["--models", &place.models, "--market", &market, "--shoppers", "0"]).unwrap();
    let post = |id: &str, product: &str| up.post("/v1/events", purchase(id, "ada", product).to_string()).unwrap();
    post("e1", "p3");
    assert_eq!(dead_letters(&up, 1)[0]["reason"], "unknown_product");
    let second = place.file("second.jsonl", &format!("{}\n", product("p3", "white tea")));
    assert!(import("catalog", &second).status.success());
    post("e2", "p3");
    let changed = |answer: &Value| answer["stages"].as_array()?.iter().find(|stage| stage["stage"] == "context").map(|_| ());
    up.wait_for("/v1/journey/ada", changed).expect("an event on a product that came later");
}

#[test]
fn an_import_that_fails_leaves_nothing_behind_and_unknown_ids_are_told() {
    let place = place();
    let market = place.dir.path().join("markets").join("shop");
    let import = |args: &[&str]| {
        let target = market.display().to_string();
        let output = place.program().plain(&[&["import"], args, &["--no-index", "--market", &target]].concat()).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    };
    let product = |id: &str| {
        json!({ "id": id, "name": "green tea", "brand": "", "size": "", "price_cents": 100, "category_path": ["pantry", "tea"],
                "violates": [], "age_restricted": false, "popularity": 0.5, "in_stock": true })
    };
    let good = place.file("good.jsonl", &format!("{}\n{}\n", product("p1"), product("p2")));
    let (bad, gone) = (place.file("bad.tsv", "a\tb\n"), place.file("gone.txt", "p1\nq1\nq2\n"));
    for (args, part) in [
        (["catalog", &bad, "--format", "endcap-json"], "one JSON object"),
        (["catalog", "/nowhere", "--format", "endcap-json"], "cannot read /nowhere"),
        (["catalog", &good, "--format", "yaml"], "no catalogue format"),
        (["keywords", &bad, "--format", "tsv"], "expected a header"),
        (["events", &bad, "--format", "completejourney"], "expected a header"),
        (["events", "/nowhere", "--format", "endcap-json"], "cannot read /nowhere"),
    ] {
        let (code, said) = import(&args);
        assert!(code == Some(1) && said.contains(part), "{args:?}: {said}");
        assert!(!market.parent().unwrap().exists(), "{args:?} leaves a market");
    }
    let (code, said) = import(&["catalog", &good, "--format", "endcap-json", "--withdraw", &gone]);
    assert_eq!(code, Some(0), "{said}");
    let parts = [
        "2 products added, 0 changed, 1 withdrawn",
        "2 ids of",
        "belong to no product: q1, q2; ",
        "rejects-withdraw-gone.txt.tsv lists them",
    ];
    for part in parts {
        assert!(said.contains(part), "{said}");
    }
    let files = || {
        let mut names: Vec<_> = fs::read_dir(&market).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        names
    };
    let before = files();
    assert_eq!(import(&["events", &bad, "--format", "completejourney"]).0, Some(1));
    assert_eq!(files(), before, "no draft stays");
}

#[test]
fn models_that_are_trained_for_a_market_are_the_ones_that_serve_it() {
    let place = place();
    let market = place.dir.path().join("market");
    let product = |n: usize| {
        let leaf = ["green tea", "oat biscuits", "tomato soup", "plain yogurt", "apple juice", "rye bread", "brown rice"][n % 7];
        json!({ "id": format!("p{n}"), "name": format!("{leaf} no {n}"), "brand": "", "size": "", "price_cents": 100 + n,
                "category_path": ["pantry", leaf], "violates": [], "age_restricted": false, "popularity": 0.5, "in_stock": true })
    };
    let rows: String = (0..70).map(|n| format!("{}\n", product(n))).collect();
    let (catalog, target) = (place.file("catalog.jsonl", &rows), market.display().to_string());
    let program = place.program();
    let plain = |args: &[&str]| {
        let output = program.plain(args).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    plain(&["import", "catalog", &catalog, "--format", "endcap-json", "--market", &target]);
    plain(&["train", "--market", &target, "--steps", "1"]);
    let trained = market.join("trained");
    for file in ["cross-encoder/model.safetensors", "decoder/themes.adapter.safetensors", "decoder/CARD.md"] {
        assert!(trained.join(file).is_file(), "{file}");
    }

    let up = program.up(&["--market", &target, "--shoppers", "0", "--debounce", "0s"]).unwrap();
    up.post("/v1/events", purchase("e1", "ada", "p1").to_string()).unwrap();
    let page = up.wait_for("/v1/pages/ada", |page| page["placements"].as_array().map(|_| page.clone())).expect("a page");
    let built_in = fs::read_dir(market.join("models")).unwrap().next().unwrap().unwrap().path();
    let version = |models: &Path| {
        let decoder = models.join("decoder");
        let adapter = decoder.join("themes.adapter.safetensors");
        let model = endcap_engine::ThemeModel::load(&decoder, Some(&adapter), &endcap_engine::parse_device("cpu").unwrap());
        endcap_inference::Model::version(&model.unwrap()).to_owned()
    };
    assert_eq!(page["versions"]["themes"], version(&trained), "{page}");
    assert_ne!(version(&trained), version(&built_in));

    fs::remove_file(trained.join("decoder/themes.adapter.safetensors")).unwrap();
    let data = place.dir.path().join("unfinished").display().to_string();
    let args = ["up", "--data", &data, "--market", &target, "--shoppers", "0", "--bind", "127.0.0.1:0", "--exit-when-drained"];
    let unfinished = program.plain(&args);
    let said = String::from_utf8_lossy(&unfinished.unwrap().stderr).into_owned();
    assert!(said.contains("are not finished and are left out") && said.contains("themes.adapter.safetensors"), "{said}");
}

/// Events of a run that is killed over and over.
const EVENTS: &str = "48";

#[test]
fn a_run_that_is_killed_over_and_over_ends_in_the_pages_of_an_undisturbed_one() {
    check_kills(4);
}

/// The long form: about a minute.
#[test]
#[ignore = "takes minutes; `cargo test -p endcap-tests --test suite -- --ignored` runs it"]
fn a_run_that_is_killed_twenty_times_ends_in_the_pages_of_an_undisturbed_one() {
    check_kills(20);
}

/// Kills a run when it has done so many more pieces of work, `kills` times, then lets it end.
fn check_kills(kills: u64) {
    let place = place();
    let (whole, cut) = (place.dir.path().join("whole"), place.dir.path().join("cut"));
    let report = place.dir.path().join("report.json");
    let target = report.display().to_string();
    let base = ["--models", &place.models, "--shoppers", "9", "--events", EVENTS];
    let to_the_end = [&base[..], &["--exit-when-drained", "--report", &target]].concat();
    Run::new(PROGRAM, &whole).finish(&to_the_end).unwrap();

    copy_market(&whole, &cut);
    for kill in 0..kills {
        let up = Run::new(PROGRAM, &cut).up(&base).unwrap();
        // An uneven step, so that the kills fall on different stages and moments.
        let wanted = work_of(&up.get("/v1/pipeline").unwrap().1) + 1 + kill * 7 % 11;
        let all = EVENTS.parse::<u64>().unwrap();
        let reached = |figures: &Value| {
            let drained = figures["accepted"] == all && waiting_of(figures) == 0;
            (work_of(figures) >= wanted || drained).then_some(())
        };
        up.wait_for("/v1/pipeline", reached).unwrap();
        up.kill();
    }
    Run::new(PROGRAM, &cut).finish(&to_the_end).unwrap();
    let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(report["events_accepted"].to_string(), EVENTS);
    assert_eq!(report["stages"]["context"]["in"].to_string(), EVENTS, "every event is folded exactly once");
    check_report(&report);
    assert_eq!(pages(&whole), pages(&cut));
}

/// Records whose fate is decided, of all stages.
fn work_of(figures: &Value) -> u64 {
    figures["stages"].as_array().into_iter().flatten().map(|stage| stage["in"].as_u64().unwrap_or(0)).sum()
}

fn waiting_of(figures: &Value) -> u64 {
    figures["stages"].as_array().into_iter().flatten().map(|stage| stage["waiting"].as_u64().unwrap_or(1)).sum()
}

/// Gives `to` the market of `from`, so that it need not be made again.
fn copy_market(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("market")).unwrap();
    for entry in fs::read_dir(from.join("market")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join("market").join(path.file_name().unwrap())).unwrap();
    }
}

fn pages(data: &Path) -> BTreeMap<String, Page> {
    let stored = open(data).pages_after(None, 1_000).unwrap();
    stored.into_iter().map(|(user, row)| (user.to_string(), desk::decode(&row.page.unwrap()).unwrap().page)).collect()
}

/// Log and store of a data directory.
pub(crate) fn open(data: &Path) -> Embedded {
    Embedded::open(endcap::data::file_in(data), EmbeddedConfig::default(), Arc::new(SystemClock::default())).unwrap()
}
