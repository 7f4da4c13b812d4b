use std::path::PathBuf;

use super::*;

/// A manifest of models with version `models` and a floor of `floor` placements.
pub(crate) fn manifest(models: &str, floor: usize) -> Manifest {
    let place = || Place::Directory(PathBuf::from(format!("/models/{models}")));
    let model = |name| (name, Version { version: format!("{name}@{models}"), place: place() });
    let path = PathConfig { aiqa: AiqaConfig { floor, ..AiqaConfig::default() }, ..PathConfig::default() };
    Manifest::new("demo".to_owned(), ModelName::ALL.map(model).into(), Settings::of(&path))
}

fn deployed(manifest: &Manifest, newest: Option<&Generation>) -> Generation {
    Generation::deployed(manifest, newest, 5).unwrap()
}

#[test]
fn the_same_configuration_is_the_same_generation_and_another_the_next() {
    let (old, new) = (manifest("one", 5), manifest("one", 4));
    let first = deployed(&old, None);
    assert!(first.number == 1 && runs_as(&old, &first, &[]));
    for other in [&new, &manifest("two", 5), &Manifest { market: "shop".into(), ..old.clone() }] {
        assert!(!runs_as(other, &first, &[]));
    }
    assert_eq!(deployed(&new, Some(&first)).number, 2);
    let mut elsewhere = old.clone();
    elsewhere.models.get_mut(&ModelName::Themes).unwrap().place = Place::BuiltIn("abc".into());
    assert!(runs_as(&elsewhere, &first, &[]), "where a model lies changes no page");
    let rests = PathConfig { debounce: std::time::Duration::from_secs(9), ..PathConfig::default() };
    assert_eq!(Settings::of(&rests), Settings::of(&PathConfig::default()), "nor does when it is made");
}

#[test]
fn who_lacks_models_follows_and_does_not_deploy() {
    let whole = manifest("one", 5);
    let first = deployed(&whole, None);
    let mut partial = whole.clone();
    partial.models.remove(&ModelName::Themes);
    assert!(runs_as(&partial, &first, &[]));
    partial.models.get_mut(&ModelName::Encoder).unwrap().version = "other".into();
    assert!(!runs_as(&partial, &first, &[]));
    let refusal = Generation::deployed(&partial, Some(&first), 5).unwrap_err().to_string();
    assert!(refusal.contains("lacks files of the models themes: first start a process where all models are"), "{refusal}");
}

#[test]
fn a_rollback_stands_in_for_what_is_configured_until_that_changes() {
    let (good, bad, third) = (manifest("one", 5), manifest("two", 4), manifest("three", 5));
    let first = deployed(&good, None);
    let second = deployed(&bad, Some(&first));
    let back = Generation::rolled_back(&first, &second, 9).unwrap();
    assert_eq!((back.number, back.back_to, back.in_place_of, &back.manifest), (3, Some(1), Some(2), &good));
    let replaced = [bad.clone()];
    for (configured, runs) in [(&bad, true), (&good, true), (&third, false)] {
        assert_eq!(runs_as(configured, &back, &replaced), runs);
    }
    let forth = Generation::rolled_back(&second, &back, 9).unwrap();
    assert_eq!((forth.number, forth.in_place_of, &forth.manifest), (4, Some(3), &bad), "a rollback of a rollback");
}

#[test]
fn the_store_keeps_all_of_a_generation() {
    let first = deployed(&manifest("one", 5), None);
    let back = Generation::rolled_back(&first, &deployed(&manifest("two", 5), Some(&first)), 9).unwrap();
    for generation in [first, back] {
        assert_eq!(Generation::read(generation.number, &generation.text()).unwrap(), generation);
    }
    let whole = deployed(&manifest("one", 5), None).text();
    for text in ["", "rubbish", "{}", &whole.replace("\"cross-encoder\"", "\"encoder\""), &whole.replace("at_ms", "at")] {
        let error = format!("{:#}", Generation::read(7, text).unwrap_err());
        assert!(
            error.contains("cannot read generation 7 of the store: use the release") && error.contains("delete the row"),
            "{error}"
        );
    }
}

#[test]
fn settings_come_back_as_they_were_where_this_release_takes_them() {
    let path = PathConfig {
        aiqa: AiqaConfig { threshold: Some(0.7), share_min: 0.123_456_789, ..AiqaConfig::default() },
        dedup: DedupConfig { cosine_min: 0.1 + 0.2, ..DedupConfig::default() },
        ..PathConfig::default()
    };
    let generation = deployed(&Manifest { settings: Settings::of(&path), ..manifest("one", 5) }, None);
    let read = Generation::read(1, &generation.text()).unwrap().manifest.settings;
    assert_eq!(read.path(&path).unwrap(), path);
    assert_eq!(Settings::of(&read.path(&path).unwrap()).digest, read.digest);
    for (from, to, part) in [
        ("\"floor\":5", "\"floor\":0", "settings of stage aiqa: `floor` must be 1 to 100"),
        ("\"floor\":5", "\"beauty\":5", "settings of stage aiqa: unknown field `beauty`"),
    ] {
        let read = Generation::read(1, &generation.text().replace(from, to)).unwrap();
        let error = format!("{:#}", read.manifest.settings.path(&path).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn differences_name_values_by_their_path() {
    let (before, mut after) = (manifest("one", 5), manifest("one", 4));
    after.models = manifest("two", 5).models;
    assert_eq!(
        after.differences(&before)[..3],
        [
            "aiqa.floor: 5 → 4",
            "model cross-encoder: cross-encoder@one → cross-encoder@two",
            "model encoder: encoder@one → encoder@two"
        ]
    );
    let path = PathConfig { aiqa: AiqaConfig { threshold: Some(0.7), ..AiqaConfig::default() }, ..PathConfig::default() };
    let stricter = Manifest { settings: Settings::of(&path), ..before.clone() };
    assert_eq!(stricter.differences(&before), ["aiqa.threshold: none → 0.7"]);
    assert!(before.differences(&before).is_empty());
}

#[test]
fn the_last_number_is_told() {
    let mut newest = deployed(&manifest("one", 5), None);
    newest.number = LAST - 1;
    assert_eq!(deployed(&manifest("two", 5), Some(&newest)).number, LAST);
    newest.number = LAST;
    for refused in [Generation::deployed(&newest.manifest, Some(&newest), 5), Generation::rolled_back(&newest, &newest, 5)] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("generation 999 is the last") && error.contains("begin with an empty store"), "{error}");
    }
}
