//! The thread that owns a model: gathers requests into batches by tokens, answers them, sends the answers back.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::{Model, ModelError};

/// Limits of a model's thread.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that may wait; a caller beyond them is held up.
    pub waiting_max: usize,
    /// Tokens of one batch; a single larger request still runs, alone.
    pub batch_tokens_max: usize,
    /// How long an open batch waits for company.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiting_max: 4_096, batch_tokens_max: 16_384, linger: Duration::from_millis(2) }
    }
}

struct Job<M: Model> {
    request: M::Request,
    answer: Sender<Result<M::Answer, ModelError>>,
}

/// A model that lives on a thread of its own. Clones share it; the thread ends with the last clone.
pub struct Handle<M: Model> {
    jobs: Sender<Job<M>>,
    version: Arc<str>,
}

impl<M: Model> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), version: self.version.clone() }
    }
}

impl<M: Model> Handle<M> {
    /// Name and version of the model.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Asks all of `requests` at once and waits for the answers, which come in the requests' order. Blocks; never call it from async code.
    pub fn ask_all(&self, requests: Vec<M::Request>) -> Vec<Result<M::Answer, ModelError>> {
        let waiting: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let (answer, receive) = bounded(1);
                self.jobs.send(Job { request, answer }).map(|()| receive)
            })
            .collect();
        waiting
            .into_iter()
            .map(|receive| match receive {
                Ok(receive) => receive.recv().unwrap_or(Err(ModelError::Gone)),
                Err(_) => Err(ModelError::Gone),
            })
            .collect()
    }
}

impl<M: Model> Handle<M>
where
    M::Request: Clone + Eq + Hash,
    M::Answer: Clone,
{
    /// As [`Handle::ask_all`], but asks equal requests once. Answers do not depend on company, so this changes the cost and nothing else.
    pub fn ask_distinct(&self, requests: &[M::Request]) -> Vec<Result<M::Answer, ModelError>> {
        let mut places: HashMap<&M::Request, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let asked: Vec<usize> = requests
            .iter()
            .map(|request| {
                *places.entry(request).or_insert_with(|| {
                    distinct.push(request.clone());
                    distinct.len() - 1
                })
            })
            .collect();
        let answers = self.ask_all(distinct);
        asked.into_iter().map(|place| answers[place].clone()).collect()
    }
}

/// Starts `model`'s thread.
///
/// # Errors
/// The system's, when it cannot start a thread.
pub fn spawn<M: Model>(name: &str, model: M, limits: Limits) -> std::io::Result<Handle<M>> {
    let (jobs, receive) = bounded(limits.waiting_max);
    let version = Arc::from(model.version());
    thread::Builder::new().name(name.to_owned()).spawn(move || work(model, &receive, limits))?;
    Ok(Handle { jobs, version })
}

fn work<M: Model>(mut model: M, jobs: &Receiver<Job<M>>, limits: Limits) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(job) => job,
            None => match jobs.recv() {
                Ok(job) => job,
                Err(_) => return,
            },
        };
        let batch;
        (batch, next) = gather(&model, first, jobs, limits);
        let (requests, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.request, job.answer)).unzip();
        // A caller that has gone away needs no answer, hence the ignored send errors.
        match model.answer(requests) {
            Ok(results) => {
                assert_eq!(results.len(), answers.len(), "a model answers every request of its batch");
                for (answer, result) in answers.iter().zip(results) {
                    let _ = answer.send(result);
                }
            }
            Err(error) => {
                for answer in &answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Fills a batch up to its limit; the job that did not fit opens the next one.
fn gather<M: Model>(model: &M, first: Job<M>, jobs: &Receiver<Job<M>>, limits: Limits) -> (Vec<Job<M>>, Option<Job<M>>) {
    let mut tokens = model.tokens(&first.request);
    let mut batch = vec![first];
    let deadline = Instant::now() + limits.linger;
    while tokens < limits.batch_tokens_max {
        let job = match jobs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        };
        tokens += model.tokens(&job.request);
        if tokens > limits.batch_tokens_max {
            return (batch, Some(job));
        }
        batch.push(job);
    }
    (batch, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers a request with the size of its batch; fails on request 0.
    struct Counting;

    impl Model for Counting {
        type Request = usize;
        type Answer = (usize, usize);

        fn tokens(&self, _: &usize) -> usize {
            1
        }

        fn answer(&mut self, batch: Vec<usize>) -> Result<Vec<Result<(usize, usize), ModelError>>, ModelError> {
            let size = batch.len();
            Ok(batch.into_iter().map(|n| if n == 0 { Err(ModelError::Request("zero".into())) } else { Ok((n, size)) }).collect())
        }

        fn version(&self) -> &str {
            "counting"
        }
    }

    #[test]
    fn answers_come_in_order_in_batches_within_the_limit() {
        let limits = Limits { batch_tokens_max: 4, ..Limits::default() };
        let handle = spawn("counting", Counting, limits).unwrap();
        let answers = handle.ask_all((0..20).collect());
        assert!(matches!(answers[0], Err(ModelError::Request(_))));
        for (n, answer) in answers.into_iter().enumerate().skip(1) {
            let (got, size) = answer.unwrap();
            assert_eq!(got, n);
            assert!(size <= 4, "a batch of {size}");
        }
    }

    #[test]
    fn equal_requests_are_asked_once_and_answered_each() {
        let handle = spawn("counting", Counting, Limits::default()).unwrap();
        let answers = handle.ask_distinct(&[7, 8, 7, 7]);
        let numbers: Vec<usize> = answers.into_iter().map(|answer| answer.unwrap().0).collect();
        assert_eq!(numbers, [7, 8, 7, 7]);
        let (_, size) = handle.ask_distinct(&[9, 9, 9]).remove(0).unwrap();
        assert_eq!(size, 1);
    }
}
