//! The tokenizer of the demo models.

use endcap_inference::prompts::{json, mark};
use tokenizers::{
    AddedToken, DecoderWrapper, Trainer,
    decoders::{byte_fallback::ByteFallback, sequence::Sequence},
    models::bpe::{BPE, BpeTrainer},
    normalizers::Lowercase,
    pre_tokenizers::metaspace::{Metaspace, PrependScheme},
};

use super::{Tokenizer, TokenizerError};

const PADDING: &str = "<pad>";
const UNKNOWN: &str = "<unk>";
const FRAME: [&str; 2] = ["<cls>", "<sep>"];
/// Room for words that a vocabulary must leave beside the fixed entries.
const LEARNED_MIN: usize = 32;

/// Trains a tokenizer of at most `vocabulary_max` entries on `texts`.
///
/// Lower-case BPE with byte fallback. A word is the same token wherever it stands, behind a space or behind a marker. Every piece of
/// [`json::ALL`] and [`mark::ALL`] is one token. Ids: `<pad>` 0, `<unk>` 1, `<cls>` 2, `<sep>` 3, markers, JSON pieces, 256 bytes, learned entries.
/// The same texts give the same tokenizer.
///
/// # Errors
/// [`TokenizerError::Format`] when `vocabulary_max` leaves no room for words or training fails.
pub fn demo_tokenizer<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    vocabulary_max: usize,
) -> Result<Tokenizer, TokenizerError> {
    let fixed = fixed_entries();
    if vocabulary_max < fixed.len() + LEARNED_MIN {
        let needed = fixed.len() + LEARNED_MIN;
        return Err(TokenizerError::Format(format!(
            "a vocabulary of {vocabulary_max} entries, where at least {needed} are needed"
        )));
    }
    let failed = |e: tokenizers::Error| TokenizerError::Format(e.to_string());
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary_max)
        .min_frequency(2)
        .special_tokens(fixed.iter().map(|entry| AddedToken::from(entry.as_str(), true)).collect())
        .build();
    trainer.feed(texts, |text| Ok(words(text))).map_err(failed)?;
    let mut model = BPE::builder().byte_fallback(true).unk_token(UNKNOWN.to_owned()).build().map_err(failed)?;
    // What the trainer returns are its special tokens. Bytes must not become added tokens: a text that spells `<0x41>` is text.
    trainer.train(&mut model).map_err(failed)?;

    let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Lowercase));
    tokenizer.with_pre_tokenizer(Some(metaspace.clone()));
    let decoders = vec![DecoderWrapper::ByteFallback(ByteFallback::new()), DecoderWrapper::Metaspace(metaspace)];
    tokenizer.with_decoder(Some(Sequence::new(decoders)));
    let special: Vec<_> = specials().map(|token| AddedToken::from(token, true).normalized(false)).collect();
    tokenizer.add_special_tokens(&special);
    let pieces: Vec<_> = pieces().map(|token| AddedToken::from(token, false).normalized(false)).collect();
    tokenizer.add_tokens(&pieces);
    Tokenizer::new(tokenizer)
}

fn specials() -> impl Iterator<Item = &'static str> {
    [PADDING, UNKNOWN].into_iter().chain(FRAME)
}

fn pieces() -> impl Iterator<Item = &'static str> {
    mark::ALL.into_iter().chain(json::ALL)
}

/// Entries that stand in every vocabulary, in the order of their ids.
fn fixed_entries() -> Vec<String> {
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    specials().chain(pieces()).map(str::to_owned).chain(bytes).collect()
}

/// The words of `text` as the model is asked for them: markers cut out, lower case, `▁` in front.
fn words(text: &str) -> Vec<String> {
    let mut longest_first: Vec<&str> = pieces().collect();
    longest_first.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    let mut rest = vec![text];
    for piece in longest_first {
        rest = rest.into_iter().flat_map(|part| part.split(piece)).collect();
    }
    rest.into_iter()
        .flat_map(|part| part.split(' '))
        .filter(|word| !word.is_empty())
        .map(|word| format!("▁{}", word.to_lowercase()))
        .collect()
}

/// Every distinct entry that is fixed, for tests.
#[cfg(test)]
pub(super) fn fixed_is_distinct() -> bool {
    let entries = fixed_entries();
    entries.iter().collect::<std::collections::HashSet<_>>().len() == entries.len()
}
