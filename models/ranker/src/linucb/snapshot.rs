//! A policy in bytes: what a learner publishes and a running service picks up.
//!
//! Everything is little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `ENDCLUCB` |
//! | 4 | form, 1 |
//! | 8 | length of the whole, checksum included |
//! | 4 | version of the features |
//! | 8 | version of the policy |
//! | 4, 4 | when nominators synchronise: 0 never, 1 before, 2 after the update; number of nominators |
//! | … | the ranker, then each nominator: features d (4), observations (8), λ, the prior's precision, Λ's lower triangle, g (8 each) |
//! | 32 | BLAKE3 of all before it |
//!
//! Σ and θ̂ are not in it, as they follow from Λ and g.

use super::{LinUcb, Posterior, Sync, TwoStage};
use crate::{
    SnapshotError,
    sealed::{Broken, Seal},
};

const SEAL: Seal = Seal { word: *b"ENDCLUCB", form: 1, content_min: 20 };
/// Most features of a stage and most nominators: beyond these the bytes are no policy of ours.
const DIMS_MAX: u32 = 4_096;
const NOMINATORS_MAX: u32 = 64;

/// What travels with a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Version of the features: what each of them means.
    pub features: u32,
    /// Version of the policy, which grows with every publication.
    pub policy: u64,
}

/// Writes `policy`. What follows from its beliefs is computed afresh first, so that whoever goes on with the bytes and whoever goes on with
/// `policy` stay equal to the bit.
pub fn write(policy: &mut TwoStage, versions: Versions) -> Vec<u8> {
    policy.refactorise();
    let mut bytes = SEAL.begin();
    bytes.extend(versions.features.to_le_bytes());
    bytes.extend(versions.policy.to_le_bytes());
    let sync = match policy.sync() {
        Sync::Never => 0_u32,
        Sync::BeforeUpdate => 1,
        Sync::AfterUpdate => 2,
    };
    bytes.extend(sync.to_le_bytes());
    bytes.extend((policy.nominators().len() as u32).to_le_bytes());
    for stage in std::iter::once(policy.ranker()).chain(policy.nominators()) {
        write_stage(stage, &mut bytes);
    }
    Seal::close(bytes)
}

fn write_stage(stage: &LinUcb, bytes: &mut Vec<u8>) {
    let posterior = stage.posterior();
    bytes.extend((stage.dims() as u32).to_le_bytes());
    bytes.extend(stage.observations().to_le_bytes());
    let numbers = [stage.lambda(), posterior.prior()];
    for number in numbers.iter().chain(posterior.precision()).chain(posterior.information()) {
        bytes.extend(number.to_le_bytes());
    }
}

/// Reads a policy over version `features` of the features, and the version of the policy.
///
/// # Errors
/// [`SnapshotError`] for anything but a whole, undamaged policy of this form over these features.
pub fn read(bytes: &[u8], features: u32) -> Result<(TwoStage, u64), SnapshotError> {
    let mut rest = Rest(SEAL.open(bytes).map_err(broken)?);
    let got = rest.u32()?;
    if got != features {
        return Err(SnapshotError::Features { got, wanted: features });
    }
    let version = rest.u64()?;
    let sync = match rest.u32()? {
        0 => Sync::Never,
        1 => Sync::BeforeUpdate,
        2 => Sync::AfterUpdate,
        _ => return Err(SnapshotError::Content("it synchronises in a way that is not known")),
    };
    let nominators = rest.u32()?;
    if nominators > NOMINATORS_MAX {
        return Err(SnapshotError::Content("it has too many nominators"));
    }
    let ranker = read_stage(&mut rest)?;
    let nominators = (0..nominators).map(|_| read_stage(&mut rest)).collect::<Result<Vec<_>, _>>()?;
    match rest.0 {
        [] => Ok((TwoStage::new(ranker, nominators, sync), version)),
        _ => Err(SnapshotError::Content("bytes are left over")),
    }
}

fn broken(broken: Broken) -> SnapshotError {
    match broken {
        Broken::Foreign => SnapshotError::Foreign,
        Broken::Form(got) => SnapshotError::Form { got, reads: SEAL.form },
        Broken::Length { got, wanted } => SnapshotError::Length { got, wanted },
        Broken::Damaged => SnapshotError::Damaged,
    }
}

fn read_stage(rest: &mut Rest<'_>) -> Result<LinUcb, SnapshotError> {
    let dims = rest.u32()?;
    if !(1..=DIMS_MAX).contains(&dims) {
        return Err(SnapshotError::Content("a stage has no features, or too many"));
    }
    let (dims, observations) = (dims as usize, rest.u64()?);
    let (lambda, prior) = (rest.f64()?, rest.f64()?);
    if lambda <= 0.0 || prior <= 0.0 {
        return Err(SnapshotError::Content("a stage has a prior without precision"));
    }
    let precision = rest.numbers(dims * (dims + 1) / 2)?;
    if (0..dims).any(|row| precision[row * (row + 3) / 2] < prior) {
        return Err(SnapshotError::Content("a stage knows less than its prior"));
    }
    let information = rest.numbers(dims)?;
    let stage = LinUcb::of(Posterior::of_information(prior, precision, information), lambda, observations);
    if stage.is_finite() { Ok(stage) } else { Err(SnapshotError::Content("a stage has numbers beyond all measure")) }
}

/// Bytes that are still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SnapshotError::Content("it ends early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.take().map(u64::from_le_bytes)
    }

    fn f64(&mut self) -> Result<f64, SnapshotError> {
        let number = f64::from_le_bytes(self.take()?);
        if number.is_finite() { Ok(number) } else { Err(SnapshotError::Content("a number in it is none")) }
    }

    fn numbers(&mut self, count: usize) -> Result<Vec<f64>, SnapshotError> {
        if self.0.len() / 8 < count {
            return Err(SnapshotError::Content("it ends early"));
        }
        (0..count).map(|_| self.f64()).collect()
    }
}
