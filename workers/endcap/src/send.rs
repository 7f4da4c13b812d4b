//! `endcap send`: events from a file or standard input to a running `endcap up`.
//!
//! Lines go as they are: the server judges each, and what it rejects holds up nothing. All of an answer's places are told as lines of the
//! file, which is why a request holds one event a line. A request that was turned away for now (429, 503) took nothing, and is made again.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, value::RawValue};

use crate::{cli::SendArgs, config::Token, printable::printable, web::BOM};

/// Events of one request: no more than the ids that are remembered of a shopper, so that one whose answer was lost can be made again.
const BATCH: usize = 256;
/// Bytes of one request, well below what the server takes.
const BATCH_BYTES: usize = 900_000;
/// Lines rejected or not sent that are printed; more are only counted.
const LISTED_MAX: usize = 20;
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before each further try of a request that was turned away for now.
const PAUSES: [Duration; 5] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
const CANNOT_READ: &str = "cannot read the events";
/// Too many requests; service unavailable.
const FOR_NOW: [u16; 2] = [429, 503];

/// Sends the file's events, in order. Prints how many were taken, and what was rejected.
///
/// # Errors
/// When the file cannot be read, the server cannot be reached or refuses a request, or some events were rejected or not sent.
pub fn send(args: &SendArgs) -> Result<()> {
    send_with(args, thread::sleep)
}

/// As [`send`]; `wait` passes the time between two tries.
fn send_with(args: &SendArgs, wait: impl Fn(Duration)) -> Result<()> {
    ensure!(
        args.token.as_deref().is_none_or(|text| Token::parse(text).is_some()),
        "the token must be {}: give the one that `endcap up` was started with",
        Token::WANTED
    );
    let mut input: Box<dyn BufRead> = match args.file.as_str() {
        "-" => Box::new(BufReader::new(io::stdin())),
        path => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {path}"))?)),
    };
    let server = Server::new(args);
    let mut sent = Sent::default();
    let done = each_batch(&mut input, args.from_line, &mut |batch| {
        sent.from = batch.first;
        let events: Vec<&[u8]> = batch.lines.iter().map(|line| line.text.as_slice()).collect();
        let answer = if events.is_empty() { Value::Null } else { server.take(&events.join(&b'\n'), &wait)? };
        sent.count(batch, &answer)
    });
    for line in &sent.listed {
        eprintln!("{line}");
    }
    let more = (sent.rejected + sent.too_long).saturating_sub(sent.listed.len());
    if more > 0 {
        eprintln!("… and {more} more");
    }
    if sent.any {
        done.with_context(|| format!("sending broke off ({sent}): send the rest with --from-line {}", sent.from))?;
    } else {
        done?;
    }
    println!("{sent}");
    sent.check()
}

/// What became of the events sent.
#[derive(Debug, Default)]
struct Sent {
    taken: usize,
    repeated: usize,
    rejected: usize,
    /// Not sent.
    too_long: usize,
    /// The first that were rejected or not sent, for people.
    listed: Vec<String>,
    /// Whether the server answered for anything.
    any: bool,
    /// The line of the first event that it did not answer for.
    from: usize,
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
                _ => {
                    self.rejected += 1;
                    self.list(line.number, result["reason"].as_str().unwrap_or("no reason given"));
                }
            }
        }
        for line in &batch.too_long {
            self.too_long += 1;
            self.list(*line, &format!("longer than {BATCH_BYTES} bytes, not sent"));
        }
        (self.any, self.from) = (true, batch.last + 1);
        Ok(())
    }

    /// Whether everything was taken.
    fn check(&self) -> Result<()> {
        match (self.rejected, self.too_long) {
            (0, 0) => Ok(()),
            (rejected, 0) => bail!("{rejected} events were rejected: `endcap dlq ls` lists them with their reasons"),
            (0, unsent) => bail!("{unsent} lines are too long and were not sent: no dead letter holds them"),
            (rejected, unsent) => bail!(
                "{rejected} events were rejected: `endcap dlq ls` lists them with their reasons; {unsent} lines are too long and were \
                 not sent: no dead letter holds them"
            ),
        }
    }

    fn list(&mut self, line: usize, reason: &str) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(format!("line {line}: {}", printable(reason)));
        }
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} taken, {} repeated, {} rejected", self.taken, self.repeated, self.rejected)?;
        if self.too_long > 0 { write!(f, ", {} not sent", self.too_long) } else { Ok(()) }
    }
}

/// What one request sends.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    lines: Vec<Line>,
    /// Lines that no request can hold.
    too_long: Vec<usize>,
    bytes: usize,
    /// The first and the last line of the file that belong to it; 0 while nothing does.
    first: usize,
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
        if self.first == 0 {
            self.first = number;
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

/// Hands batches of events to `post`, those that begin on line `from_line` or later: lines as they are, an array as its members.
fn each_batch(input: &mut dyn BufRead, from_line: usize, post: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<()> {
    if input.fill_buf().context(CANNOT_READ)?.starts_with(BOM) {
        input.consume(BOM.len());
    }
    let starts_array = input.fill_buf().context(CANNOT_READ)?.trim_ascii_start().starts_with(b"[");
    let mut batch = Batch::default();
    if starts_array {
        let mut text = Vec::new();
        input.read_to_end(&mut text).context(CANNOT_READ)?;
        let members: Vec<&RawValue> =
            serde_json::from_slice(&text).context("cannot read the events: not a JSON array, nothing was sent")?;
        let (mut line, mut from) = (1, 0);
        for member in members {
            let at = member.get().as_ptr().addr() - text.as_ptr().addr();
            line += text[from..at].iter().filter(|byte| **byte == b'\n').count();
            from = at;
            // Between the parts of a JSON value a line's end is a space like any other.
            if line >= from_line {
                batch.add(line, member.get().replace(['\n', '\r'], " ").as_bytes(), post)?;
            }
        }
    } else {
        let (mut line, mut text) = (0, Vec::new());
        while read_line(input, &mut text).context(CANNOT_READ)? {
            line += 1;
            if line >= from_line && !text.trim_ascii().is_empty() {
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

/// Who takes the events.
struct Server<'a> {
    agent: ureq::Agent,
    url: String,
    token: Option<&'a str>,
}

impl<'a> Server<'a> {
    fn new(args: &'a SendArgs) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().new_agent();
        Self { agent, url: format!("{}/v1/events", args.to), token: args.token.as_deref() }
    }

    /// Sends `body`; where the server turns it away for now, again after each of the pauses.
    fn take(&self, body: &[u8], wait: &impl Fn(Duration)) -> Result<Value> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let (status, answer) = self.request(body)?;
            if status.is_success() {
                return Ok(answer);
            }
            let refusal = format!("{} answered {status}: {}", self.url, answer["error"].as_str().unwrap_or("no reason given"));
            let Some(pause) = pauses.next().filter(|_| FOR_NOW.contains(&status.as_u16())) else { bail!(refusal) };
            eprintln!("{refusal}; trying again in {} s", pause.as_secs_f64());
            wait(pause);
        }
    }

    fn request(&self, body: &[u8]) -> Result<(ureq::http::StatusCode, Value)> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/x-ndjson");
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let cannot_reach = || format!("cannot reach {}: is `endcap up` running there?", self.url);
        let mut response = request.send(body).with_context(cannot_reach)?;
        Ok((response.status(), response.body_mut().read_json().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use serde_json::json;

    use super::*;

    fn batches(text: &[u8]) -> Vec<Batch> {
        batches_from(text, 1)
    }

    fn batches_from(text: &[u8], from_line: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        each_batch(&mut &*text, from_line, &mut |batch| {
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
        check("\u{feff}{}\n{}", &[(1, "{}"), (2, "{}")]);
        check("\u{feff}\n[{}]", &[(2, "{}")]);
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

    #[test]
    fn an_array_that_is_broken_is_not_sent_and_tells_the_line() {
        for text in [&b"[{},\n{\"id\":\n}]"[..], b"[{},\n{},\n\"\xe9\"]"] {
            let error = each_batch(&mut &*text, 1, &mut |_| panic!("sent")).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("nothing was sent") && error.contains("at line 3 column"), "{error}");
        }
    }

    #[test]
    fn sending_goes_on_from_a_line() {
        for (text, from_line, expected) in [
            ("{}\n\n{}\n{}\n", 3, vec![3, 4]),
            ("{}\n", 2, vec![]),
            ("[{},\n{}, {},\n\n{}]", 2, vec![2, 2, 4]),
            ("[{}, {}]", 1, vec![1, 1]),
        ] {
            let batches = batches_from(text.as_bytes(), from_line);
            let lines: Vec<usize> = batches.iter().flat_map(|batch| &batch.lines).map(|line| line.number).collect();
            assert_eq!(lines, expected, "{text:?} from {from_line}");
        }
    }

    /// A server that answers so many requests with these statuses and is gone then; gives its address.
    fn server(statuses: Vec<u16>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for status in statuses {
                answer(&listener, status);
            }
        });
        format!("http://{address}")
    }

    fn answer(listener: &TcpListener, status: u16) {
        let mut input = BufReader::new(listener.accept().unwrap().0);
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
        let answer = if status == 200 { json!({ "results": results }) } else { json!({ "error": "not now" }) }.to_string();
        let head = format!("HTTP/1.1 {status} Told\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
        input.get_mut().write_all((head + &answer).as_bytes()).unwrap();
    }

    /// Sends two requests' events to a server that answers so; gives what came of it and the pauses made.
    fn sent_to(statuses: &[u16]) -> (Result<()>, Vec<Duration>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "\n{}\n".repeat(BATCH + 1)).unwrap();
        let args = SendArgs { file: path.display().to_string(), to: server(statuses.to_vec()), token: None, from_line: 1 };
        let pauses = RefCell::new(Vec::new());
        let done = send_with(&args, |pause| pauses.borrow_mut().push(pause));
        (done, pauses.into_inner())
    }

    #[test]
    fn a_request_that_is_turned_away_for_now_is_made_again() {
        let (done, pauses) = sent_to(&[503, 200, 429, 503, 200]);
        done.unwrap();
        assert_eq!(pauses, [PAUSES[0], PAUSES[0], PAUSES[1]]);
    }

    #[test]
    fn where_sending_breaks_off_the_line_to_go_on_from_is_told() {
        let from = format!("(256 taken, 0 repeated, 0 rejected): send the rest with --from-line {}", BATCH * 2 + 2);
        let out_of_patience = [&[200][..], &[503; PAUSES.len() + 1]].concat();
        for (statuses, pauses, reason) in
            [(&[200][..], 0, "cannot reach"), (&[200, 500], 0, "500"), (&out_of_patience, PAUSES.len(), "503")]
        {
            let (done, paused) = sent_to(statuses);
            let error = format!("{:#}", done.unwrap_err());
            assert!(error.contains(&from) && error.contains(reason) && paused.len() == pauses, "{error}");
        }
        let error = format!("{:#}", sent_to(&[401]).0.unwrap_err());
        assert!(error.contains("401") && !error.contains("--from-line"), "{error}");
    }

    #[test]
    fn what_was_rejected_is_told_by_its_line() {
        let mut sent = Sent::default();
        let [batch] = &batches(b"a\n\nb\nc\n")[..] else { panic!("one batch") };
        let results = json!([{ "status": "accepted" }, { "status": "rejected", "reason": "no" }, { "status": "repeated" }]);
        sent.count(batch, &json!({ "results": results })).unwrap();
        assert_eq!((sent.to_string().as_str(), sent.from), ("1 taken, 1 repeated, 1 rejected", 5));
        assert_eq!(sent.listed, ["line 3: no"]);
        assert!(sent.check().unwrap_err().to_string().ends_with("lists them with their reasons"));
        sent.count(batch, &json!({ "results": [] })).unwrap_err();
    }

    #[test]
    fn what_was_not_sent_is_told_apart_from_what_was_rejected() {
        let mut sent = Sent::default();
        let [batch] = &batches(format!("a\n{}\n", "x".repeat(BATCH_BYTES + 1)).as_bytes())[..] else { panic!("one batch") };
        sent.count(batch, &json!({ "results": [{ "status": "accepted" }] })).unwrap();
        assert_eq!(sent.to_string(), "1 taken, 0 repeated, 0 rejected, 1 not sent");
        let fault = sent.check().unwrap_err().to_string();
        assert!(fault.contains("no dead letter") && !fault.contains("dlq"), "{fault}");
    }
}
