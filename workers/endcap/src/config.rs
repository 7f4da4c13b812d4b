//! What `endcap up` is told: file, then environment, then flags, parsed once into values that cannot be wrong.
//!
//! Every source is first read as plain text by key, so that an unknown key or a bad value is found wherever it stands, and all
//! faults are told together. Nothing else reads the environment.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use endcap_aiqa::AiqaConfig;
use endcap_context::ContextConfig;
use endcap_dedup::DedupConfig;
use endcap_keywords::KeywordsConfig;
use endcap_log_kafka::{KafkaConfig, TopicSettings};
use endcap_ranking::RankingConfig;
use endcap_store_scylla::ScyllaConfig;
use endcap_themes::ThemesConfig;
use serde::de::DeserializeOwned;

use crate::{cli::Flags, path::PathConfig};

/// Tables of the file: the stages' own settings.
pub const STAGES: [&str; 5] = ["context", "themes", "keywords", "dedup", "aiqa"];
/// Tables of the file: settings of the ranking service, which no page depends on.
pub const SERVICES: [&str; 1] = ["ranking"];
/// Tables of the file: where log and store are, in place of the data directory.
pub const SIDES: [&str; 3] = ["kafka", "topics", "scylla"];

/// Key of the table `kafka` that names this process.
const INSTANCE: &str = "instance";

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 22] = [
    "data",
    "market",
    "models",
    "decoder",
    "encoder",
    "cross_encoder",
    "device",
    "shoppers",
    "rate",
    "events",
    "seed",
    "bind",
    "token",
    "debounce",
    "backfill_share",
    "retention",
    "log_format",
    "batch_tokens",
    "kafka_password",
    "kafka_key_password",
    "kafka_registry_token",
    "scylla_password",
];

/// Secrets of the sides: the key that brings each from the environment, its side, and its place there: in a table of the side's, or among the
/// side's own keys.
const SECRETS: [(&str, &str, SecretPlace); 4] = [
    ("kafka_password", "kafka", (None, "password")),
    ("kafka_key_password", "kafka", (None, "key_password")),
    ("kafka_registry_token", "kafka", (Some("registry"), "token")),
    ("scylla_password", "scylla", (None, "password")),
];
type SecretPlace = (Option<&'static str>, &'static str);

/// Variables of the environment that begin so are others' and no keys: what Kubernetes sets for a service named `endcap`, and what the
/// project's tests and their servers go by.
const OTHERS: [&str; 5] = ["ENDCAP_SERVICE_", "ENDCAP_PORT", "ENDCAP_TEST_", "ENDCAP_REQUIRE_", "ENDCAP_SERVICES_"];

/// The keys that are numbers; all others are texts.
const NUMBERS: [&str; 5] = ["shoppers", "rate", "events", "seed", "batch_tokens"];

/// What `endcap up` runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Directory of log, store and demo market.
    pub data: PathBuf,
    /// Directory of an imported market; `None` for the demo market.
    pub market: Option<PathBuf>,
    /// Directory of the models; `None` for those inside the binary.
    pub models: Option<PathBuf>,
    /// Directory of the decoder, in place of the one among the models: a real checkpoint, say.
    pub decoder: Option<PathBuf>,
    /// Directory of the encoder, likewise.
    pub encoder: Option<PathBuf>,
    /// Directory of the cross-encoder, likewise.
    pub cross_encoder: Option<PathBuf>,
    /// Where models run.
    pub device: Device,
    /// Simulated shoppers.
    pub shoppers: u32,
    /// Events per second; `None` is without limit.
    pub rate: Option<f64>,
    /// Events until the feeder ends; `None` is without end.
    pub events: Option<NonZeroU64>,
    /// Seed of market and shoppers.
    pub seed: u64,
    /// Address of the web page.
    pub bind: SocketAddr,
    /// What requests must bring.
    pub token: Option<Token>,
    /// How long a shopper must rest before a page is made.
    pub debounce: Duration,
    /// How long the log keeps what every group has read.
    pub retention: Duration,
    /// Tokens of one model batch.
    pub batch_tokens: usize,
    /// Where the log is; `None` for the one in the data directory.
    pub kafka: Option<KafkaConfig>,
    /// Whether nobody names this process there: its instance is the machine's name then, to which the data directory adds a slot.
    pub unnamed: bool,
    /// What the topics are like there.
    pub topics: TopicSettings,
    /// Where the store is; `None` for the one in the data directory.
    pub scylla: Option<ScyllaConfig>,
}

/// Everything that can be set: the process, and the stages' own settings from the file's tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Of the process.
    pub config: Config,
    /// Of the stages.
    pub path: PathConfig,
    /// Of the ranking service.
    pub ranking: RankingConfig,
}

/// Where models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    Cpu,
    /// On the first NVIDIA GPU.
    Cuda,
}

impl Device {
    /// Its name, as it is configured.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A secret that requests must bring. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Fewest bytes of a token.
    pub const MIN_BYTES: usize = 16;
    /// What a token must be, in words.
    pub const WANTED: &str = "at least 16 of the characters A-Z a-z 0-9 - . _ ~";

    /// The token of this text; `None` where it is too short or has a character that does not mean itself in an address and in a cookie.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        (text.len() >= Self::MIN_BYTES && text.bytes().all(is_plain)).then(|| Self(text.to_owned()))
    }

    /// The secret, for comparison.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// A token of this text, unchecked by length: for tests and for clients.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "configuration: {one}"),
            many => {
                write!(f, "configuration has {} faults:", many.len())?;
                many.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
            }
        }
    }
}

/// One source of values: its name for error messages and its texts by key.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    name: String,
    values: BTreeMap<String, String>,
    tables: BTreeMap<String, toml::Table>,
    faults: Vec<String>,
}

impl Layer {
    /// The file's layer: a TOML file of strings and numbers, and one table per stage and side.
    pub fn of_file(path: &Path, text: &str) -> Self {
        let mut layer = Self { name: path.display().to_string(), ..Self::default() };
        match text.parse::<toml::Table>() {
            Ok(table) => table.into_iter().for_each(|(key, value)| layer.set_typed(key, value)),
            Err(error) => layer.faults.push(format!("{}: not a TOML file: {}", layer.name, error.message())),
        }
        layer
    }

    /// The environment's layer: `ENDCAP_BIND` is `bind`. Others' variables are passed over.
    pub fn of_env(vars: impl Iterator<Item = (String, String)>) -> Self {
        let mut layer = Self { name: "environment".to_owned(), ..Self::default() };
        for (name, value) in vars.filter(|(name, _)| !OTHERS.iter().any(|prefix| name.starts_with(prefix))) {
            let Some(key) = name.strip_prefix("ENDCAP_").map(str::to_lowercase) else { continue };
            match tables().find(|table| key.starts_with(&format!("{table}_"))) {
                Some(table) if !KEYS.contains(&key.as_str()) => layer.faults.push(format!(
                    "{}: unknown key `{key}`; known are {}. What is in table `{table}` can stand in the file alone, under `[{table}]`",
                    layer.name,
                    KEYS.join(", ")
                )),
                _ => layer.set(key, value),
            }
        }
        layer
    }

    /// The command line's layer.
    pub fn of_flags(flags: &Flags, log_format: Option<&String>) -> Self {
        let mut layer = Self { name: "command line".to_owned(), ..Self::default() };
        let log_format = log_format.map(|format| ("log_format", format));
        for (key, value) in flags.iter().map(|(key, value)| (*key, value)).chain(log_format) {
            layer.set(key.to_owned(), value.clone());
        }
        layer
    }

    /// What a subcommand has in place of the program's own defaults.
    pub fn of_defaults(defaults: &[(&str, &str)]) -> Self {
        let mut layer = Self { name: "defaults".to_owned(), ..Self::default() };
        defaults.iter().for_each(|(key, value)| layer.set((*key).to_owned(), (*value).to_owned()));
        layer
    }

    /// A value of the file, which has a type of its own: a path that is written as a number, say, is a slip.
    fn set_typed(&mut self, key: String, value: toml::Value) {
        let (is_key, is_number) = (KEYS.contains(&key.as_str()), NUMBERS.contains(&key.as_str()));
        match value {
            toml::Value::Table(table) if tables().any(|known| known == key) => {
                self.tables.insert(key, table);
            }
            toml::Value::String(text) if !is_number => self.set(key, text),
            toml::Value::Integer(number) if is_number => self.set(key, number.to_string()),
            toml::Value::Float(number) if is_number => self.set(key, number.to_string()),
            other if is_key => {
                let wanted = if is_number { "a number without quotes" } else { "a text in quotes" };
                self.faults.push(format!("{}: `{key}` is {}, {wanted} is needed", self.name, a_type(&other)));
            }
            toml::Value::Table(_) => {
                let known: Vec<&str> = tables().collect();
                self.faults.push(format!("{}: unknown table `{key}`; known are {}", self.name, known.join(", ")));
            }
            other => self.set(key, other.to_string()),
        }
    }

    fn set(&mut self, key: String, value: String) {
        if KEYS.contains(&key.as_str()) {
            self.values.insert(key, value);
        } else {
            self.faults.push(format!("{}: unknown key `{key}`; known are {}", self.name, KEYS.join(", ")));
        }
    }
}

impl Settings {
    /// Merges `layers`, the later ones over the earlier, and checks every value.
    ///
    /// # Errors
    /// All faults of all layers.
    pub fn resolve(layers: &[Layer]) -> Result<Self, Faults> {
        let mut merged = Merged { layers, faults: layers.iter().flat_map(|layer| layer.faults.clone()).collect() };
        let config = Config::take(&mut merged);
        let path = PathConfig {
            context: merged.table("context", ContextConfig::check),
            themes: merged.table("themes", ThemesConfig::check),
            keywords: merged.table("keywords", KeywordsConfig::check),
            dedup: merged.table("dedup", DedupConfig::check),
            aiqa: merged.table("aiqa", AiqaConfig::check),
            debounce: config.debounce,
            backfill_share: merged.get("backfill_share", "a whole number from 2 to 1000", backfill_share),
        };
        let ranking = merged.table("ranking", RankingConfig::check);
        if merged.faults.is_empty() { Ok(Self { config, path, ranking }) } else { Err(Faults(merged.faults)) }
    }
}

impl Config {
    fn take(merged: &mut Merged<'_>) -> Self {
        let events = merged.get("events", "a whole number from 1 on", |text| text.parse().ok());
        merged.get("log_format", "`text` or `json`", log_format); // known before all others: `LogFormat::of`
        let config = Self {
            data: merged.get("data", "a directory", path).unwrap_or_else(|| PathBuf::from("endcap-data")),
            market: merged.get("market", "a directory", path),
            models: merged.get("models", "a directory", path),
            decoder: merged.get("decoder", "a directory", path),
            encoder: merged.get("encoder", "a directory", path),
            cross_encoder: merged.get("cross_encoder", "a directory", path),
            device: merged.get("device", "`cpu` or `cuda`", device).unwrap_or(Device::Cpu),
            shoppers: merged.get("shoppers", "a whole number up to 100000", shoppers).unwrap_or(100),
            rate: merged.get("rate", "events per second, more than 0", rate).or(if events.is_some() { None } else { Some(2.0) }),
            seed: merged.get("seed", "a whole number", |text| text.parse().ok()).unwrap_or(1),
            bind: merged
                .get("bind", "an address such as 127.0.0.1:8484", |text| text.parse().ok())
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8484))),
            token: merged.get("token", Token::WANTED, Token::parse),
            debounce: merged
                .get("debounce", "a time up to 1h, such as 2s or 500ms", |text| time(text, Duration::from_secs(3_600)))
                .unwrap_or(if events.is_some() { Duration::ZERO } else { Duration::from_secs(2) }),
            retention: merged
                .get("retention", "a time up to 10years, such as 7days", |text| time(text, Duration::from_secs(315_576_000)))
                .unwrap_or(Duration::from_secs(7 * 86_400)),
            batch_tokens: merged.get("batch_tokens", "tokens, 256 to 1048576", batch_tokens).unwrap_or(16_384),
            unnamed: merged.table_of("kafka").is_some_and(|(_, table)| !table.contains_key(INSTANCE)),
            kafka: merged.side("kafka"),
            topics: merged.table("topics", TopicSettings::check),
            scylla: merged.side("scylla"),
            events,
        };
        if config.kafka.is_some() && merged.table_of("scylla").is_none() {
            merged.faults.push(
                "`kafka` is a log that several machines share, and a shopper's state must be where the shopper's events come: name the store \
                 that they share in the table `scylla`"
                    .to_owned(),
            );
        }
        if !config.bind.ip().is_loopback() && config.token.is_none() {
            merged.faults.push(format!("`bind` {} is open to others: a `token` is needed", config.bind));
        }
        config
    }
}

impl LogFormat {
    /// What the last of `layers` that names a format says, whatever else is wrong in them: faults too are written in it.
    pub fn of(layers: &[Layer]) -> Self {
        let named = layers.iter().rev().find_map(|layer| layer.values.get("log_format"));
        named.and_then(|text| log_format(text.trim())).unwrap_or(Self::Text)
    }
}

struct Merged<'a> {
    layers: &'a [Layer],
    faults: Vec<String>,
}

impl<'a> Merged<'a> {
    fn get<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (layer, text) = self.layers.iter().rev().find_map(|layer| Some((layer, layer.values.get(key)?)))?;
        let value = parse(text.trim());
        if value.is_none() {
            let shown = if key == "token" { "its value".to_owned() } else { format!("{text:?}") };
            self.faults.push(format!("{}: `{key}` must be {wanted}, {shown} is not", layer.name));
        }
        value
    }

    /// The table `key` of the last file that has one.
    fn table_of(&self, key: &str) -> Option<(&'a Layer, &'a toml::Table)> {
        self.layers.iter().rev().find_map(|layer| Some((layer, layer.tables.get(key)?)))
    }

    /// A stage's settings, checked; the default where no file has its table.
    fn table<T: DeserializeOwned + Default>(&mut self, key: &str, check: impl Fn(&T) -> Vec<String>) -> T {
        let Some((layer, table)) = self.table_of(key) else { return T::default() };
        let (settings, faults) = match table.clone().try_into::<T>() {
            Ok(settings) => {
                let faults = check(&settings);
                (settings, faults)
            }
            Err(error) => (T::default(), vec![with_key(&error)]),
        };
        self.faults.extend(faults.into_iter().map(|fault| format!("{}: table `{key}`: {fault}", layer.name)));
        settings
    }

    /// The settings of a side, where a file has its table, with its secrets.
    fn side<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let (layer, table) = self.table_of(key)?;
        let from_outside = |name: &str| self.layers.iter().rev().find_map(|layer| layer.values.get(name));
        let mut table = table.clone();
        if key == "kafka" {
            table.entry(INSTANCE).or_insert_with(|| toml::Value::String(machine()));
        }
        let own = SECRETS.into_iter().filter(|(_, side, _)| *side == key);
        let put = own.map(|(name, _, place)| put_secret(&mut table, place, from_outside(name).map(String::as_str)));
        let mut faults: Vec<String> = put.filter_map(Result::err).collect();
        let settings =
            if faults.is_empty() { table.try_into().map_err(|error| faults.push(with_key(&error))).ok() } else { None };
        self.faults.extend(faults.into_iter().map(|fault| format!("{}: table `{key}`: {fault}", layer.name)));
        settings
    }
}

/// Every table of the file.
fn tables() -> impl Iterator<Item = &'static str> {
    STAGES.into_iter().chain(SERVICES).chain(SIDES)
}

/// What is wrong in a table, and at which of its keys.
fn with_key(error: &toml::de::Error) -> String {
    error.to_string().trim_end().replace('\n', ", ")
}

/// The type of a value of the file, in words.
fn a_type(value: &toml::Value) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// The machine's name, as far as a process may be called so.
fn machine() -> String {
    let machine = gethostname::gethostname();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    machine.to_string_lossy().chars().map(plain).collect()
}

/// Puts a secret of a side into its place in the side's table, from the environment or from a file that the table names.
fn put_secret(side: &mut toml::Table, (table, name): SecretPlace, from_outside: Option<&str>) -> Result<(), String> {
    let whole = table.map_or_else(|| name.to_owned(), |table| format!("{table}.{name}"));
    let table = match table.map(|table| (table, side.get_mut(table))) {
        None => side,
        Some((_, Some(toml::Value::Table(table)))) => table,
        Some((table, Some(other))) => return Err(format!("`{table}` is {}, a table is needed", a_type(other))),
        Some((table, None)) if from_outside.is_some() => {
            return Err(format!("`{whole}` is given, and there is no table `{table}` for it"));
        }
        Some((_, None)) => return Ok(()),
    };
    let by_file = format!("{name}_file");
    let file = table.remove(&by_file);
    if file.is_some() && table.contains_key(name) {
        return Err(format!("`{whole}` and `{whole}_file` are both given: one is needed"));
    }
    let secret = match (from_outside, file) {
        (Some(secret), _) => one_line(secret),
        (None, None) => return Ok(()),
        (None, Some(toml::Value::String(path))) => match fs::read_to_string(&path) {
            Ok(text) => one_line(&text),
            Err(error) => return Err(format!("cannot read `{whole}_file` {path}: {error}")),
        },
        (None, Some(other)) => return Err(format!("`{whole}_file` is {}, a path is needed", a_type(&other))),
    };
    table.insert(name.to_owned(), toml::Value::String(secret));
    Ok(())
}

/// A secret without the end of its line, which files, and variables that are made of files, often have.
fn one_line(secret: &str) -> String {
    secret.trim_end_matches(['\r', '\n']).to_owned()
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn device(text: &str) -> Option<Device> {
    match text {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda),
        _ => None,
    }
}

fn shoppers(text: &str) -> Option<u32> {
    text.parse().ok().filter(|n| *n <= 100_000)
}

fn backfill_share(text: &str) -> Option<u32> {
    text.parse().ok().filter(|share| (2..=1_000).contains(share))
}

fn rate(text: &str) -> Option<f64> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
}

fn time(text: &str, most: Duration) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|time| *time <= most)
}

fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn batch_tokens(text: &str) -> Option<usize> {
    text.parse().ok().filter(|tokens| (256..=1_048_576).contains(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Layer {
        Layer::of_env(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    fn file(text: &str) -> Layer {
        Layer::of_file(Path::new("endcap.toml"), text)
    }

    fn resolved(layers: &[Layer]) -> Result<Config, Faults> {
        Settings::resolve(layers).map(|settings| settings.config)
    }

    fn check(layers: &[Layer], expected: &[&str]) {
        let faults = Settings::resolve(layers).expect_err("a configuration with faults").0;
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, part) in faults.iter().zip(expected) {
            assert!(fault.contains(part), "`{fault}` does not say `{part}`");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file() {
        let flags = Layer::of_flags(&vec![("seed", "3".to_owned())], None);
        let layers = [
            file("seed = 1\nshoppers = 7\nbind = \"127.0.0.1:1\""),
            env(&[("ENDCAP_SEED", "2"), ("ENDCAP_BIND", "[::1]:2"), ("PATH", "/bin"), ("ENDCAP_SERVICE_HOST", "10.0.0.1")]),
            flags,
        ];
        let config = resolved(&layers).unwrap();
        assert_eq!((config.seed, config.shoppers, config.bind.to_string()), (3, 7, "[::1]:2".to_owned()));
    }

    #[test]
    fn variables_of_the_environment_that_are_others_are_passed_over_and_unknown_ones_refused() {
        let others = [
            "ENDCAP_SERVICE_HOST",
            "ENDCAP_PORT_8484_TCP",
            "ENDCAP_TEST_KAFKA",
            "ENDCAP_REQUIRE_SERVICES",
            "ENDCAP_SERVICES_DIR",
            "ENDCAP_SERVICES_PATIENCE_S",
        ];
        resolved(&[env(&others.map(|name| (name, "x")))]).unwrap();
        check(&[env(&[("ENDCAP_TESTS", "x"), ("ENDCAP_SERVICES", "x")])], &["unknown key `tests`", "unknown key `services`"]);
        check(
            &[env(&[("ENDCAP_KAFKA_PASSWRD", "x"), ("ENDCAP_RANKING_AT_ONCE_MAX", "x")])],
            &["scylla_password. What is in table `kafka` can stand in the file alone", "under `[ranking]`"],
        );
    }

    #[test]
    fn a_bounded_run_has_neither_rate_limit_nor_debounce() {
        let config = resolved(&[env(&[("ENDCAP_EVENTS", "300")])]).unwrap();
        assert_eq!((config.rate, config.debounce, config.shoppers), (None, Duration::ZERO, 100));
        let config = resolved(&[]).unwrap();
        assert_eq!((config.rate, config.debounce), (Some(2.0), Duration::from_secs(2)));
    }

    #[test]
    fn all_faults_are_told_together() {
        check(
            &[file("colour = \"red\"\nseed = [1]\nrate = 0"), env(&[("ENDCAP_DEVICE", "abacus"), ("ENDCAP_BIND", "0.0.0.0:80")])],
            &["unknown key `colour`", "`seed` is an array", "`device` must be", "`rate` must be", "a `token` is needed"],
        );
        check(
            &[file("[aiqa]\nfloor = 4\nbeauty = 7\n[weather]\nx = 1")],
            &["unknown table `weather`", "table `aiqa`: unknown field `beauty`"],
        );
        check(
            &[file("[aiqa]\nfloor = 0\nshare_min = 1.5\n[dedup]\ncosine_min = nan\n[themes.guard]\ntitle_chars_min = 61")],
            &[
                "table `themes`: `guard.title_chars_min` must be 1 to 60, 61 is not",
                "table `dedup`: `cosine_min` must be -1 to 1, NaN is not",
                "table `aiqa`: `share_min` must be 0 to 1, 1.5 is not",
                "`floor` must be 1 to 100, 0 is not",
            ],
        );
        check(
            &[file(
                "market = 5\nseed = \"7\"\ndebounce = 2\ndevice = true\n[aiqa]\nfloor = \"four\"\n[themes.guard]\ntitle_chars_min = 1.5",
            )],
            &[
                "endcap.toml: `debounce` is an integer, a text in quotes is needed",
                "endcap.toml: `device` is a boolean, a text in quotes is needed",
                "endcap.toml: `market` is an integer, a text in quotes is needed",
                "endcap.toml: `seed` is a string, a number without quotes is needed",
                "table `themes`: invalid type: floating point `1.5`, expected usize, in `guard.title_chars_min`",
                "table `aiqa`: invalid type: string \"four\", expected usize, in `floor`",
            ],
        );
        check(&[file("[ranking]\nproducts_max = 40")], &["table `ranking`: `products_max` must be 1 to 32, 40 is not"]);
        check(&[file("seed = ")], &["not a TOML file"]);
        check(&[env(&[("ENDCAP_DEBOUNCE", "2 parsecs"), ("ENDCAP_EVENTS", "0")])], &["`events` must be", "`debounce` must be"]);
    }

    #[test]
    fn the_stages_defaults_pass_their_own_checks_and_leave_the_threshold_to_the_model() {
        let tables = STAGES.map(|table| format!("[{table}]\n")).concat();
        let path = Settings::resolve(&[file(&tables)]).unwrap().path;
        assert_eq!(path, PathConfig { debounce: path.debounce, ..PathConfig::default() });
        let path = Settings::resolve(&[file("[aiqa]\nfloor = 4")]).unwrap().path;
        assert_eq!((path.aiqa.floor, path.aiqa.threshold), (4, None));
    }

    #[test]
    fn a_side_takes_its_password_from_the_environment_or_a_file_and_shows_it_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "hunter2\n").unwrap();
        let table = |more: &str| {
            file(&format!(
                "[scylla]\n[kafka]\nbrokers = ['a:9092']\nsecurity = 'sasl_ssl'\nmechanism = 'PLAIN'\nuser = 'u'\ninstance = 'x'\n{more}"
            ))
        };
        check(&[table("")], &["table `kafka`: `password` is missing"]);
        let by_file = resolved(&[table(&format!("password_file = '{}'", secret.display()))]).unwrap();
        let by_env = resolved(&[table(""), env(&[("ENDCAP_KAFKA_PASSWORD", "hunter2")])]).unwrap();
        assert_eq!(by_file.kafka, by_env.kafka);
        assert!(by_file.kafka.is_some() && !by_file.unnamed && !format!("{by_file:?}").contains("hunter2"));
        let unnamed = file("[scylla]\n[kafka]\nbrokers = ['a:9092']");
        assert!(resolved(&[unnamed]).unwrap().unnamed);
        check(&[table("password = 'hunter2'\npassword_file = 'x'")], &["both given"]);
        check(
            &[table("password_file = '/nowhere'\nkey_password_file = '/nowhere/else'")],
            &["cannot read `password_file` /nowhere:", "cannot read `key_password_file` /nowhere/else:"],
        );
        check(&[table("password = 'p'\nregistry = ['http://r', 't']")], &["`registry` is an array, a table is needed"]);
        check(&[table("password_file = '/nowhere/at/all'")], &["cannot read `password_file` /nowhere/at/all"]);
        let registry = |more: &str| table(&format!("password = 'p'\n[kafka.registry]\nurl = 'http://r'\n{more}"));
        let by_file = resolved(&[registry(&format!("token_file = '{}'", secret.display()))]).unwrap();
        let by_env = resolved(&[registry(""), env(&[("ENDCAP_KAFKA_REGISTRY_TOKEN", "hunter2\n")])]).unwrap();
        let token = by_env.kafka.as_ref().unwrap().settings().registry.as_ref().unwrap().token.as_ref().unwrap();
        assert_eq!((by_file.kafka.as_ref(), token.reveal()), (by_env.kafka.as_ref(), "hunter2"));
        check(&[registry("token = 't'\ntoken_file = 'x'")], &["`registry.token` and `registry.token_file` are both given"]);
        check(
            &[table("password = 'p'"), env(&[("ENDCAP_KAFKA_REGISTRY_TOKEN", "hunter2")])],
            &["`registry.token` is given, and there is no table `registry`"],
        );
        let mutual = |more: &str| {
            file(&format!(
                "[scylla]\n[kafka]\nbrokers = ['a:9092']\nsecurity = 'ssl'\ncertificate = 'c'\nkey = 'k'\ninstance = 'x'\n{more}"
            ))
        };
        let by_file = resolved(&[mutual(&format!("key_password_file = '{}'", secret.display()))]).unwrap();
        let by_env = resolved(&[mutual(""), env(&[("ENDCAP_KAFKA_KEY_PASSWORD", "hunter2")])]).unwrap();
        let key_password = by_env.kafka.as_ref().unwrap().settings().key_password.as_ref().unwrap();
        assert_eq!((by_file.kafka.as_ref(), key_password.reveal()), (by_env.kafka.as_ref(), "hunter2"));
        let faults = resolved(&[table("password = 12345678")]).unwrap_err().to_string();
        assert!(!faults.contains("12345678"), "{faults}");
        check(&[file("[scylla]\nkeyspace = '1'")], &["table `scylla`: `keyspace` must be"]);
        check(&[file("[kafka]\nbrokers = ['a:9092']")], &["name the store that they share in the table `scylla`"]);
        assert_eq!(resolved(&[]).unwrap().kafka, None);
    }

    #[test]
    fn a_token_is_never_shown() {
        let faults = resolved(&[env(&[("ENDCAP_TOKEN", "hunter2")])]).unwrap_err().to_string();
        assert!(!faults.contains("hunter2"), "{faults}");
        let config = resolved(&[env(&[("ENDCAP_TOKEN", "0123456789abcdef")])]).unwrap();
        assert!(!format!("{config:?}").contains("0123456789"));
    }

    #[test]
    fn a_token_is_one_that_a_browser_hands_on_as_it_is() {
        resolved(&[env(&[("ENDCAP_TOKEN", "AZaz09-._~AZaz09")])]).unwrap();
        for text in ["abc+/=;%41abcdefghij", "correct horse battery", "crème-brûlée-crème", "fifteen-bytes.."] {
            check(&[env(&[("ENDCAP_TOKEN", text)])], &["at least 16 of the characters A-Z a-z 0-9 - . _ ~"]);
        }
    }
}
