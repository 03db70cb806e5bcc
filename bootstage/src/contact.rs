//! Reaching a boot server: TLS, facts, the signed script. Nothing that arrives here is trusted yet.
//!
//! A central that is away for good must not keep an installed node down: after a few attempts, the last `boot` script
//! that this disk obeyed stands in. The verify stage judges it like any other.

use std::fs;

use orrery_init_api::{ATTEMPT_ENV, FailureClass, SCRIPT_PATH, Stage};
use orrery_protocol::{MAX_PAYLOAD, NodeConfig};
use orrery_transport::Answer;

use crate::{StageFailure, central::client, clock, disks, events, facts, files::write_private, identity, trust};

/// An envelope is its payload and a few signatures.
const MAX_ENVELOPE: u64 = MAX_PAYLOAD as u64 + 4096;
/// The first attempt at which the last good script stands in for a central that is away; PID 1 waits some ten seconds
/// before it.
const LAST_GOOD_FROM: u32 = 3;
/// Why the last good script stands in, while it does.
const OFFLINE_PATH: &str = "/run/orrery/offline";

/// Posts facts to the first server that answers and keeps the script it gives; returns a sentence about it.
///
/// # Errors
/// No server gave one; the failure is the last server's.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    trust::take_up(config);
    let mut config = identity::take_up(config)?;
    let mut last = None;
    let mut away = true;
    for url in config.central.urls.clone() {
        match ask(&mut config, &url) {
            Ok(answer) => {
                let length = answer.bytes.len();
                take(answer)?;
                return Ok(format!("{url} gave a script of {length} bytes"));
            }
            Err(failure) => {
                if config.central.urls.len() > 1 {
                    events::tell(Stage::Contact, Some(failure.class), failure.chain());
                }
                away &= is_away(failure.class);
                last = Some(failure);
            }
        }
    }
    let failure =
        last.unwrap_or_else(|| StageFailure::new(FailureClass::ConfigInvalid, "no boot server is configured"));
    let attempt = std::env::var(ATTEMPT_ENV).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    if away && attempt >= LAST_GOOD_FROM { use_last_script(&config, failure) } else { Err(failure) }
}

/// Whom to trust first, then who this node is, then what to do: each may depend on the one before.
fn ask(config: &mut NodeConfig, url: &str) -> Result<Answer, StageFailure> {
    trust::ask(config, url)?;
    *config = identity::settle(config.clone(), url)?;
    let facts = facts::gather(config);
    Ok(client(config, url)?.post_for_answer("/v1/node/contact", &facts, MAX_ENVELOPE)?)
}

fn take(answer: Answer) -> Result<(), StageFailure> {
    write_private(SCRIPT_PATH, &answer.bytes).map_err(|e| StageFailure::new(FailureClass::Internal, e))?;
    // An earlier attempt of this boot may have been offline.
    let _ = fs::remove_file(OFFLINE_PATH);
    let said = [answer.notice, answer.date.and_then(clock::take_from_central)];
    said.into_iter().flatten().for_each(|line| events::tell(Stage::Contact, None, line));
    Ok(())
}

/// Why this boot is decided by the node's last good script, if it is.
pub fn offline() -> Option<String> {
    fs::read_to_string(OFFLINE_PATH).ok().filter(|reason| !reason.is_empty())
}

/// Whether central may just be out of reach. One that answers that it has no script for this node means it.
fn is_away(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Dns
            | FailureClass::Refused
            | FailureClass::Deadline
            | FailureClass::Tls
            | FailureClass::Http
            | FailureClass::ShortRead
    )
}

/// Goes on with the script that the disk keeps; `failure` where there is none.
fn use_last_script(config: &NodeConfig, failure: StageFailure) -> Result<String, StageFailure> {
    let Some(script) = disks::last_script(config).filter(|kept| may_stand_in(fs::read(SCRIPT_PATH).ok(), kept)) else {
        return Err(failure);
    };
    write_private(SCRIPT_PATH, &script).map_err(|e| StageFailure::new(FailureClass::Internal, e))?;
    events::tell(Stage::Contact, Some(failure.class), failure.chain());
    let short: String = failure.chain().chars().take(200).collect();
    let reason = format!("central unreachable ({}: {short})", failure.class);
    write_private(OFFLINE_PATH, reason.as_bytes()).map_err(|e| StageFailure::new(FailureClass::Internal, e))?;
    Ok(format!("{reason}, using the last good script of this disk"))
}

/// Whether the script that the disk kept may stand in for `fetched`, the one that central gave during this boot: not if
/// that one is another. It may ask for safe mode, and an administrator be at work there.
fn may_stand_in(fetched: Option<Vec<u8>>, kept: &[u8]) -> bool {
    fetched.is_none_or(|fetched| fetched == kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_script_stands_in_for_a_central_that_is_away_and_for_no_other() {
        let check = |class, expect| assert_eq!(is_away(class), expect, "{class}");
        check(FailureClass::Dns, true);
        check(FailureClass::Refused, true);
        check(FailureClass::Deadline, true);
        check(FailureClass::Tls, true);
        check(FailureClass::UnknownNode, false);
        check(FailureClass::NoScript, false);
        check(FailureClass::Enrolment, false);
        check(FailureClass::ConfigInvalid, false);
        assert!(may_stand_in(None, b"kept"));
        assert!(may_stand_in(Some(b"kept".to_vec()), b"kept"));
        assert!(!may_stand_in(Some(b"safe".to_vec()), b"kept"));
    }
}
