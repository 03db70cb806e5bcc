//! `orrery-node`: what a rescuer at the console or in an ssh session asks the node for.
//!
//! Nothing here changes what the node will do by itself, except `retry`, `reboot` and `poweroff`, which ask PID 1.

mod bundle;
mod mounts;
mod state;

use std::{env, io::Write, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use orrery_installer::{BOOT_LABEL, DATA_LABEL};
use rustix::process::{Pid, Signal, kill_process};

#[cfg(test)]
pub(crate) use state::tests;
pub(crate) use state::{NodeState, write_network};

use crate::{disks, node_config};

/// The name this binary has for people.
pub const NAME: &str = "orrery-node";

const HELP: &str = "\
orrery-node: look at this node, and get it going again

usage: orrery-node COMMAND

  state [--json]     who this node is, how far it came and why it stopped, network, disks
  mount              mount the installed disk read-only below /mnt/orrery
  umount             unmount it again; installing, upgrading and repairing need the disk
  fsck               say how to check the installed file systems
  bundle [FILE|-]    everything a developer wants to see, as a tar archive without keys or tokens;
                     without FILE, /tmp/orrery-bundle.tar
  retry              start again from the stage that failed, now instead of when the timer ends
  reboot             stop everything in order and reboot; the medium starts anew
  poweroff           stop everything in order and switch off

Where to begin:
  orrery-node state                                   the last failure and its cause
  ip address; ping GATEWAY; nslookup NAME             the network
  smartctl -a /dev/sda; sfdisk -l; blkid              the disks
  dmesg | tail -50                                    the kernel's view
  ssh root@NODE orrery-node bundle - > bundle.tar     from your own machine
  rsync -a root@NODE:/mnt/orrery/data/ rescued/       after `orrery-node mount`

A node in safe mode keeps trying by itself: what you repair in the network or at central
needs no command here.
";

/// Runs the command line.
pub fn run() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[&str]) -> Result<()> {
    match words {
        [] | ["help" | "--help" | "-h"] => print(HELP),
        ["state"] => print(&NodeState::gather().to_string()),
        ["state", "--json"] => {
            let json = serde_json::to_string_pretty(&NodeState::gather()).context("writing the state as JSON")?;
            print(&format!("{json}\n"))
        }
        ["mount"] => print(&mounts::mount()?),
        ["umount"] => mounts::unmount_all(),
        ["fsck"] => print(&fsck_hint()),
        ["bundle"] => bundle::to_file(Path::new("/tmp/orrery-bundle.tar")),
        ["bundle", "-"] => bundle::write(std::io::stdout().lock()),
        ["bundle", file] => bundle::to_file(Path::new(file)),
        ["retry"] => {
            // What is mounted here would keep the stages from writing.
            mounts::unmount_all()?;
            ask(Signal::HUP, "trying again")
        }
        ["reboot"] => ask(Signal::TERM, "rebooting"),
        ["poweroff"] => ask(Signal::USR2, "switching off"),
        // What a login shell shows first; for /etc/profile.
        ["greeting"] => print(&NodeState::gather().greeting()),
        other => bail!("`{}` is no command; `{NAME} --help` lists them", other.join(" ")),
    }
}

/// Signals are PID 1's only interface to people.
fn ask(signal: Signal, what: &str) -> Result<()> {
    kill_process(Pid::INIT, signal).context("asking PID 1 (are you root?)")?;
    print(&format!("{what}\n"))
}

fn print(text: &str) -> Result<()> {
    // A reader that has seen enough is no failure.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("writing the answer"),
        _ => Ok(()),
    }
}

fn fsck_hint() -> String {
    let config = node_config().ok();
    let lines =
        [BOOT_LABEL, DATA_LABEL].map(|label| match config.as_ref().map(|config| disks::partition(label, config)) {
            Some(Ok(device)) => {
                let device = device.display();
                format!("{label}: look with `e2fsck -fn {device}`, repair with `e2fsck -fp {device}`\n")
            }
            Some(Err(error)) => format!("{label}: {error}\n"),
            None => format!("{label}: this node has no configuration, so its disk is not known; see `blkid`\n"),
        });
    format!("unmount first, with `{NAME} umount`\n{}", lines.concat())
}

#[cfg(test)]
mod command_line {
    use super::*;

    #[test]
    fn the_help_teaches() {
        insta::assert_snapshot!("help", HELP);
    }

    #[test]
    fn unknown_commands_are_refused() {
        let check = |words: &[&str]| assert!(format!("{:#}", command(words).unwrap_err()).contains("--help"));
        check(&["sttae"]);
        check(&["state", "--yaml"]);
        check(&["mount", "/dev/sda1"]);
    }
}
