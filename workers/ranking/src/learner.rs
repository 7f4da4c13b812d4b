//! The learner: consumes feedback, updates the policy, keeps it under a new version. [`Lesson`] decides, [`Learner`] waits.
//!
//! With a policy its [`Ledger`] is kept, which says what it has learnt from, and both before the log's position is committed: after a crash the log
//! hands out again what was learnt already, and it is known and teaches nothing. All feedback has one key and so one order; whoever takes over
//! goes on from the newest policy that can be read. Its version is the place in the log up to which it has learnt, or, where that is no greater than
//! every version that is kept, read or not, as in a log that was made anew, the next number.

use std::sync::Arc;

use endcap_ranker::{
    RankerError,
    linucb::{Item, Nomination, Shown, TwoStage},
};
use endcap_runtime::{DropReason, Input, Policies, Rejection, Settled, Stage, StageError, Verdict};
use endcap_schemas::Feedback;
use serde_json::Value;

use crate::{
    RankingConfig,
    features::{Nominator, Traits, VERSION, untaught},
    kept::{self, KeptPolicy, Refused},
    ledger::{News, Taken},
};

/// Feedback is taken of slates that were served, and wishes that were made, no later than so long after they came, ms: clocks differ. One from further
/// ahead would make all others seem old.
const AHEAD_MAX_MS: i64 = 300_000;

/// No log is so long: a version beyond it is nobody's, and none is counted on from it.
const VERSION_MAX: i64 = 1 << 62;

/// The stage.
pub struct Learner {
    config: RankingConfig,
    policies: Arc<dyn Policies>,
    refused: Refused,
}

impl Learner {
    /// A learner that keeps its policies in `policies`.
    pub fn new(config: RankingConfig, policies: Arc<dyn Policies>) -> Self {
        Self { config, policies, refused: Refused::default() }
    }

    /// Where learning goes on: from the newest of the policies of `versions` that can be read.
    fn begin(&mut self, versions: &[i64]) -> Result<KeptPolicy, StageError> {
        Ok(self.refused.newest_readable(&*self.policies, versions, 0)?.unwrap_or_else(KeptPolicy::untaught))
    }

    /// The policy that is to be put back, or why it cannot.
    fn earlier(&self, version: i64) -> Result<Result<TwoStage, Rejection>, StageError> {
        if version == 0 {
            return Ok(Ok(untaught()));
        }
        let reject = |cause: String| Err(Rejection { kind: "unknown_policy", message: cause });
        Ok(match self.policies.policy(version)?.as_ref().map(kept::policy_of) {
            Some(Ok(policy)) => Ok(policy),
            Some(Err(error)) => reject(format!("policy {version} cannot be put back: {error}")),
            None => reject(format!("policy {version} is not kept: `endcap policy ls` lists those that are")),
        })
    }

    fn learn(&self, lesson: &mut Lesson, input: &Input<Feedback>) -> Result<Verdict<Feedback>, StageError> {
        let feedback = &input.value;
        // A wish is remembered as slates are, so it may be no further ahead than they.
        let ahead_ms = feedback.served_ms.saturating_sub(input.appended_ms);
        if ahead_ms > AHEAD_MAX_MS {
            return Ok(Verdict::Rejected(Rejection {
                kind: "future",
                message: format!(
                    "it is dated {} s after it came, at most {} s are taken: set the clock of the process that dated it",
                    ahead_ms / 1_000,
                    AHEAD_MAX_MS / 1_000
                ),
            }));
        }
        match feedback.put_back {
            Some(version) => Ok(match self.earlier(version)? {
                Ok(policy) => lesson.put_back(policy, feedback),
                Err(rejection) => Verdict::Rejected(rejection),
            }),
            None => Ok(lesson.learn(feedback, &self.config)),
        }
    }

    /// Forgets policies that are of little use by now. Where that fails it is done with the next one: nobody has to learn anything again for it.
    fn thin_out(&self) {
        let thinned = self.policies.policy_versions().and_then(|versions| match kept::superfluous(&versions) {
            gone if gone.is_empty() => Ok(()),
            gone => self.policies.forget_policies(&gone),
        });
        if let Err(error) = thinned {
            tracing::warn!(%error, "old policies cannot be forgotten now");
        }
    }
}

impl Stage for Learner {
    type In = Feedback;
    /// Nothing is passed on.
    type Out = Feedback;
    const NAME: &'static str = "learner";

    fn process(&mut self, batch: &[Input<Feedback>]) -> Result<Vec<Verdict<Feedback>>, StageError> {
        let versions = self.policies.policy_versions()?;
        let mut lesson = Lesson { kept: self.begin(&versions)?, has_learnt: false };
        let verdicts = batch.iter().map(|input| self.learn(&mut lesson, input)).collect::<Result<Vec<_>, _>>()?;
        let through = batch.iter().map(|input| input.offset + 1).max().unwrap_or(0);
        if lesson.has_learnt {
            let greatest = versions.iter().copied().find(|version| *version < VERSION_MAX).unwrap_or(0);
            lesson.kept.version = through.max(greatest + 1);
            self.policies.put_policy(&lesson.kept.store())?;
            self.thin_out();
        }
        Ok(verdicts)
    }
}

/// A policy while a batch is learnt from.
struct Lesson {
    kept: KeptPolicy,
    has_learnt: bool,
}

impl Lesson {
    fn learn(&mut self, feedback: &Feedback, config: &RankingConfig) -> Verdict<Feedback> {
        let malformed = |cause: String| Verdict::Rejected(Rejection { kind: "malformed", message: cause });
        if feedback.traits_version != i32::try_from(VERSION).unwrap_or(i32::MAX) {
            return Verdict::Dropped(DropReason::Expired);
        }
        if let Err(fault) = feedback.check() {
            return malformed(fault.to_string());
        }
        let Some(items) = items(feedback) else {
            return malformed("the offers have other traits than their version says".to_owned());
        };
        let news = match self.kept.ledger.take(feedback, config.slates_max, config.feedback_age_max_ms()) {
            Taken::News(news) => news,
            Taken::Known => return Verdict::Dropped(DropReason::Duplicate),
            Taken::Late => return Verdict::Dropped(DropReason::Expired),
        };
        if let Err(error) = self.teach(feedback, &items, &news) {
            return malformed(error.to_string());
        }
        self.has_learnt = true;
        learnt(vec![
            ("learner.slates", u64::from(news.is_first)),
            ("learner.impressions", news.seen.len() as u64),
            ("learner.rewards", (news.seen.iter().filter(|(_, reward)| *reward > 0.0).count() + news.more.len()) as u64),
        ])
    }

    /// One update per offer that came into sight, in display order; all that was nominated, shown or not, is synchronised once, with the first
    /// that is heard of its slate.
    fn teach(&mut self, feedback: &Feedback, items: &[Item], news: &News) -> Result<(), RankerError> {
        let shown = |part: &[(usize, f64)]| {
            part.iter()
                .filter_map(|(place, reward)| Some(Shown { item: items.get(*place)?, reward: *reward }))
                .collect::<Vec<_>>()
        };
        let (seen, more) = (shown(&news.seen), shown(&news.more));
        let nominations = if news.is_first { nominations(feedback, items) } else { Vec::new() };
        self.kept.policy.learn(&seen, &nominations)?;
        self.kept.policy.amend(&more)
    }

    /// What was learnt since `policy` is given up, by this `wish`; what was learnt from stays remembered, as it is no news any more.
    fn put_back(&mut self, policy: TwoStage, wish: &Feedback) -> Verdict<Feedback> {
        if !self.kept.ledger.put_back(wish) {
            return Verdict::Dropped(DropReason::Duplicate);
        }
        self.kept.policy = policy;
        self.has_learnt = true;
        learnt(vec![("learner.put_back", 1)])
    }
}

fn learnt(counters: Vec<(&'static str, u64)>) -> Verdict<Feedback> {
    // Feedback is nobody's: there is no shopper to explain it to.
    Verdict::Settled(Box::new(Settled { reason: DropReason::Learnt, explanation: Value::Null, writes: Vec::new(), counters }))
}

/// The offers as the policy sees them; `None` where their traits are not today's.
fn items(feedback: &Feedback) -> Option<Vec<Item>> {
    let offers = (0..).zip(&feedback.offers);
    offers.map(|(place, offer)| Some(Traits::read(&offer.traits)?.item(place))).collect()
}

fn nominations<'a>(feedback: &Feedback, items: &'a [Item]) -> Vec<Nomination<'a>> {
    let mut nominations = Vec::new();
    for (offer, item) in feedback.offers.iter().zip(items) {
        let mask = u8::try_from(offer.nominators).unwrap_or_default();
        nominations.extend(Nominator::of_mask(mask).map(|nominator| Nomination { nominator: nominator as usize, item }));
    }
    nominations
}

#[cfg(test)]
mod tests;
