//! Finding one value in what a device answers.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use super::template::{Template, Values, pattern, plain, segment};
use crate::drivers::xml;

/// Most memory that one regular expression may take, in bytes.
const PATTERN: usize = 1 << 20;
/// Most outlets that are listed in a message.
const LISTED: usize = 64;

/// Where a value stands.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Reading {
    /// In JSON, by a pointer as RFC 6901 has it: `/outputs/{outlet-1}/state`. A segment `[ID={outlet}]` is the element of a list
    /// whose member `ID` is that.
    Json(Template),
    /// In text: the first group of a regular expression.
    Regex(Template),
    /// In XML: the names of elements from the root, `/response/out{outlet}`, `*` for any; at the end perhaps an attribute, `@state`.
    Xml(Template),
    /// One bit of a number.
    Bits(Bits),
}

/// A number of which each bit is an outlet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bits {
    /// The first group is the number.
    regex: Template,
    /// Its base: 2, 10 or 16.
    base: u32,
    /// Which bit; 0 is the lowest.
    bit: Template,
}

/// What a reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The value, as text: `true` and `1` are also what JSON's are called.
    Value(String),
    /// The list of outlets is there, and this one is not in it; those that are.
    NoSuchOutlet(Vec<String>),
    /// It is not there, and why.
    Nothing(String),
}

impl Reading {
    /// Its texts, to check their placeholders.
    pub(super) fn templates(&self) -> Vec<&Template> {
        match self {
            Self::Json(text) | Self::Regex(text) | Self::Xml(text) => vec![text],
            Self::Bits(bits) => vec![&bits.regex, &bits.bit],
        }
    }

    /// Whether it makes sense, with values for its placeholders.
    pub(super) fn check(&self, values: &Values) -> Result<(), String> {
        match self {
            Self::Json(pointer) => match pointer.fill(values, segment) {
                Some(pointer) if !pointer.is_empty() && !pointer.starts_with('/') => {
                    Err(format!("the JSON pointer {:?} does not begin with a slash", pointer.as_str()))
                }
                _ => Ok(()),
            },
            Self::Regex(regex) => compile_group(regex, values).map(drop),
            Self::Xml(path) => match path.fill(values, plain) {
                Some(path) if !path.starts_with('/') => {
                    Err(format!("the XML path {:?} does not begin with a slash", path.as_str()))
                }
                _ => Ok(()),
            },
            Self::Bits(bits) if !matches!(bits.base, 2 | 10 | 16) => {
                Err(format!("base = {} is neither 2, 10 nor 16", bits.base))
            }
            Self::Bits(bits) => compile_group(&bits.regex, values).map(drop),
        }
    }

    /// Looks for the value.
    pub(super) fn find(&self, body: &[u8], values: &Values) -> Found {
        let text = || String::from_utf8_lossy(body);
        match self {
            Self::Json(pointer) => match (serde_json::from_slice(body), pointer.fill(values, segment)) {
                (Ok(value), Some(pointer)) => in_json(&value, &pointer),
                (Err(error), _) => Found::Nothing(format!("it is not JSON: {error}")),
                (_, None) => Found::Nothing("the outlet is no number".into()),
            },
            Self::Regex(regex) => match compile_group(regex, values) {
                Ok(regex) => match group(&regex, &text()) {
                    Some(value) => Found::Value(value),
                    None => Found::Nothing(format!("nothing in it matches {regex}")),
                },
                Err(error) => Found::Nothing(error),
            },
            Self::Xml(path) => match (xml::parse(body), path.fill(values, plain)) {
                (Ok(document), Some(path)) => match in_xml(&document, &path) {
                    Some(value) => Found::Value(value),
                    None => Found::Nothing(format!("it has no {}", &*path)),
                },
                (Err(error), _) => Found::Nothing(error),
                (_, None) => Found::Nothing("the outlet is no number".into()),
            },
            Self::Bits(bits) => bits.find(&text(), values),
        }
    }
}

impl Bits {
    fn find(&self, text: &str, values: &Values) -> Found {
        let regex = match compile_group(&self.regex, values) {
            Ok(regex) => regex,
            Err(error) => return Found::Nothing(error),
        };
        let Some(digits) = group(&regex, text) else {
            return Found::Nothing(format!("nothing in it matches {regex}"));
        };
        let number = u64::from_str_radix(&digits, self.base).ok();
        let bit = self.bit.fill(values, plain).and_then(|bit| bit.parse::<u32>().ok());
        match number.zip(bit).and_then(|(number, bit)| number.checked_shr(bit)) {
            Some(shifted) => Found::Value((shifted & 1).to_string()),
            None => Found::Nothing(format!("{digits:?} has no such bit")),
        }
    }
}

/// A regular expression, bounded in memory.
pub(super) fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).size_limit(PATTERN).build().map_err(|error| error.to_string())
}

/// What the first group of a regular expression finds, all over a text; each once.
pub(super) fn all(regex: &Regex, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for captures in regex.captures_iter(text) {
        let Some(value) = captures.get(1) else { continue };
        if found.len() < LISTED && !found.iter().any(|known| known == value.as_str()) {
            found.push(value.as_str().to_owned());
        }
    }
    found
}

fn compile_group(text: &Template, values: &Values) -> Result<Regex, String> {
    let text = text.fill(values, pattern).ok_or("the outlet is no number")?;
    let regex = compile(&text)?;
    match regex.captures_len() {
        2 => Ok(regex),
        _ => Err(format!("{regex} has to have one group, (…), around the value")),
    }
}

fn group(regex: &Regex, text: &str) -> Option<String> {
    regex.captures(text)?.get(1).map(|group| group.as_str().to_owned())
}

fn in_json(document: &Value, pointer: &str) -> Found {
    let mut value = document;
    for segment in pointer.split('/').skip(1) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        let wanted =
            segment.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')).and_then(|s| s.split_once('='));
        let next = match (value, wanted) {
            (Value::Array(list), Some((key, wanted))) => {
                let names: Vec<_> = list.iter().filter_map(|element| text_of(element.get(key)?)).collect();
                match list.iter().find(|element| element.get(key).and_then(text_of).as_deref() == Some(wanted)) {
                    Some(element) => Some(element),
                    None if names.is_empty() => None,
                    None => return Found::NoSuchOutlet(names.into_iter().take(LISTED).collect()),
                }
            }
            (Value::Array(list), None) => match segment.parse::<usize>() {
                Ok(at) if at >= list.len() && !list.is_empty() => return Found::NoSuchOutlet(Vec::new()),
                Ok(at) => list.get(at),
                Err(_) => None,
            },
            (other, None) => other.get(&segment),
            (_, Some(_)) => None,
        };
        match next {
            Some(next) => value = next,
            None => return Found::Nothing(format!("it has no {pointer}")),
        }
    }
    match text_of(value) {
        Some(text) => Found::Value(text),
        None => Found::Nothing(format!("{pointer} is a list or an object")),
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Null => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn in_xml(document: &roxmltree::Document<'_>, path: &str) -> Option<String> {
    let mut names = path.split('/').skip(1);
    let mut node = document.root_element();
    let is = |node: roxmltree::Node<'_, '_>, name: &str| {
        node.is_element() && (name == "*" || node.tag_name().name() == name)
    };
    if !is(node, names.next()?) {
        return None;
    }
    for name in names {
        match name.strip_prefix('@') {
            Some(attribute) => return node.attribute(attribute).map(str::to_owned),
            None => node = node.children().find(|child| is(*child, name))?,
        }
    }
    Some(node.text().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(outlet: &str) -> Values {
        Values { outlet: outlet.into(), ..Values::default() }
    }

    fn reading(toml: &str) -> Reading {
        #[derive(Deserialize)]
        struct Holder {
            read: Reading,
        }
        toml::from_str::<Holder>(&format!("read = {toml}")).unwrap().read
    }

    fn value(text: &str) -> Found {
        Found::Value(text.into())
    }

    #[test]
    fn values_are_found_where_they_stand() {
        let check = |read: &str, outlet: &str, body: &str, expected: Found| {
            let reading = reading(read);
            reading.check(&values(outlet)).unwrap();
            let found = reading.find(body.as_bytes(), &values(outlet));
            match expected {
                Found::Nothing(_) => assert!(matches!(found, Found::Nothing(_)), "{read} {body}: {found:?}"),
                expected => assert_eq!(found, expected, "{read} {body}"),
            }
        };
        let nothing = || Found::Nothing(String::new());
        let json = r#"{ json = "/outputs/{outlet-1}/state" }"#;
        let outputs = r#"{"outputs": [{"state": 1}, {"state": 0}]}"#;
        check(json, "1", outputs, value("1"));
        check(json, "2", outputs, value("0"));
        check(json, "3", outputs, Found::NoSuchOutlet(Vec::new()));
        check(json, "1", r#"{"outputs": {}}"#, nothing());
        check(json, "1", "<html>", nothing());
        check(json, "1", &"[".repeat(100_000), nothing());
        check(r#"{ json = "" }"#, "1", "true", value("true"));
        check(r#"{ json = "/a~1b" }"#, "1", r#"{"a/b": null}"#, value("null"));
        check(r#"{ json = "/a" }"#, "1", r#"{"a": {}}"#, nothing());
        let by_id = r#"{ json = "/Outputs/[ID={outlet}]/State" }"#;
        let netio = r#"{"Outputs": [{"ID": 4, "State": 0}, {"ID": 2, "State": 1}]}"#;
        check(by_id, "2", netio, value("1"));
        check(by_id, "3", netio, Found::NoSuchOutlet(vec!["4".into(), "2".into()]));
        check(by_id, "3", r#"{"Outputs": []}"#, nothing());

        check("{ regex = 'P{outlet:02}=([01])' }", "3", "P03=1<br>P04=0", value("1"));
        check("{ regex = '^(?:[^;]*;){{outlet}}([01]);' }", "2", "0;0;1;0;", value("1"));
        // An outlet's name is itself in a regular expression.
        check("{ regex = '{outlet}:(.)' }", "a.c", "abc:0 a.c:1", value("1"));
        check("{ regex = 'x=(.)' }", "1", "y=1", nothing());
        check(
            "{ bits = { regex = 'state\">(\\w+)<', base = 16, bit = \"{outlet-1}\" } }",
            "8",
            r#"<div id="state">7f<"#,
            value("0"),
        );
        check("{ bits = { regex = '(\\w+)', base = 16, bit = \"{outlet-1}\" } }", "7", "7f", value("1"));
        check("{ bits = { regex = '(\\w+)', base = 16, bit = \"{outlet-1}\" } }", "7", "zz", nothing());
        check("{ bits = { regex = '(\\w+)', base = 16, bit = \"{outlet-1}\" } }", "99", "7f", nothing());

        check(
            r#"{ xml = "/response/out{outlet}" }"#,
            "2",
            "<response><out1>0</out1><out2> 1 </out2></response>",
            value("1"),
        );
        check(r#"{ xml = "/r/o/@on" }"#, "2", "<r><o on='yes'/></r>", value("yes"));
        check(r#"{ xml = "/*/o" }"#, "2", "<any><o>1</o></any>", value("1"));
        check(r#"{ xml = "/r/o" }"#, "2", "<r><p/></r>", nothing());
        check(r#"{ xml = "/r/o" }"#, "2", "<q><o>1</o></q>", nothing());
    }

    #[test]
    fn readings_without_sense_are_told() {
        let check = |read: &str, expected: &str| {
            let error = reading(read).check(&values("1")).unwrap_err();
            assert!(error.contains(expected), "{read}: {error}");
        };
        check("{ regex = 'x=.' }", "one group");
        check("{ regex = '(a)(b)' }", "one group");
        check("{ regex = '(' }", "unclosed group");
        check("{ regex = '(\\w{1000}{1000})' }", "size limit");
        check("{ json = 'a/b' }", "slash");
        check("{ xml = 'a/b' }", "slash");
        check("{ bits = { regex = '(x)', base = 7, bit = '1' } }", "neither 2, 10 nor 16");
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_much(body: Vec<u8>, outlet in "[0-9]{0,20}|.{0,8}") {
            for read in [
                r#"{ json = "/a/[b={outlet}]/{outlet}" }"#,
                r#"{ json = "" }"#,
                "{ regex = '{outlet}(.*)' }",
                r#"{ xml = "/*/{outlet}" }"#,
                "{ bits = { regex = '(.+)', base = 16, bit = '{outlet-1}' } }",
            ] {
                reading(read).find(&body, &values(&outlet));
            }
        }
    }
}
