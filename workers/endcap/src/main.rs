//! The `endcap` program: everything is in the library, so that tests can run the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    endcap::main()
}
