//! The nearest-neighbour index over the terms, memory-mapped, and how near two vectors are.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rusqlite::Connection;
use usearch::{Index, IndexOptions as NativeOptions, MetricKind, ScalarKind};

use crate::{MarketDir, MarketError, dir::meta, snapshot::Near, vectors::VectorFile};

/// Edges per node of the graph, nodes looked at when a term is added, and when neighbours are searched for: part of the index version.
pub(crate) const GRAPH_PARAMETERS: [usize; 3] = [16, 128, 256];

/// The index, memory-mapped, with the exact vectors beside it.
pub(crate) struct TermIndex {
    graph: Index,
    /// The graph gives out working memory per thread and fails when there are more threads than it expected: one at a time.
    searching: Mutex<()>,
    vectors: VectorFile,
    terms: usize,
}

impl std::fmt::Debug for TermIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TermIndex").field("terms", &self.terms).field("dimensions", &self.vectors.dimensions()).finish()
    }
}

impl TermIndex {
    /// Opens the index that `db` names, once its files are found to have the lengths and headers that were written. What they hold is for
    /// [`check`] and [`VectorFile::verify`], as that takes reading them.
    pub(crate) fn open(dir: &MarketDir, db: &Connection) -> Result<Self, MarketError> {
        let path = file_of(dir, db)?;
        let vectors = VectorFile::open(&dir.path().join(named(dir, db, "index_vectors")?))?;
        if let Some(seal) = meta(db, "index_seal")? {
            vectors.has(VectorFile::rows_of(&seal))?;
        }
        Self::over(&path, vectors)
    }

    /// The graph in `path` with the vectors that it was built of.
    pub(crate) fn over(path: &Path, vectors: VectorFile) -> Result<Self, MarketError> {
        let mut graph = graph(vectors.dimensions())?;
        // The library looks at the header and at every node's length before it trusts a file, never at the edges.
        let damaged = |what| MarketError::Damaged { path: path.to_owned(), what };
        graph.view(&path.to_string_lossy()).map_err(|fault| damaged(fault.to_string()))?;
        if graph.dimensions() != vectors.dimensions() {
            return Err(MarketError::Dimensions { index: graph.dimensions(), asked: vectors.dimensions() });
        }
        // Reading a file sets it back to the library's own.
        set_distance(&mut graph, vectors.dimensions());
        graph.change_expansion_search(GRAPH_PARAMETERS[2]);
        let terms = graph.size();
        Ok(Self { graph, searching: Mutex::new(()), vectors, terms })
    }

    /// The graph gives candidates by coarse vectors; the exact ones order them.
    pub(crate) fn near(&self, vector: &[f32], k: usize) -> Result<Vec<Near>, MarketError> {
        self.check(vector)?;
        let count = (k * 2).max(k + 32).min(self.terms);
        if k == 0 || count == 0 {
            return Ok(Vec::new());
        }
        let candidates = {
            let _one = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
            self.graph.search(&quantised(vector), count).map_err(index_fault)?
        };
        let mut scratch = Vec::new();
        let mut stored = vec![0.0; self.vectors.dimensions()];
        let mut found = Vec::with_capacity(candidates.keys.len());
        for row in candidates.keys {
            let term = self.vectors.read(row, &mut scratch, &mut stored)?;
            found.push(Near { term, cosine: cosine(vector, &stored) });
        }
        found.sort_by(nearest_first);
        found.truncate(k);
        Ok(found)
    }

    pub(crate) fn near_exact(&self, vector: &[f32], k: usize) -> Result<Vec<Near>, MarketError> {
        self.check(vector)?;
        let mut best: BinaryHeap<Reverse<ByCosine>> = BinaryHeap::with_capacity(k + 1);
        let mut seen = HashSet::new();
        self.vectors.each(self.vectors.rows()?, |row, term, stored| {
            if self.graph.contains(row) && seen.insert(term) {
                best.push(Reverse(ByCosine(Near { term, cosine: cosine(vector, stored) })));
                if best.len() > k {
                    best.pop();
                }
            }
            Ok(())
        })?;
        let mut found: Vec<Near> = best.into_iter().map(|Reverse(ByCosine(near))| near).collect();
        found.sort_by(nearest_first);
        Ok(found)
    }

    fn check(&self, vector: &[f32]) -> Result<(), MarketError> {
        let (index, asked) = (self.vectors.dimensions(), vector.len());
        if index != asked { Err(MarketError::Dimensions { index, asked }) } else { Ok(()) }
    }
}

fn named(dir: &MarketDir, db: &Connection, key: &str) -> Result<String, MarketError> {
    meta(db, key)?.ok_or_else(|| MarketError::NoIndex(dir.path().to_owned()))
}

/// The graph's file that `db` names, once it is found to have the length that was written.
fn file_of(dir: &MarketDir, db: &Connection) -> Result<PathBuf, MarketError> {
    let path = dir.path().join(named(dir, db, "index_file")?);
    let bytes = fs::metadata(&path).map_err(MarketError::file(&path))?.len();
    let written = named(dir, db, "index_bytes")?;
    if written != bytes.to_string() {
        return Err(MarketError::Damaged { path, what: format!("it has {bytes} bytes, {written} were written") });
    }
    Ok(path)
}

/// Refuses a graph's file that does not hold what was written. Reads it from end to end: the library trusts its files, and would follow an
/// edge that leads out of memory.
pub(crate) fn check(dir: &MarketDir, db: &Connection) -> Result<(), MarketError> {
    let path = file_of(dir, db)?;
    if version_of(&named(dir, db, "index_inputs")?, &path)? != named(dir, db, "index_version")? {
        return Err(MarketError::Damaged { path, what: "it does not hold what was written".to_owned() });
    }
    Ok(())
}

/// Version of an index: a hash of what it was built from and of its file.
pub(crate) fn version_of(inputs: &str, path: &Path) -> Result<String, MarketError> {
    let mut hash = blake3::Hasher::new();
    hash.update(inputs.as_bytes());
    hash.update_reader(fs::File::open(path).map_err(MarketError::file(path))?).map_err(MarketError::file(path))?;
    Ok(hash.finalize().to_hex()[..12].to_owned())
}

struct ByCosine(Near);

impl Ord for ByCosine {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        nearest_first(&other.0, &self.0)
    }
}

impl PartialOrd for ByCosine {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByCosine {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByCosine {}

fn nearest_first(a: &Near, b: &Near) -> std::cmp::Ordering {
    b.cosine.total_cmp(&a.cosine).then(a.term.cmp(&b.term))
}

fn native(dimensions: usize) -> NativeOptions {
    let [connectivity, expansion_add, expansion_search] = GRAPH_PARAMETERS;
    NativeOptions {
        dimensions,
        metric: MetricKind::Cos,
        quantization: ScalarKind::I8,
        connectivity,
        expansion_add,
        expansion_search,
        multi: false,
    }
}

/// Eight-bit integers in the direction of a unit `vector`, all by one scale, so that their dot products order as cosines do.
/// Parts beyond five standard deviations of a random direction are cut to 127.
pub(crate) fn quantised(vector: &[f32]) -> Vec<i8> {
    let scale = 127.0 * (vector.len() as f32).sqrt() / 5.0;
    // A cast to an integer keeps within its range.
    vector.iter().map(|x| (x * scale).round() as i8).map(|x| x.max(-127)).collect()
}

/// An empty graph whose distances are negative dot products of integers: exact, so that a graph is the same on every machine, and many
/// times faster than the library's own loop over bytes.
pub(crate) fn graph(dimensions: usize) -> Result<Index, MarketError> {
    let mut graph = Index::new(&native(dimensions)).map_err(index_fault)?;
    set_distance(&mut graph, dimensions);
    Ok(graph)
}

fn set_distance(graph: &mut Index, dimensions: usize) {
    let dot = fastest_dot();
    let distance = move |a: *const i8, b: *const i8| {
        // SAFETY: the graph calls its metric with two of its own vectors, or one and the question's, and both have as many bytes as the
        // graph has dimensions: `add` and `search` refuse others, and so does `TermIndex::open` for a file.
        let (a, b) = unsafe { (std::slice::from_raw_parts(a, dimensions), std::slice::from_raw_parts(b, dimensions)) };
        -(dot(a, b) as f32)
    };
    graph.change_metric::<i8>(Box::new(distance));
}

fn fastest_dot() -> fn(&[i8], &[i8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked.
        return |a, b| unsafe { dot_avx2(a, b) };
    }
    dot
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dot_avx2(a: &[i8], b: &[i8]) -> i32 {
    dot(a, b)
}

#[inline(always)]
fn dot(a: &[i8], b: &[i8]) -> i32 {
    // Nothing overflows (8,192 × 127² < 2³¹); saying so keeps checks out of the loop in every profile.
    a.iter().zip(b).fold(0, |sum: i32, (x, y)| sum.wrapping_add(i32::from(*x).wrapping_mul(i32::from(*y))))
}

/// Cosine of the angle between two vectors, summed in one fixed order.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [[0.0_f32; 8]; 3];
    let (a_lanes, a_rest) = a.as_chunks::<8>();
    let (b_lanes, b_rest) = b.as_chunks::<8>();
    let mut add = |lane: usize, x: f32, y: f32| {
        sums[0][lane] += x * y;
        sums[1][lane] += x * x;
        sums[2][lane] += y * y;
    };
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..8 {
            add(lane, a[lane], b[lane]);
        }
    }
    for (lane, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        add(lane, *x, *y);
    }
    let [dot, a, b] = sums.map(|lanes| lanes.iter().sum::<f32>());
    if a > 0.0 && b > 0.0 { dot / (a * b).sqrt() } else { 0.0 }
}

pub(crate) fn index_fault(fault: impl std::fmt::Display) -> MarketError {
    MarketError::Index(fault.to_string())
}
