//! `endcap send`: events from a file or standard input to a running `endcap up`.
//!
//! Lines go as they are: the server judges each, and what it rejects holds up nothing. All of an answer's places are told as lines of the
//! file, which is why a request holds one event a line.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, value::RawValue};

use crate::cli::SendArgs;

/// Events of one request.
const BATCH: usize = 500;
/// Bytes of one request, well below what the server takes.
const BATCH_BYTES: usize = 900_000;
/// Rejected lines that are printed; more are only counted.
const LISTED_MAX: usize = 20;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends the file's events, in order. Prints how many were taken, and what was rejected.
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
    let done = each_batch(&mut input, &mut |batch| {
        let events: Vec<&[u8]> = batch.lines.iter().map(|line| line.text.as_slice()).collect();
        let answer = if events.is_empty() { Value::Null } else { request(&agent, args, &events.join(&b'\n'))? };
        sent.count(batch, &answer)
    });
    for rejected in &sent.listed {
        eprintln!("{rejected}");
    }
    let more = sent.rejected.saturating_sub(sent.listed.len());
    if more > 0 {
        eprintln!("… and {more} more");
    }
    if sent.line > 0 {
        let reached = format!("sending broke off after line {} ({sent})", sent.line);
        done.with_context(|| format!("{reached}: send the rest, or the whole again, as known ids change nothing"))?;
    } else {
        done?;
    }
    println!("{sent}");
    if sent.rejected > 0 {
        bail!("{} events were rejected: `endcap dlq ls` lists them with their reasons", sent.rejected);
    }
    Ok(())
}

/// What became of the events sent.
#[derive(Debug, Default)]
struct Sent {
    taken: usize,
    repeated: usize,
    rejected: usize,
    /// The first that were rejected, for people.
    listed: Vec<String>,
    /// The last line that the server answered for.
    line: usize,
}

impl Sent {
    /// Takes in the answer to a batch.
    fn count(&mut self, batch: &Batch, answer: &Value) -> Result<()> {
        let results = answer["results"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(
            results.len() == batch.lines.len(),
            "the server answered for {} of {} events: it is of another version",
            results.len(),
            batch.lines.len()
        );
        for (line, result) in batch.lines.iter().zip(results) {
            match result["status"].as_str() {
                Some("accepted") => self.taken += 1,
                Some("repeated") => self.repeated += 1,
                _ => self.reject(line.number, result["reason"].as_str().unwrap_or("no reason given")),
            }
        }
        for line in &batch.too_long {
            self.reject(*line, &format!("longer than {BATCH_BYTES} bytes, not sent"));
        }
        self.line = batch.last;
        Ok(())
    }

    fn reject(&mut self, line: usize, reason: &str) {
        self.rejected += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(format!("line {line}: {reason}"));
        }
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} taken, {} repeated, {} rejected", self.taken, self.repeated, self.rejected)
    }
}

/// What one request sends.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    lines: Vec<Line>,
    /// Lines that no request can hold.
    too_long: Vec<usize>,
    bytes: usize,
    /// The last line of the file that belongs to it.
    last: usize,
}

/// An event on a line of its own.
#[derive(Debug, PartialEq)]
struct Line {
    /// Where it begins in the file.
    number: usize,
    text: Vec<u8>,
}

impl Batch {
    fn add(&mut self, number: usize, text: &[u8], post: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<()> {
        let is_too_long = text.len() > BATCH_BYTES;
        if self.lines.len() == BATCH || (!is_too_long && self.bytes + text.len() > BATCH_BYTES) {
            self.flush(post)?;
        }
        if is_too_long {
            self.too_long.push(number);
        } else {
            self.bytes += text.len() + 1;
            self.lines.push(Line { number, text: text.to_owned() });
        }
        self.last = number;
        Ok(())
    }

    fn flush(&mut self, post: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<()> {
        if self.last > 0 {
            post(self)?;
        }
        *self = Self::default();
        Ok(())
    }
}

/// Hands batches of events to `post`: lines as they are, an array as its members.
fn each_batch(input: &mut dyn BufRead, post: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<()> {
    let starts_array =
        input.fill_buf().context("cannot read the events")?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let mut batch = Batch::default();
    if starts_array {
        let mut text = String::new();
        input.read_to_string(&mut text).context("cannot read the events")?;
        let members: Vec<&RawValue> = serde_json::from_str(&text).context("cannot read the events: not a JSON array")?;
        let (mut line, mut from) = (1, 0);
        for member in members {
            let at = member.get().as_ptr().addr() - text.as_ptr().addr();
            line += text[from..at].matches('\n').count();
            from = at;
            // Between the parts of a JSON value a line's end is a space like any other.
            batch.add(line, member.get().replace(['\n', '\r'], " ").as_bytes(), post)?;
        }
    } else {
        let (mut line, mut text) = (0, Vec::new());
        while read_line(input, &mut text).context("cannot read the events")? {
            line += 1;
            if !text.trim_ascii().is_empty() {
                batch.add(line, text.trim_ascii(), post)?;
            }
        }
    }
    batch.flush(post)
}

/// Reads a line into `text`, of one that is too long only the beginning; false at the end.
fn read_line(input: &mut dyn BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    let mut any = false;
    loop {
        let seen = input.fill_buf()?;
        if seen.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = seen.iter().position(|byte| *byte == b'\n');
        let part = &seen[..end.unwrap_or(seen.len())];
        text.extend_from_slice(&part[..part.len().min(BATCH_BYTES + 1 - text.len())]);
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn request(agent: &ureq::Agent, args: &SendArgs, body: &[u8]) -> Result<Value> {
    let url = format!("{}/v1/events", args.to);
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
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use serde_json::json;

    use super::*;

    fn batches(text: &[u8]) -> Vec<Batch> {
        let mut batches = Vec::new();
        each_batch(&mut &*text, &mut |batch| {
            let lines = batch.lines.iter().map(|line| Line { number: line.number, text: line.text.clone() });
            batches.push(Batch { lines: lines.collect(), too_long: batch.too_long.clone(), ..*batch });
            Ok(())
        })
        .unwrap();
        batches
    }

    fn check(text: &str, expected: &[(usize, &str)]) {
        let lines: Vec<Line> = batches(text.as_bytes()).into_iter().flat_map(|batch| batch.lines).collect();
        let expected: Vec<Line> =
            expected.iter().map(|(number, text)| Line { number: *number, text: text.as_bytes().to_owned() }).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn lines_and_arrays_are_sent_event_by_event_with_the_line_that_each_begins_on() {
        check("{\"id\":1}\r\n\n no json\n{\"id\":2}", &[(1, "{\"id\":1}"), (3, "no json"), (4, "{\"id\":2}")]);
        check("\n [{\"id\":1},\n {\"id\":\n2}, 3]", &[(2, "{\"id\":1}"), (3, "{\"id\": 2}"), (4, "3")]);
        check("", &[]);
    }

    #[test]
    fn a_long_file_goes_in_several_requests() {
        let sizes = |text: &str| batches(text.as_bytes()).iter().map(|batch| batch.lines.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&"{}\n".repeat(BATCH * 2 + 1)), [BATCH, BATCH, 1]);
        let half = "x".repeat(BATCH_BYTES / 2);
        assert_eq!(sizes(&format!("{half}\n{half}\n")), [1, 1]);
    }

    #[test]
    fn a_line_that_no_request_can_hold_is_passed_over() {
        let text = format!("{{}}\n{}\n{{}}\n", "x".repeat(BATCH_BYTES * 2));
        let batches = batches(text.as_bytes());
        let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
        assert_eq!((batch.lines.len(), batch.too_long.as_slice(), batch.last), (2, [2].as_slice(), 3));
    }

    /// A server that takes one request and is gone then; gives its address.
    fn one_answer() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut input = BufReader::new(listener.accept().unwrap().0);
            drop(listener);
            let (mut length, mut line) = (0, String::from("begin"));
            while !line.trim().is_empty() {
                line.clear();
                input.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            input.read_exact(&mut body).unwrap();
            let results = vec![json!({ "status": "accepted" }); body.split(|byte| *byte == b'\n').count()];
            let answer = json!({ "results": results }).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            input.get_mut().write_all((head + &answer).as_bytes()).unwrap();
        });
        format!("http://{address}")
    }

    #[test]
    fn a_server_that_goes_away_leaves_the_line_that_was_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "\n{}\n".repeat(BATCH + 1)).unwrap();
        let args = SendArgs { file: path.display().to_string(), to: one_answer(), token: None };
        let error = format!("{:#}", send(&args).unwrap_err());
        let parts = ["after line 1000 (500 taken, 0 repeated, 0 rejected): send the rest", "cannot reach"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn what_was_rejected_is_told_by_its_line() {
        let mut sent = Sent::default();
        let [batch] = &batches(b"a\n\nb\nc\n")[..] else { panic!("one batch") };
        let results = json!([{ "status": "accepted" }, { "status": "rejected", "reason": "no" }, { "status": "repeated" }]);
        sent.count(batch, &json!({ "results": results })).unwrap();
        assert_eq!((sent.to_string().as_str(), sent.line), ("1 taken, 1 repeated, 1 rejected", 4));
        assert_eq!(sent.listed, ["line 3: no"]);
        sent.count(batch, &json!({ "results": [] })).unwrap_err();
    }
}
