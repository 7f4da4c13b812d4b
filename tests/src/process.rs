//! The program as a process: started on a free port in its own data directory, asked over HTTP, ended with it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use endcap_runtime::Shutdown;
use serde_json::Value;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often and how many times an answer is looked at.
const ASKED_EVERY: Duration = Duration::from_millis(50);
const ASKED_MAX: usize = 6_000;
/// What `endcap up` prints before its address, as soon as it serves.
const ADDRESS: &str = "address: ";

/// A run of the program to its end.
pub struct Run {
    program: String,
    data: String,
    variables: Vec<(&'static str, &'static str)>,
}

impl Run {
    /// Runs of `program` on the data directory `data`.
    pub fn new(program: &str, data: &Path) -> Self {
        Self { program: program.to_owned(), data: data.display().to_string(), variables: Vec::new() }
    }

    /// With an environment variable.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Runs `endcap <subcommand> --data DIR <args>` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, subcommand: &[&str], args: &[&str]) -> Result<Output> {
        self.command(subcommand, args).output().with_context(|| format!("cannot run {}", self.program))
    }

    /// As [`Run::output`], but it must succeed; gives standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; with what it said.
    pub fn succeed(&self, subcommand: &[&str], args: &[&str]) -> Result<String> {
        let output = self.output(subcommand, args)?;
        ensure!(output.status.success(), "{subcommand:?} {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts `endcap up` on a free port and waits until it is ready, for as long as the start goes on: on a busy machine making a market may
    /// take half an hour. For a run that ends by itself there is [`Run::finish`]: it may have
    /// ended before anybody saw it ready.
    ///
    /// # Errors
    /// When it cannot be started, ends before it is ready, or stands still for five minutes on its way; with what it said.
    pub fn up(&self, args: &[&str]) -> Result<Endcap> {
        self.ready(self.start(args)?)
    }

    /// Starts `endcap run` with `stages` and `args` on a free port and waits until it is ready.
    ///
    /// # Errors
    /// As [`Run::up`].
    pub fn stages(&self, stages: &[&str], args: &[&str]) -> Result<Endcap> {
        self.ready(self.begin_stages(stages, args)?)
    }

    /// Starts `endcap serve` with `args` on a free port and waits until it is ready.
    ///
    /// # Errors
    /// As [`Run::up`].
    pub fn serve(&self, args: &[&str]) -> Result<Endcap> {
        let mut command = self.command(&["serve"], args);
        command.args(["--bind", "127.0.0.1:0"]);
        self.ready(self.spawn(command)?)
    }

    /// As [`Run::stages`], but waits for its address only.
    ///
    /// # Errors
    /// As [`Run::start`].
    pub fn begin_stages(&self, stages: &[&str], args: &[&str]) -> Result<Endcap> {
        self.spawn(self.command(&[&["run"], stages].concat(), args))
    }

    fn ready(&self, mut up: Endcap) -> Result<Endcap> {
        let (patience, mut told, mut asked) = (Shutdown::new(), Value::Null, 0);
        while asked < ASKED_MAX {
            asked += 1;
            match up.get("/health/ready") {
                Ok((200, _)) => return Ok(up),
                Ok((_, answer)) if answer != told => (told, asked) = (answer, 0),
                Ok(_) => {}
                Err(_) if up.child.try_wait()?.is_none() => {}
                Err(error) => bail!("endcap ended before it was ready ({error:#}): {}", up.last_words()),
            }
            patience.wait(ASKED_EVERY);
        }
        bail!("endcap does not become ready, it stands still at {told}: {}", up.last_words())
    }

    /// Runs an `endcap up` that ends by itself.
    ///
    /// # Errors
    /// When it cannot be started or fails; with what it said.
    pub fn finish(&self, args: &[&str]) -> Result<()> {
        self.start(args)?.wait()
    }

    /// Starts `endcap up` on a free port and waits for its address only: most of the start is yet to come.
    ///
    /// # Errors
    /// When it cannot be started or ends before it serves; with what it said.
    pub fn start(&self, args: &[&str]) -> Result<Endcap> {
        let mut command = self.command(&["up"], args);
        command.args(["--bind", "127.0.0.1:0"]);
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Result<Endcap> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.program))?;
        let stdout = BufReader::new(child.stdout.take().context("standard output is piped")?);
        let mut stderr = child.stderr.take().context("standard error is piped")?;
        // Somebody must read the other pipe, or the program stops when it is full.
        let said = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut up = Endcap { child, stdout, said: Some(said), address: String::new() };
        loop {
            let mut line = String::new();
            if up.stdout.read_line(&mut line)? == 0 {
                bail!("endcap ended before it served: {}", up.last_words());
            }
            if let Some(address) = line.strip_prefix(ADDRESS).and_then(|rest| rest.split_whitespace().next()) {
                up.address = address.trim_end_matches('/').to_owned();
                return Ok(up);
            }
        }
    }

    /// Runs the program with exactly `args` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn plain(&self, args: &[&str]) -> Result<Output> {
        self.bare().args(args).output().with_context(|| format!("cannot run {}", self.program))
    }

    /// Starts `endcap <subcommand> --data DIR <args>` and does not wait for it; `out` takes its standard output, nobody the other one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, subcommand: &[&str], args: &[&str], out: File) -> Result<Child> {
        let mut command = self.command(subcommand, args);
        command.stdout(out).stderr(Stdio::null()).spawn().with_context(|| format!("cannot run {}", self.program))
    }

    fn command(&self, subcommand: &[&str], args: &[&str]) -> Command {
        let mut command = self.bare();
        command.args(subcommand).args(["--data", &self.data]).args(args);
        command
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ENDCAP_")) {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().copied());
        command
    }
}

/// A running `endcap up`. Killed when dropped.
pub struct Endcap {
    child: Child,
    stdout: BufReader<ChildStdout>,
    said: Option<std::thread::JoinHandle<String>>,
    address: String,
}

impl Endcap {
    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Status and JSON of a GET.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, path: &str) -> Result<(u16, Value)> {
        let mut response = agent().get(format!("{}{path}", self.address)).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_json().unwrap_or_default()))
    }

    /// Asks `path` until `wanted` finds what it looks for in the answer.
    ///
    /// # Errors
    /// When it does not within five minutes.
    pub fn wait_for<T>(&self, path: &str, wanted: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let patience = Shutdown::new();
        for _ in 0..ASKED_MAX {
            let (_, answer) = self.get(path)?;
            if let Some(found) = wanted(&answer) {
                return Ok(found);
            }
            patience.wait(ASKED_EVERY);
        }
        bail!("{path} does not become what was waited for; last: {}", self.get(path)?.1)
    }

    /// Status and text of a GET.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn text(&self, path: &str) -> Result<(u16, String)> {
        let mut response = agent().get(format!("{}{path}", self.address)).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    /// Status and JSON of a POST of `body` as it is.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Result<(u16, Value)> {
        let mut response =
            agent().post(format!("{}{path}", self.address)).header("content-type", "application/json").send(body.as_ref())?;
        Ok((response.status().as_u16(), response.body_mut().read_json().unwrap_or_default()))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn wait(mut self) -> Result<()> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "`endcap up` failed with {status}: {}", self.last_words());
        Ok(())
    }

    /// Asks it to end, as Ctrl-C does.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn interrupt(&self) -> Result<()> {
        let status = Command::new("kill").args(["-INT", &self.id().to_string()]).status().context("cannot run kill")?;
        ensure!(status.success(), "`endcap up` cannot be asked to end: {status}");
        Ok(())
    }

    /// Ends it the hard way, as a power cut would; gives what it said on standard error.
    pub fn kill(mut self) -> String {
        self.last_words()
    }

    fn last_words(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.said.take().and_then(|said| said.join().ok()).unwrap_or_default()
    }
}

impl Drop for Endcap {
    fn drop(&mut self) {
        // A process that has ended already needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().new_agent()
}
