//! `endcap replay`: pages made again of what the log holds, through the backfill lane. The log is read from outside: no group's position
//! moves. What is sent carries its context's time and the current generation, so that nothing newer is ever overwritten.

mod bounds;
mod contexts;
mod estimate;
mod events;
mod live;
mod run;
#[cfg(test)]
mod twin;

use std::{collections::BTreeMap, process, thread};

use anyhow::{Context, Result, ensure};
use endcap_runtime::{Clock, Shutdown, SystemClock};
use endcap_schemas::topics::{Lane, Topic};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

use crate::{
    cli::{Flags, ReplayArgs, ReplayCommand},
    config::Settings,
    deploy, grounds,
    manifest::Generation,
    sides::Sides,
};
pub use bounds::Bound;
use bounds::{Stretch, Wanted};
use contexts::Contexts;
use events::Events;
use run::{Mark, Note, Place, Sender};

/// Exit code of a replay that was told twice to end.
const INTERRUPTED: i32 = 130;

/// Begins a replay, goes on with one, or says what one would do.
///
/// # Errors
/// When the range is empty, log or store do not answer, or somebody asks to end: then it says how to go on.
pub fn command(command: &ReplayCommand, settings: impl FnOnce(Flags) -> Result<Settings>) -> Result<()> {
    let place = match command {
        ReplayCommand::Contexts { args, .. } | ReplayCommand::Events { args } => &args.place,
        ReplayCommand::Resume { place, .. } => place,
    };
    let mut settings = settings(place.flags())?;
    let sides = Sides::open_existing(&settings.config)?;
    let active =
        deploy::generation(&*sides.store, None)?.context("no stage has run on this data yet: start `endcap up` first")?;
    settings.path = active.manifest.settings.path(&settings.path).context("cannot replay under the active manifest")?;
    let replay = Replay { sides, settings, active, clock: SystemClock::default() };
    match command {
        ReplayCommand::Contexts { args, to } => replay.contexts(args, *to),
        ReplayCommand::Events { args } => replay.events(args),
        ReplayCommand::Resume { run, rate, .. } => replay.resume(*run, *rate),
    }
}

struct Replay {
    /// Those of the active manifest.
    settings: Settings,
    sides: Sides,
    active: Generation,
    clock: SystemClock,
}

impl Replay {
    fn contexts(&self, args: &ReplayArgs, to: Option<Bound>) -> Result<()> {
        let wanted = Wanted { from: args.from, to, partitions: args.partition.clone() };
        let mut stretches = self.stretches(&wanted, Topic::CONTEXTS)?;
        bounds::not_empty(&stretches, Topic::CONTEXTS)?;
        stretches.extend(self.stretches(&wanted.behind(), Topic::CONTEXTS.on(Lane::Backfill))?);
        let note = self.note(args, wanted.is_whole(), stretches, Place::Contexts { stretch: 0, next: 0 });
        self.send_contexts(note, args.dry_run)
    }

    fn events(&self, args: &ReplayArgs) -> Result<()> {
        let wanted = Wanted { from: args.from, to: None, partitions: args.partition.clone() };
        let stretches = self.stretches(&wanted, Topic::EVENTS)?;
        bounds::not_empty(&stretches, Topic::EVENTS)?;
        let to: BTreeMap<i32, i64> = stretches.iter().map(|stretch| (stretch.partition, stretch.to)).collect();
        let note = self.note(args, wanted.is_whole(), stretches, Place::Events { pass: 1, to, stretch: 0, after: None });
        self.fold_events(note, args.dry_run)
    }

    fn resume(&self, run: i64, rate: Option<f64>) -> Result<()> {
        let mut note = Note::of(&*self.sides.log, run)?;
        note.rate = rate.or(note.rate);
        match note.place {
            Place::Contexts { .. } => self.send_contexts(note, false),
            Place::Events { .. } => self.fold_events(note, false),
            Place::Done => {
                println!("replay {run} is done: {} contexts were sent", note.sent);
                Ok(())
            }
        }
    }

    fn stretches(&self, wanted: &Wanted, topic: Topic) -> Result<Vec<Stretch>> {
        wanted.stretches(&*self.sides.log, topic, self.clock.now_ms())
    }

    fn note(&self, args: &ReplayArgs, is_whole: bool, stretches: Vec<Stretch>, place: Place) -> Note {
        let run = self.clock.now_ms();
        let users = args.user.iter().map(|user| Mark::of(run, &user.to_string())).collect();
        Note { run, generation: None, stretches, users, is_whole, rate: args.rate, sent: 0, erased: 0, place }
    }

    fn send_contexts(&self, mut note: Note, dry_run: bool) -> Result<()> {
        let (generation, expires_ms) = (self.active.number, self.settings.path.context.expires_ms());
        let mut contexts = Contexts { sides: &self.sides, clock: &self.clock, generation, expires_ms };
        let found = contexts.find(&note)?;
        let unreadable = if found.unreadable > 0 { format!(", {} of them unreadable", found.unreadable) } else { String::new() };
        let what = format!("{} contexts of {} shoppers{unreadable}", found.records, found.shoppers());
        if dry_run {
            let erased = contexts.erased(&found)?;
            return self.tell_dry(&format!("{what}; {erased} shoppers are erased"), found.shoppers() - erased);
        }
        contexts.generation = self.generation(&mut note)?;
        self.begin(&mut note, &what)?;
        self.guarded(note.run, |shutdown| {
            let mut sender = Sender::new(&*self.sides.log, &self.clock, shutdown, note.rate);
            contexts.send(&found, &mut note, &mut sender)
        })?;
        println!("replay {} is done: {} contexts sent, {} shoppers are erased", note.run, note.sent, note.erased);
        Ok(())
    }

    fn fold_events(&self, mut note: Note, dry_run: bool) -> Result<()> {
        let market = grounds::open_existing(&self.settings.config)?;
        let mut events = Events {
            sides: &self.sides,
            market: &market,
            config: &self.settings.path.context,
            clock: &self.clock,
            generation: self.active.number,
            manifest: &self.active.manifest,
        };
        let found = events.find(&note)?;
        let what = format!("{} events of {} shoppers", found.events, found.count());
        if let Some(forgotten) = events.forgotten(&note.stretches)? {
            println!("{forgotten}");
        }
        if dry_run {
            return self.tell_dry(&what, found.count());
        }
        events.generation = self.generation(&mut note)?;
        self.begin(&mut note, &what)?;
        let told = self.guarded(note.run, |shutdown| {
            let mut sender = Sender::new(&*self.sides.log, &self.clock, shutdown, note.rate);
            events.run(&found, &mut note, &mut sender)
        })?;
        let became: Vec<String> = told.events.iter().map(|(what, count)| format!("{count} {what}")).collect();
        println!(
            "replay {} is done in {} passes: {}; {} contexts sent, {} shoppers, of whom nothing is left to be known, stay as they are",
            note.run,
            told.passes,
            became.join(", "),
            note.sent,
            told.kept.len(),
        );
        if told.overtaken > 0 {
            println!(
                "{} shoppers never paused for as long as a pass takes: they keep what live events make of them, until a later replay",
                told.overtaken
            );
        }
        Ok(())
    }

    fn tell_dry(&self, what: &str, contexts: u64) -> Result<()> {
        println!("{what}\n{contexts} contexts would be sent\n{}", estimate::cost(contexts, &self.sides.tallies()?));
        println!("nothing was written");
        Ok(())
    }

    /// The generation that `note` is sent under: the active manifest's, which is deployed once more for that. So what is made again of a context
    /// wins against what was made of it before, though models and settings are the same and the catalogue alone is another one.
    fn generation(&self, note: &mut Note) -> Result<i32> {
        let Some(number) = note.generation else {
            let number = deploy::again(&*self.sides.store, &self.active.manifest, &self.clock)?;
            note.generation = Some(number);
            return Ok(number);
        };
        let own = deploy::named(&*self.sides.store, number)?;
        ensure!(
            own.manifest == self.active.manifest,
            "the pipeline was deployed anew since replay {} began: begin a new one",
            note.run
        );
        Ok(number)
    }

    /// Notes the run, so that it can be resumed from its first moment on, and tells its number.
    fn begin(&self, note: &mut Note, what: &str) -> Result<()> {
        Sender::new(&*self.sides.log, &self.clock, &Shutdown::new(), None).send(&[], note)?;
        println!("replay {}: {what}, as generation {}", note.run, note.generation.unwrap_or(self.active.number));
        for stretch in &note.stretches {
            tracing::info!("reading {stretch}");
        }
        Ok(())
    }

    /// Does `work` until it is done or somebody asks to end; whatever ends it early, the error says how to go on.
    fn guarded<R>(&self, run: i64, work: impl FnOnce(&Shutdown) -> Result<R>) -> Result<R> {
        let shutdown = Shutdown::new();
        end_on_signals(&shutdown)?;
        work(&shutdown).with_context(|| format!("replay {run} has stopped: `endcap replay resume {run}` goes on"))
    }
}

/// The first signal asks to end between two appends, the second one ends at once.
fn end_on_signals(shutdown: &Shutdown) -> Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS).context("cannot listen to signals")?;
    let shutdown = shutdown.clone();
    let listen = move || {
        for _ in signals.forever() {
            if shutdown.is_triggered() {
                process::exit(INTERRUPTED);
            }
            shutdown.trigger();
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen).context("cannot listen to signals")?;
    Ok(())
}
