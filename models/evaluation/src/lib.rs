//! What quality means: the offline metrics of the paper's table 1, agreement with the teacher, and the baselines beside them.
//!
//! Pure: pages come in, figures go out. Who made the pages does not matter here, so control, teacher, students and baselines are
//! measured alike.

mod agreement;
mod baselines;
mod metrics;
mod statistics;
mod table;

pub use agreement::{Agreement, keyword_overlap, theme_agreement};
pub use baselines::{control_library, popular_keywords, popular_themes, random_keywords, random_themes};
pub use metrics::{JudgedPage, JudgedPlacement, PolicyMetrics, judge};
pub use statistics::{mean, quantile, standard_deviation, standard_error};
pub use table::{markdown, share};
