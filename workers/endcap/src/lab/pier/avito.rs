//! Avito's files as Kaggle hands them out (avito-context-ad-clicks): `SearchInfo.tsv`, `trainSearchStream.tsv` and `AdsInfo.tsv`.
//!
//! They are read line by line, and of a share of the users alone: all of them would be 53 million pages. A page is the first [`PLACES`] ads of a
//! search by position; whether one was clicked is known of contextual ads alone. The split is the paper's (section 5.1.1), by date, with its
//! last day of training taken for validation; every page is a target once, and what the user clicked on before is its history (the paper takes
//! each user's last page). Times are taken as they stand.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result, bail};
use endcap_ranker::{
    pier::{Cuts, Dataset, PLACES, PageView, Vocabulary},
    seed,
};
use time::{Date, Month, PrimitiveDateTime, Time};

use crate::progress;

/// First day of training, of validation and of the test, and the first one after it, in 2015.
const DAYS: [(Month, u8); 4] = [(Month::April, 28), (Month::May, 14), (Month::May, 15), (Month::May, 21)];
/// Fields of an ad: its number and its place, hashed to so many values; its category; its price, in powers of two from 1 on (0 where there
/// is none).
const ADS: u32 = 200_000;
const LOCATIONS: u32 = 4_000;
const PRICES: u32 = 32;
/// Lines between two that are told of.
const TELL_EVERY: u64 = 1_000_000;

/// A search that is kept.
struct Search {
    shopper: u32,
    at_ms: i64,
    /// Position, ad, and whether it was clicked.
    shown: Vec<(u32, u64, Option<bool>)>,
}

/// Whether the files are in the folder, before anything is begun.
///
/// # Errors
/// When one cannot be opened.
pub(super) fn check(files: &Path) -> Result<()> {
    ["SearchInfo.tsv", "trainSearchStream.tsv", "AdsInfo.tsv"].into_iter().try_for_each(|name| open(&files.join(name)).map(drop))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}: name the folder of Avito's files with --avito", path.display()))
}

/// Reads the pages of `share` of the users (0…1, by their ids).
///
/// # Errors
/// When a file is not there, lacks a column or has a line that cannot be understood, or when no page is left of a part.
pub(super) fn read(files: &Path, share: f64) -> Result<Dataset> {
    let mut shoppers = HashMap::new();
    let mut searches = searches(&files.join("SearchInfo.tsv"), share, &mut shoppers)?;
    streams(&files.join("trainSearchStream.tsv"), &mut searches)?;
    let mut found: Vec<(u64, Search)> = searches.into_iter().filter(|(_, search)| search.shown.len() >= PLACES).collect();
    found.sort_unstable_by_key(|(id, _)| *id);
    let kept = |search: &mut Search| {
        search.shown.sort_unstable_by_key(|(position, ad, _)| (*position, *ad));
        search.shown.truncate(PLACES);
    };
    found.iter_mut().for_each(|(_, search)| kept(search));
    let wanted: HashSet<u64> = found.iter().flat_map(|(_, search)| search.shown.iter().map(|(_, ad, _)| *ad)).collect();
    let Ads { places: ads, items, categories } = ads(&files.join("AdsInfo.tsv"), &wanted)?;
    let pages = found.iter().filter_map(|(_, search)| page(search, &ads)).collect();
    let vocabulary = Vocabulary::new(&[ADS, categories, LOCATIONS, PRICES], shoppers.len() as u32);
    let [train_ms, valid_ms, test_ms, _] = DAYS.map(|(month, day)| midnight_ms(month, day));
    Dataset::new(vocabulary, &items, pages, Cuts { train_ms, valid_ms, test_ms })
        .with_context(|| format!("cannot use the pages of {} with --avito-share {share}", files.display()))
}

/// The page of a search; none where an ad of it is nowhere told of.
fn page(search: &Search, ads: &HashMap<u64, u32>) -> Option<PageView> {
    let mut items = [0; PLACES];
    for (item, (_, ad, _)) in items.iter_mut().zip(&search.shown) {
        *item = *ads.get(ad)?;
    }
    let clicks = std::array::from_fn(|place| search.shown[place].2);
    Some(PageView { shopper: search.shopper, at_ms: search.at_ms, items, clicks })
}

/// Searches of the users and the days that are kept, by number.
fn searches(path: &Path, share: f64, shoppers: &mut HashMap<u64, u32>) -> Result<HashMap<u64, Search>> {
    let [from, _, _, to] = DAYS.map(|(month, day)| midnight_ms(month, day));
    let mut kept = HashMap::new();
    lines(path, ["SearchID", "SearchDate", "UserID"], |[id, date, user]| {
        let user: u64 = user.parse()?;
        if seed(&[user]) as f64 >= share * u64::MAX as f64 {
            return Ok(());
        }
        let at_ms = date_ms(date).with_context(|| format!("`{date}` is no date"))?;
        if (from..to).contains(&at_ms) {
            let next = shoppers.len() as u32;
            let shopper = *shoppers.entry(user).or_insert(next);
            kept.insert(id.parse()?, Search { shopper, at_ms, shown: Vec::new() });
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Adds what was shown on the searches that are kept.
fn streams(path: &Path, searches: &mut HashMap<u64, Search>) -> Result<()> {
    lines(path, ["SearchID", "AdID", "Position", "IsClick"], |[id, ad, position, click]| {
        let Some(search) = searches.get_mut(&id.parse()?) else { return Ok(()) };
        let click = match click {
            "" => None,
            "0" => Some(false),
            "1" => Some(true),
            other => bail!("IsClick is `{other}`, not 0, 1 or nothing"),
        };
        search.shown.push((position.parse()?, ad.parse()?, click));
        Ok(())
    })
}

/// The ads that are wanted.
struct Ads {
    /// Place of each among the items.
    places: HashMap<u64, u32>,
    /// Fields of each item.
    items: Vec<Vec<u32>>,
    /// How many categories there are.
    categories: u32,
}

fn ads(path: &Path, wanted: &HashSet<u64>) -> Result<Ads> {
    let (mut places, mut items, mut categories) = (HashMap::new(), Vec::new(), HashMap::new());
    lines(path, ["AdID", "LocationID", "CategoryID", "Price"], |[ad, location, category, price]| {
        let ad: u64 = ad.parse()?;
        if !wanted.contains(&ad) {
            return Ok(());
        }
        let next = categories.len() as u32;
        let category = *categories.entry(category.to_owned()).or_insert(next);
        let location = if location.is_empty() { 0 } else { location.parse()? };
        places.insert(ad, items.len() as u32);
        items.push(vec![hashed(ad, ADS), category, hashed(location, LOCATIONS), price_level(price)?]);
        Ok(())
    })?;
    Ok(Ads { places, items, categories: categories.len() as u32 })
}

fn hashed(id: u64, values: u32) -> u32 {
    (seed(&[id]) % u64::from(values)) as u32
}

fn price_level(price: &str) -> Result<u32> {
    let price: f64 = if price.is_empty() { 0.0 } else { price.parse()? };
    let level = if price >= 1.0 { 1.0 + price.log2().floor() } else { 0.0 };
    Ok(level.min(f64::from(PRICES - 1)) as u32)
}

/// Lends the named columns of every line to `look`; a header names them in whatever order.
fn lines<const N: usize>(path: &Path, columns: [&str; N], mut look: impl FnMut([&str; N]) -> Result<()>) -> Result<()> {
    let (mut file, mut line) = (BufReader::with_capacity(1 << 20, open(path)?), String::new());
    file.read_line(&mut line).with_context(|| format!("cannot read {}", path.display()))?;
    let header: Vec<&str> = line.trim_end_matches(['\r', '\n']).split('\t').map(|name| name.trim_matches('"')).collect();
    let mut places = [0; N];
    for (place, column) in places.iter_mut().zip(columns) {
        *place = header.iter().position(|name| *name == column).with_context(|| {
            format!("{} has no column {column}: its first line names `{}`", path.display(), header.join("`, `"))
        })?;
    }
    let (steps, what) = (progress::steps("lines", 0), format!("lines of {}", path.display()));
    for number in 2_u64.. {
        line.clear();
        if file.read_line(&mut line).with_context(|| format!("cannot read line {number} of {}", path.display()))? == 0 {
            break;
        }
        let cells: Vec<&str> = line.trim_end_matches(['\r', '\n']).split('\t').collect();
        let cell = places.map(|place| cells.get(place).map_or("", |cell| cell.trim_matches('"')));
        look(cell).with_context(|| format!("cannot understand line {number} of {}", path.display()))?;
        if number % TELL_EVERY == 0 {
            steps.at(&what, number, 0);
        }
    }
    steps.finish();
    Ok(())
}

/// `2015-05-14 12:30:05.0`, in milliseconds since 1970.
fn date_ms(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u16>().ok();
    let part = |from: usize, to: usize| u8::try_from(number(from, to)?).ok();
    let date = Date::from_calendar_date(number(0, 4)?.into(), Month::try_from(part(5, 7)?).ok()?, part(8, 10)?).ok()?;
    let time = Time::from_hms(part(11, 13)?, part(14, 16)?, part(17, 19)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp() * 1_000)
}

fn midnight_ms(month: Month, day: u8) -> i64 {
    let date = Date::from_calendar_date(2015, month, day).expect("a day of the calendar");
    date.midnight().assume_utc().unix_timestamp() * 1_000
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, fs};

    use super::*;

    const SEARCHES: &str =
        "SearchID\tSearchDate\tIPID\tUserID\tIsUserLoggedOn\tSearchQuery\tLocationID\tCategoryID\tSearchParams\n";
    const STREAM: &str = "SearchID\tAdID\tPosition\tObjectType\tHistCTR\tIsClick\n";
    const ADS_INFO: &str = "AdID\tLocationID\tCategoryID\tParams\tPrice\tTitle\tIsContext\n";

    /// Files of that form: user 7 searches on each day of `days` of May 2015, sees ads 1 to 6 and clicks on the one at position 7.
    fn files(days: &[u32]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut searches, mut stream, mut ads) = (SEARCHES.to_owned(), STREAM.to_owned(), ADS_INFO.to_owned());
        for day in days {
            let _ = writeln!(searches, "{day}\t2015-05-{day:02} 10:00:00.0\t1\t7\t0\t\"red\"\" shoe\"\t5\t9\t");
            // Not in the order of their positions, and one more than a page has.
            for (ad, position, click) in [(4, 7, "1"), (1, 1, "0"), (2, 2, ""), (3, 6, ""), (5, 8, ""), (6, 9, "")] {
                let _ = writeln!(stream, "{day}\t{ad}\t{position}\t3\t0.01\t{click}");
            }
        }
        let _ = writeln!(searches, "99\t2015-05-16 10:00:00.0\t1\t7\t0\t\t5\t9\t");
        let _ = writeln!(stream, "99\t1\t1\t3\t0.01\t0");
        for ad in 1..=6 {
            let _ = writeln!(
                ads,
                "{ad}\t{}\t{}\t\t{}\t\"An ad\"\t1",
                ad * 10,
                30 + ad % 2,
                if ad == 3 { String::new() } else { format!("{}.0", ad * 100) }
            );
        }
        for (name, text) in [("SearchInfo.tsv", searches), ("trainSearchStream.tsv", stream), ("AdsInfo.tsv", ads)] {
            fs::write(dir.path().join(name), text).expect("a file");
        }
        dir
    }

    #[test]
    fn pages_are_the_first_ads_by_position_and_split_by_date() {
        let data = read(files(&[1, 3, 14, 15, 20, 21]).path(), 1.0).expect("the files");
        // The search with one ad is no page, and 21 May is no day of the test.
        assert_eq!((data.pages.len(), data.train.len(), data.valid.len(), data.test.len()), (5, 2, 1, 2));
        let page = &data.pages[0];
        assert_eq!(page.items, [0, 1, 2, 3, 4]);
        assert_eq!(page.clicks, [Some(false), None, None, Some(true), None]);
        assert_eq!(data.history(data.test[1]), [3, 2, 1, 0]);
        assert_eq!(data.vocabulary, Vocabulary::new(&[ADS, 2, LOCATIONS, PRICES], 1));
    }

    #[test]
    fn a_share_of_the_users_is_whose_seeds_lie_below_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, mut text) = (dir.path().join("SearchInfo.tsv"), SEARCHES.to_owned());
        for user in 1..=12 {
            let _ = writeln!(text, "{user}\t2015-05-01 10:00:00.0\t1\t{user}\t0\t\t5\t9\t");
        }
        fs::write(&path, text).expect("a file");
        // Of 2⁶⁴ the seeds are, from user 1 on: .164, .010, .205, .457, .276, .281, .432, .974, .830, .032, .387, .207.
        for (share, wanted) in [
            (0.0, vec![]),
            (0.1, vec![2, 10]),
            (0.25, vec![1, 2, 3, 10, 12]),
            (0.5, vec![1, 2, 3, 4, 5, 6, 7, 10, 11, 12]),
            (1.0, (1..=12).collect()),
        ] {
            let mut shoppers = HashMap::new();
            let searches = searches(&path, share, &mut shoppers).expect("searches");
            let mut kept: Vec<u64> = searches.into_keys().collect();
            kept.sort_unstable();
            assert_eq!((kept, shoppers.len()), (wanted.clone(), wanted.len()), "{share}");
        }
        let none = read(files(&[1, 14, 15]).path(), 0.0).expect_err("no user").to_string();
        assert!(none.contains("--avito-share 0"), "{none}");
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (file, text, needle) in [
            ("AdsInfo.tsv", "AdID\tLocationID\tPrice\n", "has no column CategoryID"),
            ("SearchInfo.tsv", "SearchID\tSearchDate\tUserID\n5\tyesterday\t7\n", "line 2 of"),
            ("trainSearchStream.tsv", "SearchID\tAdID\tPosition\tIsClick\n1\t2\t3\tmaybe\n", "not 0, 1 or nothing"),
        ] {
            let dir = files(&[1, 14, 15]);
            fs::write(dir.path().join(file), text).expect("a file");
            let error = format!("{:#}", read(dir.path(), 1.0).expect_err("it cannot be read"));
            assert!(error.contains(needle) && error.contains(file), "{error}");
        }
        let nowhere = format!("{:#}", read(Path::new("/nowhere"), 1.0).expect_err("nothing is there"));
        assert!(nowhere.contains("--avito"), "{nowhere}");
    }

    #[test]
    fn prices_and_dates_are_read_as_they_are_written() {
        for (price, level) in [("", 0), ("0.5", 0), ("1", 1), ("499.0", 9), ("1e+05", 17), ("1e300", PRICES - 1)] {
            assert_eq!(price_level(price).expect("a price"), level, "{price}");
        }
        assert_eq!(date_ms("2015-05-14 00:00:00.0"), Some(midnight_ms(Month::May, 14)));
        for wrong in ["", "2015-13-14 00:00:00", "2015-05-14", "14.05.2015 10:00:00"] {
            assert_eq!(date_ms(wrong), None, "{wrong}");
        }
    }
}
