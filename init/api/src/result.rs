//! The one line a child reports.

use std::{error::Error, fmt};

use crate::FailureClass;

/// The longest result line, with its newline, in bytes. Not more than a pipe takes in one write.
pub const MAX_RESULT: usize = 4096;

/// How a stage went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageResult {
    /// It did what it is for. The text is for people, its first word sometimes for PID 1.
    Ok(Option<String>),
    /// It did not.
    Fail {
        /// What decides about recovery.
        class: FailureClass,
        /// The error with its causes, for people.
        message: String,
    },
}

impl StageResult {
    /// Success, with a short text (`eth0 10.0.2.15/24`).
    pub fn ok(text: impl AsRef<str>) -> Self {
        let text = clean(text.as_ref(), MAX_TEXT);
        Self::Ok((!text.is_empty()).then_some(text))
    }

    /// Failure.
    pub fn fail(class: FailureClass, message: impl AsRef<str>) -> Self {
        Self::Fail { class, message: clean(message.as_ref(), MAX_TEXT) }
    }

    /// Failure by an error, whose chain of causes becomes the message (`opening /dev/sda: no such device`).
    pub fn from_error(class: FailureClass, error: &(dyn Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many errors print their source themselves.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self::fail(class, message)
    }

    /// Whether it is a success.
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// The first word of a success's text.
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Ok(Some(text)) => text.split(' ').next(),
            _ => None,
        }
    }

    /// The line on the wire, newline included: at most [`MAX_RESULT`] bytes, whatever the message is.
    pub fn encode(&self) -> String {
        match self {
            Self::Ok(None) => "ok\n".to_owned(),
            Self::Ok(Some(text)) => format!("{}\n", format!("ok {}", clean(text, MAX_TEXT)).trim_end()),
            Self::Fail { class, message } => {
                format!("{}\n", format!("fail {class} {}", clean(message, MAX_TEXT)).trim_end())
            }
        }
    }

    /// Reads a line, with or without its newline.
    ///
    /// # Errors
    /// When it is not exactly one line of at most [`MAX_RESULT`] bytes of UTF-8 in the form [`Self::encode`] writes.
    pub fn decode(line: &[u8]) -> Result<Self, MalformedResult> {
        if line.len() > MAX_RESULT {
            return Err(MalformedResult);
        }
        let line = std::str::from_utf8(line).map_err(|_| MalformedResult)?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        if line.contains(|c: char| c.is_control()) {
            return Err(MalformedResult);
        }
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "ok" => Ok(Self::ok(rest)),
            "fail" => {
                let (class, message) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok(Self::fail(class.parse().map_err(|_| MalformedResult)?, message))
            }
            _ => Err(MalformedResult),
        }
    }
}

/// A result line that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedResult;

impl fmt::Display for MalformedResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a result line")
    }
}

impl Error for MalformedResult {}

/// Room for the text: the longest prefix is `fail ` with the longest class, well below 96 bytes.
const MAX_TEXT: usize = MAX_RESULT - 96;

/// `text` as part of one line: control characters become spaces, outer spaces go, and at most `max` bytes stay.
fn clean(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(line: &str, expect: Result<StageResult, MalformedResult>) {
        assert_eq!(StageResult::decode(line.as_bytes()), expect, "{line:?}");
    }

    #[test]
    fn lines() {
        let fail = |class, message: &str| Ok(StageResult::Fail { class, message: message.to_owned() });
        check("ok\n", Ok(StageResult::Ok(None)));
        check("ok", Ok(StageResult::Ok(None)));
        check("ok install\n", Ok(StageResult::Ok(Some("install".to_owned()))));
        check("ok eth0 10.0.2.15/24\n", Ok(StageResult::Ok(Some("eth0 10.0.2.15/24".to_owned()))));
        check("fail dns no answer: timed out\n", fail(FailureClass::Dns, "no answer: timed out"));
        check("fail dns\n", fail(FailureClass::Dns, ""));
        for bad in ["", "\n", "okay\n", "fail\n", "fail nonsense x\n", "ok\nok\n", "ok a\u{1b}[2J\n", "fail dns a\nb"] {
            check(bad, Err(MalformedResult));
        }
        assert_eq!(StageResult::decode(&[b'a'; MAX_RESULT + 1]), Err(MalformedResult));
        assert_eq!(StageResult::decode(b"ok \xff"), Err(MalformedResult));
    }

    #[test]
    fn the_first_word() {
        assert_eq!(StageResult::ok("install serial 3").word(), Some("install"));
        assert_eq!(StageResult::ok("").word(), None);
        assert_eq!(StageResult::fail(FailureClass::Io, "install").word(), None);
    }

    #[test]
    fn an_error_brings_its_causes_along_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("opening /dev/sda")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Outer(std::io::Error::other("gone"));
        let StageResult::Fail { message, .. } = StageResult::from_error(FailureClass::Io, &error) else { panic!() };
        assert_eq!(message, "opening /dev/sda: gone");
    }

    fn any_result() -> impl Strategy<Value = StageResult> {
        prop_oneof![
            any::<String>().prop_map(StageResult::ok),
            (prop::sample::select(FailureClass::ALL), any::<String>())
                .prop_map(|(class, message)| StageResult::fail(class, message)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(result in any_result()) {
            let line = result.encode();
            prop_assert!(line.len() <= MAX_RESULT);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(StageResult::decode(line.as_bytes()), Ok(result));
        }

        #[test]
        fn any_message_fits_one_line(message in "\\PC{0,2000}|[\n\r\t\u{0}a]{0,9000}") {
            for result in [StageResult::Ok(Some(message.clone())), StageResult::Fail { class: FailureClass::AmbiguousDisk, message }] {
                let line = result.encode();
                prop_assert!(line.len() <= MAX_RESULT);
                prop_assert_eq!(StageResult::decode(line.as_bytes()).map(|r| r.is_ok()), Ok(result.is_ok()));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = StageResult::decode(&bytes);
        }
    }
}
