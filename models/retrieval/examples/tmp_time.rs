use endcap_retrieval::*;
use endcap_schemas::*;
#[path = "../tests/common/mod.rs"]
mod common;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let t = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(t.path()).unwrap();
    let text = std::fs::read_to_string("/tmp/kw.tsv").unwrap();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let step = lines.len() / n;
    let terms: Vec<Term> = (0..n).map(|i| common::term(lines[i * step].split('\t').next().unwrap(), Descriptor::Query)).collect();
    write_demo(&dir, &[], &[], &terms).unwrap();
    let s = std::time::Instant::now();
    let mut e = None;
    let mut enc = |x: &[String]| Ok(x.iter().map(|t| common::vector(t, 256)).collect());
    build_index(&dir, "x", &mut enc, &IndexOptions::default(), &mut |p| {
        if let IndexProgress::Indexing { .. } = p {
            e.get_or_insert(s.elapsed());
        }
    })
    .unwrap();
    println!("{n}: embed {:?} total {:?}", e, s.elapsed());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = stat.split(' ').collect();
    println!("user ticks {}", f[13]);
    let m = Market::open(t.path()).unwrap();
    let snap = m.snapshot();
    let (mut hit, mut tot) = (0, 0);
    let mut times = vec![];
    for i in 0..100 {
        let v = common::vector(lines[i * 2711 + 5].split('\t').next().unwrap(), 256);
        let s = std::time::Instant::now();
        let a = snap.near(&v, 64).unwrap();
        times.push(s.elapsed());
        let b = snap.near_exact(&v, 64).unwrap();
        let w = b.last().unwrap().cosine;
        hit += a.iter().filter(|x| x.cosine >= w - 1e-6).count();
        tot += b.len();
    }
    times.sort();
    println!("recall {} p50 {:?} p99 {:?}", hit as f64 / tot as f64, times[50], times[98]);
}
