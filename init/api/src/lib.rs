//! What crosses the process boundary between PID 1 and its stages.
//!
//! PID 1 runs every risky step as a child process. The child says how it went with exactly one line on file
//! descriptor [`RESULT_FD`], and that line is all PID 1 ever parses of it. This crate is that line, the
//! vocabulary in it, and where the two find each other's files. It has no dependency, and no notion of
//! what the files contain.

mod class;
mod report;
mod result;
mod stage;

pub use class::{FailureClass, UnknownClass};
pub use report::{report_result, report_to};
pub use result::{MAX_RESULT, MalformedResult, StageResult};
pub use stage::{Role, ScriptWord, Stage, UnknownName};

/// The descriptor a child finds the write end of its result pipe at.
pub const RESULT_FD: i32 = 3;

/// Environment variable with the id of this boot, in hexadecimal.
pub const BOOT_ID_ENV: &str = "ORRERY_BOOT_ID";
/// Environment variable with the number of this attempt at the stage, from 1.
pub const ATTEMPT_ENV: &str = "ORRERY_ATTEMPT";
/// Environment variable with the role, `boot` or `node`.
pub const ROLE_ENV: &str = "ORRERY_ROLE";
/// Environment variable with why `safe` was opened, for a greeting.
pub const REASON_ENV: &str = "ORRERY_REASON";

/// Kernel command line parameter with the role, `boot` or `node`.
pub const ROLE_PARAMETER: &str = "orrery.role";
/// Kernel command line parameter that carries the boot's id across the chain-boot: the load stage appends it to the next
/// kernel's command line, and PID 1 there takes it up instead of drawing a new one.
pub const BOOT_ID_PARAMETER: &str = "orrery.boot_id";

/// Kernel command line parameter that the load stage appends for a release on trial. PID 1 there starts over from the medium
/// unless the health gate has passed in time, whatever else goes wrong.
pub const TRIAL_PARAMETER: &str = "orrery.trial";
/// Kernel command line parameter by which a release asks for another patience with its own trial than
/// [`HEALTH_PATIENCE_S`], in seconds. It stands in the signed manifest, so nobody but the release's makers can change it.
pub const PATIENCE_PARAMETER: &str = "orrery.patience";
/// How long a node OS whose services are ready may take to become healthy before a trial of it is given up, in seconds.
///
/// What is waited for then is central's answer to one small request. Central being restarted, a switch learning a port and a
/// name server coming back after a power cut are over within a minute or two; five are what an operator still takes
/// for "it comes up by itself". Longer would only add to the time that a bad release keeps a node from its users, and
/// a good release loses nothing by being given up in error: it is one command to try it again.
pub const HEALTH_PATIENCE_S: u64 = 300;

/// What PID 1 says, to the reserved ring too, when it ends a trial: the load stage of the next boot looks for it.
pub const TRIAL_OVER: &str = "giving the trial up";

/// Reads the value of [`PATIENCE_PARAMETER`], within half a minute and an hour: a patience that nothing can meet, or
/// that never ends, is a slip of the pen.
pub fn patience_s(value: Option<&str>) -> u64 {
    value.and_then(|text| text.parse::<u64>().ok()).map_or(HEALTH_PATIENCE_S, |seconds| seconds.clamp(30, 3600))
}

/// First word of the load stage's result where the node OS is not to be chain-booted but entered: it stands unpacked at
/// [`NEW_ROOT`].
pub const ENTER: &str = "enter";
/// Where the load stage unpacks a verified node OS that is entered under the running kernel.
pub const NEW_ROOT: &str = "/newroot";
/// Set for a PID 1 that was entered so: it finds its parameters at [`ENTERED_CMDLINE_PATH`], since the kernel's command line
/// is another's.
pub const ENTERED_ENV: &str = "ORRERY_ENTERED";
/// The command line that the entered node OS would have been chain-booted with; in its root.
pub const ENTERED_CMDLINE_PATH: &str = "/orrery/cmdline";

/// The binary with all stages of the medium.
pub const STAGE_BINARY: &str = "/sbin/orrery-stage";
/// The binary with all services of the node OS.
pub const NODEOS_BINARY: &str = "/sbin/orrery-nodeos";

/// The first argument of either binary where it is to stand on a console.
pub const CONSOLE_ARGUMENT: &str = "console";

/// Where files shared between PID 1 and its children stand; a tmpfs of mode 0700.
pub const RUN_DIR: &str = "/run/orrery";
/// The id of this boot, in hexadecimal with a newline. Survives the chain-boot through [`BOOT_ID_PARAMETER`].
pub const BOOT_ID_PATH: &str = "/run/orrery/boot-id";
/// One event a line; appended to with `O_APPEND`, a line a write.
pub const EVENTS_PATH: &str = "/run/orrery/events.jsonl";
/// The node's configuration as JSON, mode 0600.
pub const NODE_CONFIG_PATH: &str = "/run/orrery/node.json";
/// What the network stage set up.
pub const NETWORK_PATH: &str = "/run/orrery/network.json";
/// Where the clock comes from.
pub const CLOCK_PATH: &str = "/run/orrery/clock.json";
/// The signed boot script as fetched.
pub const SCRIPT_PATH: &str = "/run/orrery/script.env";
/// What the verified script asks for.
pub const PLAN_PATH: &str = "/run/orrery/plan.json";
/// What the boot stage leaves to the node OS, on the medium's side.
pub const HANDOVER_PATH: &str = "/run/orrery/handover.json";
/// The same, where the node OS finds it in its initramfs.
pub const HANDOVER_CPIO_PATH: &str = "/orrery/handover.json";
/// Version and clock floor of this image.
pub const RELEASE_PATH: &str = "/etc/orrery-release";

/// The cgroup of the node's own services.
pub const NODE_CGROUP: &str = "/sys/fs/cgroup/node";
/// The cgroup under which every sliver has its own.
pub const SLIVERS_CGROUP: &str = "/sys/fs/cgroup/slivers";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_has_bounds() {
        let check = |value, expect| assert_eq!(patience_s(value), expect, "{value:?}");
        check(None, HEALTH_PATIENCE_S);
        check(Some("60"), 60);
        check(Some("0"), 30);
        check(Some("86400"), 3600);
        check(Some("-1"), HEALTH_PATIENCE_S);
        check(Some("soon"), HEALTH_PATIENCE_S);
    }
}
