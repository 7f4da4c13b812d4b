//! Serves the clients that nobody polls: those that only ask, those that wait for their next use, and producers between two transactions.
//! librdkafka hands a client's log lines, errors and wishes for a new token to whoever polls it. Where nobody does, the first two pile up
//! and a token runs out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use endcap_runtime::{LogError, Shutdown};
use rdkafka::{ClientConfig, consumer::BaseConsumer};

use crate::{
    KafkaConfig,
    client::{self, Watch},
};

/// How often each client is served: a token is asked for long before it runs out.
const SERVE_EVERY: Duration = Duration::from_secs(1);

/// How long a client is listened to at least. A poll without any time ends after the first log line, whatever is behind it.
pub(crate) const SERVE_FOR: Duration = Duration::from_millis(2);

/// Serves one client; answers whether it is still there.
type Serve = Box<dyn Fn() -> bool + Send>;

/// The thread that serves. It ends with its handle.
pub(crate) struct Tender {
    kept: Arc<Mutex<Vec<Serve>>>,
    end: Shutdown,
}

impl Tender {
    /// # Errors
    /// [`LogError::Unavailable`] when no thread can be started.
    pub(crate) fn start() -> Result<Arc<Self>, LogError> {
        let (kept, end) = (Arc::<Mutex<Vec<Serve>>>::default(), Shutdown::new());
        let tender = Arc::new(Self { kept: kept.clone(), end: end.clone() });
        let serve_all = move || {
            while !end.wait(SERVE_EVERY) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|serve| serve());
            }
        };
        thread::Builder::new()
            .name("kafka-tender".to_owned())
            .spawn(serve_all)
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
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(serve));
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
