//! `endcap up`: the main job in one process; `endcap run`: some of its stages, beside other processes that run the rest; `endcap serve`: the
//! storefronts.
//!
//! Life of the process: configuration → data directory → web (health alone) → log and store → models → market → generation → stages → feeder
//! → wait → drain → report.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, bail};
use endcap_inference::{ChooseKeywords, ChosenKeywords, Embed, Embedding, Model, Pair, Relevance, WriteThemes, WrittenThemes};
use endcap_market::DEMO_SEED;
use endcap_ranking::{Ranking, slate::Key};
use endcap_runtime::{Broker, Clock, Clocks, Shutdown, SystemClock, metric};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::watch;

use crate::{
    cli::UpArgs,
    config::{Config, Settings},
    data::{DataDir, Slot, Use},
    deploy::{Models, Watch},
    desk::Desk,
    feed::{self, FeedState, Pace, Simulated, Source},
    figures_cache::{Feeding, FiguresCache},
    grounds,
    imported::Imported,
    logging::Anonymiser,
    monitor::{Monitor, OwnMonitor, Stages},
    path::{Ended, Fleet, Ground, Path, StageName},
    places::{self, Places},
    progress,
    report::{self, Began},
    running::{Event, Feeder, Running, Show, listen_to_signals, read_on_demand, watch_generations},
    serve::{self, Service},
    sides::Sides,
    visits::Visitors,
    web::{self, Access, Life},
};

/// Visits a second of simulated shoppers, where their events have no rate.
const VISITS_PER_S: f64 = 2.0;
/// Always 1; its label says which program this is.
const BUILD_INFO: &str = "endcap_build_info";
/// The number of the manifest that this process runs.
const GENERATION: &str = "endcap_generation";

/// What a process does of the main job.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// All of it, with events fed in.
    Everything(&'a UpArgs),
    /// Some stages.
    Stages(&'a [StageName]),
    /// Storefronts, and learning from feedback.
    Serving,
}

impl Role<'_> {
    fn stages(&self) -> &[StageName] {
        match self {
            Role::Everything(_) => &StageName::ALL,
            Role::Stages(stages) => stages,
            Role::Serving => &[],
        }
    }

    /// The stages whose models it needs: whoever serves checks products as the last one does.
    fn models(&self) -> &[StageName] {
        match self {
            Role::Serving => &[StageName::Aiqa],
            _ => self.stages(),
        }
    }

    fn serves(&self) -> bool {
        matches!(self, Role::Everything(_) | Role::Serving)
    }

    fn data_use(&self) -> Use {
        match self {
            Role::Everything(_) => Use::Alone,
            Role::Stages(_) | Role::Serving => Use::Beside,
        }
    }
}

/// Does `role` until it is drained, told to end, broken, or rolled back. `load` brings the models that the stages named need.
///
/// # Errors
/// When it cannot start, a stage stops, or the report cannot be written; with the remedy.
pub fn work<T, K, E, X>(
    settings: Settings,
    role: Role<'_>,
    load: impl FnOnce(&Config, Places, &[StageName]) -> Result<Fleet<T, K, E, X>>,
) -> Result<()>
where
    T: Model<Request = WriteThemes, Answer = WrittenThemes>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    let Settings { mut config, path: configured, ranking } = settings;
    check(role, &config)?;
    let data = DataDir::open(&config.data, role.data_use())?;
    let _slot = name(&mut config, &data, role.stages())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let prometheus = PrometheusBuilder::new().install_recorder().context("cannot keep metrics")?;
    metric::describe();
    endcap_ranking::metric::describe();
    metrics::describe_gauge!(GENERATION, "number of the manifest that this process runs");
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    // Bound early: an address that is taken ends the start before any work is done.
    let listener = std::net::TcpListener::bind(config.bind)
        .with_context(|| format!("cannot serve at {}: name another address with --bind", config.bind))?;
    let address = listener.local_addr().context("cannot serve the page")?;
    let (events, heard) = channel();
    let (end_web, web_ended) = watch::channel(false);
    let life = Arc::new(Life::default());
    progress::begin("looking at the models");
    let web = start_web(listener, life.clone(), Access::new(config.token.clone()), web_ended, &events)?;
    let models = Models::look(&config, &data, role.models())?;
    let sides = Sides::open(&config, &clock)?;
    let identity = grounds::identity(&config, &sides)?;
    let plan = models.plan(identity.clone(), &configured, &*sides.store)?;
    progress::begin("loading the models");
    let fleet = load(&config, plan.places.clone(), role.models())?;
    plan.check(&fleet, &data)?;
    progress::begin("opening the market");
    let market = grounds::open(&config, &data, &fleet.encoder)?;
    grounds::claim(&config, &sides, &market)?;
    let generation = plan.deploy(&*sides.store, &*clock)?;
    metrics::gauge!(GENERATION).set(f64::from(generation));
    let shutdown = Shutdown::new();
    let ground = Ground {
        generation,
        sides: sides.clone(),
        market: market.clone(),
        clocks: Clocks::of(clock.clone()),
        shutdown: shutdown.clone(),
    };
    progress::begin("starting the stages");
    let report = match role {
        Role::Everything(args) => args.report.as_deref(),
        Role::Stages(_) | Role::Serving => None,
    };
    // For a report alone: how all groups stand cannot be read while a transaction of any of them is open, as after a crash, and no other
    // stage's start may hang on that.
    let began = report.map(|target| Began::note(&sides, clock.now_ms()).map(|began| (target, began))).transpose()?;
    let service = match (role.serves(), &fleet.judge) {
        (true, Some((judge, threshold))) => {
            let models = serve::Models { encoder: fleet.encoder.clone(), judge: judge.clone(), threshold: *threshold };
            let rerank = serve::reranker(&places::reranker(&config, &data.models())?);
            let key = Key::of(config.token.as_ref().map(|token| token.secret()), &identity);
            Some(Service::start(key, &ranking, &plan.path, &ground, models, rerank)?)
        }
        _ => None,
    };
    let ended = forward(&events);
    let mut path = Path::start(role.stages(), fleet, &plan.path, &ground, &ended)?;
    if service.is_some() {
        path.start_learner(&ranking, &ground, &ended)?;
    }
    let (feeder, feeding) = match role {
        Role::Everything(args) => start_feeder(&config, args, &ground, &clock, &events)?.unzip(),
        Role::Stages(_) | Role::Serving => (None, None),
    };
    let stages = path.stages.clone();
    let serving = service.as_ref().map(|service| service.ranking.clone());
    let desk = Arc::new(Desk {
        ranking: serving,
        ..desk(&ground, &clock, prometheus, stages.clone(), feeding, Anonymiser::of(data.path())?)
    });
    if let (Some(service), Some(feeder)) = (&service, &feeder) {
        start_visits(&config, &desk, &service.ranking, &feeder.end)?;
    }
    listen_to_signals(&events)?;
    life.serve(desk.clone());
    announce(&format!("page: http://{address}/"))?;

    let (exit_when_drained, drains) = match role {
        Role::Everything(args) => (args.exit_when_drained, true),
        Role::Stages(_) | Role::Serving => (false, false),
    };
    let (mut watch, store) = (Watch::new(&plan, generation), sides.store.clone());
    watch_generations(move || watch.look(&*store), sides.read_every, &shutdown, &events)?;
    let show = match role {
        Role::Everything(_) => Show::Job(read_on_demand(&desk, &events)?),
        Role::Stages(_) | Role::Serving => Show::Own(OwnMonitor::new(stages.clone())),
    };
    let running = Running { exit_when_drained, drains, desk, life, show, feeder, shutdown };
    let (mut waiting, result) = running.wait(heard);
    let _ = end_web.send(true); // a server that has failed listens no more
    path.join();
    service.into_iter().for_each(Service::join);
    waiting.show_end();
    let _ = web.join(); // its failure was heard as an event
    result?;
    match began {
        Some((target, began)) => {
            report::write(&report::make(&sides, &market, &began, &stages)?, target)?;
            println!("report: {}", target.display());
            Ok(())
        }
        None => Ok(()),
    }
}

/// Gives a process of these stages that nobody has named the name of a slot of its data directory. It is its own for as long as the answer
/// is kept.
fn name(config: &mut Config, data: &DataDir, stages: &[StageName]) -> Result<Option<Slot>> {
    let Some(kafka) = config.kafka.as_mut().filter(|_| config.unnamed) else { return Ok(None) };
    let slot = data.slot(stages)?;
    *kafka = kafka.beside(&slot.name);
    Ok(Some(slot))
}

fn desk(
    ground: &Ground,
    clock: &Arc<dyn Clock>,
    prometheus: metrics_exporter_prometheus::PrometheusHandle,
    stages: Stages,
    feeding: Option<Feeding>,
    names: Anonymiser,
) -> Desk {
    let monitor = Monitor::new(ground.generation, ground.sides.clone(), stages.clone());
    Desk {
        sides: ground.sides.clone(),
        market: ground.market.clone(),
        clock: clock.clone(),
        prometheus,
        stages,
        figures: FiguresCache::new(monitor, feeding, ground.sides.read_every, clock.clone()),
        names,
        ranking: None,
        control: Mutex::default(),
    }
}

/// A sender of stages' ends that speaks the waiting thread's language.
fn forward(events: &Sender<Event>) -> Sender<Ended> {
    let (ended, receive) = channel();
    let events = events.clone();
    thread::spawn(move || receive.into_iter().try_for_each(|end| events.send(Event::Ended(end))));
    ended
}

fn start_feeder(
    config: &Config,
    args: &UpArgs,
    ground: &Ground,
    clock: &Arc<dyn Clock>,
    events: &Sender<Event>,
) -> Result<Option<(Feeder, Feeding)>> {
    let pace = Pace { rate: config.rate, events: config.events.map(u64::from) };
    let log = ground.sides.log.clone();
    let Some(mut source) = source(config, args, pace, &*log, clock.as_ref())? else { return Ok(None) };
    let state = Arc::new(FeedState::default());
    let end = Shutdown::new();
    let feeding = Feeding { state: state.clone(), words: source.describe() };
    let feeder = Feeder { end: end.clone(), ended: false };
    let (clock, events) = (clock.clone(), events.clone());
    thread::Builder::new()
        .name("feeder".to_owned())
        .spawn(move || {
            let fed = unpanicked("the feeder", || feed::feed(source.as_mut(), &*log, pace, clock.as_ref(), &state, &end));
            let _ = events.send(Event::Fed(fed)); // nobody listens when the process is already ending
        })
        .context("cannot start the feeder")?;
    Ok(Some((feeder, feeding)))
}

/// Lets simulated shoppers visit their storefronts for as long as others feed their purchases in. A bounded run ends when all is worked off, and so
/// has none.
fn start_visits(config: &Config, desk: &Arc<Desk>, ranking: &Arc<Ranking>, end: &Shutdown) -> Result<()> {
    if config.shoppers == 0 || config.market.is_some() || config.events.is_some() {
        return Ok(());
    }
    let market = Arc::new(endcap_market::Market::generate(DEMO_SEED));
    let rate = config.rate.unwrap_or(VISITS_PER_S);
    let visitors = Visitors { market, seed: config.seed, shoppers: config.shoppers, rate };
    let (desk, ranking, end) = (desk.clone(), ranking.clone(), end.clone());
    let visit = move || visitors.run(&desk, &ranking, &end);
    thread::Builder::new().name("visitors".to_owned()).spawn(visit).context("cannot start the visitors")?;
    Ok(())
}

fn source(config: &Config, args: &UpArgs, pace: Pace, log: &dyn Broker, clock: &dyn Clock) -> Result<Option<Box<dyn Source>>> {
    if let Some(dir) = replayed(args, config)? {
        return Ok(Some(Box::new(Imported::open(dir, config.seed)?)));
    }
    if config.shoppers == 0 {
        return Ok(None);
    }
    if config.market.is_some() {
        tracing::info!("an imported market has no simulated shoppers: --replay-events feeds its own events");
        return Ok(None);
    }
    let market = Arc::new(endcap_market::Market::generate(DEMO_SEED));
    Ok(Some(Box::new(Simulated::new(market, config.seed, config.shoppers, pace, log, clock)?)))
}

/// The market whose imported events are replayed, where that is wished for.
fn replayed<'a>(args: &UpArgs, config: &'a Config) -> Result<Option<&'a std::path::Path>> {
    if !args.replay_events {
        return Ok(None);
    }
    let market = config.market.as_deref();
    market
        .map(Some)
        .ok_or_else(|| anyhow!("--replay-events needs the market that they were imported into: name it with --market"))
}

fn start_web(
    listener: std::net::TcpListener,
    life: Arc<Life>,
    access: Access,
    ended: watch::Receiver<bool>,
    events: &Sender<Event>,
) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true).context("cannot serve the page")?;
    let address = listener.local_addr().context("cannot serve the page")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the web server")?;
    announce(&format!("address: http://{address}/ (health from now on, the page when everything runs)"))?;
    let events = events.clone();
    let serve = move || {
        let served = unpanicked("the web server", || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve the page")?;
                web::serve(listener, web::router(life, access), ended).await;
                Ok(())
            })
        });
        let _ = events.send(Event::Served(served)); // nobody listens when the process is already ending
    };
    thread::Builder::new().name("web".to_owned()).spawn(serve).context("cannot start the web server")
}

/// Writes a line that a program may wait for.
fn announce(line: &str) -> Result<()> {
    println!("{line}");
    io::stdout().flush().context("cannot tell the address")
}

/// Runs a thread's work so that the waiting thread hears of its panic too.
fn unpanicked(who: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("{who} panicked, as told above: this is a fault of the program")))
}

/// Refuses wishes that contradict each other, and what would come to grief only after the models are loaded or when all is done.
///
/// # Errors
/// With the remedy.
fn check(role: Role<'_>, config: &Config) -> Result<()> {
    grounds::check(config)?;
    let Role::Everything(args) = role else { return Ok(()) };
    if args.exit_when_drained && config.events.is_none() && !args.replay_events && config.shoppers > 0 && config.market.is_none()
    {
        bail!("--exit-when-drained would never come true: simulated shoppers do not end without --events");
    }
    if let Some(market) = replayed(args, config)? {
        Imported::check(market)?;
    }
    args.report.as_deref().map_or(Ok(()), report::check)
}
