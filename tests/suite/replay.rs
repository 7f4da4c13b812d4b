//! Replays from outside: what they send, what they leave alone, and how they go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use endcap::{desk, intake::outgoing_of};
use endcap_context::FoldState;
use endcap_runtime::{Embedded, EmbeddedConfig, Received, Shutdown, Store, StoreOverview, SystemClock};
use endcap_schemas::{
    ContextChanged, Page, UserKey,
    topics::{Lane, Topic},
    wire,
};
use endcap_tests::{Endcap, Run};
use serde_json::{Value, json};

use crate::program::{PROGRAM, Place, place, purchase};

const SLOW: Topic = Topic::CONTEXTS.on(Lane::Backfill);

/// A row of the pipeline's figures.
fn row<'a>(figures: &'a Value, stage: &str, lane: &str) -> Option<&'a Value> {
    figures["stages"].as_array()?.iter().find(|row| row["name"] == stage && row["lane"] == lane)
}

/// Waits until the themes stage has got `contexts` contexts on the backfill lane and nothing waits anywhere.
fn settled(up: &Endcap, contexts: u64) {
    let is_settled = |figures: &Value| {
        let nothing_waits = figures["stages"].as_array()?.iter().all(|row| row["waiting"] == 0);
        let got = row(figures, "themes", "backfill").map_or(Some(0), |row| row["in"].as_u64())?;
        (nothing_waits && got >= contexts).then_some(())
    };
    up.wait_for("/v1/pipeline", is_settled).expect("a backfill lane that is worked off");
}

/// What a page shows, and which context it is of.
fn shown(up: &Endcap, shopper: &str) -> Value {
    let page = up.wait_for(&format!("/v1/pages/{shopper}"), |page| page["placements"].as_array().map(|_| page.clone()));
    let page = page.expect("a page");
    json!([page["event_id"], page["context_ms"], page["placements"], page["persona"]])
}

/// Replays beside a running path, on whatever sides `extra` configures.
pub(crate) fn check_beside_a_running_path(place: &Place, data: &Path, extra: &[&str]) {
    let program = Run::new(PROGRAM, data);
    let base = [&["--models", place.models.as_str(), "--shoppers", "0", "--debounce", "0s"], extra].concat();
    let up = program.up(&base).expect("a running endcap");
    let replay = |args: &[&str]| program.succeed(&[&["replay"], args].concat(), extra).expect("a replay that succeeds");
    let shoppers: Vec<String> = (0..4).map(|n| format!("shopper-{n}")).collect();
    for (round, shopper) in (0..3).flat_map(|round| shoppers.iter().map(move |shopper| (round, shopper))) {
        let event = purchase(&format!("{shopper}-{round}"), shopper, &format!("d0000{}", 1 + round));
        up.post("/v1/events", event.to_string()).unwrap();
    }
    let last = |shopper: &str, event: &str| {
        let is_last = |page: &Value| (page["event_id"] == event).then_some(());
        up.wait_for(&format!("/v1/pages/{shopper}"), is_last).expect("the page of the last event");
    };
    shoppers.iter().for_each(|shopper| last(shopper, &format!("{shopper}-2")));
    settled(&up, 0);
    let pages = || shoppers.iter().map(|shopper| shown(&up, shopper)).collect::<Vec<_>>();
    let before = pages();

    let told = replay(&["contexts", "--dry-run"]);
    for part in ["of 4 shoppers", "4 contexts would be sent", "cost: about", "nothing was written"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(replay(&["events", "--dry-run"]).contains("12 events of 4 shoppers"));
    assert!(row(&up.get("/v1/pipeline").unwrap().1, "themes", "backfill").is_none(), "a dry run sends nothing");

    let told = replay(&["contexts", "--rate", "100"]);
    assert!(told.contains("is done: 4 contexts sent, 0 shoppers are erased"), "{told}");
    settled(&up, 4);
    assert_eq!(pages(), before, "a replay of contexts makes the same pages again");
    let told = replay(&["events"]);
    assert!(told.contains("12 folded; 4 contexts sent, 0 shoppers, of whom"), "{told}");
    settled(&up, 8);
    assert_eq!(pages(), before, "so does a replay of events");

    up.post("/v1/events", purchase("new", "shopper-0", "d00009").to_string()).unwrap();
    last("shopper-0", "new");
    program.succeed(&["erase", "shopper-1"], &[&["--verify"], extra].concat()).unwrap();
    let told = replay(&["contexts", "--user", "shopper-0", "--user", "shopper-1"]);
    assert!(told.contains("is done: 1 contexts sent, 1 shoppers are erased"), "{told}");
    replay(&["events", "--user", "shopper-1"]);
    settled(&up, 9);
    assert_eq!(up.get("/v1/pages/shopper-1").unwrap().0, 404, "whoever was erased stays so");
    last("shopper-0", "new");
    let metrics = up.text("/metrics").unwrap().1;
    assert!(metrics.contains("endcap_stage_records_total{stage=\"themes\",lane=\"backfill\",verdict=\"passed\""), "{metrics}");
}

#[test]
fn a_replay_beside_a_running_path_makes_the_same_pages_and_overtakes_nobody() {
    let place = place();
    check_beside_a_running_path(&place, &place.dir.path().join("data"), &[]);
}

/// A data directory on which a bounded simulation was worked off, and how to work off what is sent to it.
struct Site {
    place: Place,
}

const SHOPPERS: &str = "12";

impl Site {
    fn new() -> Self {
        let site = Self { place: place() };
        site.work_off();
        site
    }

    fn work_off(&self) {
        let base = ["--models", &self.place.models, "--shoppers", SHOPPERS, "--events", "36", "--exit-when-drained"];
        self.program().finish(&base).unwrap();
    }

    fn program(&self) -> Run {
        self.place.program()
    }

    fn file(&self) -> Embedded {
        let data = self.place.dir.path().join("data");
        Embedded::open(endcap::data::file_in(&data), EmbeddedConfig::default(), Arc::new(SystemClock::default())).unwrap()
    }

    fn replay(&self, args: &[&str]) -> String {
        self.program().succeed(&[&["replay"], args].concat(), &[]).unwrap()
    }

    /// Pages by user.
    fn pages(&self) -> BTreeMap<String, Page> {
        let stored = self.file().pages_after(None, 1_000).unwrap();
        stored.into_iter().map(|(user, row)| (user.to_string(), desk::decode(&row.page.unwrap()).unwrap().page)).collect()
    }

    /// States by user, without their epoch, and all epochs.
    fn states(&self) -> (BTreeMap<String, Value>, Vec<i64>) {
        let file = self.file();
        let (mut states, mut epochs) = (BTreeMap::new(), Vec::new());
        for user in self.pages().into_keys() {
            let bytes = file.state(&user.parse::<UserKey>().unwrap()).unwrap().expect("a state");
            epochs.push(FoldState::decode(&bytes).unwrap().epoch());
            let mut state: Value = serde_json::from_slice(&bytes).unwrap();
            state.as_object_mut().unwrap().remove("epoch");
            states.insert(user, state);
        }
        (states, epochs)
    }

    /// Keys of all contexts on the backfill lane, in order.
    fn sent(&self) -> Vec<String> {
        self.file().records(SLOW, 0, 10_000).unwrap().into_iter().map(|record| record.key).collect()
    }
}

#[test]
fn contexts_that_are_replayed_twice_make_the_pages_of_one_replay() {
    let site = Site::new();
    let (pages, shoppers) = (site.pages(), SHOPPERS.parse::<usize>().unwrap());
    assert_eq!(pages.len(), shoppers);
    for round in 1..=2 {
        site.replay(&["contexts"]);
        assert_eq!(site.sent().len(), round * shoppers);
        site.work_off();
        assert_eq!(site.pages(), pages, "replay {round}");
        let tallies = site.file().tallies().unwrap();
        for stage in ["themes", "keywords", "dedup", "aiqa"] {
            let tally = &tallies[&Lane::Backfill.named(stage)];
            assert!(tally.is_balanced() && tally.received == (round * shoppers) as u64, "{stage}: {tally:?}");
        }
    }
}

/// Runs a replay and kills it when some of its contexts are sent, beyond the first `from`; answers its number.
fn killed(site: &Site, what: &str, from: usize) -> String {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ENDCAP_")) {
        command.env_remove(name);
    }
    command.args(["replay", what, "--rate", "1", "--data", &site.place.dir.path().join("data").display().to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let run = lines.map_while(Result::ok).find_map(|line| Some(line.strip_prefix("replay ")?.split(':').next()?.to_owned()));
    let patience = Shutdown::new();
    while site.sent().len() < from + 4 {
        assert!(child.try_wait().unwrap().is_none(), "it ends only when all are sent");
        patience.wait(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run.expect("a replay tells its number")
}

#[test]
fn a_replay_that_is_killed_goes_on_where_it_was() {
    let site = Site::new();
    let (pages, (states, _)) = (site.pages(), site.states());
    let mut wanted: Vec<String> = pages.keys().cloned().collect();
    for what in ["contexts", "events"] {
        let from = site.sent().len();
        let run = killed(&site, what, from);
        assert!(site.sent().len() < from + wanted.len(), "it was killed too late to prove anything");
        let note = site.file().producer().progress(&format!("replay/{run}")).unwrap().expect("a note of how far it is");
        let named = wanted.iter().find(|key| note.contains(key.split_once('/').expect("a key").1));
        assert_eq!(named, None, "no erasure reaches what names somebody here: {note}");
        site.replay(&["resume", &run]);
        let told = site.replay(&["resume", &run]);
        assert!(told.contains("is done"), "{told}");
        let mut sent = site.sent().split_off(from);
        sent.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(sent, wanted, "{what}: each shopper's context is sent once");
        site.work_off();
        assert_eq!(site.pages(), pages, "{what}");
    }
    let (again, epochs) = site.states();
    assert_eq!(again, states, "events folded anew are the same states");
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0] && *epoch > 0), "{epochs:?}");
}

#[test]
fn live_events_during_a_replay_of_events_are_in_the_states_that_it_makes() {
    let site = Site::new();
    let place = &site.place;
    let up = site.program().up(&["--models", &place.models, "--shoppers", "0", "--debounce", "0s"]).unwrap();
    std::thread::scope(|scope| {
        let replaying = scope.spawn(|| site.replay(&["events"]));
        let mut posted = 0;
        while !replaying.is_finished() || posted < 30 {
            let event = purchase(&format!("live{posted}"), &format!("busy-{}", posted % 3), &format!("d0000{}", 1 + posted % 9));
            assert_eq!(up.post("/v1/events", event.to_string()).unwrap().0, 200);
            posted += 1;
            // Three shoppers, each of whom buys now and then: between two purchases a replay can catch up with them.
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
        let told = replaying.join().unwrap();
        assert!(told.contains("is done"), "{told}");
        let told = site.replay(&["events"]);
        assert!(told.contains("is done"), "these shoppers were there before it began: {told}");
    });
    settled(&up, 1);
    up.interrupt().unwrap();
    up.wait().unwrap();
    let (states, epochs) = site.states();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0] && *epoch > 0), "every state was switched: {epochs:?}");
    site.replay(&["events"]);
    assert_eq!(site.states().0, states, "a fold of all events tells the same");
}

#[test]
fn a_replay_of_events_ends_although_a_shopper_never_pauses() {
    let site = Site::new();
    let up = site.program().up(&["--models", &site.place.models, "--shoppers", "0", "--debounce", "1h"]).unwrap();
    let buy = |n: usize| {
        let event = purchase(&format!("never{n}"), "never-pauses", "d00001");
        assert_eq!(up.post("/v1/events", event.to_string()).unwrap().0, 200);
    };
    buy(0);
    std::thread::scope(|scope| {
        let replaying = scope.spawn(|| site.replay(&["events"]));
        (1..).take_while(|_| !replaying.is_finished()).for_each(buy);
        let told = replaying.join().unwrap();
        assert!(told.contains("is done"), "{told}");
    });
    drop(up);
    let file = site.file();
    let epoch = |user: UserKey| FoldState::decode(&file.state(&user).unwrap().expect("a state")).unwrap().epoch();
    let (users, never) = (site.pages().into_keys().map(|key| UserKey::named(&key)), UserKey::of("never-pauses"));
    let epochs: BTreeSet<i64> = users.filter(|user| *user != never).map(epoch).collect();
    assert!(epochs.len() == 1 && !epochs.contains(&0), "everybody else's state was switched: {epochs:?}");
}

#[test]
fn a_replay_of_events_does_not_run_ahead_of_the_context_stage() {
    let site = Site::new();
    let users: Vec<UserKey> = site.pages().into_keys().map(|user| user.parse().unwrap()).collect();
    let event = |user: &UserKey| {
        let event = json!({ "tenant": user.tenant, "id": "waiting", "user": user.user, "at_ms": 1_750_000_000_000_i64,
                            "kind": "purchase", "lines": [{ "product": "d00001" }] });
        outgoing_of(&serde_json::from_value(event).unwrap()).unwrap()
    };
    site.file().producer().append(&users.iter().map(event).collect::<Vec<_>>(), None).unwrap();
    std::thread::scope(|scope| {
        // No stage runs yet; it has all the time to run ahead.
        let replaying = scope.spawn(|| site.replay(&["events"]));
        let up = site.program().up(&["--models", &site.place.models, "--shoppers", "0", "--debounce", "0s"]).unwrap();
        let told = replaying.join().unwrap();
        assert!(told.contains("is done"), "{told}");
        settled(&up, users.len() as u64);
    });
    let records = site.file().records(Topic::CONTEXTS, 0, 10_000).unwrap();
    let clock = |record: &Received| wire::decode::<ContextChanged>(&record.value).unwrap().head.context_ms;
    let clocks: BTreeSet<(&str, i64)> = records.iter().map(|record| (record.key.as_str(), clock(record))).collect();
    assert_eq!(clocks.len(), records.len(), "each context of a shopper has a time of its own");
}

#[test]
fn a_shopper_who_is_erased_while_a_replay_waits_stays_erased() {
    let site = Site::new();
    site.replay(&["contexts"]);
    site.replay(&["events"]);
    let gone = site.sent().swap_remove(SHOPPERS.parse().unwrap()); // the first of those of the second replay
    site.program().succeed(&["erase", &gone], &[]).unwrap();
    site.work_off();
    let user: UserKey = gone.parse().unwrap();
    let file = site.file();
    assert!(!site.pages().contains_key(&gone) && file.state(&user).unwrap().is_none());
    assert!(file.remains(&user).unwrap().is_empty());
    let told = site.replay(&["contexts"]);
    assert!(told.contains("11 contexts sent, 1 shoppers are erased"), "{told}");
    assert!(file.tallies().unwrap()["themes.backfill"].is_balanced());
    let run = killed(&site, "contexts", site.sent().len());
    let told = site.replay(&["resume", &run, "--rate", "1000"]);
    assert!(told.contains("11 contexts sent, 1 shoppers are erased"), "both parts are counted: {told}");
}

#[test]
fn what_a_replay_cannot_do_is_one_clear_error() {
    let site = Site::new();
    let program = site.program();
    let ends = || Topic::all().map(|topic| site.file().end(topic).unwrap()).collect::<Vec<_>>();
    let before = ends();
    for (args, code, part) in [
        (&["contexts", "--from", "yesterday"][..], 2, "give earliest, ts="),
        (&["contexts", "--rate", "0"], 2, "more than 0"),
        (&["events", "--to", "offset=3"], 2, "unexpected argument"),
        (&["contexts", "--partition", "7"], 1, "has no partition 7: its last one is 0"),
        (&["contexts", "--from", "ts=2100-01-01T00:00:00Z"], 1, "the range holds no record of endcap.context-changed.v1"),
        (&["contexts", "--from", "offset=4", "--to", "offset=2"], 1, "`--to` must lie behind `--from`"),
        (&["resume", "5"], 1, "no replay 5 was begun on this log"),
        (&["resume", "five"], 2, "invalid value 'five'"),
    ] {
        let output = program.output(&[&["replay"], args].concat(), &[]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
    assert_eq!(ends(), before, "nothing was written");
    let elsewhere = Run::new(PROGRAM, &site.place.dir.path().join("nowhere")).output(&["replay", "contexts"], &[]).unwrap();
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("no data directory at"), "{elsewhere:?}");
}
