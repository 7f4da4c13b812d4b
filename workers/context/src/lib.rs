//! The context stage: folds shopper events into one snapshot per change (the u of the paper's context c_u).
//!
//! [`fold`] decides, [`ContextStage`] waits. State is stored before the commit, so after a crash the log hands out again what was folded
//! already: positions tell a redelivery, ids tell a sender's repetition. An erasure leaves a stamp in the store and nothing else. A [`Refold`]
//! folds a shopper's events anew, for a replay.

mod config;
mod fold;
mod refold;
mod state;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use endcap_runtime::{DropReason, Erasure, Input, Passed, Settled, Stage, StageError, Store, Verdict, Write};
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

    /// What is known of every shopper of a batch: all states are read together, then the erasures of those who have none.
    fn known(&self, batch: &[Input<ShopperEvent>]) -> Result<HashMap<UserKey, Known>, StageError> {
        let events = batch.iter().map(|input| &input.value).filter(|event| well_formed(event).is_ok());
        let users = Vec::from_iter(events.map(ShopperEvent::key).collect::<BTreeSet<_>>());
        let states = self.store.states(&users)?;
        let (mut known, mut stateless) = (HashMap::with_capacity(users.len()), Vec::new());
        for (user, state) in users.into_iter().zip(states) {
            match state {
                Some(bytes) => {
                    let state = Some(FoldState::decode(&bytes).map_err(state_error)?);
                    known.insert(user, Known { state, ..Known::default() });
                }
                None => stateless.push(user),
            }
        }
        let erasures = self.store.erasures(&stateless)?;
        known.extend(stateless.into_iter().zip(erasures).map(|(user, erasure)| (user, known_of(erasure))));
        Ok(known)
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
    fn apply(&self, folded: Folded, known: &mut Known, event: &Looked<'_>, at: Position) -> Verdict<ContextChanged> {
        let user = event.event.key();
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

    fn passed(&self, state: &FoldState, looked: &Looked<'_>, writes: Vec<Write>) -> Verdict<ContextChanged> {
        let (event, unknown) = (looked.event, looked.unknown());
        let out = state.snapshot(&event.key(), self.generation, &self.config);
        let mut told = json!({ "id": event.id, "kind": event.kind, "at_ms": event.at_ms, "lines": event.lines });
        if let Some(preference) = &event.preference {
            told["preference"] = json!(preference);
        }
        if let Some(personalise) = event.personalise {
            told["personalise"] = json!(personalise);
        }
        if !unknown.is_empty() {
            told["unknown_products"] = json!(unknown);
        }
        let explanation = json!({
            "event": told,
            "brief": out.brief,
            "favourites": out.favourites,
            "recent": out.recent,
        });
        let counters = vec![("context.lines_unknown", unknown.len() as u64)];
        Verdict::Passed(Box::new(Passed { out, explanation, writes, counters }))
    }
}

/// An event with the products of its lines that the catalogue has.
struct Looked<'a> {
    event: &'a ShopperEvent,
    products: HashMap<String, Product>,
}

impl Looked<'_> {
    /// Ids of lines that were not folded.
    fn unknown(&self) -> Vec<&str> {
        let ids = self.event.lines.iter().map(|line| line.product.as_str());
        ids.filter(|id| !self.products.contains_key(*id)).collect()
    }
}

impl Stage for ContextStage {
    type In = ShopperEvent;
    type Out = ContextChanged;
    const NAME: &'static str = "context";

    /// Folds the batch in order; states are read once per batch, and a user's later events see the earlier ones.
    fn process(&mut self, batch: &[Input<ShopperEvent>]) -> Result<Vec<Verdict<ContextChanged>>, StageError> {
        let mut users = self.known(batch)?;
        let mut verdicts = Vec::with_capacity(batch.len());
        for input in batch {
            let event = &input.value;
            if let Err(rejection) = well_formed(event) {
                verdicts.push(Verdict::Rejected(rejection));
                continue;
            }
            let known = users.get_mut(&event.key()).expect("every shopper of the batch is known");
            let at = Position { partition: input.partition, offset: input.offset, appended_ms: input.appended_ms };
            let looked = Looked { event, products: self.products(event)? };
            let folded = fold(known, event, at, &self.config, |id| looked.products.get(id).cloned());
            verdicts.push(self.apply(folded, known, &looked, at));
        }
        Ok(verdicts)
    }
}

/// What is known of a shopper without a state.
fn known_of(erasure: Option<Erasure>) -> Known {
    Known {
        state: None,
        erased_until_ms: erasure.map(|erasure| erasure.stamp.0.div_euclid(1_000)),
        erased_at: erasure.and_then(|erasure| erasure.at),
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
