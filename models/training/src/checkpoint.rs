//! A run's state in one file, replaced atomically: weights, moments, step, time used.

use std::{collections::HashMap, fs, io::Write, path::Path, time::Duration};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::{Result, TrainError, adamw::AdamW, params::Params, step::Scores};

/// How far a run has come. The generator's position is a function of `seed` and `step`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// What the run is of: data and starting weights.
    #[serde(default)]
    pub(crate) of: String,
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) elapsed: Duration,
    /// The last held-out scores, and the step after which they were taken.
    #[serde(default)]
    pub(crate) scored: Option<(u64, Scores)>,
}

const KEY: &str = "position";

pub(crate) fn save(path: &Path, params: &Params, optimiser: &AdamW, position: &Position) -> Result<()> {
    let mut views = Vec::new();
    for param in &params.0 {
        views.push((format!("weight/{}", param.name), view(&param.shape, &param.value)));
    }
    for (param, (first, second)) in params.trained().zip(&optimiser.moments) {
        views.push((format!("first/{}", param.name), view(&param.shape, first)));
        views.push((format!("second/{}", param.name), view(&param.shape, second)));
    }
    let position = serde_json::to_string(position).expect("a position is plain numbers");
    let bytes = safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), position)])))
        .map_err(|error| TrainError::content(path, error))?;
    replace(path, &bytes)
}

/// Brings `params` and `optimiser` to where a checkpoint of the same run left them; `None` where it is another run's.
pub(crate) fn load(path: &Path, of: &str, params: &mut Params, optimiser: &mut AdamW) -> Result<Option<Position>> {
    let bytes = fs::read(path).map_err(TrainError::read(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| TrainError::content(path, error))?;
    let position = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)).ok_or_else(|| {
        TrainError::content(path, "it holds no position: not a checkpoint of a training run; remove it to start afresh")
    })?;
    let position: Position = serde_json::from_str(position).map_err(|error| TrainError::content(path, error))?;
    if position.of != of {
        return Ok(None);
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| TrainError::content(path, error))?;
    let fill = |kind: &str, name: &str, into: &mut [f32]| -> Result<()> {
        let tensor = tensors.tensor(&format!("{kind}/{name}")).map_err(|error| TrainError::content(path, error))?;
        if tensor.data().len() != into.len() * 4 {
            return Err(TrainError::content(path, format!("`{name}` has another size; remove the file to start afresh")));
        }
        for (value, bytes) in into.iter_mut().zip(tensor.data().chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    };
    for param in &mut params.0 {
        fill("weight", &param.name, &mut param.value)?;
    }
    for (param, (first, second)) in params.trained().zip(&mut optimiser.moments) {
        fill("first", &param.name, first)?;
        fill("second", &param.name, second)?;
    }
    optimiser.steps = position.step;
    Ok(Some(position))
}

fn view<'a>(shape: &[usize], values: &'a [f32]) -> TensorView<'a> {
    // SAFETY: every bit pattern of an f32 is four valid bytes, and the slice outlives the view.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor's values fill its shape")
}

/// Writes `bytes` beside `path`, then moves them over it: a crash leaves the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(TrainError::write(folder))?;
    }
    let beside = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(TrainError::write(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::AdamWConfig;

    #[test]
    fn a_checkpoint_brings_back_weights_moments_and_position() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.checkpoint");
        let mut params = Params::default();
        params.push("matrix", &[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        params.push("frozen", &[1], vec![7.0]);
        params.freeze(|name| name == "frozen");
        let mut optimiser = AdamW::new(&params, AdamWConfig::default());
        optimiser.step(&mut params, &vec![vec![0.1, 0.2, 0.3, 0.4]], 0.1);
        let position = Position {
            of: "a test".into(),
            seed: 3,
            step: 1,
            tokens: 99,
            elapsed: Duration::from_millis(1_500),
            scored: Some((1, vec![("accuracy".into(), 0.5)])),
        };
        save(&path, &params, &optimiser, &position).unwrap();

        let (mut other, mut fresh) = (params.clone(), AdamW::new(&params, AdamWConfig::default()));
        other.0.iter_mut().for_each(|param| param.value.fill(0.0));
        assert_eq!(load(&path, "another", &mut other, &mut fresh).unwrap(), None);
        assert_eq!(load(&path, "a test", &mut other, &mut fresh).unwrap(), Some(position));
        assert_eq!((other, fresh), (params, optimiser));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the checkpoint");
    }

    #[test]
    fn a_checkpoint_of_another_shape_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.checkpoint");
        let mut params = Params::default();
        params.push("x", &[2], vec![1.0, 2.0]);
        let mut optimiser = AdamW::new(&params, AdamWConfig::default());
        let position = Position { of: "a test".into(), seed: 0, step: 0, tokens: 0, elapsed: Duration::ZERO, scored: None };
        save(&path, &params, &optimiser, &position).unwrap();
        let mut wider = Params::default();
        wider.push("x", &[3], vec![0.0; 3]);
        let error = load(&path, "a test", &mut wider, &mut optimiser).unwrap_err();
        assert!(error.to_string().contains("another size"), "{error}");
    }
}
