//! The guardrails on what LLM 1 wrote (paper 4.2): pure, one reason per refusal.

use std::collections::{HashMap, HashSet};

use endcap_retrieval::{Snapshot, facts_of, plan_words, words};
use endcap_schemas::{Brief, Category, DietSet, Theme};

use crate::GuardConfig;

/// Why a theme is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The title is too short, too long, or has too many words.
    TitleLength,
    /// Intent or a concept is empty or too long.
    TextLength,
    /// A character that no title has.
    Charset,
    /// Too few of its words look like words, or it stammers.
    Language,
    /// A banned term.
    Banned,
    /// A brand that may not head a placement.
    Brand,
    /// A claim about health.
    Medical,
    /// Something for adults only.
    AgeRestricted,
    /// It contradicts a diet: the household's, or the one in its own title.
    Diet,
    /// The household does not want to see it.
    Dislike,
    /// Too few or too many concepts.
    ConceptCount,
    /// A concept stands there twice.
    ConceptRepeated,
    /// A better-placed theme has the title.
    TitleRepeated,
    /// A better-placed theme has the anchor.
    AnchorRepeated,
    /// Its department has enough themes on the page.
    Variety,
}

impl Reason {
    /// The reason as a metric label.
    pub fn label(self) -> &'static str {
        self.counter().trim_start_matches("themes.rejected.")
    }

    /// Name of its tally.
    pub fn counter(self) -> &'static str {
        match self {
            Reason::TitleLength => "themes.rejected.title_length",
            Reason::TextLength => "themes.rejected.text_length",
            Reason::Charset => "themes.rejected.charset",
            Reason::Language => "themes.rejected.language",
            Reason::Banned => "themes.rejected.banned",
            Reason::Brand => "themes.rejected.brand",
            Reason::Medical => "themes.rejected.medical",
            Reason::AgeRestricted => "themes.rejected.age_restricted",
            Reason::Diet => "themes.rejected.diet",
            Reason::Dislike => "themes.rejected.dislike",
            Reason::ConceptCount => "themes.rejected.concept_count",
            Reason::ConceptRepeated => "themes.rejected.concept_repeated",
            Reason::TitleRepeated => "themes.rejected.title_repeated",
            Reason::AnchorRepeated => "themes.rejected.anchor_repeated",
            Reason::Variety => "themes.rejected.variety",
        }
    }
}

/// The guardrails over one version of the taxonomy.
#[derive(Debug, Clone)]
pub struct Guard {
    config: GuardConfig,
    categories: HashMap<String, Category>,
    /// The categories' names in words, longest first, each with its name.
    names: Vec<(Vec<String>, String)>,
    /// Words of the taxonomy: they are words, however they look.
    taxonomy: HashSet<String>,
    banned: Vec<Vec<String>>,
    medical: Vec<Vec<String>>,
    brands: Vec<Vec<String>>,
}

impl Guard {
    /// Guardrails over `categories`.
    pub fn new(config: GuardConfig, categories: &[Category]) -> Self {
        let runs = |terms: &[String]| terms.iter().map(|term| words::words(term)).filter(|run| !run.is_empty()).collect();
        let mut names: Vec<(Vec<String>, String)> = categories.iter().map(|c| (words::words(&c.name), c.name.clone())).collect();
        names.retain(|(run, _)| !run.is_empty());
        names.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.1.cmp(&b.1)));
        Self {
            names,
            banned: runs(&config.banned),
            medical: runs(&config.medical),
            brands: runs(&config.brands),
            taxonomy: categories.iter().flat_map(|category| words::words(&category.name)).collect(),
            categories: categories.iter().map(|category| (category.name.clone(), category.clone())).collect(),
            config,
        }
    }

    /// Guardrails over the categories of `snapshot`.
    pub fn over(config: GuardConfig, snapshot: &Snapshot) -> Self {
        Self::new(config, snapshot.categories())
    }

    /// Checks a theme on its own.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn theme(&self, theme: &Theme, brief: &Brief) -> Result<(), Reason> {
        self.shape(theme)?;
        let shown = texts(theme);
        self.text(&shown)?;
        self.policy(&shown)?;
        self.household(theme, &shown, brief)
    }

    /// Checks whether `theme` may join those of `page` that stand above it.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn variety(&self, theme: &Theme, page: &[&Theme]) -> Result<(), Reason> {
        let same = |a: &str, b: &str| words::words(a) == words::words(b);
        if page.iter().any(|above| same(&above.title, &theme.title)) {
            return Err(Reason::TitleRepeated);
        }
        if page.iter().any(|above| same(anchor(above), anchor(theme))) {
            return Err(Reason::AnchorRepeated);
        }
        let department = self.department(theme);
        let full = |department| {
            page.iter().filter(|above| self.department(above) == Some(department)).count() >= self.config.department_max
        };
        if department.is_some_and(full) { Err(Reason::Variety) } else { Ok(()) }
    }

    /// Whether `text` may be shown as a persona.
    pub fn persona(&self, text: &str) -> bool {
        let text = [text];
        let length = text[0].trim().chars().count();
        (1..=self.config.text_chars_max).contains(&length)
            && !names_twice(text[0])
            && self.text(&text).is_ok()
            && self.policy(&text).is_ok()
    }

    fn shape(&self, theme: &Theme) -> Result<(), Reason> {
        let config = &self.config;
        let length = theme.title.chars().count();
        let count = theme.title.split_whitespace().count();
        if !(config.title_chars_min..=config.title_chars_max).contains(&length) || !(1..=config.title_words_max).contains(&count)
        {
            return Err(Reason::TitleLength);
        }
        if !(config.concepts_min..=config.concepts_max).contains(&theme.concepts.len()) {
            return Err(Reason::ConceptCount);
        }
        let fits = |text: &str| text.chars().count() <= config.text_chars_max;
        if !fits(&theme.intent) || theme.concepts.iter().any(|concept| concept.trim().is_empty() || !fits(concept)) {
            return Err(Reason::TextLength);
        }
        let mut seen = HashSet::new();
        if theme.concepts.iter().all(|concept| seen.insert(words::words(concept))) {
            Ok(())
        } else {
            Err(Reason::ConceptRepeated)
        }
    }

    /// Latin letters, digits and a few marks; words that look like words; no stammering.
    fn text(&self, texts: &[&str]) -> Result<(), Reason> {
        if !texts.iter().all(|text| text.chars().all(displayable)) {
            return Err(Reason::Charset);
        }
        for text in texts {
            let all = words::all_words(text);
            let plausible = all.iter().filter(|word| self.taxonomy.contains(*word) || looks_like_a_word(word)).count();
            let distinct = all.iter().collect::<HashSet<_>>().len();
            if (plausible as f64) < self.config.words_share_min * all.len() as f64 || distinct * 2 < all.len() {
                return Err(Reason::Language);
            }
        }
        Ok(())
    }

    fn policy(&self, texts: &[&str]) -> Result<(), Reason> {
        for (terms, reason) in [(&self.banned, Reason::Banned), (&self.medical, Reason::Medical), (&self.brands, Reason::Brand)] {
            if any_run(texts, terms) {
                return Err(reason);
            }
        }
        Ok(())
    }

    fn household(&self, theme: &Theme, shown: &[&str], brief: &Brief) -> Result<(), Reason> {
        let facts = theme.concepts.iter().map(|concept| self.concept_facts(concept)).collect::<Vec<_>>();
        if facts.iter().any(|facts| facts.1) || shown.iter().any(|text| self.text_facts(text).1) {
            return Err(Reason::AgeRestricted);
        }
        let concepts = facts.iter().fold(DietSet::NONE, |all, facts| union(all, facts.0));
        // What the title promises binds its concepts; what the household keeps binds everything.
        let promised = plan_words(&theme.title).1;
        let title = union(self.text_facts(&theme.title).0, self.text_facts(&theme.intent).0);
        if brief.diets.intersects(union(concepts, title)) || promised.intersects(concepts) {
            return Err(Reason::Diet);
        }
        let dislikes: Vec<_> = brief.dislikes.iter().map(|word| words::words(word)).filter(|run| !run.is_empty()).collect();
        let departments = theme.concepts.iter().filter_map(|concept| Some(self.category(concept)?.department.as_str()));
        let all: Vec<&str> = shown.iter().copied().chain(departments).collect();
        if any_run(&all, &dislikes) { Err(Reason::Dislike) } else { Ok(()) }
    }

    /// Diets that a concept violates and whether it is for adults only: the taxonomy's word where it has one, else its words'.
    fn concept_facts(&self, concept: &str) -> (DietSet, bool) {
        match self.category(concept) {
            Some(category) => (category.violates, category.age_restricted),
            None => self.text_facts(concept),
        }
    }

    /// Diets that a text violates and whether it is for adults only. Where it names a category, the taxonomy speaks (`plant milk` holds no
    /// milk); about the other words, they themselves (`cheese` is made of milk, unless it is `vegan`).
    fn text_facts(&self, text: &str) -> (DietSet, bool) {
        let text = words::words(text);
        let (mut violates, mut adult, mut rest) = (DietSet::NONE, false, Vec::new());
        let mut at = 0;
        while at < text.len() {
            match self.names.iter().find(|(run, _)| text[at..].starts_with(run)) {
                Some((run, name)) => {
                    let category = &self.categories[name];
                    violates = union(violates, category.violates);
                    adult |= category.age_restricted;
                    at += run.len();
                }
                None => {
                    rest.push(text[at].as_str());
                    at += 1;
                }
            }
        }
        let facts = word_facts(&rest.join(" "));
        (union(violates, facts.0), adult || facts.1)
    }

    fn category(&self, concept: &str) -> Option<&Category> {
        self.categories.get(concept.trim().to_lowercase().as_str())
    }

    fn department(&self, theme: &Theme) -> Option<&str> {
        self.category(anchor(theme)).map(|category| category.department.as_str())
    }
}

/// Whether a persona names a department twice, as small models do: `shopper into bakery then bakery`.
fn names_twice(persona: &str) -> bool {
    let persona = persona.to_lowercase();
    let Some((_, departments)) = persona.split_once(" into ") else { return false };
    let mut seen = HashSet::new();
    departments.split(" then ").any(|department| !seen.insert(department.trim()))
}

fn anchor(theme: &Theme) -> &str {
    theme.concepts.first().map_or("", String::as_str)
}

/// Everything of a theme that a shopper may come to see.
fn texts(theme: &Theme) -> Vec<&str> {
    [theme.title.as_str(), theme.intent.as_str()].into_iter().chain(theme.concepts.iter().map(String::as_str)).collect()
}

fn word_facts(text: &str) -> (DietSet, bool) {
    let facts = facts_of(text, &[], "");
    (facts.violates, facts.age_restricted)
}

fn union(a: DietSet, b: DietSet) -> DietSet {
    DietSet::from_bits(a.bits() | b.bits())
}

fn any_run(texts: &[&str], terms: &[Vec<String>]) -> bool {
    !terms.is_empty()
        && texts.iter().map(|text| words::words(text)).any(|text| terms.iter().any(|run| words::contains_run(&text, run)))
}

/// Latin letters (with diacritics), digits, spaces and the marks of titles.
fn displayable(c: char) -> bool {
    c == ' ' || c.is_ascii_alphanumeric() || "'’&%-–.,:;!?()+/".contains(c) || ('\u{c0}'..='\u{24f}').contains(&c)
}

/// Whether a folded word could be one: a vowel, no letter three times in a row, no heap of consonants. Numbers are words.
fn looks_like_a_word(word: &str) -> bool {
    if word.chars().all(|c| c.is_ascii_digit() || "%.".contains(c)) || word.len() <= 2 {
        return true;
    }
    let letters: Vec<char> = word.chars().collect();
    let vowel = |c: &char| "aeiouyàáâäåæèéêëìíîïòóôöøùúûüœ".contains(*c);
    let heap = letters.split(vowel).map(<[char]>::len).max().unwrap_or(0);
    letters.iter().any(vowel)
        && heap <= 5
        && letters.windows(3).all(|run| !(run[0] == run[1] && run[1] == run[2]))
        && letters.len() <= 24
}
