//! Files of the forms that are imported, small ones and hostile ones.

mod common;

use std::{
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use common::{names, node, query};
use endcap_retrieval::{
    Filter, Market, MarketDir,
    import::{self, CatalogFormat, EventFormat, ImportError, KeywordFormat, Phase},
};
use endcap_schemas::{Descriptor, Diet, DietSet};

const FOOD: &str = "\
barcode\tname\tcategory_id\tcategory_path\tingredients300\tfat\tcarb\tsugar\tprotein\tsalt
001\tOld gouda\ten:gouda\tDairies > Cheeses > Gouda\tmilk, salt\t31\t0\t0\t24\t2
002\tYoung gouda\ten:gouda\tDairies > Cheeses > Gouda\tmilk, salt\t31\t0\t0\t24\t2
003\tMild gouda\ten:gouda\tDairies > Cheeses > Gouda\t\t\t\t\t\t
004\tGouda slices\ten:gouda\tDairies > Cheeses > Gouda\tmilk\t\t\t\t\t
005\tVegan gouda\ten:gouda\tDairies > Cheeses > Gouda\tcoconut oil, starch\t\t\t\t\t
006\tStinky washed rind\ten:rare\tDairies > Cheeses > Rare\tmilk\t\t\t\t\t
007\tSmoked Gouda 200 g\t\t\t\t\t\t\t\t
008\tQuux\t\t\t\t\t\t\t\t
";

const STORE: &str = "\
product_id\tmanufacturer_id\tdepartment\tbrand\tproduct_category\tproduct_type\tpackage_size
11\t2\tGROCERY\tNational\tFRZN ICE\tICE - CRUSHED/CUBED\t22 LB
12\t2\tMISCELLANEOUS\tNational\t\t\t
13\t69\tDELI\tPrivate\tCHEESES\tGOUDA\t8 OZ
9e+05\t69\tSPIRITS\tNational\tDOMESTIC WINE\tCHARDONNAY\t
";

const KEYWORDS: &str = "term\tband\ttier\nsmoked gouda\t1\t1\nvegan gouda\t12\t2\nprinters\t3\t1\nice\t3\t1\n";

const PURCHASES: &str = "\
household_id\tstore_id\tbasket_id\tproduct_id\tquantity\tsales_value\tretail_disc\tcoupon_disc\tcoupon_match_disc\tweek\ttransaction_timestamp
1\t3\t500\t13\t2.0\t5.5\t0\t0\t0\t1\t2017-01-01 12:30:27
1\t3\t500\t11\t1.0\t1.5\t0\t0\t0\t1\t2017-01-01 12:30:27
2\t3\t501\t13\t1.0\t2.5\t0\t0\t0\t1\t2017-01-02 08:00:00
2\t3\t502\t13\t0.0\t0\t0\t0\t0\t1\t2017-01-03 08:00:00
3\t3\t503\t77\t26648.0\t30\t0\t0\t0\t1\t2017-01-03 08:00:01
";

struct Here {
    scratch: tempfile::TempDir,
    dir: MarketDir,
}

impl Here {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = MarketDir::create(scratch.path().join("market")).unwrap();
        Self { scratch, dir }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn catalog(&self, content: impl AsRef<[u8]>, format: CatalogFormat) -> Result<import::ImportReport, ImportError> {
        import::catalog(&self.dir, &self.file("catalog.tsv", content), format, None, &mut |_| ())
    }

    fn everything(&self) {
        self.catalog(FOOD, CatalogFormat::OpenFoodFacts).unwrap();
        self.catalog(STORE, CatalogFormat::CompleteJourney).unwrap();
        import::keywords(&self.dir, &self.file("keywords.tsv", KEYWORDS), KeywordFormat::Tsv, &mut |_| ()).unwrap();
        import::purchases(&self.dir, &self.file("purchases.tsv", PURCHASES), EventFormat::CompleteJourney, None, &mut |_| ())
            .unwrap();
    }

    fn market(&self) -> Market {
        Market::over(self.dir.clone()).unwrap()
    }

    fn rejects(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("rejects-{name}.tsv"))).unwrap_or_default();
        text.lines().skip(1).map(str::to_owned).collect()
    }
}

fn anything() -> Filter {
    Filter { adult: true, ..Filter::default() }
}

#[test]
fn catalogues_become_one_taxonomy_with_facts() {
    let here = Here::new();
    here.everything();
    let snapshot = here.market().snapshot();
    let product = |id: &str| snapshot.product(id).unwrap().unwrap();
    for (id, path, violates) in [
        ("off:001", "dairies > cheeses > gouda", "vegan and dairy free"),
        ("off:005", "dairies > cheeses > gouda", ""),
        // One of a kind goes to the parent, and so does a parent that stays small.
        ("off:006", "dairies", "vegan and dairy free"),
        // Without a category the words decide.
        ("off:007", "dairies > cheeses > gouda", "vegan and dairy free"),
        ("off:008", "uncategorised", ""),
        // One name, one category, across catalogues.
        ("cj:13", "dairies > cheeses > gouda", "vegan and dairy free"),
        ("cj:12", "miscellaneous", ""),
        ("cj:11", "grocery", ""),
    ] {
        let product = product(id);
        assert_eq!((product.category_path.join(" > ").as_str(), product.violates.words().as_str()), (path, violates), "{id}");
    }
    assert!(product("cj:900000").age_restricted);
    assert_eq!(product("cj:13").title(), "store brand gouda 8 oz");
    let gouda = snapshot.category("gouda").unwrap();
    assert_eq!((gouda.department.as_str(), gouda.violates.words().as_str()), ("dairies", ""));
    assert_eq!(names(&snapshot.products_for(&node("gouda"), &anything(), 9).unwrap())[0], "gouda", "what was bought comes first");
    let vegan = Filter { diets: DietSet::NONE.with(Diet::Vegan), ..anything() };
    assert_eq!(names(&snapshot.products_for(&query("smoked gouda"), &vegan, 9).unwrap()), ["Vegan gouda"]);
}

#[test]
fn terms_know_their_category_and_nodes_are_terms() {
    let here = Here::new();
    here.everything();
    let snapshot = here.market().snapshot();
    let terms = snapshot.terms_after(0, 100).unwrap();
    let find = |text: &str| {
        terms.iter().map(|(_, term)| term).find(|term| term.text == text && term.descriptor == Descriptor::Query).unwrap()
    };
    assert_eq!(find("smoked gouda").category.as_deref(), Some("gouda"));
    assert_eq!(find("vegan gouda").violates, DietSet::NONE);
    assert_eq!(find("printers").category, None);
    assert!(find("smoked gouda").popularity > find("printers").popularity);
    let nodes: Vec<_> =
        terms.iter().filter(|(_, term)| term.descriptor == Descriptor::Node).map(|(_, term)| term.text.as_str()).collect();
    assert!(["gouda", "dairies", "grocery"].iter().all(|node| nodes.contains(node)), "{nodes:?}");
}

#[test]
fn the_same_files_in_any_order_make_the_same_market() {
    let (here, there) = (Here::new(), Here::new());
    here.everything();
    import::purchases(&there.dir, &there.file("purchases.tsv", PURCHASES), EventFormat::CompleteJourney, None, &mut |_| ())
        .unwrap();
    import::keywords(&there.dir, &there.file("keywords.tsv", KEYWORDS), KeywordFormat::Tsv, &mut |_| ()).unwrap();
    there.catalog(STORE, CatalogFormat::CompleteJourney).unwrap();
    there.catalog(FOOD, CatalogFormat::OpenFoodFacts).unwrap();
    let read = |here: &Here| {
        let snapshot = here.market().snapshot();
        let mut products = snapshot.products_from(0, 100).unwrap();
        products.sort_by(|a, b| a.id.cmp(&b.id));
        (products, snapshot.categories().to_vec())
    };
    assert_eq!(read(&here), read(&there));
    let version = here.dir.catalogue_version().unwrap();
    here.everything();
    assert_eq!(here.dir.catalogue_version().unwrap(), version, "importing again changes nothing");
}

#[test]
fn importing_again_changes_and_withdraws() {
    let here = Here::new();
    here.everything();
    let market = here.market();
    let list = here.file("gone.txt", "off:001\noff:001\nnobody\n");
    let file =
        here.file("catalog.tsv", FOOD.replace("Old gouda", "Very old gouda").replace("002\tYoung gouda", "002\tYounger gouda"));
    let report = import::catalog(&here.dir, &file, CatalogFormat::OpenFoodFacts, Some(&list), &mut |_| ()).unwrap();
    assert_eq!((report.change.added, report.change.changed, report.change.withdrawn), (0, 2, 1));
    let snapshot = market.snapshot();
    assert_eq!(snapshot.product("off:001").unwrap(), None);
    assert_eq!(snapshot.product("off:002").unwrap().unwrap().name, "Younger gouda");
    assert_eq!(names(&snapshot.search("younger gouda", &anything(), 1).unwrap()), ["Younger gouda"]);
    assert_eq!((report.unknown.count, report.unknown.first.as_slice()), (1, ["nobody".to_owned()].as_slice()));
    assert_eq!(here.rejects("withdraw-gone.txt"), ["3\tno product has this id\tnobody"]);
    // What is offered again comes back.
    here.catalog(FOOD, CatalogFormat::OpenFoodFacts).unwrap();
    assert_eq!(market.snapshot().product("off:001").unwrap().unwrap().name, "Old gouda");
}

#[test]
fn purchases_become_events_that_may_be_sent_twice() {
    let here = Here::new();
    let file = here.file("purchases.tsv", PURCHASES);
    let read = || {
        import::events(&file, EventFormat::CompleteJourney, Some(here.dir.path()))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
    };
    let events = read();
    assert_eq!(events, read());
    assert_eq!(events.len(), 4);
    assert_eq!(
        (events[0].user.as_str(), events[0].id.as_str(), events[0].at_ms),
        ("household-1", "cj-500-13-2", 1_483_273_827_000)
    );
    assert_eq!((events[0].lines[0].product.as_str(), events[0].lines[0].quantity), ("cj:13", 2));
    assert_eq!(events[3].lines[0].quantity, 1, "a volume is one purchase");
    let mut rows = import::events(&file, EventFormat::CompleteJourney, Some(here.dir.path())).unwrap();
    assert_eq!(rows.by_ref().count(), 4);
    let report = rows.finish().unwrap();
    assert_eq!((report.accepted, report.rejected), (4, 1));
    assert_eq!(
        here.rejects("purchases.tsv"),
        ["5\tquantity 0 is not between 1 and 1000000\t2\\t3\\t502\\t13\\t0.0\\t0\\t0\\t0\\t0\\t1\\t2017-01-03 08:00:00"]
    );
}

#[test]
fn purchases_that_are_gone_are_forgotten() {
    let here = Here::new();
    here.everything();
    let market = here.market();
    let popularity = || market.snapshot().product("cj:13").unwrap().unwrap().popularity;
    let (learnt, version) = (popularity(), here.dir.catalogue_version().unwrap());
    let none = here.file("purchases.tsv", PURCHASES.lines().next().unwrap());
    for _ in 0..2 {
        import::purchases(&here.dir, &none, EventFormat::CompleteJourney, None, &mut |_| ()).unwrap();
        assert!(popularity() < learnt, "{} after {learnt}", popularity());
    }
    assert_ne!(here.dir.catalogue_version().unwrap(), version);
}

#[test]
fn files_are_read_plain_or_compressed() {
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(FOOD.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zst = zstd::encode_all(FOOD.as_bytes(), 1).unwrap();
    let windows = format!("\u{feff}{}", FOOD.replace('\n', "\r\n"));
    for content in [FOOD.as_bytes(), &gz, &zst, windows.as_bytes()] {
        let report = Here::new().catalog(content, CatalogFormat::OpenFoodFacts).unwrap();
        assert_eq!((report.accepted, report.rejected), (8, 0));
    }
    let product = serde_json::to_string(&common::product("a", "plain crackers", &["Bakery", "Crackers"], 0.5)).unwrap();
    let report = Here::new().catalog(format!("\u{feff}{product}\n"), CatalogFormat::EndcapJson).unwrap();
    assert_eq!((report.accepted, report.rejected), (1, 0));
    // A file that was cut short changes nothing.
    let here = Here::new();
    let fault = here.catalog(&zst[..zst.len() / 2], CatalogFormat::OpenFoodFacts).unwrap_err();
    assert!(matches!(fault, ImportError::Read { .. } | ImportError::WrongForm { .. }), "{fault}");
    assert_eq!(here.dir.counts().unwrap().products, 0);
}

#[test]
fn a_file_of_another_form_is_one_clear_error() {
    let here = Here::new();
    let garbage: Vec<u8> = (0..5_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (content, format, part) in [
        (STORE.as_bytes(), CatalogFormat::OpenFoodFacts, "barcode, name, category_path"),
        (FOOD.as_bytes(), CatalogFormat::CompleteJourney, "product_id, department"),
        (FOOD.as_bytes(), CatalogFormat::EndcapJson, "one JSON object of a product a line"),
        (b"", CatalogFormat::OpenFoodFacts, "found nothing"),
        (&garbage, CatalogFormat::OpenFoodFacts, "expected a header"),
        (&garbage, CatalogFormat::EndcapJson, "one JSON object"),
        ("x".repeat(3 << 20).as_bytes(), CatalogFormat::CompleteJourney, "expected a header"),
    ] {
        let fault = here.catalog(content, format).unwrap_err().to_string();
        assert!(fault.contains(part) && fault.len() < 400, "{fault}");
    }
    assert_eq!(here.dir.catalogue_version().unwrap(), "empty");
    let fault = "yaml".parse::<CatalogFormat>().unwrap_err().to_string();
    assert_eq!(fault, "no catalogue format is called `yaml`: known are openfoodfacts, completejourney, endcap-json");
}

#[test]
fn hostile_rows_are_rejected_and_listed_and_the_others_come_in() {
    let here = Here::new();
    let mut content = FOOD.as_bytes().to_vec();
    for row in [
        b"100\tno columns".to_vec(),
        b"101\tnul\x00byte\t\t\t\t\t\t\t\t".to_vec(),
        b"102\tnot \xff\xfe text\t\t\t\t\t\t\t\t".to_vec(),
        b"abc\tno number\t\t\t\t\t\t\t\t".to_vec(),
        b"103\t   \t\t\t\t\t\t\t\t".to_vec(),
        [b"104\t".to_vec(), vec![b'x'; 10 << 20], b"\t\t\t\t\t\t\t\t".to_vec()].concat(),
        b"=cmd|' /C calc'!A0\tformula\t\t\t\t\t\t\t\t".to_vec(),
    ] {
        content.extend(row);
        content.push(b'\n');
    }
    content.extend(b"200\t=HYPERLINK(\"http://x\") <script>alert(1)</script>'; DROP TABLE products; --\t\t\t\t\t\t\t\t\n");
    let report = here.catalog(&content, CatalogFormat::OpenFoodFacts).unwrap();
    assert_eq!((report.accepted, report.rejected), (9, 7));
    let rejects = here.rejects("catalog.tsv");
    let starts = [
        "10\t2 columns, at least 6 are needed\t",
        "11\t`name` holds a control character\t",
        "12\tline is not UTF-8\t",
        "13\t`barcode` is no number",
        "14\t`name` is empty\t",
        "15\tline is longer than 1048576 bytes\t",
        "16\t`barcode` is no number of at most 24 digits\t'=cmd",
    ];
    for (reject, start) in rejects.iter().zip(starts) {
        assert!(reject.starts_with(start) && reject.len() < 2_000, "{reject}");
    }
    let found = here.market().snapshot().search("hyperlink", &anything(), 5).unwrap();
    assert_eq!(found.len(), 1, "a hostile name is a name");
    // The next import without rejects leaves no list behind.
    here.catalog(FOOD, CatalogFormat::OpenFoodFacts).unwrap();
    assert!(here.rejects("catalog.tsv").is_empty());
}

#[test]
fn json_rows_say_what_is_wrong_with_them() {
    let here = Here::new();
    let good = serde_json::to_value(common::product("a", "plain crackers", &["Bakery", "Crackers"], 0.5)).unwrap();
    let with = |field: &str, value: serde_json::Value| {
        let mut product = good.clone();
        product[field] = value;
        product.to_string()
    };
    let rows = [
        good.to_string(),
        with("price_cents", (-5).into()),
        with("name", "n".repeat(999).into()),
        with("id", "".into()),
        with("withdrawn", "yes".into()),
        "{\"id\": 1}".to_owned(),
        "[".repeat(100_000),
        "{".to_owned(),
    ];
    let report = here.catalog(rows.join("\n"), CatalogFormat::EndcapJson).unwrap();
    assert_eq!((report.accepted, report.rejected), (1, 7), "{:?}", here.rejects("catalog.tsv"));
    let file = here
        .file("terms.jsonl", serde_json::to_string(&common::term("crackers", Descriptor::Query)).unwrap() + "\n{\"text\":\"x\"}");
    let report = import::keywords(&here.dir, &file, KeywordFormat::EndcapJson, &mut |_| ()).unwrap();
    assert_eq!((report.accepted, report.rejected), (1, 1));
    let file = here.file("events.jsonl", "{\"id\":\"e\",\"user\":\"u\",\"at_ms\":5,\"kind\":\"view\",\"lines\":[{\"product\":\"a\"}]}\n{\"id\":\"e\",\"user\":\"u\",\"at_ms\":5,\"kind\":\"view\"}\n");
    let events: Vec<_> = import::events(&file, EventFormat::EndcapJson, None).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(events.len(), 1);
}

#[test]
fn progress_counts_up_to_the_whole_file() {
    let here = Here::new();
    let rows: String = (0..3_000).map(|at| format!("term {at}\t1\t1\n")).collect();
    let path = here.file("keywords.tsv", format!("term\tband\ttier\n{rows}"));
    let mut seen = Vec::new();
    import::keywords(&here.dir, &path, KeywordFormat::Tsv, &mut |progress| seen.push(*progress)).unwrap();
    assert!(seen.len() >= 4 && seen.windows(2).all(|pair| pair[0].rows <= pair[1].rows));
    let last = seen.last().unwrap();
    assert_eq!((last.phase, last.rows, last.bytes_done), (Phase::Deriving, 3_000, last.bytes_total));
}

#[test]
fn a_pipe_is_read_as_a_file_is() {
    let here = Here::new();
    let kept = here.dir.path().join("events.jsonl");
    let (reader, mut writer) = std::io::pipe().unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    let written = std::thread::spawn(move || writer.write_all(PURCHASES.as_bytes()));
    let mut totals = Vec::new();
    let mut show = |progress: &import::Progress| totals.push(progress.bytes_total);
    let report = import::purchases(&here.dir, &path, EventFormat::CompleteJourney, Some(&kept), &mut show).unwrap();
    written.join().unwrap().unwrap();
    assert_eq!((report.accepted, report.rejected, report.change.added), (4, 1, 4));
    assert_eq!(std::fs::read_to_string(&kept).unwrap().lines().count(), 4);
    assert_eq!(totals, [0], "nobody knows how much there is in a pipe");
}

#[test]
fn events_that_are_kept_are_those_of_the_last_import_that_ended() {
    let here = Here::new();
    let kept = here.dir.path().join("events.jsonl");
    let take = |file: &Path, progress: &mut dyn FnMut(&import::Progress)| {
        import::purchases(&here.dir, file, EventFormat::CompleteJourney, Some(&kept), progress)
    };
    let (long, short) =
        (here.file("long.tsv", PURCHASES), here.file("short.tsv", PURCHASES.split_inclusive('\n').take(2).collect::<String>()));
    let frame = zstd::encode_all(PURCHASES.as_bytes(), 1).unwrap();
    let cut = here.file("cut.tsv.zst", [&frame[..], &frame[..frame.len() / 2]].concat());
    let state = || {
        let drafts = std::fs::read_dir(here.dir.path())
            .unwrap()
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "draft"));
        (std::fs::read_to_string(&kept).unwrap().lines().count(), drafts.count(), here.dir.catalogue_version().unwrap())
    };
    // What a killed import left is nobody's.
    std::fs::write(kept.with_extension("draft"), "{").unwrap();
    let mut refused = Vec::new();
    take(&long, &mut |_| refused.push(take(&short, &mut |_| ()).unwrap_err().to_string())).unwrap();
    assert!(refused.len() == 1 && refused[0].contains("being written by another process"), "{refused:?}");
    let whole = state();
    assert_eq!((whole.0, whole.1), (4, 0));
    assert!(take(&cut, &mut |_| ()).is_err());
    assert_eq!(state(), whole);
    take(&short, &mut |_| ()).unwrap();
    assert_eq!(state().0, 1);
    here.dir.clone().discard(None, &[]).unwrap();
    assert!(MarketDir::open(here.dir.path()).is_ok(), "a market that learnt from purchases is not taken back");
}

#[test]
fn a_list_of_unknown_ids_stands_beside_the_rejects_of_a_catalogue_of_the_same_name() {
    let here = Here::new();
    let catalog = here.file("spring.tsv", format!("{FOOD}abc\tno number\t\t\t\t\t\t\t\t\n"));
    std::fs::create_dir(here.scratch.path().join("gone")).unwrap();
    let ids = here.file("gone/spring.tsv", "off:001\noff:999\n");
    let report = import::catalog(&here.dir, &catalog, CatalogFormat::OpenFoodFacts, Some(&ids), &mut |_| ()).unwrap();
    assert_eq!((report.rejected, report.change.withdrawn, report.unknown.count), (1, 1, 1));
    assert!(here.rejects("spring.tsv")[0].contains("`barcode` is no number"));
    assert_eq!(here.rejects("withdraw-spring.tsv"), ["2\tno product has this id\toff:999"]);
}

#[test]
fn two_writers_do_not_mix() {
    let here = Here::new();
    let path = here.file("catalog.tsv", FOOD);
    let mut inner = None;
    let other = MarketDir::open(here.dir.path()).unwrap();
    import::catalog(&here.dir, &path, CatalogFormat::OpenFoodFacts, None, &mut |_| {
        inner.get_or_insert_with(|| import::withdraw(&other, &["off:001"]).unwrap_err().to_string());
    })
    .unwrap();
    assert!(inner.unwrap().contains("being written by another process"));
    assert!(Path::new(&here.dir.path().join("market.sqlite")).exists());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn no_bytes_stop_an_import(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2_000)) {
        let here = Here::new();
        let content = [FOOD.as_bytes(), &bytes, b"\n"].concat();
        let report = here.catalog(&content, CatalogFormat::OpenFoodFacts).unwrap();
        proptest::prop_assert!(report.accepted >= 8);
    }

    #[test]
    fn no_query_breaks_the_search(query in "\\PC{0,60}") {
        let here = Here::new();
        here.catalog("product_id\tdepartment\tbrand\tproduct_category\tproduct_type\tpackage_size\n", CatalogFormat::CompleteJourney).unwrap();
        here.market().snapshot().search(&query, &anything(), 5).unwrap();
    }
}
