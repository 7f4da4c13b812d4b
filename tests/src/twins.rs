//! Twins of the models: small rules in their place, so that the path can be tested without weights. Fast, and the same for equal requests.

use std::time::Duration;

use anyhow::Result;
use endcap::path::Fleet;
use endcap_inference::{
    ChooseKeywords, ChosenKeywords, Embed, Embedding, Limits, Model, ModelError, Pair, Relevance, TokenCounts, WriteThemes,
    WrittenThemes,
    prompts::{ThemeDocument, ThemesDocument, mark},
    spawn,
};

/// Numbers of a twin's vectors.
const DIMENSIONS: usize = 64;
/// Leaves that every taxonomy of the tests has, for shoppers with few favourites.
const STAPLES: [&str; 8] = ["pasta", "cheese", "bread", "coffee", "tea", "rice", "apples", "chocolate"];

/// The path's models, all twins.
///
/// # Errors
/// When a thread cannot be started.
pub fn fleet() -> Result<Fleet<ThemesTwin, KeywordsTwin, EncoderTwin, JudgeTwin>> {
    let limits = Limits { linger: Duration::ZERO, ..Limits::default() };
    Ok(Fleet {
        themes: Some(spawn("themes", ThemesTwin, limits)?),
        keywords: Some((spawn("keywords", KeywordsTwin, limits)?, Box::new(|text| text.split_whitespace().count()))),
        encoder: spawn("encoder", EncoderTwin, limits)?,
        judge: Some((spawn("judge", JudgeTwin, limits)?, 0.5)),
    })
}

/// Writes one theme per favourite of the prompt, then staples.
pub struct ThemesTwin;

impl Model for ThemesTwin {
    type Request = WriteThemes;
    type Answer = WrittenThemes;

    fn tokens(&self, request: &WriteThemes) -> usize {
        request.prompt.len() / 4
    }

    fn answer(&mut self, batch: Vec<WriteThemes>) -> Result<Vec<Result<WrittenThemes, ModelError>>, ModelError> {
        Ok(batch.iter().map(|request| Ok(write(request))).collect())
    }

    fn version(&self) -> &str {
        "themes-twin@1"
    }
}

fn write(request: &WriteThemes) -> WrittenThemes {
    let favourites = request.prompt.split(mark::FAVOURITES).nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
    let favourites = favourites.split(mark::ITEM).map(str::trim).filter(|name| !name.is_empty());
    let mut names: Vec<&str> = Vec::new();
    for name in favourites.chain(STAPLES) {
        if !names.contains(&name) && names.len() < request.themes {
            names.push(name);
        }
    }
    let themes = names.iter().map(|name| ThemeDocument {
        title: format!("More {name} for you"),
        intent: format!("stock up on {name}"),
        concepts: vec![(*name).to_owned()],
    });
    let document = ThemesDocument { persona: "a shopper of the tests".to_owned(), themes: themes.collect() };
    let json = serde_json::to_string(&document).expect("a document is JSON");
    let generated = json.len() as u64 / 4;
    WrittenThemes { json, tokens: TokenCounts { prefilled: request.prompt.len() as u64 / 4, generated, forced: 0 } }
}

/// Chooses the first candidates.
pub struct KeywordsTwin;

impl Model for KeywordsTwin {
    type Request = ChooseKeywords;
    type Answer = ChosenKeywords;

    fn tokens(&self, request: &ChooseKeywords) -> usize {
        request.terms().count() * 3
    }

    fn answer(&mut self, batch: Vec<ChooseKeywords>) -> Result<Vec<Result<ChosenKeywords, ModelError>>, ModelError> {
        let choose = |request: &ChooseKeywords| ChosenKeywords {
            picks: (0..request.terms().count().min(request.keywords_max)).collect(),
            tokens: TokenCounts {
                prefilled: request.terms().count() as u64 * 3,
                generated: request.keywords_max as u64,
                forced: 2,
            },
        };
        Ok(batch.iter().map(|request| Ok(choose(request))).collect())
    }

    fn version(&self) -> &str {
        "keywords-twin@1"
    }
}

/// A vector from the hashes of a text's words: texts that share words are near each other.
pub struct EncoderTwin;

impl Model for EncoderTwin {
    type Request = Embed;
    type Answer = Embedding;

    fn tokens(&self, request: &Embed) -> usize {
        request.text.len() / 4
    }

    fn answer(&mut self, batch: Vec<Embed>) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        Ok(batch.iter().map(|request| Ok(Embedding(embed(&request.text)))).collect())
    }

    fn version(&self) -> &str {
        "encoder-twin@1"
    }
}

/// What [`EncoderTwin`] answers, `[64]`.
pub fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.01_f32; DIMENSIONS];
    for word in text.split_whitespace() {
        let hash =
            word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        vector[(hash % DIMENSIONS as u64) as usize] += 1.0;
        vector[(hash / 64 % DIMENSIONS as u64) as usize] -= 0.5;
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

/// Finds a product relevant whose category stands in the theme.
pub struct JudgeTwin;

impl Model for JudgeTwin {
    type Request = Pair;
    type Answer = Relevance;

    fn tokens(&self, request: &Pair) -> usize {
        (request.theme.len() + request.product.len()) / 4
    }

    fn answer(&mut self, batch: Vec<Pair>) -> Result<Vec<Result<Relevance, ModelError>>, ModelError> {
        let judge = |pair: &Pair| {
            let category = pair.product.rsplit(" ; ").next().unwrap_or_default();
            let relevant = pair.theme.split(" ; ").skip(1).any(|concept| concept == category);
            Relevance { probability: if relevant { 0.95 } else { 0.05 }, tokens: 16 }
        };
        Ok(batch.iter().map(|pair| Ok(judge(pair))).collect())
    }

    fn version(&self) -> &str {
        "judge-twin@1"
    }
}
