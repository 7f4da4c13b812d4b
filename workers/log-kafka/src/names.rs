//! Names of topics, groups and transactional ids on the brokers.

use endcap_schemas::topics::{Lane, Topic};

use crate::KafkaSettings;

/// What ends the name of a topic of dead letters.
const DEAD_LETTERS: &str = ".dlq";

/// Names within one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Empty, or the namespace and a dot.
    prefix: String,
    instance: String,
}

impl Names {
    pub(crate) fn of(settings: &KafkaSettings) -> Self {
        let prefix = if settings.namespace.is_empty() { String::new() } else { format!("{}.", settings.namespace) };
        Self { prefix, instance: settings.instance.clone() }
    }

    pub(crate) fn topic(&self, topic: Topic) -> String {
        [&self.prefix, topic.name()].concat() // for every record that is written: a format would take four times as long
    }

    /// Both lanes of a topic have their dead letters in one place.
    pub(crate) fn dead_letters(&self, topic: Topic) -> String {
        format!("{}{}{DEAD_LETTERS}", self.prefix, topic.on(Lane::Live))
    }

    /// Compacted: what every process's stages have counted.
    pub(crate) fn tallies(&self) -> String {
        format!("{}endcap.tallies.v1", self.prefix)
    }

    /// Compacted: how far every source was read, and how far every producer has written.
    pub(crate) fn progress(&self) -> String {
        format!("{}endcap.progress.v1", self.prefix)
    }

    /// Compacted: which dead letters were sent again.
    pub(crate) fn redriven(&self) -> String {
        format!("{}endcap.redriven.v1", self.prefix)
    }

    pub(crate) fn group(&self, group: &str) -> String {
        format!("{}{group}", self.prefix)
    }

    /// The group without its namespace; `None` for one of another namespace.
    pub(crate) fn own_group<'a>(&self, group: &'a str) -> Option<&'a str> {
        group.strip_prefix(&self.prefix)
    }

    /// Under which this process writes for `role`: a group, or the door for events.
    pub(crate) fn transactional_id(&self, role: &str) -> String {
        format!("{}{role}.{}", self.prefix, self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_stands_before_every_name() {
        let names = |namespace: &str| {
            Names::of(&KafkaSettings { namespace: namespace.into(), instance: "pod-0".into(), ..KafkaSettings::default() })
        };
        let (bare, staged) = (names(""), names("staging"));
        assert_eq!(bare.topic(Topic::EVENTS), "endcap.shopper-events.v1");
        assert_eq!(staged.topic(Topic::EVENTS.on(Lane::Backfill)), "staging.endcap.shopper-events.v1.backfill");
        for lane in Lane::ALL {
            assert_eq!(staged.dead_letters(Topic::EVENTS.on(lane)), "staging.endcap.shopper-events.v1.dlq");
        }
        assert_eq!(staged.transactional_id("endcap.themes.live"), "staging.endcap.themes.live.pod-0");
        assert_eq!(staged.own_group("staging.endcap.themes.live"), Some("endcap.themes.live"));
        assert_eq!(staged.own_group("endcap.themes.live"), None);
    }
}
