//! Where memory comes from: mimalloc; on Linux, where it stands in the system's place, also for what is written in C, librdkafka most of all.

use std::ffi::c_long;

use libmimalloc_sys::{_mi_option_last, mi_option_set_default, mi_option_t};

/// Small allocations by many threads are what models, indexes and records do: measured up to 1.4 times faster than the system's allocator for
/// models, and a tenth of all the time of stages without a model over Kafka once librdkafka had it too. Version 2: version 3, with its defaults, took
/// such stages a third more memory at their peak.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, by its place among the options of version 2, of which there are 38.
const PURGE_DELAY: mi_option_t = 15;
const _: () = assert!(_mi_option_last == 38, "another version of mimalloc: look its options up");
/// How long memory that nobody uses stays at least, ms: longer than a commit under load takes, so that a batch finds that of the one before.
const KEPT_MS: c_long = 100;

/// Lets free memory stay for longer than mimalloc's own 10 ms, unless the environment (`MIMALLOC_PURGE_DELAY`) says how long.
///
/// # Safety
/// No other thread may run yet: mimalloc's options are plain words, which threads read as they free memory.
pub unsafe fn keep_between_batches() {
    // SAFETY: the caller's word.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT_MS) }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    #[test]
    fn the_option_is_the_one_that_the_environment_sets_by_name() {
        // mimalloc reads it once, when a process starts.
        let mut process = Command::new(env::current_exe().unwrap());
        process.args(["memory::tests::tell", "--exact", "--ignored", "--nocapture"]).env("MIMALLOC_PURGE_DELAY", "77");
        let output = process.output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("kept 77 ms"), "{output:?}");
    }

    #[test]
    #[ignore = "what the process of the test above runs"]
    fn tell() {
        // SAFETY: nobody sets options in this process.
        println!("kept {} ms", unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) });
    }
}
