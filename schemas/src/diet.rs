//! Dietary facts: what a household avoids and what a product violates.

use serde::{Deserialize, Serialize};

/// A diet that a household keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diet {
    /// No meat, no fish.
    Vegetarian,
    /// Nothing from animals.
    Vegan,
    /// No gluten.
    GlutenFree,
    /// No milk.
    DairyFree,
    /// No nuts.
    NutFree,
    /// No pork, no alcohol.
    Halal,
}

impl Diet {
    /// Every diet, in bit order.
    pub const ALL: [Diet; 6] = [Diet::Vegetarian, Diet::Vegan, Diet::GlutenFree, Diet::DairyFree, Diet::NutFree, Diet::Halal];

    /// The diet's words, as prompts and pages write them.
    pub fn words(self) -> &'static str {
        match self {
            Diet::Vegetarian => "vegetarian",
            Diet::Vegan => "vegan",
            Diet::GlutenFree => "gluten free",
            Diet::DairyFree => "dairy free",
            Diet::NutFree => "nut free",
            Diet::Halal => "halal",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of diets: those a household keeps, or those a product violates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Diet>", into = "Vec<Diet>")]
pub struct DietSet(u8);

impl DietSet {
    /// No diet.
    pub const NONE: DietSet = DietSet(0);

    /// The set with these bits, as [`DietSet::bits`] gave them; unknown bits are dropped.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & ((1 << Diet::ALL.len()) - 1))
    }

    /// One bit per diet, in the order of [`Diet::ALL`].
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set with `diet` in it.
    #[must_use]
    pub fn with(self, diet: Diet) -> Self {
        Self(self.0 | diet.bit())
    }

    /// The set without `diet`.
    #[must_use]
    pub fn without(self, diet: Diet) -> Self {
        Self(self.0 & !diet.bit())
    }

    /// Whether `diet` is in the set.
    pub fn contains(self, diet: Diet) -> bool {
        self.0 & diet.bit() != 0
    }

    /// Whether the two sets share a diet: a household that keeps `self` may not have a product that violates `other`.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no diet is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The diets, in the order of [`Diet::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Diet> {
        Diet::ALL.into_iter().filter(move |diet| self.contains(*diet))
    }

    /// The diets' words joined by `and`; empty for no diet.
    pub fn words(self) -> String {
        self.iter().map(Diet::words).collect::<Vec<_>>().join(" and ")
    }
}

impl FromIterator<Diet> for DietSet {
    fn from_iter<I: IntoIterator<Item = Diet>>(diets: I) -> Self {
        diets.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Vec<Diet>> for DietSet {
    fn from(diets: Vec<Diet>) -> Self {
        diets.into_iter().collect()
    }
}

impl From<DietSet> for Vec<Diet> {
    fn from(set: DietSet) -> Self {
        set.iter().collect()
    }
}
