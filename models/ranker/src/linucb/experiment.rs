//! The paper's experiment (section 3.1), and one in which nominators see less of an item than the ranker.
//!
//! One run is a function of its problem, its setting and its seed. Runs of one seed share the ranker's first belief (but for its scale σ), the
//! noise of every arm in every round and the order of ties, whatever the system: so systems are compared on the same luck.

use super::{Item, LinUcb, Nomination, Shown, Sync, TwoStage};
use crate::random::{normal, seed, stream};

/// Regularisation λ of every stage.
pub const LAMBDA: f64 = 1e-3;
/// Standard deviation of a reward's noise; the paper gives the variance, 10⁻².
const NOISE: f64 = 0.1;

const PRIOR_STREAM: u64 = 11;
const NOISE_STREAM: u64 = 12;
const TIES_STREAM: u64 = 13;
const PROBLEM_STREAM: u64 = 14;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// The ranker alone, over all arms.
    Single,
    /// Two stages that do not synchronise.
    Naive,
    /// Two stages that synchronise before the update.
    SyncPre,
    /// Two stages that synchronise after the update (Algorithm 1).
    SyncPost,
}

impl System {
    /// All of them.
    pub const ALL: [System; 4] = [System::Single, System::Naive, System::SyncPre, System::SyncPost];

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            System::Single => "single",
            System::Naive => "naive",
            System::SyncPre => "sync_pre",
            System::SyncPost => "sync_post",
        }
    }
}

/// How much the ranker knows when a run begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// The system.
    pub system: System,
    /// γ: samples of each weight that the ranker has seen before the nominators begin.
    pub gamma: f64,
    /// σ: standard deviation of the ranker's first weights around the true ones.
    pub sigma: f64,
}

/// Arms with their expected rewards, and which nominator may bring in which.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// θ⋆, `[dims]`.
    weights: Vec<f64>,
    /// The arms.
    items: Vec<Item>,
    /// Arms of each nominator.
    pools: Vec<Vec<usize>>,
}

impl Problem {
    /// The paper's motivating example: three arms of expected rewards ½, ¼ and ¾ with one-hot features, the first alone in its pool.
    pub fn deadlock() -> Self {
        let one_hot = |arm: usize| (0..3).map(|place| if place == arm { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
        let item = |arm| Item { id: arm as u64, ranker: one_hot(arm), nominators: vec![one_hot(arm); 2] };
        Self { weights: vec![0.5, 0.25, 0.75], items: (0..3).map(item).collect(), pools: vec![vec![0], vec![1, 2]] }
    }

    /// A drawn problem whose nominators see the first `seen` of 8 features: 20 arms with features on the unit sphere, true weights on it as
    /// well, and two pools of 10.
    pub fn projected(seen: usize, problem_seed: u64) -> Self {
        const DIMS: usize = 8;
        const ARMS: usize = 20;
        let mut rng = stream(&[PROBLEM_STREAM, problem_seed]);
        let mut direction = || {
            let values: Vec<f64> = (0..DIMS).map(|_| normal(&mut rng)).collect();
            let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
            values.into_iter().map(|value| value / length).collect::<Vec<f64>>()
        };
        let weights = direction();
        let item = |(id, ranker): (u64, Vec<f64>)| Item { id, nominators: vec![ranker[..seen.min(DIMS)].to_vec(); 2], ranker };
        let items = (0..ARMS as u64).map(|id| (id, direction())).map(item).collect();
        Self { weights, items, pools: vec![(0..ARMS / 2).collect(), (ARMS / 2..ARMS).collect()] }
    }

    /// Expected reward of an arm (Eq. 1).
    fn expected(&self, arm: usize) -> f64 {
        self.items[arm].ranker.iter().zip(&self.weights).map(|(feature, weight)| feature * weight).sum()
    }

    /// The system as it is before the first round.
    fn policy(&self, setting: &Setting, run_seed: u64) -> TwoStage {
        let mut rng = stream(&[PRIOR_STREAM, run_seed]);
        let first: Vec<f64> = self.weights.iter().map(|weight| weight + setting.sigma * normal(&mut rng)).collect();
        let ranker = LinUcb::pretrained(&first, LAMBDA + setting.gamma, LAMBDA);
        let dims = |nominator: usize| self.items[0].nominators[nominator].len();
        let nominators = || (0..self.pools.len()).map(|nominator| LinUcb::new(dims(nominator), LAMBDA)).collect();
        match setting.system {
            System::Single => TwoStage::new(ranker, Vec::new(), Sync::Never),
            System::Naive => TwoStage::new(ranker, nominators(), Sync::Never),
            System::SyncPre => TwoStage::new(ranker, nominators(), Sync::BeforeUpdate),
            System::SyncPost => TwoStage::new(ranker, nominators(), Sync::AfterUpdate),
        }
    }
}

/// Cumulative expected regret (Eq. 4) of one run after each of `rounds`, which ascend.
pub fn regrets(problem: &Problem, setting: &Setting, rounds: &[u64], run_seed: u64) -> Vec<f64> {
    play(problem, problem.policy(setting, run_seed), rounds, run_seed)
}

/// [`regrets`] of a system that begins as `policy`.
fn play(problem: &Problem, mut policy: TwoStage, rounds: &[u64], run_seed: u64) -> Vec<f64> {
    let best = (0..problem.items.len()).map(|arm| problem.expected(arm)).fold(f64::MIN, f64::max);
    let mut noise = stream(&[NOISE_STREAM, run_seed]);
    let mut regret = 0.0;
    let mut regrets = Vec::with_capacity(rounds.len());
    for t in 1..=rounds.last().copied().unwrap_or(0) {
        let noises: Vec<f64> = problem.items.iter().map(|_| NOISE * normal(&mut noise)).collect();
        let arm = round(problem, &mut policy, &noises, seed(&[TIES_STREAM, run_seed, t]));
        regret += best - problem.expected(arm);
        if rounds.get(regrets.len()) == Some(&t) {
            regrets.push(regret);
        }
    }
    regrets
}

/// One round (section 2): each nominator brings in one arm of its pool, the ranker chooses one of those, everybody learns. Says which.
fn round(problem: &Problem, policy: &mut TwoStage, noises: &[f64], ties: u64) -> usize {
    const WELL_FORMED: &str = "the arms of a problem fit its stages";
    let mut nominated: Vec<usize> = Vec::with_capacity(problem.items.len());
    for nominator in 0..policy.nominators().len() {
        let pool: Vec<&Item> = problem.pools[nominator].iter().map(|arm| &problem.items[*arm]).collect();
        let choice = policy.nominate(nominator, &pool, 1, ties).expect(WELL_FORMED);
        nominated.push(problem.pools[nominator][choice[0]]);
    }
    let nominations = nominated.iter().enumerate();
    let nominations: Vec<_> = nominations.map(|(nominator, arm)| Nomination { nominator, item: &problem.items[*arm] }).collect();
    let arms = if nominated.is_empty() { (0..problem.items.len()).collect() } else { nominated };
    let candidates: Vec<&Item> = arms.iter().map(|arm| &problem.items[*arm]).collect();
    let slate = policy.rank(&candidates, 1, 0.0, ties).expect(WELL_FORMED);
    let arm = arms[slate.placed[0].candidate];
    let shown = Shown { item: &problem.items[arm], reward: problem.expected(arm) + noises[arm] };
    policy.learn(&[shown], &nominations).expect(WELL_FORMED);
    arm
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    fn regret(system: System, gamma: f64, sigma: f64, rounds: u64, run: u64) -> f64 {
        regrets(&Problem::deadlock(), &Setting { system, gamma, sigma }, &[rounds], seed(&[SEED, run]))[0]
    }

    #[test]
    fn in_the_deadlock_the_naive_system_pays_a_quarter_every_round_but_one_and_a_synchronised_one_pays_it_once_at_most() {
        for run in 0..20 {
            for gamma in [1_000.0, 10_000.0] {
                for rounds in [100, 400] {
                    let naive = regret(System::Naive, gamma, 0.0, rounds, run);
                    assert_eq!(naive, 0.25 * (rounds - 1) as f64, "seed {SEED}, run {run}, γ {gamma}");
                    for system in [System::SyncPre, System::SyncPost] {
                        let paid = regret(system, gamma, 0.0, rounds, run);
                        assert_eq!(paid, 0.25, "{}, seed {SEED}, run {run}, γ {gamma}", system.label());
                    }
                    assert_eq!(regret(System::Single, gamma, 0.0, rounds, run), 0.0);
                }
            }
        }
    }

    /// Regret of the naive system where Algorithm 1 is taken at its word: a nominator learns the reward as if it were that of its nomination.
    fn literal(gamma: f64, rounds: u64, run: u64) -> f64 {
        let problem = Problem::deadlock();
        let mut ranker = LinUcb::pretrained(&problem.weights, LAMBDA + gamma, LAMBDA);
        let mut nominators = [LinUcb::new(3, LAMBDA), LinUcb::new(3, LAMBDA)];
        let best_of = |stage: &LinUcb, arms: &[usize], t: u64| {
            let bound = |arm: &usize| stage.score(&problem.items[*arm].ranker).ucb();
            let tie = |arm: &usize| seed(&[SEED, run, t, *arm as u64]);
            arms.iter().copied().max_by(|a, b| bound(a).total_cmp(&bound(b)).then(tie(a).cmp(&tie(b)))).expect("an arm")
        };
        (1..=rounds).fold(0.0, |regret, t| {
            let nominated = [0, 1].map(|nominator: usize| best_of(&nominators[nominator], &problem.pools[nominator], t));
            let arm = best_of(&ranker, &nominated, t);
            ranker.observe(&problem.items[arm].ranker, problem.expected(arm));
            for (nominator, nominated) in nominators.iter_mut().zip(nominated) {
                nominator.observe(&problem.items[nominated].ranker, problem.expected(arm));
            }
            regret + 0.75 - problem.expected(arm)
        })
    }

    #[test]
    fn algorithm_1_at_its_word_has_no_deadlock_to_mend() {
        for run in 0..10 {
            let (literal, naive) = (literal(1_000.0, 1_000, run), regret(System::Naive, 1_000.0, 0.0, 1_000, run));
            println!("seed {SEED}, run {run}: literal {literal}, naive {naive}");
            assert!(literal < 0.3 * naive, "seed {SEED}, run {run}: literal {literal}, naive {naive}");
        }
    }

    #[test]
    fn nominators_with_the_rankers_features_and_prior_make_exactly_a_single_stage() {
        let rounds: Vec<u64> = (1..=600).collect();
        for run in 0..6 {
            for problem in [Problem::deadlock(), Problem::projected(8, run)] {
                let dims = problem.weights.len();
                let stage = || LinUcb::new(dims, LAMBDA);
                let play = |nominators| play(&problem, TwoStage::new(stage(), nominators, Sync::Never), &rounds, run);
                let (single, naive) = (play(Vec::new()), play(vec![stage(), stage()]));
                assert_eq!(single, naive, "run {run}, {dims} features");
                assert!(single[599] > single[0], "nothing was explored in run {run}");
            }
        }
    }

    #[test]
    fn before_or_after_the_update_is_the_same_for_one_hot_features() {
        let rounds: Vec<u64> = (1..=500).collect();
        for run in 0..10 {
            for (gamma, sigma) in [(0.0, 0.5), (1.0, 0.2), (50.0, 0.2), (1_000.0, 0.1)] {
                let of = |system| regrets(&Problem::deadlock(), &Setting { system, gamma, sigma }, &rounds, seed(&[SEED, run]));
                assert_eq!(of(System::SyncPre), of(System::SyncPost), "seed {SEED}, run {run}, γ {gamma}, σ {sigma}");
            }
        }
    }
}
