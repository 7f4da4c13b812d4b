//! The context stage: folds shopper events into one snapshot per change (the u of the paper's context c_u).
//!
//! [`fold`] decides, [`ContextStage`] waits. State is stored before the commit, so after a crash the log hands out again what was folded
//! already: positions tell a redelivery, ids tell a sender's repetition. An erasure leaves a stamp in the store and nothing else. A [`Refold`]
//! folds a shopper's events anew, for a replay.

mod config;
mod fold;
mod refold;
mod state;

use std::{collections::HashMap, sync::Arc};

use endcap_runtime::{DropReason, Input, Passed, Settled, Stage, StageError, Store, Verdict, Write};
use endcap_schemas::{ContextChanged, Product, ShopperEvent, UserKey};
use serde_json::{Value, json};

pub use config::ContextConfig;
pub use fold::{Folded, Known, Position, erasure_stamp, fold};
pub use refold::Refold;
pub use state::{FoldState, StateError};

use fold::well_formed;

/// Looks a product up in the catalogue by its id; the error says why the catalogue does not answer, and has the batch retried.
pub type ProductLookup = Box<dyn Fn(&str) -> Result<Option<Product>, String> + Send>;

/// The stage. Keeps nothing between batches.
pub struct ContextStage {
    config: ContextConfig,
    generation: i32,
    store: Arc<dyn Store>,
    product: ProductLookup,
}

impl ContextStage {
    /// A stage that keeps its states in `store`, looks products up with `product` and stamps snapshots with `generation` (0…999).
    pub fn new(config: ContextConfig, generation: i32, store: Arc<dyn Store>, product: ProductLookup) -> Self {
        Self { config, generation, store, product }
    }

    fn known(&self, user: &UserKey) -> Result<Known, StageError> {
        let state = match self.store.state(user)? {
            Some(bytes) => Some(FoldState::decode(&bytes).map_err(state_error)?),
            None => None,
        };
        let erasure = if state.is_none() { self.store.erasure(user)? } else { None };
        Ok(Known {
            state,
            erased_until_ms: erasure.map(|erasure| erasure.stamp.0.div_euclid(1_000)),
            erased_at: erasure.and_then(|erasure| erasure.at),
        })
    }

    /// The products of an event's lines, as far as the catalogue has them.
    fn products(&self, event: &ShopperEvent) -> Result<HashMap<String, Product>, StageError> {
        let mut products = HashMap::with_capacity(event.lines.len());
        for line in &event.lines {
            let found = (self.product)(&line.product).map_err(|reason| StageError::Unavailable("catalogue", reason))?;
            products.extend(found.map(|product| (line.product.clone(), product)));
        }
        Ok(products)
    }

    /// Applies a decision to what is known, and says it as a verdict.
    fn apply(&self, folded: Folded, known: &mut Known, event: &ShopperEvent, at: Position) -> Verdict<ContextChanged> {
        let user = event.key();
        match folded {
            Folded::Changed(state) => {
                let write = Write::State { user, stamp: state.stamp(self.generation), state: state.encode() };
                let passed = self.passed(&state, event, vec![write]);
                known.state = Some(*state);
                passed
            }
            Folded::Again => {
                let state = known.state.as_ref().expect("only a folded event comes again");
                self.passed(state, event, Vec::new())
            }
            Folded::Erase(until_ms) => {
                *known = known.erase(until_ms, at);
                Verdict::Settled(Box::new(Settled {
                    reason: DropReason::Erased,
                    explanation: Value::Null,
                    writes: vec![Write::Erase { user, stamp: erasure_stamp(until_ms), at: known.erased_at }],
                    counters: vec![("context.erasures", 1)],
                }))
            }
            Folded::Dropped(reason) => Verdict::Dropped(reason),
            Folded::Rejected(rejection) => Verdict::Rejected(rejection),
        }
    }

    fn passed(&self, state: &FoldState, event: &ShopperEvent, writes: Vec<Write>) -> Verdict<ContextChanged> {
        let out = state.snapshot(&event.key(), self.generation, &self.config);
        let mut told = json!({ "id": event.id, "kind": event.kind, "at_ms": event.at_ms, "lines": event.lines });
        if let Some(preference) = &event.preference {
            told["preference"] = json!(preference);
        }
        if let Some(personalise) = event.personalise {
            told["personalise"] = json!(personalise);
        }
        let explanation = json!({
            "event": told,
            "brief": out.brief,
            "favourites": out.favourites,
            "recent": out.recent,
        });
        Verdict::Passed(Box::new(Passed { out, explanation, writes, counters: Vec::new() }))
    }
}

impl Stage for ContextStage {
    type In = ShopperEvent;
    type Out = ContextChanged;
    const NAME: &'static str = "context";

    /// Folds the batch in order; a user's state is read once per batch, and its later events see the earlier ones.
    fn process(&mut self, batch: &[Input<ShopperEvent>]) -> Result<Vec<Verdict<ContextChanged>>, StageError> {
        let mut users: HashMap<UserKey, Known> = HashMap::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        for input in batch {
            let event = &input.value;
            if let Err(rejection) = well_formed(event) {
                verdicts.push(Verdict::Rejected(rejection));
                continue;
            }
            let user = event.key();
            if !users.contains_key(&user) {
                users.insert(user.clone(), self.known(&user)?);
            }
            let known = users.get_mut(&user).expect("inserted above");
            let at = Position { partition: input.partition, offset: input.offset, appended_ms: input.appended_ms };
            let products = self.products(event)?;
            let folded = fold(known, event, at, &self.config, |id| products.get(id).cloned());
            verdicts.push(self.apply(folded, known, event, at));
        }
        Ok(verdicts)
    }
}

/// A later version's states stop the stage; a state that is none is its shopper's alone.
fn state_error(error: StateError) -> StageError {
    match error {
        StateError::Version(_) => StageError::Broken(error.to_string()),
        StateError::Unreadable(_) => StageError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
