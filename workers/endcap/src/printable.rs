//! Text from elsewhere, as it may stand on a terminal.

/// `text` on one line, with what a terminal would obey, reorder by or hide written out.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() || is_format(c) { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Whether a character is seen by its effect alone: Unicode's category Cf, and its separators of lines and paragraphs.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_written_out_and_words_stay() {
        for (text, expected) in [
            ("crème brûlée, 寿司, नमस्ते", "crème brûlée, 寿司, नमस्ते"),
            ("a\n\u{1b}[2J", "a\\n\\u{1b}[2J"),
            ("\u{202e}evil\u{200b}", "\\u{202e}evil\\u{200b}"),
            ("a\u{2028}b\u{feff}", "a\\u{2028}b\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }
}
