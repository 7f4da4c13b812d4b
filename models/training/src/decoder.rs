//! The decoder's base: trained on catalogue facts, pages of themes and keyword lists at once; then an adapter for each task.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use candle_core::Tensor;
use endcap_engine::{Adapter, ModelDir, Tokenizer, ops};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Result, RunReport, RunSettings, Surroundings, TrainError,
    candidates::{Group, Neighbourhood},
    card::{Card, write_model},
    checkpoint::replace,
    files::{FORMAT, Tensors, write_bf16, write_json},
    llama::{CANDIDATE_HEAD, EPSILON, LlamaShape, LoraShape, MATRICES, ROPE_THETA},
    params::{Params, Weights},
    run,
    source::Source,
    step::{Loss, Scores, Task},
    strange,
    tasks::{Encoder, Micro, Sequence},
    words::{Distilled, embedding},
};

/// How the decoder's base is made.
pub struct DecoderRun {
    /// Budget, seed, threads.
    pub settings: RunSettings,
    /// Directory of the distilled encoder: where the words' first meaning and the candidate lists come from.
    pub encoder: PathBuf,
    /// Directory of the result.
    pub out: PathBuf,
    /// What it starts as.
    pub start: DecoderStart,
}

/// What a decoder starts as.
pub enum DecoderStart {
    /// Random blocks; its words begin as the encoder's.
    Fresh {
        /// Blocks.
        layers: usize,
        /// Values inside the feed-forward block.
        inner: usize,
    },
    /// The finished base in this directory, which goes on with another market.
    Base(PathBuf),
}

/// Which stage an adapter serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterTask {
    /// LLM 1.
    Themes,
    /// LLM 2, with the candidate head.
    Keywords,
}

impl AdapterTask {
    fn name(self) -> &'static str {
        match self {
            AdapterTask::Themes => "themes",
            AdapterTask::Keywords => "keywords",
        }
    }

    /// Name of its weights beside the base's.
    fn file(self) -> String {
        format!("{}.adapter.safetensors", self.name())
    }
}

/// How an adapter is made.
pub struct AdapterRun {
    /// Budget, seed, threads.
    pub settings: RunSettings,
    /// What it serves.
    pub task: AdapterTask,
    /// Directory of the distilled encoder.
    pub encoder: PathBuf,
    /// Directory of the base; the adapter is written into it.
    pub decoder: PathBuf,
    /// Rank and strength.
    pub lora: LoraShape,
}

/// Fewest and most keywords of a list.
pub(crate) const KEYWORDS: (usize, usize) = (3, 8);
/// Candidates of a list in the keyword stage, and the most that training shows.
pub(crate) const CANDIDATES: usize = 64;
const CANDIDATES_MAX: usize = 100;
const CANDIDATES_FIRST: usize = 12;
/// Share of the budget over which lists grow and facts fall.
const CURRICULUM: f32 = 0.25;
/// Share of tokens that are facts, at first and at last.
const FACTS: (f32, f32) = (0.5, 0.1);
/// Facts weigh less in the mean than decisions.
const FACT_SCALE: f32 = 0.5;
/// Share of the other tokens that are theme pages.
const THEMES_SHARE: f32 = 0.65;
/// Shares count tokens: a list is as long as so many pages (about 480 tokens against 390 on the demo market).
const PAGES_PER_LIST: f32 = 1.2;
/// Share of the theme pages whose leaves have strange names, so that the base copies from the prompt what it does not know.
const STRANGE_SHARE: f32 = 0.12;
/// Share of the lists whose candidates keep to the household's diets, as the keyword stage's do.
const FILTERED_SHARE: f32 = 0.8;
/// Weight of the candidate head's loss.
const HEAD_WEIGHT: f64 = 1.0;

/// Sizes of the demo's decoder.
pub fn decoder_shape(vocabulary: usize, layers: usize, inner: usize) -> LlamaShape {
    LlamaShape { vocabulary, hidden: 256, inner, layers, heads: 8, positions: 2_048 }
}

/// Trains the base and writes it.
///
/// # Errors
/// Files that cannot be read or written, a loss that is no number.
pub fn train_decoder(
    run: &DecoderRun,
    source: &Source,
    tokenizer: &Tokenizer,
    around: &mut Surroundings<'_>,
) -> Result<RunReport> {
    let (shape, base, mix) = match &run.start {
        DecoderStart::Fresh { layers, inner } => (decoder_shape(tokenizer.vocabulary_size(), *layers, *inner), None, Mix::ALL),
        DecoderStart::Base(folder) => {
            let (shape, params) = read_decoder(folder, tokenizer.vocabulary_size())?;
            (shape, Some(params), Mix { grow: false, ..Mix::ALL })
        }
    };
    let mut rng = ChaCha8Rng::seed_from_u64(run.settings.seed);
    let (task, encoder) = Lessons::new(source, tokenizer, &run.encoder, shape, None, &run.settings, mix)?;
    let mut params = match base {
        Some(params) => params,
        None => shape.init(Some(embedding(&encoder, tokenizer, &mut rng)?), &mut rng),
    };
    let report = run::train(&task, &mut params, &run.settings, around)?;
    let beginning = match run.start {
        DecoderStart::Fresh { .. } => "Word embeddings start from the distilled encoder.",
        DecoderStart::Base(_) => "It went on from a finished base.",
    };
    let card = Card {
        title: "Decoder of the embedded default",
        made: format!(
            "A Llama of {} layers × {} (inner {}, {} heads, tied embeddings), trained at once on catalogue facts, pages of themes and keyword lists of \
             {}, labelled by its rule-based merchandiser. {} Two adapters of \
             low rank, `themes` and `keywords` (the latter with the candidate head), were trained on the frozen base afterwards; their scores stand in their own reports.",
            shape.layers, shape.hidden, shape.inner, shape.heads, source.name, beginning
        ),
        command: match run.start {
            DecoderStart::Fresh { .. } => "endcap train decoder",
            DecoderStart::Base(_) => "endcap train decoder --from DIR",
        },
        not_for: "Any other text than the prompts of this project about its market's categories: it knows no other words, no other language, and \
                  imitates rules rather than shoppers. For a market of your own, fine-tune it on that market or take a larger checkpoint.",
        source,
        settings: &run.settings,
        report: &report,
    };
    // Adapters belong to the base that they were trained on. Their config goes first: alone it would say that they were lost.
    for name in [Adapter::CONFIG.to_owned(), AdapterTask::Themes.file(), AdapterTask::Keywords.file()] {
        let path = run.out.join(name);
        if path.exists() {
            std::fs::remove_file(&path).map_err(TrainError::write(&path))?;
        }
    }
    write_model(&run.out, &config(&shape), tokenizer, &shape.export(&params), &card)?;
    let head = params.get(CANDIDATE_HEAD).expect("the decoder has a candidate head");
    let head = [(format!("{CANDIDATE_HEAD}.weight"), head.shape.clone(), head.value.clone())];
    write_bf16(&run.out.join("base-head.safetensors"), &head, FORMAT)?;
    Ok(report)
}

/// Trains an adapter on a finished base and writes it beside.
///
/// # Errors
/// Files that cannot be read or written, a loss that is no number.
pub fn train_adapter(
    run: &AdapterRun,
    source: &Source,
    tokenizer: &Tokenizer,
    around: &mut Surroundings<'_>,
) -> Result<RunReport> {
    let (shape, mut params) = read_decoder(&run.decoder, tokenizer.vocabulary_size())?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.settings.seed);
    shape.add_adapter(&mut params, run.lora, &mut rng);
    let name = run.task.name();
    let mix = match run.task {
        AdapterTask::Themes => Mix { themes: 1.0, keywords: 0.0, facts: (0.0, 0.0), strange: 0.0, grow: false },
        AdapterTask::Keywords => Mix { themes: 0.0, keywords: 1.0, facts: (0.0, 0.0), strange: 0.0, grow: false },
    };
    let (task, _) = Lessons::new(source, tokenizer, &run.encoder, shape, Some(run.lora), &run.settings, mix)?;
    let report = run::train(&task, &mut params, &run.settings, around)?;
    let mut tensors = shape.export_adapter(&params, run.lora);
    if run.task == AdapterTask::Keywords {
        let head = params.get(CANDIDATE_HEAD).expect("the decoder has a candidate head");
        tensors.push((format!("{CANDIDATE_HEAD}.weight"), head.shape.clone(), head.value.clone()));
    }
    let targets: Vec<&str> =
        MATRICES.iter().flat_map(|(_, parts)| parts.iter()).filter_map(|part| part.rsplit('.').next()).collect();
    let config =
        serde_json::json!({ "peft_type": "LORA", "r": run.lora.rank, "lora_alpha": run.lora.alpha, "target_modules": targets });
    let origin = ModelDir::open(&run.decoder).and_then(|base| Adapter::origin(name, &base));
    let origin = origin.map_err(|error| TrainError::content(&run.decoder, error))?;
    // The config comes last: weights without one count as unfinished, a config without weights as a loss.
    write_bf16(&run.decoder.join(run.task.file()), &tensors, (Adapter::ORIGIN, &origin))?;
    write_json(&run.decoder.join(Adapter::CONFIG), &config)?;
    let report_json = serde_json::json!({ "settings": &run.settings, "report": &report });
    write_json(&run.decoder.join(format!("{name}.report.json")), &report_json)?;
    replace_scores(&run.decoder, name, &report)?;
    Ok(report)
}

/// Puts the adapter's scores into the decoder's card, in place of those of an earlier run.
fn replace_scores(folder: &std::path::Path, name: &str, report: &RunReport) -> Result<()> {
    let path = folder.join("CARD.md");
    let mut card = std::fs::read_to_string(&path).map_err(TrainError::read(&path))?;
    let title = format!("\n## Adapter `{name}`\n");
    if let Some(at) = card.find(&title) {
        let end = card[at + title.len()..].find("\n## ").map_or(card.len(), |next| at + title.len() + next);
        card.replace_range(at..end, "");
    }
    card.push_str(&format!("{title}\n{} steps, {:.2}M tokens.\n\n{}", report.steps, report.tokens as f64 / 1e6, report.table()));
    replace(&path, card.as_bytes())
}

fn config(shape: &LlamaShape) -> serde_json::Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": EPSILON,
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.positions, "rope_theta": ROPE_THETA, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16",
    })
}

/// Reads a finished base with its head.
fn read_decoder(folder: &std::path::Path, vocabulary: usize) -> Result<(LlamaShape, Params)> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(TrainError::read(&path))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| TrainError::content(&path, error))?;
    let size = |name: &str| {
        let number = config[name].as_u64().ok_or_else(|| TrainError::content(&path, format!("it has no `{name}`")));
        number.map(|n| n as usize)
    };
    let shape = decoder_shape(vocabulary, size("num_hidden_layers")?, size("intermediate_size")?);
    let mut params = shape.import(&Tensors::read(&folder.join("model.safetensors"))?)?;
    let (size, head) = Tensors::read(&folder.join("base-head.safetensors"))?.get(&format!("{CANDIDATE_HEAD}.weight"))?;
    params.push(CANDIDATE_HEAD, &size, head);
    Ok((shape, params))
}

/// Shares of the tasks.
#[derive(Debug, Clone, Copy)]
struct Mix {
    themes: f32,
    keywords: f32,
    facts: (f32, f32),
    /// Share of the pages whose leaves have strange names.
    strange: f32,
    /// Whether candidate lists start short.
    grow: bool,
}

impl Mix {
    const ALL: Mix = Mix { themes: THEMES_SHARE, keywords: 1.0 - THEMES_SHARE, facts: FACTS, strange: STRANGE_SHARE, grow: true };
}

/// The decoder's lessons and examinations.
pub(crate) struct Lessons<'a> {
    pub(crate) source: &'a Source,
    pub(crate) shape: LlamaShape,
    pub(crate) lora: Option<LoraShape>,
    pub(crate) encode: Encoder<'a>,
    pub(crate) neighbourhood: Neighbourhood,
    pub(crate) threads: usize,
    mix: Mix,
    tokens: usize,
    facts: Vec<usize>,
    /// Words that strange leaves are named with.
    words: Vec<String>,
}

impl<'a> Lessons<'a> {
    fn new(
        source: &'a Source,
        tokenizer: &'a Tokenizer,
        encoder: &std::path::Path,
        shape: LlamaShape,
        lora: Option<LoraShape>,
        settings: &RunSettings,
        mix: Mix,
    ) -> Result<(Self, Distilled)> {
        let Distilled { shape: bert, weights } = Distilled::read(encoder, tokenizer)?;
        let lessons = Self {
            neighbourhood: Neighbourhood::new(source, &bert, &weights, tokenizer, settings.threads)?,
            encode: Encoder::new(tokenizer, &source.market.terms)?,
            facts: source.seen_terms().filter(|(_, term)| term.category.is_some()).map(|(i, _)| i).collect(),
            words: strange::words(source),
            threads: settings.threads,
            tokens: settings.micro_tokens,
            source,
            shape,
            lora,
            mix,
        };
        Ok((lessons, Distilled { shape: bert, weights }))
    }

    /// A keyword task of `count` candidates; `held_out` also shows the terms that training never sees.
    pub(crate) fn keyword_task(
        &self,
        rng: &mut ChaCha8Rng,
        count: usize,
        held_out: bool,
    ) -> Result<(Sequence, Vec<Group>, Vec<usize>)> {
        let (brief, persona, theme) = self.source.samples.keyword_theme(rng);
        let terms = &self.source.market.terms;
        // The stage turns away what the household may not have; now and then it stays, so that the model knows diets as well.
        let filtered = held_out || rng.random::<f32>() < FILTERED_SHARE;
        let groups = self.neighbourhood.groups(terms, &theme, count, |term| {
            (held_out || !self.source.held_out[term])
                && !(filtered && (terms[term].violates.intersects(brief.diets) || self.source.is_age_restricted(term)))
        });
        let candidates: Vec<_> = groups.iter().flat_map(|group| &group.1).map(|term| terms[*term].clone()).collect();
        let picks = self.source.merchandiser.choose_keywords(&brief, &theme, &candidates, KEYWORDS.0, KEYWORDS.1);
        Ok((self.encode.keywords(&brief, &persona, &theme, &groups, &picks)?, groups, picks))
    }

    fn candidates(&self, done: f32, rng: &mut ChaCha8Rng) -> usize {
        let grown = if self.mix.grow { (done / CURRICULUM).min(1.0) } else { 1.0 };
        let most = CANDIDATES_FIRST + ((CANDIDATES_MAX - CANDIDATES_FIRST) as f32 * grown) as usize;
        // Most lists are as long as the stage's; the others teach that the length does not matter.
        if most >= CANDIDATES && rng.random::<f32>() < 0.5 { CANDIDATES } else { rng.random_range(most * 6 / 10..=most) }
    }
}

impl Task for Lessons<'_> {
    type Micro = Micro;

    fn data(&self) -> &str {
        &self.source.name
    }

    fn micro(&self, done: f32, rng: &mut ChaCha8Rng) -> Result<Micro> {
        let mut micro = Micro::default();
        let facts = self.mix.facts.1 + (self.mix.facts.0 - self.mix.facts.1) * (1.0 - done / CURRICULUM).max(0.0);
        while (micro.ids.len() as f32) < self.tokens as f32 * facts {
            let term = self.facts[rng.random_range(0..self.facts.len())];
            if let Some(fact) = self.encode.fact(self.source, term)? {
                micro.push(&fact, FACT_SCALE);
            }
        }
        let room = |micro: &Micro, after: usize| micro.ids.len() + after / 2 <= self.tokens;
        let mut after = 0;
        while micro.rows.is_empty() || room(&micro, after) {
            let before = micro.ids.len();
            let themes = self.mix.themes * PAGES_PER_LIST;
            if rng.random::<f32>() * (themes + self.mix.keywords) < themes {
                let mut sample = self.source.samples.theme(rng);
                if self.mix.strange > 0.0 && rng.random::<f32>() < self.mix.strange {
                    strange::rename_page(&mut sample, &self.words, rng);
                }
                micro.push(&self.encode.themes(&sample)?, 1.0);
            } else {
                let count = self.candidates(done, rng);
                let (sequence, _, picks) = self.keyword_task(rng, count, false)?;
                if !picks.is_empty() {
                    micro.push(&sequence, 1.0);
                }
            }
            after = micro.ids.len() - before;
        }
        Ok(micro)
    }

    fn loss(&self, weights: &Weights, micro: &Micro) -> Result<Loss> {
        let hidden = self.shape.hidden(weights, self.lora, &micro.ids, &micro.segments())?;
        let logits = self.shape.logits(weights, &ops::select_rows(&hidden, &micro.rows)?)?;
        let weight: f32 = micro.weights.iter().sum();
        let text = (ops::cross_entropy(&logits, &micro.targets, &micro.weights)? / f64::from(weight.max(1e-6)))?;
        let mut parts = vec![("text", text.to_scalar()?), ("head", 0.0)];
        let mut total = text;
        if !micro.candidate_rows.is_empty() {
            let head = self.head_loss(weights, &hidden, micro)?;
            parts[1].1 = head.to_scalar()?;
            total = (total + (head * HEAD_WEIGHT)?)?;
        }
        Ok(Loss { total, parts, tokens: micro.ids.len() })
    }

    fn scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
        let mut scores = Vec::new();
        if self.mix.themes > 0.0 {
            scores.extend(self.theme_scores(weights, stop)?);
        }
        if self.mix.keywords > 0.0 {
            scores.extend(self.keyword_scores(weights, stop)?);
        }
        Ok(scores)
    }
}

impl Lessons<'_> {
    fn head_loss(&self, weights: &Weights, hidden: &Tensor, micro: &Micro) -> Result<Tensor> {
        let scores = self.shape.candidate_scores(weights, &ops::select_rows(hidden, &micro.candidate_rows)?)?;
        let even = vec![1.0; micro.chosen.len()];
        Ok((ops::binary_cross_entropy(&scores, &micro.chosen, &even)? / micro.chosen.len() as f64)?)
    }
}
