//! What retrieval saves: the tokens of a prompt against the same prompt without it.

use std::collections::{HashMap, HashSet};

use endcap_inference::prompts::plain;
use endcap_retrieval::{MarketError, Snapshot};

/// Terms read from the corpus at a time.
const PAGE: usize = 10_000;
/// Terms that are counted one by one; the tokens of a larger corpus are scaled up from these.
const COUNTED_MAX: usize = 50_000;

/// Counts the tokens of a text, as the keyword model's tokenizer splits it.
pub type TokenCounter = Box<dyn Fn(&str) -> usize + Send>;

/// Sizes of the alternatives in tokens, for one version of the market.
pub struct Savings {
    /// Tokens of all leaves of a department, as a list of candidates.
    departments: HashMap<String, u64>,
    /// Tokens of the whole corpus as a list of candidates.
    corpus: u64,
}

/// Tokens of the prompts that were asked, and of their alternatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct PromptTokens {
    /// With the retrieved candidates.
    pub retrieved: u64,
    /// With the whole taxonomy of the departments that the page's concepts lie in.
    pub taxonomy: u64,
    /// With the whole corpus.
    pub corpus: u64,
}

impl Savings {
    /// Measures the market.
    ///
    /// # Errors
    /// When the market cannot be read.
    pub fn measure(snapshot: &Snapshot, count: &TokenCounter) -> Result<Self, MarketError> {
        let mut departments: HashMap<String, u64> = HashMap::new();
        for category in snapshot.categories() {
            *departments.entry(category.department.clone()).or_default() += item_tokens(&category.name, count);
        }
        Ok(Self { departments, corpus: corpus(snapshot, count)? })
    }

    /// The tokens of a prompt of `head` tokens without candidates and `retrieved` with them, for a page in `departments`.
    pub fn prompt(&self, head: u64, retrieved: u64, departments: &HashSet<String>) -> PromptTokens {
        let taxonomy: u64 = departments.iter().filter_map(|name| self.departments.get(name)).sum();
        PromptTokens { retrieved, taxonomy: head + taxonomy, corpus: head + self.corpus }
    }
}

fn corpus(snapshot: &Snapshot, count: &TokenCounter) -> Result<u64, MarketError> {
    let (mut tokens, mut counted, mut after) = (0u64, 0usize, i64::MIN);
    while counted < COUNTED_MAX {
        let page = snapshot.terms_after(after, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(tokens) };
        after = *last;
        counted += page.len();
        tokens += page.iter().map(|(_, term)| item_tokens(&term.text, count)).sum::<u64>();
    }
    let all = u64::try_from(snapshot.counts()?.terms).unwrap_or(0);
    Ok((tokens as f64 * all as f64 / counted as f64).round() as u64)
}

/// Tokens of an item of a candidate list.
fn item_tokens(text: &str, count: &TokenCounter) -> u64 {
    count(&format!(" {};", plain(text))) as u64
}
