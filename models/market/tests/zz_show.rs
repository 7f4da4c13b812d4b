use endcap_market::*;
use rand::SeedableRng;
use std::{sync::Arc, time::Instant};
#[test]
fn show() {
    let t = Instant::now();
    let market = Arc::new(Market::generate(DEMO_SEED));
    println!(
        "generate {:?} products {} terms {} tiers {:?}",
        t.elapsed(),
        market.products.len(),
        market.terms.len(),
        [1, 2, 3].map(|t| market.terms.iter().filter(|x| x.tier == t).count())
    );
    let samples = Samples::new(market.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let t = Instant::now();
    for _ in 0..300 {
        samples.theme(&mut rng);
    }
    println!("theme sample {:?}", t.elapsed() / 300);
    let t = Instant::now();
    for _ in 0..300 {
        samples.pair(&mut rng);
    }
    println!("pair {:?}", t.elapsed() / 300);
    let sh = Shoppers::new(market.clone(), 1, 100, 0, 1000);
    let t = Instant::now();
    let ev: Vec<_> = sh.from(0).take(1000).collect();
    println!("event {:?}; prefs {}", t.elapsed() / 1000, ev.iter().filter(|e| e.preference.is_some()).count());
    for _ in 0..6 {
        let s = samples.theme(&mut rng);
        println!("{}\n  {}", endcap_inference::prompts::themes(&s.context), s.page.persona);
        for t in &s.page.themes {
            println!("  {:40} | {:30} | {:?}", t.title, t.intent, t.concepts);
        }
    }
    for i in (0..market.products.len()).step_by(211) {
        let p = &market.products[i];
        println!("{} {:?} {} {:.2} {}", p.title(), p.price_cents, p.category(), p.popularity, p.violates.words());
    }
    for i in (0..market.terms.len()).step_by(997) {
        let p = &market.terms[i];
        println!("{} | {:?} {:.2} {} {}", p.text, p.category, p.popularity, p.tier, p.violates.words());
    }
}
