//! The path as several processes on one data directory: `endcap run`.

use serde_json::json;

use crate::program::{place, purchase};

#[test]
fn stages_in_processes_of_their_own_make_the_pages_that_one_process_would() {
    let place = place();
    let args = ["--models", place.models.as_str(), "--debounce", "0s"];
    // Three processes, of which two run the same stage, on a directory that none of them has seen before.
    let (front, middle, back) = std::thread::scope(|scope| {
        let start = |stages: &'static [&'static str]| {
            let program = place.program();
            scope.spawn(move || program.stages(stages, &args).expect("a running endcap"))
        };
        let started = [start(&["context", "themes"]), start(&["themes", "keywords"]), start(&["dedup", "aiqa"])];
        let [front, middle, back] = started.map(|thread| thread.join().expect("a thread that starts a process"));
        (front, middle, back)
    });
    let events: Vec<_> = (0..12).map(|n| purchase(&format!("e{n}"), &format!("shopper-{}", n % 4), "d00001")).collect();
    let (status, answer) = middle.post("/v1/events", json!(events).to_string()).unwrap();
    assert_eq!((status, &answer["accepted"]), (200, &json!(12)), "{answer}");
    for shopper in 0..4 {
        let path = format!("/v1/pages/shopper-{shopper}");
        let page = |endcap: &endcap_tests::Endcap| {
            endcap.wait_for(&path, |page| page["placements"].as_array().map(Vec::len)).expect("a page")
        };
        assert!(page(&front) >= 5 && page(&back) >= 5);
    }
    let stages = |endcap: &endcap_tests::Endcap| {
        let (_, figures) = endcap.get("/v1/pipeline").unwrap();
        let stages = figures["stages"].as_array().unwrap().iter();
        stages.map(|stage| stage["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((stages(&front), stages(&back)), (vec!["context".into(), "themes".into()], vec!["dedup".into(), "aiqa".into()]));

    let refused = place.program().output(&["up"], &["--models", &place.models, "--bind", "127.0.0.1:0"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("`endcap run` or `endcap serve` uses the data directory"),
        "{said}"
    );
}
