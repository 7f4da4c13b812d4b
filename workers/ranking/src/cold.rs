//! The page of whoever has none: what the merchandiser puts up for everybody, by season and popularity.

use endcap_inference::prompts::plain;
use endcap_market::Merchandiser;
use endcap_retrieval::{Filter, Snapshot};
use endcap_schemas::{
    Brief, Budget, Cause, ContextChanged, Descriptor, DietSet, Head, Keyword, Page, Placement, Season, ShownProduct, UserKey,
    Versions,
};

use crate::{RankingConfig, RankingError};

/// Products looked up for each placement: whoever keeps diets still finds enough among them.
const PRODUCTS: usize = 60;

/// The default page of a market at `now_ms`. Its products stand on the shelves that its themes are about, so they are relevant as a matter of fact.
///
/// # Errors
/// When the catalogue cannot be read.
pub(crate) fn page(market: &Snapshot, config: &RankingConfig, now_ms: i64) -> Result<Page, RankingError> {
    let merchandiser = Merchandiser::new(market.categories().to_vec());
    let made = merchandiser.page(&nobody(now_ms), config.default_placements);
    let filter = Filter::of_page(DietSet::NONE, &[]);
    let mut placements = Vec::with_capacity(made.themes.len());
    for theme in made.themes {
        let shelves: Vec<String> = theme.concepts.iter().map(|concept| plain(concept)).collect();
        let (mut products, mut keywords) = (Vec::new(), Vec::new());
        for shelf in &shelves {
            let found = market.popular(shelf, &filter, PRODUCTS / shelves.len().max(1)).map_err(RankingError::market)?;
            products.extend(found.into_iter().map(|product| ShownProduct { product: product.id, score: 1.0 }));
            if let Some((id, term)) = market.node_term(shelf).map_err(RankingError::market)? {
                keywords.push(Keyword { id, text: term.text, descriptor: Descriptor::Node });
            }
        }
        if products.len() >= config.products_min {
            let retrieved = i32::try_from(products.len()).unwrap_or(i32::MAX);
            placements.push(Placement { theme, keywords, products, retrieved });
        }
    }
    Ok(Page { persona: String::new(), diets: DietSet::NONE, placements, versions: Versions::new() })
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
