//! `endcap train reranker`: the model that arranges rows as a whole (PIER's OCPM), trained on what simulated shoppers of the demo market click in rows
//! that are shown in orders by chance, once the ranking has learnt what they like.

use std::{fs, ops::ControlFlow, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use endcap_ranker::pier::Schedule;
use endcap_ranking::{Pier, RankingConfig};
use serde::Serialize;

use crate::{
    cli::TrainArgs,
    config::Config,
    lab::{
        Interval,
        closed::{Arm, RowLog, Shop, ValueRatio, World, Worlds, Worths, run, train_ocpm},
    },
    progress,
    train::DEMO,
};

/// The weights in the model's folder.
pub const WEIGHTS: &str = "model.bin";
/// Households are drawn by seeds from here on, so that no demo shows them.
const SEEDS_FROM: u64 = 1_000;
/// Households that the ranking learns from, and visits of each.
const LEARNT: (u64, u64) = (200, 40);
/// Households whose visits are logged, and visits of each: many rows that differ, each in many orders.
const LOGGED: (u64, u64) = (1_000, 60);
/// Households that it is judged by.
const JUDGED: u64 = 200;

/// What is told of a model.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Rows that it was trained on.
    pub rows: usize,
    /// What it makes of others.
    #[serde(flatten)]
    pub judged: Judged,
    /// Time of it all, s.
    pub seconds: f64,
}

/// What a model makes of rows.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// Rows that it was judged by, of households that it has not seen.
    pub judged: usize,
    /// True value of the rows over that of their best orders: in orders by chance.
    pub ratio_chance: f64,
    /// As the ranker leaves them.
    pub ratio_ranked: f64,
    /// As the model arranges them.
    pub ratio_arranged: f64,
    /// By what share the clicks to be expected of a household's rows, by the truth, are above those of the ranker's order: the mean over households,
    /// with its 95 % confidence interval.
    pub lift: Interval,
}

/// How the model is trained. The loss does not say when to end: what it gains by arrangements is little beside the noise of clicks, and orders go on
/// getting better while it stays.
pub fn schedule(seed: u64) -> Schedule {
    Schedule { batch: 256, rate: 1e-3, epochs: 8, by_validation: false, seed }
}

/// Trains the model into the folder `reranker` of the models' directory, and judges it by households that it has not seen.
///
/// # Errors
/// When market or models cannot be opened, or the folder not be written.
pub fn train(args: &TrainArgs, config: &Config) -> Result<()> {
    let is_plain = args.market.is_none() && args.minutes.is_none() && args.steps.is_none();
    ensure!(
        is_plain,
        "the re-ranking model is trained on the demo market, whose truth is known, to its end: leave --market, --minutes and --steps out"
    );
    let start = Instant::now();
    let folder = args.models.clone().unwrap_or_else(|| DEMO.into()).join("reranker");
    fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    let worlds = Worlds::open(config, "reranker")?;
    let (models, usual) = (&worlds.models, RankingConfig::default());
    let world = |number: u64, households| worlds.world(number * SEEDS_FROM + args.seed, households);
    println!("letting the ranking learn: {} households, {} visits each", LEARNT.0, LEARNT.1);
    let (teachers, logged, judges) = (world(1, LEARNT.0)?, world(2, LOGGED.0)?, world(3, JUDGED)?);
    run(&teachers, Arm::Learning, &usual, LEARNT.1, models)?;
    let shop = |world| World::shop(world, teachers.policies(Arm::Learning)?, Arm::Greedy.config(&usual), models, None);
    println!("logging rows in orders by chance: {} households, {} visits each", LOGGED.0, LOGGED.1);
    let mut log = RowLog::default();
    log.watch(&shop(&logged)?, LOGGED.1, args.seed)?;
    println!("training on {} rows", log.len());
    let steps = progress::steps("rows", 0);
    let (dataset, point) = log.dataset()?;
    let bytes = train_ocpm(&dataset, &point, &schedule(args.seed), &mut |progress| {
        steps.at("rows", progress.done as u64, progress.most as u64);
        ControlFlow::Continue(())
    })?;
    steps.finish();
    let judged = judged(&shop(&judges)?, &Pier::read(&bytes)?)?;
    let report = Report { rows: log.len(), judged, seconds: start.elapsed().as_secs_f64() };
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    ensure!(
        report.judged.lift.is_above_zero(),
        "the model does not arrange rows better than the ranker leaves them, beyond what chance explains: it is not written"
    );
    let write = |name: &str, bytes: &[u8]| {
        let path: PathBuf = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    write(WEIGHTS, &bytes)?;
    write("report.json", (text + "\n").as_bytes())
}

/// What the model makes of the rows that every household of `shop` sees.
///
/// # Errors
/// When store or catalogue do not answer.
pub fn judged(shop: &Shop<'_>, pier: &Pier) -> Result<Judged> {
    let (mut count, [mut by_chance, mut as_ranked, mut as_arranged]) = (0, [ValueRatio::default(); 3]);
    let (mut ranked, mut arranged) = (Vec::new(), Vec::new());
    for household in shop.households() {
        let rows = shop.rows(household, "judged")?;
        if rows.is_empty() {
            continue;
        }
        let (mut of_ranked, mut of_arranged) = (0.0, 0.0);
        for row in &rows {
            let worths = Worths::of(shop, row);
            let order = pier.arrange(&row.input).context("cannot arrange a row of the service")?;
            by_chance.add(worths.by_chance(), &worths);
            as_ranked.add(worths.as_ranked(), &worths);
            as_arranged.add(worths.get(&order), &worths);
            of_ranked += worths.as_ranked();
            of_arranged += worths.get(&order);
        }
        count += rows.len();
        ranked.push(of_ranked);
        arranged.push(of_arranged);
    }
    Ok(Judged {
        judged: count,
        ratio_chance: by_chance.ratio(),
        ratio_ranked: as_ranked.ratio(),
        ratio_arranged: as_arranged.ratio(),
        lift: Interval::lift(&arranged, &ranked),
    })
}
