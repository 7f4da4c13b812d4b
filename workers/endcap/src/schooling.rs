//! An imported market as training wants it: leaves, products, and the terms that retrieval can bring to a theme.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, anyhow};
use endcap_engine::EmbedModel;
use endcap_inference::{Embed, Handle, prompts};
use endcap_retrieval::Market;
use endcap_schemas::Term;

/// Neighbours of a leaf's name that training sees: what the keywords stage looks at.
const NEIGHBOURS: usize = 96;
/// Rows read at once.
const ROWS: usize = 10_000;

/// Reads `market`. Of its keywords only the nearest of each leaf are taken: no theme brings others up.
///
/// # Errors
/// When the market cannot be read or the encoder fails.
pub fn market(market: &Market, encoder: &Handle<EmbedModel>) -> Result<endcap_market::Market> {
    let snapshot = market.snapshot();
    let categories = snapshot.categories().to_vec();
    let names = categories.iter().map(|category| Embed { text: prompts::plain(&category.name) }).collect();
    let mut near = BTreeSet::new();
    for vector in encoder.ask_all(names) {
        let vector = vector.map_err(|error| anyhow!("cannot embed the leaves' names: {error}"))?;
        near.extend(snapshot.near(&vector.0, NEIGHBOURS)?.into_iter().map(|near| near.term));
    }
    let near: Vec<i64> = near.into_iter().collect();
    let mut terms: Vec<Term> = Vec::with_capacity(near.len());
    for ids in near.chunks(ROWS) {
        terms.extend(snapshot.terms(ids)?.into_iter().map(|(_, term)| term));
    }
    let mut products = Vec::new();
    loop {
        let rows = snapshot.products_from(products.len(), ROWS)?;
        if rows.is_empty() {
            break;
        }
        products.extend(rows);
    }
    Ok(endcap_market::Market::of(categories, products, terms))
}

/// Puts the encoder beside the models that are made for the market: they stand in its directory whole.
///
/// # Errors
/// When it cannot be read or written.
pub fn copy_encoder(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.join("encoder"), to.join("encoder"));
    let copy = || {
        fs::create_dir_all(&to)?;
        for file in fs::read_dir(&from)? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok::<(), std::io::Error>(())
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
