//! `endcap up`: the main job in one process.
//!
//! Life of the process: configuration → data directory → models → market → stages → feeder and web → wait → drain → report.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use endcap_inference::{ChooseKeywords, ChosenKeywords, Embed, Embedding, Model, Pair, Relevance, WriteThemes, WrittenThemes};
use endcap_market::DEMO_SEED;
use endcap_runtime::{
    Clock, Clocks, Embedded, EmbeddedConfig, Shutdown, StageStats, SystemClock,
    embedded::{Producer, Retention},
    metric,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use tokio::sync::watch;

use crate::{
    cli::UpArgs,
    config::{Config, Settings},
    data::DataDir,
    desk::Desk,
    feed::{self, FeedState, Pace, Simulated, Source},
    figures::Figures,
    grounds,
    logging::Anonymiser,
    monitor::Monitor,
    path::{Ended, Fleet, Ground, Path},
    progress::Board,
    replay::Imported,
    report,
    web::{self, Access},
};

/// How often figures are read and shown.
const READ_EVERY: Duration = Duration::from_millis(500);
/// Always 1; its label says which program this is.
const BUILD_INFO: &str = "endcap_build_info";
/// Exit code of a process that was told twice to end.
const INTERRUPTED: i32 = 130;

/// Anything that the waiting thread must hear of.
enum Event {
    Ended(Ended),
    Fed(Result<()>),
    Served(Result<()>),
    Signal,
}

/// Runs the main job until it is told to end, drained, or broken. `load` brings the models.
///
/// # Errors
/// When it cannot start, a stage stops, or the report cannot be written; with the remedy.
pub fn up<T, K, E, X>(
    settings: Settings,
    args: &UpArgs,
    load: impl FnOnce(&Config, &DataDir) -> Result<Fleet<T, K, E, X>>,
) -> Result<()>
where
    T: Model<Request = WriteThemes, Answer = WrittenThemes>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    let Settings { config, path: path_config } = settings;
    check(args, &config)?;
    let data = DataDir::open(&config.data)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let prometheus = PrometheusBuilder::new().install_recorder().context("cannot keep metrics")?;
    metric::describe();
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    // Bound early: an address that is taken ends the start before any work is done.
    let listener = std::net::TcpListener::bind(config.bind)
        .with_context(|| format!("cannot serve at {}: name another address with --bind", config.bind))?;
    let fleet = load(&config, &data)?;
    let market = grounds::open(&config, &data, &fleet.encoder)?;
    let file = open_file(&config, &data, clock.clone())?;
    let shutdown = Shutdown::new();
    let ground =
        Ground { file: file.clone(), market: market.clone(), clocks: Clocks::of(clock.clone()), shutdown: shutdown.clone() };
    let (events, heard) = channel();
    let path = Path::start(fleet, path_config, &ground, &forward(&events))?;
    let monitor = Monitor::new(file.clone(), path.stages.clone())?;
    let feeder = start_feeder(&config, args, &ground, &clock, &events)?;
    let desk = Arc::new(desk(&ground, &clock, prometheus, path.stages.clone(), Anonymiser::of(data.path())?));
    let (end_web, web_ended) = watch::channel(false);
    let web = start_web(listener, desk.clone(), Access::new(config.token.clone()), web_ended, &events)?;
    listen_to_signals(&events)?;

    let running = Running { exit_when_drained: args.exit_when_drained, desk, monitor, feeder, clock, shutdown };
    let result = running.wait(&heard);
    let _ = end_web.send(true); // a server that has failed listens no more
    path.join();
    let _ = web.join(); // its failure was heard as an event
    result?;
    match &args.report {
        Some(target) => write_report(target, &file, &market),
        None => Ok(()),
    }
}

fn write_report(target: &std::path::Path, file: &Embedded, market: &endcap_retrieval::Market) -> Result<()> {
    report::write(&report::make(file, market)?, target)?;
    println!("report: {}", target.display());
    Ok(())
}

fn open_file(config: &Config, data: &DataDir, clock: Arc<dyn Clock>) -> Result<Embedded> {
    let retention = Retention { records_age: config.retention, results_age: config.retention, ..Retention::default() };
    let path = data.file();
    Embedded::open(&path, EmbeddedConfig { retention, ..EmbeddedConfig::default() }, clock)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn desk(
    ground: &Ground,
    clock: &Arc<dyn Clock>,
    prometheus: metrics_exporter_prometheus::PrometheusHandle,
    stages: Vec<(&'static str, Arc<StageStats>)>,
    names: Anonymiser,
) -> Desk {
    Desk {
        file: ground.file.clone(),
        market: ground.market.clone(),
        clock: clock.clone(),
        prometheus,
        stages,
        figures: Arc::new(Mutex::new(Arc::new(Figures::default()))),
        names,
        control: Mutex::new(None),
    }
}

/// A sender of stages' ends that speaks the waiting thread's language.
fn forward(events: &Sender<Event>) -> Sender<Ended> {
    let (ended, receive) = channel();
    let events = events.clone();
    thread::spawn(move || receive.into_iter().try_for_each(|end| events.send(Event::Ended(end))));
    ended
}

struct Feeder {
    state: Arc<FeedState>,
    words: String,
}

fn start_feeder(
    config: &Config,
    args: &UpArgs,
    ground: &Ground,
    clock: &Arc<dyn Clock>,
    events: &Sender<Event>,
) -> Result<Option<Feeder>> {
    let pace = Pace { rate: config.rate, events: config.events.map(u64::from) };
    let producer = ground.file.producer();
    let Some(mut source) = source(config, args, pace, &producer, clock.as_ref())? else { return Ok(None) };
    let state = Arc::new(FeedState::default());
    let feeder = Feeder { state: state.clone(), words: source.describe() };
    let (clock, shutdown, events) = (clock.clone(), ground.shutdown.clone(), events.clone());
    thread::Builder::new()
        .name("feeder".to_owned())
        .spawn(move || {
            let fed =
                unpanicked("the feeder", || feed::feed(source.as_mut(), &producer, pace, clock.as_ref(), &state, &shutdown));
            let _ = events.send(Event::Fed(fed)); // nobody listens when the process is already ending
        })
        .context("cannot start the feeder")?;
    Ok(Some(feeder))
}

fn source(config: &Config, args: &UpArgs, pace: Pace, producer: &Producer, clock: &dyn Clock) -> Result<Option<Box<dyn Source>>> {
    if args.replay_events {
        let dir = config
            .market
            .as_ref()
            .ok_or_else(|| anyhow!("--replay-events needs the market that they were imported into: name it with --market"))?;
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
    Ok(Some(Box::new(Simulated::new(market, config.seed, config.shoppers, pace, producer, clock)?)))
}

fn start_web(
    listener: std::net::TcpListener,
    desk: Arc<Desk>,
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
    println!("page: http://{address}/");
    io::stdout().flush().context("cannot tell the address")?;
    let events = events.clone();
    let serve = move || {
        let served = unpanicked("the web server", || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve the page")?;
                web::serve(listener, web::router(desk, access), ended).await
            })
        });
        let _ = events.send(Event::Served(served)); // nobody listens when the process is already ending
    };
    thread::Builder::new().name("web".to_owned()).spawn(serve).context("cannot start the web server")
}

/// Runs a thread's work so that the waiting thread hears of its panic too.
fn unpanicked(who: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("{who} panicked, as told above: this is a fault of the program")))
}

/// The first signal asks to drain, the second ends at once.
fn listen_to_signals(events: &Sender<Event>) -> Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS).context("cannot listen to signals")?;
    let events = events.clone();
    let listen = move || {
        for (heard, _) in signals.forever().enumerate() {
            if heard > 0 || events.send(Event::Signal).is_err() {
                process::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen).context("cannot listen to signals")?;
    Ok(())
}

/// The job while it runs.
struct Running {
    exit_when_drained: bool,
    desk: Arc<Desk>,
    monitor: Monitor,
    feeder: Option<Feeder>,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
}

impl Running {
    /// Shows figures and waits for an end: drained, asked, or broken. Whatever it is, everybody is asked to finish.
    fn wait(mut self, heard: &Receiver<Event>) -> Result<()> {
        let mut board = Board::new(self.desk.stages.len());
        let start = self.clock.monotonic();
        let result = loop {
            match heard.recv_timeout(READ_EVERY) {
                Ok(event) => {
                    if let Some(result) = self.hear(event) {
                        break result;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let up_for = self.clock.monotonic().saturating_sub(start);
                    if self.read(&mut board, up_for) {
                        break Ok(());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break Err(anyhow!("every part of the job has ended")),
            }
        };
        self.shutdown.trigger();
        board.end();
        result
    }

    /// What an event means; `None` to go on.
    fn hear(&self, event: Event) -> Option<Result<()>> {
        match event {
            Event::Ended(Ended { stage, result: Err(cause) }) => {
                Some(Err(anyhow!(cause).context(format!("stage {stage} has stopped"))))
            }
            Event::Ended(Ended { stage, result: Ok(()) }) => {
                Some(Err(anyhow!("stage {stage} has ended although nobody asked it to")))
            }
            Event::Fed(Err(error)) => Some(Err(error.context("the feeder has failed"))),
            Event::Served(Err(error)) => Some(Err(error)),
            Event::Served(Ok(())) => Some(Err(anyhow!("the web server has ended although nobody asked it to"))),
            Event::Signal => {
                eprintln!("finishing what is in hand; once more ends at once");
                Some(Ok(()))
            }
            Event::Fed(Ok(())) => None,
        }
    }

    /// Reads and shows the figures; answers whether the job is done. A reading that fails is tried again with the next one.
    fn read(&mut self, board: &mut Board, up_for: Duration) -> bool {
        let words = self.feeder.as_ref().map(|feeder| {
            let state = if feeder.state.is_done() { "all fed" } else { "feeding" };
            format!("{}; {} events so far, {state}", feeder.words, feeder.state.fed())
        });
        let fed = self.feeder.as_ref().is_none_or(|feeder| feeder.state.is_done());
        match self.monitor.read(up_for, words) {
            Ok(figures) => {
                board.show(&figures, up_for);
                let drained = fed && figures.stages.iter().all(|stage| stage.waiting == 0);
                *self.desk.figures.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(figures);
                drained && self.exit_when_drained
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the figures");
                false
            }
        }
    }
}

/// Refuses wishes that contradict each other.
///
/// # Errors
/// With the remedy.
fn check(args: &UpArgs, config: &Config) -> Result<()> {
    if args.exit_when_drained && config.events.is_none() && !args.replay_events && config.shoppers > 0 && config.market.is_none()
    {
        bail!("--exit-when-drained would never come true: simulated shoppers do not end without --events");
    }
    Ok(())
}
