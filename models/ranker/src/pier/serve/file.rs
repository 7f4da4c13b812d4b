//! A kernel's weights in bytes: what training writes and a service picks up.
//!
//! Everything is little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `ENDCOCPM` |
//! | 4 | form, 1 |
//! | 8 | length of the whole, checksum included |
//! | 8 | version of the weights |
//! | 4, 4, 4 | places of a page, shoppers, fields |
//! | 4 each | values of each field |
//! | … | the tensors, in the safetensors format |
//! | 32 | BLAKE3 of all before it |

use super::{
    super::{PLACES, Vocabulary, Weights},
    FIELDS_MAX,
    kernel::Kernel,
};
use crate::WeightsError;

const MAGIC: [u8; 8] = *b"ENDCOCPM";
/// The form that is written and read.
const FORM: u32 = 1;
/// Bytes before the values of fields, and of the checksum.
const HEAD_BYTES: usize = 40;
const CHECKSUM_BYTES: usize = 32;

/// Writes the weights of a whole OCPM over a vocabulary.
pub fn write(weights: &Weights, vocabulary: &Vocabulary, version: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(FORM.to_le_bytes());
    bytes.extend([0; 8]); // the length, known at the end
    bytes.extend(version.to_le_bytes());
    let counts = [vocabulary.places() as u32, vocabulary.shoppers(), vocabulary.fields() as u32];
    counts.iter().chain(vocabulary.values()).for_each(|count| bytes.extend(count.to_le_bytes()));
    bytes.extend(weights.to_bytes());
    let length = (bytes.len() + CHECKSUM_BYTES) as u64;
    bytes[12..20].copy_from_slice(&length.to_le_bytes());
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    bytes
}

/// Reads what [`write`] gave, ready to serve.
///
/// # Errors
/// [`WeightsError`] for anything but whole, undamaged weights of this form, of a whole OCPM, whose numbers are numbers.
pub fn read(bytes: &[u8]) -> Result<Kernel, WeightsError> {
    let body = whole(bytes)?;
    let (head, rest) = body.split_at(HEAD_BYTES - 20);
    let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let version = u64::from(number(head)) | u64::from(number(&head[4..])) << 32;
    let [places, shoppers, fields] = [8, 12, 16].map(|at| number(&head[at..]));
    if !(1..=PLACES as u32).contains(&places) {
        return Err(WeightsError::Vocabulary("its pages have no places, or too many"));
    }
    let Some((values, tensors)) = (fields as usize <= FIELDS_MAX).then(|| rest.split_at_checked(fields as usize * 4)).flatten()
    else {
        return Err(WeightsError::Vocabulary("it has too many fields"));
    };
    let values: Vec<u32> = values.chunks_exact(4).map(number).collect();
    let rows = values.iter().chain([&shoppers, &places]).map(|count| u64::from(*count)).sum::<u64>();
    if rows > u64::from(u32::MAX) {
        return Err(WeightsError::Vocabulary("it has more values than can be counted"));
    }
    let weights = Weights::from_bytes(tensors).map_err(|error| WeightsError::Tensors(error.to_string()))?;
    Kernel::new(&weights, &Vocabulary::new(&values, shoppers).of_places(places as usize), version)
}

/// What stands between the length and the checksum, when the bytes are whole and undamaged.
fn whole(bytes: &[u8]) -> Result<&[u8], WeightsError> {
    let (got, least) = (bytes.len() as u64, (HEAD_BYTES + CHECKSUM_BYTES) as u64);
    let beginning = bytes.len().min(MAGIC.len());
    if bytes.is_empty() || bytes[..beginning] != MAGIC[..beginning] {
        return Err(WeightsError::Foreign);
    }
    let short = WeightsError::Length { got, wanted: least };
    let form = bytes.get(8..).and_then(|rest| rest.first_chunk().copied()).map(u32::from_le_bytes).ok_or(short.clone())?;
    if form != FORM {
        return Err(WeightsError::Form { got: form, reads: FORM });
    }
    let wanted = bytes.get(12..).and_then(|rest| rest.first_chunk().copied()).map(u64::from_le_bytes).ok_or(short)?;
    if got != wanted || got < least {
        return Err(WeightsError::Length { got, wanted: wanted.max(least) });
    }
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    match blake3::hash(body).as_bytes().as_slice() == checksum {
        true => Ok(&body[20..]),
        false => Err(WeightsError::Damaged),
    }
}
