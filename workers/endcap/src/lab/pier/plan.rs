//! What `endcap lab pier` trains and tries with each seed, and how much of everything.

use endcap_ranker::pier::{Contrast, Kind, Ocpm, fpsm::Places, simulator::ShopSize};

/// Selected orders that hit ratios are told for (K of table 5).
pub(super) const MOST: [usize; 4] = [5, 10, 20, 50];
/// All orders of a page.
pub(super) const ALL: usize = 120;
/// The paper's K and α (section 5.1.3).
pub(super) const PAPER_MOST: usize = 10;
pub(super) const PAPER_ALPHA: f64 = 0.1;
/// Weights of the contrastive loss (table 5).
pub(super) const ALPHAS: [(&str, f64); 6] =
    [("alpha-0", 0.0), ("alpha-0.01", 0.01), ("alpha-0.05", 0.05), ("alpha-0.1", 0.1), ("alpha-0.3", 0.3), ("alpha-0.5", 0.5)];
/// Names of the units that others need: the point-wise scores, the pre-trained OCPM, and OCPM after a joint phase without contrastive loss.
pub(super) const POINT: &str = "dnn";
pub(super) const OCPM: &str = "ocpm";
pub(super) const FROZEN: &str = ALPHAS[0].0;
pub(super) const PIER: &str = ALPHAS[3].0;
pub(super) const RESIDUAL: &str = "ocpm-residual";
pub(super) const SEARCH: &str = "search";
/// How many times as much the interest in arrangements counts, where it is told what a history can tell of it.
pub(super) const INTERESTS: [(&str, f64); 3] = [("interest-1", 1.0), ("interest-3", 3.0), ("interest-10", 10.0)];

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The simulated shop.
    pub(super) shop: ShopSize,
    /// Pages of a step.
    pub(super) batch: usize,
    /// Epochs, at most, of a model by itself.
    pub(super) epochs: usize,
    /// Epochs of a joint phase.
    pub(super) joint_epochs: usize,
    /// Pages of a step that the contrastive loss is estimated from.
    pub(super) contrast_pages: usize,
    /// Test pages whose orders are all evaluated.
    pub(super) slates: usize,
    /// Pages that are timed, one at a time.
    pub(super) timed: usize,
    /// Visits with ten candidates.
    pub(super) searches: usize,
}

impl Scale {
    /// 125,000 pages to train on. The paper's batch of 1,024 is for hundreds of times as many: here it would make 122 steps of an epoch, and
    /// the validation pages end the training in the third.
    pub(super) const WHOLE: Self = Self {
        shop: ShopSize { shoppers: 5_000, sessions: 34, history_sessions: 4, test_sessions: 4 },
        batch: 256,
        epochs: 6,
        joint_epochs: 2,
        contrast_pages: 32,
        slates: 2_000,
        timed: 50,
        searches: 50,
    };
    /// For a machine that checks every change.
    pub(super) const QUICK: Self = Self {
        shop: ShopSize { shoppers: 1_500, sessions: 20, history_sessions: 4, test_sessions: 3 },
        batch: 128,
        epochs: 5,
        joint_epochs: 1,
        contrast_pages: 16,
        slates: 400,
        timed: 10,
        searches: 3,
    };
}

/// A joint phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct JointSetting {
    pub(super) alpha: f64,
    pub(super) most: usize,
    pub(super) contrast: Contrast,
    pub(super) places: Places,
    /// Whether newer behaviours weigh more.
    pub(super) timed: bool,
}

/// As in the paper.
const PAPER: JointSetting =
    JointSetting { alpha: PAPER_ALPHA, most: PAPER_MOST, contrast: Contrast::Signed, places: Places::Plain, timed: true };

/// What is done in one go, and kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// A model is trained by itself.
    Alone(Kind),
    /// OCPM goes on with FPSM beside it.
    Joint(JointSetting),
    /// Searches among more orders than can be evaluated.
    Search,
    /// What a history can tell where the interest in arrangements counts so many times as much.
    Oracle(f64),
}

/// A piece of work under its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) work: Work,
}

/// What is done for each seed, in steps that need what the earlier ones have left. `simulated` data have visits to search for.
pub(super) fn steps(simulated: bool) -> Vec<Vec<Unit>> {
    let alone = |name, kind| Unit { name, work: Work::Alone(kind) };
    let without = |name, parts| alone(name, Kind::Ocpm(parts));
    let joint = |name, setting| Unit { name, work: Work::Joint(setting) };
    let alphas = ALPHAS.map(|(name, alpha)| joint(name, JointSetting { alpha, ..PAPER }));
    let mosts = [("most-5", 5), ("most-20", 20), ("most-50", 50)].map(|(name, most)| joint(name, JointSetting { most, ..PAPER }));
    let variants = [
        joint("untimed", JointSetting { timed: false, ..PAPER }),
        joint("centred", JointSetting { places: Places::Centred, ..PAPER }),
        joint("squared", JointSetting { contrast: Contrast::Squared, ..PAPER }),
        joint("distance", JointSetting { contrast: Contrast::Distance, ..PAPER }),
        joint("distance-0.5", JointSetting { contrast: Contrast::Distance, alpha: 0.5, ..PAPER }),
    ];
    // The longest first, so that the threads end together.
    let models = vec![
        alone(OCPM, Kind::Ocpm(Ocpm::WHOLE)),
        alone(RESIDUAL, Kind::Ocpm(Ocpm::RESIDUAL)),
        without("ocpm-no-place", Ocpm { place: false, ..Ocpm::WHOLE }),
        without("ocpm-no-attention", Ocpm { attention: false, ..Ocpm::WHOLE }),
        alone("edge-rerank", Kind::EdgeRerank),
        without("ocpm-no-interest", Ocpm { interest: false, ..Ocpm::WHOLE }),
        alone("prm", Kind::Prm),
        alone("extr", Kind::Extr),
        alone("dcn", Kind::Dcn),
    ];
    let search = Unit { name: SEARCH, work: Work::Search };
    let oracles = INTERESTS.map(|(name, times)| Unit { name, work: Work::Oracle(times) });
    let of_truth = if simulated { [&[search][..], &oracles].concat() } else { Vec::new() };
    vec![
        vec![alone(POINT, Kind::Dnn)],
        models,
        alphas[..1].to_vec(),
        alphas[1..].iter().chain(&mosts).chain(&variants).copied().collect(),
        of_truth,
    ]
}
