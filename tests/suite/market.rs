//! An imported market behind the program: which data is about it, and what becomes of pages when it changes.

use std::{fs, path::Path};

use endcap_tests::Endcap;
use serde_json::{Value, json};

use crate::program::{Place, place, purchase};

const LEAVES: [&str; 9] = [
    "green tea",
    "oat biscuits",
    "tomato soup",
    "plain yogurt",
    "apple juice",
    "rye bread",
    "brown rice",
    "olive oil",
    "sea salt",
];

/// Ids of products, and a catalogue of them.
fn products(place: &Place) -> (Vec<String>, String) {
    let ids: Vec<String> = (0..LEAVES.len() * 10).map(|n| format!("p{n}")).collect();
    let row = |(n, id): (usize, &String)| {
        let leaf = LEAVES[n % LEAVES.len()];
        json!({ "id": id, "name": format!("{leaf} no {n}"), "brand": "", "size": "", "price_cents": 100 + n,
                "category_path": ["pantry", leaf], "violates": [], "age_restricted": false, "popularity": 0.5, "in_stock": true })
    };
    let rows: String = ids.iter().enumerate().map(|product| format!("{}\n", row(product))).collect();
    (ids, place.file("catalog.jsonl", &rows))
}

impl Place {
    /// Runs the program; gives its exit code and all that it said.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.program().plain(args).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    }

    fn import(&self, catalog: &str, market: &str, more: &[&str]) {
        let args = ["import", "catalog", catalog, "--format", "endcap-json", "--market", market, "--models", &self.models];
        let (code, said) = self.run(&[&args[..], more].concat());
        assert_eq!(code, Some(0), "{said}");
    }

    /// A running `endcap up` on `market` with a page of ada's.
    fn up_with_page(&self, market: &str) -> (Endcap, Value) {
        let up =
            self.program().up(&["--models", &self.models, "--market", market, "--shoppers", "0", "--debounce", "0s"]).unwrap();
        up.post("/v1/events", purchase("e1", "ada", "p1").to_string()).unwrap();
        let page = up.wait_for("/v1/pages/ada", |page| page["placements"].as_array().map(|_| page.clone())).expect("a page");
        (up, page)
    }
}

/// Titles of a page's placements.
fn titles(page: &Value) -> Vec<&str> {
    page["placements"].as_array().unwrap().iter().map(|placement| placement["title"].as_str().unwrap()).collect()
}

#[test]
fn a_data_directory_is_about_one_market_wherever_that_lies() {
    let place = place();
    let path = |name: &str| place.dir.path().join(name).display().to_string();
    let (market, moved, other, data) = (path("market"), path("moved"), path("other"), path("data"));
    let (_, catalog) = products(&place);
    place.import(&catalog, &market, &[]);
    place.import(&catalog, &other, &["--no-index"]);
    let (up, page) = place.up_with_page(&market);
    up.kill();

    let run = |market: &[&str]| {
        let up =
            ["up", "--data", &data, "--models", &place.models, "--shoppers", "0", "--bind", "127.0.0.1:0", "--exit-when-drained"];
        place.run(&[&up[..], market].concat())
    };
    let explain = |market: &[&str]| {
        let (code, said) = place.run(&[&["explain", "ada", "--json", "--data", &data], market].concat());
        (code, said.clone(), serde_json::from_str::<Value>(&said).unwrap_or_default())
    };
    for market in [&[][..], &["--market", &other]] {
        let (code, said) = run(market);
        let parts = ["is about another market, last seen in ", "/market: name that one with --market", "with --data"];
        assert!(code == Some(1) && parts.iter().all(|part| said.contains(part)), "{said}");
    }
    assert!(!Path::new(&data).join("market").exists(), "no demo market was made");
    let (code, said, _) = explain(&["--market", &other]);
    assert!(code == Some(1) && said.contains("is about another market"), "{said}");
    assert_eq!(explain(&[]).2["page"]["placements"], page["placements"], "it knows where the market lies");

    fs::rename(&market, &moved).unwrap();
    let (code, said, _) = explain(&[]);
    assert!(code == Some(1) && said.contains("name that one with --market"), "{said}");
    place.import(&catalog, &moved, &[]);
    assert_eq!(explain(&["--market", &moved]).2["page"]["placements"], page["placements"]);
    let (code, said) = run(&["--market", &moved]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(explain(&[]).2["page"]["placements"], page["placements"], "it knows the new place");
}

#[test]
fn data_without_a_note_of_its_market_takes_the_one_that_is_there() {
    let place = place();
    let market = place.dir.path().join("market").display().to_string();
    let (_, catalog) = products(&place);
    place.import(&catalog, &market, &[]);
    let (up, page) = place.up_with_page(&market);
    up.kill();
    let data = place.dir.path().join("data");
    rusqlite::Connection::open(endcap::data::file_in(&data))
        .unwrap()
        .execute("DELETE FROM meta WHERE name = 'market'", [])
        .unwrap();
    fs::remove_file(Path::new(&market).join("identity")).unwrap();
    let story = place.program().succeed(&["explain", "ada"], &["--json", "--market", &market]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&story).unwrap()["page"]["placements"], page["placements"]);
    let data = data.display().to_string();
    let up =
        ["up", "--data", &data, "--models", &place.models, "--shoppers", "0", "--bind", "127.0.0.1:0", "--exit-when-drained"];
    let (code, said) = place.run(&up);
    assert!(code == Some(1) && said.contains("about an imported market: name it with --market"), "{said}");
    let args = ["--models", &place.models, "--market", &market, "--shoppers", "0", "--exit-when-drained"];
    place.program().finish(&args).unwrap();
    assert!(Path::new(&market).join("identity").is_file());
    let story = place.program().succeed(&["explain", "ada"], &["--json"]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&story).unwrap()["page"]["placements"], page["placements"]);
}

#[test]
fn a_placement_whose_products_are_all_withdrawn_is_shown_and_counted_no_longer() {
    let place = place();
    let market = place.dir.path().join("market").display().to_string();
    let (ids, catalog) = products(&place);
    place.import(&catalog, &market, &[]);
    let (up, page) = place.up_with_page(&market);
    let before = titles(&page);
    assert!(before.len() >= 5, "{page}");

    let nothing = place.file("nothing.jsonl", "");
    let withdraw = |ids: &[&str]| place.import(&nothing, &market, &["--withdraw", &place.file("gone.txt", &ids.join("\n"))]);
    let first: Vec<&str> =
        page["placements"][0]["products"].as_array().unwrap().iter().map(|product| product["id"].as_str().unwrap()).collect();
    withdraw(&first);
    let (_, now) = up.get("/v1/pages/ada").unwrap();
    assert!(!titles(&now).contains(&before[0]), "{now}");
    assert!(now["placements"].as_array().unwrap().iter().all(|placement| placement["products"][0].is_object()), "{now}");
    let (_, shoppers) = up.get("/v1/shoppers").unwrap();
    assert_eq!(shoppers["shoppers"][0]["placements"], titles(&now).len());
    let (_, story) = up.get("/v1/explain/ada").unwrap();
    assert_eq!(story["page"]["placements"], now["placements"]);
    up.kill();

    let report = place.dir.path().join("report.json");
    let shoppers_with_page = || {
        let target = report.display().to_string();
        let args =
            ["--models", &place.models, "--market", &market, "--shoppers", "0", "--exit-when-drained", "--report", &target];
        place.program().finish(&args).unwrap();
        let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
        assert!(report["placements_published"].as_u64() >= Some(before.len() as u64), "what was published stays so: {report}");
        report["shoppers_with_page"].clone()
    };
    assert_eq!(shoppers_with_page(), u64::from(titles(&now).len() >= 5));
    withdraw(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(shoppers_with_page(), 0);
}

#[test]
fn a_market_that_was_made_anew_in_its_place_is_not_taken_for_the_earlier_one() {
    let place = place();
    let path = |name: &str| place.dir.path().join(name).display().to_string();
    let (market, data) = (path("market"), path("data"));
    let (_, catalog) = products(&place);
    place.import(&catalog, &market, &[]);
    let (up, _) = place.up_with_page(&market);
    up.kill();
    fs::remove_dir_all(&market).unwrap();
    place.import(&catalog, &market, &["--no-index"]);
    let up = [
        "up",
        "--data",
        &data,
        "--models",
        &place.models,
        "--market",
        &market,
        "--shoppers",
        "0",
        "--bind",
        "127.0.0.1:0",
        "--exit-when-drained",
    ];
    let (code, said) = place.run(&up);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("made anew") && said.contains("--data"), "{said}");
}
