//! What to do about a failure: a total, pure function of what failed, how, and how often in a row.
//!
//! Three promises, kept by the tests below: nothing is ever given up (every answer leads to a further attempt, or to the
//! firmware, which starts over); nothing spins (every wait is a second at least, and grows); and what only an operator can
//! decide leads to safe mode at once.

use std::time::Duration;

use orrery_init_api::{FailureClass, Role, Stage};

/// What recovery may depend on beside the failure itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Of which machine.
    pub role: Role,
    /// Consecutive failures of this stage, this one included; from 1.
    pub attempts: u32,
    /// Whether the clock was set from the network.
    pub clock_set: bool,
    /// Whether the installed system was repaired since the last script arrived.
    pub repaired: bool,
    /// Random: nodes that failed together should not come back together.
    pub jitter: u32,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Recovery {
    /// Go on without what the stage would have given.
    Proceed,
    /// Wait, then go on from a stage.
    Retry(Again),
    /// Repair what is installed, then load it.
    Repair,
    /// Open safe mode, and still go on from a stage after a while.
    SafeMode(Again),
    /// Start over from the firmware, after giving people time to read why.
    FirmwareReboot {
        /// How long.
        after: Duration,
    },
}

/// From where, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// The stage to go on from.
    pub from: Stage,
    /// The wait before.
    pub after: Duration,
}

/// The shortest wait before anything is tried again.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// The longest wait of a backoff.
pub const LONGEST: Duration = Duration::from_secs(60);
/// How long a last message stands on the console before the machine starts over.
pub const READING_TIME: Duration = Duration::from_secs(30);
/// How often a node whose operator must decide something asks whether that happened.
pub const RECONTACT: Duration = Duration::from_secs(60);
/// How often a node that was sent refused scripts asks for a better one.
const RECONTACT_REFUSED: Duration = Duration::from_secs(300);

/// Media on USB may take this many looks to appear: some 15 seconds.
const CONFIGURE_BEFORE_SAFE: u32 = 5;
/// Failures of the network before safe mode (which then is the console alone).
const NETWORK_BEFORE_SAFE: u32 = 4;
/// Failures to reach the boot server before safe mode.
const CONTACT_BEFORE_SAFE: u32 = 8;
/// Every so many unreachable servers, the interface is chosen anew: a cable may have moved.
const CONTACT_PER_NETWORK: u32 = 10;
/// Every so many servers that a wrong clock would make look like strangers, the time servers are asked anew: none may have
/// answered before, or a wrong one.
const CONTACT_PER_CLOCK: u32 = 4;
/// Refused scripts before safe mode.
const VERIFY_BEFORE_SAFE: u32 = 3;
/// Failed installs, loads and repairs before safe mode.
const EXECUTE_BEFORE_SAFE: u32 = 3;

/// The wait before attempt `attempts + 1`: doubling from one second to [`LONGEST`], its upper half random.
pub fn backoff(attempts: u32, jitter: u32) -> Duration {
    let doubled = SHORTEST.saturating_mul(1 << attempts.saturating_sub(1).min(6));
    spread(doubled.min(LONGEST), jitter).max(SHORTEST)
}

/// `wait`, or down to half of it.
fn spread(wait: Duration, jitter: u32) -> Duration {
    let half = wait / 2;
    half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
}

/// Decides.
pub fn recover(stage: Stage, class: FailureClass, context: Context) -> Recovery {
    let Context { attempts, jitter, .. } = context;
    let retry = |from| Recovery::Retry(Again { from, after: backoff(attempts, jitter) });
    let safe = |from, wait| Recovery::SafeMode(Again { from, after: spread(wait, jitter) });
    match stage {
        Stage::Configure if attempts < CONFIGURE_BEFORE_SAFE => retry(Stage::Configure),
        Stage::Configure => safe(Stage::Configure, RECONTACT),
        // Without a network the node OS can still wait for one; on the medium somebody may want the console.
        Stage::Network if context.role == Role::Node || attempts < NETWORK_BEFORE_SAFE => retry(Stage::Network),
        Stage::Network => safe(Stage::Network, LONGEST),
        Stage::Time => Recovery::Proceed,
        Stage::Contact | Stage::Verify if needs_clock(class) && !context.clock_set && attempts < 3 => {
            retry(Stage::Time)
        }
        Stage::Contact => contact(class, context),
        Stage::Verify => match attempts {
            1 => Recovery::Retry(Again { from: Stage::Contact, after: spread(Duration::from_secs(12), jitter) }),
            2 => Recovery::Retry(Again { from: Stage::Contact, after: spread(LONGEST, jitter) }),
            VERIFY_BEFORE_SAFE.. if needs_clock(class) => safe(Stage::Time, RECONTACT_REFUSED),
            VERIFY_BEFORE_SAFE.. => safe(Stage::Contact, RECONTACT_REFUSED),
            _ => retry(Stage::Contact),
        },
        // An upgrade that failed leaves the installed system as it was: after a few attempts that one boots, at once where
        // another attempt would fail alike.
        Stage::Upgrade if class == FailureClass::Unhealthy || needs_operator(class) => Recovery::Proceed,
        Stage::Upgrade if attempts < EXECUTE_BEFORE_SAFE => retry(Stage::Contact),
        Stage::Upgrade => Recovery::Proceed,
        // The node OS was started often and never became healthy. The stage lets it be started again after some of these.
        Stage::Load if class == FailureClass::Unhealthy => safe(Stage::Contact, LONGEST),
        Stage::Load if class == FailureClass::Kexec => Recovery::FirmwareReboot { after: READING_TIME },
        Stage::Load if !context.repaired && repairable(class) => Recovery::Repair,
        Stage::Install | Stage::Load | Stage::Repair if needs_operator(class) => safe(Stage::Contact, RECONTACT),
        Stage::Install | Stage::Load | Stage::Repair if attempts < EXECUTE_BEFORE_SAFE => retry(Stage::Contact),
        Stage::Install | Stage::Load | Stage::Repair => safe(Stage::Contact, LONGEST),
        // The node OS can do nothing without its disk, and the medium can: it repairs, reinstalls or opens safe mode.
        Stage::Storage => Recovery::FirmwareReboot { after: READING_TIME },
        // A release on trial that did not become healthy: the medium knows what else there is.
        Stage::Health if class == FailureClass::Unhealthy => Recovery::FirmwareReboot { after: READING_TIME },
        Stage::Safe | Stage::Reporter | Stage::NodeManager | Stage::SshGate | Stage::Health => retry(stage),
    }
}

/// What to do about a boot server that gave no script.
fn contact(class: FailureClass, context: Context) -> Recovery {
    let Context { attempts, jitter, .. } = context;
    let unreachable = matches!(class, FailureClass::Dns | FailureClass::Refused | FailureClass::Deadline);
    let from = if unreachable && attempts.is_multiple_of(CONTACT_PER_NETWORK) {
        Stage::Network
    } else if attempts.is_multiple_of(CONTACT_PER_CLOCK) && needs_clock(class) {
        Stage::Time
    } else {
        Stage::Contact
    };
    // A central that is restarted shall be found again before, at the third attempt, the last good script stands in.
    let again = Again { from, after: backoff(attempts.saturating_add(if unreachable { 2 } else { 0 }), jitter) };
    if attempts < CONTACT_BEFORE_SAFE { Recovery::Retry(again) } else { Recovery::SafeMode(again) }
}

/// Failures that a wrong clock explains.
fn needs_clock(class: FailureClass) -> bool {
    matches!(class, FailureClass::Tls | FailureClass::Expired | FailureClass::Clock)
}

/// Failures of what is installed that writing it again may mend.
fn repairable(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Tampered
            | FailureClass::NotInstalled
            | FailureClass::Signature
            | FailureClass::Malformed
            | FailureClass::Io
            | FailureClass::ShortRead
    )
}

/// Failures that no repetition mends: somebody must change the machine or what is wanted of it.
fn needs_operator(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::NoDisk
            | FailureClass::AmbiguousDisk
            | FailureClass::ForeignData
            | FailureClass::DiskTooSmall
            | FailureClass::DiskFull
            | FailureClass::NotInstalled
            | FailureClass::Hardware
    )
}

/// How long a stage may take: a task to end, a service to become ready. Generous, for slow disks, slow links and
/// emulated machines: a deadline turns a hang into a failure, it is no performance goal.
pub const fn deadline(stage: Stage) -> Duration {
    Duration::from_secs(match stage {
        Stage::Configure => 60,
        Stage::Network => 90,
        Stage::Time => 20,
        Stage::Contact => 120,
        Stage::Verify | Stage::Reporter | Stage::Safe | Stage::SshGate => 60,
        Stage::Load | Stage::NodeManager => 300,
        // An hour of e2fsck, or a release over a line of a few kilobytes a second.
        Stage::Storage => 3600,
        // The longest patience a release may ask for, and a while for telling that it is over.
        Stage::Health => 3600 + 100,
        Stage::Install | Stage::Upgrade | Stage::Repair => 6 * 3600,
    })
}

/// Whether the child stays after its result, and is started again should it end.
pub const fn stays(stage: Stage) -> bool {
    matches!(stage, Stage::Network | Stage::Safe | Stage::Reporter | Stage::NodeManager | Stage::SshGate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: Context = Context { role: Role::Boot, attempts: 1, clock_set: true, repaired: false, jitter: u32::MAX };

    fn check(stage: Stage, class: FailureClass, context: Context, expect: Recovery) {
        assert_eq!(recover(stage, class, context), expect, "{stage} {class} {context:?}");
    }

    fn retry(from: Stage, secs: u64) -> Recovery {
        Recovery::Retry(Again { from, after: Duration::from_secs(secs) })
    }

    fn safe(from: Stage, secs: u64) -> Recovery {
        Recovery::SafeMode(Again { from, after: Duration::from_secs(secs) })
    }

    #[test]
    fn the_policy() {
        use FailureClass as F;
        let at = |attempts| Context { attempts, ..CALM };
        check(Stage::Configure, F::ConfigMissing, at(1), retry(Stage::Configure, 1));
        check(Stage::Configure, F::ConfigMissing, at(4), retry(Stage::Configure, 8));
        check(Stage::Configure, F::ConfigMissing, at(5), safe(Stage::Configure, 60));
        check(Stage::Network, F::NoLink, at(3), retry(Stage::Network, 4));
        check(Stage::Network, F::NoLink, at(4), safe(Stage::Network, 60));
        check(Stage::Network, F::NoLink, Context { role: Role::Node, ..at(9) }, retry(Stage::Network, 60));
        check(Stage::Time, F::Clock, at(9), Recovery::Proceed);
        check(Stage::Contact, F::Refused, at(1), retry(Stage::Contact, 4));
        check(Stage::Contact, F::NoScript, at(1), retry(Stage::Contact, 1));
        check(Stage::Contact, F::Refused, at(7), retry(Stage::Contact, 60));
        check(Stage::Contact, F::Refused, at(8), safe(Stage::Contact, 60));
        check(Stage::Contact, F::Refused, at(10), safe(Stage::Network, 60));
        check(Stage::Contact, F::UnknownNode, at(10), safe(Stage::Contact, 60));
        check(Stage::Contact, F::Tls, Context { clock_set: false, ..at(1) }, retry(Stage::Time, 1));
        check(Stage::Verify, F::Expired, Context { clock_set: false, ..at(1) }, retry(Stage::Time, 1));
        check(Stage::Contact, F::Tls, Context { clock_set: false, ..at(3) }, retry(Stage::Contact, 4));
        check(Stage::Contact, F::Tls, Context { clock_set: false, ..at(8) }, safe(Stage::Time, 60));
        check(Stage::Contact, F::Tls, at(8), safe(Stage::Time, 60));
        check(Stage::Contact, F::Tls, at(9), safe(Stage::Contact, 60));
        check(Stage::Verify, F::Expired, Context { clock_set: false, ..at(4) }, safe(Stage::Time, 300));
        check(Stage::Verify, F::Signature, at(1), retry(Stage::Contact, 12));
        check(Stage::Verify, F::Stale, at(2), retry(Stage::Contact, 60));
        check(Stage::Verify, F::WrongNode, at(3), safe(Stage::Contact, 300));
        check(Stage::Install, F::Tampered, at(1), retry(Stage::Contact, 1));
        check(Stage::Install, F::ForeignData, at(1), safe(Stage::Contact, 60));
        check(Stage::Install, F::ShortRead, at(3), safe(Stage::Contact, 60));
        check(Stage::Load, F::Tampered, at(1), Recovery::Repair);
        check(Stage::Load, F::NotInstalled, at(1), Recovery::Repair);
        check(Stage::Load, F::Tampered, Context { repaired: true, ..at(2) }, retry(Stage::Contact, 2));
        check(Stage::Load, F::Kexec, at(1), Recovery::FirmwareReboot { after: Duration::from_secs(30) });
        check(Stage::Repair, F::Http, at(1), retry(Stage::Contact, 1));
        check(Stage::Repair, F::NotInstalled, at(1), safe(Stage::Contact, 60));
        check(Stage::Upgrade, F::ShortRead, at(1), retry(Stage::Contact, 1));
        check(Stage::Upgrade, F::ShortRead, at(3), Recovery::Proceed);
        check(Stage::Upgrade, F::Unhealthy, at(1), Recovery::Proceed);
        check(Stage::Upgrade, F::DiskFull, at(1), Recovery::Proceed);
        check(Stage::Load, F::Unhealthy, at(1), safe(Stage::Contact, 60));
        check(Stage::Health, F::Deadline, at(1), retry(Stage::Health, 1));
        check(Stage::Health, F::Unhealthy, at(1), Recovery::FirmwareReboot { after: Duration::from_secs(30) });
        check(Stage::Storage, F::Io, at(1), Recovery::FirmwareReboot { after: Duration::from_secs(30) });
    }

    proptest! {
        #[test]
        fn every_failure_leads_to_a_further_attempt_that_is_not_at_once(
            stage in prop::sample::select(Stage::ALL),
            class in prop::sample::select(FailureClass::ALL),
            role in prop::sample::select(Role::ALL),
            attempts in 1u32..,
            clock_set: bool,
            repaired: bool,
            jitter: u32,
        ) {
            let context = Context { role, attempts, clock_set, repaired, jitter };
            match recover(stage, class, context) {
                Recovery::Proceed => prop_assert!(matches!(stage, Stage::Time | Stage::Upgrade)),
                Recovery::Repair => prop_assert!(stage == Stage::Load && !repaired),
                Recovery::Retry(again) | Recovery::SafeMode(again) => {
                    prop_assert!(again.after >= SHORTEST);
                    prop_assert!(again.after <= RECONTACT_REFUSED);
                }
                Recovery::FirmwareReboot { after } => prop_assert!(after >= READING_TIME),
            }
        }

        #[test]
        fn the_wait_grows_and_stays_in_bounds(attempts in 1u32.., jitter: u32) {
            let wait = backoff(attempts, jitter);
            prop_assert!(wait >= SHORTEST && wait <= LONGEST);
            prop_assert!(backoff(attempts.saturating_add(2), 0) >= backoff(attempts, jitter).min(LONGEST / 2));
        }
    }
}
