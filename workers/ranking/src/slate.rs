//! A slate as it travels to whoever shows it and back with their feedback: a text that only this service can have written.
//!
//! It holds all that is learnt from, so nothing has to be remembered of a slate between showing it and hearing of it, and any process of a
//! fleet may be told. It names no shopper. Everything is little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | form, 1 |
//! | 4 | version of the traits |
//! | 16 | id |
//! | 8, 8 | when it was served, ms; version of the policy |
//! | 1, 1, 2 | 1 where it was shuffled; offers shown; offers in all |
//! | … | each offer: its traits, its nominators' bits (1) and, where it is shown, its product's id (2 for the length) |
//! | 16 | the beginning of BLAKE3 of all before it, under the service's key |
//!
//! and is written in base 64 without padding, with the alphabet for addresses.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use endcap_schemas::{Feedback, Offer};
use thiserror::Error;

use crate::features::{TRAITS, Traits, VERSION};

const FORM: u8 = 1;
const SEAL_BYTES: usize = 16;
/// Longest text that is looked at: of the most offers, each with the longest id.
pub const TEXT_MAX_BYTES: usize = 64 * 1024;

/// What a slate is sealed with: processes with the same secret and market read each other's slates.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// The key that follows from `secret`, which callers must bring to be answered at all, and from the identity of the market. Without a secret, on
    /// a loopback address, a slate is only protected against being mistaken for something else.
    pub fn of(secret: Option<&str>, market: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("endcap 2026 ranking slates");
        for part in [secret.unwrap_or_default(), market] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    fn seal(&self, bytes: &[u8]) -> [u8; SEAL_BYTES] {
        let hash = blake3::keyed_hash(&self.0, bytes);
        hash.as_bytes()[..SEAL_BYTES].try_into().expect("a hash has 32 bytes")
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a text is no slate of this service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SlateError {
    /// It was never shown: the text is no slate, was changed, or is sealed with another key.
    #[error("this slate was never shown here: send `slate` back as it was answered")]
    Unknown,
    /// It was shown by a release whose traits meant something else.
    #[error("this slate was shown by a release whose features meant something else: nothing can be learnt from it any more")]
    Outdated,
}

/// A slate that was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slate {
    /// Its id.
    pub id: [u8; 16],
    /// When it was served, ms since 1970.
    pub served_ms: i64,
    /// Version of the policy that ordered it.
    pub policy: i64,
    /// Whether it was shuffled.
    pub shuffled: bool,
    /// How many of its offers are shown: the first ones, in display order.
    pub shown: usize,
    /// All that was nominated.
    pub offers: Vec<Offered>,
}

/// An offer of a slate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Id of the product; empty where it is not shown.
    pub product: String,
    /// What is known of it.
    pub traits: Traits,
    /// Who nominated it.
    pub nominators: u8,
}

impl Slate {
    /// The probability that a given offer stands at a given place; `None` where the policy chose.
    pub fn propensity(&self) -> Option<f64> {
        (self.shuffled && self.shown > 0).then(|| (self.shown as f64).recip())
    }

    /// The slate as a text, sealed with `key`.
    pub fn write(&self, key: &Key) -> String {
        let mut bytes = vec![FORM];
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.id);
        bytes.extend(self.served_ms.to_le_bytes());
        bytes.extend(self.policy.to_le_bytes());
        bytes.extend([
            u8::from(self.shuffled),
            u8::try_from(self.shown).expect("no more are shown than feedback may tell of (`Feedback::SHOWN_MAX`)"),
        ]);
        bytes.extend(
            u16::try_from(self.offers.len())
                .expect("no more are nominated than feedback may tell of (`Feedback::OFFERS_MAX`)")
                .to_le_bytes(),
        );
        for (place, Offered { product, traits, nominators }) in self.offers.iter().enumerate() {
            bytes.extend(traits.0);
            bytes.push(*nominators);
            if place < self.shown {
                bytes.extend(u16::try_from(product.len()).expect("catalogues take no id of more than 256 bytes").to_le_bytes());
                bytes.extend(product.as_bytes());
            }
        }
        let seal = key.seal(&bytes);
        bytes.extend(seal);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The slate that [`Slate::write`] wrote under the same key.
    ///
    /// # Errors
    /// [`SlateError`] for any other text.
    pub fn read(text: &str, key: &Key) -> Result<Self, SlateError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(SlateError::Unknown);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| SlateError::Unknown)?;
        let (body, seal) = bytes.split_last_chunk::<SEAL_BYTES>().ok_or(SlateError::Unknown)?;
        // Compared as hashes, which takes as long wherever they differ.
        if blake3::Hash::from_bytes(doubled(*seal)) != blake3::Hash::from_bytes(doubled(key.seal(body))) {
            return Err(SlateError::Unknown);
        }
        let mut rest = Rest(body);
        if rest.take::<1>().ok_or(SlateError::Unknown)? != [FORM] || rest.u32() != Some(VERSION) {
            return Err(SlateError::Outdated);
        }
        rest.slate().filter(|_| rest.0.is_empty()).ok_or(SlateError::Unknown)
    }

    /// What its feedback is before anything was done with it.
    pub fn feedback(self) -> Feedback {
        let propensity = self.propensity();
        let offer = |Offered { product, traits, nominators }| Offer {
            product,
            traits: traits.numbers(),
            nominators: i32::from(nominators),
        };
        Feedback {
            slate: self.id.iter().map(|byte| format!("{byte:02x}")).collect(),
            served_ms: self.served_ms,
            policy: self.policy,
            traits_version: i32::try_from(VERSION).unwrap_or(i32::MAX),
            propensity,
            shown: i32::try_from(self.shown).unwrap_or(i32::MAX),
            offers: self.offers.into_iter().map(offer).collect(),
            actions: Vec::new(),
            put_back: None,
        }
    }
}

/// A seal as the bytes of a hash.
fn doubled(seal: [u8; SEAL_BYTES]) -> [u8; 2 * SEAL_BYTES] {
    let mut hash = [0; 2 * SEAL_BYTES];
    hash[..SEAL_BYTES].copy_from_slice(&seal);
    hash[SEAL_BYTES..].copy_from_slice(&seal);
    hash
}

/// Bytes that are still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Option<usize> {
        self.take().map(u16::from_le_bytes).map(usize::from)
    }

    fn slate(&mut self) -> Option<Slate> {
        let (id, served_ms, policy) = (self.take()?, i64::from_le_bytes(self.take()?), i64::from_le_bytes(self.take()?));
        let [shuffled, shown] = self.take()?;
        let (shown, count) = (usize::from(shown), self.length()?);
        let offers = (0..count).map(|place| self.offer(place < shown)).collect::<Option<Vec<_>>>()?;
        (shown <= count).then_some(Slate { id, served_ms, policy, shuffled: shuffled == 1, shown, offers })
    }

    fn offer(&mut self, is_shown: bool) -> Option<Offered> {
        let (traits, [nominators]) = (Traits(self.take::<TRAITS>()?), self.take()?);
        let length = if is_shown { self.length()? } else { 0 };
        let (product, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Offered { product: String::from_utf8(product.to_vec()).ok()?, traits, nominators })
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn slate(shown: usize, offers: usize) -> Slate {
        let offer = |place: usize| Offered {
            product: if place < shown { format!("d{place:05}") } else { String::new() },
            traits: Traits([place as u8; TRAITS]),
            nominators: 1 + place as u8 % 15,
        };
        Slate {
            id: [7; 16],
            served_ms: 1_750_000_000_000,
            policy: 41,
            shuffled: true,
            shown,
            offers: (0..offers).map(offer).collect(),
        }
    }

    #[test]
    fn a_slate_comes_back_as_it_went_and_is_short() {
        let key = Key::of(Some("correct-horse-battery"), "demo");
        for slate in [slate(20, 37), slate(0, 0), slate(4, 4)] {
            let text = slate.write(&key);
            assert_eq!(Slate::read(&text, &key), Ok(slate));
        }
        assert!(slate(20, 40).write(&key).len() < 1_200, "{} bytes", slate(20, 40).write(&key).len());
        assert_eq!(slate(20, 37).propensity(), Some(0.05));
        assert!(slate(20, 37).feedback().check().is_ok());
    }

    #[test]
    fn only_what_was_shown_here_is_a_slate() {
        const SEED: u64 = 3;
        let (key, mut rng) = (Key::of(None, "demo"), ChaCha8Rng::seed_from_u64(SEED));
        let text = slate(20, 37).write(&key);
        for other in [Key::of(Some("another"), "demo"), Key::of(None, "another"), Key::of(Some("demo"), "")] {
            assert_eq!(Slate::read(&text, &other), Err(SlateError::Unknown));
        }
        for length in 0..text.len() {
            assert!(Slate::read(&text[..length], &key).is_err(), "the first {length} characters were taken");
        }
        for trial in 0..2_000 {
            let mut changed = text.clone().into_bytes();
            let place = rng.random_range(0..changed.len());
            changed[place] = b"ABCxyz019-_"[rng.random_range(0..11)];
            if let Ok(read) = Slate::read(std::str::from_utf8(&changed).unwrap(), &key) {
                assert_eq!(changed, text.as_bytes(), "seed {SEED}, trial {trial}: {read:?}");
            }
        }
        for bytes in 0..200 {
            let sealed: Vec<u8> = (0..bytes).map(|_| rng.random()).collect();
            let whole = [&sealed[..], &key.seal(&sealed)].concat();
            let _ = Slate::read(&URL_SAFE_NO_PAD.encode(whole), &key); // answered, whatever it holds
        }
        assert_eq!(Slate::read("", &key), Err(SlateError::Unknown));
        assert_eq!(Slate::read(&"A".repeat(TEXT_MAX_BYTES + 1), &key), Err(SlateError::Unknown));
    }
}
