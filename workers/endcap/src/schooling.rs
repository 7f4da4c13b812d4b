//! An imported market as training wants it: leaves, products, and the terms that retrieval can bring to a theme.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use endcap_engine::EmbedModel;
use endcap_inference::{Embed, Handle, NEIGHBOURS, prompts};
use endcap_retrieval::{Market, Near};
use endcap_schemas::Term;
use endcap_training::Source;

/// Rows read at once.
const ROWS: usize = 10_000;

/// Reads `market` as a source of lessons. Of its keywords only the nearest of each leaf are taken: no theme brings others up.
///
/// # Errors
/// When the market cannot be read or the encoder fails.
pub fn source(market: &Market, encoder: &Handle<EmbedModel>) -> Result<Source> {
    let snapshot = market.snapshot();
    let categories = snapshot.categories().to_vec();
    let names = categories.iter().map(|category| Embed { text: prompts::plain(&category.name) }).collect();
    let mut near: HashMap<&str, Vec<Near>> = HashMap::with_capacity(categories.len());
    for (category, vector) in categories.iter().zip(encoder.ask_all(names)) {
        let vector = vector.map_err(|error| anyhow!("cannot embed the leaves' names: {error}"))?;
        near.insert(&category.name, snapshot.near(&vector.0, NEIGHBOURS)?);
    }
    let ids: Vec<i64> = near.values().flatten().map(|near| near.term).collect::<BTreeSet<_>>().into_iter().collect();
    let mut places: HashMap<i64, usize> = HashMap::with_capacity(ids.len());
    let mut terms: Vec<Term> = Vec::with_capacity(ids.len());
    for ids in ids.chunks(ROWS) {
        for (id, term) in snapshot.terms(ids)? {
            places.insert(id, terms.len());
            terms.push(term);
        }
    }
    let mut products = Vec::new();
    loop {
        let rows = snapshot.products_from(products.len(), ROWS)?;
        if rows.is_empty() {
            break;
        }
        products.extend(rows);
    }
    let taught = endcap_market::Market::of(categories.clone(), products, terms);
    let words = format!(
        "an imported market ({} leaves, {} products, {} terms)",
        taught.categories.len(),
        taught.products.len(),
        taught.terms.len()
    );
    let known = |near: &Near| Some((near.cosine, *places.get(&near.term)?));
    let nearest =
        taught.categories.iter().map(|category| near[category.name.as_str()].iter().filter_map(known).collect()).collect();
    Ok(Source::new(&words, Arc::new(taught)).with_nearest(nearest))
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
