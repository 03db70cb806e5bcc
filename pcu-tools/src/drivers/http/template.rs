//! Text with placeholders, as data files have it: `Power{outlet} On`, `/outputs/{outlet-1}/state`, `P{outlet:02}=1`.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Deserializer, de::Error as _};
use zeroize::Zeroizing;

use crate::Secret;

/// Text with placeholders. A brace that begins none is itself, so that regular expressions can stand here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Text(String),
    Placeholder(Placeholder),
}

/// `{name}`, `{name+1}`, `{name-1}`, `{name:02}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Placeholder {
    name: String,
    /// What is added to the number.
    plus: i64,
    /// Digits at least, with zeros in front.
    width: usize,
}

/// What stands for the placeholders.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    /// The outlet, as the method has it.
    pub(super) outlet: String,
    /// The account's name.
    pub(super) user: Option<String>,
    /// Its password.
    pub(super) password: Option<Secret>,
    /// What the device gave at login.
    pub(super) token: Option<Secret>,
    /// What the data file lets a method choose.
    pub(super) options: BTreeMap<String, String>,
}

/// What placeholders are called besides a data file's own options.
pub(super) const NAMES: [&str; 4] = ["outlet", "user", "password", "token"];

impl Values {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "outlet" => Some(&self.outlet),
            "user" => self.user.as_deref(),
            "password" => self.password.as_ref().map(Secret::reveal),
            "token" => self.token.as_ref().map(Secret::reveal),
            option => self.options.get(option).map(String::as_str),
        }
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

impl Template {
    /// Parses text.
    ///
    /// # Errors
    /// When a placeholder's number makes no sense.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(brace) = rest.find('{') {
            plain.push_str(&rest[..brace]);
            rest = &rest[brace..];
            match placeholder(rest)? {
                Some((found, length)) => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Placeholder(found));
                    rest = &rest[length..];
                }
                None => {
                    plain.push('{');
                    rest = &rest[1..];
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The names of its placeholders.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Placeholder(placeholder) => Some(placeholder.name.as_str()),
        })
    }

    /// Whether it calculates with the outlet, which has to be a number for that.
    pub(super) fn calculates(&self) -> bool {
        self.0.iter().any(
            |piece| matches!(piece, Piece::Placeholder(Placeholder { plus, width, .. }) if (*plus, *width) != (0, 0)),
        )
    }

    /// Whether it is nothing but `{outlet}`, calculated with or not.
    pub(super) fn is_outlet(&self) -> bool {
        matches!(self.0.as_slice(), [Piece::Placeholder(Placeholder { name, .. })] if name == "outlet")
    }

    /// The text before the first of `characters` that is not a placeholder's.
    pub(super) fn before(&self, characters: &[char]) -> Self {
        let mut pieces = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => match text.find(characters) {
                    None => pieces.push(piece.clone()),
                    Some(at) => {
                        pieces.push(Piece::Text(text[..at].to_owned()));
                        break;
                    }
                },
                Piece::Placeholder(_) => pieces.push(piece.clone()),
            }
        }
        Self(pieces)
    }

    /// The text with values for its placeholders, each of them as `escape` writes it. None when one has no value.
    pub(super) fn fill(&self, values: &Values, escape: fn(&str) -> Cow<'_, str>) -> Option<Zeroizing<String>> {
        let mut filled = Zeroizing::new(String::new());
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Placeholder(Placeholder { name, plus, width }) => {
                    let value = values.get(name)?;
                    if (*plus, *width) == (0, 0) {
                        filled.push_str(&Zeroizing::new(escape(value).into_owned()));
                    } else {
                        let number = value.parse::<i64>().ok()?.checked_add(*plus)?;
                        // Writing to a string cannot fail.
                        let _ = write!(filled, "{number:0width$}");
                    }
                }
            }
        }
        Some(filled)
    }
}

/// The placeholder that `text` begins with, and its length; none when it begins with a brace that is itself.
fn placeholder(text: &str) -> Result<Option<(Placeholder, usize)>, String> {
    let Some((inside, _)) = text[1..].split_once('}') else { return Ok(None) };
    let name = inside.len() - inside.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_').len();
    let (name, rest) = inside.split_at(name);
    if name.is_empty() {
        return Ok(None);
    }
    let nonsense = || format!("{{{inside}}} is no placeholder: {{outlet}}, {{outlet-1}}, {{outlet:02}}");
    let (mut plus, mut width) = (0, 0);
    if let Some(digits) = rest.strip_prefix(":0") {
        width = digits.parse().ok().filter(|width| (1..=9).contains(width)).ok_or_else(nonsense)?;
    } else if !rest.is_empty() {
        plus = rest.parse::<i16>().ok().filter(|_| rest.starts_with(['+', '-'])).ok_or_else(nonsense)?.into();
    }
    Ok(Some((Placeholder { name: name.into(), plus, width }, inside.len() + 2)))
}

/// As it is.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}

/// For a URL: everything but what RFC 3986 (2.3) calls unreserved becomes `%XX`.
pub(super) fn percent(text: &str) -> Cow<'_, str> {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    Cow::Owned(escaped)
}

/// For a segment of a JSON pointer (RFC 6901, 3).
pub(super) fn segment(text: &str) -> Cow<'_, str> {
    Cow::Owned(text.replace('~', "~0").replace('/', "~1"))
}

/// For a regular expression that means the text itself.
pub(super) fn pattern(text: &str) -> Cow<'_, str> {
    Cow::Owned(regex::escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values { outlet: "3".into(), user: Some("a&b".into()), ..Values::default() }
    }

    #[test]
    fn placeholders_are_filled_and_escaped() {
        let check = |text: &str, escape: fn(&str) -> Cow<'_, str>, expected: Option<&str>| {
            let filled = Template::parse(text).unwrap().fill(&values(), escape);
            assert_eq!(filled.as_deref().map(String::as_str), expected, "{text}");
        };
        check("Power{outlet} On", plain, Some("Power3 On"));
        check("{outlet-1}{outlet+9}{outlet:03}", plain, Some("212003"));
        check("/x?u={user}", percent, Some("/x?u=a%26b"));
        check("{user}", pattern, Some("a\\&b"));
        // What regular expressions need braces for.
        check(r"(?:[^;]*;){{outlet+19}}([01]);x{2,3}{", plain, Some(r"(?:[^;]*;){22}([01]);x{2,3}{"));
        check("{password}", plain, None);
        check("{user+1}", plain, None);
    }

    #[test]
    fn what_is_no_placeholder_is_told() {
        for wrong in ["{outlet-}", "{outlet-x}", "{outlet:0}", "{outlet:2}", "{outlet 1}", "{outlet+99999999}"] {
            assert!(Template::parse(wrong).unwrap_err().contains("is no placeholder"), "{wrong}");
        }
    }

    #[test]
    fn a_part_before_a_character_keeps_its_placeholders() {
        let template = Template::parse("/a/{user}?p={password}").unwrap();
        assert_eq!(template.before(&['?']).names().collect::<Vec<_>>(), ["user"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_template_or_an_error(text in "[{}a-z0-9:+\\-x\\\\(é]{0,40}") {
            if let Ok(template) = Template::parse(&text) {
                let filled = template.fill(&values(), percent);
                if template.names().next().is_none() {
                    assert_eq!(filled.as_deref(), Some(&text));
                }
            }
        }
    }
}
