//! The records of a PAX extended header (POSIX.1-2017, pax, "pax Extended Header").
//!
//! The tar crate's parser takes a newline for the end of a record, but the value of an extended attribute is
//! binary and may contain one.

/// One `LENGTH KEY=VALUE\n`.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// All records of a header, or `None` if it is malformed.
pub(crate) fn records(mut body: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut out = Vec::new();
    // Some writers pad the header with zeros.
    while body.first().is_some_and(|&byte| byte != 0) {
        let digits = body.iter().position(|&byte| byte == b' ')?;
        let length = usize::try_from(number(&body[..digits])?).ok()?;
        let record = body.get(digits + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        out.push((&record[..equals], &record[equals + 1..]));
        body = &body[length..];
    }
    Some(out)
}

/// A decimal number.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time in seconds with an optional fraction, as whole seconds, rounded down, and nanoseconds.
pub(crate) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(number(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{records, time};

    #[test]
    fn records_keep_binary_values() {
        let check = |body: &[u8], expect: Option<&[(&str, &[u8])]>| {
            let expect = expect.map(|all| all.iter().map(|(key, value)| (key.as_bytes(), *value)).collect::<Vec<_>>());
            assert_eq!(records(body), expect, "{}", body.escape_ascii());
        };
        check(b"", Some(&[]));
        check(b"9 a=b\n\n\n", None);
        check(b"6 a=b\n", Some(&[("a", b"b")]));
        check(b"8 a=b\n\x0a\n", Some(&[("a", b"b\n\n")]));
        check(b"6 a=b\n7 c==\x00\n\0\0", Some(&[("a", b"b"), ("c", b"=\0")]));
        check(b"7 a=b\n", None);
        check(b"2 a=b\n", None);
        check(b"99999999999999999999 a=b\n", None);
        check(b" a=b\n", None);
    }

    #[test]
    fn times_are_rounded_down() {
        let check = |text: &str, expect| assert_eq!(time(text.as_bytes()), expect, "{text}");
        check("1700000000", Some((1_700_000_000, 0)));
        check("1.5", Some((1, 500_000_000)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-1", Some((-1, 0)));
        check("1.0000000019", Some((1, 1)));
        check("", None);
        check("1.x", None);
        check("--1", None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = records(&body);
            let _ = time(&body);
        }
    }
}
