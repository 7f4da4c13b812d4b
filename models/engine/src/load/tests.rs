use super::*;
use crate::{Bert, Decoder, DecoderConfig, DecoderWeights};

fn config() -> DecoderConfig {
    DecoderConfig {
        vocab: 20,
        hidden: 16,
        inner: 16,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        head: 8,
        eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        qkv_bias: false,
        positions: 32,
    }
}

/// A directory with a small decoder in bf16.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tensors = DecoderWeights::random(&config(), 1).unwrap().to_hf(&config()).unwrap();
    let narrow = tensors.into_iter().map(|(name, x)| (name, x.to_dtype(DType::BF16).unwrap())).collect();
    write_tensors(&dir.path().join(WEIGHTS), &narrow).unwrap();
    std::fs::write(dir.path().join(CONFIG), config().to_json().to_string()).unwrap();
    dir
}

#[test]
fn a_model_is_read_as_f32_and_its_version_follows_its_files() {
    let dir = model();
    let decoder = Decoder::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(decoder.weights().embeddings.dtype(), DType::F32);
    let version = |dir: &Path| ModelDir::open(dir).unwrap().version().unwrap();
    assert_eq!(version(dir.path()), version(model().path()), "equal files have equal versions");
    let before = version(dir.path());
    assert_eq!(before.len(), VERSION_DIGITS);
    let opened = ModelDir::open(dir.path()).unwrap();
    assert_ne!(opened.weights_version().unwrap(), before);
    assert_eq!(opened.version().unwrap(), before);
    assert_eq!(version_of(&[dir.path().join(WEIGHTS), dir.path().join(CONFIG)]).unwrap(), before);
    let mut changed = config().to_json();
    changed["rms_norm_eps"] = 1e-6.into();
    std::fs::write(dir.path().join(CONFIG), changed.to_string()).unwrap();
    assert_ne!(version(dir.path()), before);
}

#[test]
fn shards_are_read_like_one_file() {
    let dir = model();
    let whole = ModelDir::open(dir.path()).unwrap().tensors().unwrap();
    std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let mut places = serde_json::Map::new();
    let mut parts: [HashMap<String, Tensor>; 2] = Default::default();
    for (i, (name, tensor)) in whole.iter().enumerate() {
        parts[i % 2].insert(name.clone(), tensor.clone());
        places.insert(name.clone(), format!("model-{}.safetensors", i % 2).into());
    }
    for (i, part) in parts.iter().enumerate() {
        write_tensors(&dir.path().join(format!("model-{i}.safetensors")), part).unwrap();
    }
    std::fs::write(dir.path().join(INDEX), serde_json::json!({ "weight_map": places }).to_string()).unwrap();
    let read = ModelDir::open(dir.path()).unwrap().tensors().unwrap();
    assert_eq!(read.len(), whole.len());
    Decoder::load(dir.path(), &Device::Cpu).unwrap();
}

#[test]
fn broken_directories_say_which_file_and_what_to_do() {
    type Break = fn(&Path);
    let cases: [(&str, Break, &str, &str); 8] = [
        ("no weights", |d| std::fs::remove_file(d.join(WEIGHTS)).unwrap(), WEIGHTS, "check that the file exists"),
        ("cut in the values", |d| shorten(d, 2_000), WEIGHTS, "cut short"),
        ("cut in the header", |d| shorten(d, 100), WEIGHTS, "cut short"),
        ("cut in the length", |d| shorten(d, 3), WEIGHTS, "cut short"),
        ("foreign weights", |d| std::fs::write(d.join(WEIGHTS), [b'x'; 64]).unwrap(), WEIGHTS, "not a safetensors file"),
        (
            "a pointer",
            |d| std::fs::write(d.join(WEIGHTS), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap(),
            WEIGHTS,
            "git lfs pull",
        ),
        ("no config", |d| std::fs::remove_file(d.join(CONFIG)).unwrap(), CONFIG, "give the directory of a model"),
        ("half a config", |d| std::fs::write(d.join(CONFIG), "{\"model_type\": \"lla").unwrap(), CONFIG, "not the JSON"),
    ];
    for (name, break_it, file, says) in cases {
        let dir = model();
        break_it(dir.path());
        let error = Decoder::load(dir.path(), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(says), "{name}: {error}");
        assert!(!error.contains('\n'), "{name}: {error}");
    }
}

#[test]
fn weights_that_are_no_finite_numbers_are_refused_by_the_name_of_their_tensor() {
    let dir = model();
    let sound = ModelDir::open(dir.path()).unwrap().tensors().unwrap();
    let name = "model.norm.weight";
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut values = vec![1.0; 16];
            values[15] = value;
            let mut tensors = sound.clone();
            tensors.insert(name.to_owned(), Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap());
            write_tensors(&dir.path().join(WEIGHTS), &tensors).unwrap();
            let error = Decoder::load(dir.path(), &Device::Cpu).unwrap_err().to_string();
            let parts = [WEIGHTS, name, "no finite number", "fetch the model again"];
            assert!(parts.iter().all(|part| error.contains(part)), "{dtype:?} {value}: {error}");
        }
    }
    let highest = Tensor::new(vec![65_504_f32; 16], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
    write_tensors(&dir.path().join(WEIGHTS), &[sound, [(name.to_owned(), highest)].into()].into_iter().flatten().collect())
        .unwrap();
    Decoder::load(dir.path(), &Device::Cpu).unwrap();
}

fn shorten(dir: &Path, keep: usize) {
    let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
    assert!(bytes.len() > keep);
    std::fs::write(dir.join(WEIGHTS), &bytes[..keep]).unwrap();
}

#[test]
fn another_architecture_is_refused_by_name() {
    let error = Bert::load(model().path(), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("llama"), "{error}");
}

#[test]
fn devices_are_named() {
    assert!(parse_device("cpu").unwrap().is_cpu());
    for name in ["", "gpu", "cuda:x", "cpu:1"] {
        assert!(parse_device(name).is_err(), "{name:?}");
    }
    if !cfg!(feature = "cuda") {
        let error = parse_device("cuda").unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
