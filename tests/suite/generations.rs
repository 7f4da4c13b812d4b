//! Deployments and their numbers: the same configuration is the same generation, another is the next, and a rollback is one more.

use std::{fs, path::Path};

use endcap_engine::fixture;
use endcap_tests::{Endcap, Run};
use serde_json::Value;

use crate::program::{PROGRAM, Place, place, purchase};

impl Place {
    /// Runs the program on the place's data; gives its exit code and all that it said.
    fn ask(&self, subcommand: &[&str], args: &[&str]) -> (Option<i32>, String) {
        let output = self.program().output(subcommand, args).expect("the program runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    }

    /// A start that ends at once, as there is nothing to do.
    fn pass(&self, models: &str) -> (Option<i32>, String) {
        self.ask(&["up"], &["--models", models, "--shoppers", "0", "--exit-when-drained", "--bind", "127.0.0.1:0"])
    }

    /// Every generation, the newest first.
    fn generations(&self) -> Vec<Value> {
        let listed = self.program().succeed(&["manifests"], &["--json"]).expect("a list");
        listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// A configuration that shows so many products of a placement.
    fn showing(&self, products: usize) -> String {
        let text = format!("shoppers = 0\ndebounce = \"0s\"\n[aiqa]\nproducts_max = {products}\n");
        self.file(&format!("{products}.toml"), &text)
    }

    fn up_with(&self, config: &str) -> Endcap {
        self.program().up(&["--models", &self.models, "--config", config]).expect("a running endcap")
    }
}

/// The number that a process says it runs under.
fn number_of(endcap: &Endcap) -> i64 {
    let metrics = endcap.text("/metrics").expect("metrics").1;
    let line = metrics.lines().find_map(|line| line.strip_prefix("endcap_generation ")).expect("a number");
    line.trim().parse().expect("a whole number")
}

/// Generation and most products of a placement of the page that `event` brings.
fn page_after(up: &Endcap, event: &str) -> (i64, usize) {
    up.post("/v1/events", purchase(event, "ada", "d00001").to_string()).expect("an answer");
    let page = up.wait_for("/v1/pages/ada", |page| (page["event_id"] == event).then(|| page.clone())).expect("a page");
    let products = |placement: &Value| placement["products"].as_array().expect("products").len();
    let most = page["placements"].as_array().expect("placements").iter().map(products).max();
    (page["generation"].as_i64().expect("a number"), most.expect("a placement"))
}

#[test]
fn a_rollback_is_a_new_generation_with_the_old_settings_in_force() {
    let place = place();
    let [seven, eight, nine] = [7, 8, 9].map(|products| place.showing(products));
    let up = place.up_with(&seven);
    assert_eq!((number_of(&up), page_after(&up, "e1")), (1, (1, 7)));
    up.kill();
    let up = place.up_with(&seven);
    assert_eq!(number_of(&up), 1, "the same configuration");
    up.kill();

    let up = place.up_with(&nine);
    assert_eq!((number_of(&up), page_after(&up, "e2")), (2, (2, 9)));
    up.wait_for("/v1/pipeline", |figures| (figures["generation"] == 2).then_some(())).expect("the number among the figures");
    let listed = place.program().succeed(&["manifests"], &[]).unwrap();
    assert!(listed.contains("generation 2, ") && listed.contains(", active\n    aiqa.products_max: 7 → 9\n"), "{listed}");
    assert!(listed.contains("generation 1, ") && listed.contains("    model encoder: encoder@"), "{listed}");

    let (code, said) = place.ask(&["rollback"], &["--dry-run"]);
    assert!(
        code == Some(0) && said.contains("generation 3 would be active: the manifest of generation 1 in place of 2"),
        "{said}"
    );
    assert_eq!((place.generations().len(), number_of(&up)), (2, 2), "nothing has changed");
    let (code, said) = place.ask(&["rollback"], &["--to", "7"]);
    assert!(code == Some(1) && said.contains("there is no generation 7: `endcap manifests` lists them"), "{said}");

    let (code, said) = place.ask(&["rollback"], &[]);
    let parts = ["generation 3 is active", "aiqa.products_max: 9 → 7", "exit code 75", "`endcap replay contexts`"];
    assert!(code == Some(0) && parts.iter().all(|part| said.contains(part)), "{said}");
    let ended = up.wait().expect_err("a process that was rolled back ends by itself").to_string();
    assert!(ended.contains("exit status: 75") && ended.contains("generation 3 is active"), "{ended}");
    let newest = &place.generations()[0];
    assert_eq!((&newest["active"], &newest["back_to"], &newest["in_place_of"]), (&true.into(), &1.into(), &2.into()), "{newest}");

    let up = place.up_with(&nine);
    assert_eq!((number_of(&up), page_after(&up, "e3")), (3, (3, 7)), "configured as before, and running what was rolled back to");
    let story = place.program().succeed(&["explain", "ada"], &[]).unwrap();
    assert!(story.contains(", generation 3\n"), "{story}");
    let said = up.kill();
    assert!(said.contains("the configuration was rolled back") && said.contains("aiqa.products_max: 9 → 7"), "{said}");
    let up = place.up_with(&eight);
    assert_eq!((number_of(&up), page_after(&up, "e4")), (4, (4, 8)), "another configuration is a deployment again");
}

#[test]
fn processes_that_start_at_once_agree_on_a_number() {
    let place = place();
    let start = |stage: &'static str, config: &str| {
        let program = place.program();
        program.stages(&[stage], &["--models", &place.models, "--config", config]).expect("a running endcap")
    };
    let [seven, eight, nine] = [7, 8, 9].map(|products| place.showing(products));
    let at_once = |each: [(&'static str, &str); 3]| -> Vec<i64> {
        std::thread::scope(|scope| {
            let started = each.map(|(stage, config)| scope.spawn(move || number_of(&start(stage, config))));
            started.into_iter().map(|thread| thread.join().expect("a start")).collect()
        })
    };
    assert_eq!(at_once([("context", &seven), ("context", &seven), ("dedup", &seven)]), [1, 1, 1]);
    assert_eq!(place.generations().len(), 1);
    let numbers = at_once([("context", &eight), ("context", &nine), ("dedup", &eight)]);
    assert_ne!(numbers[0], numbers[1], "{numbers:?}");
    let kept = place.generations();
    for (number, products) in [(numbers[0], 8), (numbers[1], 9), (numbers[2], 8)] {
        let kept = kept.iter().find(|kept| kept["generation"] == number).expect("a generation that was run");
        assert_eq!(kept["manifest"]["settings"]["stages"]["aiqa"]["products_max"], products, "{kept}");
    }
}

#[test]
fn a_process_without_some_models_follows_others_and_deploys_nothing() {
    let place = place();
    let part = place.dir.path().join("part");
    fs::create_dir(&part).unwrap();
    copy(&Path::new(&place.models).join("encoder"), &part.join("encoder"));
    let part = part.display().to_string();
    let refused = place.ask(&["run", "context"], &["--models", &part]);
    let says = ["lacks files of the models themes and keywords and cross-encoder", "first start a process where all models are"];
    assert!(refused.0 == Some(1) && says.iter().all(|part| refused.1.contains(part)), "{}", refused.1);
    assert_eq!(place.pass(&place.models).0, Some(0));
    let context = place.program().stages(&["context"], &["--models", &part]).expect("a process that follows");
    assert_eq!((number_of(&context), place.generations().len()), (1, 1));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

#[test]
fn a_model_that_has_gone_and_rubbish_in_the_store_are_one_clear_error() {
    let place = place();
    let (old, new, away) = (Path::new(&place.models), place.dir.path().join("new"), place.dir.path().join("away"));
    copy(old, &new);
    fixture::write_cross_encoder(&new.join("cross-encoder"), 9).unwrap();
    let (broken, new) = (place.dir.path().join("broken"), new.display().to_string());
    for (models, expected) in [(place.models.as_str(), 1), (&new, 2), (&new, 2)] {
        let (code, said) = place.pass(models);
        assert_eq!((code, place.generations().len()), (Some(0), expected), "{said}");
    }
    copy(old, &broken);
    let weights = broken.join("cross-encoder").join("model.safetensors");
    fs::write(&weights, &fs::read(&weights).unwrap()[..100]).unwrap();
    assert_eq!(place.pass(&broken.display().to_string()).0, Some(1));
    assert_eq!(place.generations().len(), 2, "what cannot run is not deployed");

    let judge = old.join("cross-encoder");
    fs::rename(&judge, &away).unwrap();
    let (code, said) = place.ask(&["rollback"], &[]);
    let parts = ["cannot roll back to generation 1: model cross-encoder is not at ", "; put cross-encoder@", " back there"];
    assert!(code == Some(1) && parts.iter().all(|part| said.contains(part)), "{said}");
    copy(&Path::new(&new).join("cross-encoder"), &judge);
    let (code, said) = place.ask(&["rollback"], &["--to", "1"]);
    assert!(code == Some(1) && said.contains(" now: put cross-encoder@"), "{said}");
    assert_eq!(place.generations().len(), 2, "nothing has changed");
    fs::remove_dir_all(&judge).unwrap();
    fs::rename(&away, &judge).unwrap();
    assert_eq!(place.ask(&["rollback"], &[]).0, Some(0));
    let (code, said) = place.pass(&new);
    assert!(code == Some(0) && said.contains("model cross-encoder: cross-encoder@"), "{said}");
    fs::rename(&judge, &away).unwrap();
    let (code, said) = place.pass(&new);
    assert!(
        code == Some(1) && said.contains("cannot run as generation 3, which is active: model cross-encoder is not at "),
        "{said}"
    );

    let file = endcap::data::file_in(&place.dir.path().join("data"));
    rusqlite::Connection::open(file)
        .unwrap()
        .execute("UPDATE generations SET manifest = '{\"at_ms\":' WHERE generation = 3", [])
        .unwrap();
    for (code, said) in [place.pass(&new), place.ask(&["rollback"], &[])] {
        let says = ["cannot read generation 3 of the store: use the release that has written it", "or delete the row"];
        assert!(code == Some(1) && says.iter().all(|part| said.contains(part)), "{said}");
    }
    let generations = place.generations();
    assert!(
        generations[0]["error"].is_string() && generations[1]["generation"] == 2,
        "the others are still listed: {generations:?}"
    );
    let nothing = Run::new(PROGRAM, &place.dir.path().join("nothing"));
    let refused = nothing.output(&["manifests"], &[]).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no data directory at"), "{refused:?}");
}
