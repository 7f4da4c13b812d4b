//! Serves the clients that nobody polls: those that only ask, those that wait for their next use, and producers between two transactions.
//! librdkafka hands a client's log lines, errors and wishes for a new token to whoever polls it. Where nobody does, the first two pile up
//! and a token runs out.

use std::{
    mem,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use endcap_runtime::{LogError, Shutdown};
use rdkafka::{ClientConfig, consumer::BaseConsumer};

use crate::{
    KafkaConfig,
    client::{self, Watch},
    lock::lock,
};

/// How often each client is served: a token is asked for long before it runs out.
const SERVE_EVERY: Duration = Duration::from_secs(1);

/// How long a client is listened to at least. A poll without any time ends after the first log line, whatever is behind it.
pub(crate) const SERVE_FOR: Duration = Duration::from_millis(2);

/// Serves one client; answers whether it is still there.
type Serve = Box<dyn Fn() -> bool + Send>;

/// The clients that are served.
type Kept = Mutex<Vec<Serve>>;

/// The thread that serves. It ends with its handle.
pub(crate) struct Tender {
    kept: Arc<Kept>,
    end: Shutdown,
}

/// Serves each client, and forgets those that are gone. Nothing is locked meanwhile: what the others have let go of is closed here, which may
/// take its time, and nobody waits with a new one for that.
fn serve_all(kept: &Kept) {
    let served = mem::take(&mut *lock(kept));
    let there: Vec<Serve> = served.into_iter().filter(|serve| serve()).collect();
    lock(kept).extend(there);
}

impl Tender {
    /// # Errors
    /// [`LogError::Unavailable`] when no thread can be started.
    pub(crate) fn start() -> Result<Arc<Self>, LogError> {
        let (kept, end) = (Arc::<Kept>::default(), Shutdown::new());
        let tender = Arc::new(Self { kept: kept.clone(), end: end.clone() });
        let serve = move || {
            while !end.wait(SERVE_EVERY) {
                serve_all(&kept);
            }
        };
        thread::Builder::new()
            .name("kafka-tender".to_owned())
            .spawn(serve)
            .map_err(|error| LogError::Unavailable(format!("cannot start the thread that serves clients: {error}")))?;
        Ok(tender)
    }

    /// Serves `client` from time to time, for as long as somebody has it.
    pub(crate) fn keep<C: Send + Sync + 'static>(&self, client: &Arc<C>, serve: impl Fn(&C) + Send + 'static) {
        let client = Arc::downgrade(client);
        let serve = move || {
            client.upgrade().is_some_and(|client| {
                serve(&client);
                true
            })
        };
        lock(&self.kept).push(Box::new(serve));
    }

    /// A consumer that only asks, served from now on.
    pub(crate) fn consumer(&self, client: &ClientConfig, config: &KafkaConfig) -> Result<Arc<BaseConsumer<Watch>>, LogError> {
        let consumer: Arc<BaseConsumer<Watch>> = Arc::new(client::create(client, Watch::of(config))?);
        serve(&consumer);
        self.keep(&consumer, serve);
        Ok(consumer)
    }
}

impl Drop for Tender {
    fn drop(&mut self) {
        self.end.trigger();
    }
}

/// Hears what a consumer without partitions has to say.
pub(crate) fn serve(consumer: &BaseConsumer<Watch>) {
    while consumer.poll(SERVE_FOR).is_some() {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// A client that looks, when it is closed, whether somebody could come with a new one.
    struct Client {
        kept: Arc<Kept>,
        closed: Arc<AtomicUsize>,
    }

    impl Drop for Client {
        fn drop(&mut self) {
            assert!(self.kept.try_lock().is_ok(), "nobody waits for a client that is closed");
            self.closed.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn clients_are_served_and_closed_without_anybody_waiting_and_those_that_came_meanwhile_are_kept() {
        let tender = Tender { kept: Arc::default(), end: Shutdown::new() };
        let closed = Arc::new(AtomicUsize::new(0));
        let client = || Some(Arc::new(Client { kept: tender.kept.clone(), closed: closed.clone() }));
        let (stays, goes) = (client(), Arc::new(Mutex::new(client())));
        let (served, new) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let count = served.clone();
        tender.keep(stays.as_ref().expect("a client"), move |_| {
            count.fetch_add(1, SeqCst);
        });
        // Its owner lets go of it while it is served, and another one comes with a new client.
        let (kept, newer) = (tender.kept.clone(), new.clone());
        let owned = goes.lock().unwrap().clone().expect("a client");
        let owner = goes.clone();
        tender.keep(&owned, move |_| {
            drop(owner.lock().unwrap().take());
            let tender = Tender { kept: kept.clone(), end: Shutdown::new() };
            tender.keep(&newer, |()| ());
        });
        drop(owned);
        serve_all(&tender.kept);
        assert_eq!((served.load(SeqCst), closed.load(SeqCst), lock(&tender.kept).len()), (1, 1, 3));
        serve_all(&tender.kept);
        assert_eq!((served.load(SeqCst), lock(&tender.kept).len()), (2, 2), "what is gone is forgotten, what came is kept");
    }
}
