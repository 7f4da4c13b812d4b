//! Text to token ids and back: one wrapper over every `tokenizer.json` that the engine meets.
//!
//! Decoders need more than `encode`: a constraint must know the *bytes* of every token. Three families are understood: byte-level
//! BPE (Llama 3, Qwen 2.5), `▁` with byte fallback (the demo models, Llama 2, SentencePiece unigram) and WordPiece (BERT, which is only ever encoded).

use std::{collections::HashMap, fs, io, ops::Range, path::Path};

use thiserror::Error;
use tokenizers::{AddedToken, decoders::DecoderWrapper, models::ModelWrapper};

mod demo;

pub use demo::demo_tokenizer;

/// Longest text that is encoded in one call, in bytes.
pub const TEXT_MAX_BYTES: usize = 1 << 20;

/// Largest vocabulary that is read.
const VOCABULARY_MAX: usize = 1 << 20;

/// Why a tokenizer cannot be read or a text cannot be encoded.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read tokenizer {path}: check the model's directory")]
    Read {
        /// Where it should be.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is cut short, or no tokenizer that the engine knows.
    #[error("cannot understand tokenizer {path}: {what}: use the tokenizer.json that belongs to the model")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The text is no tokenizer that the engine knows.
    #[error("cannot understand tokenizer: {0}")]
    Format(String),
    /// A token that the work needs is not in the vocabulary.
    #[error("tokenizer has no token {0}: use the tokenizer that belongs to the model")]
    Missing(&'static str),
    /// The text is too long.
    #[error("cannot encode a text of {got} bytes: the limit is {TEXT_MAX_BYTES}")]
    TooLong {
        /// Its length in bytes.
        got: usize,
    },
    /// The library refused the text.
    #[error("cannot encode text: {0}")]
    Encode(String),
}

/// How a vocabulary's entries stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    ByteLevel,
    Metaspace,
    WordPiece,
}

/// Two texts as an encoder reads them: `[CLS] first [SEP] second [SEP]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairEncoding {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// 0 up to and with the first separator, 1 after it, `[tokens]`.
    pub types: Vec<u32>,
    /// Where the second text's own tokens stand in `ids`.
    pub second: Range<usize>,
}

/// A tokenizer with the bytes of each of its tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    family: Family,
    bytes: Vec<Vec<u8>>,
    control: Vec<bool>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` at `path`.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] and [`TokenizerError::File`].
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let name = || path.display().to_string();
        let json = fs::read(path).map_err(|source| TokenizerError::Read { path: name(), source })?;
        Self::from_json(&json).map_err(|error| match error {
            TokenizerError::Format(what) => TokenizerError::File { path: name(), what },
            other => other,
        })
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| TokenizerError::Format(e.to_string()))?;
        Self::new(inner)
    }

    /// Takes over a tokenizer of the library; its padding and truncation are switched off.
    pub(crate) fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError::Format(e.to_string()))?;
        let family = family(&inner)?;
        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if size == 0 || size > VOCABULARY_MAX {
            return Err(TokenizerError::Format(format!(
                "a vocabulary of {size} entries, where 1 to {VOCABULARY_MAX} are expected"
            )));
        }
        let added = inner.get_added_tokens_decoder();
        let mut bytes = vec![Vec::new(); size];
        let mut control = vec![false; size];
        let byte_of_char = byte_level_alphabet();
        for (token, id) in vocabulary {
            let (own, is_control) = match added.get(&id) {
                Some(added) => (added.content.clone().into_bytes(), is_control(added)),
                None => (token_bytes(&token, family, &byte_of_char), false),
            };
            bytes[id as usize] = own;
            control[id as usize] = is_control;
        }
        Ok(Self { inner, family, bytes, control })
    }

    /// The tokenizer as the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] when the library cannot write it.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner.to_string(false).map_err(|e| TokenizerError::Format(e.to_string()))
    }

    /// Number of token ids: one more than the largest.
    pub fn vocabulary_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of `token` as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that `id` adds to a text; empty for an id that is not in use.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether `id` marks structure (`<pad>`, `<end>`, `<|eot_id|>`) and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    /// The ids of `text`, `[tokens]`. Nothing is put in front or behind: prompts are written out in full.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`] and [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(TokenizerError::TooLong { got: text.len() });
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`. Where a word is written with its leading space, that space is kept; bytes that are no UTF-8 are replaced.
    pub fn decode(&self, ids: &[u32]) -> String {
        if self.family == Family::WordPiece {
            return self.inner.decode(ids, false).unwrap_or_default();
        }
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// The bytes of `ids`.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect()
    }

    /// `[CLS] text [SEP]` in at most `tokens_max` tokens; the text's end is cut.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] and those of [`Tokenizer::encode`].
    pub fn encode_single(&self, text: &str, tokens_max: usize) -> Result<Vec<u32>, TokenizerError> {
        let (cls, sep) = self.frame()?;
        let mut ids = self.encode(text)?;
        ids.truncate(tokens_max.saturating_sub(2));
        ids.insert(0, cls);
        ids.push(sep);
        Ok(ids)
    }

    /// `[CLS] first [SEP] second [SEP]` in at most `tokens_max` tokens; the longer text is cut first.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] and those of [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str, tokens_max: usize) -> Result<PairEncoding, TokenizerError> {
        let (cls, sep) = self.frame()?;
        let (mut first, mut second) = (self.encode(first)?, self.encode(second)?);
        let (a, b) = shares(first.len(), second.len(), tokens_max.saturating_sub(3));
        first.truncate(a);
        second.truncate(b);
        let mut ids = Vec::with_capacity(a + b + 3);
        ids.push(cls);
        ids.append(&mut first);
        ids.push(sep);
        let begin = ids.len();
        ids.append(&mut second);
        let second = begin..ids.len();
        ids.push(sep);
        let types = (0..ids.len()).map(|i| u32::from(i >= begin)).collect();
        Ok(PairEncoding { ids, types, second })
    }

    /// The tokens that open and end an encoder's text.
    fn frame(&self) -> Result<(u32, u32), TokenizerError> {
        let find = |names: [&str; 3]| names.iter().find_map(|name| self.id(name));
        let cls = find(["[CLS]", "<cls>", "<s>"]).ok_or(TokenizerError::Missing("[CLS] or <cls>"))?;
        let sep = find(["[SEP]", "<sep>", "</s>"]).ok_or(TokenizerError::Missing("[SEP] or <sep>"))?;
        Ok((cls, sep))
    }
}

/// How many tokens of two texts are kept so that both fit into `room`: the longer one gives way.
fn shares(a: usize, b: usize, room: usize) -> (usize, usize) {
    if a + b <= room {
        return (a, b);
    }
    let half = room / 2;
    if a <= half {
        (a, room - a)
    } else if b <= room - half {
        (room - b, b)
    } else {
        (half, room - half)
    }
}

fn is_control(added: &AddedToken) -> bool {
    added.special || (added.content.starts_with('<') && added.content.ends_with('>') && added.content.len() > 2)
}

fn family(tokenizer: &tokenizers::Tokenizer) -> Result<Family, TokenizerError> {
    if matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_)) {
        return Ok(Family::WordPiece);
    }
    let decoders = match tokenizer.get_decoder() {
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(decoder) => std::slice::from_ref(decoder),
        None => &[],
    };
    for decoder in decoders {
        match decoder {
            DecoderWrapper::ByteLevel(_) => return Ok(Family::ByteLevel),
            DecoderWrapper::Metaspace(_) | DecoderWrapper::Replace(_) => return Ok(Family::Metaspace),
            _ => {}
        }
    }
    Err(TokenizerError::Format("its decoder is none of ByteLevel, Metaspace, Replace; WordPiece models need none".to_owned()))
}

/// The bytes that a vocabulary entry stands for.
fn token_bytes(token: &str, family: Family, byte_of_char: &HashMap<char, u8>) -> Vec<u8> {
    match family {
        Family::ByteLevel => {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of_char.get(&c).copied()).collect();
            bytes.unwrap_or_else(|| token.as_bytes().to_vec())
        }
        Family::Metaspace => match fallback_byte(token) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        },
        Family::WordPiece => match token.strip_prefix("##") {
            Some(rest) => rest.as_bytes().to_vec(),
            None => format!(" {token}").into_bytes(),
        },
    }
}

/// The byte of an entry `<0xNN>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Byte-level BPE writes each byte as one printable character: printable Latin-1 bytes as themselves, the others, in order, from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(code).expect("codes below U+0200 are characters"), byte)
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
