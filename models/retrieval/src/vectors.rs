//! The file of term vectors: appended to while terms are embedded, read at random afterwards.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, ErrorKind, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};

use crate::MarketError;

const MAGIC: [u8; 8] = *b"ENDCAPV1";
const HEADER_BYTES: u64 = 16;
/// Most dimensions of a vector.
pub(crate) const DIMENSIONS_MAX: usize = 8_192;

/// Vectors of unit length in 16-bit floats, one row per embedded term: the term's number (8 bytes), then `[dimensions]` floats,
/// all little-endian. Rows are only ever appended; a row counts once the database names it.
#[derive(Debug)]
pub(crate) struct VectorFile {
    path: PathBuf,
    file: File,
    dimensions: usize,
}

impl VectorFile {
    /// Opens the file for reading.
    pub(crate) fn open(path: &Path) -> Result<Self, MarketError> {
        let mut file = File::open(path).map_err(MarketError::file(path))?;
        let dimensions = read_header(&mut file, path)?;
        Ok(Self { path: path.to_owned(), file, dimensions })
    }

    /// Opens the file for appending after its first `rows` rows; what lies behind them was never finished and is cut off. Without rows it
    /// is a new file: readers who have an older one open keep what they see of it.
    pub(crate) fn append(path: &Path, dimensions: usize, rows: u64) -> Result<Self, MarketError> {
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(MarketError::Encoder(format!("vectors of {dimensions} dimensions, 1 to {DIMENSIONS_MAX} are taken")));
        }
        if rows == 0 {
            remove(path)?;
            let mut header = Vec::from(MAGIC);
            header.extend((dimensions as u64).to_le_bytes());
            fs::write(path, header).map_err(MarketError::file(path))?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(MarketError::file(path))?;
        let found = read_header(&mut file, path)?;
        if found != dimensions {
            return Err(MarketError::Dimensions { index: found, asked: dimensions });
        }
        let this = Self { path: path.to_owned(), file, dimensions };
        let end = HEADER_BYTES + rows * this.row_bytes();
        this.has(rows)?;
        this.file.set_len(end).map_err(MarketError::file(path))?;
        Ok(this)
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Rows that the file has room for, finished or not.
    pub(crate) fn rows(&self) -> Result<u64, MarketError> {
        Ok(self.len_bytes()?.saturating_sub(HEADER_BYTES) / self.row_bytes())
    }

    /// Refuses a file that has lost some of its first `rows` rows.
    pub(crate) fn has(&self, rows: u64) -> Result<(), MarketError> {
        let found = self.rows()?;
        if found < rows { Err(self.damaged(format!("it has {found} rows, {rows} were written"))) } else { Ok(()) }
    }

    /// What the first `rows` rows hold, in a text for [`Self::verify`].
    pub(crate) fn seal(&self, rows: u64) -> Result<String, MarketError> {
        let mut hash = blake3::Hasher::new();
        hash.update(&(self.dimensions as u64).to_le_bytes());
        self.each_block(rows, |_, bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok(format!("{rows} {}", &hash.finalize().to_hex()[..12]))
    }

    /// How many rows `seal` was made of.
    pub(crate) fn rows_of(seal: &str) -> u64 {
        seal.split(' ').next().and_then(|rows| rows.parse().ok()).unwrap_or(0)
    }

    /// Refuses a file whose rows are not those that `seal` was made of. Rows behind them are not looked at.
    pub(crate) fn verify(&self, seal: &str) -> Result<(), MarketError> {
        let rows = Self::rows_of(seal);
        self.has(rows)?;
        if self.seal(rows)? != seal { Err(self.damaged("it does not hold what was written".to_owned())) } else { Ok(()) }
    }

    fn damaged(&self, what: String) -> MarketError {
        MarketError::Damaged { path: self.path.clone(), what }
    }

    /// Appends one row per term behind row `from` and waits until they are on disk.
    pub(crate) fn write(&self, from: u64, terms: &[i64], vectors: &[Vec<f32>]) -> Result<(), MarketError> {
        let mut rows = BufWriter::new(Vec::with_capacity(terms.len() * self.row_bytes() as usize));
        for (term, vector) in terms.iter().zip(vectors) {
            let unit = self.unit(vector)?;
            let row = std::iter::once(term.to_le_bytes().to_vec()).chain(unit.iter().map(|x| x.to_le_bytes().to_vec()));
            for bytes in row {
                rows.write_all(&bytes).expect("writing to memory does not fail");
            }
        }
        let rows = rows.into_inner().expect("writing to memory does not fail");
        self.file.write_all_at(&rows, HEADER_BYTES + from * self.row_bytes()).map_err(MarketError::file(&self.path))?;
        self.file.sync_data().map_err(MarketError::file(&self.path))
    }

    fn unit(&self, vector: &[f32]) -> Result<Vec<f16>, MarketError> {
        if vector.len() != self.dimensions {
            return Err(MarketError::Dimensions { index: self.dimensions, asked: vector.len() });
        }
        let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if !length.is_finite() || length <= 0.0 {
            return Err(MarketError::Encoder(format!("a vector has length {length}")));
        }
        Ok(vector.iter().map(|x| f16::from_f64(f64::from(*x) / length)).collect())
    }

    /// Reads one row: the term's number, and its vector into `vector` `[dimensions]`.
    pub(crate) fn read(&self, row: u64, scratch: &mut Vec<u8>, vector: &mut [f32]) -> Result<i64, MarketError> {
        self.read_many(row, 1, scratch)?;
        Ok(decode(scratch, vector))
    }

    /// Walks over all rows up to `rows` in order.
    pub(crate) fn each(
        &self,
        rows: u64,
        mut visit: impl FnMut(u64, i64, &[f32]) -> Result<(), MarketError>,
    ) -> Result<(), MarketError> {
        let mut vector = vec![0.0; self.dimensions];
        self.each_block(rows, |row, block| {
            for (at, bytes) in block.chunks_exact(self.row_bytes() as usize).enumerate() {
                let term = decode(bytes, &mut vector);
                visit(row + at as u64, term, &vector)?;
            }
            Ok(())
        })
    }

    /// Walks over the bytes of all rows up to `rows` in order: each block with the number of its first row.
    fn each_block(&self, rows: u64, mut visit: impl FnMut(u64, &[u8]) -> Result<(), MarketError>) -> Result<(), MarketError> {
        const AT_ONCE: u64 = 1_024;
        let mut scratch = Vec::new();
        for row in (0..rows).step_by(AT_ONCE as usize) {
            self.read_many(row, AT_ONCE.min(rows - row), &mut scratch)?;
            visit(row, &scratch)?;
        }
        Ok(())
    }

    fn read_many(&self, row: u64, count: u64, scratch: &mut Vec<u8>) -> Result<(), MarketError> {
        scratch.resize((count * self.row_bytes()) as usize, 0);
        self.file.read_exact_at(scratch, HEADER_BYTES + row * self.row_bytes()).map_err(MarketError::file(&self.path))
    }

    fn row_bytes(&self) -> u64 {
        8 + 2 * self.dimensions as u64
    }

    fn len_bytes(&self) -> Result<u64, MarketError> {
        Ok(self.file.metadata().map_err(MarketError::file(&self.path))?.len())
    }
}

fn remove(path: &Path) -> Result<(), MarketError> {
    match fs::remove_file(path) {
        Err(fault) if fault.kind() != ErrorKind::NotFound => Err(MarketError::File { path: path.to_owned(), fault }),
        _ => Ok(()),
    }
}

fn read_header(file: &mut File, path: &Path) -> Result<usize, MarketError> {
    let mut header = [0; HEADER_BYTES as usize];
    let damaged = |what: &str| MarketError::Damaged { path: path.to_owned(), what: what.to_owned() };
    file.read_exact(&mut header).map_err(|fault| match fault.kind() {
        ErrorKind::UnexpectedEof => damaged("it is cut short"),
        _ => MarketError::File { path: path.to_owned(), fault },
    })?;
    let dimensions = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    if header[..8] != MAGIC || dimensions == 0 || dimensions > DIMENSIONS_MAX as u64 {
        return Err(damaged("it is no file of term vectors"));
    }
    Ok(dimensions as usize)
}

fn decode(row: &[u8], vector: &mut [f32]) -> i64 {
    let (term, floats) = row.split_at(8);
    let mut halves = [f16::ZERO; 512];
    for (bytes, out) in floats.chunks(1_024).zip(vector.chunks_mut(512)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
            *half = f16::from_le_bytes([bytes[0], bytes[1]]);
        }
        halves.convert_to_f32_slice(out);
    }
    i64::from_le_bytes(term.try_into().expect("eight bytes"))
}
