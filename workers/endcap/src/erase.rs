//! `endcap erase USER`: has everything removed that is derived of a shopper and, where asked, proves it.
//!
//! The wish goes into the log as an event, behind everything that the shopper did before. The context stage carries it out, and every stage
//! drops what still travels of the life before.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, bail};
use endcap_runtime::{Clock, DeadLetterFilter, LogError, Shutdown, Store, StoreError, SystemClock};
use endcap_schemas::{EventKind, ShopperEvent, UserKey, topics::Topic};

use crate::{cli::EraseArgs, config::Config, intake::outgoing_of, sides::Sides};

/// How often the store is looked at while the stages work.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Asks for the erasure; with `--verify` waits for it and looks for what is left.
///
/// # Errors
/// When log or store do not answer, the erasure is not carried out in time, or something is left.
pub fn command(args: &EraseArgs, config: &Config) -> Result<()> {
    let (sides, clock) = (Sides::open_existing(config)?, SystemClock::default());
    check_meant(&*sides.store, &args.user)?;
    let ends = sides.log.ends(Topic::EVENTS).context("cannot read the log")?;
    let event = erasure_of(&args.user, clock.now_ms());
    event.check().with_context(|| format!("cannot erase {}", args.user))?;
    // Also into a log that is full: nobody waits for their erasure until the stages have caught up.
    sides.log.insist(&[outgoing_of(&event)?]).context("cannot append the erasure")?;
    let name = args.user.short();
    println!("the erasure of {name} is in the log");
    if !args.verify {
        return Ok(());
    }
    let deadline = clock.monotonic().saturating_add(args.within);
    let is_ours = |(partition, offset): &(i32, i64)| *offset >= ends.get(partition).copied().unwrap_or(0);
    let carried_out =
        || Ok(sides.store.erasure(&args.user).context("cannot read the store")?.and_then(|erasure| erasure.at).filter(is_ours));
    if until(&clock, deadline, carried_out)?.is_none() {
        bail!(
            "the context stage has not come to the erasure within {}: it stays in the log; is `endcap up` or `endcap run context` running?",
            humantime::format_duration(args.within)
        );
    }
    // The store knows of the erasure a moment before the last of the rows is gone.
    let what_is_left = || Left::of(&sides, &args.user);
    let clean = until(&clock, deadline, || Ok(Some(what_is_left()?).filter(Left::is_nothing)))?;
    let left = clean.map_or_else(what_is_left, Ok)?;
    println!("{left}");
    if left.is_nothing() { Ok(()) } else { bail!("something is left of {name}: erase again") }
}

/// Refuses to erase a shopper that nobody knows where the words may mean one that is known: an id that holds a slash.
fn check_meant(store: &dyn Store, user: &UserKey) -> Result<()> {
    let other = UserKey::of(user.to_string());
    let is_known = |user: &UserKey| -> Result<bool> {
        let state = store.state(user).context("cannot read the store")?;
        Ok(state.is_some() || store.page(user).context("cannot read the store")?.is_some_and(|page| page.page.is_some()))
    };
    if user.tenant == UserKey::DEFAULT_TENANT || is_known(user)? || !is_known(&other)? {
        return Ok(());
    }
    bail!("nothing is known of shopper `{}` of tenant `{}`, but of `{other}`: name that one so", user.user, user.tenant)
}

fn erasure_of(user: &UserKey, at_ms: i64) -> ShopperEvent {
    ShopperEvent {
        id: format!("erase-{at_ms}"),
        tenant: user.tenant.clone(),
        user: user.user.clone(),
        at_ms,
        kind: EventKind::Erase,
        lines: Vec::new(),
        preference: None,
        personalise: None,
    }
}

/// Asks again and again, until there is an answer or, at `deadline`, none. Log and store may be away until then: the erasure waits for them too.
fn until<T>(clock: &dyn Clock, deadline: Duration, ask: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
    let patience = Shutdown::new();
    loop {
        let is_late = clock.monotonic() >= deadline;
        match ask() {
            Ok(None) if !is_late => {}
            Err(error) if !is_late && is_passing(&error) => {}
            answer => return answer,
        }
        patience.wait(LOOK_EVERY);
    }
}

/// Whether this is over when something answers again.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Unavailable(_)))
        || matches!(error.downcast_ref(), Some(LogError::Unavailable(_)))
}

/// What is left of a shopper's life before the erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    /// Rows by table.
    rows: BTreeMap<&'static str, usize>,
    /// Dead letters, and how many of them still say something.
    letters: usize,
    unmasked: usize,
}

impl Left {
    fn of(sides: &Sides, user: &UserKey) -> Result<Self> {
        let erasure = sides.store.erasure(user).context("cannot read the store")?;
        let until = erasure.map(|erasure| erasure.stamp);
        let mut rows = BTreeMap::new();
        for row in sides.store.remains(user).context("cannot prove the erasure")? {
            // Rows beyond it are a new life's.
            if row.stamp <= until {
                *rows.entry(row.table).or_default() += 1;
            }
        }
        let filter = DeadLetterFilter { user: Some(user.clone()), limit: usize::MAX, ..DeadLetterFilter::default() };
        let letters = sides.log.dead_letters(&filter).context("cannot read dead letters")?;
        let unmasked = letters.iter().filter(|letter| !letter.masked).count();
        Ok(Self { rows, letters: letters.len(), unmasked })
    }

    fn is_nothing(&self) -> bool {
        self.rows.is_empty() && self.unmasked == 0
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows.is_empty() {
            true => write!(f, "no row is left in the store")?,
            false => write!(f, "LEFT in the store: {:?}", self.rows)?,
        }
        let (masked, letters) = (self.letters - self.unmasked, self.letters);
        write!(f, "; {masked} of {letters} dead letters are masked; records of the log end with its retention")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use endcap_runtime::ManualClock;

    use super::*;

    #[test]
    fn what_is_not_there_yet_or_does_not_answer_is_asked_again_in_time_and_what_is_refused_is_not() {
        type Answer = fn() -> Result<Option<u8>>;
        const STORE_DOWN: Answer = || Err(StoreError::Unavailable("down".to_owned())).context("cannot read");
        const LOG_DOWN: Answer = || Err(LogError::Unavailable("down".to_owned())).context("cannot read");
        const DAMAGED: Answer = || Err(StoreError::Corrupt("no".to_owned())).context("cannot read");
        let ask = |deadline_s: u64, answers: &[Answer]| {
            let (asked, clock) = (Cell::new(0), ManualClock::at(0));
            let answer = until(&clock, Duration::from_secs(deadline_s), || answers[asked.replace(asked.get() + 1)]());
            (answer.ok(), asked.get())
        };
        assert_eq!(ask(1, &[STORE_DOWN, LOG_DOWN, || Ok(None), || Ok(Some(7))]), (Some(Some(7)), 4));
        assert_eq!(ask(0, &[LOG_DOWN]), (None, 1), "its time is over");
        assert_eq!(ask(0, &[|| Ok(None)]), (Some(None), 1), "its time is over");
        assert_eq!(ask(1, &[DAMAGED]), (None, 1), "waiting does not mend it");
    }
}
