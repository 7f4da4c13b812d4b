//! Pages by the merchandiser alone: that of whoever has none, by season and popularity, and those of shoppers whom an experiment makes up.

use endcap_inference::prompts::plain;
use endcap_market::Merchandiser;
use endcap_retrieval::{Filter, MarketError, Snapshot};
use endcap_schemas::{
    Brief, Budget, Cause, ContextChanged, Descriptor, DietSet, Head, Keyword, Page, Placement, Season, ShownProduct, Theme,
    UserKey, Versions,
};

use crate::{RankingConfig, RankingError};

/// Products looked up for each placement of the default page: whoever keeps diets still finds enough among them.
const PRODUCTS: usize = 60;

/// The merchandiser's page for `context`, with at most so many placements and products of each. What its diets forbid is left out, and its
/// products stand on the shelves that its themes are about: so they are relevant as a matter of fact.
///
/// # Errors
/// When the catalogue cannot be read.
pub fn merchandised(
    market: &Snapshot,
    merchandiser: &Merchandiser,
    context: &ContextChanged,
    (placements, products): (usize, usize),
) -> Result<Page, MarketError> {
    let made = merchandiser.page(context, placements);
    let filter = Filter::of_page(context.brief.diets, &context.brief.dislikes);
    let placement = |theme| placement(market, theme, &filter, products);
    let placements = made.themes.into_iter().map(placement).collect::<Result<_, _>>()?;
    Ok(Page { persona: made.persona, diets: context.brief.diets, placements, versions: Versions::new() })
}

fn placement(market: &Snapshot, theme: Theme, filter: &Filter, most: usize) -> Result<Placement, MarketError> {
    let shelves: Vec<String> = theme.concepts.iter().map(|concept| plain(concept)).collect();
    let (mut products, mut keywords) = (Vec::new(), Vec::new());
    for shelf in &shelves {
        let found = market.popular(shelf, filter, most.div_ceil(shelves.len().max(1)))?;
        products.extend(found.into_iter().map(|product| ShownProduct { product: product.id, score: 1.0 }));
        if let Some((id, term)) = market.node_term(shelf)? {
            keywords.push(Keyword { id, text: term.text, descriptor: Descriptor::Node });
        }
    }
    products.truncate(most);
    let retrieved = i32::try_from(products.len()).unwrap_or(i32::MAX);
    Ok(Placement { theme, keywords, products, retrieved })
}

/// The default page of a market at `now_ms`.
///
/// # Errors
/// When the catalogue cannot be read.
pub(crate) fn page(market: &Snapshot, config: &RankingConfig, now_ms: i64) -> Result<Page, RankingError> {
    let merchandiser = Merchandiser::new(market.categories().to_vec());
    let size = (config.default_placements, PRODUCTS);
    let mut page = merchandised(market, &merchandiser, &nobody(now_ms), size).map_err(RankingError::market)?;
    page.persona.clear(); // it is nobody's
    page.placements.retain(|placement| placement.products.len() >= config.products_min);
    Ok(page)
}

/// A shopper of whom nothing is known.
fn nobody(now_ms: i64) -> ContextChanged {
    ContextChanged {
        head: Head {
            user: UserKey::of("nobody"),
            context_ms: now_ms,
            generation: 0,
            cause: Cause { event_id: String::new(), event_ms: now_ms, accepted_ms: now_ms },
            expires_ms: now_ms,
        },
        brief: Brief {
            diets: DietSet::NONE,
            budget: Budget::Middle,
            locale: "en".to_owned(),
            season: Season::at(now_ms),
            dislikes: Vec::new(),
            personalise: false,
        },
        favourites: Vec::new(),
        recent: Vec::new(),
    }
}
