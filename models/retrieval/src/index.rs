//! The nearest-neighbour index over the terms: built once per corpus and encoder, memory-mapped afterwards.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rusqlite::{Connection, params};
use usearch::{Index, IndexOptions as NativeOptions, MetricKind, ScalarKind};

use crate::{
    MarketDir, MarketError,
    dir::{meta, set_meta},
    snapshot::Near,
    vectors::VectorFile,
};

/// Edges per node of the graph; with [`EXPANSION_ADD`] and [`EXPANSION_SEARCH`] part of the index version.
const CONNECTIVITY: usize = 16;
/// Nodes looked at when a term is added.
const EXPANSION_ADD: usize = 128;
/// Nodes looked at when neighbours are searched for.
const EXPANSION_SEARCH: usize = 256;
/// Up to this many terms one thread builds the index, so that the same corpus gives the same index bit by bit. Several threads add terms in
/// another order every time.
const ONE_THREAD_MAX: usize = 50_000;

/// Gives one vector per text, in order, all of the same dimensions; or says why it cannot.
pub type Encoder<'a> = dyn FnMut(&[String]) -> Result<Vec<Vec<f32>>, String> + 'a;

/// How an index is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexOptions {
    /// Terms that the encoder gets at once, and that are lost when the process is killed.
    pub chunk: usize,
    /// Threads that build a large index (small ones are built by one, to be reproducible).
    pub threads: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { chunk: 1_024, threads: 2 }
    }
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexProgress {
    /// Terms are being embedded.
    Embedding {
        /// Terms with a vector.
        done: usize,
        /// All terms.
        total: usize,
    },
    /// Vectors are being put into the graph.
    Indexing {
        /// Terms in the graph.
        done: usize,
        /// All terms.
        total: usize,
    },
}

/// What a build did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexReport {
    /// Version of the index: a hash of encoder, corpus, parameters and the finished file.
    pub version: String,
    /// Terms in it.
    pub terms: usize,
    /// Terms that were embedded for it; the others had their vector already.
    pub embedded: usize,
    /// Whether there was such an index already, so that nothing was built.
    pub unchanged: bool,
}

/// Embeds the terms that have no vector of `encoder_version` yet and builds the index over all of them.
///
/// `encoder` gives one vector per text, all of the same dimensions. Vectors are stored as they come: killed and started again, the
/// build goes on with the next chunk. Readers keep the old index until the new one is complete.
///
/// # Errors
/// When the encoder or the disk fails, or another process is writing the directory.
pub fn build_index(
    dir: &MarketDir,
    encoder_version: &str,
    encoder: &mut Encoder<'_>,
    options: &IndexOptions,
    progress: &mut dyn FnMut(IndexProgress),
) -> Result<IndexReport, MarketError> {
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let vectors_name = format!("vectors-{}.f16", &blake3::hash(encoder_version.as_bytes()).to_hex()[..12]);
    let vectors_path = dir.path().join(&vectors_name);
    if meta(&db, "vectors_encoder")?.as_deref() != Some(encoder_version) || !vectors_path.exists() {
        let tx = db.transaction()?;
        tx.execute("DELETE FROM term_vectors", [])?;
        // The rows begin anew, so an index over the old ones is of no use.
        tx.execute("DELETE FROM meta WHERE key IN ('index_rows', 'index_inputs')", [])?;
        set_meta(&tx, "vectors_encoder", encoder_version)?;
        tx.commit()?;
    }
    let embedded = embed_missing(&mut db, &vectors_path, encoder, options.chunk.clamp(1, 65_536), progress)?;
    let rows = live_rows(&db)?;
    if rows.is_empty() {
        return Err(MarketError::Unfit("an index over no terms: import keywords first".to_owned()));
    }
    let vectors = VectorFile::open(&vectors_path)?;
    let inputs = inputs_of(&db, encoder_version, vectors.dimensions())?;
    let report = |version, unchanged| IndexReport { version, terms: rows.len(), embedded, unchanged };
    if let Some(version) = built_from(dir, &db, &inputs)? {
        return Ok(report(version, true));
    }
    let unfinished = dir.path().join("terms-new.unfinished");
    build_graph(&unfinished, &vectors, &rows, options.threads, progress)?;
    let built = finish(dir, &unfinished, inputs)?;
    publish(&mut db, &built, &vectors_name)?;
    remove_old(dir, &built.name, &vectors_name);
    Ok(report(built.version, false))
}

/// A finished index file.
struct Built {
    /// Hash of what it was built from.
    inputs: String,
    version: String,
    name: String,
    bytes: u64,
}

/// Version of the index in place, where it was built from `inputs`.
fn built_from(dir: &MarketDir, db: &Connection, inputs: &str) -> Result<Option<String>, MarketError> {
    let there = meta(db, "index_inputs")?.as_deref() == Some(inputs)
        && meta(db, "index_file")?.is_some_and(|name| dir.path().join(name).exists());
    if there { meta(db, "index_version") } else { Ok(None) }
}

/// Gives the index file its version, and the name that holds it.
fn finish(dir: &MarketDir, unfinished: &Path, inputs: String) -> Result<Built, MarketError> {
    let file = fs::File::open(unfinished).map_err(MarketError::file(unfinished))?;
    file.sync_all().map_err(MarketError::file(unfinished))?;
    let bytes = file.metadata().map_err(MarketError::file(unfinished))?.len();
    let mut hash = blake3::Hasher::new();
    hash.update(inputs.as_bytes());
    hash.update_reader(file).map_err(MarketError::file(unfinished))?;
    let version = hash.finalize().to_hex()[..12].to_owned();
    let name = format!("terms-{version}.usearch");
    let path = dir.path().join(&name);
    fs::rename(unfinished, &path).map_err(MarketError::file(&path))?;
    Ok(Built { inputs, version, name, bytes })
}

/// Embeds chunk by chunk what has no vector; gives how many terms that were.
fn embed_missing(
    db: &mut Connection,
    path: &Path,
    encoder: &mut Encoder<'_>,
    chunk: usize,
    progress: &mut dyn FnMut(IndexProgress),
) -> Result<usize, MarketError> {
    let total: usize = db.query_row("SELECT count(*) FROM terms", [], |row| row.get(0))?;
    let before: usize =
        db.query_row("SELECT count(*) FROM terms t JOIN term_vectors v ON v.term = t.id", [], |row| row.get(0))?;
    let mut rows = rows_written(db)?;
    let mut file = None;
    let mut done = before;
    let mut last = i64::MIN;
    progress(IndexProgress::Embedding { done, total });
    loop {
        let (ids, texts) = missing_after(db, last, chunk)?;
        let Some(newest) = ids.last() else { return Ok(done - before) };
        last = *newest;
        let vectors = encoder(&texts).map_err(MarketError::Encoder)?;
        if vectors.len() != texts.len() {
            return Err(MarketError::Encoder(format!("{} vectors came back for {} texts", vectors.len(), texts.len())));
        }
        let file = match &mut file {
            Some(file) => file,
            none => none.insert(VectorFile::append(path, vectors[0].len(), rows)?),
        };
        file.write(rows, &ids, &vectors)?;
        let tx = db.transaction()?;
        {
            let mut insert = tx.prepare_cached("INSERT INTO term_vectors (term, row) VALUES (?1, ?2)")?;
            for (at, id) in ids.iter().enumerate() {
                insert.execute(params![id, rows + at as u64])?;
            }
        }
        rows += ids.len() as u64;
        set_meta(&tx, "index_rows", &rows.to_string())?;
        tx.commit()?;
        done += ids.len();
        progress(IndexProgress::Embedding { done, total });
    }
}

/// Rows of the vector file that were ever finished. Those of terms that are gone count: a reader of an older index still looks at them.
fn rows_written(db: &Connection) -> Result<u64, MarketError> {
    let named: u64 = db.query_row("SELECT coalesce(max(row) + 1, 0) FROM term_vectors", [], |row| row.get(0))?;
    Ok(meta(db, "index_rows")?.and_then(|rows| rows.parse().ok()).unwrap_or(0).max(named))
}

fn missing_after(db: &Connection, last: i64, chunk: usize) -> Result<(Vec<i64>, Vec<String>), MarketError> {
    let mut statement = db.prepare_cached(
        "SELECT t.id, t.text FROM terms t WHERE t.id > ?1 AND NOT EXISTS (SELECT 1 FROM term_vectors v WHERE v.term = t.id) \
         ORDER BY t.id LIMIT ?2",
    )?;
    let pairs = statement.query_map(params![last, chunk], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(pairs.collect::<Result<Vec<(i64, String)>, _>>()?.into_iter().unzip())
}

/// Rows of the terms that exist, in order of term.
fn live_rows(db: &Connection) -> Result<Vec<u64>, MarketError> {
    let mut statement = db.prepare("SELECT v.row FROM terms t JOIN term_vectors v ON v.term = t.id ORDER BY t.id")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A hash of everything that the index is a function of, but for the order in which several threads add terms.
fn inputs_of(db: &Connection, encoder_version: &str, dimensions: usize) -> Result<String, MarketError> {
    let mut hash = blake3::Hasher::new();
    hash.update(format!("2 {encoder_version} {dimensions} {CONNECTIVITY} {EXPANSION_ADD} {EXPANSION_SEARCH}\n").as_bytes());
    let mut statement = db.prepare("SELECT id, text FROM terms ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        hash.update(&row.get::<_, i64>(0)?.to_le_bytes());
        hash.update(row.get_ref(1)?.as_str().unwrap_or_default().as_bytes());
        hash.update(b"\n");
    }
    Ok(hash.finalize().to_hex()[..12].to_owned())
}

/// Builds the graph and writes it to `path`.
fn build_graph(
    path: &Path,
    vectors: &VectorFile,
    rows: &[u64],
    threads: usize,
    progress: &mut dyn FnMut(IndexProgress),
) -> Result<(), MarketError> {
    let threads = if rows.len() <= ONE_THREAD_MAX { 1 } else { threads.clamp(1, 64) };
    let mut index = graph(vectors.dimensions())?;
    set_distance(&mut index, vectors.dimensions());
    index.reserve_capacity_and_threads(rows.len(), threads).map_err(index_fault)?;
    let next = AtomicUsize::new(0);
    let total = rows.len();
    progress(IndexProgress::Indexing { done: 0, total });
    let (sender, finished) = std::sync::mpsc::sync_channel(64);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (index, next, sender) = (&index, &next, sender.clone());
                scope.spawn(move || add_rows(index, vectors, rows, next, &sender))
            })
            .collect();
        drop(sender);
        let mut done = 0;
        for added in finished {
            done += added;
            progress(IndexProgress::Indexing { done, total });
        }
        workers.into_iter().try_for_each(|worker| worker.join().expect("a thread that adds vectors does not panic"))
    })?;
    index.save(&path.to_string_lossy()).map_err(index_fault)
}

/// Takes rows from `next` on until none is left, and reports how many were added.
fn add_rows(
    index: &Index,
    vectors: &VectorFile,
    rows: &[u64],
    next: &AtomicUsize,
    done: &std::sync::mpsc::SyncSender<usize>,
) -> Result<(), MarketError> {
    const AT_ONCE: usize = 256;
    let mut scratch = Vec::new();
    let mut vector = vec![0.0; vectors.dimensions()];
    loop {
        let from = next.fetch_add(AT_ONCE, Ordering::Relaxed);
        let Some(mine) = rows.get(from..(from + AT_ONCE).min(rows.len())).filter(|mine| !mine.is_empty()) else { return Ok(()) };
        for row in mine {
            vectors.read(*row, &mut scratch, &mut vector)?;
            index.add(*row, &quantised(&vector)).map_err(index_fault)?;
        }
        if done.send(mine.len()).is_err() {
            return Ok(());
        }
    }
}

fn publish(db: &mut Connection, built: &Built, vectors: &str) -> Result<(), MarketError> {
    let tx = db.transaction()?;
    set_meta(&tx, "index_inputs", &built.inputs)?;
    set_meta(&tx, "index_version", &built.version)?;
    set_meta(&tx, "index_file", &built.name)?;
    set_meta(&tx, "index_bytes", &built.bytes.to_string())?;
    set_meta(&tx, "index_vectors", vectors)?;
    tx.commit()?;
    Ok(())
}

/// Removes index and vector files that are no longer named. A reader that has them open keeps them until it lets go; one that is just
/// opening them finds them gone, and reads the new names.
fn remove_old(dir: &MarketDir, index: &str, vectors: &str) {
    let Ok(files) = fs::read_dir(dir.path()) else { return };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        let old_index =
            name.starts_with("terms-") && (name.ends_with(".usearch") || name.ends_with(".unfinished")) && name != index;
        let old_vectors = name.starts_with("vectors-") && name.ends_with(".f16") && name != vectors;
        if (old_index || old_vectors) && fs::remove_file(file.path()).is_err() {
            tracing::warn!(file = %file.path().display(), "cannot remove an old index file");
        }
    }
}

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
    /// Opens the index that `db` names.
    pub(crate) fn open(dir: &MarketDir, db: &Connection) -> Result<Self, MarketError> {
        let named = |key: &str| meta(db, key)?.ok_or_else(|| MarketError::NoIndex(dir.path().to_owned()));
        let path: PathBuf = dir.path().join(named("index_file")?);
        let vectors = VectorFile::open(&dir.path().join(named("index_vectors")?))?;
        let bytes = fs::metadata(&path).map_err(MarketError::file(&path))?.len();
        if named("index_bytes")? != bytes.to_string() {
            return Err(MarketError::Index(format!(
                "{} has {bytes} bytes, not as many as were written: build the index again",
                path.display()
            )));
        }
        let mut graph = graph(vectors.dimensions())?;
        graph.view(&path.to_string_lossy()).map_err(index_fault)?;
        if graph.dimensions() != vectors.dimensions() {
            return Err(MarketError::Dimensions { index: graph.dimensions(), asked: vectors.dimensions() });
        }
        set_distance(&mut graph, vectors.dimensions());
        graph.change_expansion_search(EXPANSION_SEARCH);
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
    NativeOptions {
        dimensions,
        metric: MetricKind::Cos,
        quantization: ScalarKind::I8,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: EXPANSION_SEARCH,
        multi: false,
    }
}

/// Eight-bit integers in the direction of a unit `vector`, all by one scale, so that their dot products order as cosines do.
/// Parts beyond five standard deviations of a random direction are cut to 127.
fn quantised(vector: &[f32]) -> Vec<i8> {
    let scale = 127.0 * (vector.len() as f32).sqrt() / 5.0;
    // A cast to an integer keeps within its range.
    vector.iter().map(|x| (x * scale).round() as i8).map(|x| x.max(-127)).collect()
}

/// An empty graph whose distances are negative dot products of integers: exact, so that a graph is the same on every machine, and many
/// times faster than the library's own loop over bytes.
fn graph(dimensions: usize) -> Result<Index, MarketError> {
    Index::new(&native(dimensions)).map_err(index_fault)
}

/// Sets the graph's distance; reading a file sets it back to the library's own.
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

fn index_fault(fault: impl std::fmt::Display) -> MarketError {
    MarketError::Index(fault.to_string())
}
