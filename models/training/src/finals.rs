//! The finished decoder, examined as the stages use it: the engine's constrained generation with the adapters in the directory.

use std::{collections::HashSet, path::Path};

use candle_core::Device;
use endcap_engine::{KeywordModel, ThemeModel, Tokenizer};
use endcap_inference::{
    Candidates, ChooseKeywords, Model, WriteThemes,
    prompts::{self, ThemesDocument},
};
use endcap_market::truth;
use endcap_schemas::Theme;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Result, TrainError,
    candidates::Neighbourhood,
    decoder::{CANDIDATES, KEYWORDS},
    encoder::read_encoder,
    examination::SHOPS_AT_MS,
    source::Source,
    step::Scores,
};

/// Themes of a page.
const THEMES: usize = 8;
const TOP: usize = 5;

fn engine(error: impl std::fmt::Display) -> TrainError {
    TrainError::Engine(error.to_string())
}

/// Writes pages for `households` held-out households and compares them with the merchandiser's.
///
/// # Errors
/// A directory that the engine refuses, a model that fails.
pub fn examine_themes(decoder: &Path, source: &Source, households: u64) -> Result<Scores> {
    let adapter = decoder.join("themes.adapter.safetensors");
    let mut model = ThemeModel::load(decoder, adapter.exists().then_some(adapter.as_path()), &Device::Cpu).map_err(engine)?;
    let samples: Vec<_> = (0..households)
        .map(|n| {
            let household = source.market.held_out_household(n);
            source.samples.theme_of(&household, 4 + n as usize % 8, SHOPS_AT_MS, &mut ChaCha8Rng::seed_from_u64(n))
        })
        .collect();
    let requests =
        samples.iter().map(|sample| WriteThemes { prompt: prompts::themes(&sample.context), themes: THEMES }).collect();
    let answers = model.answer(requests).map_err(engine)?;
    let (mut valid, mut themes, mut anchors, mut known, mut concepts, mut kept) = (0f64, 0f64, 0f64, 0f64, 0f64, 0f64);
    for (sample, answer) in samples.iter().zip(answers) {
        let Ok(document) =
            answer.map_err(engine).and_then(|answer| serde_json::from_str::<ThemesDocument>(&answer.json).map_err(engine))
        else {
            continue;
        };
        valid += f64::from(document.themes.len() == THEMES);
        let teacher: HashSet<&str> =
            sample.page.themes.iter().filter_map(|theme| theme.concepts.first()).map(String::as_str).collect();
        let mut seen = HashSet::new();
        for theme in &document.themes {
            themes += 1.0;
            let anchor = theme.concepts.first().map_or("", |concept| concept.trim());
            anchors += f64::from(teacher.contains(anchor) && seen.insert(anchor));
            for concept in &theme.concepts {
                concepts += 1.0;
                if let Some(category) = source.market.category(concept.trim()) {
                    known += 1.0;
                    kept += f64::from(!category.violates.intersects(sample.context.brief.diets));
                }
            }
        }
    }
    Ok(vec![
        ("pages that are valid documents of eight themes".into(), valid / households as f64),
        ("anchors among the merchandiser's (distinct)".into(), anchors / themes.max(1.0)),
        ("concepts that exist".into(), known / concepts.max(1.0)),
        ("concepts within the diets".into(), kept / known.max(1.0)),
    ])
}

/// Chooses keywords for `lists` themes, unseen terms among the candidates, and compares them with the merchandiser's.
///
/// # Errors
/// A directory that the engine refuses, a model that fails.
pub fn examine_keywords(decoder: &Path, encoder: &Path, source: &Source, tokenizer: &Tokenizer, lists: u64) -> Result<Scores> {
    let adapter = decoder.join("keywords.adapter.safetensors");
    let mut model = KeywordModel::load(decoder, adapter.exists().then_some(adapter.as_path()), &Device::Cpu).map_err(engine)?;
    let (shape, mut params) = read_encoder(encoder, tokenizer.vocabulary_size())?;
    params.freeze(|_| true);
    let neighbourhood = Neighbourhood::new(source, &shape, &params.weights()?, tokenizer, 1)?;
    let terms = &source.market.terms;
    let (mut requests, mut tasks) = (Vec::new(), Vec::new());
    for n in 0..lists {
        let (brief, persona, theme) = source.samples.keyword_theme(&mut ChaCha8Rng::seed_from_u64(0x6b78_0000 + n));
        let groups = neighbourhood.groups(terms, &theme, CANDIDATES, |term| {
            !terms[term].violates.intersects(brief.diets) && !source.is_age_restricted(term)
        });
        let candidates: Vec<_> = groups.iter().flat_map(|group| &group.1).map(|term| terms[*term].clone()).collect();
        let picks = source.merchandiser.choose_keywords(&brief, &theme, &candidates, KEYWORDS.0, KEYWORDS.1);
        if picks.is_empty() {
            continue;
        }
        let texts = |group: &[usize]| group.iter().map(|term| prompts::plain(&terms[*term].text)).collect();
        requests.push(ChooseKeywords {
            prompt: prompts::keywords(&persona, &brief, &theme),
            candidates: groups
                .iter()
                .map(|(concept, group)| Candidates { concept: concept.clone(), terms: texts(group) })
                .collect(),
            keywords_min: KEYWORDS.0,
            keywords_max: KEYWORDS.1,
        });
        tasks.push((brief, theme, candidates, picks));
    }
    let (mut overlap, mut right, mut chosen, mut length, mut random) = (0f64, 0f64, 0f64, 0f64, 0f64);
    let count = tasks.len().max(1) as f64;
    for ((brief, theme, candidates, picks), answer) in tasks.iter().zip(model.answer(requests).map_err(engine)?) {
        let answer = answer.map_err(engine)?;
        let top = picks.len().min(TOP);
        overlap += answer.picks.iter().take(top).filter(|pick| picks[..top].contains(pick)).count() as f64 / top as f64;
        let relevant = |theme: &Theme, i: usize| truth::keyword_relevant(theme, &candidates[i], brief);
        right += answer.picks.iter().filter(|pick| relevant(theme, **pick)).count() as f64;
        random += (0..candidates.len()).filter(|i| relevant(theme, *i)).count() as f64 / candidates.len() as f64;
        chosen += answer.picks.len() as f64;
        length += (answer.picks.len() as f64 - picks.len() as f64).abs();
    }
    Ok(vec![
        (format!("top-{TOP} overlap with the merchandiser"), overlap / count),
        ("keywords of the theme's categories, within the diets".into(), right / chosen.max(1.0)),
        ("the same for a random choice".into(), random / count),
        ("keywords per list".into(), chosen / count),
        ("difference to the merchandiser's length".into(), length / count),
    ])
}
