//! The page in a browser: buys something and sees the page change.
//!
//! Skipped, with a word, where no browser is installed; `ENDCAP_REQUIRE_BROWSER=1` makes that a failure.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use endcap_engine::fixture;
use endcap_tests::{Browser, BrowserError, Endcap, Run};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_endcap-under-test");

#[test]
fn a_purchase_in_the_page_makes_a_new_page() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let profile = dir.path().join("profile");
    let browser = match Browser::start(&profile, 1_440, 1_000) {
        Ok(browser) => browser,
        Err(BrowserError::Absent) if env::var_os("ENDCAP_REQUIRE_BROWSER").is_none() => {
            eprintln!("skipped: {}", BrowserError::Absent);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let models = models(&dir.path().join("models"));
    let args = ["--models", &models, "--shoppers", "6", "--events", "12"];
    let up = Run::new(PROGRAM, &dir.path().join("data")).up(&args).expect("a running endcap");
    // Until the simulated shoppers have all their pages, one of them may come in place of the purchase's.
    let is_drained = |figures: &Value| {
        let is_idle = figures["stages"].as_array()?.iter().all(|stage| stage["waiting"] == 0);
        (figures["accepted"] == 12 && is_idle).then_some(())
    };
    up.wait_for("/v1/pipeline", is_drained).expect("pages of all simulated shoppers");

    browser.open(up.address()).unwrap();
    browser.wait_for("document.querySelectorAll('#personal .placement').length >= 5").unwrap();
    picture(&browser, "storefront");
    assert_eq!(browser.value("document.querySelectorAll('#personal .card').length > 20").unwrap(), true);
    let before = browser.value(TITLES).unwrap();
    let made = browser.value("document.querySelector('#facts .chip:last-child').textContent").unwrap();

    browser.click("#personal .placement:last-child .buy").unwrap();
    browser.wait_for("document.querySelector('#journey li.done')").unwrap();
    picture(&browser, "regenerating");
    let changed = format!("document.querySelector('#facts .chip:last-child').textContent !== {made}");
    browser.wait_for(&changed).unwrap();
    picture(&browser, "regenerated");
    let after = browser.value(TITLES).unwrap();
    assert_ne!(before, after, "the purchase of a product of the last carousel changes what the page offers");

    check_control(&browser);
    check_explain(&browser);
    check_pipeline(&browser);
    check_picker(&browser);
    check_unwanted(&browser, &up);
    let (_, figures) = up.get("/v1/pipeline").unwrap();
    assert!(figures["accepted"].as_u64().unwrap() > 0, "{figures}");
    up.kill();
    check_sign_in(&browser, &models, &dir.path().join("data"));
}

/// The demo models; tiny random ones where they are not there.
fn models(fallback: &Path) -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    if demo.join("decoder").is_dir() {
        return demo.display().to_string();
    }
    fixture::write_decoder(&fallback.join("decoder"), 1).expect("a decoder");
    fixture::write_encoder(&fallback.join("encoder"), 2).expect("an encoder");
    fixture::write_cross_encoder(&fallback.join("cross-encoder"), 3).expect("a cross-encoder");
    fallback.display().to_string()
}

/// Titles and products of the personal page.
const TITLES: &str = "[...document.querySelectorAll('#personal .placement')].map((row) => row.dataset.title + \
                      [...row.querySelectorAll('.card')].map((card) => card.dataset.product)).join('\\n')";

fn check_control(browser: &Browser) {
    browser.value("scrollTo({ top: 0, behavior: 'instant' })").unwrap(); // the click before was at the page's end
    browser.click(".segmented label:nth-child(2)").unwrap();
    browser.wait_for("document.querySelectorAll('#control .placement').length >= 5").unwrap();
    assert_eq!(browser.value("document.querySelector('#personal').hidden").unwrap(), false);
    picture(browser, "side-by-side");
    browser.click(".segmented label:nth-child(1)").unwrap();
    browser.wait_for("document.querySelector('#control').hidden").unwrap();
}

fn check_explain(browser: &Browser) {
    browser.click("#explain").unwrap();
    browser.wait_for("document.querySelectorAll('#drawer .step').length >= 6").unwrap();
    let told = browser.value("[...document.querySelectorAll('#drawer .step')].at(-1).textContent").unwrap();
    assert!(told.as_str().is_some_and(|told| told.contains(" placements") && !told.contains("[object")), "{told}");
    picture(browser, "explain");
    browser.click("#drawer .icon").unwrap();
    browser.wait_for("!document.querySelector('#drawer').open").unwrap();
}

fn check_pipeline(browser: &Browser) {
    browser.click("#tab-pipeline").unwrap();
    browser.wait_for("document.querySelectorAll('#flow .stage').length === 6").unwrap();
    browser.wait_for("document.querySelector('#tiles b').textContent.trim() !== '–'").unwrap();
    picture(browser, "pipeline");
    browser.click("#theme").unwrap();
    picture(browser, "pipeline-other-theme");
    browser.click("#tab-shop").unwrap();
    browser.wait_for("!document.querySelector('#view-shop').hidden").unwrap();
}

fn check_picker(browser: &Browser) {
    browser.write("#picker", "shopper-0003").unwrap();
    browser.wait_for("document.querySelectorAll('#picker-list [role=option]').length === 1").unwrap();
    browser.write("#picker", "\u{e007}").unwrap();
    browser.wait_for("document.querySelector('#who').textContent === 'shopper-0003'").unwrap();
    browser.wait_for("document.querySelectorAll('#personal .placement').length >= 5").unwrap();
}

/// A purchase of which no page comes, as its shopper wants no personal one: the page says so and is itself again.
fn check_unwanted(browser: &Browser, up: &Endcap) {
    let event =
        json!({ "id": "no", "user": "shopper-0003", "at_ms": 1_750_000_000_000_i64, "kind": "consent", "personalise": false });
    up.post("/v1/events", event.to_string()).expect("consent is taken back");
    let is_through = |journey: &Value| {
        let stages = journey["stages"].as_array()?;
        let of = |name: &str| stages.iter().find(|stage| stage["stage"] == name);
        let context = of("context").filter(|context| context["event_id"] == "no")?;
        (of("aiqa")?["context_ms"] == context["context_ms"]).then_some(())
    };
    up.wait_for("/v1/journey/shopper-0003", is_through).expect("the impersonal page");
    browser.click("#personal .placement:first-child .buy").unwrap();
    browser.wait_for("document.querySelector('#toast').textContent.includes('changes nothing here')").unwrap();
    browser.wait_for("document.querySelector('#journey').hidden && !document.querySelector('#personal.waiting')").unwrap();
}

/// With a token, a browser is asked for it, and comes to the page with it.
fn check_sign_in(browser: &Browser, models: &str, data: &Path) {
    const TOKEN: &str = "correct-horse-~battery";
    let up = Run::new(PROGRAM, data).up(&["--models", models, "--shoppers", "0", "--token", TOKEN]).expect("a running endcap");
    browser.open(up.address()).unwrap();
    browser.wait_for("document.querySelector('#token')").unwrap();
    picture(browser, "sign-in");
    browser.write("#token", "correct-horse-battery\u{e007}").unwrap();
    browser.wait_for("document.querySelector('[role=alert]').textContent.includes('not the right token')").unwrap();
    browser.write("#token", &format!("{TOKEN}\u{e007}")).unwrap();
    browser.wait_for("document.querySelectorAll('#personal .placement').length >= 5").unwrap();
    assert_eq!(browser.value("location.search + document.cookie").unwrap(), "", "no script reads the token");
}

/// Keeps what the window shows, where `ENDCAP_PICTURES` names a directory.
fn picture(browser: &Browser, name: &str) {
    let base64 = browser.screenshot().expect("a picture");
    assert!(base64.len() > 10_000, "an empty picture");
    if let Some(dir) = env::var_os("ENDCAP_PICTURES") {
        let dir = PathBuf::from(dir);
        fs::create_dir_all(&dir).expect("a directory for pictures");
        fs::write(dir.join(format!("{name}.png")), decode(&base64)).expect("a picture file");
    }
}

fn decode(base64: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = base64.bytes().filter(|byte| *byte != b'=').collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 6 | u32::from(value(*byte))) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}
