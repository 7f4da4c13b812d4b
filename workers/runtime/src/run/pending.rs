//! What a stage's loop holds between poll and commit: a queue in offset order.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use endcap_schemas::{Message, UserKey, wire};

use super::{LoopConfig, MALFORMED, WRONG_KEY};
use crate::{DropReason, Input, Received, Stamp};

/// What is wrong with a record of another's key. Names nobody: log lines repeat it.
const WRONG_KEY_MESSAGE: &str = "the key is not `tenant/user` of the value, so another partition has the rest of its user's records: mend the \
                                 producer; sent again, it goes where they are";

/// Such a part of a full batch is much.
const UNDER_LOAD_PART: usize = 8;

/// One record on its way through the loop.
pub(super) struct Held<T> {
    /// As the log gave it; the value is kept for a dead letter until the record is superseded.
    pub(super) record: Received,
    pub(super) fate: Fate<T>,
    /// How often the stage was asked about it.
    pub(super) attempts: u32,
    /// Whose it is and its stamp; `None` for values without head and for those that cannot be read.
    pub(super) context: Option<(UserKey, Stamp)>,
    /// When it came, ms: when it was appended, but not later than it was taken in, as the log's clock may be ahead of ours.
    came_ms: i64,
    /// The same of the oldest of the records that it superseded.
    first_ms: i64,
    /// When it was taken in, ms.
    admitted_ms: i64,
}

/// What is known of a record's fate.
pub(super) enum Fate<T> {
    /// The stage has to be asked.
    Live(T),
    /// The stage has its value.
    Started,
    /// It ends here.
    Dropped(DropReason),
    /// It is a dead letter.
    Dead { kind: &'static str, message: String },
}

impl<T: Message> Held<T> {
    fn new(record: Received, now_ms: i64) -> Self {
        let value = match wire::decode::<T>(&record.value) {
            Ok(value) => value,
            Err(error) => return Self::dead(record, now_ms, MALFORMED, error.to_string()),
        };
        let user = value.user();
        if !user.is_written(&record.key) {
            // Filed under its user, so that it is masked with them, and goes to their partition when it is sent again.
            return Self::dead(record.under(&user), now_ms, WRONG_KEY, WRONG_KEY_MESSAGE.to_owned());
        }
        let context = value.head().map(|head| (head.user.clone(), Stamp::of(head.context_ms, head.generation)));
        Self::of(record, now_ms, Fate::Live(value), context)
    }

    fn dead(record: Received, now_ms: i64, kind: &'static str, message: String) -> Self {
        Self::of(record, now_ms, Fate::Dead { kind, message }, None)
    }

    fn of(record: Received, now_ms: i64, fate: Fate<T>, context: Option<(UserKey, Stamp)>) -> Self {
        let came_ms = record.appended_ms.min(now_ms);
        Self { record, fate, attempts: 0, context, came_ms, first_ms: came_ms, admitted_ms: now_ms }
    }

    fn bytes(&self) -> usize {
        self.record.value.len()
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.fate, Fate::Live(_))
    }

    /// Ends a record here, and answers how many bytes are given free.
    fn supersede(&mut self) -> usize {
        self.fate = Fate::Dropped(DropReason::Superseded);
        std::mem::take(&mut self.record.value).len()
    }

    /// Drops a live record whose page nobody needs any more at `now_ms` of the event clock.
    pub(super) fn expire(&mut self, now_ms: i64) {
        if let Fate::Live(value) = &self.fate
            && value.head().is_some_and(|head| head.expires_ms < now_ms)
        {
            self.fate = Fate::Dropped(DropReason::Expired);
        }
    }

    /// Hands a live record's value over to the stage.
    pub(super) fn start(&mut self) -> Option<Input<T>> {
        if !self.is_live() {
            return None;
        }
        let Fate::Live(value) = std::mem::replace(&mut self.fate, Fate::Started) else { unreachable!("checked above") };
        self.attempts += 1;
        let Received { partition, offset, appended_ms, .. } = self.record;
        Some(Input { value, partition, offset, appended_ms })
    }

    fn due_ms(&self, debounce_ms: i64, debounce_max_ms: i64) -> i64 {
        (self.came_ms + debounce_ms).min(self.first_ms + debounce_max_ms.max(debounce_ms))
    }
}

/// The queue. Its places are counted from the start of the loop, so that they stay valid while its front is taken away.
pub(super) struct Pending<T> {
    queue: VecDeque<Held<T>>,
    /// Bytes of its records' values.
    bytes: usize,
    /// Place of the queue's front.
    front: u64,
    /// Place of each user's live record.
    newest: HashMap<UserKey, u64>,
    debounce_ms: i64,
    debounce_max_ms: i64,
    gather_ms: i64,
    gather_under_load_ms: i64,
    /// So many records are a full batch.
    batch_max: usize,
    /// Whether somebody else waits for the stage: then nothing is gathered under load.
    pub(super) is_hurried: bool,
}

impl<T: Message> Pending<T> {
    /// A queue whose records wait as `config` says.
    pub(super) fn waiting(config: &LoopConfig) -> Self {
        Self {
            debounce_ms: ms(config.debounce),
            debounce_max_ms: ms(config.debounce_max),
            gather_ms: ms(config.gather),
            gather_under_load_ms: ms(config.gather_under_load),
            batch_max: config.batch_records_max,
            ..Self::at_once()
        }
    }

    /// A queue whose records are due at once.
    pub(super) fn at_once() -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            front: 0,
            newest: HashMap::new(),
            debounce_ms: 0,
            debounce_max_ms: 0,
            gather_ms: 0,
            gather_under_load_ms: 0,
            batch_max: 0,
            is_hurried: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes of the values that are held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.queue.clear();
        self.newest.clear();
    }

    /// Drops the records of `partitions`; answers how many those were.
    pub(super) fn drop_partitions(&mut self, partitions: &[i32]) -> usize {
        let before = self.queue.len();
        self.queue.retain(|held| !partitions.contains(&held.record.partition));
        self.bytes = self.queue.iter().map(Held::bytes).sum();
        self.newest = (self.front..)
            .zip(&self.queue)
            .filter(|(_, held)| held.is_live())
            .filter_map(|(place, held)| Some((held.context.as_ref()?.0.clone(), place)))
            .collect();
        before - self.queue.len()
    }

    /// Takes a record in at `now_ms`: decodes it, and lets the newer of it and its user's waiting record supersede the other.
    pub(super) fn admit(&mut self, record: Received, now_ms: i64) {
        let mut held = Held::new(record, now_ms);
        if let Some((user, stamp)) = &held.context {
            let place = self.front + self.queue.len() as u64;
            match self.newest.get(user).and_then(|at| self.queue.get_mut(usize::try_from(at.checked_sub(self.front)?).ok()?)) {
                Some(waiting) if waiting.context.as_ref().is_some_and(|(_, older)| older > stamp) => {
                    held.supersede();
                }
                Some(waiting) => {
                    held.first_ms = held.first_ms.min(waiting.first_ms);
                    self.bytes -= waiting.supersede();
                    self.newest.insert(user.clone(), place);
                }
                None => {
                    self.newest.insert(user.clone(), place);
                }
            }
        }
        self.bytes += held.bytes();
        self.queue.push_back(held);
    }

    /// How long until something is due; `None` when nothing is held.
    pub(super) fn until_due(&self, now_ms: i64) -> Option<Duration> {
        let due = self.queue.iter().map(|held| self.due_ms(held)).min()?.max(self.gathered_ms()?);
        Some(Duration::from_millis(u64::try_from(due - now_ms).unwrap_or(0)))
    }

    /// Takes a prefix: up to the last record that is due (or `everything`), cut before its live records exceed a limit.
    pub(super) fn take(
        &mut self,
        now_ms: i64,
        everything: bool,
        records_max: usize,
        tokens_max: usize,
        tokens_of: impl Fn(&T) -> usize,
    ) -> Vec<Held<T>> {
        let due = if everything {
            self.queue.len()
        } else if self.until_due(now_ms) != Some(Duration::ZERO) {
            0
        } else {
            self.queue.iter().rposition(|held| self.due_ms(held) <= now_ms).map_or(0, |last| last + 1)
        };
        let (mut records, mut tokens, mut end) = (0_usize, 0_usize, 0_usize);
        for held in self.queue.iter().take(due) {
            if let Fate::Live(value) = &held.fate {
                tokens = tokens.saturating_add(tokens_of(value));
                if records == records_max || (records > 0 && tokens > tokens_max) {
                    break;
                }
                records += 1;
            }
            end += 1;
        }
        let batch: Vec<_> = self.queue.drain(..end).collect();
        self.bytes -= batch.iter().map(Held::bytes).sum::<usize>();
        self.front += end as u64;
        for (user, _) in batch.iter().filter_map(|held| held.context.as_ref()) {
            if self.newest.get(user).is_some_and(|place| *place < self.front) {
                self.newest.remove(user);
            }
        }
        batch
    }

    /// Puts a batch that was taken last back to the front, its started records live again.
    pub(super) fn put_back(&mut self, batch: Vec<Held<T>>, inputs: Vec<Input<T>>) {
        let mut values = inputs.into_iter().map(|input| input.value).rev();
        for mut held in batch.into_iter().rev() {
            self.front -= 1;
            self.bytes += held.bytes();
            if matches!(held.fate, Fate::Started) {
                held.fate = Fate::Live(values.next().expect("every started record has its input"));
                if let Some((user, _)) = &held.context {
                    self.newest.entry(user.clone()).or_insert(self.front);
                }
            }
            self.queue.push_front(held);
        }
    }

    /// When what is held has been gathered for long enough, ms; `None` when nothing is held. What was put back is held for longest, so that a search for
    /// a culprit waits for nothing.
    fn gathered_ms(&self) -> Option<i64> {
        let much = (self.batch_max / UNDER_LOAD_PART).max(2)..self.batch_max;
        let waits_for_more = !self.is_hurried && much.contains(&self.queue.len());
        let under_load_ms = if waits_for_more { self.gather_under_load_ms } else { 0 };
        Some(self.queue.front()?.admitted_ms + self.gather_ms.max(under_load_ms))
    }

    /// When a record is due, ms. A resolved one waits for the debounce too: taken earlier, it would take along live ones that stand
    /// before it.
    fn due_ms(&self, held: &Held<T>) -> i64 {
        if held.is_live() { held.due_ms(self.debounce_ms, self.debounce_max_ms) } else { held.came_ms + self.debounce_ms }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}
