//! The loop over time: shops that differ in whether they learn and explore, with the same households, pages and chances.

use anyhow::Result;
use endcap_inference::{Embed, Embedding, Model, Pair, Relevance};
use endcap_market::Expected;
use endcap_ranking::RankingConfig;

use super::world::World;
use crate::serve::Models;

/// A shop of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Goes by what is expected before anything was learnt.
    Frozen,
    /// Learns and explores, as the product does.
    Learning,
    /// Learns from what it expects most alone: no bonus counts, nothing is shuffled.
    Greedy,
}

impl Arm {
    /// All of them.
    pub const ALL: [Arm; 3] = [Arm::Frozen, Arm::Learning, Arm::Greedy];

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Arm::Frozen => "frozen",
            Arm::Learning => "learning",
            Arm::Greedy => "learning, no exploration",
        }
    }

    /// Its settings, where the product's are `usual`.
    pub fn config(self, usual: &RankingConfig) -> RankingConfig {
        match self {
            Arm::Learning => usual.clone(),
            Arm::Frozen | Arm::Greedy => RankingConfig { exploration: 0.0, shuffled: 0.0, ..usual.clone() },
        }
    }
}

/// What an arm's storefronts were worth, round by round: the mean over the households of what the truth says.
///
/// # Errors
/// When store or catalogue do not answer, or what was learnt cannot be kept.
pub fn run<E, X>(world: &World, arm: Arm, usual: &RankingConfig, rounds: u64, models: &Models<E, X>) -> Result<Vec<Expected>>
where
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    let mut shop = world.shop(world.policies(arm)?, arm.config(usual), models, None)?;
    (0..rounds).map(|round| shop.round(round, arm != Arm::Frozen)).collect()
}
