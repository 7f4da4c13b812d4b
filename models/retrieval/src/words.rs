//! Words as the catalogue compares them: folded to plain lower-case letters and brought to the singular.

use std::borrow::Cow;

/// Longest text that is split into words, in bytes; the rest is ignored.
pub const TEXT_MAX_BYTES: usize = 2_000;

/// Whether a word says nothing about a product.
fn is_stop_word(word: &str) -> bool {
    matches!(
        word,
        "a" | "an"
            | "and"
            | "as"
            | "at"
            | "by"
            | "de"
            | "for"
            | "from"
            | "in"
            | "it"
            | "la"
            | "le"
            | "made"
            | "of"
            | "on"
            | "or"
            | "style"
            | "the"
            | "to"
            | "type"
            | "with"
    )
}

/// Whether a word looks like a plural and is none.
fn is_singular(word: &str) -> bool {
    matches!(
        word,
        "asparagus"
            | "bass"
            | "bias"
            | "bus"
            | "citrus"
            | "couscous"
            | "gas"
            | "glass"
            | "grass"
            | "hibiscus"
            | "houmous"
            | "hummus"
            | "lens"
            | "les"
            | "less"
            | "molasses"
            | "octopus"
            | "plus"
            | "sans"
            | "swiss"
            | "tapas"
            | "this"
            | "us"
            | "is"
    )
}

/// One spelling for words that are written in two ways, and for singulars that lost a letter.
fn spelling(word: &str) -> &str {
    match word {
        "yoghurt" | "yoghourt" => "yogurt",
        "flavour" => "flavor",
        "flavoured" => "flavored",
        "colour" => "color",
        "doughnut" => "donut",
        "chilli" | "chile" | "chily" => "chili",
        "cooky" => "cookie",
        "browny" => "brownie",
        "veggy" => "veggie",
        "smoothy" => "smoothie",
        "wholewheat" => "whole wheat",
        "barbecue" | "barbeque" => "bbq",
        "catsup" => "ketchup",
        "houmous" => "hummus",
        "leave" => "leaf",
        "loave" => "loaf",
        "halve" => "half",
        "knive" => "knife",
        "quich" => "quiche",
        "brioch" => "brioche",
        "mouss" => "mousse",
        "sho" => "shoe",
        _ => word,
    }
}

/// Splits `text` into comparable words: diacritics folded, lower case, singular, one spelling, stop words left out.
///
/// `-` and `'` within words: `sugar-free` is two words, `reese's` is `reese`. Numbers stay words.
pub fn words(text: &str) -> Vec<String> {
    all_words(text).into_iter().filter(|word| !is_stop_word(word)).collect()
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
                let one = singular(&word);
                match spelling(&one).split_once(' ') {
                    Some((first, second)) => found.extend([first.to_owned(), second.to_owned()]),
                    None => found.push(spelling(&one).to_owned()),
                }
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

/// The singular of a folded English word; words that are none come back as they are.
pub fn singular(word: &str) -> Cow<'_, str> {
    if word.len() < 4 || !word.ends_with('s') || !word.is_ascii() || is_singular(word) {
        return word.into();
    }
    let cut = |n: usize| &word[..word.len() - n];
    match word {
        _ if word.ends_with("ss") || word.ends_with("us") || word.ends_with("is") => word.into(),
        _ if word.ends_with("ies") && word.len() > 4 => format!("{}y", cut(3)).into(),
        _ if ["oes", "ches", "shes", "xes", "sses"].iter().any(|end| word.ends_with(end)) && word.len() > 4 => cut(2).into(),
        _ => cut(1).into(),
    }
}

/// Appends `c` to `out` in lower case and without its diacritics, as far as Latin letters go.
fn fold(c: char, out: &mut String) {
    if c.is_ascii() {
        out.push(c.to_ascii_lowercase());
        return;
    }
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
