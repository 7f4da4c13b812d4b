//! Names for what must be told from everybody else's where nobody has given it one.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    process,
};

/// A name that nobody else has, here or on another machine: the process's number, which two containers may share, and one that the
/// standard library draws at random. Letters, digits and `-`; another one at every call.
pub fn unique_name() -> String {
    format!("{}-{:016x}", process::id(), RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, process::Command};

    use super::*;

    /// What is drawn at random of a name.
    fn drawn(name: &str) -> String {
        name.split_once('-').expect("a number and what was drawn").1.to_owned()
    }

    #[test]
    #[ignore = "what the next test's children run"]
    fn child() {
        println!("name {}", unique_name());
    }

    #[test]
    fn names_of_processes_with_one_number_and_of_one_process_differ() {
        let child = || {
            let output = Command::new(env::current_exe().unwrap())
                .args(["--exact", "unique::tests::child", "--ignored", "--nocapture"])
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            drawn(said.lines().find_map(|line| line.split_once("name ")).expect("a child says its name").1)
        };
        let names = BTreeSet::from([child(), child(), drawn(&unique_name()), drawn(&unique_name())]);
        assert_eq!(names.len(), 4, "{names:?}");
    }
}
