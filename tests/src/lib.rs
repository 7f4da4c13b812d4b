//! What must hold across crates: black-box tests of the program, and what they share.

mod process;
pub mod twins;
mod webdriver;

pub use process::{Endcap, Run};
pub use webdriver::{Browser, BrowserError};
