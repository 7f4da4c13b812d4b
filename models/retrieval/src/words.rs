//! Words as the catalogue compares them: folded to plain lower-case letters and brought to the singular.

/// Longest text that is split into words, in bytes; the rest is ignored.
pub const TEXT_MAX_BYTES: usize = 2_000;

/// Words that say nothing about a product.
const STOP_WORDS: [&str; 22] = [
    "a", "an", "and", "as", "at", "by", "de", "for", "from", "in", "it", "la", "le", "made", "of", "on", "or", "style", "the",
    "to", "type", "with",
];

/// Endings that stay: words that look like a plural and are none.
const SINGULAR: [&str; 24] = [
    "asparagus",
    "bass",
    "bias",
    "bus",
    "citrus",
    "couscous",
    "gas",
    "glass",
    "grass",
    "hibiscus",
    "houmous",
    "hummus",
    "lens",
    "les",
    "less",
    "molasses",
    "octopus",
    "plus",
    "sans",
    "swiss",
    "tapas",
    "this",
    "us",
    "is",
];

/// One spelling for words that are written in two ways.
const SPELLINGS: [(&str, &str); 26] = [
    ("yoghurt", "yogurt"),
    ("yoghourt", "yogurt"),
    ("flavour", "flavor"),
    ("flavoured", "flavored"),
    ("colour", "color"),
    ("doughnut", "donut"),
    ("chilli", "chili"),
    ("chile", "chili"),
    ("chily", "chili"),
    ("cooky", "cookie"),
    ("browny", "brownie"),
    ("veggy", "veggie"),
    ("smoothy", "smoothie"),
    ("wholewheat", "whole wheat"),
    ("barbecue", "bbq"),
    ("barbeque", "bbq"),
    ("catsup", "ketchup"),
    ("houmous", "hummus"),
    ("leave", "leaf"),
    ("loave", "loaf"),
    ("halve", "half"),
    ("knive", "knife"),
    ("quich", "quiche"),
    ("brioch", "brioche"),
    ("mouss", "mousse"),
    ("sho", "shoe"),
];

/// Splits `text` into comparable words: diacritics folded, lower case, singular, one spelling, stop words left out.
///
/// `-` and `'` within words: `sugar-free` is two words, `reese's` is `reese`. Numbers stay words.
pub fn words(text: &str) -> Vec<String> {
    all_words(text).into_iter().filter(|word| !STOP_WORDS.contains(&word.as_str())).collect()
}

/// As [`words`], stop words included.
pub fn all_words(text: &str) -> Vec<String> {
    let mut end = text.len().min(TEXT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut found = Vec::new();
    let mut word = String::new();
    let mut apostrophe = None;
    for c in text[..end].chars().chain([' ']) {
        match c {
            '\'' | '’' | '`' if !word.is_empty() => apostrophe = apostrophe.or(Some(word.len())),
            // Combining marks of decomposed letters.
            '\u{300}'..='\u{36f}' => {}
            c if c.is_alphanumeric() => fold(c, &mut word),
            _ if !word.is_empty() => {
                // Possessives lose their ending; `m&m's`, `reese's`.
                if let Some(at) = apostrophe.take().filter(|at| word.len() - at <= 1) {
                    word.truncate(at);
                }
                found.extend(spelling(&singular(&word)).split(' ').map(str::to_owned));
                word.clear();
            }
            _ => {}
        }
        if word.is_empty() {
            apostrophe = None;
        }
    }
    found
}

fn spelling(word: &str) -> String {
    SPELLINGS.iter().find(|(from, _)| *from == word).map_or(word, |(_, to)| to).to_owned()
}

/// The singular of a folded English word; words that are none come back as they are.
pub fn singular(word: &str) -> String {
    if word.len() < 4 || !word.ends_with('s') || !word.is_ascii() || SINGULAR.contains(&word) {
        return word.to_owned();
    }
    let cut = |n: usize| &word[..word.len() - n];
    match word {
        _ if word.ends_with("ss") || word.ends_with("us") || word.ends_with("is") => word.to_owned(),
        _ if word.ends_with("ies") && word.len() > 4 => format!("{}y", cut(3)),
        _ if ["oes", "ches", "shes", "xes", "sses"].iter().any(|end| word.ends_with(end)) && word.len() > 4 => cut(2).to_owned(),
        _ => cut(1).to_owned(),
    }
}

/// Appends `c` to `out` in lower case and without its diacritics, as far as Latin letters go.
fn fold(c: char, out: &mut String) {
    for c in c.to_lowercase() {
        match c {
            'à'..='å' | 'ā' | 'ă' | 'ą' => out.push('a'),
            'ç' | 'ć' | 'č' => out.push('c'),
            'è'..='ë' | 'ē' | 'ę' | 'ě' => out.push('e'),
            'ì'..='ï' | 'ī' | 'ı' => out.push('i'),
            'ñ' | 'ń' | 'ň' => out.push('n'),
            'ò'..='ö' | 'ø' | 'ō' | 'ő' => out.push('o'),
            'ù'..='ü' | 'ū' | 'ů' | 'ű' => out.push('u'),
            'ý' | 'ÿ' => out.push('y'),
            'š' | 'ś' | 'ş' | 'ș' => out.push('s'),
            'ž' | 'ź' | 'ż' => out.push('z'),
            'ğ' => out.push('g'),
            'ł' => out.push('l'),
            'ť' | 'ț' => out.push('t'),
            'ď' | 'đ' => out.push('d'),
            'ř' => out.push('r'),
            'ß' => out.push_str("ss"),
            'æ' => out.push_str("ae"),
            'œ' => out.push_str("oe"),
            c => out.push(c),
        }
    }
}

/// Whether `needle` (words) stands in `hay` (words) as a run.
pub fn contains_run(hay: &[String], needle: &[String]) -> bool {
    !needle.is_empty() && hay.windows(needle.len()).any(|run| run == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_folded_and_singular() {
        for (text, expected) in [
            ("Unsalted French Butters", "unsalted french butter"),
            ("Crème brûlée", "creme brulee"),
            ("Cre\u{300}me", "creme"),
            ("Cookies & Cream", "cookie cream"),
            ("Reese's Peanut-Butter Cups", "reese peanut butter cup"),
            ("Yoghurts from the Alps", "yogurt alp"),
            ("tomatoes, radishes; boxes", "tomato radish box"),
            ("couscous hummus swiss molasses", "couscous hummus swiss molasses"),
            ("berries 750ML 8\"", "berry 750ml 8"),
            ("", ""),
            ("\u{0}\u{1}';--", ""),
            ("loaves", "loaf"),
        ] {
            assert_eq!(words(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let text = "é".repeat(TEXT_MAX_BYTES);
        assert_eq!(words(&text), ["e".repeat(TEXT_MAX_BYTES / 2)]);
    }
}
