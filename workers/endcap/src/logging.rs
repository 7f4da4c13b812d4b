//! Log lines: text or JSON, to standard error; with JSON nothing else is written there. What the program says of itself goes past the
//! filter of log lines. User ids never stand in them: [`Anonymiser`] gives a short keyed hash instead.

use std::{
    fs,
    io::{ErrorKind, Write},
    panic,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use anyhow::{Context, Result};
use endcap_schemas::UserKey;
use rand::{TryRng, rngs::SysRng};
use serde::Serialize;
use tempfile::NamedTempFile;
use tracing::Level;
use tracing_subscriber::EnvFilter;

use crate::{
    config::LogFormat,
    progress::{LogWriter, is_watched},
};

/// Levels where `RUST_LOG` says nothing else. The CQL driver warns of each attempt to reach a store that is away; that none succeeded it tells
/// as an error.
const LEVEL: &str = "warn,endcap=info,endcap_runtime=warn,scylla::cluster::metadata::cc_establisher=error";

/// Whether standard error takes JSON alone.
static JSON: AtomicBool = AtomicBool::new(false);

/// Whether standard error takes JSON alone.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Starts logging for this process; a second call is a no-op.
pub fn start(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVEL));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_watched()).with_writer(LogWriter::default);
    let _ = match format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => {
            panic::set_hook(Box::new(|panic| tell(Level::ERROR, &panic.to_string())));
            lines.json().flatten_event(true).try_init()
        }
    };
}

/// Writes a line that no filter holds back: how things go, and why the program ends.
pub fn tell(level: Level, message: &str) {
    // A line that cannot be written has nowhere to be reported.
    let _ = writeln!(LogWriter::default(), "{}", line_of(level, message, is_json()));
}

fn line_of(level: Level, message: &str, json: bool) -> String {
    /// Named as in the log lines.
    #[derive(Serialize)]
    struct Line<'a> {
        timestamp: String,
        level: &'a str,
        message: &'a str,
    }
    if json {
        let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        serde_json::to_string(&Line { timestamp, level: level.as_str(), message }).expect("texts are JSON")
    } else if level == Level::ERROR {
        format!("error: {message}")
    } else {
        message.to_owned()
    }
}

/// Turns users into short names that mean nothing without the data directory's key.
#[derive(Clone)]
pub struct Anonymiser {
    key: [u8; 32],
}

impl Anonymiser {
    const FILE: &str = "log.key";

    /// The anonymiser of a data directory; its key is made at first use and readable by its owner alone.
    ///
    /// # Errors
    /// When the key cannot be read or written.
    pub fn of(data: &Path) -> Result<Self> {
        let path = data.join(Self::FILE);
        let is_damaged = match fs::read(&path) {
            Ok(bytes) => match <[u8; 32]>::try_from(bytes) {
                Ok(key) => return Ok(Self { key }),
                Err(_) => true,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut key = [0_u8; 32];
        SysRng.try_fill_bytes(&mut key).context("cannot draw a random key")?;
        let draft = || {
            let mut draft = tempfile::Builder::new().prefix(Self::FILE).tempfile_in(data)?;
            draft.write_all(&key)?;
            draft.as_file().sync_all().map(|()| draft)
        };
        let put = |draft: NamedTempFile| if is_damaged { draft.persist(&path) } else { draft.persist_noclobber(&path) };
        match draft().and_then(|draft| Ok(put(draft)?)) {
            Ok(_) => Ok(Self { key }),
            // Of processes that start at the same time all take the key of the first.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::of(data),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }

    /// Eight hex digits that stand for the data directory.
    pub fn directory(&self) -> String {
        blake3::keyed_hash(&self.key, b"\0directory").to_hex()[..8].to_owned()
    }

    /// Twelve hex digits that stand for `user` in this data directory's logs.
    pub fn name(&self, user: &UserKey) -> String {
        self.name_of(&user.to_string())
    }

    /// As [`Anonymiser::name`], of a record's key.
    pub fn name_of(&self, key: &str) -> String {
        blake3::keyed_hash(&self.key, key.as_bytes()).to_hex()[..12].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_name_per_data_directory() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let user = UserKey::of("shopper-0001");
        let name = Anonymiser::of(one.path()).unwrap().name(&user);
        assert_eq!(name, Anonymiser::of(one.path()).unwrap().name(&user));
        fs::write(one.path().join(Anonymiser::FILE), "short").unwrap();
        let anew = Anonymiser::of(one.path()).unwrap().name(&user);
        assert_eq!(anew, Anonymiser::of(one.path()).unwrap().name(&user), "a damaged key is made anew");
        assert_ne!(name, Anonymiser::of(other.path()).unwrap().name(&user));
        assert!(!name.contains("shopper") && name.len() == 12);
    }
}
