//! A finished model's directory: configuration, tokenizer, weights, and the card that says how it was made.

use std::path::Path;

use endcap_engine::Tokenizer;

use crate::{
    Budget, Result, RunReport, RunSettings, TrainError,
    checkpoint::replace,
    files::{FORMAT, write_bf16, write_json},
    source::Source,
};

/// What a model's card says.
pub(crate) struct Card<'a> {
    pub(crate) title: &'a str,
    pub(crate) made: String,
    pub(crate) command: &'a str,
    pub(crate) not_for: &'a str,
    pub(crate) source: &'a Source,
    pub(crate) settings: &'a RunSettings,
    pub(crate) report: &'a RunReport,
}

impl Card<'_> {
    pub(crate) fn text(&self) -> String {
        let budget = match self.settings.budget {
            Budget::Minutes(minutes) => format!("{minutes} minutes"),
            Budget::Steps(steps) => format!("{steps} steps"),
        };
        let RunReport { steps, tokens, seconds, parameters, .. } = *self.report;
        format!(
            "# {}\n\n{}\n\n## How it was made\n\n`{}`, seed {}, budget {budget}: {steps} steps, {:.2}M tokens, {:.1} minutes at \
             {} thread(s), {:.2}M trained numbers, learning rate {}. All data is drawn from {}; no real shopper is in it.\n\n\
             ## Scores on held-out data\n\n{}\n## What it is not good for\n\n{}\n",
            self.title,
            self.made,
            self.command,
            self.settings.seed,
            tokens as f64 / 1e6,
            seconds / 60.0,
            self.settings.threads,
            parameters as f64 / 1e6,
            self.settings.rate,
            self.source.name,
            self.report.table(),
            self.not_for,
        )
    }
}

/// Writes `config.json`, `tokenizer.json`, `model.safetensors` (bf16), `report.json` and `CARD.md` into `folder`.
pub(crate) fn write_model(
    folder: &Path,
    config: &serde_json::Value,
    tokenizer: &Tokenizer,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    card: &Card<'_>,
) -> Result<()> {
    write_json(&folder.join("config.json"), config)?;
    let json = tokenizer.to_json().map_err(|error| TrainError::Tokenizer(error.to_string()))?;
    replace(&folder.join("tokenizer.json"), json.as_bytes())?;
    write_bf16(&folder.join("model.safetensors"), tensors, FORMAT)?;
    let report = serde_json::json!({ "settings": card.settings, "report": card.report });
    write_json(&folder.join("report.json"), &report)?;
    replace(&folder.join("CARD.md"), card.text().as_bytes())
}
