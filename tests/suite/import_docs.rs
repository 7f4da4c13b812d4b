//! `docs/import.md` held to the program: every example is imported as it stands there.

use crate::program::place;

const PAGE: &str = include_str!("../../docs/import.md");

/// A format's section: its command, its example and the rows that it says are rejected.
struct Section<'a> {
    what: &'a str,
    format: &'a str,
    taken: String,
    rejected: String,
}

/// The text of the first fenced block of `text`, and what follows it.
fn fenced(text: &str) -> (String, &str) {
    let (_, rest) = text.split_once("```").expect("a block");
    let (_, rest) = rest.split_once('\n').expect("a line that opens it");
    let (block, rest) = rest.split_once("\n```").expect("a line that closes it");
    (format!("{block}\n"), rest)
}

fn sections() -> Vec<Section<'static>> {
    let parts = PAGE.split("### `endcap import ").skip(1);
    parts
        .map(|part| {
            let (command, text) = part.split_once('`').expect("a heading that is a command");
            let (what, format) = command.split_once(" FILE --format ").expect("what, and its format");
            let (taken, rest) = fenced(text);
            let (rejected, _) = fenced(rest.split_once("Rejected:").expect("rows that are rejected").1);
            Section { what, format, taken, rejected }
        })
        .collect()
}

#[test]
fn the_examples_of_the_import_page_are_taken_and_rejected_as_it_says() {
    let place = place();
    let sections = sections();
    let formats: Vec<_> = sections.iter().map(|section| (section.what, section.format)).collect();
    let known = [
        ("catalog", "endcap-json"),
        ("catalog", "openfoodfacts"),
        ("catalog", "completejourney"),
        ("keywords", "endcap-json"),
        ("keywords", "tsv"),
        ("events", "endcap-json"),
        ("events", "completejourney"),
    ];
    assert_eq!(formats, known);
    let market = place.dir.path().join("market").display().to_string();
    for Section { what, format, taken, rejected } in sections {
        let import = |name: &str, rows: &str| {
            let file = place.file(&format!("{name}-{what}-{format}"), rows);
            let args = ["import", what, &file, "--format", format, "--market", &market, "--no-index"];
            let output = place.program().plain(&args).unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{what} {format}: {said}");
            said
        };
        let header = usize::from(!taken.starts_with('{'));
        let count = |rows: &str| rows.lines().count() - header;
        let said = import("taken", &taken);
        assert!(said.contains(&format!("{} rows taken, 0 rejected", count(&taken))), "{what} {format}: {said}");
        let said = import("rejected", &rejected);
        assert!(said.contains(&format!("0 rows taken, {} rejected", count(&rejected))), "{what} {format}: {said}");
    }
}
