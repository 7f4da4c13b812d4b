//! What came of arranging rows in every way: rows, and a table as the paper's table 6.

use std::fmt::Write;

use endcap_evaluation::{markdown, quantile};
use endcap_ranker::pier::HISTORY;

use super::{
    super::interval::Interval,
    LoopArgs,
    arrange::{Arranged, MOST, Way},
};

/// What came of every way, by seed.
pub(super) struct Ways {
    pub(super) of: Vec<Vec<Arranged>>,
}

impl Ways {
    /// One row for each way and seed.
    pub(super) fn csv(&self) -> String {
        let mut csv = String::from("way,seed,clicks,ctr,value_cents,value_ratio,row_us_p50,row_us_p99,time_outs\n");
        for (place, way) in Way::ALL.iter().enumerate() {
            for (seed, ways) in (1..).zip(&self.of) {
                let Arranged { worth, ratio, .. } = &ways[place];
                let (ctr, [p50, p99]) = (worth.clicks / worth.impressions, [0.5, 0.99].map(|share| time(&ways[place], share)));
                // Writing to a String cannot fail.
                let _ = writeln!(
                    csv,
                    "\"{}\",{seed},{:.6},{ctr:.6},{:.3},{ratio:.6},{p50:.1},{p99:.1},{:.6}",
                    way.label(),
                    worth.clicks,
                    worth.value_cents,
                    ways[place].time_outs()
                );
            }
        }
        csv
    }

    /// The part of the page that tells of it.
    pub(super) fn page(&self, args: &LoopArgs) -> String {
        format!(
            "## Ways to arrange a row\n\nWhen the ranking has learnt, rows are shown in orders by chance ({} visits of each of {} households), and models of whole rows \
             are trained on what was clicked. Here they arrange the first five products of the first four rows that other households see under the same \
             policy. CTR, clicks and value are what the truth expects of the whole storefront; V/V* is the true value of the rows over that of their best \
             orders; a row that takes more than 1 ms is a time-out. PRM runs on candle, OCPM and FPSM on the serving kernel. FPSM selects {MOST} orders \
             by the last {HISTORY} rows that a household clicked on; OCPM has no history, as the service remembers no page of anybody.\n\n{}\n",
            args.logged,
            args.logged_households(),
            self.table()
        )
    }

    /// The table.
    pub(super) fn table(&self) -> String {
        let header = [
            "way",
            "CTR",
            "lift in clicks",
            "value",
            "lift in value",
            "V/V*",
            "cost p50, µs a row",
            "cost p99",
            "time-outs",
            "paper: CTR, GMV, ms, time-outs",
        ];
        markdown(&header, &(0..Way::ALL.len()).map(|way| self.row(way)).collect::<Vec<_>>())
    }

    fn row(&self, way: usize) -> Vec<String> {
        let lift = |of| if way == 0 { "–".to_owned() } else { self.lift(way, of).show_share(2) };
        let clicks = |arranged: &Arranged| arranged.worth.clicks;
        let value = |arranged: &Arranged| arranged.worth.value_cents;
        let mean = |of: &dyn Fn(&Arranged) -> f64| Interval::of(&self.each(way, of));
        vec![
            Way::ALL[way].label().to_owned(),
            mean(&|arranged| arranged.worth.clicks / arranged.worth.impressions).show(4),
            lift(clicks),
            mean(&value).show(1),
            lift(value),
            mean(&|arranged| arranged.ratio).show(4),
            format!("{:.0}", mean(&|arranged| time(arranged, 0.5)).mean),
            format!("{:.0}", mean(&|arranged| time(arranged, 0.99)).mean),
            format!("{:.2} %", 100.0 * mean(&Arranged::time_outs).mean),
            Way::ALL[way].of_the_paper().to_owned(),
        ]
    }

    fn each(&self, way: usize, of: &dyn Fn(&Arranged) -> f64) -> Vec<f64> {
        self.of.iter().map(|ways| of(&ways[way])).collect()
    }

    /// Each seed's lift of a way over the ranker's order, as a share.
    fn lift(&self, way: usize, of: fn(&Arranged) -> f64) -> Interval {
        Interval::lift(&self.each(way, &of), &self.each(0, &of))
    }
}

/// The time within which this share of the rows was arranged, µs.
fn time(arranged: &Arranged, share: f64) -> f64 {
    let mut times = arranged.times.clone();
    times.sort_unstable();
    quantile(&times, share).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use endcap_market::Expected;

    use super::*;

    #[test]
    fn the_table_has_every_way_with_its_lift_cost_and_time_outs() {
        let arranged = |clicks: f64, us: &[u64]| Arranged {
            worth: Expected { impressions: 10.0, clicks, value_cents: 100.0 * clicks },
            ratio: 0.9,
            times: us.iter().map(|us| Duration::from_micros(*us)).collect(),
        };
        let seed = |base: f64| {
            vec![
                arranged(base, &[1]),
                arranged(base, &[1]),
                arranged(1.1 * base, &[100, 200, 300, 2_000]),
                arranged(1.2 * base, &[1]),
                arranged(base, &[1]),
            ]
        };
        let ways = Ways { of: vec![seed(1.0), seed(2.0)] };
        let row = ways.row(2);
        assert_eq!(
            row[2..],
            [
                "+10.00 % ± 0.00",
                "165.0 ± 698.8",
                "+10.00 % ± 0.00",
                "0.9000 ± 0.0000",
                "300",
                "2000",
                "25.00 %",
                "+3.17 %, +2.54 %, 10.5, 0.052 %"
            ]
        );
        assert_eq!((ways.csv().lines().count(), ways.table().lines().count()), (1 + 5 * 2, 2 + 5));
        assert_eq!(ways.row(0)[2], "–");
    }
}
