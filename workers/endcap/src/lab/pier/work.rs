//! A unit of work, from data to figures.

use std::{ops::ControlFlow, sync::atomic::Ordering};

use anyhow::Result;
use endcap_ranker::{
    pier::{
        Fpsm, FpsmSetting, Joint, Kind, Model, Ocpm, Progress, Schedule, best,
        fpsm::{BITS_MAX, Places},
        train,
    },
    seed,
};

use super::{
    Stop,
    candidates::{Bench, Generator},
    judge::{accuracy, arranging},
    keep::{Keep, Outcome},
    oracle::oracle,
    plan::{FROZEN, JointSetting, OCPM, PIER, Scale, Unit, Work},
    search::search,
    world::World,
};

const WEIGHTS_SEED: u64 = 2;
const TRAIN_SEED: u64 = 3;
const JOINT_SEED: u64 = 4;
const FPSM_SEED: u64 = 5;
/// Adam's rate (section 5.1.3).
const RATE: f32 = 1e-3;
/// Age in which a behaviour loses half its weight: three days.
pub(super) const HALF_LIFE_MS: f64 = 3.0 * 86_400_000.0;

/// What is to be done, with what.
pub(super) struct Job<'a> {
    pub(super) unit: Unit,
    pub(super) world: &'a World,
    pub(super) scale: &'a Scale,
    pub(super) keep: &'a Keep,
    pub(super) stop: Stop<'a>,
    /// Hears how many more pages were trained on.
    pub(super) pages: &'a (dyn Fn(usize) + Sync),
}

impl Job<'_> {
    /// Does it, and keeps what came of it.
    ///
    /// # Errors
    /// When it was stopped, or its results cannot be kept.
    pub(super) fn run(&self) -> Result<()> {
        let mut outcome = Outcome::default();
        match &self.unit.work {
            Work::Alone(kind) => self.alone(*kind, &mut outcome)?,
            Work::Joint(setting) => self.joint(setting, &mut outcome)?,
            Work::Search => {
                let model = self.world.model(self.keep, PIER, OCPM_WHOLE)?;
                search(
                    self.world,
                    &model,
                    &self.fpsm(Places::Plain, true, false),
                    self.keep,
                    self.scale,
                    self.stop,
                    &mut outcome,
                )?;
            }
            Work::Oracle(times) => oracle(self.world, *times, self.scale, self.stop, &mut outcome)?,
        }
        self.keep.put(self.unit.name, self.world.seed, &outcome)
    }

    fn alone(&self, kind: Kind, outcome: &mut Outcome) -> Result<()> {
        let point = if kind == Kind::Dnn { &[][..] } else { self.world.point(self.keep)? };
        let mut model = Model::new(kind, &self.world.dataset.vocabulary, self.seed(WEIGHTS_SEED));
        let schedule = Schedule { epochs: self.scale.epochs, by_validation: true, ..self.schedule(TRAIN_SEED) };
        self.train(&mut model, point, &schedule, None, outcome)?;
        accuracy(&model, self.world, point, outcome)?;
        arranging(&model, self.world, point, self.stop, outcome)?;
        if matches!(self.unit.name, OCPM) || kind == Kind::Dnn {
            self.keep.put_weights(self.unit.name, self.world.seed, &model.weights().to_bytes())?;
        }
        Ok(())
    }

    fn joint(&self, setting: &JointSetting, outcome: &mut Outcome) -> Result<()> {
        let point = self.world.point(self.keep)?;
        let mut model = self.world.model(self.keep, OCPM, OCPM_WHOLE)?;
        let fpsm = self.fpsm(setting.places, setting.timed, false);
        let joint = Joint {
            alpha: setting.alpha,
            most: setting.most,
            contrast: setting.contrast,
            pages_max: self.scale.contrast_pages,
            pairs_max: 10,
            fpsm: &fpsm,
        };
        let schedule = Schedule { epochs: self.scale.joint_epochs, by_validation: false, ..self.schedule(JOINT_SEED) };
        self.train(&mut model, point, &schedule, Some(&joint), outcome)?;
        accuracy(&model, self.world, point, outcome)?;
        let bench = Bench::new(self.world, &model, point)?;
        let paper = [FROZEN, PIER].contains(&self.unit.name);
        let frozen = if self.unit.name == FROZEN {
            outcome.best = self.best_orders(&bench)?;
            outcome.best.clone()
        } else {
            self.keep.outcome(FROZEN, self.world.seed).map(|outcome| outcome.best).unwrap_or_default()
        };
        let mut generators = vec![Generator::Fpsm("fpsm", fpsm)];
        if paper {
            // The same evaluator, read in other ways.
            let read = |name, places, ties_by_rank| Generator::Fpsm(name, self.fpsm(places, true, ties_by_rank));
            generators.extend([read("centred", Places::Centred, false), read("by_rank", Places::Plain, true)]);
            generators.extend([Generator::Chance, Generator::Beam, Generator::All]);
            self.keep.put_weights(self.unit.name, self.world.seed, &model.weights().to_bytes())?;
        }
        bench.hit_ratios(&generators, &frozen, self.stop, outcome)?;
        bench.costs(&generators, self.scale, outcome)
    }

    fn best_orders(&self, bench: &Bench) -> Result<Vec<usize>> {
        let of_slate = |page: &u32| {
            self.stop.heed()?;
            Ok(best(&bench.values(*page)?).unwrap_or(0))
        };
        self.world.slates.iter().map(of_slate).collect()
    }

    fn train(
        &self,
        model: &mut Model,
        point: &[f32],
        schedule: &Schedule,
        joint: Option<&Joint>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut told = 0;
        let mut heard = |Progress { done, .. }: Progress| {
            (self.pages)(done - told);
            told = done;
            if self.stop.0.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let losses = train(model, &self.world.dataset, point, schedule, joint, &mut heard)?;
        outcome.set("epochs", losses.len() as f64);
        Ok(())
    }

    fn schedule(&self, purpose: u64) -> Schedule {
        Schedule { batch: self.scale.batch, rate: RATE, epochs: 0, by_validation: false, seed: self.seed(purpose) }
    }

    fn seed(&self, purpose: u64) -> u64 {
        seed(&[self.world.seed, purpose])
    }

    fn fpsm(&self, places: Places, timed: bool, ties_by_rank: bool) -> Fpsm {
        let half_life_ms = timed.then_some(HALF_LIFE_MS);
        Fpsm::new(FpsmSetting { places, bits: BITS_MAX, half_life_ms, ties_by_rank, seed: self.seed(FPSM_SEED) })
    }
}

/// The evaluator of PIER.
const OCPM_WHOLE: Kind = Kind::Ocpm(Ocpm::WHOLE);
