//! The words that the demo market is made of, and the parser of their file.

use std::collections::HashSet;

use endcap_schemas::{Diet, DietSet};
use thiserror::Error;

use crate::Taste;

/// The vocabulary as `vocabulary.txt` holds it; its head explains the lines.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    pub(crate) departments: Vec<Department>,
    pub(crate) modifiers: Vec<Modifier>,
    pub(crate) conflicts: Vec<Vec<String>>,
    pub(crate) brands: Vec<(Group, Vec<String>)>,
    pub(crate) tastes: Vec<Taste>,
}

/// What kind of goods a department sells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    Food,
    Drink,
    Alcohol,
    Home,
}

impl Group {
    const ALL: [(&'static str, Group); 4] =
        [("food", Group::Food), ("drink", Group::Drink), ("alcohol", Group::Alcohol), ("home", Group::Home)];

    fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, group)| group)
    }

    fn word(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Department {
    pub(crate) name: String,
    pub(crate) group: Group,
    /// Cheapest and dearest usual price, cents.
    pub(crate) prices: (i64, i64),
    pub(crate) sizes: Vec<String>,
    /// Titles with `*` where the leaf's name goes.
    pub(crate) titles: Vec<String>,
    pub(crate) leaves: Vec<Leaf>,
}

#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) name: String,
    pub(crate) holds: Holdings,
    pub(crate) adult: bool,
    /// 0…1.
    pub(crate) popularity: f32,
    /// Spring, summer, autumn, winter, 0…1.
    pub(crate) seasons: [f32; 4],
    pub(crate) related: Vec<String>,
    pub(crate) sizes: Vec<String>,
    pub(crate) nouns: Vec<Noun>,
}

/// What a product is called at heart: `gouda`.
#[derive(Debug, Clone)]
pub(crate) struct Noun {
    pub(crate) text: String,
    pub(crate) holds: Holdings,
    /// 0…1, by its place in the leaf.
    pub(crate) popularity: f32,
}

/// Words that qualify a noun: `smoked`.
#[derive(Debug, Clone)]
pub(crate) struct Modifier {
    pub(crate) text: String,
    /// 0…1.
    pub(crate) popularity: f32,
    fits: Vec<String>,
    unfit: Vec<String>,
    adds: Holdings,
    clears: Holdings,
    /// Whether it stands after the noun.
    pub(crate) after: bool,
}

/// What is in a thing, one bit per entry of [`Holdings::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Holdings(u16);

impl Holdings {
    const NAMES: [(&'static str, &'static [Diet]); 10] = [
        ("meat", &[Diet::Vegetarian, Diet::Vegan]),
        ("fish", &[Diet::Vegetarian, Diet::Vegan]),
        ("gelatine", &[Diet::Vegetarian, Diet::Vegan]),
        ("pork", &[Diet::Halal]),
        ("dairy", &[Diet::Vegan, Diet::DairyFree]),
        ("egg", &[Diet::Vegan]),
        ("honey", &[Diet::Vegan]),
        ("gluten", &[Diet::GlutenFree]),
        ("nut", &[Diet::NutFree]),
        ("alcohol", &[Diet::Halal]),
    ];
    /// The first seven of the names.
    const ANIMAL: Holdings = Holdings(0b111_1111);

    fn read(word: &str) -> Option<Self> {
        if word == "animal" {
            return Some(Self::ANIMAL);
        }
        Self::NAMES.iter().position(|(name, _)| *name == word).map(|i| Self(1 << i))
    }

    /// The diets that a thing with these holdings violates.
    pub(crate) fn violates(self) -> DietSet {
        Self::NAMES
            .iter()
            .enumerate()
            .filter(|(i, _)| self.0 & (1 << i) != 0)
            .flat_map(|(_, (_, diets))| diets.iter().copied())
            .collect()
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl Modifier {
    /// What `text` of this leaf holds with the modifier; `None` where the two do not go together.
    pub(crate) fn apply(&self, department: &Department, leaf: &Leaf, text: &str, holds: Holdings) -> Option<Holdings> {
        let named = |names: &[String]| {
            names.iter().any(|name| *name == department.group.word() || *name == department.name || *name == leaf.name)
        };
        if !named(&self.fits) || named(&self.unfit) || shares_word(&self.text, text) {
            return None;
        }
        if self.clears != Holdings::default() && holds.0 & self.clears.0 == 0 {
            return None;
        }
        Some(holds.without(self.clears).with(self.adds))
    }

    /// The modifier and `text`, in their order.
    pub(crate) fn join(&self, text: &str) -> String {
        if self.after { format!("{text} {}", self.text) } else { format!("{} {text}", self.text) }
    }
}

/// Whether the two texts have a word in common, singular or plural.
pub(crate) fn shares_word(a: &str, b: &str) -> bool {
    let stem = |word: &str| word.strip_suffix('s').unwrap_or(word).to_owned();
    let words: HashSet<String> = a.split(' ').map(stem).collect();
    b.split(' ').map(stem).any(|word| words.contains(&word))
}

/// What is wrong with a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VocabularyError {
    /// A line cannot be read.
    #[error("vocabulary line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What to mend.
        problem: String,
    },
    /// The lines do not fit together.
    #[error("vocabulary: {0}")]
    Whole(String),
}

impl Vocabulary {
    /// The project's own vocabulary.
    pub fn embedded() -> Self {
        Self::parse(include_str!("vocabulary.txt")).expect("a test reads the embedded vocabulary")
    }

    /// Reads a vocabulary and checks that its lines fit together.
    ///
    /// # Errors
    /// The first line that cannot be read, or the first name that is missing or given twice.
    pub fn parse(text: &str) -> Result<Self, VocabularyError> {
        let mut vocabulary = Self::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                vocabulary.line(line).map_err(|problem| VocabularyError::Line { line: i + 1, problem })?;
            }
        }
        vocabulary.check().map_err(VocabularyError::Whole)?;
        Ok(vocabulary)
    }

    /// Every leaf with its department, in file order.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = (&Department, &Leaf)> {
        self.departments.iter().flat_map(|department| department.leaves.iter().map(move |leaf| (department, leaf)))
    }

    /// Whether two modifiers never stand together.
    pub(crate) fn conflict(&self, a: &Modifier, b: &Modifier) -> bool {
        (a.after && b.after)
            || shares_word(&a.text, &b.text)
            || self.conflicts.iter().any(|conflict| conflict.contains(&a.text) && conflict.contains(&b.text))
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (kind, rest) = line.split_once(' ').ok_or("the line has one word only")?;
        let fields: Vec<&str> = rest.split('|').map(str::trim).collect();
        match (kind, fields.as_slice()) {
            ("department", [name, group, prices, sizes, titles]) => {
                self.departments.push(department(name, group, prices, sizes, titles)?);
            }
            ("leaf", [name, holds, numbers, related, nouns, sizes @ ..]) if sizes.len() <= 1 => {
                let department = self.departments.last_mut().ok_or("a leaf stands before the first department")?;
                let sizes = sizes.first().map_or_else(|| department.sizes.clone(), |sizes| list(sizes));
                department.leaves.push(Leaf { sizes, ..leaf(name, holds, numbers, related, nouns)? });
            }
            ("modifier", [text, popularity, scope, rest @ ..]) if rest.len() <= 1 => {
                self.modifiers.push(modifier(text, popularity, scope, rest.first().unwrap_or(&""))?);
            }
            ("conflict", [names]) => self.conflicts.push(list(names)),
            ("brands", [group, names]) => {
                let group = Group::read(group).ok_or_else(|| format!("`{group}` is no group"))?;
                self.brands.push((group, list(names)));
            }
            ("taste", [name, leaves]) => self.tastes.push(Taste { name: (*name).to_owned(), leaves: list(leaves) }),
            _ => {
                return Err(format!(
                    "`{kind}` with {} fields is no line of a vocabulary; its head lists the kinds",
                    fields.len()
                ));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let leaves: HashSet<&str> = self.leaves().map(|(_, leaf)| leaf.name.as_str()).collect();
        let departments: HashSet<&str> = self.departments.iter().map(|department| department.name.as_str()).collect();
        let known = |name: &String, of: &str| match leaves.contains(name.as_str()) {
            true => Ok(()),
            false => Err(format!("{of} names the leaf `{name}`, which is not there")),
        };
        let mut names = HashSet::new();
        for (department, leaf) in self.leaves() {
            leaf.related.iter().try_for_each(|name| known(name, &leaf.name))?;
            let own = [&department.name, &leaf.name].map(String::as_str);
            for text in leaf.nouns.iter().map(|noun| noun.text.as_str()).chain([leaf.name.as_str()]) {
                if !names.insert(text) || (departments.contains(text) && own[1] != text) {
                    return Err(format!("`{text}` of `{}` is there twice; every noun and leaf has one place", own[1]));
                }
            }
        }
        for taste in &self.tastes {
            taste.leaves.iter().try_for_each(|name| known(name, &taste.name))?;
        }
        let modifiers: HashSet<&str> = self.modifiers.iter().map(|modifier| modifier.text.as_str()).collect();
        if let Some(name) = self.conflicts.iter().flatten().find(|name| !modifiers.contains(name.as_str())) {
            return Err(format!("a conflict names the modifier `{name}`, which is not there"));
        }
        for modifier in &self.modifiers {
            for name in modifier.fits.iter().chain(&modifier.unfit) {
                if Group::read(name).is_none() && !departments.contains(name.as_str()) && !leaves.contains(name.as_str()) {
                    return Err(format!("modifier `{}` fits `{name}`, which is no group, department or leaf", modifier.text));
                }
            }
        }
        match Group::ALL
            .into_iter()
            .find(|(_, group)| !self.brands.iter().any(|(with, brands)| with == group && !brands.is_empty()))
        {
            Some((name, _)) => Err(format!("the group `{name}` has no brands")),
            None => Ok(()),
        }
    }
}

fn department(name: &str, group: &str, prices: &str, sizes: &str, titles: &str) -> Result<Department, String> {
    let (low, high) = prices.split_once('-').ok_or_else(|| format!("prices `{prices}` are not LOW-HIGH"))?;
    let cents = |text: &str| text.parse::<i64>().map_err(|_| format!("price `{text}` is not a number of cents"));
    let titles = list(titles);
    if let Some(title) = titles.iter().find(|title| title.matches('*').count() != 1) {
        return Err(format!("title `{title}` needs one `*` where the leaf goes"));
    }
    Ok(Department {
        name: name.to_owned(),
        group: Group::read(group).ok_or_else(|| format!("`{group}` is no group"))?,
        prices: (cents(low)?, cents(high)?),
        sizes: list(sizes),
        titles,
        leaves: Vec::new(),
    })
}

fn leaf(name: &str, holds: &str, numbers: &str, related: &str, nouns: &str) -> Result<Leaf, String> {
    let digits: Vec<f32> = numbers
        .chars()
        .filter(|c| *c != ' ')
        .map(|c| c.to_digit(10).map(|d| d as f32 / 9.0))
        .collect::<Option<_>>()
        .unwrap_or_default();
    let [popularity, seasons @ ..] = digits.as_slice() else {
        return Err(format!("`{numbers}` is not five digits"));
    };
    let seasons: [f32; 4] = seasons.try_into().map_err(|_| format!("`{numbers}` is not five digits"))?;
    let words: Vec<&str> = holds.split(' ').filter(|word| *word != "-" && *word != "adult").collect();
    let holds_all = words.iter().try_fold(Holdings::default(), |all, word| {
        Holdings::read(word).map(|one| all.with(one)).ok_or_else(|| format!("`{word}` is nothing that a leaf holds"))
    })?;
    let nouns = list(nouns);
    let popularity_of = |i: usize| 1.0 - 0.6 * i as f32 / nouns.len().max(2) as f32;
    Ok(Leaf {
        name: name.to_owned(),
        holds: holds_all,
        adult: holds.split(' ').any(|word| word == "adult"),
        popularity: *popularity,
        seasons,
        related: list(related),
        sizes: Vec::new(),
        nouns: nouns.iter().enumerate().map(|(i, text)| noun(text, holds_all, popularity_of(i))).collect::<Result<_, _>>()?,
    })
}

fn noun(text: &str, leaf: Holdings, popularity: f32) -> Result<Noun, String> {
    let (words, effects): (Vec<&str>, Vec<&str>) = text.split(' ').partition(|word| !word.starts_with(['+', '-']));
    let (adds, clears) = effects_of(&effects)?;
    Ok(Noun { text: words.join(" "), holds: leaf.without(clears).with(adds), popularity })
}

fn modifier(text: &str, popularity: &str, scope: &str, effects: &str) -> Result<Modifier, String> {
    let digit: u32 = popularity.parse().map_err(|_| format!("popularity `{popularity}` is no digit"))?;
    let (unfit, fits): (Vec<String>, Vec<String>) = list(scope).into_iter().partition(|name| name.starts_with('!'));
    let words: Vec<&str> = effects.split(' ').filter(|word| !word.is_empty()).collect();
    let (after, effects): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| *word == "after");
    let (adds, clears) = effects_of(&effects)?;
    Ok(Modifier {
        text: text.to_owned(),
        popularity: digit as f32 / 9.0,
        fits,
        unfit: unfit.iter().map(|name| name[1..].to_owned()).collect(),
        adds,
        clears,
        after: !after.is_empty(),
    })
}

/// What `+x` and `-x` words add and clear.
fn effects_of(words: &[&str]) -> Result<(Holdings, Holdings), String> {
    let mut effects = (Holdings::default(), Holdings::default());
    for word in words {
        let unknown = || format!("`{word}` is no effect; `+gluten` and `-dairy` are");
        let (sign, name) = word.split_at_checked(1).ok_or_else(unknown)?;
        let holds = Holdings::read(name).ok_or_else(unknown)?;
        match sign {
            "+" => effects.0 = effects.0.with(holds),
            "-" => effects.1 = effects.1.with(holds),
            _ => return Err(unknown()),
        }
    }
    Ok(effects)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use endcap_inference::prompts::plain;

    use super::*;

    #[test]
    fn the_embedded_vocabulary_is_whole() {
        let vocabulary = Vocabulary::parse(include_str!("vocabulary.txt")).unwrap();
        assert!(vocabulary.departments.len() >= 12);
        assert!(vocabulary.leaves().count() >= 100);
        assert!(vocabulary.modifiers.len() >= 80);
        assert!(vocabulary.brands.iter().map(|(_, brands)| brands.len()).sum::<usize>() >= 60);
        assert!(vocabulary.tastes.len() >= 24);
        for (_, leaf) in vocabulary.leaves() {
            assert!((9..=12).contains(&leaf.nouns.len()), "{}: {} nouns", leaf.name, leaf.nouns.len());
            assert!(leaf.related.len() >= 4 && !leaf.related.contains(&leaf.name), "{}", leaf.name);
            assert!(leaf.name.split(' ').count() <= 3, "{}", leaf.name);
        }
    }

    #[test]
    fn prompts_leave_every_word_as_it_is() {
        let vocabulary = Vocabulary::embedded();
        let nouns = vocabulary.leaves().flat_map(|(_, leaf)| leaf.nouns.iter().map(|noun| &noun.text).chain([&leaf.name]));
        let departments = vocabulary.departments.iter().map(|department| &department.name);
        let sizes = vocabulary.leaves().flat_map(|(_, leaf)| &leaf.sizes);
        for text in nouns.chain(departments).chain(sizes).chain(vocabulary.modifiers.iter().map(|modifier| &modifier.text)) {
            assert_eq!(&plain(text), text);
        }
    }

    #[test]
    fn diets_imply_each_other() {
        for (_, leaf) in Vocabulary::embedded().leaves() {
            for holds in leaf.nouns.iter().map(|noun| noun.holds).chain([leaf.holds]) {
                let violates = holds.violates();
                for (diet, implied) in [(Diet::Vegetarian, Diet::Vegan), (Diet::DairyFree, Diet::Vegan)] {
                    assert!(!violates.contains(diet) || violates.contains(implied), "{}: {diet:?}", leaf.name);
                }
            }
        }
    }

    #[test]
    fn modifiers_change_what_is_held() {
        let vocabulary = Vocabulary::embedded();
        let violates = |modifier: &str, noun: &str| {
            let modifier = vocabulary.modifiers.iter().find(|one| one.text == modifier).unwrap();
            let (department, leaf) = vocabulary.leaves().find(|(_, leaf)| leaf.nouns.iter().any(|one| one.text == noun)).unwrap();
            let noun = leaf.nouns.iter().find(|one| one.text == noun).unwrap();
            modifier.apply(department, leaf, &noun.text, noun.holds).map(|holds| holds.violates().words())
        };
        for (modifier, noun, expected) in [
            ("smoked", "gouda", Some("vegan and dairy free")),
            ("vegan", "gouda", Some("")),
            ("gluten free", "lager", Some("halal")),
            ("halal", "bratwurst", Some("vegetarian and vegan")),
            ("almond", "shortbread", Some("vegan and gluten free and dairy free and nut free")),
            ("smoked", "spaghetti", None),
            ("vegan", "gala apple", None),
            ("vanilla", "vanilla extract", None),
        ] {
            assert_eq!(violates(modifier, noun).as_deref(), expected, "{modifier} {noun}");
        }
    }

    #[test]
    fn a_broken_vocabulary_says_where() {
        let head = "department d | food | 1-2 | 1 kg | a * b\n";
        let brands = "\nbrands food | a\nbrands drink | b\nbrands alcohol | c\nbrands home | d\n";
        for (lines, message) in [
            ("leaf x | - | 1 0000 | | a", "vocabulary line 1: a leaf stands before the first department"),
            ("department d | toys | 1-2 | 1 kg | a *", "vocabulary line 1: `toys` is no group"),
            ("department d | food | 1-2 | 1 kg | a b", "vocabulary line 1: title `a b` needs one `*` where the leaf goes"),
            (&format!("{head}leaf x | soap | 1 0000 | | a"), "vocabulary line 2: `soap` is nothing that a leaf holds"),
            (&format!("{head}leaf x | - | 1 00 | | a"), "vocabulary line 2: `1 00` is not five digits"),
            (
                &format!("{head}leaf x | - | 1 0000 | | a +zinc"),
                "vocabulary line 2: `+zinc` is no effect; `+gluten` and `-dairy` are",
            ),
            (&format!("{head}leaf x | - | 1 0000 | y | a"), "vocabulary: x names the leaf `y`, which is not there"),
            (
                &format!("{head}leaf x | - | 1 0000 | | a, a{brands}"),
                "vocabulary: `a` of `x` is there twice; every noun and leaf has one place",
            ),
            (
                &format!("{head}modifier m | 1 | z{brands}"),
                "vocabulary: modifier `m` fits `z`, which is no group, department or leaf",
            ),
            ("aisle 3", "vocabulary line 1: `aisle` with 1 fields is no line of a vocabulary; its head lists the kinds"),
        ] {
            assert_eq!(Vocabulary::parse(lines).unwrap_err().to_string(), message);
        }
    }
}
