//! The importers on the real files, where they are there. The full import is run by hand:
//! `cargo test -p endcap-retrieval --test real -- --ignored --nocapture`.

mod common;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use common::{real_data, vector};
use endcap_retrieval::{
    Filter, IndexOptions, IndexProgress, Market, MarketDir, build_index,
    import::{self, CatalogFormat, EventFormat, ImportReport, KeywordFormat},
};
use endcap_schemas::{Descriptor, Diet, DietSet, Keyword};

#[test]
fn every_real_purchase_line_is_an_event_or_a_reject() {
    let Some(data) = real_data() else { return };
    let file = data.join("completejourney/transactions_sample.tsv.zst");
    let mut events = import::events(&file, EventFormat::CompleteJourney, None).unwrap();
    let (mut last, mut users, mut taken) = (0, std::collections::HashSet::new(), 0);
    for event in events.by_ref() {
        let event = event.unwrap();
        assert!(event.at_ms >= last, "line out of order: {event:?}");
        last = event.at_ms;
        taken += 1;
        users.insert(event.user);
    }
    let report = events.finish().unwrap();
    assert_eq!(report.accepted, taken);
    assert_eq!(report.accepted + report.rejected, 75_000);
    assert_eq!(report.rejected, 416, "lines of quantity 0");
    assert!((2_300..=2_377).contains(&users.len()), "{}", users.len());
}

#[test]
fn every_row_of_the_real_catalogues_and_keywords_is_taken_or_rejected() {
    let Some(data) = real_data() else { return };
    let file = data.join("openfoodfacts/catalog_en_food.tsv.zst");
    let mut rows = import::products(&file, CatalogFormat::OpenFoodFacts, None).unwrap();
    let with_category = rows.by_ref().filter(|offer| !offer.as_ref().unwrap().product.category_path.is_empty()).count();
    let report = rows.finish().unwrap();
    assert_eq!((report.accepted + report.rejected, report.rejected), (239_487, 6), "barcodes of more than 24 digits");
    assert!((207_700..=207_706).contains(&with_category), "{with_category}");

    let file = data.join("completejourney/products.tsv.zst");
    let mut rows = import::products(&file, CatalogFormat::CompleteJourney, None).unwrap();
    assert!(rows.by_ref().all(|offer| offer.is_ok()));
    let report = rows.finish().unwrap();
    assert_eq!((report.accepted, report.rejected), (92_331, 0));

    let mut rows = import::terms(&data.join("keywords/keywords_300k.tsv.zst"), KeywordFormat::Tsv, None).unwrap();
    let first_tier = rows.by_ref().filter(|term| term.as_ref().unwrap().tier == 1).count();
    let report = rows.finish().unwrap();
    assert_eq!((report.accepted, report.rejected, first_tier), (300_000, 0, 190_579));
}

#[test]
#[ignore = "imports all real files: minutes"]
fn the_real_market_is_imported_indexed_and_searched() {
    let Some(data) = real_data() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let keep = std::env::var_os("ENDCAP_TEST_MARKET").map(std::path::PathBuf::from);
    let path = keep.unwrap_or_else(|| scratch.path().join("market"));
    let dir = MarketDir::create(&path).unwrap();
    // A market that is there already is measured as it is.
    if dir.counts().unwrap().terms == 0 {
        import_all(&dir, &data);
    }
    index(&dir);
    println!("{:?}; peak memory {}", dir.counts().unwrap(), peak_memory());
    let start = Instant::now();
    let market = Market::open(&path).unwrap();
    let opened = start.elapsed();
    println!("open {opened:?}, {} categories", market.snapshot().categories().len());
    assert!(opened < Duration::from_secs(1));
    neighbours(&market);
    latencies(&market);
}

fn import_all(dir: &MarketDir, data: &Path) {
    let (off, cj) = (data.join("openfoodfacts/catalog_en_food.tsv.zst"), data.join("completejourney/products.tsv.zst"));
    let report = timed("openfoodfacts", || import::catalog(dir, &off, CatalogFormat::OpenFoodFacts, None, &mut |_| ()).unwrap());
    assert_eq!(report.accepted + report.rejected, 239_487);
    let report =
        timed("completejourney", || import::catalog(dir, &cj, CatalogFormat::CompleteJourney, None, &mut |_| ()).unwrap());
    assert_eq!(report.accepted + report.rejected, 92_331);
    let file = data.join("completejourney/transactions_sample.tsv.zst");
    timed("purchases", || import::purchases(dir, &file, EventFormat::CompleteJourney, None, &mut |_| ()).unwrap());
    let file = data.join("keywords/keywords_300k.tsv.zst");
    let report = timed("keywords", || import::keywords(dir, &file, KeywordFormat::Tsv, &mut |_| ()).unwrap());
    assert_eq!(report.accepted + report.rejected, 300_000);
    let version = dir.catalogue_version().unwrap();
    let report =
        timed("completejourney again", || import::catalog(dir, &cj, CatalogFormat::CompleteJourney, None, &mut |_| ()).unwrap());
    assert!(report.change.is_nothing(), "{report:?}");
    assert_eq!(dir.catalogue_version().unwrap(), version);
}

fn timed(what: &str, work: impl FnOnce() -> ImportReport) -> ImportReport {
    let (start, worked) = (Instant::now(), processor_time());
    let report = work();
    let worked = processor_time() - worked;
    println!("{what}: {:.1?}, processor time {worked:.1?} {report:?}; peak memory {}", start.elapsed(), peak_memory());
    report
}

fn index(dir: &MarketDir) {
    let (start, mut embedded) = (Instant::now(), None);
    let mut encoder = |texts: &[String]| Ok(texts.iter().map(|text| vector(text, 256)).collect());
    let mut progress = |progress| {
        if matches!(progress, IndexProgress::Indexing { .. }) {
            embedded.get_or_insert(start.elapsed());
        }
    };
    let report = build_index(dir, "words@256", &mut encoder, &IndexOptions::default(), &mut progress).unwrap();
    println!("index: {:.1?}, of it embedding {:.1?} {report:?}", start.elapsed(), embedded.unwrap_or_default());
}

fn neighbours(market: &Market) {
    let snapshot = market.snapshot();
    let (mut times, mut same) = (Vec::new(), 0);
    let texts = [
        "fresh whole milk",
        "gluten free pasta",
        "spicy snacks",
        "chocolate gifts",
        "grilling meats",
        "baby food",
        "cheese board",
        "soup",
    ];
    for text in texts {
        let vector = vector(text, 256);
        let start = Instant::now();
        let near = snapshot.near(&vector, 64).unwrap();
        times.push(start.elapsed());
        let exact = snapshot.near_exact(&vector, 64).unwrap();
        // Equal cosines make equal neighbours.
        let worst = exact.last().unwrap().cosine;
        same += near.iter().filter(|near| near.cosine >= worst - 1e-6).count();
    }
    times.sort();
    println!(
        "near(64): recall {:.4}, p50 {:?}, max {:?}",
        same as f64 / (64 * texts.len()) as f64,
        times[times.len() / 2],
        times.last()
    );
}

fn latencies(market: &Market) {
    let snapshot = market.snapshot();
    let all = snapshot.counts().unwrap().terms;
    let vegan = Filter::of_page([Diet::Vegan, Diet::GlutenFree].into_iter().collect(), &["mushrooms".to_owned()]);
    for (what, filter, tier) in [
        ("any", Filter::of_page(DietSet::NONE, &[]), None),
        ("tier 1", Filter::of_page(DietSet::NONE, &[]), Some(1)),
        ("vegan", vegan, Some(1)),
    ] {
        let worked = processor_time();
        let (mut times, mut found, mut slowest) = (Vec::new(), 0, (Duration::ZERO, String::new()));
        for at in 0..5_000 {
            let Some(term) =
                snapshot.term(1 + at * (all / 5_000)).unwrap().filter(|term| tier.is_none_or(|tier| term.tier == tier))
            else {
                continue;
            };
            let keyword = Keyword { id: 1 + at * (all / 5_000), text: term.text.clone(), descriptor: term.descriptor };
            let start = Instant::now();
            let products = snapshot.products_for(&keyword, &filter, 20).unwrap();
            times.push(start.elapsed());
            found += usize::from(products.len() >= 4);
            slowest = slowest.max((*times.last().unwrap(), term.text));
            assert!(products.iter().all(|product| filter.allows(product)));
        }
        times.sort();
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        println!(
            "products_for {what}: {} terms, processor time {:?} each, p50 {:?} p90 {:?} p99 {:?}, slowest {slowest:?}; {found} find 4 or more",
            times.len(),
            (processor_time() - worked) / times.len() as u32,
            at(0.5),
            at(0.9),
            at(0.99)
        );
    }
    for text in
        ["unsalted french butters", "organic milk", "vegan cheese", "dark chocolate", "gluten free bread", "salsa", "yogurts"]
    {
        let keyword = Keyword { id: 0, text: text.to_owned(), descriptor: Descriptor::Query };
        let products = snapshot.products_for(&keyword, &Filter::of_page(DietSet::NONE, &[]), 8).unwrap();
        println!(
            "{text}: {:?}",
            products.iter().map(|product| format!("{} [{}]", product.title(), product.category())).collect::<Vec<_>>()
        );
    }
}

/// Time that this thread has spent on a processor: a machine that does other things as well makes no difference to it.
fn processor_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or_else(String::new, |kb| kb.trim().to_owned())
}
