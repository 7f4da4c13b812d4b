//! Building the index over the terms: embed what has no vector, put all vectors into the graph, name the finished files.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rusqlite::{Connection, params};
use usearch::Index;

use crate::{
    MarketDir, MarketError,
    dir::{meta, set_meta},
    index::{self, GRAPH_PARAMETERS, index_fault, quantised},
    vectors::VectorFile,
};

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
/// build goes on with the next chunk. Readers keep the old index until the new one is complete. A file of an earlier build that was
/// lost or damaged is made again.
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
    build(dir, encoder_version, encoder, options, progress).map_err(|fault| dir.blame(fault))
}

fn build(
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
    let of_another = meta(&db, "vectors_encoder")?.as_deref() != Some(encoder_version);
    if of_another || is_damaged(check_vectors(&db, &vectors_name, &vectors_path))? {
        forget_vectors(&mut db, encoder_version, &vectors_name)?;
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
        if meta(&db, "index_seal")?.is_none() {
            set_meta(&db, "index_seal", &vectors.seal(rows_written(&db)?)?)?;
        }
        return Ok(report(version, true));
    }
    let unfinished = dir.path().join("terms-new.unfinished");
    let threads = if rows.len() <= ONE_THREAD_MAX { 1 } else { options.threads.clamp(1, 64) };
    build_graph(&unfinished, &vectors, &rows, threads, progress)?;
    let built = finish(dir, &unfinished, inputs)?;
    let seal = vectors.seal(rows_written(&db)?)?;
    publish(&mut db, &built, &vectors_name, &seal)?;
    remove_old(dir, &built.name, &vectors_name);
    Ok(report(built.version, false))
}

/// Whether a check found a file that must be made again; logs it then.
fn is_damaged(checked: Result<(), MarketError>) -> Result<bool, MarketError> {
    let (path, what) = match checked {
        Ok(()) => return Ok(false),
        Err(MarketError::Damaged { path, what }) => (path, what),
        Err(MarketError::File { path, fault }) if fault.kind() == std::io::ErrorKind::NotFound => (path, "it is gone".to_owned()),
        Err(other) => return Err(other),
    };
    tracing::warn!(file = %path.display(), what, "an index file is damaged: making it again from the database");
    Ok(true)
}

/// Whether the file holds the rows that the database names.
fn check_vectors(db: &Connection, name: &str, path: &Path) -> Result<(), MarketError> {
    let rows = rows_written(db)?;
    if rows == 0 {
        return Ok(());
    }
    let file = VectorFile::open(path)?;
    file.has(rows)?;
    // Rows that were added after the last index are only counted: nothing tells what they should hold.
    let sealed = meta(db, "index_vectors")?.as_deref() == Some(name);
    match meta(db, "index_seal")?.filter(|_| sealed) {
        Some(seal) => file.verify(&seal),
        None => Ok(()),
    }
}

/// Begins with no vectors at all, in the file of this `name`. An index over that very file goes, as nobody can read it without its
/// vectors; one over another encoder's is of no use to this one, but readers keep it until there is a new one.
fn forget_vectors(db: &mut Connection, encoder_version: &str, name: &str) -> Result<(), MarketError> {
    let tx = db.transaction()?;
    tx.execute("DELETE FROM term_vectors", [])?;
    let whole = meta(&tx, "index_vectors")?.as_deref() == Some(name);
    let also = if whole { "key LIKE 'index_%'" } else { "key IN ('index_rows', 'index_inputs')" };
    tx.execute(&format!("DELETE FROM meta WHERE {also}"), [])?;
    set_meta(&tx, "vectors_encoder", encoder_version)?;
    Ok(tx.commit()?)
}

/// A finished index file.
struct Built {
    /// Hash of what it was built from.
    inputs: String,
    version: String,
    name: String,
    bytes: u64,
}

/// Version of the index in place, where it was built from `inputs` and its file is as it was written.
fn built_from(dir: &MarketDir, db: &Connection, inputs: &str) -> Result<Option<String>, MarketError> {
    if meta(db, "index_inputs")?.as_deref() != Some(inputs) || is_damaged(index::check(dir, db))? {
        return Ok(None);
    }
    meta(db, "index_version")
}

/// Gives the index file its version, and the name that holds it.
fn finish(dir: &MarketDir, unfinished: &Path, inputs: String) -> Result<Built, MarketError> {
    let file = fs::File::open(unfinished).map_err(MarketError::file(unfinished))?;
    file.sync_all().map_err(MarketError::file(unfinished))?;
    let bytes = file.metadata().map_err(MarketError::file(unfinished))?.len();
    let version = index::version_of(&inputs, unfinished)?;
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
    hash.update(
        format!("2 {encoder_version} {dimensions} {} {} {}\n", GRAPH_PARAMETERS[0], GRAPH_PARAMETERS[1], GRAPH_PARAMETERS[2])
            .as_bytes(),
    );
    let mut statement = db.prepare("SELECT id, text FROM terms ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        hash.update(&row.get::<_, i64>(0)?.to_le_bytes());
        hash.update(row.get_ref(1)?.as_str().unwrap_or_default().as_bytes());
        hash.update(b"\n");
    }
    Ok(hash.finalize().to_hex()[..12].to_owned())
}

/// Vectors that are added before several threads go to work.
const PLANTED: usize = 1_024;

/// Builds the graph with so many threads and writes it to `path`.
fn build_graph(
    path: &Path,
    vectors: &VectorFile,
    rows: &[u64],
    threads: usize,
    progress: &mut dyn FnMut(IndexProgress),
) -> Result<(), MarketError> {
    let index = index::graph(vectors.dimensions())?;
    index.reserve_capacity_and_threads(rows.len(), threads).map_err(index_fault)?;
    let total = rows.len();
    progress(IndexProgress::Indexing { done: 0, total });
    // One thread plants the first ones: added at the same time to a graph that has hardly any, they do not find each other.
    let (planted, _) = rows.split_at(total.min(PLANTED));
    add_all(&index, vectors, planted)?;
    let next = AtomicUsize::new(planted.len());
    let (sender, finished) = std::sync::mpsc::sync_channel(64);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (index, next, sender) = (&index, &next, sender.clone());
                scope.spawn(move || add_rows(index, vectors, rows, next, &sender))
            })
            .collect();
        drop(sender);
        let mut done = planted.len();
        for added in finished {
            done += added;
            progress(IndexProgress::Indexing { done, total });
        }
        workers.into_iter().try_for_each(|worker| worker.join().expect("a thread that adds vectors does not panic"))
    })?;
    index.save(&path.to_string_lossy()).map_err(index_fault)
}

/// Adds `rows` one after another.
fn add_all(index: &Index, vectors: &VectorFile, rows: &[u64]) -> Result<(), MarketError> {
    let (mut scratch, mut vector) = (Vec::new(), vec![0.0; vectors.dimensions()]);
    for row in rows {
        vectors.read(*row, &mut scratch, &mut vector)?;
        index.add(*row, &quantised(&vector)).map_err(index_fault)?;
    }
    Ok(())
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
    loop {
        let from = next.fetch_add(AT_ONCE, Ordering::Relaxed);
        let Some(mine) = rows.get(from..(from + AT_ONCE).min(rows.len())).filter(|mine| !mine.is_empty()) else { return Ok(()) };
        add_all(index, vectors, mine)?;
        if done.send(mine.len()).is_err() {
            return Ok(());
        }
    }
}

fn publish(db: &mut Connection, built: &Built, vectors: &str, seal: &str) -> Result<(), MarketError> {
    let tx = db.transaction()?;
    set_meta(&tx, "index_inputs", &built.inputs)?;
    set_meta(&tx, "index_version", &built.version)?;
    set_meta(&tx, "index_file", &built.name)?;
    set_meta(&tx, "index_bytes", &built.bytes.to_string())?;
    set_meta(&tx, "index_vectors", vectors)?;
    set_meta(&tx, "index_seal", seal)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::TermIndex;

    /// Vectors `[dimensions]` in pseudo-random directions (SplitMix64).
    fn random_vectors(seed: u64, count: usize, dimensions: usize) -> Vec<Vec<f32>> {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ (x >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| (0..dimensions).map(|_| draw()).collect()).collect()
    }

    /// Share of the true `k` nearest that an index built by so many threads finds.
    fn recall(dir: &Path, vectors: &[Vec<f32>], questions: &[Vec<f32>], threads: usize) -> f64 {
        const K: usize = 10;
        let (graph, rows) = (dir.join(format!("{threads}.usearch")), dir.join("vectors.f16"));
        let all: Vec<u64> = (0..vectors.len() as u64).collect();
        build_graph(&graph, &VectorFile::open(&rows).unwrap(), &all, threads, &mut |_| ()).unwrap();
        let index = TermIndex::over(&graph, VectorFile::open(&rows).unwrap()).unwrap();
        let found = questions.iter().map(|question| {
            let near = index.near(question, K).unwrap();
            index.near_exact(question, K).unwrap().iter().filter(|exact| near.contains(exact)).count()
        });
        found.sum::<usize>() as f64 / (K * questions.len()) as f64
    }

    #[test]
    fn an_index_built_by_many_threads_finds_what_one_built_by_one_does() {
        const DIMENSIONS: usize = 32;
        let seed = 20_261;
        let dir = tempfile::tempdir().unwrap();
        let vectors = random_vectors(seed, 4_000, DIMENSIONS);
        let terms: Vec<i64> = (1..=vectors.len() as i64).collect();
        let file = VectorFile::append(&dir.path().join("vectors.f16"), DIMENSIONS, 0).unwrap();
        file.write(0, &terms, &vectors).unwrap();
        let questions = random_vectors(seed + 1, 200, DIMENSIONS);
        let [one, many] = [1, 4].map(|threads| recall(dir.path(), &vectors, &questions, threads));
        println!("seed {seed}: recall {one} with one thread, {many} with four");
        assert!(one > 0.95 && many > one - 0.01, "seed {seed}: recall {one} with one thread, {many} with four");
    }
}
