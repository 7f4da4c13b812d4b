//! What an event does to a shopper's state: the decision, without any waiting.

use endcap_runtime::{DropReason, Rejection, Stamp};
use endcap_schemas::{EventKind, Product, ShopperEvent};

use crate::{ContextConfig, FoldState};

/// Unknown products that a rejection names.
const UNKNOWN_NAMED: usize = 8;

/// Where an event stood in the log, and when the log took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Partition.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// The log's clock, ms.
    pub appended_ms: i64,
}

/// What is known of a shopper before an event.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// The fold of the events so far.
    pub state: Option<FoldState>,
    /// The stamp up to which the shopper is erased, ms on the hybrid clock.
    pub erased_until_ms: Option<i64>,
    /// Where that erasure stood in the log: partition and offset.
    pub erased_at: Option<(i32, i64)>,
}

impl Known {
    /// What is known after an erasure up to `until_ms` that stood at `at`. One that comes again moves nothing.
    pub(crate) fn erase(&self, until_ms: i64, at: Position) -> Self {
        let later = self.erased_at.filter(|(partition, offset)| *partition == at.partition && *offset > at.offset);
        Self { state: None, erased_until_ms: Some(until_ms), erased_at: Some(later.unwrap_or((at.partition, at.offset))) }
    }
}

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Folded {
    /// The state changed; its snapshot is emitted.
    Changed(Box<FoldState>),
    /// The state's last event came again, as its snapshot may never have been committed: it is emitted as it was.
    Again,
    /// The shopper is erased up to this time on the hybrid clock, ms.
    Erase(i64),
    /// Nothing changes.
    Dropped(DropReason),
    /// It cannot be taken.
    Rejected(Rejection),
}

/// Folds `event` into what is known of its shopper. `product` looks up the catalogue.
///
/// Whatever is wrong with the event itself is found before its position is looked at, so that a redelivered dead letter is one again.
pub fn fold(
    known: &Known,
    event: &ShopperEvent,
    at: Position,
    config: &ContextConfig,
    product: impl Fn(&str) -> Option<Product>,
) -> Folded {
    if let Err(rejection) = well_formed(event) {
        return Folded::Rejected(rejection);
    }
    if event.kind == EventKind::Erase {
        return erase(known, at, config);
    }
    if is_erased(known, at, config) {
        return Folded::Dropped(DropReason::Erased);
    }
    if event.at_ms > at.appended_ms.saturating_add(config.future_max_ms()) {
        let ahead_s = (event.at_ms - at.appended_ms) / 1_000;
        let limit_s = config.future_max_s;
        return rejected(
            "future",
            format!("event lies {ahead_s} s in the future, at most {limit_s} s are taken; set the sender's clock"),
        );
    }
    let products = match products(event, product) {
        Ok(products) => products,
        Err(rejection) => return Folded::Rejected(rejection),
    };
    match placed(known.state.as_ref(), event, at) {
        Placed::New => {}
        Placed::Last => return Folded::Again,
        Placed::Earlier => return Folded::Dropped(DropReason::Superseded),
        Placed::Repeated => return Folded::Dropped(DropReason::Duplicate),
    }
    let mut state = known.state.clone().unwrap_or_else(|| FoldState::fresh(known, erased_ms(known, config), config));
    if !state.personalise && matches!(event.kind, EventKind::Purchase | EventKind::CartAdd | EventKind::View) {
        return Folded::Dropped(DropReason::NoConsent);
    }
    state.take(event, &products, at, config);
    Folded::Changed(Box::new(state))
}

/// What can be known without store and catalogue: a malformed event may not even name a user.
pub(crate) fn well_formed(event: &ShopperEvent) -> Result<(), Rejection> {
    let message = |fault| format!("{fault}; correct the event and send it again");
    event.check().map_err(|fault| Rejection { kind: "malformed", message: message(fault) })
}

/// The erasure's stamp lies beyond everything that an event of before it can carry: the log's time plus the largest skew, and the clock.
fn erase(known: &Known, at: Position, config: &ContextConfig) -> Folded {
    if let Some(state) = &known.state
        && state.partition == at.partition
        && at.offset <= state.offset
    {
        // A redelivery; the shopper's new life has begun behind it.
        return Folded::Dropped(DropReason::Erased);
    }
    let beyond_skew = at.appended_ms.saturating_add(config.future_max_ms()) + 1;
    let clock_ms = known.state.as_ref().map_or(0, |state| state.clock_ms);
    Folded::Erase(beyond_skew.max(clock_ms + 1).max(known.erased_until_ms.unwrap_or(0)))
}

/// Whether an event stood before the shopper's erasure, so that it belongs to the life that is gone. Within a partition offsets
/// tell: what one append took has one time.
fn is_erased(known: &Known, at: Position, config: &ContextConfig) -> bool {
    match known.state.as_ref().map_or(known.erased_at, |state| state.erased_at) {
        Some((partition, offset)) if partition == at.partition => at.offset <= offset,
        _ => erased_ms(known, config).is_some_and(|erased_ms| at.appended_ms <= erased_ms),
    }
}

/// When the log took the shopper's erasure, ms.
fn erased_ms(known: &Known, config: &ContextConfig) -> Option<i64> {
    let from_stamp = || known.erased_until_ms.map(|until_ms| until_ms - 1 - config.future_max_ms());
    known.state.as_ref().map_or_else(from_stamp, |state| state.erased_ms)
}

/// The store's timestamp of an erasure up to `until_ms`: beyond every generation of that context.
pub fn erasure_stamp(until_ms: i64) -> Stamp {
    Stamp::of(until_ms, 999)
}

enum Placed {
    New,
    Last,
    Earlier,
    Repeated,
}

fn placed(state: Option<&FoldState>, event: &ShopperEvent, at: Position) -> Placed {
    let Some(state) = state else { return Placed::New };
    let folded_at = state.folded_at(&event.id);
    if state.partition == at.partition && at.offset <= state.offset {
        return match folded_at {
            Some(offset) if offset != at.offset => Placed::Repeated,
            _ if at.offset == state.offset => Placed::Last,
            _ => Placed::Earlier,
        };
    }
    if folded_at.is_some() { Placed::Repeated } else { Placed::New }
}

/// The products of the event's lines, as far as the catalogue has them. A basket with one article that the catalogue lacks (a deposit, a bag,
/// something new) still tells what its shopper buys: its other lines are folded, and the stage counts and names the rest. Only an event
/// without any known product is rejected: nothing is left of it to fold, and it may be sent again once the catalogue is complete.
fn products(event: &ShopperEvent, product: impl Fn(&str) -> Option<Product>) -> Result<Vec<Product>, Rejection> {
    let found: Vec<Product> = event.lines.iter().filter_map(|line| product(&line.product)).collect();
    if !found.is_empty() || event.lines.is_empty() {
        return Ok(found);
    }
    let named: Vec<String> = event.lines.iter().take(UNKNOWN_NAMED).map(|line| format!("`{}`", line.product)).collect();
    let more = event.lines.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!(
        "catalogue has no product of the event: not {}{more}; import the catalogue, then send the event again",
        named.join(", ")
    );
    Err(Rejection { kind: "unknown_product", message })
}

fn rejected(kind: &'static str, message: String) -> Folded {
    Folded::Rejected(Rejection { kind, message })
}
