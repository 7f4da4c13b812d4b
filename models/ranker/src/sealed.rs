//! What policies and weights have in common as bytes: a word that says whose they are, their form, their length, and a checksum, so that nothing
//! cut short, damaged or foreign is taken for one.
//!
//! Everything is little endian: 8 bytes of the word, 4 of the form, 8 of the length of the whole, checksum included; the content; then 32 bytes
//! BLAKE3 of all before.

/// Bytes before the content, and of the checksum.
const HEAD_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 32;

/// A kind of bytes.
pub(crate) struct Seal {
    /// The word that they begin with.
    pub(crate) word: [u8; 8],
    /// The form that is written and read.
    pub(crate) form: u32,
    /// Bytes of content that there are at least.
    pub(crate) content_min: usize,
}

/// Why bytes are not whole ones of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// They begin with something else.
    Foreign,
    /// They have this form.
    Form(u32),
    /// There are so many, and should be as many as said.
    Length { got: u64, wanted: u64 },
    /// The checksum does not fit.
    Damaged,
}

impl Seal {
    /// Bytes without content, to be added to and then closed.
    pub(crate) fn begin(&self) -> Vec<u8> {
        let mut bytes = self.word.to_vec();
        bytes.extend(self.form.to_le_bytes());
        bytes.extend([0; 8]); // the length, known at the end
        bytes
    }

    /// Closes what [`Seal::begin`] began.
    pub(crate) fn close(mut bytes: Vec<u8>) -> Vec<u8> {
        let length = (bytes.len() + CHECKSUM_BYTES) as u64;
        bytes[12..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        let checksum = blake3::hash(&bytes);
        bytes.extend(checksum.as_bytes());
        bytes
    }

    /// The content, when the bytes are whole and undamaged.
    pub(crate) fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Broken> {
        let (got, least) = (bytes.len() as u64, (HEAD_BYTES + self.content_min + CHECKSUM_BYTES) as u64);
        let beginning = bytes.len().min(self.word.len());
        if bytes.is_empty() || bytes[..beginning] != self.word[..beginning] {
            return Err(Broken::Foreign);
        }
        let short = Broken::Length { got, wanted: least };
        let form = bytes.get(8..).and_then(|rest| rest.first_chunk().copied()).map(u32::from_le_bytes).ok_or(short)?;
        if form != self.form {
            return Err(Broken::Form(form));
        }
        let wanted = bytes.get(12..).and_then(|rest| rest.first_chunk().copied()).map(u64::from_le_bytes).ok_or(short)?;
        if got != wanted || got < least {
            return Err(Broken::Length { got, wanted: wanted.max(least) });
        }
        let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        if blake3::hash(body).as_bytes() == checksum { Ok(&body[HEAD_BYTES..]) } else { Err(Broken::Damaged) }
    }
}
