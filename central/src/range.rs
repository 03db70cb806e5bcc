//! The `Range` header (RFC 9110, section 14), as far as artifacts need it: one range of bytes.

use std::ops::Range;

/// What to send of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// These bytes; never empty.
    Bytes(Range<u64>),
    /// Nothing: the range lies behind the end.
    Unsatisfiable,
}

/// Which part of `size` bytes a `Range` header asks for. A header that is malformed, of another unit, or asks
/// for several ranges is ignored, as the RFC allows.
pub(crate) fn requested(header: Option<&str>, size: u64) -> Part {
    let Some((first, last)) = header.and_then(|h| h.strip_prefix("bytes=")).and_then(|h| h.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<u64>().ok()).flatten();
    let range = match (first, last) {
        ("", last) => number(last).map(|n| size.saturating_sub(n)..size),
        (first, "") => number(first).map(|f| f..size),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(first..last.saturating_add(1).min(size)),
            _ => None,
        },
    };
    match range {
        None => Part::Whole,
        Some(range) if range.start >= range.end => Part::Unsatisfiable,
        Some(range) => Part::Bytes(range),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges() {
        let check = |header: &str, expect: Part| assert_eq!(requested(Some(header), 10), expect, "{header}");
        check("bytes=0-3", Part::Bytes(0..4));
        check("bytes=4-", Part::Bytes(4..10));
        check("bytes=-3", Part::Bytes(7..10));
        check("bytes=-30", Part::Bytes(0..10));
        check("bytes=9-99", Part::Bytes(9..10));
        check("bytes=0-18446744073709551615", Part::Bytes(0..10));
        check("bytes=10-", Part::Unsatisfiable);
        check("bytes=-0", Part::Unsatisfiable);
        for ignored in ["bytes=3-1", "bytes=-", "bytes=+1-2", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", ""] {
            check(ignored, Part::Whole);
        }
        assert_eq!(requested(None, 10), Part::Whole);
        assert_eq!(requested(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_content(header in "bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Part::Bytes(range) = requested(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
