//! The topics along the path.

use std::fmt;

/// A topic of the path: `endcap.<entity>.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(&'static str);

impl Topic {
    /// Shopper events as they were accepted.
    pub const EVENTS: Topic = Topic("endcap.shopper-events.v1");
    /// Context snapshots.
    pub const CONTEXTS: Topic = Topic("endcap.context-changed.v1");
    /// Pages of themes.
    pub const THEMES: Topic = Topic("endcap.themes-written.v1");
    /// Themes with keywords.
    pub const KEYWORDS: Topic = Topic("endcap.keywords-chosen.v1");
    /// Themes without repeats.
    pub const DEDUPED: Topic = Topic("endcap.themes-deduped.v1");
    /// Published pages.
    pub const PAGES: Topic = Topic("endcap.page-published.v1");

    /// Every topic, in path order.
    pub const PATH: [Topic; 6] = [Topic::EVENTS, Topic::CONTEXTS, Topic::THEMES, Topic::KEYWORDS, Topic::DEDUPED, Topic::PAGES];

    /// The topic's name.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
