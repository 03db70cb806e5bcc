//! A person at a terminal: a client on a pseudo-terminal, typed at and read like a machine's console.
//!
//! The terminal has no screen. What a client prints lands in a [`Console`], as what a guest prints does.

use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::console::Console;
use crate::process::{Guarded, spawn};

/// The size of a terminal's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A running client and its terminal. The client is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    client: Guarded,
    window: File,
    console: Console,
}

impl Terminal {
    /// Starts a client on a terminal of `size`.
    ///
    /// # Errors
    /// When there is no terminal, or the client can't be run.
    pub fn start(mut client: Command, size: WindowSize) -> io::Result<Self> {
        // Never this process's own terminal: its ^C would end the harness.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let window = openpt(flags)?;
        grantpt(&window)?;
        unlockpt(&window)?;
        let terminal = ioctl_tiocgptpeer(&window, flags)?;
        let window = File::from(window);
        set_size(&window, size)?;
        client.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        let client = spawn(client)?;
        let console = Console::new(Vec::new());
        console.attach(window.try_clone()?);
        Ok(Self { client, window, console })
    }

    /// What the client has printed, and what it echoed.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Types `keys`. `\x03` is ^C.
    ///
    /// # Errors
    /// Those of writing to the terminal.
    pub fn send(&mut self, keys: &str) -> io::Result<()> {
        self.window.write_all(keys.as_bytes())
    }

    /// Makes the window another size, and tells the client as a terminal tells whom it controls.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        set_size(&self.window, size)?;
        Ok(kill_process(Pid::from_child(&self.client.child()), Signal::WINCH)?)
    }

    /// Waits until the client exits; `None` when it hasn't within `limit`.
    ///
    /// # Errors
    /// Those of waiting for a child.
    pub fn wait(&self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        self.client.wait(limit)
    }
}

fn set_size(window: &File, size: WindowSize) -> io::Result<()> {
    Ok(tcsetwinsize(window, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::bound_command;

    #[test]
    fn a_client_has_a_terminal_of_the_size_that_is_set() {
        const LIMIT: Duration = Duration::from_secs(30);
        let mut client = bound_command("sh");
        client.args([
            "-c",
            "trap 'stty size' WINCH; stty size; while ! read -r word; do :; done; echo got $word; exit 4",
        ]);
        let mut terminal = Terminal::start(client, WindowSize { rows: 33, columns: 101 }).unwrap();
        terminal.console().expect("33 101", LIMIT).unwrap();
        terminal.resize(WindowSize { rows: 44, columns: 132 }).unwrap();
        terminal.send("a-word\n").unwrap();
        terminal.console().expect("44 132", LIMIT).unwrap();
        terminal.console().expect("got a-word", LIMIT).unwrap();
        assert_eq!(terminal.wait(LIMIT).unwrap().unwrap().code(), Some(4));
    }
}
