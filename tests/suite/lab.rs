//! The experiments as a user runs them.

use std::fs;

use endcap_tests::Run;

use crate::program::{PROGRAM, place};

#[test]
fn linucb_writes_its_tables_and_figures_and_says_what_they_come_to() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Run::new(PROGRAM, dir.path());
    let tables: Vec<String> = ["1", "2"]
        .iter()
        .map(|threads| {
            let out = dir.path().join("deep").join(threads);
            let args = [
                "lab",
                "linucb",
                "--runs",
                "2",
                "--seed",
                "3",
                "--threads",
                threads,
                "--out",
                out.to_str().expect("a plain path"),
            ];
            let output = program.plain(&args).expect("a run of the program");
            let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{told}");
            assert!(said.contains("| – | 1000 | 0 | 0.00 ± 0.00 | 249.75 ± 0.00 | 0.25 ± 0.00 | 0.25 ± 0.00 |"), "{said}");
            for figure in ["figure2.svg", "figure3.svg", "features.svg"] {
                assert!(fs::read_to_string(out.join(figure)).expect(figure).starts_with("<svg"), "{figure}");
            }
            assert!(out.join("features.csv").exists());
            fs::read_to_string(out.join("linucb.csv")).expect("the table")
        })
        .collect();
    assert_eq!(tables[0], tables[1], "the number of threads shows in the table");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_before_anything_is_computed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("taken");
    fs::write(&file, "").expect("a file");
    let args = ["lab", "linucb", "--runs", "1000000", "--out", file.to_str().expect("a plain path")];
    let output = Run::new(PROGRAM, dir.path()).plain(&args).expect("a run of the program");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("cannot write results to") && told.contains("--out"), "{told}");
    let few = Run::new(PROGRAM, dir.path()).plain(&["lab", "linucb", "--runs", "1", "--out", "x"]).expect("a run of the program");
    assert!(String::from_utf8_lossy(&few.stderr).contains("1 is not in 2..=1000000"), "{few:?}");
}

/// The figures of one row of a table.
fn row<'a>(csv: &'a str, name: &str) -> Vec<Option<&'a str>> {
    let line = csv.lines().find(|line| line.starts_with(&format!("{name},"))).unwrap_or_else(|| panic!("no row {name} in {csv}"));
    line.split(',').skip(1).map(|cell| Some(cell).filter(|cell| !cell.is_empty())).collect()
}

#[test]
fn pier_quick_writes_its_tables_keeps_its_safe_promises_and_does_nothing_twice() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (program, out) = (Run::new(PROGRAM, dir.path()), dir.path().join("pier"));
    let args = ["lab", "pier", "--quick", "--out", out.to_str().expect("a plain path")];
    let output = program.plain(&args).expect("a run of the program");
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read("pier.md").trim(), said.split("\ntables and this page").next().unwrap_or_default().trim());
    for (table, rows) in [
        ("table2.csv", &["DNN", "DCN", "PRM", "EXTR", "Edge-Rerank", "OCPM"][..]),
        ("table3.csv", &["OCPM", "- OAU", "- TAU"]),
        ("table4.csv", &["Random & OCPM", "PIER (FPSM & OCPM)", "- contrastive loss"]),
        ("table5.csv", &["α = 0", "α = 0.5", "K = 5", "K = 50"]),
        ("readings.csv", &["α = 0.1; through the distances (ours)"]),
        ("search.csv", &["guided 1000", "fpsm 50"]),
        ("oracle.csv", &["interest × 1: chance", "interest × 10: what the shopper likes in truth; by looks alone"]),
    ] {
        let csv = read(table);
        rows.iter().for_each(|name| assert!(row(&csv, name)[0].is_some(), "{name} of {table} has no figure:\n{csv}"));
    }
    assert_eq!(row(&read("table2.csv"), "OCPM").last(), Some(&Some("0.189100")), "the paper's own numbers stand last");
    for promise in [
        "DNN's AUC is below PRM's",
        "DNN's AUC is below EXTR's",
        "Random@5 is",
        "Random@10 is",
        "Random@20 is",
        "Random@50 is",
        "All orders have HR_self 1.00",
        "OCPM has a lower LogLoss than dnn",
        "OCPM has a lower LogLoss than dcn",
        "V/V* of the best items first is above chance",
    ] {
        let line =
            said.lines().find(|line| line.starts_with(&format!("- {promise}"))).unwrap_or_else(|| panic!("no {promise}: {said}"));
        assert!(line.ends_with(": holds"), "{line}");
    }

    // What is done stays done; what is removed is made again, to the same figures.
    let (kept, redone) = (out.join("units/prm-1.json"), out.join("units/dcn-1.json"));
    let (old, figures) = (fs::metadata(&kept).and_then(|file| file.modified()).expect("a kept unit"), read("units/dcn-1.json"));
    fs::remove_file(&redone).expect("a unit to remove");
    assert!(program.plain(&args).expect("a second run").status.success());
    assert_eq!(fs::metadata(&kept).and_then(|file| file.modified()).expect("a kept unit"), old);
    assert_eq!(read("units/dcn-1.json"), figures);

    let other = ["lab", "pier", "--out", out.to_str().expect("a plain path")];
    let refused = program.plain(&other).expect("a run with other settings");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("results of other settings"), "{refused:?}");
}

#[test]
fn the_loop_writes_what_every_policy_and_every_way_to_arrange_came_to() {
    let place = place();
    let out = place.dir.path().join("loop");
    let args = [
        "--seeds",
        "2",
        "--households",
        "3",
        "--rounds",
        "10",
        "--logged",
        "14",
        "--logged-households",
        "3",
        "--out",
        out.to_str().expect("a plain path"),
    ];
    let said = place.program().succeed(&["lab", "loop"], &[&args[..], &["--models", &place.models]].concat()).expect("a run");
    for label in ["| frozen |", "| learning |", "| learning, no exploration |", "| ranker's order |", "| all orders, OCPM |"] {
        assert!(said.contains(label), "{label} is not in {said}");
    }
    let rows = |name: &str| fs::read_to_string(out.join(name)).expect(name).lines().count();
    assert_eq!((rows("loop.csv"), rows("ways.csv")), (1 + 3 * 2 * 10, 1 + 5 * 2));
    assert!(fs::read_to_string(out.join("loop.svg")).expect("a figure").starts_with("<svg"));
    assert!(said.starts_with("# The closed loop") && out.join("loop.md").exists(), "{said}");
}
