//! The rule-based merchandiser: teacher of the demo models, fallback of the stages, and the page of shoppers without history.
//!
//! It looks at what a theme prompt shows and at nothing else of the shopper: diets, season, budget, the order of the first
//! [`FAVOURITES_MAX`] favourites and the leaves of the first [`RECENT_MAX`] purchases. So a model can learn it.

use std::collections::{HashMap, HashSet};

use endcap_inference::prompts::{FAVOURITES_MAX, Nearby, RECENT_MAX, plain};
use endcap_schemas::{Brief, Budget, Category, ContextChanged, Origin, Term, Theme, UNCATEGORISED};

use crate::{
    keywords,
    wording::{Kind, Wording, main_diets, sentence_case},
};

/// Concepts of a theme.
const CONCEPTS: usize = 3;
/// Themes of a page whose anchors share a department.
const PER_DEPARTMENT_MAX: usize = 3;
/// A leaf is in season from this boost on.
const SEASON_BOOST_MIN: f32 = 0.3;
/// Shelves of each kind that a theme prompt names beyond those of the merchandiser's own page.
const NEARBY_SPARE: usize = 1;
/// What the places of a page are for; later places are staples.
const PLACES: [Place; 8] = [
    Place::Favourite(Kind::Staple),
    Place::Favourite(Kind::Recipe),
    Place::Season,
    Place::Favourite(Kind::Staple),
    Place::Discovery,
    Place::Favourite(Kind::Recipe),
    Place::Personal,
    Place::Favourite(Kind::Staple),
];

/// What a place of the page is for.
#[derive(Debug, Clone, Copy)]
enum Place {
    Favourite(Kind),
    Season,
    Discovery,
    /// Diet, else budget, else a staple.
    Personal,
}

/// What the merchandiser writes for a shopper.
#[derive(Debug, Clone, PartialEq)]
pub struct MerchandisedPage {
    /// The shopper in a few words.
    pub persona: String,
    /// Themes in page order.
    pub themes: Vec<Theme>,
}

/// The rule-based merchandiser of one market.
#[derive(Debug, Clone)]
pub struct Merchandiser {
    categories: Vec<Category>,
    /// Leaf → its plain name between spaces, to look for disliked words in.
    names: Vec<String>,
    leaves: HashMap<String, usize>,
    /// Leaves by popularity.
    popular: Vec<usize>,
    /// Leaf → its related leaves, closest first.
    related: Vec<Vec<usize>>,
    wording: Wording,
}

impl Merchandiser {
    /// A merchandiser for any market; of two categories with one name the first counts.
    pub fn new(mut categories: Vec<Category>) -> Self {
        categories.retain(|category| category.name != UNCATEGORISED);
        let mut leaves = HashMap::with_capacity(categories.len());
        for (i, category) in categories.iter().enumerate() {
            leaves.entry(plain(&category.name)).or_insert(i);
        }
        let find = |name: &String| leaves.get(&plain(name)).copied();
        let related = categories.iter().map(|category| category.related.iter().filter_map(find).collect()).collect();
        let names = categories.iter().map(|category| format!(" {} ", plain(&category.name))).collect();
        let mut popular: Vec<usize> = (0..categories.len()).collect();
        popular.sort_by(|a, b| categories[*b].popularity.total_cmp(&categories[*a].popularity));
        Self { categories, names, leaves, popular, related, wording: Wording::new() }
    }

    /// A page of `count` themes, or of fewer where the market has fewer leaves that the household may have. Titles are unique, and their
    /// anchors are. Origin: [`Origin::PageFallback`], or [`Origin::Cold`] for a shopper without history or consent.
    pub fn page(&self, context: &ContextChanged, count: usize) -> MerchandisedPage {
        let view = View::new(self, context);
        let mut picks = Picks::new(self);
        for i in 0..count {
            let Some((anchor, kind)) = view.pick(place(i), &picks) else { break };
            picks.take(anchor, kind);
        }
        let origin = if view.cold() { Origin::Cold } else { Origin::PageFallback };
        let themes = picks.anchors.iter().map(|(anchor, kind)| self.theme(*anchor, *kind, &view, origin)).collect();
        MerchandisedPage { persona: self.persona(&view), themes }
    }

    /// The `n`-th best theme (from 0) whose anchor and title none of `taken` has. Origin: [`Origin::ThemeFallback`], or [`Origin::Cold`] for a
    /// shopper without history or consent; whoever fills a floor with it says so in `origin`. `None` where no leaf is left.
    pub fn replacement(&self, context: &ContextChanged, taken: &[Theme], n: usize) -> Option<Theme> {
        let view = View::new(self, context);
        let mut picks = Picks::new(self);
        for theme in taken {
            if let Some(anchor) = theme.concepts.first().and_then(|concept| self.leaf(concept)) {
                picks.take(anchor, Kind::Staple);
            }
        }
        let titles: HashSet<String> = taken.iter().map(|theme| plain(&theme.title)).collect();
        let origin = if view.cold() { Origin::Cold } else { Origin::ThemeFallback };
        let mut left = n;
        while let Some((anchor, kind)) = view.pick(Place::Favourite(Kind::Staple), &picks) {
            picks.take(anchor, kind);
            let theme = self.theme(anchor, kind, &view, origin);
            if !titles.contains(&plain(&theme.title)) {
                if left == 0 {
                    return Some(theme);
                }
                left -= 1;
            }
        }
        None
    }

    /// What the taxonomy holds around a shopper, with [`NEARBY_SPARE`] shelves of each kind more than a page of `count` themes takes; nothing
    /// that the household may not have.
    pub fn nearby(&self, context: &ContextChanged, count: usize) -> Nearby {
        let view = View::new(self, context);
        let (mut picks, mut nearby) = (Picks::new(self), Nearby::default());
        let spare = [Place::Favourite(Kind::Staple), Place::Season, Place::Discovery].map(|place| [place; NEARBY_SPARE]);
        for place in (0..count).map(place).chain(spare.into_iter().flatten()) {
            let special = view.special(place, &picks);
            let Some((leaf, kind)) = special.or_else(|| view.pick(Place::Favourite(Kind::Staple), &picks)) else { break };
            picks.take(leaf, kind);
            let shelves = match place {
                Place::Season if special.is_some() => &mut nearby.in_season,
                Place::Discovery if special.is_some() => &mut nearby.unfamiliar,
                _ => &mut nearby.suited,
            };
            shelves.push(self.concepts(leaf, &view).into_iter().map(|leaf| self.categories[leaf].name.clone()).collect());
        }
        nearby
    }

    /// Indexes of the candidates that belong to the theme, best first: those of its concepts' leaves that suit the household, by concept and
    /// popularity, until they are no longer good enough (but `min` of them where there are so many, and at most `max`).
    pub fn choose_keywords(&self, brief: &Brief, theme: &Theme, candidates: &[Term], min: usize, max: usize) -> Vec<usize> {
        let known = theme.concepts.iter().any(|concept| self.leaf(concept).is_some());
        keywords::choose(brief, theme, candidates, known, min, max)
    }

    /// The leaves that themes are about: all that [`Merchandiser::new`] was given but the one of products that fit nowhere.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    fn leaf(&self, name: &str) -> Option<usize> {
        self.leaves.get(&plain(name)).copied()
    }

    fn theme(&self, anchor: usize, kind: Kind, view: &View<'_>, origin: Origin) -> Theme {
        let concepts = self.concepts(anchor, view);
        let names: Vec<&str> = concepts.iter().map(|leaf| self.categories[*leaf].name.as_str()).collect();
        let (category, brief) = (&self.categories[anchor], view.brief);
        let title = self.wording.title(category, &names[1..], kind, brief.season, brief.diets, brief.budget);
        Theme {
            title: sentence_case(&title),
            intent: self.wording.intent(category, kind, brief.budget).to_owned(),
            concepts: names.into_iter().map(str::to_owned).collect(),
            origin,
        }
    }

    /// The anchor and two leaves that go with it: its related ones, their related ones, its department, then anything.
    fn concepts(&self, anchor: usize, view: &View<'_>) -> Vec<usize> {
        let mut concepts = vec![anchor];
        let near = self.related[anchor].iter().copied();
        let further = self.related[anchor].iter().flat_map(|leaf| self.related[*leaf].iter().copied());
        let same = |leaf: &usize| self.categories[*leaf].department == self.categories[anchor].department;
        let popular = self.popular.iter().copied();
        let department = popular.clone().filter(same);
        for leaf in near.chain(further).chain(department).chain(popular) {
            if concepts.len() == CONCEPTS {
                break;
            }
            if view.allowed[leaf] && !concepts.contains(&leaf) {
                concepts.push(leaf);
            }
        }
        concepts
    }

    fn persona(&self, view: &View<'_>) -> String {
        let mut departments: Vec<&str> = Vec::new();
        for leaf in view.favourites.iter().filter(|leaf| view.allowed[**leaf]).take(3) {
            let department = self.categories[*leaf].department.as_str();
            if !departments.contains(&department) {
                departments.push(department);
            }
        }
        let brief = view.brief;
        sentence_case(&self.wording.persona(brief.diets, brief.budget, &departments, brief.season))
    }
}

/// Anchors taken so far.
struct Picks<'a> {
    merchandiser: &'a Merchandiser,
    anchors: Vec<(usize, Kind)>,
}

impl<'a> Picks<'a> {
    fn new(merchandiser: &'a Merchandiser) -> Self {
        Self { merchandiser, anchors: Vec::new() }
    }

    fn take(&mut self, anchor: usize, kind: Kind) {
        self.anchors.push((anchor, kind));
    }

    fn has(&self, leaf: usize) -> bool {
        self.anchors.iter().any(|(anchor, _)| *anchor == leaf)
    }

    /// Whether the leaf's department has had its share of the page.
    fn full(&self, leaf: usize) -> bool {
        let department = |leaf: usize| &self.merchandiser.categories[leaf].department;
        self.anchors.iter().filter(|(anchor, _)| department(*anchor) == department(leaf)).count() >= PER_DEPARTMENT_MAX
    }
}

/// A shopper as the theme prompt shows it, against one market's leaves.
struct View<'a> {
    merchandiser: &'a Merchandiser,
    brief: &'a Brief,
    /// Known favourites, heaviest first; empty without history or consent.
    favourites: Vec<usize>,
    /// Leaves of the latest purchases, newest first.
    recent: Vec<usize>,
    /// Per leaf: whether the household may have it.
    allowed: Vec<bool>,
    /// Per leaf: how much it suits the household.
    affinity: Vec<f32>,
}

impl<'a> View<'a> {
    fn new(merchandiser: &'a Merchandiser, context: &'a ContextChanged) -> Self {
        let brief = &context.brief;
        let (favourites, recent) = match brief.personalise {
            true => (context.favourites.as_slice(), context.recent.as_slice()),
            false => (&[][..], &[][..]),
        };
        let favourites: Vec<usize> =
            favourites.iter().take(FAVOURITES_MAX).filter_map(|f| merchandiser.leaf(&f.category)).collect();
        let recent: Vec<usize> = recent.iter().take(RECENT_MAX).filter_map(|p| merchandiser.leaf(&p.category)).collect();
        let categories = &merchandiser.categories;
        let dislikes: Vec<String> =
            brief.dislikes.iter().map(|word| format!(" {} ", plain(word))).filter(|word| word.len() > 2).collect();
        let pairs = categories.iter().zip(&merchandiser.names);
        let allowed = pairs.map(|(category, name)| allowed(category, name, brief, &dislikes)).collect();
        let mut view = Self { merchandiser, brief, favourites, recent, allowed, affinity: Vec::new() };
        view.affinity = view.affinities();
        view
    }

    /// Without anything to go by.
    fn cold(&self) -> bool {
        self.favourites.is_empty() && self.recent.is_empty()
    }

    fn boost(&self, leaf: usize) -> f32 {
        self.merchandiser.categories[leaf].seasons[self.brief.season as usize]
    }

    /// Favourites by their place, then recent purchases, then what goes with favourites, then season and popularity.
    fn affinities(&self) -> Vec<f32> {
        let categories = &self.merchandiser.categories;
        let mut close = vec![0.0_f32; categories.len()];
        for (i, favourite) in self.favourites.iter().enumerate() {
            for (k, leaf) in self.merchandiser.related[*favourite].iter().enumerate() {
                close[*leaf] = close[*leaf].max(0.8 - 0.04 * i as f32 - 0.08 * k as f32);
            }
        }
        let mut affinity: Vec<f32> =
            (0..categories.len()).map(|leaf| close[leaf] + 0.3 * self.boost(leaf) + 0.2 * categories[leaf].popularity).collect();
        for (j, leaf) in self.recent.iter().enumerate().rev() {
            affinity[*leaf] = 1.9 - 0.05 * j as f32;
        }
        for (i, leaf) in self.favourites.iter().enumerate().rev() {
            affinity[*leaf] = 3.0 - 0.1 * i as f32;
        }
        affinity
    }

    /// The best leaf for a place. A full department is taken again only where nothing else is left.
    fn pick(&self, place: Place, picks: &Picks<'_>) -> Option<(usize, Kind)> {
        let free = |leaf: &usize| self.allowed[*leaf] && !picks.has(*leaf);
        let open = |leaf: &usize| free(leaf) && !picks.full(*leaf);
        let any = || {
            let all = 0..self.merchandiser.categories.len();
            best(all.clone().filter(open), &self.affinity).or_else(|| best(all.filter(free), &self.affinity))
        };
        self.special(place, picks).or_else(|| any().map(|leaf| (leaf, self.kind(leaf, place))))
    }

    /// The leaf that the place is for by itself, where there is one.
    fn special(&self, place: Place, picks: &Picks<'_>) -> Option<(usize, Kind)> {
        let open = |leaf: &usize| self.allowed[*leaf] && !picks.has(*leaf) && !picks.full(*leaf);
        match place {
            Place::Season => self.in_season(open).map(|leaf| (leaf, Kind::Season)),
            Place::Discovery if !self.cold() => self.beside_recent(open).map(|leaf| (leaf, Kind::Discovery)),
            _ => None,
        }
    }

    /// What is in season, favourites first and then what goes with them.
    fn in_season(&self, open: impl Fn(&usize) -> bool) -> Option<usize> {
        let score = |leaf: usize| {
            let closeness = match self.affinity[leaf] {
                _ if self.favourites.contains(&leaf) => 0.5,
                _ if self.favourites.iter().any(|favourite| self.merchandiser.related[*favourite].contains(&leaf)) => 0.25,
                _ => 0.0,
            };
            self.boost(leaf) + closeness + 0.05 * self.merchandiser.categories[leaf].popularity
        };
        let all = 0..self.merchandiser.categories.len();
        let scores: Vec<f32> = all.clone().map(score).collect();
        best(all.filter(|leaf| self.boost(*leaf) >= SEASON_BOOST_MIN).filter(open), &scores)
    }

    /// The first leaf that goes with the latest purchases and is no favourite yet.
    fn beside_recent(&self, open: impl Fn(&usize) -> bool) -> Option<usize> {
        let beside = self.recent.iter().flat_map(|leaf| self.merchandiser.related[*leaf].iter().copied());
        beside.filter(|leaf| !self.favourites.contains(leaf)).find(open)
    }

    /// How a theme on `leaf` is told.
    fn kind(&self, leaf: usize, place: Place) -> Kind {
        let edible = self.merchandiser.wording.edible(&self.merchandiser.categories[leaf]);
        match place {
            _ if self.cold() => {
                if self.boost(leaf) >= SEASON_BOOST_MIN {
                    Kind::Season
                } else {
                    Kind::Staple
                }
            }
            Place::Personal if edible && !main_diets(self.brief.diets).is_empty() => Kind::Diet,
            Place::Personal if self.brief.budget != Budget::Middle => Kind::Budget,
            _ if !self.favourites.contains(&leaf) && !self.recent.contains(&leaf) => Kind::Discovery,
            Place::Favourite(kind) => kind,
            _ => Kind::Staple,
        }
    }
}

/// Whether the household may have the leaf; `name` and `dislikes` stand between spaces.
fn allowed(category: &Category, name: &str, brief: &Brief, dislikes: &[String]) -> bool {
    !category.violates.intersects(brief.diets)
        && !category.age_restricted
        && !dislikes.iter().any(|word| name.contains(word.as_str()))
}

/// What the `i`-th place of a page is for.
fn place(i: usize) -> Place {
    PLACES.get(i).copied().unwrap_or(Place::Favourite(Kind::Staple))
}

/// The leaf with the highest score; the first of equals.
fn best(leaves: impl Iterator<Item = usize>, scores: &[f32]) -> Option<usize> {
    leaves.fold(None, |best, leaf| match best {
        Some(other) if scores[other] >= scores[leaf] => Some(other),
        _ => Some(leaf),
    })
}
