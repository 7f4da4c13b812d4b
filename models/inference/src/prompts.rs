//! The text that goes into models: one place for stages, training and evaluation.
//!
//! Everything a shopper or a catalogue can write passes through [`plain`], so that no text can pose as part of a prompt:
//! the structure is made of `<`, `>`, `:`, `;` and quotes, which plain text never holds.

use endcap_schemas::{Brief, Budget, ContextChanged, DietSet, Product, Season, Theme};
use serde::{Deserialize, Serialize};

/// Version of these texts: part of cache keys, page versions and manifests. Raise it with every change below.
pub const VERSION: &str = "3";

/// Favourite categories that a theme prompt names.
pub const FAVOURITES_MAX: usize = 10;
/// Recent products that a theme prompt names.
pub const RECENT_MAX: usize = 6;
/// Longest plain text of one field, in bytes.
pub const FIELD_MAX_BYTES: usize = 80;

/// The pieces of the JSON documents that LLM 1 writes. Each is one token of the demo tokenizer.
pub mod json {
    /// Opens the document.
    pub const OPEN: &str = r#"{"persona":""#;
    /// From the persona to the first title.
    pub const FIRST_TITLE: &str = r#"","themes":[{"title":""#;
    /// From a title to its intent.
    pub const INTENT: &str = r#"","intent":""#;
    /// From an intent to the first concept.
    pub const CONCEPTS: &str = r#"","concepts":[""#;
    /// Between two concepts.
    pub const NEXT_CONCEPT: &str = r#"",""#;
    /// From a theme's last concept to the next title.
    pub const NEXT_TITLE: &str = r#""]},{"title":""#;
    /// Closes the document.
    pub const CLOSE: &str = r#""]}]}"#;
    /// All of them.
    pub const ALL: [&str; 7] = [OPEN, FIRST_TITLE, INTENT, CONCEPTS, NEXT_CONCEPT, NEXT_TITLE, CLOSE];
}

/// Markers of the prompts and of the keyword lists. Each is one token of the demo tokenizer.
pub mod mark {
    /// Begins a theme prompt.
    pub const THEMES: &str = "<themes>";
    /// Begins a keyword prompt.
    pub const KEYWORDS: &str = "<keywords>";
    /// Begins a catalogue fact (training only).
    pub const FACT: &str = "<fact>";
    /// Before the diets.
    pub const DIET: &str = "<diet>";
    /// Before the season.
    pub const SEASON: &str = "<season>";
    /// Before the budget.
    pub const BUDGET: &str = "<budget>";
    /// Before the favourite categories.
    pub const FAVOURITES: &str = "<favourites>";
    /// Before the recent products.
    pub const RECENT: &str = "<recent>";
    /// Before the persona.
    pub const PERSONA: &str = "<persona>";
    /// Before the title.
    pub const TITLE: &str = "<title>";
    /// Before a concept; its candidates follow.
    pub const CONCEPT: &str = "<concept>";
    /// Before the answer.
    pub const OUT: &str = "<out>";
    /// After every item of a list.
    pub const ITEM: &str = ";";
    /// Ends an answer.
    pub const END: &str = "<end>";
    /// All of them.
    pub const ALL: [&str; 14] =
        [THEMES, KEYWORDS, FACT, DIET, SEASON, BUDGET, FAVOURITES, RECENT, PERSONA, TITLE, CONCEPT, OUT, ITEM, END];
}

/// What a shopper or a catalogue wrote, made harmless: lower case, letters, digits and `' & % - .` only, single spaces, at most
/// [`FIELD_MAX_BYTES`] bytes, cut at a word; within one that is longer by itself (a name in a script without spaces).
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(FIELD_MAX_BYTES));
    for word in text.split(|c: char| !(c.is_alphanumeric() || "'&%-.".contains(c))).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        let room = FIELD_MAX_BYTES.saturating_sub(out.len() + usize::from(!out.is_empty()));
        let fitting = match word.len() {
            length if length <= room => length,
            length if length > FIELD_MAX_BYTES => word.floor_char_boundary(room),
            _ => 0,
        };
        if fitting > 0 && !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&word[..fitting]);
        if fitting < word.len() {
            break;
        }
    }
    out
}

/// What the taxonomy holds around a shopper, retrieved for LLM 1 so that it need not know a market's leaves by heart. A shelf is a leaf,
/// then the leaves that go with it; no leaf begins two of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nearby {
    /// Shelves that suit the shopper, best first.
    pub suited: Vec<Vec<String>>,
    /// Shelves in season, best first.
    pub in_season: Vec<Vec<String>>,
    /// Shelves beside the latest purchases that the shopper has not bought from.
    pub unfamiliar: Vec<Vec<String>>,
}

/// The prompt of LLM 1 for a shopper, up to and with [`mark::OUT`]; the answer begins with [`json::OPEN`].
pub fn themes(context: &ContextChanged, nearby: &Nearby) -> String {
    let brief = &context.brief;
    let mut prompt = format!("{}{}", mark::THEMES, household(brief.diets, brief.season, brief.budget));
    prompt.push_str(mark::FAVOURITES);
    for favourite in context.favourites.iter().take(FAVOURITES_MAX) {
        item(&mut prompt, &favourite.category);
    }
    prompt.push_str(mark::RECENT);
    for purchase in context.recent.iter().take(RECENT_MAX) {
        item(&mut prompt, &purchase.name);
    }
    for (mark, shelves) in
        [(mark::FAVOURITES, &nearby.suited), (mark::SEASON, &nearby.in_season), (mark::RECENT, &nearby.unfamiliar)]
    {
        prompt.push_str(mark);
        for shelf in shelves {
            prompt.push_str(mark::CONCEPT);
            shelf.iter().for_each(|leaf| item(&mut prompt, leaf));
        }
    }
    prompt.push_str(mark::OUT);
    prompt
}

/// The prompt of LLM 2 for a theme, up to the candidates, which the engine appends as [`candidate_list`] writes them.
pub fn keywords(persona: &str, brief: &Brief, theme: &Theme) -> String {
    format!(
        "{}{}{} {}{} {}",
        mark::KEYWORDS,
        household(brief.diets, brief.season, brief.budget),
        mark::PERSONA,
        plain(persona),
        mark::TITLE,
        plain(&theme.title),
    )
}

/// How candidates stand in the prompt of LLM 2: each concept with the terms that it retrieved.
/// The text after [`keywords`]'s; [`mark::OUT`] follows it.
pub fn candidate_list<'a>(groups: impl Iterator<Item = (&'a str, &'a [String])>) -> String {
    let mut text = String::new();
    for (concept, terms) in groups {
        text.push_str(mark::CONCEPT);
        item(&mut text, concept);
        for term in terms {
            item(&mut text, term);
        }
    }
    text
}

/// The theme side of a cross-encoder pair.
pub fn theme_text(theme: &Theme) -> String {
    let mut text = plain(&theme.title);
    for concept in &theme.concepts {
        text.push_str(" ; ");
        text.push_str(&plain(concept));
    }
    text
}

/// The product side of a cross-encoder pair: the name, then the shelves that it stands on, the leaf first ([`Product::shelves`]). Without
/// brand and size, so that all packages of one thing share their verdict.
pub fn product_text(product: &Product) -> String {
    let mut text = plain(&product.name);
    for shelf in product.shelves() {
        text.push_str(" ; ");
        text.push_str(&plain(shelf));
    }
    text
}

fn household(diets: DietSet, season: Season, budget: Budget) -> String {
    let mut text = String::from(mark::DIET);
    for diet in diets.iter() {
        item(&mut text, diet.words());
    }
    format!("{text}{} {}{} {}", mark::SEASON, season.word(), mark::BUDGET, budget.word())
}

fn item(text: &mut String, words: &str) {
    text.push(' ');
    text.push_str(&plain(words));
    text.push_str(mark::ITEM);
}

/// The document that LLM 1 writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThemesDocument {
    /// The shopper in a few words.
    pub persona: String,
    /// Themes in page order.
    pub themes: Vec<ThemeDocument>,
}

/// One theme of the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThemeDocument {
    /// Title.
    pub title: String,
    /// Intent.
    pub intent: String,
    /// Concepts, the anchor first.
    pub concepts: Vec<String>,
}

impl ThemesDocument {
    /// The document as the demo models write it: every text with a leading space, so that a word is the same token wherever it stands.
    pub fn to_training_text(&self) -> String {
        let mut text = format!("{} {}", json::OPEN, plain(&self.persona));
        for (i, theme) in self.themes.iter().enumerate() {
            text.push_str(if i == 0 { json::FIRST_TITLE } else { json::NEXT_TITLE });
            text.push_str(&format!(" {}{} {}{}", plain(&theme.title), json::INTENT, plain(&theme.intent), json::CONCEPTS));
            for (j, concept) in theme.concepts.iter().enumerate() {
                if j > 0 {
                    text.push_str(json::NEXT_CONCEPT);
                }
                text.push(' ');
                text.push_str(&plain(concept));
            }
        }
        text.push_str(json::CLOSE);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_harmless_short_and_stays_as_it_is() {
        let kanji = "寿司".repeat(20);
        let words = "word ".repeat(40);
        for (text, expected) in [
            ("", String::new()),
            (" <out> Smoked  GOUDA; 200 g ", "out smoked gouda 200 g".to_owned()),
            (&words, words[..79].to_owned()),
            // A word that would fit by itself is left out whole.
            (&format!("{} {}", "a".repeat(60), "b".repeat(40)), "a".repeat(60)),
            (&"x".repeat(200), "x".repeat(80)),
            (&kanji, "寿司".repeat(13)),
            (&format!("{kanji} a"), "寿司".repeat(13)),
            (&format!("Nori {kanji}"), format!("nori {}", "寿司".repeat(12) + "寿")),
            (&format!("{} {kanji}", "a".repeat(79)), "a".repeat(79)),
        ] {
            let found = plain(text);
            assert_eq!(found, expected, "{text}");
            assert!(found.len() <= FIELD_MAX_BYTES && plain(&found) == found, "{text}");
        }
    }
}
