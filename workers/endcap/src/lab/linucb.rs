//! `endcap lab linucb`: regret of naive, synchronised and single-stage LinUCB in the paper's motivating example (section 3.1), and in
//! problems whose nominators see less of an item than the ranker. `docs/ranking.md` compares the outcome with the paper.

use std::fmt::Write;

use anyhow::Result;
use endcap_evaluation::{markdown, mean, standard_error};
use endcap_ranker::{
    linucb::experiment::{Problem, Setting, System, regrets},
    seed,
};

use super::{
    LinucbArgs, in_parallel,
    plot::{Figure, Line, Panel},
    prepare, threads, write,
};
use crate::progress;

const GAMMAS: [f64; 6] = [0.0, 1.0, 10.0, 50.0, 100.0, 1_000.0];
const SIGMAS: [f64; 4] = [0.0, 0.1, 0.2, 0.5];
/// Settings of the problems in which nominators see less: of 8 features these many.
const SEEN: [usize; 4] = [8, 6, 4, 2];
const SEEN_GAMMAS: [f64; 3] = [0.0, 50.0, 1_000.0];
const SEEN_SIGMA: f64 = 0.2;
/// Rounds of a run, and between two that are written down (the first is, too).
const ROUNDS: u64 = 1_000;
const ROUNDS_STEP: usize = 10;
/// Runs that one thread does at a time.
const CHUNK: u64 = 25;
/// Colours from few to many, and of the single stage.
const SHADES: [&str; 6] = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d9a400"];
const SINGLE: &str = "#888";
/// Of [`SHADES`], those of what nominators see.
const SEEN_SHADES: [&str; 4] = [SHADES[0], SHADES[2], SHADES[4], SHADES[5]];

/// One setting in one kind of problem.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Study {
    /// Features that nominators see; `None` in the motivating example.
    seen: Option<usize>,
    setting: Setting,
}

/// Mean of a figure over runs, and the standard error of that mean.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    mean: f64,
    error: f64,
}

/// What came of a study: one summary for each recorded round.
struct Outcome {
    study: Study,
    regret: Vec<Summary>,
}

/// Runs all settings and writes `linucb.csv`, `figure2.svg`, `figure3.svg`, `features.csv` and `features.svg`.
///
/// # Errors
/// When the directory cannot be written.
pub(super) fn linucb(args: &LinucbArgs) -> Result<()> {
    prepare(&args.out)?;
    let outcomes = outcomes(&studies(), args);
    let (example, features): (Vec<Outcome>, Vec<Outcome>) =
        outcomes.into_iter().partition(|outcome| outcome.study.seen.is_none());
    write(&args.out, "linucb.csv", &table(&example))?;
    write(&args.out, "features.csv", &table(&features))?;
    write(&args.out, "figure2.svg", &figure2(&example).to_svg())?;
    write(&args.out, "figure3.svg", &figure3(&example).to_svg())?;
    write(&args.out, "features.svg", &feature_figure(&features).to_svg())?;
    println!("Regret after {ROUNDS} rounds, mean of {} runs ± standard error\n", args.runs);
    println!("{}\n{}", last_rounds(&example), last_rounds(&features));
    println!("tables and figures are in {}", args.out.display());
    Ok(())
}

fn studies() -> Vec<Study> {
    let mut studies = Vec::new();
    for system in System::ALL {
        for (gamma, sigma) in GAMMAS.iter().flat_map(|gamma| SIGMAS.map(|sigma| (*gamma, sigma))) {
            studies.push(Study { seen: None, setting: Setting { system, gamma, sigma } });
        }
        // What nominators see is nothing to a single stage.
        let seen = if system == System::Single { &SEEN[..1] } else { &SEEN[..] };
        for (seen, gamma) in seen.iter().flat_map(|seen| SEEN_GAMMAS.map(|gamma| (*seen, gamma))) {
            studies.push(Study { seen: Some(seen), setting: Setting { system, gamma, sigma: SEEN_SIGMA } });
        }
    }
    studies
}

/// Rounds that are written down.
fn recorded() -> Vec<u64> {
    std::iter::once(1).chain((ROUNDS_STEP as u64..=ROUNDS).step_by(ROUNDS_STEP)).collect()
}

fn outcomes(studies: &[Study], args: &LinucbArgs) -> Vec<Outcome> {
    let rounds = recorded();
    let chunks = args.runs.div_ceil(CHUNK);
    let (jobs, runs) = (studies.len() * chunks as usize, studies.len() as u64 * args.runs);
    let steps = progress::steps("runs", runs);
    let job = |job: usize| -> Vec<Vec<f64>> {
        let (study, chunk) = (&studies[job / chunks as usize], job as u64 % chunks);
        (chunk * CHUNK..args.runs.min((chunk + 1) * CHUNK)).map(|run| one_run(study, &rounds, seed(&[args.seed, run]))).collect()
    };
    let done = |ready: usize| steps.at("runs", ready as u64 * runs / jobs as u64, runs);
    let results = in_parallel(jobs, threads(args.threads), job, done);
    steps.finish();
    let of_study = studies.iter().zip(results.chunks(chunks as usize));
    let summary = |runs: &[Vec<Vec<f64>>], place: usize| {
        let regrets: Vec<f64> = runs.iter().flatten().map(|run| run[place]).collect();
        Summary { mean: mean(&regrets), error: standard_error(&regrets) }
    };
    of_study
        .map(|(study, runs)| Outcome { study: *study, regret: (0..rounds.len()).map(|place| summary(runs, place)).collect() })
        .collect()
}

fn one_run(study: &Study, rounds: &[u64], run_seed: u64) -> Vec<f64> {
    let problem = match study.seen {
        None => Problem::deadlock(),
        Some(seen) => Problem::projected(seen, run_seed),
    };
    regrets(&problem, &study.setting, rounds, run_seed)
}

/// Every recorded round of every study as CSV; with a column for what nominators see where that differs.
fn table(outcomes: &[Outcome]) -> String {
    let seen = outcomes.iter().any(|outcome| outcome.study.seen.is_some());
    let mut csv = format!("system,{}gamma,sigma,t,regret_mean,regret_se\n", if seen { "seen," } else { "" });
    for Outcome { study, regret } in outcomes {
        let Setting { system, gamma, sigma } = study.setting;
        let seen = study.seen.map(|seen| format!("{seen},")).unwrap_or_default();
        for (t, Summary { mean, error }) in recorded().iter().zip(regret) {
            // Writing to a String cannot fail.
            let _ = writeln!(csv, "{},{seen}{gamma},{sigma},{t},{mean:.6},{error:.6}", system.label());
        }
    }
    csv
}

/// The last round as Markdown: a row for each setting, a column for each system.
fn last_rounds(outcomes: &[Outcome]) -> String {
    let cell = |system: System, Study { seen, setting }: &Study| {
        let seen = if system == System::Single { seen.map(|_| SEEN[0]) } else { *seen };
        let last = find(outcomes, seen, system, setting.gamma, setting.sigma).regret.last().expect("a last round");
        format!("{:.2} ± {:.2}", last.mean, last.error)
    };
    let row = |study: &Study| -> Vec<String> {
        let (seen, Setting { gamma, sigma, .. }) = (study.seen, study.setting);
        let setting = [seen.map_or("–".to_owned(), |seen| seen.to_string()), gamma.to_string(), sigma.to_string()];
        setting.into_iter().chain(System::ALL.map(|system| cell(system, study))).collect()
    };
    let naive = outcomes.iter().map(|outcome| &outcome.study).filter(|study| study.setting.system == System::Naive);
    let rows: Vec<Vec<String>> = naive.map(row).collect();
    let labels = System::ALL.map(System::label);
    markdown(&[&["features seen", "γ", "σ"], &labels[..]].concat(), &rows)
}

fn find(outcomes: &[Outcome], seen: Option<usize>, system: System, gamma: f64, sigma: f64) -> &Outcome {
    let study = Study { seen, setting: Setting { system, gamma, sigma } };
    outcomes.iter().find(|outcome| outcome.study == study).expect("every setting of a figure is studied")
}

/// A line of a study, with a band of two standard errors.
fn line(outcome: &Outcome, label: String, colour: &'static str, dashed: bool) -> Line {
    let points = recorded().into_iter().zip(&outcome.regret).map(|(t, regret)| (t as f64, regret.mean, 2.0 * regret.error));
    Line { label, colour, dashed, points: points.collect() }
}

fn figure2(outcomes: &[Outcome]) -> Figure {
    let panel = |system: System, sigma: f64| Panel {
        title: format!("{}, σ = {sigma}", if system == System::Naive { "naive" } else { "synchronised" }),
        lines: GAMMAS
            .iter()
            .zip(SHADES)
            .map(|(gamma, shade)| line(find(outcomes, None, system, *gamma, sigma), format!("γ = {gamma}"), shade, false))
            .collect(),
    };
    Figure {
        title: "Naive and synchronised two-stage recommendation (figure 2): regret and its 2-σ band".to_owned(),
        axes: ("round", "expected regret"),
        rows: [System::Naive, System::SyncPost].map(|system| SIGMAS.map(|sigma| panel(system, sigma)).into()).into(),
    }
}

fn figure3(outcomes: &[Outcome]) -> Figure {
    let (gamma, sigma) = (50.0, 0.2);
    let of =
        |system, label: &str, colour, dashed| line(find(outcomes, None, system, gamma, sigma), label.to_owned(), colour, dashed);
    let lines = vec![
        of(System::SyncPost, "after the update", SHADES[2], false),
        of(System::SyncPre, "before the update", SHADES[5], true),
        of(System::Single, "single stage", SINGLE, false),
    ];
    Figure {
        title: "Synchronising before or after the update (figure 3)".to_owned(),
        axes: ("round", "expected regret"),
        rows: vec![vec![Panel { title: format!("γ = {gamma}, σ = {sigma}"), lines }]],
    }
}

fn feature_figure(outcomes: &[Outcome]) -> Figure {
    let panel = |system: System, gamma: f64| {
        let of_seen = SEEN.iter().zip(SEEN_SHADES).map(|(seen, shade)| {
            line(find(outcomes, Some(*seen), system, gamma, SEEN_SIGMA), format!("{seen} of 8 features"), shade, false)
        });
        let single = find(outcomes, Some(SEEN[0]), System::Single, gamma, SEEN_SIGMA);
        let lines = [line(single, "single stage".to_owned(), SINGLE, true)].into_iter().chain(of_seen).collect();
        Panel { title: format!("{}, γ = {gamma}", if system == System::Naive { "naive" } else { "synchronised" }), lines }
    };
    Figure {
        title: format!("Nominators that see less of an item than the ranker (σ = {SEEN_SIGMA}): regret and its 2-σ band"),
        axes: ("round", "expected regret"),
        rows: [System::Naive, System::SyncPost].map(|system| SEEN_GAMMAS.map(|gamma| panel(system, gamma)).into()).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn args(threads: usize, seed: u64) -> LinucbArgs {
        LinucbArgs { runs: 27, out: "unused".into(), seed, threads: NonZeroUsize::new(threads) }
    }

    #[test]
    fn the_table_is_the_same_on_any_number_of_threads_and_another_with_another_seed() {
        let studied = |study: &Study| {
            let Setting { gamma, sigma, .. } = study.setting;
            (gamma, sigma) == (50.0, 0.2) && matches!(study.seen, None | Some(2))
        };
        let studies: Vec<Study> = studies().into_iter().filter(studied).collect();
        let table_of = |threads, seed| table(&outcomes(&studies, &args(threads, seed)));
        let one = table_of(1, 1);
        assert_eq!(one, table_of(3, 1));
        assert_ne!(one, table_of(3, 2));
        for needle in ["\nsync_pre,2,50,0.2,1000,", "\nnaive,2,50,0.2,250,"] {
            assert!(one.contains(needle), "{needle} is not in the table");
        }
    }

    #[test]
    fn every_setting_has_its_lines_in_every_figure() {
        let regret = vec![Summary { mean: 1.0, error: 0.1 }; recorded().len()];
        let outcomes = studies().into_iter().map(|study| Outcome { study, regret: regret.clone() });
        let (example, features): (Vec<Outcome>, Vec<Outcome>) = outcomes.partition(|outcome| outcome.study.seen.is_none());
        assert_eq!(example.len(), 4 * 6 * 4);
        let bands = |figure: Figure| figure.to_svg().matches("fill-opacity").count();
        assert_eq!((bands(figure2(&example)), bands(figure3(&example)), bands(feature_figure(&features))), (48, 3, 30));
        let csv = table(&example);
        assert!(
            csv.starts_with("system,gamma,sigma,t,regret_mean,regret_se\nsingle,0,0,1,1.000000,0.100000\n"),
            "{}",
            &csv[..80]
        );
        for t in [100, 250, 500, 1_000] {
            assert!(csv.contains(&format!("\nsync_post,1000,0.5,{t},")), "round {t} is not in the table");
        }
        assert!(last_rounds(&features).contains("| 2 | 1000 | 0.2 | 1.00 ± 0.10 |"), "{}", last_rounds(&features));
    }
}
