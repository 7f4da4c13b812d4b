//! `endcap send`: events from a file or standard input to a running `endcap up`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cli::SendArgs;

/// Events of one request.
const BATCH: usize = 500;
/// Bytes of one request, well below what the server takes.
const BATCH_BYTES: usize = 900_000;
const TIMEOUT: Duration = Duration::from_secs(60);

/// What became of the events sent.
#[derive(Debug, Default)]
struct Sent {
    accepted: u64,
    rejected: u64,
}

/// Sends the file's events, in order. Prints what was rejected.
///
/// # Errors
/// When the file cannot be read, the server cannot be reached or refuses a request, or some events were rejected.
pub fn send(args: &SendArgs) -> Result<()> {
    let mut input: Box<dyn BufRead> = match args.file.as_str() {
        "-" => Box::new(BufReader::new(io::stdin())),
        path => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {path}"))?)),
    };
    let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().new_agent();
    let mut sent = Sent::default();
    let mut post = |batch: &[String]| -> Result<()> {
        let answer = request(&agent, args, &batch.join("\n"))?;
        for result in answer["results"].as_array().into_iter().flatten() {
            if result["status"] == "accepted" {
                sent.accepted += 1;
            } else {
                sent.rejected += 1;
                eprintln!(
                    "rejected {}: {}",
                    result["id"].as_str().unwrap_or("(no id)"),
                    result["reason"].as_str().unwrap_or("no reason given")
                );
            }
        }
        Ok(())
    };
    each_event(&mut input, &mut post)?;
    println!("{} accepted, {} rejected", sent.accepted, sent.rejected);
    if sent.rejected > 0 {
        bail!("{} events were rejected: `endcap dlq ls` lists them with their reasons", sent.rejected);
    }
    Ok(())
}

/// Hands batches of events to `post`: lines as they are, an array as its members.
fn each_event(input: &mut dyn BufRead, post: &mut dyn FnMut(&[String]) -> Result<()>) -> Result<()> {
    let starts_array =
        input.fill_buf().context("cannot read the events")?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let mut batch = Batch { events: Vec::new(), bytes: 0 };
    if starts_array {
        let mut text = String::new();
        input.read_to_string(&mut text).context("cannot read the events")?;
        let values: Vec<Value> = serde_json::from_str(&text).context("cannot read the events: not a JSON array")?;
        for value in values {
            batch.add(value.to_string(), post)?;
        }
    } else {
        for line in input.lines() {
            let line = line.context("cannot read the events")?;
            if !line.trim().is_empty() {
                batch.add(line, post)?;
            }
        }
    }
    batch.flush(post)
}

struct Batch {
    events: Vec<String>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, event: String, post: &mut dyn FnMut(&[String]) -> Result<()>) -> Result<()> {
        if self.events.len() == BATCH || self.bytes + event.len() > BATCH_BYTES {
            self.flush(post)?;
        }
        self.bytes += event.len() + 1;
        self.events.push(event);
        Ok(())
    }

    fn flush(&mut self, post: &mut dyn FnMut(&[String]) -> Result<()>) -> Result<()> {
        if !self.events.is_empty() {
            post(&self.events)?;
        }
        self.events.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn request(agent: &ureq::Agent, args: &SendArgs, body: &str) -> Result<Value> {
    let url = format!("{}/v1/events", args.to.trim_end_matches('/'));
    let mut request = agent.post(&url).header("content-type", "application/x-ndjson");
    if let Some(token) = &args.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = request.send(body).with_context(|| format!("cannot reach {url}: is `endcap up` running there?"))?;
    let status = response.status();
    let answer: Value = response.body_mut().read_json().unwrap_or_default();
    if !status.is_success() {
        bail!("{url} answered {status}: {}", answer["error"].as_str().unwrap_or("no reason given"));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&[&str]]) {
        let mut batches: Vec<Vec<String>> = Vec::new();
        each_event(&mut text.as_bytes(), &mut |batch| {
            batches.push(batch.to_vec());
            Ok(())
        })
        .unwrap();
        assert_eq!(batches, expected);
    }

    #[test]
    fn lines_and_arrays_are_sent_event_by_event() {
        check("{\"id\":1}\n\n{\"id\":2}\n", &[&["{\"id\":1}", "{\"id\":2}"]]);
        check("\n [{\"id\": 1},\n {\"id\": 2}]", &[&["{\"id\":1}", "{\"id\":2}"]]);
        check("", &[]);
    }

    #[test]
    fn a_long_file_goes_in_several_requests() {
        let mut sizes = Vec::new();
        each_event(&mut "{}\n".repeat(BATCH * 2 + 1).as_bytes(), &mut |batch| {
            sizes.push(batch.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(sizes, [BATCH, BATCH, 1]);
    }
}
