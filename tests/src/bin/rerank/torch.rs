//! The same model in PyTorch: a process that is asked for times.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// A Python with the slates loaded. Killed when dropped.
pub(crate) struct Torch {
    child: Child,
    said: BufReader<ChildStdout>,
    ask: ChildStdin,
    /// What it says of itself.
    pub(crate) version: String,
}

impl Torch {
    /// Starts it with so many threads, on the weights and slates of a directory.
    pub(crate) fn start(python: &Path, dir: &Path, threads: usize) -> Result<Self> {
        let script = dir.join("ocpm.py");
        fs::write(&script, include_str!("ocpm.py"))?;
        let mut command = Command::new(python);
        command.arg(script).arg(dir).arg(threads.to_string()).env("OMP_NUM_THREADS", threads.to_string());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("cannot run {}", python.display()))?;
        let said = BufReader::new(child.stdout.take().context("standard output is piped")?);
        let ask = child.stdin.take().context("standard input is piped")?;
        let mut torch = Self { child, said, ask, version: String::new() };
        let line = torch.line()?;
        let version = line.strip_prefix("ready ").map(|version| version.trim().to_owned());
        torch.version = version.with_context(|| format!("Python said {line:?}: does it have torch and numpy?"))?;
        Ok(torch)
    }

    /// Times of so many slates in some way, µs.
    pub(crate) fn time(&mut self, way: &str, orders: &str, count: usize) -> Result<Vec<f64>> {
        let times: Vec<f64> = serde_json::from_str(&self.answer(&format!("{way} {orders} {count}"))?)?;
        ensure!(times.len() == count, "{} slates were timed, not {count}", times.len());
        Ok(times)
    }

    /// What orders of all slates are worth, by way.
    pub(crate) fn values(&mut self, orders: &str) -> Result<BTreeMap<String, Vec<Vec<f64>>>> {
        Ok(serde_json::from_str(&self.answer(&format!("values {orders}"))?)?)
    }

    fn answer(&mut self, question: &str) -> Result<String> {
        writeln!(self.ask, "{question}")?;
        self.ask.flush()?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.said.read_line(&mut line)?;
        ensure!(read > 0, "PyTorch's process has ended; what it said stands above");
        Ok(line)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // One that has ended already needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
