//! The data directory: who may use it, and what lies where.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{logging::Anonymiser, path::StageName};

/// How a process uses a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Alone: nobody else runs stages on it.
    Alone,
    /// Beside others that run stages on it.
    Beside,
}

/// A data directory that is in use by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// A name that no other process on a data directory has while this one has it. The next process with the same stages gets it: what a crash
/// left open under it is closed at once, then.
#[derive(Debug)]
pub struct Slot {
    /// Unlike the slots of every other directory.
    pub name: String,
    _lock: File,
}

/// A folder of a data directory that lasts as long as somebody works in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by whoever works there next.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Processes with the same stages that have slots of one data directory at the same time.
const SLOTS_MAX: usize = 1_024;

impl DataDir {
    const LOCK: &str = "up.lock";

    /// Opens `path`, making it where there is none, and keeps others out until it is dropped, as far as `how` says.
    ///
    /// # Errors
    /// When it cannot be written, or another process uses it in a way that does not allow this one.
    pub fn open(path: &Path, how: Use) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let lock_path = path.join(Self::LOCK);
        let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
        let locked = match how {
            Use::Alone => lock.try_lock(),
            Use::Beside => lock.try_lock_shared(),
        };
        match locked {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let other = if how == Use::Alone { "`endcap up`, `endcap run` or `endcap serve`" } else { "`endcap up`" };
                bail!("another {other} uses the data directory {}: end it, or name another with --data", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
    }

    /// Waits until no other process makes what is missing here; the others wait until the answer is dropped.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn turn(&self) -> Result<File> {
        let path = self.path.join("making.lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(lock)
    }

    /// The first free slot of processes that run `stages`; free when it is dropped, and when this process is no more.
    ///
    /// # Errors
    /// When the directory cannot be written, or all slots are taken.
    pub fn slot(&self, stages: &[StageName]) -> Result<Slot> {
        let directory = Anonymiser::of(&self.path)?.directory();
        let stages = words(stages);
        for number in 0..SLOTS_MAX {
            let path = self.path.join(format!("slot-{stages}-{number}.lock"));
            let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Slot { name: format!("{directory}-{stages}-{number}"), _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
            }
        }
        bail!("{SLOTS_MAX} processes run {stages} on the data directory {}: name another with --data", self.path.display())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty folder called `name`, removed when the answer is dropped. For a process that is alone here.
    ///
    /// # Errors
    /// When it cannot be cleared or made.
    pub fn scratch(&self, name: &str) -> Result<Scratch> {
        let path = self.path.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot clear {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// Where the demo market lies.
    pub fn market(&self) -> PathBuf {
        market_in(&self.path)
    }

    /// Where models from inside the binary are laid out, one folder per version.
    pub fn models(&self) -> PathBuf {
        models_in(&self.path)
    }

    /// Where versions of models are remembered.
    pub fn model_versions(&self) -> PathBuf {
        self.path.join("model-versions.json")
    }
}

/// Names of `stages` along the path, however they were given; a process without any serves.
fn words(stages: &[StageName]) -> String {
    if stages.is_empty() {
        return "serve".to_owned();
    }
    let along = StageName::ALL.into_iter().filter(|stage| stages.contains(stage));
    let names: Vec<String> =
        along.filter_map(|stage| stage.to_possible_value()).map(|value| value.get_name().to_owned()).collect();
    names.join(".")
}

/// The log and the store in a data directory.
pub fn file_in(data: &Path) -> PathBuf {
    data.join("endcap.sqlite")
}

/// Models from inside binaries, laid out in a data directory.
pub fn models_in(data: &Path) -> PathBuf {
    data.join("models")
}

/// The demo market in a data directory.
pub fn market_in(data: &Path) -> PathBuf {
    data.join("market")
}

/// Refuses to read a directory that holds no data.
///
/// # Errors
/// When there is no data directory at `path`.
pub fn must_exist(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    bail!("no data directory at {}: `endcap up` makes one, --data names another", path.display())
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        io::{BufRead, BufReader, Read as _, stdin},
        process::{Child, Command, Stdio},
        sync::{Mutex, PoisonError},
        thread,
    };

    use super::*;

    const CHILDS_DIRECTORY: &str = "ENDCAP_TEST_SLOT_IN";
    const CHILDS_STAGES: &str = "ENDCAP_TEST_SLOT_OF";
    /// A process that is being started holds the locks of this one for a moment, so nobody counts on one that was let go meanwhile.
    static STARTS: Mutex<()> = Mutex::new(());

    #[test]
    #[ignore = "what the next test's children run"]
    fn child() {
        let Ok(path) = env::var(CHILDS_DIRECTORY) else { return };
        let stages = env::var(CHILDS_STAGES).unwrap();
        let stages: Vec<StageName> = stages.split(' ').map(|stage| StageName::from_str(stage, false).unwrap()).collect();
        let data = DataDir::open(Path::new(&path), Use::Beside).unwrap();
        let slot = data.slot(&stages).unwrap();
        println!("slot {}", slot.name);
        stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    /// A process of these stages that has a slot, and the slot's name.
    fn start(path: &Path, stages: &str) -> (Child, String) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "data::tests::child", "--ignored", "--nocapture"])
            .env(CHILDS_DIRECTORY, path)
            .env(CHILDS_STAGES, stages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let name = lines.by_ref().find_map(|line| Some(line.split_once("slot ")?.1.to_owned())).expect("a child says its slot");
        thread::spawn(move || lines.for_each(drop)); // what else it says must be taken
        (child, name)
    }

    #[test]
    fn a_killed_process_leaves_its_name_to_the_next_one_with_its_stages_on_its_directory() {
        let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _turn = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut first, first_name) = start(here.path(), "themes");
        let (mut second, second_name) = start(here.path(), "themes");
        let (mut third, third_name) = start(here.path(), "keywords dedup");
        for killed in [&mut first, &mut third] {
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        // In another order than before, and their stages in another one too.
        let (mut third, third_again) = start(here.path(), "dedup keywords");
        let (mut first, first_again) = start(here.path(), "themes");
        assert_eq!((&first_again, &third_again), (&first_name, &third_name));
        let (mut other, other_name) = start(elsewhere.path(), "themes");
        let names = [&first_name, &second_name, &third_name, &other_name];
        let endings = ["-themes-0", "-themes-1", "-keywords.dedup-0", "-themes-0"];
        assert!(names.iter().zip(endings).all(|(name, ending)| name.ends_with(ending)), "{names:?}");
        assert_ne!(first_name, other_name, "another directory's are others");
        for child in [&mut first, &mut second, &mut third, &mut other] {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn a_data_directory_has_one_user_or_several_that_share_it() {
        let _turn = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let refused = |how| DataDir::open(&path, how).unwrap_err().to_string();
        let first = DataDir::open(&path, Use::Alone).unwrap();
        for how in [Use::Alone, Use::Beside] {
            assert!(refused(how).contains("uses the data directory"), "{how:?}");
        }
        drop(first);
        let _one = DataDir::open(&path, Use::Beside).unwrap();
        let _other = DataDir::open(&path, Use::Beside).unwrap();
        assert!(refused(Use::Alone).contains("another `endcap up`, `endcap run` or `endcap serve` uses"));
    }
}
