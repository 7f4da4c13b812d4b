//! From keywords to products: retrieval under the household's policy, each question asked of the catalogue once per batch.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use endcap_retrieval::{Banned, Filter, MarketError, Snapshot};
use endcap_schemas::{Brief, Descriptor, Draft, Keyword, Product, Theme};

use crate::{AiqaConfig, Slate};

/// The catalogue as one batch sees it.
pub(crate) struct Shelf<'a> {
    snapshot: &'a Snapshot,
    config: &'a AiqaConfig,
    banned: Banned,
    known: HashMap<Question, Arc<Shelved>>,
}

/// What a keyword is looked up by: itself, the household's diets and its dislikes.
type Question = (Keyword, u8, Vec<String>);
/// Products by keyword.
type Lists = Vec<Vec<Arc<Product>>>;

/// What a keyword retrieves for a household.
struct Shelved {
    products: Vec<Arc<Product>>,
    banned: usize,
}

impl<'a> Shelf<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, config: &'a AiqaConfig) -> Self {
        Self { snapshot, config, banned: Banned::new(&config.banned), known: HashMap::new() }
    }

    /// The slate of a draft, not judged yet.
    pub(crate) fn slate(&mut self, draft: &Draft, brief: &Brief) -> Result<Slate, MarketError> {
        let (found, banned) = self.lists(&draft.keywords, brief)?;
        Ok(Slate::new(draft.theme.clone(), draft.keywords.clone(), &found, banned, self.config))
    }

    /// The slate of a theme whose keywords are the taxonomy's nodes of its concepts.
    pub(crate) fn node_slate(&mut self, theme: Theme, brief: &Brief) -> Result<Slate, MarketError> {
        let keywords = self.nodes(&theme)?;
        self.slate(&Draft { theme, keywords }, brief)
    }

    /// Corrects the slate's keywords once, then adds what the ones that stay and the concepts' categories hold.
    pub(crate) fn mend(&mut self, slate: &mut Slate, brief: &Brief) -> Result<(), MarketError> {
        let (found, _) = self.lists(&slate.keywords, brief)?;
        let mut more = slate.correct(found, self.config);
        let nodes = self.nodes(&slate.theme)?;
        let (beside, banned) = self.lists(&nodes, brief)?;
        more.extend(beside);
        slate.banned += banned;
        slate.widen(&more, self.config);
        Ok(())
    }

    /// The theme's concepts as nodes of the taxonomy: those that name a category or department.
    fn nodes(&self, theme: &Theme) -> Result<Vec<Keyword>, MarketError> {
        let mut nodes = Vec::with_capacity(theme.concepts.len());
        for concept in &theme.concepts {
            let name = concept.trim().to_lowercase();
            if let Some((id, term)) = self.snapshot.node_term(&name)? {
                nodes.push(Keyword { id, text: term.text, descriptor: Descriptor::Node });
            }
        }
        Ok(nodes)
    }

    fn lists(&mut self, keywords: &[Keyword], brief: &Brief) -> Result<(Lists, usize), MarketError> {
        let mut lists = Vec::with_capacity(keywords.len());
        let mut banned = 0;
        for keyword in keywords {
            let shelved = self.shelved(keyword, brief)?;
            lists.push(shelved.products.clone());
            banned += shelved.banned;
        }
        Ok((lists, banned))
    }

    fn shelved(&mut self, keyword: &Keyword, brief: &Brief) -> Result<Arc<Shelved>, MarketError> {
        let dislikes: BTreeSet<String> = brief.dislikes.iter().cloned().collect();
        let key = (keyword.clone(), brief.diets.bits(), dislikes.into_iter().collect());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let filter = Filter::of_page(brief.diets, &brief.dislikes);
        let mut products = self.snapshot.products_for(keyword, &filter, self.config.per_keyword_max)?;
        let found = products.len();
        // The filter's promise is kept twice: what a household may not have must not depend on one query.
        products.retain(|product| filter.allows(product) && !self.banned.holds(product));
        let shelved =
            Arc::new(Shelved { banned: found - products.len(), products: products.into_iter().map(Arc::new).collect() });
        self.known.insert(key, shelved.clone());
        Ok(shelved)
    }
}
