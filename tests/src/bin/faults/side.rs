//! What the path runs on: one file, or Kafka and CQL. Everything of a run lies in one temporary directory.

use std::{
    env, fmt, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use endcap::{
    config::{Config, Layer, Settings},
    data,
    sides::Sides,
};
use endcap_engine::fixture;
use endcap_runtime::{Embedded, EmbeddedConfig, SystemClock};
use endcap_tests::Run;

use crate::{PROGRAM, patience::Patience};

/// Partitions of every topic on Kafka.
const PARTITIONS: u16 = 4;
/// Before servers are asked again to take topics and tables.
const DECLARE_EVERY: Duration = Duration::from_secs(2);

/// What the path runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Side {
    /// Log and store in one file.
    File,
    /// Kafka and a CQL server.
    Servers,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::File => "file",
            Side::Servers => "servers",
        })
    }
}

/// The sides to run on: the one that is named, else all that there are.
///
/// # Errors
/// When servers are wanted and the environment names none.
pub(crate) fn wanted(named: Option<Side>) -> Result<Vec<Side>> {
    let required = env::var("ENDCAP_REQUIRE_SERVICES").is_ok_and(|required| required == "1");
    let servers = Servers::from_env();
    match named {
        Some(Side::File) => Ok(vec![Side::File]),
        Some(Side::Servers) => servers.map(|_| vec![Side::Servers]),
        None if required => servers.map(|_| vec![Side::File, Side::Servers]),
        None => Ok(match servers {
            Ok(_) => vec![Side::File, Side::Servers],
            Err(absent) => {
                eprintln!("skipped on servers: {absent:#}");
                vec![Side::File]
            }
        }),
    }
}

/// The servers that the environment names, and the script that takes them away.
#[derive(Debug, Clone)]
struct Servers {
    kafka: String,
    cql: String,
    user: String,
    password: String,
    script: PathBuf,
}

impl Servers {
    fn from_env() -> Result<Self> {
        let of = |name: &str| {
            env::var(name).with_context(|| {
                format!("{name} is not set: tests/services/services up, and take on what tests/services/services env prints")
            })
        };
        let login = |name| env::var(name).unwrap_or_else(|_| "cassandra".to_owned());
        Ok(Self {
            kafka: of("ENDCAP_TEST_KAFKA")?,
            cql: of("ENDCAP_TEST_CQL")?,
            user: login("ENDCAP_TEST_CQL_USER"),
            password: login("ENDCAP_TEST_CQL_PASSWORD"),
            script: PathBuf::from(of("ENDCAP_TEST_SERVICES")?),
        })
    }
}

/// Where a run happens. Its files go with it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    servers: Option<Servers>,
    /// Names what is this run's alone on the servers.
    own: String,
    /// The program under test, as it is started.
    program: PathBuf,
    pub(crate) models: String,
}

impl Place {
    /// A new one; without `models` tiny ones are written.
    pub(crate) fn make(side: Side, models: Option<&Path>) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let servers = match side {
            Side::File => None,
            Side::Servers => Some(Servers::from_env()?),
        };
        let program = program_in(dir.path())?;
        let models = match models {
            Some(models) => models.to_owned(),
            None => tiny_models(dir.path())?,
        };
        let own = format!("faults{}x{}", std::process::id(), side as u8);
        Ok(Self { servers, own, program, models: models.display().to_string(), dir })
    }

    /// Makes topics and tables, where they are on servers. A server that has just started, on a busy machine, may need a second asking.
    ///
    /// # Errors
    /// When the servers do not take them in time.
    pub(crate) fn declare(&self, patience: &Patience) -> Result<()> {
        if self.servers.is_none() {
            return Ok(());
        }
        let config = self.config("declaring")?;
        for args in [["topics", "apply"], ["store", "migrate"]] {
            patience.until("topics and tables", DECLARE_EVERY, || {
                let output = self.run().plain(&[&args[..], &["--config", &config]].concat())?;
                if !output.status.success() {
                    patience.tell(&format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
                }
                Ok(output.status.success())
            })?;
        }
        Ok(())
    }

    /// The program on the run's data directory.
    pub(crate) fn run(&self) -> Run {
        Run::new(&self.program.display().to_string(), &self.data())
    }

    /// The program on an empty data directory, with a file for log and store whatever the run's side is.
    pub(crate) fn run_apart(&self) -> (Run, PathBuf) {
        let data = self.dir.path().join("calm");
        (Run::new(&self.program.display().to_string(), &data), data)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Log and store in one file.
    pub(crate) fn file(&self) -> PathBuf {
        data::file_in(&self.data())
    }

    /// The market that the run's processes made.
    pub(crate) fn market(&self) -> PathBuf {
        data::market_in(&self.data())
    }

    /// Writes the configuration of a process, whose `name` no other one has at the same time; gives the file.
    pub(crate) fn config(&self, name: &str) -> Result<String> {
        self.config_with(name, "")
    }

    /// The same with `more` about the store on servers.
    fn config_with(&self, name: &str, more: &str) -> Result<String> {
        let mut text = format!("shoppers = 0\ndebounce = \"200ms\"\ndata = \"{}\"\n", self.data().display());
        if let Some(servers) = &self.servers {
            text += &servers.tables(&self.own, name);
            text += more;
        }
        let path = self.dir.path().join(format!("{name}.toml"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Where a process called `name` may write what it says.
    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.out"))
    }

    /// Log and store, to look into and to write to. Who looks is more patient than who is looked at: a slow answer is no finding.
    pub(crate) fn sides(&self) -> Result<Sides> {
        let path = self
            .config_with("looking", "[scylla.timeouts]\nread = \"20s\"\ndecide = \"20s\"\nwrite = \"20s\"\nscan = \"60s\"\n")?;
        Sides::open_existing(&settings(&path)?)
    }

    /// Orders a server's script about; `None` on a file.
    pub(crate) fn services(&self) -> Option<&Path> {
        self.servers.as_ref().map(|servers| servers.script.as_path())
    }
}

impl Servers {
    /// Tables of the configuration. Sessions and transactions are as short as brokers allow, or little more, so that a process that is
    /// killed holds up the others for seconds only.
    fn tables(&self, own: &str, instance: &str) -> String {
        let Self { kafka, cql, user, password, .. } = self;
        format!(
            "[kafka]\nbrokers = [\"{kafka}\"]\nnamespace = \"{own}\"\ninstance = \"{instance}\"\nsession_timeout_s = 6\ndrain_s = 3\n\
             transaction_timeout_s = 10\n[topics]\npartitions = {PARTITIONS}\nreplication = 1\nmin_in_sync = 1\n[scylla]\n\
             contact_points = [\"{cql}\"]\nkeyspace = \"{own}\"\nreplication = 1\nuser = \"{user}\"\npassword = \"{password}\"\n"
        )
    }
}

/// What the configuration file in `path` says.
fn settings(path: &str) -> Result<Config> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(Settings::resolve(&[Layer::of_file(Path::new(path), &text)])?.config)
}

/// The embedded log and store in `data`.
pub(crate) fn open_file(data: &Path) -> Result<Embedded> {
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    Ok(Embedded::open(data::file_in(data), EmbeddedConfig::default(), Arc::new(SystemClock::default()))?)
}

/// This binary under the name of the program, behind a script that lets a write beyond a limit of size fail instead of ending the process:
/// that is how a disk without room answers.
fn program_in(dir: &Path) -> Result<PathBuf> {
    let this = env::current_exe().context("cannot find this program's file")?;
    let (program, script) = (dir.join(PROGRAM), dir.join("start"));
    symlink(&this, &program).context("cannot link the program under test")?;
    fs::write(&script, format!("#!/bin/sh\ntrap '' XFSZ\nexec '{}' \"$@\"\n", program.display()))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .context("cannot write the script that starts the program")?;
    Ok(script)
}

fn tiny_models(dir: &Path) -> Result<PathBuf> {
    let models = dir.join("models");
    fixture::write_decoder(&models.join("decoder"), 1)?;
    fixture::write_encoder(&models.join("encoder"), 2)?;
    fixture::write_cross_encoder(&models.join("cross-encoder"), 3)?;
    if !models.join("decoder").is_dir() {
        bail!("the tiny models are not in {}", models.display());
    }
    Ok(models)
}
