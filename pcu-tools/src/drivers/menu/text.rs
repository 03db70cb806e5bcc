//! What a terminal would show, as text that patterns can be matched against; and what of it may be told.

use std::fmt::Write as _;

use zeroize::Zeroizing;

/// Most of an answer that an error repeats, in characters.
const TOLD: usize = 300;
/// What becomes of a byte that is not ASCII.
const UNKNOWN: char = '?';
/// Shown instead of a secret.
const MASK: &str = "***";

/// Takes escape sequences (ECMA-48) and other control characters out of a stream, and makes every end of a line one `\n`.
#[derive(Debug, Default)]
pub(super) struct Plain {
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Text,
    /// After a carriage return, which has been written as `\n`.
    Return,
    Escape,
    /// `ESC [`: parameters, then one final character.
    Control,
    /// `ESC ]` and the like: until `BEL` or `ESC \`.
    String,
    StringEscape,
}

impl Plain {
    /// Adds the text of `bytes` to `text`. It is ASCII: other bytes become `?`, as devices agree on nothing about them.
    pub(super) fn take(&mut self, bytes: &[u8], text: &mut String) {
        for byte in bytes {
            self.state = match (self.state, *byte) {
                (State::String | State::StringEscape, 7) | (State::StringEscape, b'\\') => State::Text,
                (State::String | State::StringEscape, 0x1b) => State::StringEscape,
                (State::String | State::StringEscape, _) => State::String,
                (_, 0x1b) => State::Escape,
                (State::Escape, b'[') => State::Control,
                (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
                (State::Escape, 0x20..=0x2f) => State::Escape,
                (State::Escape, 0x30..=0x7e) => State::Text,
                (State::Control, 0x20..=0x3f) => State::Control,
                (State::Control, 0x40..=0x7e) => State::Text,
                (_, b'\r') => {
                    text.push('\n');
                    State::Return
                }
                (State::Return, b'\n') => State::Text,
                // Padding between the two.
                (State::Return, 0) => State::Return,
                (_, b'\n' | b'\t' | b' '..=b'~') => {
                    text.push(char::from(*byte));
                    State::Text
                }
                (_, 0x80..) => {
                    text.push(UNKNOWN);
                    State::Text
                }
                (_, _) => State::Text,
            };
        }
    }
}

/// The end of what a device said, for an error: one line, bounded, without the secrets.
pub(super) fn tail(text: &str, secrets: &[&str]) -> String {
    // Masked before it is cut, or half a secret would be left.
    let masked = mask(text, secrets);
    let words: Vec<_> = masked.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().rev().nth(TOLD - 1) {
        Some((start, _)) if start > 0 => format!("…{}", &line[start..]),
        _ => line,
    }
}

/// The lines of a device's words around what matched, for an error.
pub(super) fn lines_around(text: &str, start: usize, end: usize, secrets: &[&str]) -> String {
    let from = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let to = text[end..].find('\n').map_or(text.len(), |at| end + at);
    tail(&text[from..to], secrets)
}

fn mask(text: &str, secrets: &[&str]) -> String {
    let mut masked = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        // As a device's echo of it looks here.
        let secret: Zeroizing<String> = Zeroizing::new(
            secret.bytes().map(|byte| if byte.is_ascii() { char::from(byte) } else { UNKNOWN }).collect(),
        );
        masked = masked.replace(secret.as_str(), MASK);
        // One that has come in part only: it was being echoed when the time was up.
        let part = secret.char_indices().map(|(end, _)| &secret[..end]).rev().find(|part| masked.ends_with(part));
        if let Some(part) = part.filter(|part| part.len() > 1) {
            masked.truncate(masked.len() - part.len());
            masked.push_str(MASK);
        }
    }
    masked
}

/// A pattern's or a line's text for people: control characters are written as in the data file.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut shown, character| {
        if character.is_control() {
            let _ = write!(shown, "\\u{:04x}", u32::from(character));
        } else {
            shown.push(character);
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(bytes: &[u8]) -> String {
        let mut text = String::new();
        Plain::default().take(bytes, &mut text);
        text
    }

    #[test]
    fn escapes_are_taken_out() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(plain(bytes), expected, "{}", bytes.escape_ascii());
        check(b"\x1b[2J\x1b[1;1HUser Name : ", "User Name : ");
        check(b"a\x1b[31;1mred\x1b[0m\x1b(B\x1b7b", "aredb");
        check(b"\x1b]0;title\x07x\x1b]0;t\x1b\\y\x1bPq\x1b\x1b\\z", "xyz");
        check(b"a\r\nb\rc\nd\r\0\ne\r\r\nf", "a\nb\nc\nd\ne\n\nf");
        check(b"a\x08\x07\x7f\0b\xe4\x80", "ab??");
        // A sequence that is cut short by another one.
        check(b"\x1b[12\x1b[Kx", "x");
    }

    #[test]
    fn a_tail_is_bounded_and_has_no_secret() {
        assert_eq!(tail("  a\n\n b  ", &[]), "a b");
        assert_eq!(tail("was sesame it", &["sesame", ""]), "was *** it");
        assert_eq!(tail(&plain("was sésame it".as_bytes()), &["sésame"]), "was *** it");
        assert_eq!(tail("Password: sesa", &["sesame"]), "Password: ***");
        let long = format!("{}sesame{}", "x".repeat(400), "y".repeat(TOLD - 3));
        let told = tail(&long, &["sesame"]);
        assert_eq!(told.chars().count(), TOLD + 1);
        assert!(!told.contains("same"), "{told}");
        assert_eq!(tail(&"ä".repeat(TOLD), &[]).chars().count(), TOLD);
        assert_eq!(lines_around("one\ntwo three\nfour", 8, 13, &[]), "two three");
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b']'), Just(b'\r'), Just(b'\n')], 0..200), cut in 0_usize..200) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (mut filter, mut pieces) = (Plain::default(), String::new());
            filter.take(first, &mut pieces);
            filter.take(second, &mut pieces);
            prop_assert_eq!(&pieces, &plain(&bytes));
            prop_assert!(pieces.is_ascii());
            prop_assert!(pieces.chars().all(|character| !character.is_control() || matches!(character, '\n' | '\t')));
        }
    }
}
