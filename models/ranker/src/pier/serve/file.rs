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
use crate::{
    WeightsError,
    sealed::{Broken, Seal},
};

/// Bytes before the values of fields.
const HEAD_BYTES: usize = 20;
const SEAL: Seal = Seal { word: *b"ENDCOCPM", form: 1, content_min: HEAD_BYTES };

/// Writes the weights of a whole OCPM over a vocabulary.
pub fn write(weights: &Weights, vocabulary: &Vocabulary, version: u64) -> Vec<u8> {
    let mut bytes = SEAL.begin();
    bytes.extend(version.to_le_bytes());
    let counts = [vocabulary.places() as u32, vocabulary.shoppers(), vocabulary.fields() as u32];
    counts.iter().chain(vocabulary.values()).for_each(|count| bytes.extend(count.to_le_bytes()));
    bytes.extend(weights.to_bytes());
    Seal::close(bytes)
}

/// Reads what [`write`] gave, ready to serve.
///
/// # Errors
/// [`WeightsError`] for anything but whole, undamaged weights of this form, of a whole OCPM, whose numbers are numbers.
pub fn read(bytes: &[u8]) -> Result<Kernel, WeightsError> {
    let (head, rest) = SEAL.open(bytes).map_err(broken)?.split_at(HEAD_BYTES);
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

fn broken(broken: Broken) -> WeightsError {
    match broken {
        Broken::Foreign => WeightsError::Foreign,
        Broken::Form(got) => WeightsError::Form { got, reads: SEAL.form },
        Broken::Length { got, wanted } => WeightsError::Length { got, wanted },
        Broken::Damaged => WeightsError::Damaged,
    }
}
