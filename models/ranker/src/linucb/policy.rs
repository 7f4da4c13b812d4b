//! Nominators before a ranker: choosing, learning, synchronising (sections 2 and 3.2).
//!
//! What the paper does once a round, here one request does for a slate: nominators bring in several items, the ranker orders them, and each
//! item with an impression is one update, in display order. With one nomination each and one item shown it is the paper's algorithm.

use std::cmp::Ordering;

use rand::{RngExt, seq::SliceRandom};

use super::{FEATURE_MAX, LinUcb, REWARD_MAX, Score};
use crate::{
    RankerError,
    random::{seed, stream},
};

const SHUFFLE_STREAM: u64 = 1;

/// When nominators take over what the ranker knows of their nominations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Never: the naive system.
    Never,
    /// Before the update (section 3.2): only what choosing computed anyway is needed.
    BeforeUpdate,
    /// After the update (Algorithm 1).
    AfterUpdate,
}

/// An item as the stages see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Tells it from the other items of a request, the same in every stage.
    pub id: u64,
    /// φ, the ranker's features, `[dims]`.
    pub ranker: Vec<f64>,
    /// φ_n, each nominator's features, `[nominators][dims of the nominator]`. Every nominator learns from every item that is shown, so there are
    /// features for those, too, that would not nominate it.
    pub nominators: Vec<Vec<f64>>,
}

/// An item that was shown, with the reward that it brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown<'a> {
    /// The item.
    pub item: &'a Item,
    /// Its reward.
    pub reward: f64,
}

/// An item that a nominator brought in, shown or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nomination<'a> {
    /// The nominator, from 0.
    pub nominator: usize,
    /// The item.
    pub item: &'a Item,
}

/// One item of a slate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// Its place among the candidates.
    pub candidate: usize,
    /// What the ranker thinks of it.
    pub score: Score,
}

/// Candidates in the order in which they are shown.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedList {
    /// First to last.
    pub placed: Vec<Placed>,
    /// Of a shuffled slate, the probability that a given item of it stands at a given place. Others are the policy's own choice, which is no matter of
    /// chance: for them there is its version, and the bonus in each score.
    pub propensity: Option<f64>,
}

/// The two-stage system. A ranker without nominators is the single-stage one.
#[derive(Debug, Clone, PartialEq)]
pub struct TwoStage {
    ranker: LinUcb,
    nominators: Vec<LinUcb>,
    sync: Sync,
    /// How much of the bonus counts in a choice.
    exploration: f64,
}

impl TwoStage {
    /// A system of these stages, which explores as the paper's does.
    pub fn new(ranker: LinUcb, nominators: Vec<LinUcb>, sync: Sync) -> Self {
        Self { ranker, nominators, sync, exploration: 1.0 }
    }

    /// The same system, which lets `exploration` times the bonus count when it chooses; 0 goes by what is expected alone. What it learns does
    /// not depend on it.
    #[must_use]
    pub fn exploring(self, exploration: f64) -> Self {
        Self { exploration, ..self }
    }

    /// How much of the bonus counts when it chooses.
    pub fn exploration(&self) -> f64 {
        self.exploration
    }

    /// Its ranker.
    pub fn ranker(&self) -> &LinUcb {
        &self.ranker
    }

    /// Its nominators.
    pub fn nominators(&self) -> &[LinUcb] {
        &self.nominators
    }

    /// When they synchronise.
    pub fn sync(&self) -> Sync {
        self.sync
    }

    /// The `most` items of `pool` that a nominator thinks best, best first, as places in `pool`. `ties` is the request's seed: items that are
    /// equally good come in an order that every stage draws alike from it, each order as likely.
    ///
    /// # Errors
    /// When there is no such nominator, or an item is not what it takes.
    pub fn nominate(&self, nominator: usize, pool: &[&Item], most: usize, ties: u64) -> Result<Vec<usize>, RankerError> {
        let stage = self.nominator(nominator)?;
        let mut scored = Vec::with_capacity(pool.len());
        for item in pool {
            let features = self.of_nominator(item, nominator)?;
            scored.push((item.id, stage.score(features)));
        }
        Ok(best(scored.iter().map(|(id, score)| (*id, score.bound(self.exploration))), most, ties))
    }

    /// The slate of the `most` candidates that the ranker thinks best, best first. `ties` is the request's seed, as above. It also decides
    /// whether this is one of the requests, `shuffled` (0…1) of all, whose slates are shuffled to learn what the policy would not show: all slates
    /// of such a request, each in an order of its own.
    ///
    /// # Errors
    /// When a candidate is not what the ranker takes.
    pub fn rank(&self, candidates: &[&Item], most: usize, shuffled: f64, ties: u64) -> Result<RankedList, RankerError> {
        let scores = candidates.iter().map(|item| Ok(self.ranker.score(self.of_ranker(item)?)));
        let scores = scores.collect::<Result<Vec<Score>, RankerError>>()?;
        let bounds = candidates.iter().zip(&scores).map(|(item, score)| (item.id, score.bound(self.exploration)));
        let order = best(bounds, most, ties);
        let mut placed: Vec<Placed> = order.into_iter().map(|candidate| Placed { candidate, score: scores[candidate] }).collect();
        let mut propensity = None;
        // What is drawn is from 0 to below 1: where none are to be shuffled none is.
        if placed.len() > 1 && stream(&[SHUFFLE_STREAM, ties]).random::<f64>() < shuffled {
            let ids = placed.iter().map(|placed| candidates[placed.candidate].id);
            let own: Vec<u64> = [SHUFFLE_STREAM, ties].into_iter().chain(ids).collect();
            placed.shuffle(&mut stream(&own));
            propensity = Some((placed.len() as f64).recip());
        }
        Ok(RankedList { placed, propensity })
    }

    /// Learns from one request: every shown item with its reward, in display order, and everything that was nominated. The ranker and every
    /// nominator learn each shown item (section 2: a nominator is updated with r_t and φ_n(a_t), not with what it nominated itself);
    /// nominators then synchronise to what the ranker thinks of their nominations.
    ///
    /// Feedback may come late: without synchronisation its order does not matter at all, with it nominators take over what the ranker thinks
    /// when it comes.
    ///
    /// # Errors
    /// When an item or reward is not what the policy takes; nothing is learnt then.
    pub fn learn(&mut self, shown: &[Shown<'_>], nominations: &[Nomination<'_>]) -> Result<(), RankerError> {
        for shown in shown {
            self.check(shown)?;
        }
        for nomination in nominations {
            self.nominator(nomination.nominator)?;
            self.of_nominator(nomination.item, nomination.nominator)?;
            self.of_ranker(nomination.item)?;
        }
        if self.sync == Sync::BeforeUpdate {
            self.synchronise(nominations);
        }
        for Shown { item, reward } in shown {
            self.ranker.observe(&item.ranker, *reward);
            for (nominator, features) in self.nominators.iter_mut().zip(&item.nominators) {
                nominator.observe(features, *reward);
            }
        }
        if self.sync == Sync::AfterUpdate {
            self.synchronise(nominations);
        }
        Ok(())
    }

    /// Adds to the rewards of items that were learnt from before: a click that comes after its impression. `more` says by how much each grows.
    ///
    /// # Errors
    /// When an item or reward is not what the policy takes; nothing is learnt then.
    pub fn amend(&mut self, more: &[Shown<'_>]) -> Result<(), RankerError> {
        more.iter().try_for_each(|shown| self.check(shown))?;
        for Shown { item, reward } in more {
            self.ranker.amend(&item.ranker, *reward);
            self.nominators.iter_mut().zip(&item.nominators).for_each(|(nominator, x)| nominator.amend(x, *reward));
        }
        Ok(())
    }

    fn synchronise(&mut self, nominations: &[Nomination<'_>]) {
        for Nomination { nominator, item } in nominations {
            let ranker = self.ranker.score(&item.ranker);
            self.nominators[*nominator].synchronise(&item.nominators[*nominator], &ranker);
        }
    }

    /// Computes what follows from the stages' beliefs afresh.
    pub(crate) fn refactorise(&mut self) {
        self.ranker.refactorise();
        self.nominators.iter_mut().for_each(LinUcb::refactorise);
    }

    fn nominator(&self, nominator: usize) -> Result<&LinUcb, RankerError> {
        self.nominators.get(nominator).ok_or(RankerError::NoNominator { nominator, have: self.nominators.len() })
    }

    fn check(&self, shown: &Shown<'_>) -> Result<(), RankerError> {
        self.of_ranker(shown.item)?;
        for nominator in 0..self.nominators.len() {
            self.of_nominator(shown.item, nominator)?;
        }
        if shown.reward.is_finite() && shown.reward.abs() <= REWARD_MAX {
            Ok(())
        } else {
            Err(RankerError::Reward { item: shown.item.id, value: shown.reward })
        }
    }

    /// φ of an item, checked.
    fn of_ranker<'a>(&self, item: &'a Item) -> Result<&'a [f64], RankerError> {
        features(item.id, &item.ranker, self.ranker.dims(), || "the ranker".to_owned())
    }

    /// φ_n of an item, checked.
    fn of_nominator<'a>(&self, item: &'a Item, nominator: usize) -> Result<&'a [f64], RankerError> {
        let (got, wanted) = (item.nominators.len(), self.nominators.len());
        if got != wanted {
            return Err(RankerError::Nominators { item: item.id, got, wanted });
        }
        let dims = self.nominators[nominator].dims();
        features(item.id, &item.nominators[nominator], dims, || format!("nominator {nominator}"))
    }
}

fn features(item: u64, values: &[f64], wanted: usize, stage: impl Fn() -> String) -> Result<&[f64], RankerError> {
    if values.len() != wanted {
        return Err(RankerError::Shape { item, stage: stage(), got: values.len(), wanted });
    }
    match values.iter().position(|value| !value.is_finite() || value.abs() > FEATURE_MAX) {
        Some(place) => Err(RankerError::Feature { item, stage: stage(), place, value: values[place] }),
        None => Ok(values),
    }
}

/// Places of the `most` largest bounds, largest first; equal ones in the order that `ties` gives their ids.
fn best(bounds: impl Iterator<Item = (u64, f64)>, most: usize, ties: u64) -> Vec<usize> {
    let mut all: Vec<(usize, u64, f64)> = bounds.enumerate().map(|(place, (id, ucb))| (place, seed(&[ties, id]), ucb)).collect();
    let better = |a: &(usize, u64, f64), b: &(usize, u64, f64)| -> Ordering {
        b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)).then(a.0.cmp(&b.0))
    };
    if most == 1 {
        return all.into_iter().min_by(better).map(|(place, ..)| place).into_iter().collect();
    }
    all.sort_by(better);
    all.truncate(most);
    all.into_iter().map(|(place, ..)| place).collect()
}
