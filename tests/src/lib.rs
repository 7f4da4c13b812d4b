//! What must hold across crates: black-box tests of the program, and what they share.

mod process;
mod webdriver;

pub use process::{Endcap, Run};
pub use webdriver::{Browser, BrowserError};
