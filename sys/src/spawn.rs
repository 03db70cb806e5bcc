//! What a supervisor must arrange in a child between fork and exec, and `std::process::Command` cannot: descriptors at
//! fixed numbers, an empty signal mask, values written to files of /proc or a cgroup, a controlling terminal.
#![allow(unsafe_code)] // pre_exec and the raw calls inside it.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
};

/// Preparations of one child. Consumed by [`Preparations::apply`].
#[derive(Debug, Default)]
pub struct Preparations {
    descriptors: Vec<(OwnedFd, RawFd)>,
    /// Hold the target numbers in this process while the child is made, so that no descriptor std makes on the way (its
    /// pipe for exec errors) gets such a number and is overwritten.
    placeholders: Vec<OwnedFd>,
    writes: Vec<(CString, Vec<u8>)>,
    terminal: bool,
}

impl Preparations {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the child `descriptor` at number `target`, without close-on-exec.
    ///
    /// # Errors
    /// When the process is out of descriptors, or `target` is one of the standard three (use `Command::stdin` and so on).
    pub fn descriptor(mut self, descriptor: OwnedFd, target: RawFd) -> io::Result<Self> {
        if target <= 2 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // The lowest free number from `target` on: either the target itself, now taken, or one above because the target
        // was taken already.
        self.placeholders.push(rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), target)?);
        // Away from every number that may be a target, or an earlier dup2 could overwrite a later source.
        let source = rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), target.saturating_add(64))?;
        self.descriptors.push((source, target));
        Ok(self)
    }

    /// Writes `value` to the file at `path` from within the child, before it executes (`/proc/self/oom_score_adj`, `0` to
    /// a `cgroup.procs`). A write that fails does not stop the child: these are limits to set, not conditions.
    ///
    /// # Errors
    /// When `path` contains a NUL byte.
    pub fn write(mut self, path: &str, value: &[u8]) -> io::Result<Self> {
        self.writes.push((CString::new(path)?, value.to_vec()));
        Ok(self)
    }

    /// Makes the child a session leader with its standard input as controlling terminal.
    pub fn controlling_terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Arranges for all of it, and for an empty signal mask, in the children `command` makes.
    pub fn apply(self, command: &mut Command) {
        let prepare = move || {
            // Keeps the placeholders alive as long as the command.
            let _ = &self.placeholders;
            for (source, target) in &self.descriptors {
                duplicate(source.as_raw_fd(), *target)?;
            }
            for (path, value) in &self.writes {
                write_file(path, value);
            }
            if self.terminal {
                take_terminal()?;
            }
            unblock_signals()
        };
        // SAFETY: between fork and exec the closure calls only async-signal-safe functions (dup2, open, write, close,
        // setsid, ioctl, sigprocmask), allocates nothing and takes no lock; everything it reads was made before the fork.
        unsafe { command.pre_exec(prepare) };
    }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn duplicate(source: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: both are plain numbers; `source` is open and differs from `target`, so close-on-exec is clear afterwards.
    // What stood at `target` in this forked child is a placeholder or unused by it.
    check(unsafe { libc::dup2(source, target) })
}

fn write_file(path: &CString, value: &[u8]) {
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file == -1 {
        return;
    }
    // SAFETY: `file` is open, and the pointer and length are those of a slice that outlives the call.
    let _ = unsafe { libc::write(file, value.as_ptr().cast(), value.len()) };
    // SAFETY: `file` was opened above and is used by nobody else.
    let _ = unsafe { libc::close(file) };
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: no arguments; a forked child is no process group leader unless asked for, and an error is returned.
    check(unsafe { libc::setsid() })?;
    // SAFETY: TIOCSCTTY takes an integer and no pointer. 1 steals the terminal from a session that is dying.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 1) })
}

fn unblock_signals() -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable memory of the right type.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: `set` was initialised by sigemptyset, and a null old set is allowed.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) })
}

#[cfg(test)]
mod tests {
    use std::{io::Read, process::Stdio};

    use super::*;

    fn output(preparations: Preparations, mut reader: std::fs::File, script: &str) -> String {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        preparations.apply(&mut command);
        let mut child = command.spawn().expect("spawning a shell");
        // The write ends live in the command.
        drop(command);
        child.wait().expect("waiting for the shell");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reading the pipe");
        text
    }

    #[test]
    fn a_child_finds_its_pipe_at_the_number() {
        for target in [3, 7, 40] {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("making a pipe");
            let preparations = Preparations::new().descriptor(writer, target).expect("duplicating");
            let script = format!("echo ok boot > /dev/fd/{target}");
            assert_eq!(output(preparations, reader.into(), &script), "ok boot\n");
        }
    }

    #[test]
    fn a_program_that_is_missing_is_still_an_error() {
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("making a pipe");
        let mut command = Command::new("/nonexistent/program");
        Preparations::new().descriptor(writer, 3).expect("duplicating").apply(&mut command);
        assert_eq!(command.spawn().expect_err("spawning nothing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn values_are_written_from_within_the_child() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("making a pipe");
        let preparations = Preparations::new()
            .descriptor(writer, 3)
            .and_then(|p| p.write("/proc/self/oom_score_adj", b"500"))
            .and_then(|p| p.write("/nonexistent/file", b"0"))
            .expect("preparing");
        assert_eq!(output(preparations, reader.into(), "cat /proc/self/oom_score_adj >&3"), "500\n");
    }

    #[test]
    fn the_standard_three_are_refused() {
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("making a pipe");
        assert!(Preparations::new().descriptor(writer, 1).is_err());
    }
}
