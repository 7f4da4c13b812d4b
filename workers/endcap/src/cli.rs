//! The command line. Values that a configuration file or the environment may also give stay text here: `config` reads all
//! three the same way and reports every fault at once.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use endcap_runtime::DeadLetterId;
use endcap_schemas::UserKey;

use crate::{lab::LabCommand, path::StageName, replay::Bound};

/// Turns a stream of shopper events into personal storefronts.
#[derive(Debug, Parser)]
#[command(name = "endcap", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Configuration file [default: ./endcap.toml, where there is one].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines are written: text or json.
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the main job in one process: log, store, every stage, simulated shoppers and the web page.
    Up(UpArgs),
    /// Runs some stages of the path in this process; others run theirs on the same log and store.
    Run(RunArgs),
    /// Answers storefronts, ranked for each request, and learns from what shoppers do with them.
    Serve(ServeArgs),
    /// Looks at what the ranking has learnt, or puts an earlier policy back.
    Policy {
        /// What to do.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Sends events from a file to a running `endcap up`, past those that are rejected; exits with 1 when there were any.
    Send(SendArgs),
    /// Takes a catalogue, a keyword corpus or shopper events into a market.
    Import(ImportArgs),
    /// Shows how a shopper's page came about, from the purchase on, stage by stage.
    Explain(ExplainArgs),
    /// Looks at what could not be processed.
    Dlq(DlqArgs),
    /// Declares the topics of the path on a Kafka cluster.
    Topics {
        /// What to do.
        #[command(subcommand)]
        command: TopicsCommand,
    },
    /// Brings the tables of a CQL server to this release's schema.
    Store {
        /// What to do.
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Has everything removed that is derived of a shopper.
    Erase(EraseArgs),
    /// Lists what the pipeline was deployed with, the newest first, and what differs from one to the next.
    Manifests(ManifestsArgs),
    /// Makes the manifest of an earlier generation active again, as a new one. Running processes end for it, to be started again.
    Rollback(RollbackArgs),
    /// Has pages made again of what the log holds, in the time that live events leave.
    Replay {
        /// Of what.
        #[command(subcommand)]
        command: ReplayCommand,
    },
    /// Trains the demo models, one by one, or goes on with them on an imported market.
    Train(TrainArgs),
    /// Measures quality against a market whose truth is known, beside baselines.
    Eval(EvalArgs),
    /// Runs the ranking papers' experiments anew and writes their tables and figures.
    Lab {
        /// Which.
        #[command(subcommand)]
        command: LabCommand,
    },
}

/// Settings that stand on the command line: key of the configuration, text.
pub type Flags = Vec<(&'static str, String)>;

fn given<const N: usize>(flags: [(&'static str, &Option<String>); N]) -> Flags {
    flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
}

/// Where the data lies: shared by commands that open a data directory.
#[derive(Debug, Clone, Default, Args)]
pub struct DataArgs {
    /// Directory of log, store and demo market [default: ./endcap-data].
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
}

impl DataArgs {
    /// What it sets.
    pub fn flags(&self) -> Flags {
        given([("data", &self.data)])
    }
}

/// What every process needs that runs stages.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkArgs {
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
    /// Directory of an imported market [default: the demo market, generated under the data directory].
    #[arg(long, value_name = "DIR")]
    pub market: Option<String>,
    /// Directory of the models [default: the small ones inside this binary].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// Where models run: cpu or cuda.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// What requests must bring, those for health excepted: at least 16 of A-Z a-z 0-9 - . _ ~; needed where the address is not a
    /// loopback one.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// How long the log keeps what every stage has worked off [default: 7days].
    #[arg(long, value_name = "TIME")]
    pub retention: Option<String>,
}

impl WorkArgs {
    /// What they set.
    pub fn flags(&self) -> Flags {
        let own = [
            ("market", &self.market),
            ("models", &self.models),
            ("device", &self.device),
            ("token", &self.token),
            ("retention", &self.retention),
        ];
        [self.data.flags(), given(own)].concat()
    }
}

/// `endcap run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The stages.
    #[arg(required = true)]
    pub stages: Vec<StageName>,
    /// What every process needs.
    #[command(flatten)]
    pub work: WorkArgs,
    /// Address of health, metrics and the web page [default: a free port of 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// How long a shopper must rest before a page is made [default: 2s].
    #[arg(long, value_name = "TIME")]
    pub debounce: Option<String>,
}

impl RunArgs {
    /// What holds where nothing else is said: several such processes share a machine.
    pub const DEFAULTS: [(&'static str, &'static str); 1] = [("bind", "127.0.0.1:0")];

    /// What they set.
    pub fn flags(&self) -> Flags {
        [self.work.flags(), given([("bind", &self.bind), ("debounce", &self.debounce)])].concat()
    }
}

/// `endcap serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// What every process needs.
    #[command(flatten)]
    pub work: WorkArgs,
    /// Address of storefronts and feedback, and of all that any process answers [default: 127.0.0.1:8484].
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
}

impl ServeArgs {
    /// What they set.
    pub fn flags(&self) -> Flags {
        [self.work.flags(), given([("bind", &self.bind)])].concat()
    }
}

/// `endcap policy`.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Lists the policies that are kept, the newest first.
    Ls {
        /// Writes JSON, one object a line.
        #[arg(long)]
        json: bool,
        /// Where the data lies.
        #[command(flatten)]
        data: DataArgs,
    },
    /// Puts an earlier policy back, under a new version; what was learnt since is given up.
    PutBack {
        /// Its version in the list; 0 is the one that has learnt nothing.
        version: i64,
        /// Where the data lies.
        #[command(flatten)]
        data: DataArgs,
    },
}

/// `endcap up`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// What every process needs.
    #[command(flatten)]
    pub work: WorkArgs,
    // Here as below a negative number comes to the configuration, which says what is wrong with it.
    /// Number of simulated shoppers, 0 for none [default: 100].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub shoppers: Option<String>,
    /// Events per second of the simulated shoppers or the replay [default: no limit with --events, else 2].
    #[arg(long, value_name = "EVENTS_PER_S", allow_negative_numbers = true)]
    pub rate: Option<String>,
    /// Ends the simulation (or the replay) after so many events.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub events: Option<String>,
    /// Ends when every event is worked off; with an error where a backfill lane has stopped, which says what still waits there.
    #[arg(long)]
    pub exit_when_drained: bool,
    /// Writes what happened to this file, as JSON, at the end.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Feeds the market's imported events, in their order, in place of simulated shoppers.
    #[arg(long)]
    pub replay_events: bool,
    /// Seed of the simulated shoppers, and of the diets that a replay gives to households; the demo market is always the same [default: 1].
    #[arg(long, value_name = "SEED", allow_negative_numbers = true)]
    pub seed: Option<String>,
    /// Address of the web page; port 0 takes a free one [default: 127.0.0.1:8484].
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// How long a shopper must rest before a page is made [default: 0s with --events, else 2s].
    #[arg(long, value_name = "TIME")]
    pub debounce: Option<String>,
}

impl UpArgs {
    /// What they set.
    pub fn flags(&self) -> Flags {
        let own = [
            ("shoppers", &self.shoppers),
            ("rate", &self.rate),
            ("events", &self.events),
            ("seed", &self.seed),
            ("bind", &self.bind),
            ("debounce", &self.debounce),
        ];
        [self.work.flags(), given(own)].concat()
    }
}

/// `endcap send`.
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    /// File with one JSON event per line, or one JSON array; `-` reads standard input.
    pub file: String,
    /// Address of the running `endcap up`; `http://` may be left out.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8484", value_parser = address)]
    pub to: String,
    /// The token that it was started with.
    #[arg(long, value_name = "TOKEN", env = "ENDCAP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Passes over the events that begin on earlier lines: goes on where sending broke off.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub from_line: usize,
}

/// An address with its scheme, without the slash at its end.
fn address(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let rest = rest.trim_end_matches('/');
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(format!("only http:// can be sent to, not {scheme}://: put a proxy in between"));
    }
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Err("give http://HOST:PORT or HOST:PORT".to_owned());
    }
    Ok(format!("http://{rest}"))
}

/// `endcap import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// What the file holds.
    pub what: Importable,
    /// The file; `.gz` and `.zst` are unpacked on the way.
    pub file: PathBuf,
    /// Its format: openfoodfacts, completejourney or endcap-json for a catalog; tsv or endcap-json for keywords; completejourney or
    /// endcap-json for events.
    #[arg(long, value_name = "FORMAT")]
    pub format: String,
    /// Directory of the market, made where there is none.
    #[arg(long, value_name = "DIR")]
    pub market: PathBuf,
    /// With a catalogue: withdraws the products listed in this file, one id a line.
    #[arg(long, value_name = "FILE")]
    pub withdraw: Option<PathBuf>,
    /// Leaves the index over the keywords for later: more files follow, or `endcap up` builds it.
    #[arg(long)]
    pub no_index: bool,
    /// Directory of the models [default: the small ones inside this binary].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
}

/// What can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Importable {
    /// Products.
    Catalog,
    /// Terms of the keyword corpus.
    Keywords,
    /// Shopper events in time order.
    Events,
}

/// `endcap explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The shopper: `user` or `tenant/user`. An id of the default tenant that holds a slash is found as it is, where no tenant is called
    /// like its beginning; `default/a/b` always means it.
    pub user: String,
    /// Directory of the imported market that the page was made for [default: where it was when `endcap up` ran last].
    #[arg(long, value_name = "DIR")]
    pub market: Option<String>,
    /// Writes JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
}

/// `endcap dlq`.
#[derive(Debug, Clone, Args)]
pub struct DlqArgs {
    /// What to do with dead letters.
    #[command(subcommand)]
    pub command: DlqCommand,
}

/// What can be done with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DlqCommand {
    /// Lists them, newest first.
    Ls {
        /// Which.
        #[command(flatten)]
        filter: DlqFilter,
        /// Writes JSON, one object a line.
        #[arg(long)]
        json: bool,
        /// Where the data lies.
        #[command(flatten)]
        data: DataArgs,
    },
    /// Shows one, its value as text.
    Show {
        /// Its id in the list.
        id: DeadLetterId,
        /// Writes its value alone, byte for byte.
        #[arg(long)]
        raw: bool,
        /// Where the data lies.
        #[command(flatten)]
        data: DataArgs,
    },
    /// Sends them again, with their key, headers and bytes, to the topic that they came from. Those of erased shoppers stay, and those that
    /// the interface refused: their senders must correct them.
    Redrive {
        /// Their ids in the list; without any, all that the filters let through, `--limit` at most.
        ids: Vec<DeadLetterId>,
        /// Which.
        #[command(flatten)]
        filter: DlqFilter,
        /// Where the data lies.
        #[command(flatten)]
        data: DataArgs,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Args)]
pub struct DlqFilter {
    /// Only those of this reason.
    #[arg(long)]
    pub reason: Option<String>,
    /// Only those of this stage; `ingest` is the interface.
    #[arg(long)]
    pub stage: Option<String>,
    /// Only those of this shopper: `user` or `tenant/user`; an id of the default tenant that holds a slash as `default/a/b`.
    #[arg(long, value_name = "USER")]
    pub user: Option<UserKey>,
    /// Only those of the last so long, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// Most of them, the newest.
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
}

/// `endcap topics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum TopicsCommand {
    /// Says what the cluster lacks and what differs.
    Plan,
    /// Makes it so.
    Apply,
}

/// `endcap store`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum StoreCommand {
    /// Says what would be done.
    Plan,
    /// Does it.
    Migrate,
}

/// `endcap erase`.
#[derive(Debug, Clone, Args)]
pub struct EraseArgs {
    /// The shopper: `user` or `tenant/user`; an id of the default tenant that holds a slash as `default/a/b`.
    pub user: UserKey,
    /// Waits until it is done, and looks for what is left; exits with 1 when something is.
    #[arg(long)]
    pub verify: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub within: Duration,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
}

/// `endcap manifests`.
#[derive(Debug, Clone, Args)]
pub struct ManifestsArgs {
    /// Writes JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
}

/// `endcap rollback`.
#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// The generation to go back to [default: the latest whose manifest is not the active one].
    #[arg(long, value_name = "GENERATION")]
    pub to: Option<i32>,
    /// Says what would be active, and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
}

/// `endcap replay`.
#[derive(Debug, Clone, Subcommand)]
pub enum ReplayCommand {
    /// Sends the latest context of each shopper through the stages again: new pages by the models that run now.
    Contexts {
        /// Which records.
        #[command(flatten)]
        args: ReplayArgs,
        /// Up to where, as --from [default: the end as it is at the start].
        #[arg(long, value_name = "BOUND")]
        to: Option<Bound>,
    },
    /// Folds the shoppers' events from scratch, puts the new states in the old ones' place, and sends their contexts through the stages. What
    /// happened before the range is forgotten.
    Events {
        /// Which records.
        #[command(flatten)]
        args: ReplayArgs,
    },
    /// Goes on with a replay that was stopped.
    Resume {
        /// Its number, as it was told at its start.
        run: i64,
        /// Records per second [default: as at its start].
        #[arg(long, value_name = "RECORDS_PER_S", value_parser = pace)]
        rate: Option<f64>,
        /// Where things lie.
        #[command(flatten)]
        place: ReplayPlace,
    },
}

/// What a replay reads and how fast it sends.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// From where: earliest, ts=TIME (RFC 3339 or milliseconds since 1970: what the log took then or later), last=24h, or offset=N.
    #[arg(long, value_name = "BOUND", default_value = "earliest")]
    pub from: Bound,
    /// Only these partitions.
    #[arg(long, value_name = "N", num_args = 1.., allow_negative_numbers = true)]
    pub partition: Vec<i32>,
    /// Only this shopper: `user` or `tenant/user`; may be repeated.
    #[arg(long, value_name = "USER")]
    pub user: Vec<UserKey>,
    /// Records per second [default: as many as the stages take].
    #[arg(long, value_name = "RECORDS_PER_S", value_parser = pace)]
    pub rate: Option<f64>,
    /// Counts what would be sent and says what it would cost; writes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Where things lie.
    #[command(flatten)]
    pub place: ReplayPlace,
}

/// What a replay works on.
#[derive(Debug, Clone, Args)]
pub struct ReplayPlace {
    /// Directory of the imported market that the data is about [default: where it was when `endcap up` ran last].
    #[arg(long, value_name = "DIR")]
    pub market: Option<String>,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
}

impl ReplayPlace {
    /// What it sets.
    pub fn flags(&self) -> Flags {
        [self.data.flags(), given([("market", &self.market)])].concat()
    }
}

/// Records per second.
fn pace(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| rate.is_finite() && *rate > 0.0).ok_or_else(|| "give records per second, more than 0".to_owned())
}

/// `endcap eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// What is measured on.
    pub market: EvalMarket,
    /// Where the data lies.
    #[command(flatten)]
    pub data: DataArgs,
    /// Directory of the models [default: the small ones inside this binary].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// Held-out households.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub households: usize,
    /// Writes the figures to a JSON file, too.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Markets whose truth is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EvalMarket {
    /// The demo market.
    Demo,
}

/// `endcap train`.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// The model; each needs those before it. With --market, all that a market needs where none is named.
    #[arg(required_unless_present = "market")]
    pub what: Option<Trainable>,
    /// An imported market: goes on from finished models with what its merchandiser teaches, and writes them where `endcap up --market`
    /// looks first. The encoder stays as it is.
    #[arg(long, value_name = "DIR")]
    pub market: Option<PathBuf>,
    /// Models to go on from [default: with --market the small ones inside this binary, else none].
    #[arg(long, value_name = "DIR")]
    pub from: Option<String>,
    /// Directory of the models, with one folder each [default: models/demo; with --market its own].
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Time to train, in minutes; a run that was stopped goes on where it was [default: 10; for a whole market 75].
    #[arg(long, value_name = "MINUTES")]
    pub minutes: Option<f64>,
    /// Optimiser steps of each model in place of minutes: the result is then a function of the seed.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    pub steps: Option<u64>,
    /// Seed of weights and samples.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; the result does not depend on them.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Highest learning rate [default: 0.001; of adapters 0.0015].
    #[arg(long)]
    pub rate: Option<f32>,
    /// Directory of all-MiniLM-L6-v2, which the encoder is distilled from.
    #[arg(long, value_name = "DIR", required_if_eq("what", "encoder"))]
    pub teacher: Option<PathBuf>,
    /// Blocks of the decoder, where it begins afresh.
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Values inside the decoder's feed-forward block, where it begins afresh.
    #[arg(long, default_value_t = 768)]
    pub inner: usize,
    /// Where the data lies: the demo market of the re-ranking model is there, or made there.
    #[command(flatten)]
    pub data: DataArgs,
}

/// What can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trainable {
    /// The encoder, distilled from a larger one; makes the tokenizer that all share.
    Encoder,
    /// The cross-encoder, from the encoder.
    CrossEncoder,
    /// The decoder's base.
    Decoder,
    /// The decoder's adapter for themes.
    Themes,
    /// The decoder's adapter for keywords.
    Keywords,
    /// What arranges rows as a whole: trained on simulated shoppers of the demo market, which has a truth.
    Reranker,
}

impl Trainable {
    /// Its name, as the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Trainable::Encoder => "encoder",
            Trainable::CrossEncoder => "cross-encoder",
            Trainable::Decoder => "decoder",
            Trainable::Themes => "themes",
            Trainable::Keywords => "keywords",
            Trainable::Reranker => "reranker",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme() {
        for (text, expected) in [
            ("127.0.0.1:8484", Some("http://127.0.0.1:8484")),
            ("http://shop:80/", Some("http://shop:80")),
            ("https://shop", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(address(text).ok().as_deref(), expected, "{text}");
        }
    }
}
