//! What happens when: drawn from the seed alone.
//!
//! Outages of servers follow one another, as each needs its server back first. Kills, replays, and processes that come and go, fall at random
//! moments of the whole, inside outages too.

use std::time::Duration;

use endcap_tests::Draw;

use crate::{fleet::STAGES, side::Side};

/// Time that a kill has on average, ms: a process is back to work after about two seconds.
const KILL_EVERY_MS: u64 = 2_500;
/// Quiet between two outages, ms.
const QUIET_MS: (u64, u64) = (4_000, 9_000);
/// How long a broker is down, ms.
const BROKER_DOWN_MS: (u64, u64) = (2_000, 8_000);
/// How long a store is slow, ms.
const SLOW_MS: (u64, u64) = (6_000, 12_000);
/// How long the disk is full, ms.
const FULL_MS: (u64, u64) = (3_000, 8_000);
/// After a replay began, the moment in which it may be killed, ms.
const REPLAY_DIES_MS: (u64, u64) = (1_000, 4_000);
/// How long a process of a stage that comes besides stays, ms.
const GUEST_MS: (u64, u64) = (4_000, 10_000);

/// What a run shall be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) seed: u64,
    pub(crate) kills: u32,
    /// How long the store is down at once.
    pub(crate) outage: Duration,
    pub(crate) side: Side,
}

/// How a server goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// As a crash would have it.
    Killed,
    /// In order.
    Stopped,
    /// It holds still, and its connections stay.
    Paused,
}

/// What is done to the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// A process ends at once. The number draws which.
    Kill(u64),
    /// One more process of a stage comes.
    Guest(&'static str),
    /// A process that came besides leaves: in order, or killed.
    GuestLeaves {
        killed: bool,
    },
    /// What the log holds is replayed: contexts, or events.
    Replay(&'static str),
    /// The replay in work is killed, and resumed.
    ReplayDies,
    /// The broker goes, and comes back.
    Broker(How),
    BrokerBack(How),
    /// The store goes, and comes back.
    Store(How),
    StoreBack(How),
    /// The store answers in short breaths, and does well again.
    Slow,
    Swift,
    /// Nothing can be written to the disk, and it has room again.
    Full,
    Room,
}

/// Deeds with their moments, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) deeds: Vec<(Duration, Deed)>,
}

impl Schedule {
    /// The schedule of a wish.
    pub(crate) fn draw(wish: &Wish) -> Self {
        let mut draw = Draw::new(wish.seed, "schedule");
        let mut deeds = Vec::new();
        let mut at_ms = 3_000;
        for (first, last, lasts_ms) in outages(wish, &mut draw) {
            deeds.push((at_ms, first));
            deeds.push((at_ms + lasts_ms, last));
            at_ms += lasts_ms + draw.between(QUIET_MS.0, QUIET_MS.1);
        }
        let end_ms = at_ms.max(u64::from(wish.kills) * KILL_EVERY_MS);
        for _ in 0..wish.kills {
            deeds.push((draw.below(end_ms), Deed::Kill(draw.below(1 << 20))));
        }
        for _ in 0..(wish.kills / 6).max(2) {
            let (at_ms, stays_ms) = (draw.below(end_ms), draw.between(GUEST_MS.0, GUEST_MS.1));
            deeds.push((at_ms, Deed::Guest(STAGES[draw.place(STAGES.len())])));
            deeds.push((at_ms + stays_ms, Deed::GuestLeaves { killed: draw.per_mille(300) }));
        }
        for round in 0..2 + wish.kills / 60 {
            // Late enough to have something to replay.
            let at_ms = end_ms / 3 + draw.below(end_ms / 2);
            deeds.push((at_ms, Deed::Replay(["contexts", "events"][round as usize % 2])));
            deeds.push((at_ms + draw.between(REPLAY_DIES_MS.0, REPLAY_DIES_MS.1), Deed::ReplayDies));
        }
        deeds.sort_by_key(|(at_ms, _)| *at_ms);
        Self { deeds: deeds.into_iter().map(|(at_ms, deed)| (Duration::from_millis(at_ms), deed)).collect() }
    }

    /// How long it takes, s.
    pub(crate) fn seconds(&self) -> u64 {
        self.deeds.last().map_or(0, |(at, _)| at.as_secs())
    }
}

/// Outages with their length, ms: at least one of every sort, more of them in long runs.
fn outages(wish: &Wish, draw: &mut Draw) -> Vec<(Deed, Deed, u64)> {
    const HOW: [How; 3] = [How::Killed, How::Stopped, How::Paused];
    let rounds = 1 + wish.kills / 60;
    let outage_ms = u64::try_from(wish.outage.as_millis()).unwrap_or(u64::MAX);
    let mut outages = Vec::new();
    for round in 0..rounds {
        let how = HOW[round as usize % HOW.len()];
        outages.push((Deed::Store(how), Deed::StoreBack(how), outage_ms));
        outages.push((Deed::Slow, Deed::Swift, draw.between(SLOW_MS.0, SLOW_MS.1)));
        match wish.side {
            Side::File => outages.push((Deed::Full, Deed::Room, draw.between(FULL_MS.0, FULL_MS.1))),
            // Not stopped: see `docs/faults.md` on a broker that is the only replica.
            Side::Servers => {
                for how in [How::Killed, How::Paused] {
                    outages.push((Deed::Broker(how), Deed::BrokerBack(how), draw.between(BROKER_DOWN_MS.0, BROKER_DOWN_MS.1)));
                }
            }
        }
    }
    draw.shuffle(&mut outages);
    outages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(seed: u64, side: Side) -> Wish {
        Wish { seed, kills: 130, outage: Duration::from_secs(60), side }
    }

    #[test]
    fn a_schedule_follows_from_its_seed_and_holds_what_was_wished_for() {
        for side in [Side::File, Side::Servers] {
            let schedule = Schedule::draw(&wish(7, side));
            assert_eq!(schedule, Schedule::draw(&wish(7, side)));
            assert_ne!(schedule, Schedule::draw(&wish(8, side)));
            let count = |is: fn(&Deed) -> bool| schedule.deeds.iter().filter(|(_, deed)| is(deed)).count();
            assert_eq!(count(|deed| matches!(deed, Deed::Kill(_))), 130);
            assert_eq!(count(|deed| matches!(deed, Deed::Guest(_))), count(|deed| matches!(deed, Deed::GuestLeaves { .. })));
            assert_eq!(count(|deed| matches!(deed, Deed::Store(_))), 3);
            assert_eq!(count(|deed| matches!(deed, Deed::Broker(_))) > 0, side == Side::Servers);
            assert_eq!(count(|deed| matches!(deed, Deed::Full)) > 0, side == Side::File);
            assert!(schedule.deeds.is_sorted_by_key(|(at, _)| *at));
        }
    }

    #[test]
    fn one_outage_ends_before_the_next_begins() {
        let schedule = Schedule::draw(&wish(3, Side::Servers));
        let mut open = None;
        for (_, deed) in &schedule.deeds {
            match deed {
                Deed::Broker(_) | Deed::Store(_) | Deed::Slow | Deed::Full => assert_eq!(open.replace(*deed), None),
                Deed::BrokerBack(_) | Deed::StoreBack(_) | Deed::Swift | Deed::Room => assert!(open.take().is_some()),
                Deed::Kill(_) | Deed::Guest(_) | Deed::GuestLeaves { .. } | Deed::Replay(_) | Deed::ReplayDies => {}
            }
        }
        assert_eq!(open, None);
    }
}
