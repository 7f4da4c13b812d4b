//! From what the model wrote to a page's themes: parse, guard, fall back. Pure.

use endcap_inference::prompts::ThemesDocument;
use endcap_market::{Merchandiser, sentence_case};
use endcap_schemas::{ContextChanged, Origin, RejectedTheme, Theme};

use crate::{Guard, Reason};

/// Replacements of the merchandiser that are tried for one theme.
const TRIES_MAX: usize = 32;

/// Where a page's themes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The model's document.
    Model(String),
    /// The merchandiser, because the shopper has no history or does not consent.
    Cold,
    /// The merchandiser, because the model has no answer; why.
    Failed(String),
}

/// A page's themes.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The shopper in a few words.
    pub persona: String,
    /// Themes in page order.
    pub themes: Vec<Theme>,
    /// What the guardrails turned away.
    pub rejected: Vec<(String, Reason)>,
    /// Why the whole page is the merchandiser's, where it is.
    pub failed: Option<String>,
}

impl Decision {
    /// What the guardrails turned away, as it travels.
    pub fn rejected_themes(&self) -> Vec<RejectedTheme> {
        let travels =
            |(title, reason): &(String, Reason)| RejectedTheme { title: title.clone(), reason: reason.label().to_owned() };
        self.rejected.iter().map(travels).collect()
    }
}

/// Decides the `count` themes of a shopper's page.
pub fn decide(context: &ContextChanged, source: &Source, count: usize, guard: &Guard, merchandiser: &Merchandiser) -> Decision {
    let (persona, written, failed) = match source {
        Source::Model(json) => match parse(json) {
            Ok((persona, themes)) => (persona, themes, None),
            Err(reason) => (String::new(), Vec::new(), Some(reason)),
        },
        Source::Cold => (String::new(), Vec::new(), None),
        Source::Failed(reason) => (String::new(), Vec::new(), Some(reason.clone())),
    };
    let usable = !written.is_empty();
    let (persona, themes) = if usable && guard.persona(&persona) {
        (persona, written)
    } else {
        let page = merchandiser.page(context, count);
        (page.persona, if usable { written } else { page.themes })
    };
    let (places, rejected) = turn_away(themes, context, count, guard);
    Decision { persona, themes: fill(places, context, usable, guard, merchandiser), rejected, failed }
}

/// Reads the model's document; every text is trimmed and titles begin with a capital.
///
/// # Errors
/// Why it cannot be used.
pub fn parse(json: &str) -> Result<(String, Vec<Theme>), String> {
    let document: ThemesDocument = serde_json::from_str(json).map_err(|error| format!("document is unreadable: {error}"))?;
    if document.themes.is_empty() {
        return Err("document has no themes".to_owned());
    }
    let theme = |theme: endcap_inference::prompts::ThemeDocument| Theme {
        title: sentence_case(theme.title.trim()),
        intent: theme.intent.trim().to_owned(),
        concepts: theme.concepts.iter().map(|concept| concept.trim().to_lowercase()).collect(),
        origin: Origin::Model,
    };
    Ok((document.persona.trim().to_owned(), document.themes.into_iter().map(theme).collect()))
}

/// The page's places, empty where a theme was turned away or none was written.
fn turn_away(
    themes: Vec<Theme>,
    context: &ContextChanged,
    count: usize,
    guard: &Guard,
) -> (Vec<Option<Theme>>, Vec<(String, Reason)>) {
    let mut places: Vec<Option<Theme>> = Vec::with_capacity(count);
    let mut rejected = Vec::new();
    for theme in themes.into_iter().take(count) {
        let above: Vec<&Theme> = places.iter().flatten().collect();
        match guard.theme(&theme, &context.brief).and_then(|()| guard.variety(&theme, &above)) {
            Ok(()) => places.push(Some(theme)),
            Err(reason) => {
                rejected.push((theme.title, reason));
                places.push(None);
            }
        }
    }
    places.resize(count, None);
    (places, rejected)
}

/// Fills empty places with the merchandiser's themes, checked in the same way; a place that nothing fits goes.
fn fill(
    places: Vec<Option<Theme>>,
    context: &ContextChanged,
    from_model: bool,
    guard: &Guard,
    merchandiser: &Merchandiser,
) -> Vec<Theme> {
    let mut themes: Vec<Theme> = places.iter().flatten().cloned().collect();
    // Whoever wrote the page's other themes decides what a replacement is called; a merchandised page stays of one origin.
    let origin = if from_model { Some(Origin::ThemeFallback) } else { themes.first().map(|theme| theme.origin) };
    let mut filled = Vec::with_capacity(places.len());
    for place in places {
        let theme = place.or_else(|| {
            let mut theme = replacement(context, &themes, guard, merchandiser)?;
            theme.origin = origin.unwrap_or(theme.origin);
            themes.push(theme.clone());
            Some(theme)
        });
        filled.extend(theme);
    }
    filled
}

fn replacement(context: &ContextChanged, taken: &[Theme], guard: &Guard, merchandiser: &Merchandiser) -> Option<Theme> {
    let page: Vec<&Theme> = taken.iter().collect();
    (0..TRIES_MAX)
        .map_while(|n| merchandiser.replacement(context, taken, n))
        .find(|theme| guard.theme(theme, &context.brief).and_then(|()| guard.variety(theme, &page)).is_ok())
}
