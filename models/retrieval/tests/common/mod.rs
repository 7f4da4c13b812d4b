//! What the tests share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::PathBuf;

use endcap_retrieval::{IndexOptions, IndexReport, MarketDir, build_index, words::words};
use endcap_schemas::{Category, Descriptor, DietSet, Keyword, Product, Term};

pub(crate) const DIMENSIONS: usize = 64;

/// A vector in which every word has its own pseudo-random direction: texts that share words are near.
pub(crate) fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; dimensions];
    for word in words(text).into_iter().chain(["bias".to_owned()]) {
        let weight = if word == "bias" { 0.2 } else { 1.0 };
        let mut state =
            word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        for x in &mut sum {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *x += weight * ((state >> 40) as f32 / 8_388_608.0 - 1.0);
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.iter().map(|x| x / length).collect()
}

pub(crate) fn index(dir: &MarketDir, encoder_version: &str) -> IndexReport {
    let mut encoder = |texts: &[String]| Ok(texts.iter().map(|text| vector(text, DIMENSIONS)).collect());
    build_index(dir, encoder_version, &mut encoder, &IndexOptions { chunk: 100, threads: 2 }, &mut |_| ()).unwrap()
}

pub(crate) fn product(id: &str, name: &str, path: &[&str], popularity: f32) -> Product {
    Product {
        id: id.to_owned(),
        name: name.to_owned(),
        brand: String::new(),
        size: String::new(),
        price_cents: Some(199),
        category_path: path.iter().map(|part| (*part).to_owned()).collect(),
        violates: DietSet::NONE,
        age_restricted: false,
        popularity,
        in_stock: true,
    }
}

pub(crate) fn category(name: &str, department: &str) -> Category {
    Category {
        name: name.to_owned(),
        department: department.to_owned(),
        violates: DietSet::NONE,
        age_restricted: false,
        seasons: [0.0, 0.1, 0.2, 0.3],
        related: vec!["bread".to_owned()],
        popularity: 0.5,
    }
}

pub(crate) fn term(text: &str, descriptor: Descriptor) -> Term {
    Term { text: text.to_owned(), descriptor, category: None, violates: DietSet::NONE, popularity: 0.5, tier: 1 }
}

pub(crate) fn query(text: &str) -> Keyword {
    Keyword { id: 0, text: text.to_owned(), descriptor: Descriptor::Query }
}

pub(crate) fn node(text: &str) -> Keyword {
    Keyword { id: 0, text: text.to_owned(), descriptor: Descriptor::Node }
}

pub(crate) fn names(products: &[Product]) -> Vec<&str> {
    products.iter().map(|product| product.name.as_str()).collect()
}

/// The real data, where it is there; says so where it is not.
pub(crate) fn real_data() -> Option<PathBuf> {
    let dir = std::env::var_os("ENDCAP_TEST_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no real data in {} (set ENDCAP_TEST_DATA)", dir.display());
    None
}
