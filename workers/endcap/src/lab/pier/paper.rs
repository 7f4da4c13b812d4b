//! The paper's own numbers (Shi et al., 2023), to stand beside ours. Its data are Avito's and Meituan's.

/// AUC and LogLoss on Avito, then on Meituan (tables 2 and 3).
pub(super) type Accuracy = [f64; 4];

pub(super) const DNN: Accuracy = [0.6876, 0.0483, 0.6538, 0.1917];
pub(super) const DCN: Accuracy = [0.6896, 0.0483, 0.6550, 0.1916];
pub(super) const PRM: Accuracy = [0.7131, 0.0481, 0.6718, 0.1899];
pub(super) const EXTR: Accuracy = [0.7114, 0.0481, 0.6704, 0.1901];
pub(super) const EDGE_RERANK: Accuracy = [0.7163, 0.0479, 0.6694, 0.1909];
pub(super) const OCPM: Accuracy = [0.7320, 0.0471, 0.6822, 0.1891];
/// As table 3 has it: see [`SLIPS`].
pub(super) const OCPM_TABLE_3: Accuracy = [0.7320, 0.0483, 0.6822, 0.1917];
pub(super) const NO_ATTENTION: Accuracy = [0.7198, 0.0483, 0.6774, 0.1916];
pub(super) const NO_INTEREST: Accuracy = [0.7263, 0.0481, 0.6786, 0.1899];

/// HR and milliseconds on Avito, then on Meituan (table 4).
pub(super) const RANDOM: [f64; 4] = [0.09, 10.8, 0.13, 70.5];
pub(super) const BEAM: [f64; 4] = [0.62, 16.8, 0.72, 78.7];
pub(super) const FULL: [f64; 4] = [1.00, 100.5, 1.00, 430.5];
pub(super) const PIER: [f64; 4] = [0.78, 17.5, 0.84, 85.3];
pub(super) const UNTIMED: [f64; 4] = [0.74, 17.3, 0.70, 84.8];
pub(super) const NO_CONTRAST: [f64; 4] = [0.52, 17.5, 0.61, 85.1];

/// AUC, HR and milliseconds on Avito, then on Meituan, for each α (table 5).
pub(super) const ALPHAS: [[f64; 6]; 6] = [
    [0.7337, 0.52, 17.5, 0.6833, 0.57, 85.1],
    [0.7336, 0.63, 17.4, 0.6831, 0.62, 85.3],
    [0.7329, 0.71, 17.6, 0.6828, 0.71, 85.3],
    [0.7320, 0.78, 17.5, 0.6822, 0.84, 85.2],
    [0.7108, 0.81, 17.4, 0.6674, 0.88, 85.4],
    [0.6927, 0.88, 17.6, 0.6425, 0.91, 85.3],
];
/// The same on Avito for K = 5, 10, 20, 50.
pub(super) const MOSTS: [[f64; 3]; 4] = [[0.7325, 0.63, 13.8], [0.7320, 0.71, 17.5], [0.7318, 0.82, 25.2], [0.7299, 0.93, 46.9]];
/// The same on Meituan, whose pages have 720 orders, with K.
pub(super) const MEITUAN_MOSTS: [(usize, [f64; 3]); 4] =
    [(50, [0.6827, 0.78, 49.2]), (100, [0.6822, 0.84, 85.3]), (200, [0.6813, 0.92, 157.3]), (300, [0.6799, 0.95, 223.3])];

/// Where its tables say different things of the same.
pub(super) const SLIPS: [&str; 3] = [
    "OCPM's LogLoss is 0.0471 and 0.1891 in table 2, 0.0483 and 0.1917 in table 3",
    "HR at α = 0.1 and K = 10 is 0.78 in tables 4 and 5, and 0.71 in table 5's row of K = 10",
    "without OAU AUC falls by 0.0122 in table 3, and by 0.0112 in the text (section 5.2.3)",
];
