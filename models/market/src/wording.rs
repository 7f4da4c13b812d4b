//! The merchandiser's words: titles, intents and personas. Everything is lower case and plain; [`sentence_case`] is for display.
//!
//! A title is a function of the anchor leaf, the kind of theme, season, diet and budget alone, and it names the anchor: so it can be learned.

use std::collections::HashMap;

use endcap_inference::prompts::{FIELD_MAX_BYTES, plain};
use endcap_schemas::{Budget, Category, Diet, DietSet, Season};

use crate::{
    random::hash,
    vocabulary::{Group, Vocabulary, shares_word},
};

/// What a theme is about beside its anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A favourite.
    Staple,
    /// A favourite with what goes with it.
    Recipe,
    /// What the season lifts.
    Season,
    /// A favourite within the diet.
    Diet,
    /// A favourite within the budget.
    Budget,
    /// Something new beside the latest purchases.
    Discovery,
}

/// Fewest and most words of a title.
const TITLE_WORDS: (usize, usize) = (3, 6);
/// Words of a leaf's name that a title shows: names of real taxonomies can be long.
pub const LEAF_WORDS_MAX: usize = 4;

const STAPLES: [&str; 4] = ["* for every week", "your kind of *", "more * to love", "plenty of good *"];
const SEASONS: [&str; 4] = ["* for {} days", "{} is for *", "a {} full of *", "{} calls for *"];
const DIETS: [&str; 3] = ["{} friendly *", "good {} *", "{} plates of *"];
const THRIFTY: [&str; 4] = ["* for less money", "smart savings on *", "good value *", "little prices on *"];
const QUALITY: [&str; 4] = ["the finest * around", "* of real quality", "only the best *", "choice * to savour"];
const DISCOVERIES: [&str; 4] = ["discover * next", "something new in *", "try some * soon", "time to meet *"];

/// The words for a market's departments: the demo market's own titles, general ones for every other department.
#[derive(Debug, Clone)]
pub(crate) struct Wording {
    departments: HashMap<String, (Group, Vec<String>)>,
}

impl Wording {
    pub(crate) fn new() -> Self {
        let departments = Vocabulary::embedded().departments.into_iter();
        Self { departments: departments.map(|department| (department.name, (department.group, department.titles))).collect() }
    }

    /// The title of a theme, lower case: three to six words that name `anchor`.
    pub(crate) fn title(
        &self,
        anchor: &Category,
        beside: &[&str],
        kind: Kind,
        season: Season,
        diets: DietSet,
        budget: Budget,
    ) -> String {
        let leaf = plain(&anchor.name).split(' ').take(LEAF_WORDS_MAX).collect::<Vec<_>>().join(" ");
        let own = self.departments.get(&anchor.department).map(|(_, titles)| titles.iter().map(String::as_str).collect());
        let staples: Vec<&str> = own.unwrap_or_else(|| STAPLES.to_vec());
        let (patterns, word): (Vec<&str>, &str) = match kind {
            Kind::Staple => (staples.clone(), ""),
            Kind::Recipe => match self.together(&leaf, beside, anchor) {
                Some(title) => return title,
                None => (staples.clone(), ""),
            },
            Kind::Season => (SEASONS.to_vec(), season.word()),
            Kind::Diet => (DIETS.to_vec(), main_diets(diets).first().map_or("", |diet| diet.words())),
            Kind::Budget if budget == Budget::High => (QUALITY.to_vec(), ""),
            Kind::Budget => (THRIFTY.to_vec(), ""),
            Kind::Discovery => (DISCOVERIES.to_vec(), ""),
        };
        let from = hash(&anchor.name) as usize % patterns.len();
        let written = |pattern: &&str| pattern.replace('*', &leaf).replace("{}", word);
        let all = patterns[from..].iter().chain(&patterns[..from]).chain(&STAPLES);
        all.map(written).find(|title| fits(title)).unwrap_or_else(|| format!("{leaf} for you"))
    }

    /// `pasta with hard cheese`, with the first neighbour that shares no word.
    fn together(&self, leaf: &str, beside: &[&str], anchor: &Category) -> Option<String> {
        let joint = if self.group(anchor) == Group::Home { "plus" } else { "with" };
        beside
            .iter()
            .filter(|other| !shares_word(leaf, other))
            .map(|other| format!("{leaf} {joint} {}", plain(other)))
            .find(|title| fits(title))
    }

    /// The intent behind a theme, one of about a dozen phrases.
    pub(crate) fn intent(&self, anchor: &Category, kind: Kind, budget: Budget) -> &'static str {
        match (kind, self.group(anchor), budget) {
            (Kind::Season, ..) => "enjoy the season",
            (Kind::Diet, ..) => "eat well within the diet",
            (Kind::Budget, _, Budget::High) => "treat the household to quality",
            (Kind::Budget, ..) => "save on the weekly shop",
            (Kind::Discovery, ..) => "try something new",
            (Kind::Staple, Group::Home, _) => "keep the home running",
            (Kind::Recipe, Group::Home, _) => "get everything in one go",
            (_, Group::Drink | Group::Alcohol, _) => "fill the glasses",
            (Kind::Staple, Group::Food, _) => "restock the weekly favourites",
            (Kind::Recipe, Group::Food, _) => "put a meal together",
        }
    }

    /// The shopper in a few words: diets, budget, departments; at most [`FIELD_MAX_BYTES`].
    pub(crate) fn persona(&self, diets: DietSet, budget: Budget, departments: &[&str], season: Season) -> String {
        let who = main_diets(diets).iter().take(2).map(|diet| diet.words()).collect::<Vec<_>>().join(" and ");
        let how = match budget {
            Budget::Low => "thrifty shopper",
            Budget::Middle => "shopper",
            Budget::High => "quality minded shopper",
        };
        let head = if who.is_empty() { how.to_owned() } else { format!("{who} {how}") };
        let mut words: Vec<String> = Vec::new();
        for word in departments.iter().map(|department| plain(department)) {
            // Names that differ in signs alone read the same.
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let tails = match words.as_slice() {
            [] => vec![format!("{head} new this {}", season.word())],
            [one] => vec![format!("{head} into {one}")],
            [one, two, ..] => vec![format!("{head} into {one} then {two}"), format!("{head} into {one}")],
        };
        tails.into_iter().find(|persona| persona.len() <= FIELD_MAX_BYTES).unwrap_or(head)
    }

    /// Whether a diet means something for the leaf: not for household goods.
    pub(crate) fn edible(&self, category: &Category) -> bool {
        self.group(category) != Group::Home
    }

    fn group(&self, category: &Category) -> Group {
        const HOME: [&str; 16] = [
            "house", "home", "clean", "laundry", "paper", "pet", "baby", "beauty", "hair", "hygiene", "drug", "cosmetic",
            "kitchen", "hardware", "garden", "toy",
        ];
        match self.departments.get(&category.department) {
            Some((group, _)) => *group,
            None if HOME.iter().any(|word| category.department.contains(word)) => Group::Home,
            None => Group::Food,
        }
    }
}

/// The diets that say the most: vegan says vegetarian and dairy free as well.
pub(crate) fn main_diets(diets: DietSet) -> Vec<Diet> {
    let rest = if diets.contains(Diet::Vegan) { diets.without(Diet::Vegetarian).without(Diet::DairyFree) } else { diets };
    rest.iter().collect()
}

/// `text` with its first letter in upper case, as pages show it.
pub fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn fits(title: &str) -> bool {
    (TITLE_WORDS.0..=TITLE_WORDS.1).contains(&title.split(' ').count()) && title.len() <= FIELD_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{DEMO_SEED, Market};

    #[test]
    fn every_title_has_three_to_six_plain_words_and_names_its_anchor() {
        let (market, wording) = (Market::generate(DEMO_SEED), Wording::new());
        let mut titles = HashSet::new();
        for category in &market.categories {
            let beside: Vec<&str> = category.related.iter().map(String::as_str).collect();
            for kind in [Kind::Staple, Kind::Recipe, Kind::Season, Kind::Diet, Kind::Budget, Kind::Discovery] {
                for (season, diet, budget) in
                    [(Season::Summer, Diet::Vegan, Budget::Low), (Season::Winter, Diet::GlutenFree, Budget::High)]
                {
                    let title = wording.title(category, &beside, kind, season, DietSet::NONE.with(diet), budget);
                    assert!(fits(&title), "{title}");
                    assert!(title.contains(&category.name), "{title}");
                    assert_eq!(plain(&title), title);
                    titles.insert(title);
                }
            }
        }
        assert!(titles.len() > 1_000, "{} different titles", titles.len());
    }

    #[test]
    fn foreign_taxonomies_get_titles_too() {
        let mut category = Market::generate(DEMO_SEED).categories[0].clone();
        category.department = "grocery".into();
        for name in ["FLUID MILK WHITE ONLY AND OTHERS", "x", "plant-based milks & more"] {
            category.name = name.to_lowercase();
            for kind in [Kind::Staple, Kind::Diet, Kind::Recipe] {
                let diets = DietSet::NONE.with(Diet::GlutenFree);
                let title = Wording::new().title(&category, &["bread"], kind, Season::Spring, diets, Budget::Low);
                assert!(title.split(' ').count() >= 3 && title.len() <= FIELD_MAX_BYTES, "{title}");
            }
        }
    }

    #[test]
    fn a_persona_is_plain_text() {
        let wording = Wording::new();
        for bits in 0..64 {
            let departments = ["fruit and vegetables", "wine and spirits"];
            let persona = wording.persona(DietSet::from_bits(bits), Budget::High, &departments, Season::Autumn);
            assert_eq!(plain(&persona), persona);
        }
        let vegan = DietSet::NONE.with(Diet::Vegan).with(Diet::DairyFree);
        assert_eq!(wording.persona(vegan, Budget::Low, &["pantry"], Season::Summer), "vegan thrifty shopper into pantry");
        let middle = |departments: &[&str]| wording.persona(DietSet::NONE, Budget::Middle, departments, Season::Summer);
        assert_eq!(middle(&[]), "shopper new this summer");
        assert_eq!(middle(&["bakery", "bakery!"]), "shopper into bakery");
        assert_eq!(middle(&["bakery", "bakery!", "pantry"]), "shopper into bakery then pantry");
        assert_eq!(sentence_case("summer is for berries"), "Summer is for berries");
    }
}
