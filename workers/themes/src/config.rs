//! Limits and word lists of the themes stage.

use endcap_runtime::outside;
use serde::{Deserialize, Serialize};

/// Settings of the themes stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThemesConfig {
    /// Themes asked for per page.
    pub themes: usize,
    /// What the guardrails let through.
    pub guard: GuardConfig,
}

impl Default for ThemesConfig {
    fn default() -> Self {
        Self { themes: 8, guard: GuardConfig::default() }
    }
}

/// What the guardrails let through. Terms are compared word by word, in the singular and without case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Fewest characters of a title.
    pub title_chars_min: usize,
    /// Most characters of a title.
    pub title_chars_max: usize,
    /// Most words of a title.
    pub title_words_max: usize,
    /// Most characters of an intent, a concept or the persona.
    pub text_chars_max: usize,
    /// Fewest concepts of a theme.
    pub concepts_min: usize,
    /// Most concepts of a theme.
    pub concepts_max: usize,
    /// Share (0…1) of a theme's words that must look like words.
    pub words_share_min: f64,
    /// Most themes of one department on a page.
    pub department_max: usize,
    /// Terms that may not be shown.
    pub banned: Vec<String>,
    /// Claims about health that a shop may not make.
    pub medical: Vec<String>,
    /// Brands that may not head a placement without an agreement.
    pub brands: Vec<String>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            title_chars_min: 3,
            title_chars_max: 60,
            title_words_max: 8,
            text_chars_max: 120,
            concepts_min: 1,
            concepts_max: 6,
            words_share_min: 0.6,
            department_max: 3,
            banned: list(&BANNED),
            medical: list(&MEDICAL),
            brands: list(&BRANDS),
        }
    }
}

impl ThemesConfig {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        let guard = &self.guard;
        [
            outside("themes", self.themes, 1..=32),
            outside("guard.title_chars_max", guard.title_chars_max, 1..=200),
            outside("guard.title_chars_min", guard.title_chars_min, 1..=guard.title_chars_max.max(1)),
            outside("guard.title_words_max", guard.title_words_max, 1..=50),
            outside("guard.text_chars_max", guard.text_chars_max, 1..=1_000),
            outside("guard.concepts_max", guard.concepts_max, 1..=50),
            outside("guard.concepts_min", guard.concepts_min, 1..=guard.concepts_max.max(1)),
            outside("guard.department_max", guard.department_max, 1..=32),
        ]
        .into_iter()
        .chain([outside("guard.words_share_min", guard.words_share_min, 0.0..=1.0)])
        .flatten()
        .collect()
    }
}

/// Abuse, drugs and weapons, promises about price.
const BANNED: [&str; 24] = [
    "cannabis",
    "cocaine",
    "crap",
    "damn",
    "drugs",
    "escort",
    "free money",
    "fuck",
    "gambling",
    "gun",
    "hell",
    "idiot",
    "kill",
    "lottery",
    "lowest price guaranteed",
    "marijuana",
    "nazi",
    "porn",
    "sex",
    "sexy",
    "shit",
    "stupid",
    "suicide",
    "weapon",
];

/// Words that make a title a claim about health.
const MEDICAL: [&str; 32] = [
    "anti cancer",
    "anti inflammatory",
    "antidepressant",
    "blood pressure",
    "blood sugar",
    "boosts immunity",
    "burns fat",
    "cancer",
    "cholesterol lowering",
    "clinically proven",
    "cure",
    "curing",
    "detox",
    "diabetes",
    "disease",
    "doctor recommended",
    "fat burner",
    "fat burning",
    "heal",
    "healing",
    "immune booster",
    "immune boosting",
    "immunity boosting",
    "lose weight",
    "lowers cholesterol",
    "medicinal",
    "miracle",
    "prevents",
    "remedy",
    "therapeutic",
    "treatment",
    "weight loss",
];

/// Marks whose owners restrict their use in headings.
const BRANDS: [&str; 12] = [
    "ben jerry",
    "coca cola",
    "doritos",
    "haagen dazs",
    "heinz",
    "kit kat",
    "nutella",
    "oreo",
    "pepsi",
    "pringles",
    "red bull",
    "starbucks",
];
