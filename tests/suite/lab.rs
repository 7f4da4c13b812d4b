//! The experiments as a user runs them.

use std::fs;

use endcap_tests::Run;

use crate::program::PROGRAM;

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
