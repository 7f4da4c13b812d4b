//! A taxonomy out of the category paths that catalogues bring.

use std::collections::{BTreeMap, HashMap, HashSet};

use endcap_schemas::{Category, Diet, DietSet, UNCATEGORISED};

use crate::words::words;

/// A leaf with fewer products is merged into its parent.
const PRODUCTS_MIN: usize = 4;
/// Share of a leaf's products that must violate a diet for the leaf to violate it.
const VIOLATING_SHARE: f64 = 0.9;
/// Most related categories.
const RELATED_MAX: usize = 8;

/// What the taxonomy needs to know of a product.
#[derive(Debug)]
pub(crate) struct Item {
    /// Path as it came, lower case, department first; empty where unknown.
    pub(crate) path: Vec<String>,
    /// Words of the name.
    pub(crate) words: Vec<String>,
    /// Diets that it violates.
    pub(crate) violates: DietSet,
    /// Whether it is for adults only.
    pub(crate) adult: bool,
}

/// The taxonomy, and where each item went.
#[derive(Debug)]
pub(crate) struct Taxonomy {
    /// Derived categories by name; given ones are not among them.
    pub(crate) categories: Vec<Category>,
    /// Per item its path from department to leaf; the last part is the category's name.
    pub(crate) paths: Vec<Vec<String>>,
}

/// Derives the taxonomy of `items`. Leaves named in `given` (with their departments) stay as they are.
pub(crate) fn derive(items: &[Item], given: &HashMap<String, String>, bought_together: &[Vec<usize>]) -> Taxonomy {
    let mut paths = merge_small(items, given);
    let leaves = name_leaves(&mut paths, given);
    let matcher = Matcher::new(leaves.keys().map(String::as_str));
    for (item, path) in items.iter().zip(&mut paths) {
        if path.is_empty() {
            let found = matcher.anywhere(&item.words).and_then(|leaf| leaves.get(leaf)).cloned();
            *path = found.unwrap_or_else(|| vec![UNCATEGORISED.to_owned()]);
        }
    }
    let categories = describe(items, &paths, given, bought_together);
    Taxonomy { categories, paths }
}

/// Cuts paths to leaves that have enough products.
fn merge_small(items: &[Item], given: &HashMap<String, String>) -> Vec<Vec<String>> {
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for item in items {
        *counts.entry(&item.path[..]).or_default() += 1;
    }
    // A leaf's size is that of its name: two catalogues may have it in different places.
    let mut sizes: HashMap<String, usize> = HashMap::new();
    for (path, count) in &counts {
        if let Some(leaf) = path.last() {
            *sizes.entry(name_key(leaf)).or_default() += count;
        }
    }
    // Deepest paths first, so that what is merged into a parent counts for the parent.
    let deepest = counts.keys().map(|path| path.len()).max().unwrap_or(0);
    let mut cut: HashMap<&[String], &[String]> = HashMap::new();
    for depth in (2..=deepest).rev() {
        let of_depth = counts.keys().filter(|path| path.len() == depth && !given.contains_key(&path[depth - 1]));
        let small: Vec<&[String]> = of_depth.filter(|path| sizes[&name_key(&path[depth - 1])] < PRODUCTS_MIN).copied().collect();
        for path in small {
            let parent = &path[..depth - 1];
            let count = counts.remove(path).unwrap_or(0);
            *counts.entry(parent).or_default() += count;
            *sizes.entry(name_key(&parent[depth - 2])).or_default() += count;
            cut.insert(path, parent);
        }
    }
    let resolve = |item: &Item| {
        let mut path = &item.path[..];
        while let Some(parent) = cut.get(path) {
            path = parent;
        }
        path.to_vec()
    };
    items.iter().map(resolve).collect()
}

/// Gives leaves that differ only in spelling one name, and each name one path: the one with most products. Returns name → path.
fn name_leaves(paths: &mut [Vec<String>], given: &HashMap<String, String>) -> HashMap<String, Vec<String>> {
    let mut spellings: HashMap<String, BTreeMap<&[String], usize>> = HashMap::new();
    for path in paths.iter() {
        if let Some(leaf) = path.last().filter(|leaf| !given.contains_key(*leaf)) {
            *spellings.entry(name_key(leaf)).or_default().entry(&path[..]).or_default() += 1;
        }
    }
    let mut chosen: HashMap<String, Vec<String>> = HashMap::new();
    for (key, found) in &spellings {
        let (path, _) = found.iter().max_by(|(a, n), (b, m)| n.cmp(m).then_with(|| b.cmp(a))).expect("a key has a path");
        chosen.insert(key.clone(), path.to_vec());
    }
    // A leaf that is spelled as a given one is that one.
    for (name, department) in given {
        chosen.insert(name_key(name), vec![department.clone(), name.clone()]);
    }
    for path in paths.iter_mut() {
        if let Some(leaf) = path.last().filter(|leaf| !given.contains_key(*leaf)) {
            path.clone_from(&chosen[&name_key(leaf)]);
        }
    }
    chosen.into_values().map(|path| (path.last().cloned().unwrap_or_default(), path)).collect()
}

fn name_key(leaf: &str) -> String {
    let key = words(leaf).join(" ");
    if key.is_empty() { leaf.to_owned() } else { key }
}

fn describe(
    items: &[Item],
    paths: &[Vec<String>],
    given: &HashMap<String, String>,
    bought_together: &[Vec<usize>],
) -> Vec<Category> {
    let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, path) in paths.iter().enumerate() {
        members.entry(path.last().map_or(UNCATEGORISED, String::as_str)).or_default().push(at);
    }
    let largest = members.values().map(Vec::len).max().unwrap_or(1) as f32;
    let together = co_purchases(paths, bought_together);
    let mut siblings: HashMap<&[String], Vec<(&str, usize)>> = HashMap::new();
    for (name, at) in &members {
        let path = &paths[at[0]];
        siblings.entry(&path[..path.len() - 1]).or_default().push((name, at.len()));
    }
    let derived = members.iter().filter(|(name, _)| !given.contains_key(**name));
    derived
        .map(|(name, at)| {
            let path = &paths[at[0]];
            let share =
                |holds: &dyn Fn(&Item) -> bool| at.iter().filter(|at| holds(&items[**at])).count() as f64 / at.len() as f64;
            let violates = Diet::ALL.into_iter().filter(|diet| share(&|item| item.violates.contains(*diet)) >= VIOLATING_SHARE);
            let mut related: Vec<String> = together.get(*name).cloned().unwrap_or_default();
            // Departments have nothing in common but that they are departments.
            if path.len() > 1 {
                related.extend(largest_siblings(&siblings[&path[..path.len() - 1]], name));
            }
            let mut seen = HashSet::from([(*name).to_owned()]);
            related.retain(|other| seen.insert(other.clone()));
            related.truncate(RELATED_MAX);
            Category {
                name: (*name).to_owned(),
                department: path[0].clone(),
                violates: violates.collect(),
                age_restricted: share(&|item| item.adult) >= VIOLATING_SHARE,
                seasons: [0.0; 4],
                related,
                popularity: if *name == UNCATEGORISED { 0.0 } else { (1.0 + at.len() as f32).ln() / (1.0 + largest).ln() },
            }
        })
        .collect()
}

/// Siblings, the largest first.
fn largest_siblings(siblings: &[(&str, usize)], name: &str) -> Vec<String> {
    let mut others: Vec<_> = siblings.iter().filter(|(other, _)| *other != name).collect();
    others.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    others.into_iter().take(RELATED_MAX).map(|(other, _)| (*other).to_owned()).collect()
}

/// Per category those that the same shoppers buy more often than chance, best first.
fn co_purchases(paths: &[Vec<String>], bought_together: &[Vec<usize>]) -> HashMap<String, Vec<String>> {
    const PAIRS_MIN: u32 = 8;
    let mut single: HashMap<&str, u32> = HashMap::new();
    let mut pairs: HashMap<(&str, &str), u32> = HashMap::new();
    for group in bought_together {
        let mut leaves: Vec<&str> = group.iter().filter_map(|at| paths[*at].last()).map(String::as_str).collect();
        leaves.sort_unstable();
        leaves.dedup();
        for (at, a) in leaves.iter().enumerate() {
            *single.entry(a).or_default() += 1;
            for b in &leaves[at + 1..] {
                *pairs.entry((a, b)).or_default() += 1;
            }
        }
    }
    let mut scored: HashMap<String, Vec<(f64, String)>> = HashMap::new();
    for ((a, b), both) in pairs.into_iter().filter(|(_, both)| *both >= PAIRS_MIN) {
        // Pearson's residual: how far above chance the pair is, in deviations of chance. What everybody buys goes with nothing.
        let chance = f64::from(single[a]) * f64::from(single[b]) / bought_together.len() as f64;
        let score = (f64::from(both) - chance) / chance.sqrt();
        if score <= 0.0 {
            continue;
        }
        scored.entry(a.to_owned()).or_default().push((score, b.to_owned()));
        scored.entry(b.to_owned()).or_default().push((score, a.to_owned()));
    }
    let best = |mut others: Vec<(f64, String)>| {
        others.sort_by(|(s, a), (t, b)| t.total_cmp(s).then_with(|| a.cmp(b)));
        others.into_iter().take(RELATED_MAX / 2).map(|(_, other)| other).collect()
    };
    scored.into_iter().map(|(name, others)| (name, best(others))).collect()
}

/// Finds leaves by their words.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// Leaf names by their words.
    leaves: HashMap<Vec<String>, String>,
    longest: usize,
}

impl Matcher {
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut leaves: HashMap<Vec<String>, String> = HashMap::new();
        for name in names.filter(|name| *name != UNCATEGORISED) {
            let key = words(name);
            // Of two names with the same words the first in the alphabet: the order of a hash map must not decide.
            let keep = leaves.get(&key).is_none_or(|other| name < other.as_str());
            if !key.is_empty() && keep {
                leaves.insert(key, name.to_owned());
            }
        }
        let longest = leaves.keys().map(Vec::len).max().unwrap_or(0);
        Self { leaves, longest }
    }

    /// The leaf whose words end `text`, the longest such leaf.
    pub(crate) fn at_end(&self, text: &[String]) -> Option<&str> {
        (1..=self.longest.min(text.len()))
            .rev()
            .find_map(|length| self.leaves.get(&text[text.len() - length..]))
            .map(String::as_str)
    }

    /// As [`Matcher::at_end`], else the longest leaf of two or more words that stands anywhere, else the last of one word.
    pub(crate) fn anywhere(&self, text: &[String]) -> Option<&str> {
        let runs = |length: usize| text.windows(length).rev().find_map(|run| self.leaves.get(run)).map(String::as_str);
        self.at_end(text).or_else(|| (1..=self.longest.min(text.len())).rev().find_map(runs))
    }

    /// As [`Matcher::at_end`], else the longest leaf of two or more words that stands anywhere: for terms, where doubt means no leaf.
    pub(crate) fn clear(&self, text: &[String]) -> Option<&str> {
        let runs = |length: usize| text.windows(length).rev().find_map(|run| self.leaves.get(run)).map(String::as_str);
        self.at_end(text).or_else(|| (2..=self.longest.min(text.len())).rev().find_map(runs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, name: &str) -> Item {
        let path = path.split('>').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Item { path, words: words(name), violates: DietSet::NONE, adult: false }
    }

    fn leaves(items: &[Item]) -> Vec<String> {
        derive(items, &HashMap::new(), &[]).paths.iter().map(|path| path.join(" > ")).collect()
    }

    #[test]
    fn small_leaves_go_to_their_parent_and_count_there() {
        let mut items: Vec<Item> = (0..3).map(|_| item("dairy > cheeses > goudas", "gouda")).collect();
        items.push(item("dairy > cheeses", "cheese"));
        items.push(item("dairy > cheeses > rare > rarer", "x"));
        assert_eq!(leaves(&items), vec!["dairy > cheeses"; 5]);
    }

    #[test]
    fn one_name_is_one_category_whatever_its_spelling() {
        let mut items: Vec<Item> = (0..5).map(|_| item("dairy > yogurts", "yogurt")).collect();
        items.extend((0..4).map(|_| item("grocery > yogurt", "yogurt")));
        assert_eq!(leaves(&items), vec!["dairy > yogurts"; 9]);
    }

    #[test]
    fn what_everybody_buys_goes_with_nothing() {
        let names = ["buns", "ketchup", "milk", "soap"];
        let mut items: Vec<Item> = Vec::new();
        names.iter().for_each(|name| items.extend((0..4).map(|_| item(&format!("shop > {name}"), name))));
        let at = |name: &str| names.iter().position(|other| *other == name).unwrap() * 4;
        // 20 shoppers, all with milk; buns and ketchup mostly together, soap with neither more than chance has it.
        let groups: Vec<Vec<usize>> = (0..20)
            .map(|n| {
                let mut group = vec![at("milk")];
                group.extend((n < 10).then_some(at("buns")));
                group.extend((n < 9 || n == 19).then_some(at("ketchup")));
                group.extend((n % 2 == 0).then_some(at("soap")));
                group
            })
            .collect();
        let paths: Vec<Vec<String>> = items.iter().map(|item| item.path.clone()).collect();
        let together = co_purchases(&paths, &groups);
        assert_eq!(together.get("buns"), Some(&vec!["ketchup".to_owned()]));
        assert_eq!(together.get("ketchup"), Some(&vec!["buns".to_owned()]));
        assert!(!together.contains_key("milk") && !together.contains_key("soap"), "{together:?}");
    }

    #[test]
    fn products_without_category_get_one_by_their_words() {
        let mut items: Vec<Item> = (0..4).map(|_| item("snacks > potato crisps", "x")).collect();
        items.push(item("", "salted potato crisps 40 g"));
        items.push(item("", "quux"));
        assert_eq!(leaves(&items)[4..], ["snacks > potato crisps", "uncategorised"]);
    }
}
