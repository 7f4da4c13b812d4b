//! Shoppers with a history and a page, made without any stage but the context's own fold.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::Result;
use endcap_context::{ContextConfig, ContextStage};
use endcap_market::{DEMO_SEED, Market, Merchandiser, Shoppers};
use endcap_ranking::merchandised;
use endcap_retrieval::{MarketDir, Snapshot, write_demo};
use endcap_runtime::{Clock, Embedded, EmbeddedConfig, Input, Passed, Stage, Stamp, Store, SystemClock, Verdict, Write};
use endcap_schemas::{ContextChanged, PagePublished, UserKey, wire};

/// Placements of a page, and products of a placement.
const PLACEMENTS: usize = 10;
const PRODUCTS: usize = 20;

/// Makes a market, shoppers with states by the context stage's own fold, and a page for each.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn make(data: &Path, dir: &Path, count: u32) -> Result<Vec<UserKey>> {
    let (market, out) = (Arc::new(Market::generate(DEMO_SEED)), MarketDir::create(dir)?);
    write_demo(&out, &market.products, &market.categories, &market.terms)?;
    let opened = endcap_retrieval::Market::over(out)?;
    fs::create_dir_all(data)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let file = Embedded::open(endcap::data::file_in(data), EmbeddedConfig::default(), clock.clone())?;
    let (merchandiser, snapshot) = (market.merchandiser(), opened.snapshot());
    let contexts = contexts(&file, &opened, market, count, clock.now_ms())?;
    let writes = contexts.values().map(|context| page(context, &merchandiser, &snapshot)).collect::<Result<Vec<_>>>()?;
    file.put_all(&writes, &[])?;
    Ok(contexts.into_keys().collect())
}

/// What the context stage makes of some purchases of every shopper.
fn contexts(
    file: &Embedded,
    opened: &endcap_retrieval::Market,
    market: Arc<Market>,
    count: u32,
    now_ms: i64,
) -> Result<BTreeMap<UserKey, ContextChanged>> {
    let lookup = opened.clone();
    let product = Box::new(move |id: &str| lookup.snapshot().product(id).map_err(|error| error.to_string()));
    let mut stage = ContextStage::new(ContextConfig::default(), 1, Arc::new(file.clone()), product);
    let events = Shoppers::new(market, 1, count, now_ms - 86_400_000, 1_000);
    let mut contexts = BTreeMap::new();
    for from in (0..u64::from(count) * 6).step_by(200) {
        let input = |n: u64| Input { value: events.event(n), partition: 0, offset: n as i64, appended_ms: now_ms };
        let batch: Vec<_> = (from..from + 200).map(input).collect();
        for verdict in stage.process(&batch)? {
            if let Verdict::Passed(passed) = verdict {
                let Passed { out, writes, .. } = *passed;
                file.put_all(&writes, &[])?;
                contexts.insert(out.head.user.clone(), out);
            }
        }
    }
    Ok(contexts)
}

fn page(context: &ContextChanged, merchandiser: &Merchandiser, market: &Snapshot) -> Result<Write> {
    let page = merchandised(market, merchandiser, context, (PLACEMENTS, PRODUCTS))?;
    let stamp = Stamp::of(context.head.context_ms, 1);
    let bytes = wire::encode(&PagePublished { head: context.head.clone(), page })?;
    Ok(Write::Page { user: context.head.user.clone(), stamp, page: Some(bytes) })
}
