//! What a sequence may say next: candidates of a token trie or a JSON schema.
//!
//! The generation loop asks in this order, until the constraint has [`Constraint::finished`]: tokens without a choice
//! ([`Constraint::forced`]) go into the next step as they are; where there is a choice, [`Constraint::allowed`] says between what and
//! [`Constraint::advance`] takes the model's.

mod json;
mod trie;

pub use json::{JsonConstraint, JsonGrammar, TextLimits};
pub use trie::{KeywordLimits, TrieConstraint};

use thiserror::Error;

/// Between which tokens the model chooses.
#[derive(Debug)]
pub enum Allowed<'a> {
    /// A few tokens: only their rows of the output head are multiplied.
    Few {
        /// The tokens, distinct, at least two, `[children]`.
        tokens: &'a [u32],
        /// What is added to each one's logit, `[children]`.
        bias: &'a [f32],
    },
    /// A set over the whole vocabulary: bit `id % 32` of word `id / 32`.
    Mask(&'a [u32]),
}

/// What one sequence may say. One per sequence; it moves with the tokens.
pub trait Constraint: Send {
    /// Takes the tokens that must come now. The constraint stands behind them when it returns; the caller feeds them to the model.
    /// Empty where there is a choice or the end.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`].
    fn forced(&mut self) -> Result<Vec<u32>, ConstraintError>;

    /// The choice that is to be made now. To be asked only after [`Constraint::forced`] gave nothing and before the end; asking twice costs once.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`].
    fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError>;

    /// Takes the model's choice.
    ///
    /// # Errors
    /// [`ConstraintError::NotAllowed`] for a token that was not among the allowed ones.
    fn advance(&mut self, token: u32) -> Result<(), ConstraintError>;

    /// Whether nothing more is to be said.
    fn finished(&self) -> bool;

    /// Scores read at the sequence's probe positions once its prompt is computed, `[probes]`. Most constraints have no use for them.
    fn observe(&mut self, _scores: &[f32]) {}
}

/// Why a constraint cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConstraintError {
    /// What should be said cannot be: a candidate without text, a limit of zero.
    #[error("cannot constrain: {0}")]
    Request(String),
    /// The grammar's machine stopped.
    #[error("grammar failed: {0}")]
    Grammar(String),
    /// The model's choice was not among the allowed tokens.
    #[error("token {0} is not allowed here")]
    NotAllowed(u32),
}

/// The best token between which `allowed` leaves the choice; the lower id, or the earlier child, wins a tie. `logits` is `[vocabulary]` for a mask and
/// `[children]` for a few. `None` when nothing is allowed or every logit is NaN.
pub(crate) fn best(allowed: &Allowed<'_>, logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    let mut offer = |token: u32, score: f32| {
        if !score.is_nan() && best.is_none_or(|(_, top)| score > top) {
            best = Some((token, score));
        }
    };
    match allowed {
        Allowed::Few { tokens, bias } => {
            for ((&token, &bias), &logit) in tokens.iter().zip(*bias).zip(logits) {
                offer(token, logit + bias);
            }
        }
        Allowed::Mask(words) => {
            for (word_index, &word) in words.iter().enumerate() {
                let mut bits = word;
                while bits != 0 {
                    let token = word_index as u32 * 32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    if let Some(&logit) = logits.get(token as usize) {
                        offer(token, logit);
                    }
                }
            }
        }
    }
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_allowed_token_wins_and_ties_go_to_the_first() {
        let few = |tokens: &[u32], bias: &[f32], logits: &[f32]| best(&Allowed::Few { tokens, bias }, logits);
        assert_eq!(few(&[7, 3, 9], &[0.0, 0.0, 0.0], &[1.0, 2.0, 2.0]), Some(3));
        assert_eq!(few(&[7, 3, 9], &[2.0, 0.0, 0.0], &[1.0, 2.0, 2.0]), Some(7));
        assert_eq!(few(&[7], &[0.0], &[f32::NAN]), None);
        let logits: Vec<f32> = (0..70).map(|i| if i == 40 { 9.0 } else { i as f32 / 100.0 }).collect();
        assert_eq!(best(&Allowed::Mask(&[0b110, 0, 1]), &logits), Some(64));
        assert_eq!(best(&Allowed::Mask(&[0b110, 1 << 8, 1]), &logits), Some(40));
        assert_eq!(best(&Allowed::Mask(&[0, 0, 1 << 31]), &logits), None, "ids beyond the logits do not count");
    }
}
