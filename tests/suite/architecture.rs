//! ARCHITECTURE.md's map names every crate of the workspace, and nothing that is not there.

use std::{collections::BTreeSet, fs, path::Path};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests folder lies in the workspace")
}

/// Paths of the map: the first back-quoted word of each line of the table that begins with "| `".
fn mapped(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .map(|path| path.trim_end_matches('/').to_owned())
        .collect()
}

/// Members of the root manifest, one per line as `"path",`.
fn members(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| !line.starts_with("members"))
        .skip(1)
        .take_while(|line| !line.starts_with(']'))
        .map(|line| line.trim().trim_matches(|c| c == '"' || c == ',').to_owned())
        .collect()
}

#[test]
fn the_map_and_the_workspace_agree() {
    let map = mapped(&fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable"));
    let members = members(&fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is readable"));
    assert!(members.len() > 10, "the members were not found in Cargo.toml");
    let unmapped: Vec<_> = members.difference(&map).collect();
    assert!(unmapped.is_empty(), "not in ARCHITECTURE.md's map: {unmapped:?}");
    let gone: Vec<_> = map.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "in ARCHITECTURE.md's map, but not there: {gone:?}");
}

/// Crates that a manifest depends on, dev-dependencies left out.
fn dependencies(member: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).expect("every member has a manifest");
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_do_not_know_what_the_invariants_forbid() {
    let stages = ["workers/context", "workers/themes", "workers/keywords", "workers/dedup", "workers/aiqa", "workers/ranking"];
    let outside_stages: &[&str] = &["candle-core", "rusqlite", "rdkafka", "scylla", "tokio", "endcap-engine"];
    let stage_names = ["endcap-context", "endcap-themes", "endcap-keywords", "endcap-dedup", "endcap-aiqa", "endcap-ranking"];
    let pure: &[&str] = &["candle-core", "rusqlite", "tokio", "usearch", "metrics"];
    for (member, forbidden) in stages
        .iter()
        .map(|stage| (*stage, outside_stages))
        .chain(["schemas", "models/market"].map(|member| (member, pure)))
        // It computes on candle's tensors, in memory alone.
        .chain([("models/ranker", &pure[1..])])
    {
        let dependencies = dependencies(member);
        let broken: Vec<_> = forbidden.iter().filter(|name| dependencies.contains(**name)).collect();
        assert!(broken.is_empty(), "{member} must not depend on {broken:?}");
    }
    for stage in stages {
        let dependencies = dependencies(stage);
        let others: Vec<_> = stage_names.iter().filter(|name| dependencies.contains(**name)).collect();
        assert!(others.is_empty(), "stage {stage} must not know the stages {others:?}");
    }
    assert!(!dependencies("models/inference").contains("candle-core"), "inference knows no candle");
}

#[test]
fn each_driver_is_known_to_one_crate_of_the_product() {
    let mut members = members(&fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is readable"));
    members.retain(|member| member != "tests"); // benches look from outside
    for (driver, owner) in [("rdkafka", "workers/log-kafka"), ("scylla", "workers/store-scylla")] {
        let knowing: Vec<_> = members.iter().filter(|member| dependencies(member).contains(driver)).collect();
        assert_eq!(knowing, [owner], "only {owner} may depend on {driver}");
    }
}

#[test]
fn versions_stand_in_the_root_manifest_alone_and_what_is_absent_on_purpose_is() {
    let members = members(&fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is readable"));
    for member in &members {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).expect("every member has a manifest");
        let sections = manifest.split("\n[").filter(|section| section.split(']').next().unwrap_or("").contains("dependencies"));
        for line in sections.flat_map(|section| section.lines().skip(1)).filter(|line| line.contains('=')) {
            assert!(
                line.contains("workspace = true"),
                "{member}/Cargo.toml: `{line}` must take its version from the root manifest"
            );
        }
    }
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock is readable");
    for absent in ["candle-nn", "candle-transformers"] {
        assert!(!lock.contains(&format!("name = \"{absent}\"")), "{absent} is absent on purpose");
    }
}
