//! A file as lines, plain or compressed.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{ImportError, Phase, Progress, rejects::Rejects};

/// Longest line that is looked at, in bytes; longer ones are passed over without being held in memory.
const LINE_MAX_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 1 << 16;
/// What programs of another house write before the first character.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Rows between two reports of progress.
const REPORT_ROWS: u64 = 1_000;

/// Lines of a file, decompressed as its first bytes say, with the rejected ones on the side.
pub(crate) struct Source {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    read: Arc<AtomicU64>,
    total: u64,
    line: u64,
    rows: u64,
    rejects: Rejects,
    buffer: Vec<u8>,
}

impl Source {
    /// Opens `path`; rejected rows go to the file `list`, where one is given. It is read once, from its beginning: a pipe will do.
    pub(crate) fn open(path: &Path, list: Option<PathBuf>) -> Result<Self, ImportError> {
        let fault = |fault| ImportError::Read { file: path.to_owned(), line: 0, fault };
        let file = File::open(path).map_err(fault)?;
        let total = file.metadata().map_err(fault)?.len();
        let read = Arc::new(AtomicU64::new(0));
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, Counted { file, read: read.clone() });
        let magic = raw.fill_buf().map_err(fault)?;
        let mut reader: Box<dyn BufRead + Send> = if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::Decoder::with_buffer(raw).map_err(fault)?))
        } else if magic.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::bufread::MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        if reader.fill_buf().map_err(fault)?.starts_with(BYTE_ORDER_MARK) {
            reader.consume(BYTE_ORDER_MARK.len());
        }
        Ok(Self { path: path.to_owned(), reader, read, total, line: 0, rows: 0, rejects: Rejects::new(list), buffer: Vec::new() })
    }

    /// The next line that is text, without its end; lines that are not are rejected on the way. Empty lines are passed over.
    pub(crate) fn next_line(&mut self) -> Result<Option<String>, ImportError> {
        while let Some(whole) = self.read_line()? {
            let text = self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer);
            if text.is_empty() && whole {
                continue;
            }
            self.rows += 1;
            match std::str::from_utf8(text) {
                _ if !whole => self.reject(&format!("line is longer than {LINE_MAX_BYTES} bytes"))?,
                Err(_) => self.reject("line is not UTF-8")?,
                Ok(text) => return Ok(Some(text.to_owned())),
            }
        }
        Ok(None)
    }

    /// Reads the header and gives the places of `columns` in it.
    pub(crate) fn columns<const N: usize>(&mut self, columns: [&str; N]) -> Result<[usize; N], ImportError> {
        let whole = self.read_line()?;
        let text = String::from_utf8_lossy(&self.buffer).into_owned();
        let text = text.trim_end();
        let found: Vec<&str> = text.split('\t').map(str::trim).collect();
        let places = columns.map(|column| found.iter().position(|found| *found == column));
        if whole != Some(true) || places.contains(&None) {
            return Err(self.wrong_form(format!("a header of tab-separated columns with {}", columns.join(", ")), text));
        }
        Ok(places.map(|place| place.expect("every column was found")))
    }

    /// Checks that the file's first line begins a JSON object.
    pub(crate) fn json_lines(&mut self, of: &str) -> Result<(), ImportError> {
        let start = loop {
            let seen = self.reader.fill_buf().map_err(|fault| ImportError::Read { file: self.path.clone(), line: 0, fault })?;
            let blank = seen.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if blank == seen.len() && !seen.is_empty() {
                self.line += seen.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.reader.consume(blank);
                continue;
            }
            break String::from_utf8_lossy(&seen[blank..seen.len().min(blank + 60)]).into_owned();
        };
        // An empty file holds no rows of any form.
        if start.is_empty() || start.starts_with('{') {
            Ok(())
        } else {
            Err(self.wrong_form(format!("one JSON object of {of} a line"), &start))
        }
    }

    fn wrong_form(&self, expected: String, found: &str) -> ImportError {
        let found = if found.is_empty() {
            "nothing".to_owned()
        } else {
            format!("`{}`", found.chars().take(80).flat_map(char::escape_debug).collect::<String>())
        };
        ImportError::WrongForm { file: self.path.clone(), expected, found }
    }

    /// Reads one line into the buffer; `Some(false)` when it was too long and is not all there.
    fn read_line(&mut self) -> Result<Option<bool>, ImportError> {
        self.buffer.clear();
        self.line += 1;
        let (mut whole, mut any) = (true, false);
        loop {
            let seen =
                self.reader.fill_buf().map_err(|fault| ImportError::Read { file: self.path.clone(), line: self.line, fault })?;
            if seen.is_empty() {
                return Ok(any.then_some(whole));
            }
            any = true;
            let end = seen.iter().position(|byte| *byte == b'\n');
            let part = &seen[..end.unwrap_or(seen.len())];
            let room = LINE_MAX_BYTES - self.buffer.len();
            whole &= part.len() <= room;
            self.buffer.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }

    /// Puts the line read last aside.
    pub(crate) fn reject(&mut self, reason: &str) -> Result<(), ImportError> {
        let row = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(400)]);
        self.rejects.add(self.line, reason, &row).map_err(ImportError::Market)
    }

    pub(crate) fn progress(&self) -> Progress {
        let bytes_done = self.read.load(Ordering::Relaxed);
        Progress { phase: Phase::Reading, bytes_done, bytes_total: self.total, rows: self.rows, rejected: self.rejects.count() }
    }

    /// Rows taken and rejected, and where the rejected ones are listed.
    pub(crate) fn finish(self) -> Result<super::ImportReport, ImportError> {
        let rejected = self.rejects.count();
        let rejects_file = self.rejects.finish()?;
        Ok(super::ImportReport { accepted: self.rows - rejected, rejected, rejects_file, ..Default::default() })
    }
}

type Reader<T> = Box<dyn Fn(&str, u64) -> Result<T, String> + Send>;

/// The rows of a file in its order; rows that cannot be taken are put aside.
pub struct Rows<T> {
    source: Source,
    /// Reads a line (with its number), or says why it cannot be taken.
    read: Reader<T>,
}

impl<T> Rows<T> {
    pub(super) fn new(source: Source, read: impl Fn(&str, u64) -> Result<T, String> + Send + 'static) -> Self {
        Self { source, read: Box::new(read) }
    }

    /// How far reading is.
    pub fn progress(&self) -> Progress {
        self.source.progress()
    }

    /// Reports progress every now and then.
    pub(super) fn report(&self, progress: &mut dyn FnMut(&Progress)) {
        if self.source.rows.is_multiple_of(REPORT_ROWS) {
            progress(&self.progress());
        }
    }

    /// Ends reading: how many rows were taken and rejected, and where the rejected ones are listed.
    ///
    /// # Errors
    /// When the list of rejected rows cannot be written.
    pub fn finish(self) -> Result<super::ImportReport, ImportError> {
        self.source.finish()
    }
}

impl<T> Iterator for Rows<T> {
    type Item = Result<T, ImportError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.source.next_line() {
                Ok(line) => line?,
                Err(fault) => return Some(Err(fault)),
            };
            match (self.read)(&line, self.source.line) {
                Ok(row) => return Some(Ok(row)),
                Err(reason) => {
                    if let Err(fault) = self.source.reject(&reason) {
                        return Some(Err(fault));
                    }
                }
            }
        }
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
