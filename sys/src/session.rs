//! Children that lead a session of their own.
#![allow(unsafe_code)] // `pre_exec` runs between fork and exec.

use std::{os::unix::process::CommandExt, process::Command};

/// Makes the child of `command` lead a new session, so that it and its children can be signalled together and are
/// not reached by this process's terminal. With `terminal`, its standard input, a terminal, becomes the session's.
pub fn new_session(command: &mut Command, terminal: bool) -> &mut Command {
    let prepare = move || {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes two bare system calls and
    // allocates nothing (an error is a number).
    unsafe { command.pre_exec(prepare) }
}
