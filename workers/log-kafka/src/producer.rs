//! The door for events: what enters from outside, and what goes round once more. One writer per process, one transaction per call.
//!
//! Every transaction carries a mark, the number of this writer's transactions. So a commit whose answer was lost can be told from one that
//! was never made.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use endcap_runtime::{Clock, DeadLetter, INGEST, LogError, Outgoing, Tally, metric};
use endcap_schemas::topics::Lane;

use crate::{
    headers,
    names::Names,
    notes::{self, Notes},
    reader::Readers,
    record::Record,
    registry::Registry,
    writer::{Stopped, Writer},
};

/// What this writer's transactions are marked with in the topic of progress: this and its id.
const MARK: &str = "@";

/// The source of what enters.
static INGEST_SOURCE: LazyLock<String> = LazyLock::new(|| headers::source_of(INGEST));

/// Writes what enters.
pub(crate) struct Ingest {
    names: Names,
    registry: Option<Arc<Registry>>,
    writer: Writer,
    readers: Arc<Readers>,
    tallies: Arc<Notes>,
    progress: Arc<Notes>,
    /// As the log has it; `None` before it was read, and after a transaction whose end is not known.
    own: Option<Own>,
    unclear: Unclear,
}

/// Progress that was to be noted by transactions whose end is not known: of each name what was to be noted last. A caller that comes again
/// with the same would write its records twice, had the transaction gone through.
#[derive(Debug, Default)]
struct Unclear(BTreeMap<String, String>);

impl Unclear {
    /// Whether the log has to be asked before `value` is noted under `name`.
    fn asks(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|unclear| unclear == value)
    }

    /// The log has told what became of the transaction.
    fn told(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// A transaction that was to note `value` has ended so. One that wrote nothing says nothing of those before it.
    fn ended(&mut self, name: &str, value: &str, end: &Result<(), Stopped>) {
        match end {
            Ok(()) => self.told(name),
            Err(Stopped::Unclear(_)) => drop(self.0.insert(name.to_owned(), value.to_owned())),
            Err(Stopped::Nothing(_)) => {}
        }
    }
}

/// What this writer has counted, and how many transactions it made.
#[derive(Debug, Clone, Default)]
struct Own {
    tally: Tally,
    made: u64,
}

impl Ingest {
    pub(crate) fn new(
        names: &Names,
        registry: Option<Arc<Registry>>,
        writer: Writer,
        readers: &Arc<Readers>,
        tallies: &Arc<Notes>,
        progress: &Arc<Notes>,
    ) -> Self {
        let (readers, tallies, progress) = (readers.clone(), tallies.clone(), progress.clone());
        Self { names: names.clone(), registry, writer, readers, tallies, progress, own: None, unclear: Unclear::default() }
    }

    fn passed<'a>(&self, records: &'a [Outgoing]) -> Result<Vec<Record<'a>>, LogError> {
        let (names, registry) = (&self.names, self.registry.as_deref());
        records.iter().map(|record| Record::passed(names, registry, record, INGEST_SOURCE.as_str())).collect()
    }

    /// Ends what it, or another process under its id, has left open.
    pub(crate) fn ready(&mut self) -> Result<(), LogError> {
        self.writer.ready()
    }

    /// Appends `records` and notes how far their source was read.
    pub(crate) fn append(&mut self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<(), LogError> {
        if let Some((name, value)) = progress
            && self.unclear.asks(name, value)
        {
            self.writer.ready()?; // ends the transaction in question, one way or the other
            let reader = self.readers.lend()?;
            let is_noted = self.progress.whole(&reader, |latest| latest.get(name).is_some_and(|noted| noted == value))?;
            self.unclear.told(name);
            if is_noted {
                return Ok(());
            }
        }
        let mut all = self.passed(records)?;
        all.extend(progress.map(|(name, value)| Record::note(self.names.progress(), name, value)));
        let written = self.write(all, &Tally::default());
        if let Some((name, value)) = progress {
            self.unclear.ended(name, value, &written);
        }
        written.map_err(Stopped::into_error)
    }

    /// Appends `records` and keeps `refused` as dead letters; both are counted.
    pub(crate) fn admit(&mut self, records: &[Outgoing], refused: &[DeadLetter], clock: &dyn Clock) -> Result<(), LogError> {
        let mut tally = Tally::default();
        records.iter().for_each(|_| tally.pass());
        refused.iter().for_each(|letter| tally.dead_letter(&letter.kind));
        let now_ms = clock.now_ms();
        let mut all = self.passed(records)?;
        all.extend(refused.iter().map(|letter| Record::dead(&self.names, letter, now_ms)));
        self.write(all, &tally).map_err(Stopped::into_error)?;
        metric::committed(INGEST, Lane::Live, &tally);
        Ok(())
    }

    /// Writes `records` in one transaction and adds `tally` to what was counted. Comes back when it is known what became of it, where
    /// that can be known in time.
    pub(crate) fn write(&mut self, mut records: Vec<Record<'_>>, tally: &Tally) -> Result<(), Stopped> {
        let mut own = self.own().map_err(Stopped::Nothing)?;
        own.made += 1;
        own.tally += tally;
        records.push(Record::note(self.names.progress(), &self.mark(), &own.made.to_string()));
        if tally.received > 0 {
            let key = notes::tally_key(INGEST, self.writer.id());
            records.push(Record::note(self.names.tallies(), &key, &notes::write_tally(&own.tally)));
        }
        match self.writer.transact(records.into_iter().map(Ok), None) {
            Ok(()) => {
                self.own = Some(own);
                Ok(())
            }
            Err(Stopped::Nothing(error)) => {
                // Another process may have written under this id meanwhile.
                self.own = None;
                Err(Stopped::Nothing(error))
            }
            Err(Stopped::Unclear(error)) => {
                self.own = None;
                let now = self.own().map_err(|_| Stopped::Unclear(unclear(&error)))?;
                if now.made == own.made { Ok(()) } else { Err(Stopped::Nothing(error)) }
            }
        }
    }

    fn mark(&self) -> String {
        format!("{MARK}{}", self.writer.id())
    }

    /// What the log has of this writer. Whoever wrote under its id before is fenced first, so that nothing is added any more.
    fn own(&mut self) -> Result<Own, LogError> {
        if let Some(own) = &self.own {
            return Ok(own.clone());
        }
        self.writer.ready()?;
        let (key, mark, reader) = (notes::tally_key(INGEST, self.writer.id()), self.mark(), self.readers.lend()?);
        let tally = self.tallies.whole(&reader, |latest| notes::tally_of(latest, &key))??;
        let made = self.progress.whole(&reader, |latest| latest.get(&mark).and_then(|text| text.parse().ok()))?.unwrap_or(0);
        let own = Own { tally, made };
        self.own = Some(own.clone());
        Ok(own)
    }
}

/// The answer to a caller who has to look whether its records arrived.
fn unclear(error: &LogError) -> LogError {
    LogError::Unavailable(format!("{error}; what was sent may have been written all the same"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_noted_is_asked_for_until_the_log_has_told() {
        let lost = || LogError::Unavailable("no answer".to_owned());
        let mut unclear = Unclear::default();
        assert!(!unclear.asks("feed", "10"), "nothing was lost");
        unclear.ended("feed", "10", &Err(Stopped::Unclear(lost())));
        unclear.ended("other", "10", &Ok(()));
        unclear.ended("feed", "10", &Err(Stopped::Nothing(lost())));
        assert!(unclear.asks("feed", "10"), "another's success and a later failure say nothing of it");
        assert!(!unclear.asks("feed", "20") && !unclear.asks("other", "10"), "that would not write it twice");
        unclear.ended("feed", "20", &Err(Stopped::Unclear(lost())));
        assert!(!unclear.asks("feed", "10") && unclear.asks("feed", "20"), "it goes on from what is noted last");
        unclear.ended("feed", "20", &Ok(()));
        assert!(!unclear.asks("feed", "20"));
        unclear.ended("feed", "30", &Err(Stopped::Unclear(lost())));
        unclear.told("feed");
        assert!(!unclear.asks("feed", "30"));
    }
}
