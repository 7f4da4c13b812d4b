use std::{sync::Arc, time::Instant};
use endcap_engine::*;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().take(60000).collect();
    let t = Instant::now();
    let tok = Arc::new(demo_tokenizer(lines.iter().copied(), 4096).unwrap());
    println!("train {:?} size {}", t.elapsed(), tok.vocabulary_size());
    let t = Instant::now();
    let n: usize = lines.iter().map(|l| tok.encode(l).unwrap().len()).sum();
    println!("encode {:?} {} lines {} tokens {} bytes", t.elapsed(), lines.len(), n, text.len());
    let t = Instant::now();
    let mut g = JsonGrammar::new(tok.clone(), TextLimits::default()).unwrap();
    println!("grammar {:?}", t.elapsed());
    let t = Instant::now();
    g.document(8).unwrap();
    println!("compile {:?}", t.elapsed());
    for doc in 0..6u64 {
        let t = Instant::now();
        let mut c = g.document(8).unwrap();
        let clone = t.elapsed();
        let (mut masks, mut forced, mut n, mut nf) = (0u128, 0u128, 0, 0);
        let mut worst = 0;
        let mut adv = 0u128;
        while !c.finished() {
            let t = Instant::now();
            let run = c.forced().unwrap();
            forced += t.elapsed().as_nanos();
            if !run.is_empty() { nf += run.len(); continue; }
            let t = Instant::now();
            let Allowed::Mask(m) = c.allowed().unwrap() else { panic!() };
            let e = t.elapsed().as_nanos();
            masks += e; worst = worst.max(e);
            let ids: Vec<u32> = m.iter().enumerate().flat_map(|(i, w)| (0..32).filter(move |b| w >> b & 1 == 1).map(move |b| i as u32 * 32 + b)).collect();
            // prefer markers often
            let pick = ids.iter().copied().filter(|&i| i > 20 && i < 26 && (n + doc) % 4 == 0).next().unwrap_or(ids[((n + 13) * 7919 + doc * 104729) as usize % ids.len()]);
            let t = Instant::now();
            c.advance(pick).unwrap();
            adv += t.elapsed().as_nanos();
            n += 1;
        }
        println!("doc {doc}: clone {clone:?} choices {n} forced {nf}; mask {} ns avg, worst {worst}; forced() {} ns avg; advance {} ns", masks / n as u128, forced / n as u128, adv / n as u128);
    }
}
