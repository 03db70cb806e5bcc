//! What a controller's refusals mean for whoever asked.

use orrery_rmcp::{Completion, LoginError, Step, Unusable};

use crate::PcuError;

/// A command that was not done.
pub(super) fn unusable(doing: String, error: Unusable) -> PcuError {
    match error {
        Unusable::Malformed(malformed) => PcuError::BadAnswer { doing, detail: malformed.to_string() },
        Unusable::Refused(completion) => refused(doing, completion),
    }
}

/// A completion code.
pub(super) fn refused(doing: String, completion: Completion) -> PcuError {
    let detail = completion.to_string();
    if completion.is_busy() {
        PcuError::Busy { doing, detail }
    } else if completion.is_privilege() {
        PcuError::Privilege { doing, detail }
    } else if completion.is_unsupported() {
        PcuError::Unsupported { doing, detail }
    } else {
        PcuError::Refused { doing, detail }
    }
}

/// A login that gave no session.
pub(super) fn login(doing: String, error: &LoginError) -> PcuError {
    let detail = error.to_string();
    match error {
        LoginError::Password { .. } | LoginError::Silent => PcuError::Authentication { doing, detail },
        LoginError::Key { bmc_key: true } => PcuError::Unsupported { doing, detail },
        LoginError::Key { .. } | LoginError::Downgrade(_) => PcuError::Identity { doing, detail },
        LoginError::Only15 | LoginError::NoWay(_) => PcuError::Unsupported { doing, detail },
        LoginError::LongPassword => PcuError::Configuration { doing, detail },
        LoginError::Privilege(_) => PcuError::Privilege { doing, detail },
        LoginError::Malformed(..) => PcuError::BadAnswer { doing, detail },
        LoginError::Status(step, status) => {
            if status.is_busy() {
                PcuError::Busy { doing, detail }
            } else if status.is_privilege() {
                PcuError::Privilege { doing, detail }
            } else if status.is_password() {
                PcuError::Authentication { doing, detail: format!("{detail}: the password is wrong") }
            } else if status.is_name() {
                PcuError::Authentication { doing, detail: format!("{detail}: there is no such user") }
            } else if status.is_suite() {
                PcuError::Unsupported { doing, detail }
            } else if *step == Step::First {
                // Controllers that do not say which of the two is wrong.
                PcuError::Authentication { doing, detail }
            } else {
                PcuError::Refused { doing, detail }
            }
        }
        LoginError::Completion(step, completion) => match (step, completion.0) {
            // The privilege is the only field that can be.
            (Step::Capabilities, 0xcc) => {
                PcuError::Privilege { doing, detail: format!("{detail}: the privilege is above the channel's limit") }
            }
            (Step::Challenge, 0x81 | 0x82) => {
                PcuError::Authentication { doing, detail: format!("{detail}: there is no such user") }
            }
            (Step::Activate, 0x81..=0x83) => PcuError::Busy { doing, detail },
            (Step::Activate, 0x86) | (Step::Privilege, 0x80 | 0x81) => PcuError::Privilege { doing, detail },
            _ => refused(doing, *completion),
        },
    }
}

#[cfg(test)]
mod tests {
    use orrery_rmcp::Status;

    use super::*;
    use crate::Class;

    #[test]
    fn classes_of_refusals() {
        let check = |error: PcuError, class| assert_eq!(error.class(), class, "{error}");
        for (code, class) in [
            (0xc0, Class::Busy),
            (0xc3, Class::Busy),
            (0xd0, Class::Busy),
            (0xd1, Class::Busy),
            (0xd2, Class::Busy),
            (0xd4, Class::Privilege),
            (0xc1, Class::Unsupported),
            (0xd5, Class::Refused),
            (0xcc, Class::Refused),
        ] {
            check(refused("x".into(), Completion(code)), class);
        }
        for (status, class) in [
            (0x01, Class::Busy),
            (0x0b, Class::Busy),
            (0x0a, Class::Privilege),
            (0x0d, Class::Authentication),
            (0x0f, Class::Authentication),
            (0x11, Class::Unsupported),
        ] {
            check(login("x".into(), &LoginError::Status(Step::Third, Status(status))), class);
        }
        for (step, code, class) in [
            (Step::Challenge, 0x81, Class::Authentication),
            (Step::Activate, 0x81, Class::Busy),
            (Step::Activate, 0x86, Class::Privilege),
            (Step::Privilege, 0x81, Class::Privilege),
            (Step::Privilege, 0xc0, Class::Busy),
            (Step::Capabilities, 0xcc, Class::Privilege),
            (Step::Capabilities, 0xd2, Class::Busy),
        ] {
            check(login("x".into(), &LoginError::Completion(step, Completion(code))), class);
        }
        check(login("x".into(), &LoginError::Key { bmc_key: true }), Class::Unsupported);
        check(login("x".into(), &LoginError::Key { bmc_key: false }), Class::Identity);
    }
}
