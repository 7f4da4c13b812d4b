//! The list of rows that could not be taken.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use crate::MarketError;

/// Most rows that are listed; more are only counted.
const LISTED_MAX: u64 = 100_000;

/// Counts and lists rejected rows. The file is made with the first of them; an import without any removes the list of the last time.
pub(crate) struct Rejects {
    path: Option<PathBuf>,
    file: Option<BufWriter<File>>,
    count: u64,
}

impl Rejects {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path, file: None, count: 0 }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn add(&mut self, line: u64, reason: &str, row: &str) -> Result<(), MarketError> {
        self.count += 1;
        let Some(path) = self.path.as_ref().filter(|_| self.count <= LISTED_MAX) else { return Ok(()) };
        let fault = MarketError::file(path);
        if self.file.is_none() {
            let mut file = BufWriter::new(File::create(path).map_err(MarketError::file(path))?);
            writeln!(file, "line\treason\trow").map_err(MarketError::file(path))?;
            self.file = Some(file);
        }
        let file = self.file.as_mut().expect("the file was just made");
        writeln!(file, "{line}\t{}\t{}", cell(reason), cell(row)).map_err(fault)
    }

    /// Finishes the list and tells where it is.
    pub(crate) fn finish(self) -> Result<Option<PathBuf>, MarketError> {
        let Some(path) = self.path else { return Ok(None) };
        match self.file {
            Some(mut file) => file.flush().map_err(MarketError::file(&path)).map(|()| Some(path)),
            None => {
                // What is not there need not be removed.
                let _ = std::fs::remove_file(path);
                Ok(None)
            }
        }
    }
}

/// One cell of the list: a single line without tabs that no spreadsheet takes for a formula.
fn cell(text: &str) -> String {
    let mut out = String::new();
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        out.push('\'');
    }
    for c in text.chars().take(400) {
        match c {
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}
