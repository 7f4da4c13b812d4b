//! Puts the demo models into the binary, so that an installed one finds them: lists the files of `models/demo` for `include_bytes!`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets the manifest's directory"));
    let demo = manifest.join("../../models/demo");
    println!("cargo:rerun-if-changed={}", demo.display());
    let mut files = Vec::new();
    if demo.is_dir() {
        collect(&demo, &mut files)?;
    }
    files.sort();
    let mut code = String::from("&[\n");
    for path in &files {
        println!("cargo:rerun-if-changed={}", path.display());
        let name = path.strip_prefix(&demo).expect("found below it").to_string_lossy().replace('\\', "/");
        code.push_str(&format!("    ({name:?}, include_bytes!({:?}).as_slice()),\n", fs::canonicalize(path)?));
    }
    code.push_str("]\n");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets the output directory"));
    fs::write(out.join("demo_models.rs"), code)
}

fn is_needed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ["config.json", "tokenizer.json", "adapter_config.json", "model.bin"].contains(&&*name) || name.ends_with(".safetensors")
}

/// What a model needs at run time; cards and reports are for people.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if is_needed(&path) {
            files.push(path);
        }
    }
    Ok(())
}
