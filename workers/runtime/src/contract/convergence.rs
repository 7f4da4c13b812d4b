//! Convergence: writes end in the rows that the greatest of them name, in whatever order and however often they arrive.

use endcap_schemas::UserKey;

use crate::{Erasure, StageResult, Stamp, Store, Write};

/// Schedules whose writes share their calls: a call costs more than what it writes.
const TOGETHER: u64 = 50;
/// Most changes of a schedule, and most of them in one call.
const CHANGES: u64 = 14;
const AT_ONCE: u64 = 5;
/// Contexts of a user, and generations that each may have.
const CONTEXTS: u64 = 4;
const GENERATIONS: u64 = 3;
/// Stages, in the order in which a store tells their results.
const STAGES: [&str; 3] = ["context", "themes", "elsewhere"];

/// One thing that is stored.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    Write(Write),
    Result(StageResult),
}

/// Everything that a store tells of a user.
#[derive(Debug, PartialEq, Default)]
struct Told {
    state: Option<Vec<u8>>,
    page: Option<(Stamp, Option<Vec<u8>>)>,
    erasure: Option<Erasure>,
    results: Vec<StageResult>,
}

/// Checks on `schedules` schedules that `stores`, which write to the same rows, end as they must: per row the greatest context, of equal
/// ones the greatest generation, of equal ones the greater bytes, and nothing up to a user's erasure. Each schedule has users of its own
/// and a few changes for them; they arrive in an order of their own, some more than once, some together. `draw` gives a number below its
/// argument.
///
/// # Panics
/// When a store ends otherwise; with the schedule.
pub fn check_schedules<S: Store>(stores: &[S], schedules: u64, draw: &mut dyn FnMut(u64) -> u64) {
    let mut next = 0;
    while next < schedules {
        let end = (next + TOGETHER).min(schedules);
        let mut arriving: Vec<Schedule> = (next..end).map(|number| Schedule::draw(number, draw)).collect();
        while arriving.iter().any(|schedule| !schedule.left.is_empty()) {
            let some: Vec<Change> = arriving.iter_mut().flat_map(|schedule| schedule.some(draw)).collect();
            put(&stores[place(draw, stores.len())], &some);
        }
        arriving.iter().for_each(|schedule| schedule.check(&stores[0]));
        next = end;
    }
}

/// The changes of one schedule.
struct Schedule {
    number: u64,
    users: [UserKey; 2],
    arrived: Vec<Change>,
    /// What has yet to arrive, the next one last.
    left: Vec<Change>,
}

impl Schedule {
    fn draw(number: u64, draw: &mut dyn FnMut(u64) -> u64) -> Self {
        let users = ["anna", "bert"].map(|user| UserKey { tenant: format!("s{number}"), user: user.to_owned() });
        let mut left: Vec<Change> = (0..=draw(CHANGES)).map(|_| change(&users[place(draw, users.len())], draw)).collect();
        for _ in 0..draw(left.len() as u64 + 1) {
            left.push(left[place(draw, left.len())].clone());
        }
        for last in (1..left.len()).rev() {
            left.swap(last, place(draw, last + 1));
        }
        Self { number, users, arrived: Vec::with_capacity(left.len()), left }
    }

    /// The next ones to arrive together.
    fn some(&mut self, draw: &mut dyn FnMut(u64) -> u64) -> Vec<Change> {
        let count = usize::try_from(draw(AT_ONCE + 1)).unwrap_or(0).min(self.left.len());
        let some = self.left.split_off(self.left.len() - count);
        self.arrived.extend_from_slice(&some);
        some
    }

    fn check(&self, store: &impl Store) {
        for user in &self.users {
            let (told, due) = (told(store, user), due(user, &self.arrived));
            assert_eq!(
                told, due,
                "schedule {}, {user}: what is stored, and what must be; arrived: {:?}",
                self.number, self.arrived
            );
        }
    }
}

fn place(draw: &mut dyn FnMut(u64) -> u64, len: usize) -> usize {
    usize::try_from(draw(len as u64)).expect("a place is a small number")
}

fn small(draw: &mut dyn FnMut(u64) -> u64, below: u64) -> i64 {
    i64::try_from(draw(below)).expect("a small number")
}

fn change(user: &UserKey, draw: &mut dyn FnMut(u64) -> u64) -> Change {
    let user = user.clone();
    let context_ms = 1 + small(draw, CONTEXTS);
    let stamp = Stamp::of(context_ms, i32::try_from(1 + draw(GENERATIONS)).expect("a small number"));
    let bytes = vec![u8::try_from(draw(4)).expect("a small number"); place(draw, 3)];
    match draw(10) {
        0..3 => Change::Write(Write::State { user, stamp, state: bytes }),
        3..6 => Change::Write(Write::Page { user, stamp, page: (draw(4) > 0).then_some(bytes) }),
        6..9 => {
            // When a result was made follows from its text, so that equal results are equal in all.
            let at_ms = small(draw, 4);
            let stage = STAGES[place(draw, STAGES.len())].to_owned();
            Change::Result(StageResult { user, stage, stamp, explanation: format!("{{\"at\":{at_ms}}}"), at_ms })
        }
        // An erasure lies beyond every generation of its context.
        _ => {
            let at = (draw(3) > 0).then(|| (0, small(draw, 4)));
            Change::Write(Write::Erase { user, stamp: Stamp::of(context_ms, 999), at })
        }
    }
}

fn put(store: &impl Store, changes: &[Change]) {
    let (mut writes, mut results) = (Vec::new(), Vec::new());
    for change in changes.iter().cloned() {
        match change {
            Change::Write(write) => writes.push(write),
            Change::Result(result) => results.push(result),
        }
    }
    store.put_all(&writes, &results).expect("changes are taken");
}

fn told(store: &impl Store, user: &UserKey) -> Told {
    Told {
        state: store.state(user).expect("a read is answered"),
        page: store.page(user).expect("a read is answered").map(|page| (page.stamp, page.page)),
        erasure: store.erasure(user).expect("a read is answered"),
        results: store.results(user).expect("a read is answered"),
    }
}

/// What must be stored of a user when `changes` have arrived, in whatever order.
fn due(user: &UserKey, changes: &[Change]) -> Told {
    let writes = || changes.iter().filter_map(|change| if let Change::Write(write) = change { Some(write) } else { None });
    let erasure = writes().filter_map(|write| match write {
        Write::Erase { user: of, stamp, at } if of == user => Some(Erasure { stamp: *stamp, at: *at }),
        _ => None,
    });
    let erasure = erasure.max();
    let lives = |stamp: &Stamp| erasure.is_none_or(|erasure| *stamp > erasure.stamp);
    let states = writes().filter_map(|write| match write {
        Write::State { user: of, stamp, state } if of == user && lives(stamp) => Some((*stamp, state.clone())),
        _ => None,
    });
    let pages = writes().filter_map(|write| match write {
        Write::Page { user: of, stamp, page } if of == user && lives(stamp) => Some((*stamp, page.clone())),
        _ => None,
    });
    let result = |stage: &&str| {
        let results = changes.iter().filter_map(|change| match change {
            Change::Result(result) if result.user == *user && result.stage == *stage && lives(&result.stamp) => Some(result),
            _ => None,
        });
        results.max_by(|a, b| (a.stamp, &a.explanation).cmp(&(b.stamp, &b.explanation))).cloned()
    };
    Told {
        state: states.max().map(|(_, state)| state),
        page: pages.max(),
        results: STAGES.iter().filter_map(result).collect(),
        erasure,
    }
}
