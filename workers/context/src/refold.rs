//! A shopper's events folded anew from the log, with a memory of its own: what a replay of events does. Without any waiting.
//!
//! The new state takes the old one's place under the same clock, so that it neither loses against it nor runs ahead of what the live fold
//! makes of the next event: of two states of one stamp a store keeps the later epoch. A state that the live fold has gone on with is not
//! replaced; the replay takes its events in and tries again. Live folds keep the epoch of the state that they go on from.

use endcap_runtime::Erasure;
use endcap_schemas::{Product, ShopperEvent};

use crate::{ContextConfig, FoldState, Folded, Known, Position, fold};

/// The fold of one shopper's events, from scratch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Refold {
    known: Known,
    /// The last event that it has seen, whatever became of it: partition and offset.
    seen: Option<(i32, i64)>,
}

impl Refold {
    /// Before the first event of a shopper who was last erased at `erasure`: what stands before it in the log belongs to a life that is gone.
    pub fn new(erasure: Option<Erasure>) -> Self {
        let erased_until_ms = erasure.map(|erasure| erasure.stamp.0.div_euclid(1_000));
        let known = Known { state: None, erased_until_ms, erased_at: erasure.and_then(|erasure| erasure.at) };
        Self { known, seen: None }
    }

    /// Takes an event in, as [`fold`] does, and answers what became of it.
    pub fn take(
        &mut self,
        event: &ShopperEvent,
        at: Position,
        config: &ContextConfig,
        product: impl Fn(&str) -> Option<Product>,
    ) -> Folded {
        self.seen = Some((at.partition, at.offset));
        let folded = fold(&self.known, event, at, config, product);
        match &folded {
            Folded::Changed(state) => self.known.state = Some((**state).clone()),
            Folded::Erase(until_ms) => self.known = self.known.erase(*until_ms, at),
            Folded::Again | Folded::Dropped(_) | Folded::Rejected(_) => {}
        }
        folded
    }

    /// The state that takes the place of `live`, the stored one, in `epoch`; `None` where nothing is known of the shopper. `live` must not have
    /// overtaken it.
    pub fn in_place_of(&self, live: Option<&FoldState>, epoch: i64) -> Option<FoldState> {
        let mut state = self.known.state.clone()?;
        state.epoch = epoch;
        if let Some(live) = live {
            // Not the greater of the two: what this fold takes and the live one did not must not win against the live fold's next state.
            state.clock_ms = live.clock_ms;
            if state.partition == live.partition {
                // What the live fold took and this one did not is not taken later, either.
                state.offset = state.offset.max(live.offset);
            }
        }
        Some(state)
    }

    /// Whether `live`, the stored state, holds an event that was not seen here. Offsets of different partitions tell nothing of each other: a log
    /// that was made anew has all of them elsewhere.
    pub fn is_overtaken_by(&self, live: &FoldState) -> bool {
        self.seen.is_none_or(|(partition, offset)| partition == live.partition && live.offset > offset)
    }
}
