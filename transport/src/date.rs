//! The date in an answer's header.

use time::{PrimitiveDateTime, macros::format_description};

/// Unix seconds of an HTTP date in its preferred form (RFC 9110, section 5.6.7); none if it is no such date.
pub(crate) fn unix_seconds(text: &str) -> Option<u64> {
    let form =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    PrimitiveDateTime::parse(text, form).ok()?.assume_utc().unix_timestamp().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let check = |text, expect| assert_eq!(unix_seconds(text), expect, "{text}");
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Sunday, 06-Nov-94 08:49:37 GMT", None);
        check("Sun, 06 Nov 1994 08:49:37", None);
        check("Wed, 31 Dec 1969 23:59:59 GMT", None);
        check("", None);
    }
}
