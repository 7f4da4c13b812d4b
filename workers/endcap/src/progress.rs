//! Live progress on standard error: a line per stage that stays in place on a terminal, else plain lines or log events.

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tracing::Level;

use crate::{
    figures::{Figures, StageFigures},
    logging,
};

/// How often plain lines are written.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Whose figures they are, where they are not the whole job's.
const OWN: &str = "this process";

static BARS: OnceLock<MultiProgress> = OnceLock::new();
/// What this process prepares: there is one, as there is one terminal.
static DOING: Mutex<String> = Mutex::new(String::new());

fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Whether somebody watches a terminal that bars may be drawn on.
pub fn is_watched() -> bool {
    io::stderr().is_terminal() && !logging::is_json()
}

/// Writes a line about how things go.
pub fn say(line: &str) {
    logging::tell(Level::INFO, line);
}

/// Says what is prepared from now on, and keeps it for [`doing`].
pub fn begin(what: &str) {
    note(what.to_owned());
    say(what);
}

/// What is being prepared.
pub fn doing() -> String {
    DOING.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(what: String) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

/// Writes log lines to standard error, above the bars where there are some.
#[derive(Debug, Default)]
pub struct LogWriter(Vec<u8>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.0);
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(&line)),
            None => io::stderr().write_all(&line),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // A log line that cannot be written has nowhere to be reported.
        let _ = self.flush();
    }
}

/// The steps of some preparation: a bar, and plain lines from time to time where nobody watches one.
pub struct Steps {
    bar: ProgressBar,
    lines: RefCell<Lines>,
}

/// What is told in plain lines.
#[derive(Default)]
struct Lines {
    what: String,
    said: String,
    /// When more of the same may be said.
    due: Duration,
    /// How far it is: what is to be said yet, unless it was.
    newest: String,
}

impl Steps {
    /// `done` steps of `total` (0 where nobody knows) of `what` are done.
    pub fn at(&self, what: &str, done: u64, total: u64) {
        let of = if total > 0 { format!(" of {}", HumanCount(total)) } else { String::new() };
        let line = format!("{what}: {}{of}", HumanCount(done));
        self.bar.set_message(what.to_owned());
        self.bar.set_prefix(of);
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.lines.borrow_mut().tell(what, &line, self.bar.elapsed());
        note(line);
    }

    /// The steps are done.
    pub fn finish(self) {}
}

impl Drop for Steps {
    /// Takes the bar off the screen, or says how far it came.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.lines.borrow_mut().say_newest();
    }
}

impl Lines {
    fn tell(&mut self, what: &str, line: &str, now: Duration) {
        if self.what != what {
            self.say_newest();
            what.clone_into(&mut self.what);
            self.due = now;
        }
        line.clone_into(&mut self.newest);
        if now >= self.due {
            self.say_newest();
            self.due = now + PLAIN_EVERY;
        }
    }

    fn say_newest(&mut self) {
        if !is_watched() && self.said != self.newest {
            say(&self.newest);
            self.said.clone_from(&self.newest);
        }
    }
}

/// A bar over `total` steps of some preparation; invisible where nobody watches.
pub fn steps(what: &str, total: u64) -> Steps {
    let style =
        ProgressStyle::with_template("{msg:28} {bar:32.green/dim} {human_pos:>9}{prefix}  {elapsed}").expect("a valid template");
    let bar = if is_watched() { bars().add(ProgressBar::new(total)) } else { ProgressBar::hidden() };
    bar.set_style(style);
    bar.set_message(what.to_owned());
    Steps { bar, lines: RefCell::default() }
}

/// The running job's display.
pub struct Board {
    head: ProgressBar,
    stages: Vec<ProgressBar>,
    plain: Option<Duration>,
}

impl Board {
    /// A display for `stages` stages.
    pub fn new(stages: usize) -> Self {
        if !is_watched() {
            return Self { head: ProgressBar::hidden(), stages: Vec::new(), plain: Some(Duration::ZERO) };
        }
        Self { head: line("{msg}"), stages: (0..stages).map(|_| line("  {msg}")).collect(), plain: None }
    }

    /// Shows `figures`; as a plain line not every time.
    pub fn show(&mut self, figures: &Figures) {
        self.show_with(&headline(figures), &figures.stages, Duration::from_secs_f64(figures.uptime_s));
    }

    /// Shows what this process's `stages` have done since its start, `up_for` ago.
    pub fn show_own(&mut self, stages: &[StageFigures], up_for: Duration) {
        self.show_with(OWN, stages, up_for);
    }

    fn show_with(&mut self, head: &str, stages: &[StageFigures], up_for: Duration) {
        match &mut self.plain {
            Some(next) if up_for >= *next => {
                *next = up_for + PLAIN_EVERY;
                say(&plain(head, stages));
            }
            Some(_) => {}
            None => self.draw(head, stages),
        }
    }

    /// Leaves `figures`, the last ones, on the screen.
    pub fn end(&mut self, figures: &Figures) {
        self.end_with(&headline(figures), &figures.stages);
    }

    /// Leaves what this process's `stages` have done on the screen.
    pub fn end_own(&mut self, stages: &[StageFigures]) {
        self.end_with(OWN, stages);
    }

    fn end_with(&mut self, head: &str, stages: &[StageFigures]) {
        if self.plain.is_some() {
            return say(&plain(head, stages));
        }
        self.draw(head, stages);
        self.head.abandon();
        self.stages.iter().for_each(ProgressBar::abandon);
    }

    /// One line per stage and lane; a lane gets its own when there is work on it.
    fn draw(&mut self, head: &str, stages: &[StageFigures]) {
        self.head.set_message(head.to_owned());
        self.stages.extend((self.stages.len()..stages.len()).map(|_| line("  {msg}")));
        for (bar, stage) in self.stages.iter().zip(stages) {
            bar.set_message(row(stage));
        }
    }
}

/// A line that stays in place.
fn line(template: &str) -> ProgressBar {
    let bar = bars().add(ProgressBar::new_spinner());
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
    bar
}

fn headline(figures: &Figures) -> String {
    let time = |seconds: Option<f64>| seconds.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.2} s"));
    format!(
        "{} events in, {} pages out, freshness p50 {} p99 {}",
        figures.accepted,
        figures.pages.published,
        time(figures.freshness.p50),
        time(figures.freshness.p99),
    )
}

fn plain(head: &str, stages: &[StageFigures]) -> String {
    format!("{head} | {}", stages.iter().map(brief).collect::<Vec<_>>().join(" | "))
}

fn row(stage: &StageFigures) -> String {
    format!(
        "{:17} in {:>7}  out {:>7}  dropped {:>6}  dead {:>4}  waiting {:>6}  {:>7.0} tokens/s{}",
        stage.lane.named(&stage.name),
        stage.received,
        stage.passed,
        stage.dropped.values().sum::<u64>(),
        stage.dead_lettered,
        stage.waiting,
        stage.tokens_per_second,
        at_work(stage),
    )
}

fn brief(stage: &StageFigures) -> String {
    let dropped: u64 = stage.dropped.values().sum();
    format!(
        "{} in {} out {} dropped {dropped} waiting {} {:.0} tokens/s{}",
        stage.lane.named(&stage.name),
        stage.received,
        stage.passed,
        stage.waiting,
        stage.tokens_per_second,
        at_work(stage)
    )
}

/// That it has stopped; else what a stage has in hand, where that takes a while: a large batch changes no other figure until it is done.
fn at_work(stage: &StageFigures) -> String {
    if stage.stopped {
        return "  has stopped".to_owned();
    }
    stage
        .at_work
        .filter(|work| work.seconds >= 1.0)
        .map_or_else(String::new, |work| format!("  {} in work for {:.0} s", work.records, work.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::AtWorkFigures;

    #[test]
    fn a_batch_that_takes_a_while_is_told_beside_figures_that_stand_still() {
        for (at_work, told) in [
            (None, "dedup in 0 out 0 dropped 0 waiting 64 0 tokens/s"),
            (Some(AtWorkFigures { records: 64, seconds: 0.4 }), "dedup in 0 out 0 dropped 0 waiting 64 0 tokens/s"),
            (
                Some(AtWorkFigures { records: 64, seconds: 12.3 }),
                "dedup in 0 out 0 dropped 0 waiting 64 0 tokens/s  64 in work for 12 s",
            ),
        ] {
            assert_eq!(brief(&StageFigures { name: "dedup".into(), waiting: 64, at_work, ..StageFigures::default() }), told);
        }
    }
}
