//! What travels between Endcap's stages and what is stored: events, ids, topics and their wire form.
//!
//! No I/O, no clock, no randomness. Every stage's output is a type of its own, so a later stage cannot be
//! handed an earlier stage's event.

mod catalogue;
mod diet;
mod event;
mod feedback;
mod ids;
mod page;
mod path;
pub mod topics;
pub mod wire;

pub use catalogue::{Category, Product, SHELVES_MAX, Term, UNCATEGORISED};
pub use diet::{Diet, DietSet};
pub use event::{Budget, EventFault, EventKind, Line, Preference, Season, ShopperEvent};
pub use feedback::{Action, ActionKind, Feedback, FeedbackFault, Offer};
pub use ids::UserKey;
pub use page::{Page, Placement, ShownProduct, Versions};
pub use path::{
    Brief, CategoryWeight, Cause, ContextChanged, Descriptor, Draft, DroppedDraft, Head, Keyword, KeywordsChosen, Message,
    Origin, PagePublished, PurchaseMemory, RejectedTheme, Theme, ThemesDeduped, ThemesWritten,
};
