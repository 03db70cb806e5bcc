//! The helpers: this very program, run again with one thread and a first argument that says what to do.

use std::{
    ffi::OsString,
    io,
    process::{Command, ExitCode},
};

use rustix::process::DumpableBehavior;

use crate::{
    admin::{self, Broker},
    boot,
    confine::confine,
    keeper, log, snapshot,
};

/// The first argument of the process that helpers which start slivers are forked from.
pub(crate) const BOOT: &str = "sliver-boot";
/// The first argument of the process that keeps a program of a sliver's.
pub(crate) const KEEP: &str = "sliver-keep";
/// The first argument of one that prints a sliver's log.
pub(crate) const LOG: &str = "sliver-log";
/// The first argument of the helper that works on the layer of one, before its order.
pub(crate) const LAYER: &str = "sliver-layer";
/// The first argument of the helper that makes sockets for an administrative one.
pub(crate) const SOCKETS: &str = "sliver-sockets";

/// To be called first thing in `main`, before any thread exists: does a helper's work if that is what this process was made
/// for, and returns what to exit with; returns nothing otherwise. `arguments` are those of the process, its name first.
pub fn internal_main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let word = arguments.nth(1)?;
    if ![BOOT, KEEP, LOG, LAYER, SOCKETS].iter().any(|known| word == *known) {
        return None;
    }
    if let Err(error) = hide() {
        eprintln!("forbidding to be traced: {error}");
        return Some(ExitCode::from(125));
    }
    Some(match word.to_str() {
        Some(BOOT) => boot::helpers(),
        Some(KEEP) => keeper::helper(arguments),
        Some(SOCKETS) => admin::broker(),
        Some(LAYER) => snapshot::helper(arguments.next()),
        _ => log::helper(arguments),
    })
}

/// Forbids to trace this process and its children, and to look into their memory and descriptors, for all without rights
/// over the node. Between joining a sliver and becoming its command, a process still has the node's memory and identity,
/// while the sliver's root sees it and may trace what is in its namespaces. Forking keeps this and executing ends it; what
/// comes between, becoming somebody else, sets it to `fs.suid_dumpable`, which [`crate::prepare_node`] makes the same.
pub(crate) fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A command that runs the helper. Its name in process lists is the word, its environment is empty.
pub(crate) fn helper_command(word: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(word).env_clear();
    command
}

/// Becomes the root of the sliver whose user namespace this process is in, confined as all there, for good. In an administrative
/// sliver, a `broker` makes sockets for this process.
pub(crate) fn become_sliver_root(nesting: bool, broker: Option<Broker>) -> io::Result<()> {
    use rustix::{
        process::{Gid, Uid},
        thread,
    };
    thread::set_thread_groups(&[Gid::ROOT])?;
    thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    confine(nesting, broker)?;
    // Whatever that did to it.
    hide()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_make_a_helper() {
        let check = |arguments: &[&str]| {
            assert_eq!(internal_main(arguments.iter().map(OsString::from)), None, "{arguments:?}");
        };
        check(&[]);
        check(&["node"]);
        check(&["node", "storage", LOG]);
        check(&[BOOT]);
    }

    #[test]
    fn what_hides_cannot_be_traced() {
        hide().expect("hiding");
        assert_eq!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    }
}
