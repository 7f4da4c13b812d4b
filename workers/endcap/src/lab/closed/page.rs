//! What came of the closed loop: rows, a figure, and a page.

use std::fmt::Write;

use endcap_evaluation::{markdown, mean};
use endcap_market::Expected;

use super::{
    super::{
        interval::Interval,
        plot::{Figure, Line, Panel},
    },
    Arm, LoopArgs,
};

/// Colours of the arms.
const COLOURS: [&str; 3] = ["#888", "#2a788e", "#d9a400"];

/// What every arm's storefronts were worth: by arm, seed and round.
pub(super) struct Outcome {
    pub(super) of: [Vec<Vec<Expected>>; 3],
}

impl Outcome {
    /// One row for each arm, seed and round.
    pub(super) fn csv(&self) -> String {
        let mut csv = String::from("arm,seed,round,clicks,impressions,value_cents\n");
        for (arm, seeds) in Arm::ALL.iter().zip(&self.of) {
            for (seed, rounds) in (1..).zip(seeds) {
                for (round, Expected { impressions, clicks, value_cents }) in (1..).zip(rounds) {
                    // Writing to a String cannot fail.
                    let _ = writeln!(csv, "\"{}\",{seed},{round},{clicks:.6},{impressions:.6},{value_cents:.3}", arm.label());
                }
            }
        }
        csv
    }

    /// Clicks of a visit over time.
    pub(super) fn figure(&self) -> Figure {
        let line = |(arm, colour): (usize, &'static str)| Line {
            label: Arm::ALL[arm].label().to_owned(),
            colour,
            dashed: Arm::ALL[arm] == Arm::Frozen,
            points: (0..self.rounds()).map(|round| self.point(arm, round)).collect(),
        };
        let lines = COLOURS.into_iter().enumerate().map(line).collect();
        Figure {
            title: "The closed loop: clicks of a visit, by the truth".to_owned(),
            axes: ("visits of each household", "clicks of a visit"),
            rows: vec![vec![Panel { title: "mean and 95 % interval over seeds".to_owned(), lines }]],
        }
    }

    fn rounds(&self) -> usize {
        self.of[0].first().map_or(0, Vec::len)
    }

    fn point(&self, arm: usize, round: usize) -> (f64, f64, f64) {
        let clicks: Vec<f64> = self.of[arm].iter().map(|rounds| rounds[round].clicks).collect();
        let Interval { mean, half } = Interval::of(&clicks);
        (round as f64 + 1.0, mean, half)
    }

    /// The mean over the first or the last tenth of the rounds, seed by seed.
    fn part(&self, arm: usize, is_last: bool, of: fn(&Expected) -> f64) -> Vec<f64> {
        let tenth = (self.rounds() / 10).max(1);
        let of_part = |rounds: &Vec<Expected>| {
            let part = if is_last { &rounds[rounds.len() - tenth..] } else { &rounds[..tenth] };
            mean(&part.iter().map(of).collect::<Vec<_>>())
        };
        self.of[arm].iter().map(of_part).collect()
    }

    /// Each seed's lift of an arm over the frozen one at the end, as a share.
    fn lift(&self, arm: usize, of: fn(&Expected) -> f64) -> Interval {
        Interval::lift(&self.part(arm, true, of), &self.part(0, true, of))
    }

    /// The page.
    pub(super) fn page(&self, args: &LoopArgs) -> String {
        let rows: Vec<Vec<String>> = (0..Arm::ALL.len()).map(|arm| self.row(arm)).collect();
        let header = [
            "policy",
            "clicks, first tenth",
            "clicks, last tenth",
            "CTR, last tenth",
            "value, last tenth",
            "lift in clicks",
            "in value",
        ];
        let lift = self.lift(1, |expected| expected.clicks);
        let verdict = if lift.is_above_zero() {
            "The learning policy's clicks rise above the frozen one's."
        } else {
            "No rise can be told from chance."
        };
        format!(
            "# The closed loop\n\n{} seeds of {} households, each of which visits {} times. Shoppers click by the market's truth, and the learner hears of \
             that alone. What stands here is what the truth expects of the storefronts that were shown, so that no luck of single clicks is in it: clicks \
             and value (cents put into the cart) of a visit, and clicks of an impression (CTR). Means over seeds with their 95 % intervals; lifts are \
             over the frozen policy with the same households, in the last tenth of the visits.\n\n{}\n{verdict}\n",
            args.seeds,
            args.households,
            args.rounds,
            markdown(&header, &rows)
        )
    }

    fn row(&self, arm: usize) -> Vec<String> {
        let clicks = |expected: &Expected| expected.clicks;
        let value = |expected: &Expected| expected.value_cents;
        let lift = |of| if arm == 0 { "–".to_owned() } else { self.lift(arm, of).show_share(1) };
        let mean = |is_last, of| Interval::of(&self.part(arm, is_last, of));
        vec![
            Arm::ALL[arm].label().to_owned(),
            mean(false, clicks).show(3),
            mean(true, clicks).show(3),
            mean(true, |expected| expected.clicks / expected.impressions).show(4),
            mean(true, value).show(1),
            lift(clicks),
            lift(value),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifts_are_over_the_frozen_policy_seed_by_seed() {
        let rounds = |from: f64, to: f64| -> Vec<Expected> {
            let clicks = |round: usize| if round < 10 { from } else { to };
            (0..20).map(|round| Expected { impressions: 10.0, clicks: clicks(round), value_cents: 7.0 }).collect()
        };
        let frozen = vec![rounds(1.0, 1.0), rounds(2.0, 2.0)];
        let learning = vec![rounds(1.0, 1.1), rounds(2.0, 2.4)];
        let outcome = Outcome { of: [frozen.clone(), learning, frozen] };
        let lift = outcome.lift(1, |expected| expected.clicks);
        assert!((lift.mean - 0.15).abs() < 1e-12 && !lift.is_above_zero(), "{lift:?}");
        assert_eq!(outcome.row(1)[1..3], ["1.500 ± 6.353".to_owned(), "1.750 ± 8.259".to_owned()]);
        assert_eq!(outcome.row(2)[5], "+0.0 % ± 0.0");
        let csv = outcome.csv();
        assert!(csv.lines().count() == 1 + 3 * 2 * 20 && csv.contains("\n\"learning\",2,20,2.400000,10.000000,7.000\n"), "{csv}");
        assert_eq!(outcome.figure().to_svg().matches("fill-opacity").count(), 3);
    }
}
