//! Where in the document the next byte stands, and how much room its text has left.
//!
//! Inside a text the grammar's mask depends on two things only: what may follow the text, and where in a word the text stands. So it is computed
//! once for each such place. Lengths are kept here instead of in the grammar: counting characters there would make every
//! length a state of its own (measured: 0.3–0.9 ms a mask at 4,096 entries, 8–12 ms for a state seen for the first time).

use super::{CONCEPTS, TextLimits};
use crate::Tokenizer;

/// The texts of a document, by what may follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    Persona,
    Title,
    Intent,
    Concept,
    /// The last concept of a theme that is not the last one.
    LastConcept,
    /// The last concept of the last theme.
    Last,
}

/// Where in its words a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    Start,
    LeadingSpace,
    Word,
    Space,
}

/// A place whose mask is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) text: Text,
    pub(super) within: Within,
}

impl Place {
    /// Number of places.
    pub(super) const COUNT: usize = 6 * 4;

    pub(super) fn index(self) -> usize {
        self.text as usize * 4 + self.within as usize
    }
}

/// Follows the document byte by byte.
#[derive(Debug, Clone)]
pub(super) struct Position {
    themes: usize,
    /// Strings opened so far, keys included.
    strings: usize,
    inside: bool,
    /// Characters of the open string.
    chars: usize,
    last: u8,
    /// Bytes that the last character lacks.
    partial: usize,
}

impl Position {
    pub(super) fn new(themes: usize) -> Self {
        Self { themes, strings: 0, inside: false, chars: 0, last: 0, partial: 0 }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.take_byte(byte);
        }
    }

    fn take_byte(&mut self, byte: u8) {
        if byte == b'"' {
            self.inside = !self.inside;
            self.strings += usize::from(self.inside);
            self.chars = 0;
        } else if self.inside {
            let is_continuation = byte & 0xC0 == 0x80;
            self.chars += usize::from(!is_continuation);
            self.partial = match byte {
                _ if is_continuation => self.partial.saturating_sub(1),
                0xC0..=0xDF => 1,
                0xE0..=0xEF => 2,
                0xF0.. => 3,
                _ => 0,
            };
        }
        self.last = byte;
    }

    /// The text that is being written, if one is.
    fn text(&self) -> Option<Text> {
        if !self.inside {
            return None;
        }
        // persona, its text, themes; then for each theme: title, its text, intent, its text, concepts, their texts.
        let per_theme = 5 + CONCEPTS;
        match self.strings {
            2 => Some(Text::Persona),
            0..=3 => None,
            n => match ((n - 4) / per_theme, (n - 4) % per_theme) {
                (_, 1) => Some(Text::Title),
                (_, 3) => Some(Text::Intent),
                (theme, at) if at == per_theme - 1 => Some(if theme + 1 == self.themes { Text::Last } else { Text::LastConcept }),
                (_, at) if at >= 5 => Some(Text::Concept),
                _ => None,
            },
        }
    }

    /// The place, where the document stands inside a text and between two characters.
    pub(super) fn place(&self) -> Option<Place> {
        let text = self.text().filter(|_| self.partial == 0)?;
        let within = match (self.chars, self.last) {
            (0, _) => Within::Start,
            (1, b' ') => Within::LeadingSpace,
            (_, b' ') => Within::Space,
            _ => Within::Word,
        };
        Some(Place { text, within })
    }

    /// Characters that the open text may still take; `None` outside of texts.
    pub(super) fn room(&self, limits: TextLimits) -> Option<usize> {
        let max = match self.text()? {
            Text::Persona => limits.persona,
            Text::Title => limits.title,
            Text::Intent => limits.intent,
            Text::Concept | Text::LastConcept | Text::Last => limits.concept,
        };
        Some(max.saturating_sub(self.chars))
    }
}

/// Which tokens fit into how much room: bit sets over the vocabulary.
pub(super) struct Fits {
    by_room: Vec<Vec<u32>>,
}

impl Fits {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let costs: Vec<usize> = (0..tokenizer.vocabulary_size() as u32).map(|id| cost(tokenizer.token_bytes(id))).collect();
        let dearest = costs.iter().copied().max().unwrap_or(0);
        let by_room = (0..dearest)
            .map(|room| {
                let mut words = vec![0u32; costs.len().div_ceil(32)];
                for id in (0..costs.len()).filter(|&id| costs[id] <= room) {
                    words[id / 32] |= 1 << (id % 32);
                }
                words
            })
            .collect();
        Self { by_room }
    }

    /// Leaves those tokens of `mask` that fit into `room` characters. Where none would be left, all are: a text that stands just behind
    /// its limit is led out by the grammar.
    pub(super) fn restrict(&self, mask: &mut [u32], room: usize) {
        let Some(fitting) = self.by_room.get(room) else { return };
        if mask.iter().zip(fitting).any(|(a, b)| a & b != 0) {
            mask.iter_mut().zip(fitting).for_each(|(a, b)| *a &= b);
        }
    }
}

/// Characters that a token adds to an open text; one more where the text cannot end behind it.
fn cost(bytes: &[u8]) -> usize {
    let own = bytes.iter().position(|&byte| byte == b'"').unwrap_or(bytes.len());
    let chars = bytes[..own].iter().filter(|&&byte| byte & 0xC0 != 0x80).count();
    chars + usize::from(own == bytes.len() && bytes.last() == Some(&b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_follows_from_the_bytes() {
        let concepts = r#"{"persona":" ab","themes":[{"title":"x y","intent":"z","concepts":["a","b","#;
        for (said, text, within) in [
            (r#"{"persona":""#, Some(Text::Persona), Within::Start),
            (r#"{"persona":" "#, Some(Text::Persona), Within::LeadingSpace),
            (r#"{"persona":" ab"#, Some(Text::Persona), Within::Word),
            (r#"{"persona":" ab "#, Some(Text::Persona), Within::Space),
            (r#"{"persona":" é"#, Some(Text::Persona), Within::Word),
            (r#"{"pers"#, None, Within::Start),
            (r#"{"persona":" ab","#, None, Within::Start),
            (r#"{"persona":" ab","the"#, None, Within::Start),
            (r#"{"persona":" ab","themes":[{"title":"x"#, Some(Text::Title), Within::Word),
            (r#"{"persona":" ab","themes":[{"title":"x y","intent":""#, Some(Text::Intent), Within::Start),
            (r#"{"persona":" ab","themes":[{"title":"x y","intent":"z","concepts":[""#, Some(Text::Concept), Within::Start),
            (&format!(r#"{concepts}"c"#), Some(Text::LastConcept), Within::Word),
            (&format!(r#"{concepts}"c"]}},{{"title":"q"#), Some(Text::Title), Within::Word),
            (&format!(r#"{concepts}"c"]}},{{"title":"q","intent":"z","concepts":["a","b","c"#), Some(Text::Last), Within::Word),
        ] {
            let mut position = Position::new(2);
            position.take(said.as_bytes());
            assert_eq!(position.place(), text.map(|text| Place { text, within }), "{said}");
        }
        let mut position = Position::new(2);
        position.take("{\"persona\":\" é".as_bytes());
        position.take(&"寿".as_bytes()[..2]);
        assert_eq!(position.place(), None, "inside a character");
        assert_eq!(position.room(TextLimits { persona: 5, ..TextLimits::default() }), Some(2));
    }

    #[test]
    fn a_token_costs_what_it_adds_to_its_text() {
        for (bytes, expected) in [(" oat", 4), ("", 0), ("\"", 0), ("a\",\"b", 1), (" ", 2), ("é", 1), ("a ", 3)] {
            assert_eq!(cost(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
