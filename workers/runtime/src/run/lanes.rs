//! The lanes of a stage, which share it. Live records go first; the backfill lane takes the time that they leave and, while both have work,
//! one batch in so many. A batch in work is never cut short, so a live record waits for one backfill batch at most; one whose dependency does
//! not answer is put off, and no wait of the backfill lane is slept on the stage's thread.

use std::{iter, time::Duration};

use endcap_schemas::topics::Lane;
use tracing::error;

use super::{Run, StageStopped};
use crate::{LaneSnapshot, Log, Stage, StageEnv, metric};

/// How soon the backfill lane is looked at again after it had work. Each look in vain doubles it, up to the wait of a poll.
const LOOK_FIRST: Duration = Duration::from_millis(5);

/// The lanes of one stage.
pub(super) struct Lanes<'a, S: Stage> {
    live: Run<'a, S>,
    /// `None` where there is none, or it has stopped.
    backfill: Option<Run<'a, S>>,
    share: Share,
    look: Duration,
    env: &'a StageEnv,
}

impl<'a, S: Stage> Lanes<'a, S> {
    pub(super) fn new(live: Box<dyn Log + 'a>, backfill: Option<Box<dyn Log + 'a>>, env: &'a StageEnv) -> Self {
        let backfill = backfill.map(|log| Run::new(Lane::Backfill, log, env));
        let share = Share { every: env.config.backfill_share, passed_over: 0 };
        Self { live: Run::new(Lane::Live, live, env), backfill, share, look: LOOK_FIRST, env }
    }

    pub(super) fn turn_until_shutdown(&mut self, stage: &mut S) -> Result<(), StageStopped> {
        while !self.env.shutdown.is_triggered() {
            self.fill()?;
            let backfill = self.is_backfill_due();
            self.live.pending.is_hurried = backfill;
            match self.share.next(self.live.is_due(), backfill) {
                Some(Lane::Live) => self.live.turn(stage)?,
                Some(Lane::Backfill) => self.turn_backfill(stage)?,
                None => self.look = (self.look * 2).min(self.env.config.poll_wait),
            }
            self.tell();
        }
        Ok(())
    }

    /// Tells how both lanes stand between two turns.
    fn tell(&self) {
        let now_ms = self.env.clocks.wall.now_ms();
        self.env.stats.update(|s| {
            s.alive_ms = now_ms;
            for run in iter::once(&self.live).chain(&self.backfill) {
                let lane = s.lane_mut(run.lane);
                (lane.held, lane.at_work) = (run.held(), None);
            }
        });
    }

    /// Polls both lanes. Waiting is done on the live one, so that its records are taken at once.
    fn fill(&mut self) -> Result<(), StageStopped> {
        let mut wait = self.env.config.poll_wait;
        if let Some(backfill) = &mut self.backfill {
            backfill.fill(Duration::ZERO)?;
            wait = if backfill.is_due() { Duration::ZERO } else { wait.min(self.look) };
        }
        self.live.fill(wait)
    }

    fn is_backfill_due(&self) -> bool {
        self.backfill.as_ref().is_some_and(Run::is_due)
    }

    /// A turn of the backfill lane. Where its records fail one after the other it stops, and the live lane goes on.
    fn turn_backfill(&mut self, stage: &mut S) -> Result<(), StageStopped> {
        self.look = LOOK_FIRST;
        let Some(backfill) = &mut self.backfill else { return Ok(()) };
        match backfill.turn(stage) {
            Err(StageStopped::Breaker { faults, of, last, .. }) => {
                self.stop_backfill(format!(
                    "{faults} of its last {of} records failed, last with `{last}`; mend the cause and start the stage again"
                ));
                Ok(())
            }
            turned => turned,
        }
    }

    /// Leaves the backfill lane, and with it its group: its partitions go to other processes of the stage.
    fn stop_backfill(&mut self, cause: String) {
        error!(stage = S::NAME, "the backfill lane stops until the next start, the live lane goes on: {cause}");
        metric::stopped(S::NAME, Lane::Backfill);
        self.backfill = None;
        self.env.stats.update(|s| {
            let tally = std::mem::take(&mut s.backfill.tally);
            s.backfill = LaneSnapshot { tally, trouble: Some(cause), stopped: true, ..LaneSnapshot::default() };
        });
    }
}

/// Who is next.
struct Share {
    /// While both lanes have work, the backfill lane gets one batch in so many.
    every: u32,
    /// Live batches since its last one for which it had to wait.
    passed_over: u32,
}

impl Share {
    fn next(&mut self, live: bool, backfill: bool) -> Option<Lane> {
        let is_its_turn = !live || self.passed_over + 1 >= self.every;
        match (live, backfill) {
            (false, false) => None,
            (_, true) if is_its_turn => {
                self.passed_over = 0;
                Some(Lane::Backfill)
            }
            _ => {
                self.passed_over += u32::from(backfill);
                Some(Lane::Live)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter per turn: who has work (`l`ive, `b`ackfill, `2` both, `-` nobody), and who gets it.
    fn turns(every: u32, work: &str) -> String {
        let mut share = Share { every, passed_over: 0 };
        let next = |work| match share.next(matches!(work, 'l' | '2'), matches!(work, 'b' | '2')) {
            Some(Lane::Live) => 'l',
            Some(Lane::Backfill) => 'b',
            None => '-',
        };
        work.chars().map(next).collect()
    }

    #[test]
    fn live_goes_first_and_backfill_takes_its_share_and_what_is_left() {
        for (every, work, got) in [
            (4, "2222222222", "lllblllbll"),
            (4, "bbbb--llll", "bbbb--llll"),
            (4, "22lllll222", "llllllllb" /* its share is kept while it has nothing */),
            (2, "222222", "lblblb"),
        ] {
            assert!(turns(every, work).starts_with(got), "{work}: {}", turns(every, work));
        }
    }
}
