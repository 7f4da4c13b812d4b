//! A market that is written, read, changed under its readers, and broken.

mod common;

use std::path::{Path, PathBuf};

use common::{DIMENSIONS, category, index, names, node, product, query, term, vector};
use endcap_retrieval::{Filter, IndexOptions, Market, MarketDir, MarketError, build_index, import, write_demo};
use endcap_schemas::{Descriptor, Diet, DietSet, Product};

/// A small dairy and bakery.
fn demo(dir: &MarketDir) {
    let mut products = vec![
        product("p1", "unsalted french butter", &["dairy", "butter"], 0.9),
        product("p2", "salted butter", &["dairy", "butter"], 0.8),
        product("p3", "butter cookies", &["bakery", "cookies"], 0.95),
        product("p4", "oat cookies", &["bakery", "cookies"], 0.3),
        product("p5", "vegan oat cookies", &["bakery", "cookies"], 0.2),
        product("p6", "sherry", &["drinks", "wine"], 0.9),
        product("p7", "sold out butter", &["dairy", "butter"], 1.0),
        product("p8", "mushroom butter", &["dairy", "butter"], 0.7),
    ];
    for at in [0, 1, 2, 3, 6, 7] {
        products[at].violates = DietSet::NONE.with(Diet::Vegan);
    }
    products[5].age_restricted = true;
    products[6].in_stock = false;
    let categories = [category("butter", "dairy"), category("cookies", "bakery"), category("wine", "drinks")];
    let terms = [
        term("butter", Descriptor::Node),
        term("unsalted french butter", Descriptor::Query),
        term("oat cookies", Descriptor::Query),
        term("vegan cookies", Descriptor::Query),
        term("sherry", Descriptor::Query),
    ];
    write_demo(dir, &products, &categories, &terms).unwrap();
}

fn page() -> Filter {
    Filter::of_page(DietSet::NONE, &[])
}

/// The market's file of this kind: `usearch` for the graph, `f16` for the vectors.
fn index_file(market: &Path, kind: &str) -> PathBuf {
    let mut files = std::fs::read_dir(market).unwrap().map(|file| file.unwrap().path());
    files.find(|path| path.extension().is_some_and(|end| end == kind)).unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let snapshot = Market::open(scratch.path()).unwrap().snapshot();
    let product = snapshot.product("p1").unwrap().unwrap();
    assert_eq!((product.name.as_str(), product.category(), product.price_cents), ("unsalted french butter", "butter", Some(199)));
    assert_eq!(snapshot.category("cookies").unwrap(), &category("cookies", "bakery"));
    assert_eq!(
        snapshot.terms(&[2, 99, 1]).unwrap().iter().map(|(id, term)| (*id, term.text.as_str())).collect::<Vec<_>>(),
        [(2, "unsalted french butter"), (1, "butter")]
    );
    assert_eq!(names(&snapshot.products(&["p4", "nobody", "p2"]).unwrap()), ["oat cookies", "salted butter"]);
    let counts = snapshot.counts().unwrap();
    assert_eq!((counts.products, counts.categories, counts.terms), (8, 3, 5));
}

#[test]
fn keywords_retrieve_by_node_and_by_words() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let snapshot = Market::open(scratch.path()).unwrap().snapshot();
    let cases: &[(_, &[&str])] = &[
        (node("butter"), &["unsalted french butter", "salted butter", "mushroom butter"]),
        (node("dairy"), &["unsalted french butter", "salted butter", "mushroom butter"]),
        // Butter is what is asked for, not cookies that hold the word. What names nothing is looked for anywhere.
        (query("butters"), &["unsalted french butter", "salted butter", "mushroom butter"]),
        (query("oat"), &["oat cookies", "vegan oat cookies"]),
        // All words first; few, so the rarer word goes, never the noun.
        (query("unsalted french butter"), &["unsalted french butter", "salted butter", "mushroom butter"]),
        (query("vegan cookies"), &["vegan oat cookies"]),
        (query("purple submarine"), &[]),
        (query("sherry"), &[]),
        (query(""), &[]),
        (query("\" OR head:* NEAR( --"), &[]),
    ];
    for (keyword, expected) in cases {
        assert_eq!(names(&snapshot.products_for(keyword, &page(), 20).unwrap()), *expected, "{keyword:?}");
    }
    assert_eq!(names(&snapshot.popular("cookies", &page(), 1).unwrap()), ["butter cookies"]);
    let adult = Filter { adult: true, ..page() };
    assert_eq!(names(&snapshot.search("sherry", &adult, 5).unwrap()), ["sherry"]);
}

#[test]
fn nothing_that_the_filter_forbids_comes() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let snapshot = Market::open(scratch.path()).unwrap().snapshot();
    let vegan = Filter::of_page(DietSet::NONE.with(Diet::Vegan), &[]);
    let dislikes = Filter::of_page(DietSet::NONE, &["Mushrooms".to_owned(), "french butters".to_owned()]);
    for (keyword, filter, expected) in [
        (node("butter"), &vegan, &[][..]),
        (query("cookies"), &vegan, &["vegan oat cookies"]),
        (node("butter"), &dislikes, &["salted butter"]),
        (query("butter"), &dislikes, &["salted butter"]),
    ] {
        assert_eq!(names(&snapshot.products_for(&keyword, filter, 20).unwrap()), expected, "{keyword:?} {filter:?}");
    }
}

#[test]
fn terms_near_a_text_are_found_and_an_unchanged_corpus_is_not_embedded_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let market = Market::open(scratch.path()).unwrap();
    let ask = vector("oat cookies", DIMENSIONS);
    assert!(matches!(market.snapshot().near(&ask, 2), Err(MarketError::NoIndex(_))));
    let report = index(&dir, "words@1");
    assert_eq!((report.terms, report.embedded, report.unchanged), (5, 5, false));

    let snapshot = market.snapshot();
    assert_eq!(snapshot.index_version(), report.version);
    let near = snapshot.near(&ask, 2).unwrap();
    assert_eq!(near.iter().map(|near| near.term).collect::<Vec<_>>(), [3, 4]);
    assert!(near[0].cosine > 0.999 && near[0].cosine > near[1].cosine, "{near:?}");
    assert_eq!(near, snapshot.near_exact(&ask, 2).unwrap());
    assert!(matches!(snapshot.near(&ask[1..], 2), Err(MarketError::Dimensions { index: DIMENSIONS, .. })));

    assert!(index(&dir, "words@1").unchanged);
    let other = index(&dir, "words@2");
    assert_eq!((other.embedded, other.unchanged), (5, false));
    assert_ne!(other.version, report.version);
    // The old snapshot still answers from the files it holds.
    assert_eq!(snapshot.near(&ask, 2).unwrap(), near);
}

/// Builds an index until `chunks` of two terms are embedded.
fn killed_index(dir: &MarketDir, encoder_version: &str, chunks: usize) {
    let mut left = chunks;
    let mut failing = |texts: &[String]| {
        left = left.checked_sub(1).ok_or("out of power")?;
        Ok(texts.iter().map(|text| vector(text, DIMENSIONS)).collect())
    };
    let options = IndexOptions { chunk: 2, threads: 1 };
    let fault = build_index(dir, encoder_version, &mut failing, &options, &mut |_| ()).unwrap_err();
    assert_eq!(fault.to_string(), "cannot embed terms: out of power");
}

#[test]
fn an_index_build_that_is_killed_goes_on_where_it_stopped() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    killed_index(&dir, "words@1", 2);
    // What a crash left behind the last whole row is cut off.
    let file = index_file(scratch.path(), "f16");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.extend([7; 99]);
    std::fs::write(file, bytes).unwrap();

    let report = index(&dir, "words@1");
    assert_eq!((report.terms, report.embedded), (5, 1));
    let undisturbed = tempfile::tempdir().unwrap();
    let other = MarketDir::create(undisturbed.path()).unwrap();
    demo(&other);
    let same = index(&other, "words@1");
    assert_eq!(same.version, report.version);
    let graph = |dir: &MarketDir| std::fs::read(dir.path().join(format!("terms-{}.usearch", report.version))).unwrap();
    assert_eq!(graph(&dir), graph(&other), "the same corpus gives the same index");
}

#[test]
fn an_encoder_that_comes_back_begins_anew_and_goes_on_where_it_was_killed() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let first = index(&dir, "words@1");
    let ask = vector("oat cookies", DIMENSIONS);
    let before = Market::open(scratch.path()).unwrap().snapshot();
    let near = before.near(&ask, 3).unwrap();

    killed_index(&dir, "words@2", 1);
    assert_eq!(Market::open(scratch.path()).unwrap().snapshot().near(&ask, 3).unwrap(), near, "the old index serves meanwhile");
    killed_index(&dir, "words@1", 2);
    assert_eq!(before.near(&ask, 3).unwrap(), near, "a reader keeps the rows that it has open");
    let again = index(&dir, "words@1");
    assert_eq!((again.embedded, &again.version), (1, &first.version));
    assert_eq!(Market::open(scratch.path()).unwrap().snapshot().near(&ask, 3).unwrap(), near);
    assert!(index(&dir, "words@1").unchanged);
}

#[test]
fn an_index_without_a_seal_gets_one_from_the_next_build() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    index(&dir, "words@1");
    let db = rusqlite::Connection::open(scratch.path().join("market.sqlite")).unwrap();
    let seal = || db.query_row("SELECT value FROM meta WHERE key = 'index_seal'", [], |row| row.get::<_, String>(0));
    let written = seal().unwrap();
    db.execute("DELETE FROM meta WHERE key = 'index_seal'", []).unwrap();
    assert!(index(&dir, "words@1").unchanged);
    assert_eq!(seal().unwrap(), written);
}

#[test]
fn a_market_that_is_taken_back_leaves_what_was_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (older, made) = (scratch.path().join("rejects-older.tsv"), scratch.path().join("rejects-made.tsv"));
    let dir = MarketDir::create(scratch.path()).unwrap();
    for list in [&older, &made] {
        std::fs::write(list, "line\treason\trow\n").unwrap();
    }
    dir.discard(Some(scratch.path()), &[made]).unwrap();
    let left: Vec<PathBuf> = std::fs::read_dir(scratch.path()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(left, [older]);
}

#[test]
fn a_market_keeps_its_identity_wherever_it_goes() {
    let scratch = tempfile::tempdir().unwrap();
    let (here, there) = (scratch.path().join("here"), scratch.path().join("there"));
    let dir = MarketDir::create(&here).unwrap();
    assert_eq!(dir.known_identity().unwrap(), None);
    let identity = dir.identity().unwrap();
    assert_eq!(identity.len(), 32);
    assert_ne!(MarketDir::create(&there).unwrap().identity().unwrap(), identity);
    std::fs::remove_dir_all(&there).unwrap();
    std::fs::rename(&here, &there).unwrap();
    std::fs::remove_file(there.join("market.sqlite")).unwrap();
    let dir = MarketDir::create(&there).unwrap();
    demo(&dir);
    assert_eq!((dir.known_identity().unwrap(), dir.identity().unwrap()), (Some(identity.clone()), identity));
}

#[test]
fn a_new_leaf_does_not_inherit_the_vector_of_one_that_is_gone() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    let catalog = |leaf: &str| {
        let of = |path: &[&str], at: usize| product(&format!("{}{at}", &path[1][..1]), "something", path, 0.5);
        let products =
            (0..4).flat_map(|at| [of(&["dairy", "butter"], at), Product { id: format!("p{at}"), ..of(&["dairy", leaf], at) }]);
        let lines: Vec<String> = products.map(|product| serde_json::to_string(&product).unwrap()).collect();
        let file = scratch.path().join("catalog.jsonl");
        std::fs::write(&file, lines.join("\n")).unwrap();
        import::catalog(&dir, &file, import::CatalogFormat::EndcapJson, None, &mut |_| ()).unwrap();
    };
    catalog("yoghurt");
    assert_eq!(index(&dir, "words@1").embedded, 3);
    let before = Market::open(scratch.path()).unwrap().snapshot();
    let (yoghurt, quark) = (vector("yoghurt", DIMENSIONS), vector("quark", DIMENSIONS));
    let near = before.near(&yoghurt, 3).unwrap();

    catalog("quark");
    let counts = dir.counts().unwrap();
    assert_eq!((counts.terms, counts.embedded), (3, 2));
    assert_eq!(index(&dir, "words@1").embedded, 1);
    let after = Market::open(scratch.path()).unwrap().snapshot();
    let found = after.near(&quark, 1).unwrap()[0];
    assert_eq!(after.terms(&[found.term]).unwrap()[0].1.text, "quark");
    assert_eq!(found.term, near[0].term, "the number is given again");
    assert!(found.cosine > 0.999, "{found:?}");
    assert!(after.near_exact(&yoghurt, 3).unwrap()[0].cosine < 0.9);
    assert_eq!(before.near(&yoghurt, 3).unwrap(), near, "readers of the old index keep its vectors");
}

#[test]
fn encoders_that_answer_nonsense_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    type Answer = fn(usize) -> Vec<Vec<f32>>;
    let answers: [Answer; 4] =
        [|_| Vec::new(), |n| vec![vec![0.0; 8]; n], |n| vec![vec![f32::NAN; 8]; n], |n| vec![Vec::new(); n]];
    for answer in answers {
        let mut encoder = |texts: &[String]| Ok(answer(texts.len()));
        let fault = build_index(&dir, "nonsense", &mut encoder, &IndexOptions::default(), &mut |_| ()).unwrap_err();
        assert!(matches!(fault, MarketError::Encoder(_)), "{fault}");
    }
}

#[test]
fn a_reader_sees_changes_at_its_next_snapshot_and_not_before() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let market = Market::open(scratch.path()).unwrap();
    let before = market.snapshot();
    assert_eq!(before.version(), market.snapshot().version());

    let mut changed = product("p2", "salted butter", &["dairy", "butter"], 0.8);
    changed.price_cents = Some(99);
    let new = product("p9", "brown butter", &["dairy", "butter"], 1.0);
    let file = scratch.path().join("more.jsonl");
    let mut withdrawn = serde_json::to_value(product("p1", "unsalted french butter", &["dairy", "butter"], 0.9)).unwrap();
    withdrawn["withdrawn"] = true.into();
    let lines: Vec<String> = [&changed, &new].map(|product: &Product| serde_json::to_string(product).unwrap()).into();
    std::fs::write(&file, format!("{}\n{withdrawn}\n", lines.join("\n"))).unwrap();
    let report = import::catalog(&dir, &file, import::CatalogFormat::EndcapJson, None, &mut |_| ()).unwrap();
    assert_eq!((report.change.added, report.change.changed, report.change.withdrawn), (1, 1, 1));

    let after = market.snapshot();
    assert_ne!(before.version(), after.version());
    for _ in 0..3 {
        assert_eq!(names(&before.popular("butter", &page(), 9).unwrap())[0], "unsalted french butter");
    }
    assert_eq!(names(&after.popular("butter", &page(), 9).unwrap()), ["brown butter", "salted butter", "mushroom butter"]);
    assert_eq!(
        names(&after.search("unsalted french butter", &page(), 9).unwrap()),
        ["brown butter", "salted butter", "mushroom butter"]
    );
    assert_eq!(after.product("p1").unwrap(), None);
    assert_eq!(after.product("p2").unwrap().unwrap().price_cents, Some(99));

    assert_eq!(import::withdraw(&dir, &["p9", "nobody"]).unwrap(), 1);
    assert_eq!(names(&market.snapshot().popular("butter", &page(), 9).unwrap()), ["salted butter", "mushroom butter"]);
}

#[test]
fn many_threads_share_a_snapshot() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    index(&dir, "words@1");
    let market = Market::open(scratch.path()).unwrap();
    let ask = vector("oat cookies", DIMENSIONS);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let snapshot = market.snapshot();
                    assert_eq!(snapshot.near(&ask, 1).unwrap()[0].term, 3);
                    assert_eq!(snapshot.search("oat cookies", &page(), 9).unwrap()[0].id, "p4");
                }
            });
        }
    });
}

#[test]
fn directories_that_cannot_be_used_say_why() {
    let scratch = tempfile::tempdir().unwrap();
    let fault = Market::open(scratch.path().join("nowhere")).unwrap_err();
    assert!(fault.to_string().contains("endcap import"), "{fault}");
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let db = rusqlite::Connection::open(scratch.path().join("market.sqlite")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    let fault = Market::open(scratch.path()).unwrap_err();
    assert!(matches!(fault, MarketError::Newer { found: 99, .. }), "{fault}");
    assert!(matches!(MarketDir::create(scratch.path()), Err(MarketError::Newer { .. })));
}

#[test]
fn damaged_index_files_are_made_again_by_the_next_build_and_told_to_readers_where_length_or_header_shows_it() {
    type Break = fn(&Path);
    // Damage, whether a reader sees it.
    let breaks: [(&str, bool, Break); 5] = [
        ("half of it", true, |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("nothing of it", true, |file| std::fs::write(file, "").unwrap()),
        ("rubbish of its length", true, |file| std::fs::write(file, vec![b'x'; std::fs::read(file).unwrap().len()]).unwrap()),
        ("another last byte", false, |file| {
            let mut bytes = std::fs::read(file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("no file", true, |file| std::fs::remove_file(file).unwrap()),
    ];
    let ask = vector("oat cookies", DIMENSIONS);
    for (kind, embedded) in [("usearch", 0), ("f16", 5)] {
        for (name, shows, damage) in breaks {
            let scratch = tempfile::tempdir().unwrap();
            let dir = MarketDir::create(scratch.path()).unwrap();
            demo(&dir);
            let first = index(&dir, "words@1");
            let near = Market::open(scratch.path()).unwrap().snapshot().near(&ask, 3).unwrap();
            let file = index_file(scratch.path(), kind);
            damage(&file);

            match Market::open(scratch.path()).map_err(|fault| fault.to_string()) {
                Ok(_) => assert!(!shows, "{kind}, {name}: was opened"),
                Err(fault) => {
                    let named = fault.contains(file.to_str().unwrap()) && fault.contains("endcap up");
                    assert!(shows && named, "{kind}, {name}: {fault}");
                }
            }
            let again = index(&dir, "words@1");
            assert_eq!((again.unchanged, again.embedded, &again.version), (false, embedded, &first.version), "{kind}, {name}");
            assert_eq!(Market::open(scratch.path()).unwrap().snapshot().near(&ask, 3).unwrap(), near, "{kind}, {name}");
            assert!(index(&dir, "words@1").unchanged, "{kind}, {name}");
        }
    }
}

#[test]
fn a_database_that_is_none_or_anothers_is_refused_by_name_and_left_alone() {
    let fill = |bytes: Vec<u8>| {
        move |file: &Path| {
            std::fs::write(file, &bytes).unwrap();
        }
    };
    let stranger = |file: &Path| {
        let db = rusqlite::Connection::open(file).unwrap();
        db.execute_batch("CREATE TABLE meta (photo); PRAGMA user_version = 1").unwrap();
    };
    type Spoil<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Spoil<'_>, &str); 3] = [
        ("a letter", &fill(b"Dear Anna, this is no database. ".repeat(200)), "move it away and import again"),
        ("zeros", &fill(vec![0; 8_192]), "move it away and import again"),
        ("a stranger's", &stranger, "name another directory"),
    ];
    for (name, make, remedy) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("market.sqlite");
        make(&file);
        let before = std::fs::read(&file).unwrap();
        for fault in [Market::open(scratch.path()).unwrap_err(), MarketDir::create(scratch.path()).unwrap_err()] {
            let fault = fault.to_string();
            assert!(fault.contains(file.to_str().unwrap()) && fault.contains(remedy), "{name}: {fault}");
        }
        assert!(std::fs::read(&file).unwrap() == before, "{name}: stays as it was");
        // The remedy helps.
        std::fs::remove_file(&file).unwrap();
        demo(&MarketDir::create(scratch.path()).unwrap());
        assert_eq!(Market::open(scratch.path()).unwrap().snapshot().counts().unwrap().products, 8);
    }
}

#[test]
fn a_database_that_lost_its_end_is_named_by_what_reads_it() {
    let scratch = tempfile::tempdir().unwrap();
    demo(&MarketDir::create(scratch.path()).unwrap());
    let file = scratch.path().join("market.sqlite");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
    let fault = MarketDir::open(scratch.path()).and_then(|dir| Market::over(dir)?.snapshot().counts()).unwrap_err();
    assert!(matches!(&fault, MarketError::Unreadable { path, .. } if *path == file), "{fault}");
}

#[test]
fn products_that_cannot_be_stored_leave_the_market_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(scratch.path()).unwrap();
    demo(&dir);
    let version = dir.catalogue_version().unwrap();
    let good = product("a", "a", &["x", "y"], 0.5);
    for bad in [
        Product { id: String::new(), ..good.clone() },
        Product { name: "x".repeat(300), ..good.clone() },
        Product { name: "tab\there".to_owned(), ..good.clone() },
        Product { price_cents: Some(-1), ..good.clone() },
        Product { popularity: f32::NAN, ..good.clone() },
        good.clone(),
    ] {
        let fault = write_demo(&dir, &[good.clone(), bad], &[], &[]).unwrap_err();
        assert!(matches!(fault, MarketError::Unfit(_)), "{fault}");
    }
    assert_eq!(dir.catalogue_version().unwrap(), version);
}
