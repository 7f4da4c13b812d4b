//! The topics, each with its lanes.

use std::fmt;

/// How soon a record is to be worked on. Lanes are topics of their own, and share the stages that work on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// As soon as it comes.
    Live,
    /// When there is time: what a replay sends.
    Backfill,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Live, Lane::Backfill];

    /// Its name: a metric label, and the end of a group's name.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Live => "live",
            Lane::Backfill => "backfill",
        }
    }

    /// What `name` is called on this lane: `themes`, or `themes.backfill`.
    pub fn named(self, name: &str) -> String {
        match self {
            Lane::Live => name.to_owned(),
            Lane::Backfill => format!("{name}.backfill"),
        }
    }

    /// Name and lane of what [`Lane::named`] gave.
    pub fn of(name: &str) -> (&str, Lane) {
        name.strip_suffix(".backfill").map_or((name, Lane::Live), |name| (name, Lane::Backfill))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A topic on one of its lanes: `endcap.<entity>.v1`, or `endcap.<entity>.v1.backfill`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    names: [&'static str; 2],
    lane: Lane,
}

macro_rules! topic {
    ($entity:literal) => {
        Topic { names: [concat!("endcap.", $entity, ".v1"), concat!("endcap.", $entity, ".v1.backfill")], lane: Lane::Live }
    };
}

impl Topic {
    /// Shopper events as they were accepted.
    pub const EVENTS: Topic = topic!("shopper-events");
    /// Context snapshots.
    pub const CONTEXTS: Topic = topic!("context-changed");
    /// Pages of themes.
    pub const THEMES: Topic = topic!("themes-written");
    /// Themes with keywords.
    pub const KEYWORDS: Topic = topic!("keywords-chosen");
    /// Themes without repeats.
    pub const DEDUPED: Topic = topic!("themes-deduped");
    /// Published pages.
    pub const PAGES: Topic = topic!("page-published");

    /// What shoppers did with the slates that they were shown.
    pub const FEEDBACK: Topic = topic!("feedback");

    /// The topics along the path of a page, in its order, on the live lane.
    pub const PATH: [Topic; 6] = [Topic::EVENTS, Topic::CONTEXTS, Topic::THEMES, Topic::KEYWORDS, Topic::DEDUPED, Topic::PAGES];
    /// Every topic, in path order, then those beside the path, on the live lane.
    pub const LIVE: [Topic; 7] =
        [Topic::EVENTS, Topic::CONTEXTS, Topic::THEMES, Topic::KEYWORDS, Topic::DEDUPED, Topic::PAGES, Topic::FEEDBACK];

    /// Every topic, in the order of [`Topic::LIVE`], the live lane first.
    pub fn all() -> impl Iterator<Item = Topic> {
        Lane::ALL.into_iter().flat_map(|lane| Self::LIVE.map(|topic| topic.on(lane)))
    }

    /// The topic of this name.
    pub fn named(name: &str) -> Option<Topic> {
        Self::all().find(|topic| topic.name() == name)
    }

    /// The same topic on `lane`.
    #[must_use]
    pub const fn on(self, lane: Lane) -> Topic {
        Topic { names: self.names, lane }
    }

    /// Its lane.
    pub fn lane(self) -> Lane {
        self.lane
    }

    /// The topic's name.
    pub fn name(self) -> &'static str {
        self.names[self.lane as usize]
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_found_by_its_name_on_either_lane() {
        let backfill = Topic::CONTEXTS.on(Lane::Backfill);
        assert_eq!(
            (Topic::CONTEXTS.name(), backfill.name()),
            ("endcap.context-changed.v1", "endcap.context-changed.v1.backfill")
        );
        assert_eq!(backfill.on(Lane::Live), Topic::CONTEXTS);
        for topic in Topic::all() {
            assert_eq!(Topic::named(topic.name()), Some(topic));
            assert_eq!(Lane::of(topic.name()), (topic.on(Lane::Live).name(), topic.lane()));
            assert_eq!(topic.name(), topic.lane().named(topic.on(Lane::Live).name()));
        }
        assert_eq!((Topic::all().count(), Topic::named("endcap.context-changed.v2")), (14, None));
        assert_eq!(Topic::LIVE[..Topic::PATH.len()], Topic::PATH);
    }
}
