//! Figures as Markdown.

use std::fmt::Write;

/// A share as the tables print it.
pub fn share(value: f64) -> String {
    format!("{value:.3}")
}

/// A Markdown table; numbers are for the caller to format.
pub fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | ")); // writing to a String cannot fail
    }
    text
}
