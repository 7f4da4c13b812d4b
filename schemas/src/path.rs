//! The path of one page: what each stage hands to the next.

use serde::{Deserialize, Serialize};

use crate::{Budget, DietSet, Page, Season, UserKey, Versions, topics::Topic};

/// A value that travels on a topic. Its key is the user's.
pub trait Message: Serialize + serde::de::DeserializeOwned + Clone + Send + 'static {
    /// The topic it travels on.
    const TOPIC: Topic;
    /// The Avro schema it is written with. Its records have the names that serde knows the types by; a value of another name could be written and
    /// never read.
    const SCHEMA: &'static str;
    /// Every earlier version of that schema, oldest first: what they wrote is read for ever.
    const PAST: &'static [&'static str] = &[];
    /// Whose it is, when it was caused, and until when it is worth working on; `None` for shopper events, whose context is not folded yet, and
    /// for feedback, which is nobody's.
    fn head(&self) -> Option<&Head>;
    /// Key of the record.
    fn user(&self) -> UserKey;
}

/// What every message of the path carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose page it will be.
    pub user: UserKey,
    /// The fold's hybrid clock, ms: unique per user and strictly growing. Newer wins everywhere.
    pub context_ms: i64,
    /// Number of the pipeline's manifest (0…999): higher wins on the same context.
    pub generation: i32,
    /// The event behind it.
    pub cause: Cause,
    /// After this time (event clock, ms) nobody needs the page any more.
    pub expires_ms: i64,
}

/// The event that a page goes back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Id of the newest event in the context.
    pub event_id: String,
    /// When it happened, by its sender's clock, ms.
    pub event_ms: i64,
    /// When the log took it, ms: page freshness counts from here.
    pub accepted_ms: i64,
}

/// What later stages may know of the shopper: no raw signals, no history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    /// Diets the household keeps.
    pub diets: DietSet,
    /// Its budget.
    pub budget: Budget,
    /// BCP 47 language tag.
    pub locale: String,
    /// Season at the event.
    pub season: Season,
    /// Words it does not want to see.
    pub dislikes: Vec<String>,
    /// Whether it consents to personal pages.
    pub personalise: bool,
}

/// How much a shopper leans to a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CategoryWeight {
    /// Name of the taxonomy's leaf, lower case.
    pub category: String,
    /// Sum of its events' weights, decayed by age.
    pub weight: f64,
}

/// What is remembered of one product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PurchaseMemory {
    /// Id of the product.
    pub product: String,
    /// Its name when it was bought.
    pub name: String,
    /// Its taxonomy leaf.
    pub category: String,
    /// How often.
    pub count: i32,
    /// When last, ms.
    pub last_ms: i64,
}

/// Output of the context stage: one snapshot of a shopper per change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContextChanged {
    /// Whose, when, why.
    pub head: Head,
    /// What later stages may know.
    pub brief: Brief,
    /// Categories by weight, heaviest first; at most 16.
    pub favourites: Vec<CategoryWeight>,
    /// Purchases, newest first; at most 16.
    pub recent: Vec<PurchaseMemory>,
}

/// Who wrote a theme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The model.
    Model,
    /// The merchandiser, in place of one theme that was rejected.
    ThemeFallback,
    /// The merchandiser, in place of a whole page whose generation failed.
    PageFallback,
    /// The merchandiser, to bring the page up to its floor after AIQA.
    FloorFallback,
    /// The merchandiser, for a shopper without history or consent: season and popularity.
    Cold,
}

impl Origin {
    /// Whether the merchandiser stood in for the model.
    pub fn is_fallback(self) -> bool {
        matches!(self, Origin::ThemeFallback | Origin::PageFallback | Origin::FloorFallback)
    }
}

/// One placement's idea (paper 4.2): a title fit for display, an intent, and free-form product concepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Theme {
    /// Title as it is shown.
    pub title: String,
    /// The shopping intent behind it.
    pub intent: String,
    /// What the keyword stage looks for; the first one is the theme's anchor.
    pub concepts: Vec<String>,
    /// Who wrote it.
    pub origin: Origin,
}

/// A theme that the guardrails turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedTheme {
    /// Its title.
    pub title: String,
    /// Why, as a metric label.
    pub reason: String,
}

/// Output of the themes stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThemesWritten {
    /// Whose, when, why.
    pub head: Head,
    /// What later stages may know.
    pub brief: Brief,
    /// The shopper in a few words (paper 4.2), for the keyword stage's prompt.
    pub persona: String,
    /// The page's themes in order.
    pub themes: Vec<Theme>,
    /// What the guardrails turned away.
    pub rejected: Vec<RejectedTheme>,
    /// What made it so far: models by name.
    #[serde(default)]
    pub versions: Versions,
}

/// What kind of retrieval descriptor a keyword is (paper 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descriptor {
    /// A search query string.
    Query,
    /// A node of the catalogue's taxonomy.
    Node,
}

/// A term of the keyword corpus, chosen for a theme.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keyword {
    /// Its number in the corpus.
    pub id: i64,
    /// The term.
    pub text: String,
    /// What it retrieves by.
    pub descriptor: Descriptor,
}

/// A theme with its keywords, on its way to become a placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The theme.
    pub theme: Theme,
    /// Its keywords in order, best first.
    pub keywords: Vec<Keyword>,
}

/// Output of the keywords stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeywordsChosen {
    /// Whose, when, why.
    pub head: Head,
    /// What later stages may know.
    pub brief: Brief,
    /// The shopper in a few words.
    pub persona: String,
    /// Themes with keywords, in page order.
    pub drafts: Vec<Draft>,
    /// What made it so far: models by name.
    #[serde(default)]
    pub versions: Versions,
}

/// A draft that repeated another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DroppedDraft {
    /// Title of the removed draft.
    pub title: String,
    /// Title of the better-placed one that it repeats.
    pub repeats: String,
    /// Cosine of the two.
    pub cosine: f64,
}

/// Output of the dedup stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThemesDeduped {
    /// Whose, when, why.
    pub head: Head,
    /// What later stages may know.
    pub brief: Brief,
    /// The shopper in a few words.
    pub persona: String,
    /// What is left, in page order.
    pub drafts: Vec<Draft>,
    /// What was removed.
    pub dropped: Vec<DroppedDraft>,
    /// What made it so far: models by name.
    #[serde(default)]
    pub versions: Versions,
}

/// Output of the AIQA stage: the page as the store holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PagePublished {
    /// Whose, when, why.
    pub head: Head,
    /// The page.
    pub page: Page,
}
