//! `endcap train reranker`: the model that arranges rows as a whole (PIER's OCPM), trained on what simulated shoppers of the demo market click in rows
//! that are shown in orders by chance, once the ranking has learnt what they like.

use std::{fs, ops::ControlFlow, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use endcap_ranker::pier::{PLACES, Schedule, best, orders};
use endcap_ranking::{Pier, RankingConfig};
use serde::Serialize;

use crate::{
    cli::TrainArgs,
    config::Config,
    lab::closed::{Arm, RowLog, Shop, Worlds, run, worths},
    progress,
    train::DEMO,
};

/// The weights in the model's folder.
pub const WEIGHTS: &str = "model.bin";
/// Households are drawn by seeds from here on, so that no demo shows them.
const SEEDS_FROM: u64 = 1_000;
/// Households that are trained on, visits of each while the ranking learns, and visits that are logged.
const HOUSEHOLDS: u64 = 200;
const LEARNT: u64 = 40;
const LOGGED: u64 = 60;
/// Households that it is judged by.
const JUDGED: u64 = 100;

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
    /// True value of the rows over that of their best orders: as the ranker leaves them, and as the model arranges them.
    pub ratio_ranked: f64,
    /// As the model arranges them.
    pub ratio_arranged: f64,
    /// Clicks to be expected of the rows, by the truth, over those of the ranker's order: what the model adds, as a share.
    pub lift: f64,
}

/// How the model is trained.
pub fn schedule(seed: u64) -> Schedule {
    Schedule { batch: 256, rate: 1e-3, epochs: 4, by_validation: false, seed }
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
    let models = &worlds.models;
    let (own, others) = (worlds.world(SEEDS_FROM + args.seed, HOUSEHOLDS)?, worlds.world(2 * SEEDS_FROM + args.seed, JUDGED)?);
    println!("letting the ranking learn: {HOUSEHOLDS} households, {LEARNT} visits each");
    let usual = RankingConfig::default();
    run(&own, Arm::Learning, &usual, LEARNT, models)?;
    println!("logging rows in orders by chance: {LOGGED} visits each");
    let (shop, mut log) = (own.shop(own.policies(Arm::Learning)?, Arm::Greedy.config(&usual), models, None)?, RowLog::default());
    log.watch(&shop, LOGGED, args.seed)?;
    println!("training on {} rows", log.len());
    let steps = progress::steps("rows", 0);
    let bytes = log.train(&schedule(args.seed), &mut |progress| {
        steps.at("rows", progress.done as u64, progress.most as u64);
        ControlFlow::Continue(())
    })?;
    steps.finish();
    let shop = others.shop(own.policies(Arm::Learning)?, Arm::Greedy.config(&usual), models, None)?;
    let judged = judged(&shop, &Pier::read(&bytes)?)?;
    let report = Report { rows: log.len(), judged, seconds: start.elapsed().as_secs_f64() };
    let write = |name: &str, bytes: &[u8]| {
        let path: PathBuf = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    write(WEIGHTS, &bytes)?;
    let report = serde_json::to_string_pretty(&report)?;
    println!("{report}");
    write("report.json", (report + "\n").as_bytes())
}

/// What the model makes of the rows that every household of `shop` sees.
///
/// # Errors
/// When store or catalogue do not answer.
pub fn judged(shop: &Shop<'_>, pier: &Pier) -> Result<Judged> {
    let (all, mut count, mut ranked, mut arranged, mut possible) = (orders(PLACES, PLACES), 0, 0.0, 0.0, 0.0);
    for household in shop.households() {
        for row in shop.rows(household, "judged")? {
            let worths = worths(shop, &row);
            let order = pier.arrange(&row.input).context("a row that the service has is one that the model can see")?;
            let place = all.iter().position(|other| *other == order).context("an order of all products is among all orders")?;
            count += 1;
            ranked += worths[0];
            arranged += worths[place];
            possible += best(&worths).map_or(0.0, |best| worths[best]);
        }
    }
    Ok(Judged {
        judged: count,
        ratio_ranked: ranked / possible,
        ratio_arranged: arranged / possible,
        lift: arranged / ranked - 1.0,
    })
}
