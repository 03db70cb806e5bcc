//! XML from devices: bounded, without document types, so without entities that grow.

use roxmltree::{Document, ParsingOptions};

/// Longest document, in bytes.
const BYTES: usize = 1 << 20;
/// Most elements, attributes and texts of a document.
const NODES: u32 = 20_000;
/// Deepest element. The parser keeps no stack, but nothing that devices say is deeper.
const DEPTH: usize = 64;

/// Parses a document.
///
/// # Errors
/// When it is no XML, is not UTF-8, has a document type, or is too large or too deep; for people.
pub(super) fn parse(bytes: &[u8]) -> Result<Document<'_>, String> {
    if bytes.len() > BYTES {
        return Err(format!("it is longer than {BYTES} bytes"));
    }
    let text = str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let options = ParsingOptions { nodes_limit: NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text.trim_start_matches('\u{feff}'), options)
        .map_err(|e| format!("it is not XML: {e}"))?;
    let mut depth = 0;
    let mut node = Some(document.root());
    // Down and on, without a stack of our own.
    while let Some(here) = node {
        if depth > DEPTH {
            return Err(format!("its elements are nested deeper than {DEPTH}"));
        }
        node = here.first_child().inspect(|_| depth += 1);
        let mut up = here;
        while node.is_none() {
            if let Some(next) = up.next_sibling() {
                node = Some(next);
            } else if let Some(parent) = up.parent() {
                depth -= 1;
                up = parent;
            } else {
                break;
            }
        }
    }
    Ok(document)
}

/// Text as it stands in an element or an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_bounded() {
        let check = |text: &str, expected: Option<&str>| match (parse(text.as_bytes()), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.contains(expected), "{error}"),
            (result, _) => panic!("{result:?} where {expected:?} was expected"),
        };
        let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
        check(&nested(DEPTH), None);
        check(&nested(DEPTH + 1), Some("nested deeper"));
        check(&format!("<a>{}</a>", "<b/>".repeat(1000)), None);
        check(&format!("<a>{}</a>", "<b/>".repeat(30_000)), Some("not XML"));
        check(&"x".repeat(BYTES + 1), Some("longer"));
        check("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", Some("not XML"));
        check("\u{feff}<a/>", None);
        check("", Some("not XML"));
        assert!(parse(b"<a>\xff</a>").is_err());
    }

    #[test]
    fn what_is_escaped_is_read_again() {
        let text = "a<b>&\"'c";
        let document = format!("<x y=\"{0}\">{0}</x>", escape(text));
        let document = parse(document.as_bytes()).unwrap();
        assert_eq!(document.root_element().text(), Some(text));
        assert_eq!(document.root_element().attribute("y"), Some(text));
    }
}
