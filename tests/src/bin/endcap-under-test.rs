//! The `endcap` program, built here as well so that cargo tells the tests where it lies.

use std::process::ExitCode;

fn main() -> ExitCode {
    endcap::main()
}
