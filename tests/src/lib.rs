//! What must hold across crates: black-box tests of the program, and what they share.

mod draw;
mod process;
mod shoppers;
pub mod twins;
mod webdriver;

pub use draw::Draw;
pub use process::{Endcap, Run};
pub use shoppers::Shoppers;
pub use webdriver::{Browser, BrowserError};
