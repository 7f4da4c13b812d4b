//! Complete Journey's products: their names are the labels of a store's till, and are made readable here.

use endcap_schemas::Product;

use super::catalog::number;
use crate::facts_of;

/// Columns that are read.
pub(super) const PRODUCT_COLUMNS: [&str; 6] =
    ["product_id", "department", "brand", "product_category", "product_type", "package_size"];
/// Places of [`PRODUCT_COLUMNS`] in a file.
pub(super) type Columns = [usize; 6];

/// A popularity for products of which no purchases are known.
const POPULARITY: f32 = 0.3;

/// Types that say nothing without their category.
const VAGUE: [&str; 14] = [
    "other",
    "misc",
    "miscellaneous",
    "all other",
    "seasonal",
    "specialty",
    "regular",
    "traditional",
    "premium",
    "economy",
    "mainstream",
    "basic",
    "everyday",
    "accessories",
];

/// Labels' abbreviations and slips of the pen, as words.
const SPELT_OUT: &[(&str, &str)] = &[
    ("acc", "accessories"),
    ("accss", "accessories"),
    ("accessiores", "accessories"),
    ("beerale", "beer ale"),
    ("beeralemalt", "beer ale malt"),
    ("bev", "beverages"),
    ("bg", "bags"),
    ("bkd", "baked"),
    ("bn", "beans"),
    ("bndges", "bandages"),
    ("brd", "bread"),
    ("brds", "breads"),
    ("brkfst", "breakfast"),
    ("btl", "bottles"),
    ("btls", "bottles"),
    ("btr", "butter"),
    ("catfd", "cat food"),
    ("carb", "carbonated"),
    ("chix", "chicken"),
    ("choc", "chocolate"),
    ("chococlate", "chocolate"),
    ("ckys", "cookies"),
    ("cke", "cake"),
    ("cktls", "cocktails"),
    ("cleang", "cleaning"),
    ("cnd", "canned"),
    ("cndles", "candles"),
    ("cndy", "candy"),
    ("coff", "coffee"),
    ("conc", "concentrate"),
    ("cookng", "cooking"),
    ("cran", "cranberry"),
    ("crbntd", "carbonated"),
    ("crkr", "crackers"),
    ("crmd", "creamed"),
    ("crystl", "crystals"),
    ("dan", "danish"),
    ("deod", "deodorant"),
    ("dnr", "dinner"),
    ("dnrs", "dinners"),
    ("dogfd", "dog food"),
    ("drnk", "drink"),
    ("drnks", "drinks"),
    ("drnkng", "drinking"),
    ("drnking", "drinking"),
    ("drsng", "dressing"),
    ("dsh", "dish"),
    ("fd", "food"),
    ("fds", "foods"),
    ("fem", "feminine"),
    ("flv", "flavored"),
    ("flvr", "flavor"),
    ("flvrd", "flavored"),
    ("frz", "frozen"),
    ("frzn", "frozen"),
    ("gds", "goods"),
    ("gm", "general merchandise"),
    ("grnd", "ground"),
    ("hbc", "health and beauty"),
    ("hygn", "hygiene"),
    ("iws", "individually wrapped slices"),
    ("jce", "juice"),
    ("liq", "liquid"),
    ("lozng", "lozenges"),
    ("memorablilia", "memorabilia"),
    ("misc", "miscellaneous"),
    ("mixs", "mixes"),
    ("mnrl", "mineral"),
    ("mneral", "mineral"),
    ("mlk", "milk"),
    ("mw", "microwave"),
    ("mx", "mix"),
    ("mxs", "mixes"),
    ("natrl", "natural"),
    ("non", "non"),
    ("oj", "orange juice"),
    ("otc", "over the counter"),
    ("pac", "pack"),
    ("pk", "pack"),
    ("pkgd", "packaged"),
    ("pckgd", "packaged"),
    ("pickl", "pickles"),
    ("pickld", "pickled"),
    ("pkld", "pickled"),
    ("plstc", "plastic"),
    ("pnt", "peanut"),
    ("prem", "premium"),
    ("prep", "prepared"),
    ("prod", "products"),
    ("pwdr", "powder"),
    ("pwdrs", "powders"),
    ("refrgratd", "refrigerated"),
    ("refrgerated", "refrigerated"),
    ("refrig", "refrigerated"),
    ("reg", "regular"),
    ("rts", "ready to serve"),
    ("sal", "salads"),
    ("sald", "salad"),
    ("sft", "soft"),
    ("sherbts", "sherbets"),
    ("shlfsh", "shellfish"),
    ("shldr", "shoulder"),
    ("snck", "snack"),
    ("sndwch", "sandwich"),
    ("snks", "snacks"),
    ("speclty", "specialty"),
    ("sply", "supplies"),
    ("sprd", "spread"),
    ("stk", "stick"),
    ("sup", "supplies"),
    ("supp", "supplies"),
    ("supppplies", "supplies"),
    ("suppplies", "supplies"),
    ("sw", "sweet"),
    ("swt", "sweet"),
    ("syrp", "syrup"),
    ("tiss", "tissue"),
    ("trsh", "trash"),
    ("veg", "vegetables"),
    ("vgtbl", "vegetable"),
    ("wash", "wash"),
    ("wat", "water"),
    ("wate", "water"),
    ("whl", "whole"),
    ("wht", "white"),
    ("wtr", "water"),
    ("wt", "white"),
    ("xmas", "christmas"),
];

/// Words that end a label that was cut off, or say how much is in a package.
const LEFT_OUT: [&str; 10] = ["n", "s", "w", "et", "etc", "xx", "ss", "pkg", "vac", "pac"];

/// A row's product, or why there is none.
pub(super) fn product([id, department, brand, category, kind, size]: &[&str; 6]) -> Result<Product, String> {
    let id = number("product_id", id)?;
    let (department, category, kind) = (readable(department), readable(category), readable(kind));
    if department.is_empty() {
        return Err("`department` is empty".to_owned());
    }
    let leaf = match (category.is_empty(), kind.is_empty()) {
        (_, true) => category.clone(),
        (false, false) if VAGUE.contains(&kind.as_str()) => format!("{kind} {category}"),
        _ => kind,
    };
    let mut path = vec![department];
    for part in [category, leaf] {
        if !part.is_empty() && path.last() != Some(&part) {
            path.push(part);
        }
    }
    let name = path.last().cloned().unwrap_or_default();
    let facts = facts_of(&name, &path, "");
    let tobacco_or_spirits = path[0] == "spirits";
    Ok(Product {
        id: format!("cj:{id}"),
        name,
        brand: if *brand == "Private" { "store brand".to_owned() } else { String::new() },
        size: size.to_lowercase(),
        price_cents: None,
        violates: facts.violates,
        age_restricted: facts.age_restricted || tobacco_or_spirits,
        category_path: path,
        popularity: POPULARITY,
        in_stock: true,
    })
}

/// A label in words: `FRUIT - SHELF STABLE` is shelf stable fruit, `PNT BTR/JELLY/JAMS` peanut butter, jelly and jams.
fn readable(label: &str) -> String {
    let label = label.to_lowercase();
    // What stands in brackets narrows the label down; without it the leaf is a little wider.
    let mut outside = label.split(['(', '[']).map(|part| part.rsplit([')', ']']).next().unwrap_or(""));
    let label = outside.by_ref().collect::<Vec<_>>().join(" ");
    let parts: Vec<String> =
        label.split([':']).flat_map(|part| part.split(" - ")).map(phrase).filter(|part| !part.is_empty()).collect();
    // The narrower part comes first in English: `EGGS - LARGE`.
    let mut words: Vec<&str> = Vec::new();
    for word in parts.iter().rev().flat_map(|part| part.split(' ')) {
        if words.last() != Some(&word) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// One part of a label: its alternatives, spelt out, joined by `and`.
fn phrase(part: &str) -> String {
    let alternatives: Vec<String> = part.split(['/', '&', ',', ';']).map(spelt_out).filter(|words| !words.is_empty()).collect();
    match alternatives.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(" ")),
    }
}

fn spelt_out(text: &str) -> String {
    let words = text
        .split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '%'))
        .filter(|word| !word.is_empty() && !LEFT_OUT.contains(word));
    let spelt = words.map(|word| SPELT_OUT.iter().find(|(short, _)| *short == word).map_or(word, |(_, long)| long));
    spelt.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_words() {
        for (label, expected) in [
            ("FRUIT - SHELF STABLE", "shelf stable fruit"),
            ("APPLE SAUCE", "apple sauce"),
            ("BREAD:ITALIAN/FRENCH", "italian and french bread"),
            ("PNT BTR/JELLY/JAMS", "peanut butter jelly and jams"),
            ("CANDY BARS (MULTI PACK)", "candy bars"),
            ("EGGS - LARGE", "large eggs"),
            ("FRZN ICE", "frozen ice"),
            ("SW GDS: SW ROLLS/DAN", "sweet rolls and danish sweet goods"),
            ("CHRISTMAS  SEASONAL", "christmas seasonal"),
            ("", ""),
            ("-/:&", ""),
        ] {
            assert_eq!(readable(label), expected, "{label}");
        }
    }

    #[test]
    fn a_row_is_a_product_with_facts() {
        let product = product(&["25671", "DELI", "Private", "CHEESES", "CHEESE: BRIE", "8 OZ"]).unwrap();
        assert_eq!(product.id, "cj:25671");
        assert_eq!(product.title(), "store brand brie cheese 8 oz");
        assert_eq!(product.category_path, ["deli", "cheeses", "brie cheese"]);
        assert_eq!(product.violates.words(), "vegan and dairy free");
        let wine = super::product(&["7", "SPIRITS", "National", "DOMESTIC WINE", "CHARDONNAY", ""]).unwrap();
        assert!(wine.age_restricted);
    }
}
