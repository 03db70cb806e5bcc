//! A node's serial line on this terminal.

use std::{
    io::{self, IsTerminal, Read, Write},
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use orrery_pcu::{Ability, Console, PcuError};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{fleet::Work, output::Outcome};

/// How long the line is listened to before the keyboard is looked at again.
const TURN: Duration = Duration::from_millis(50);

/// A terminal whose keys go through as they are; it gets its ways back at the end.
struct Raw(Termios);

/// What has been typed of the way out, `~.` at the beginning of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    LineStart,
    Tilde,
    Within,
}

/// Connects this terminal with the serial line of one node until `~.`, the end of input, or the line's end.
pub(crate) fn run(work: &Work<'_>, name: &str) -> Result<Outcome> {
    let node = work.inventory.select(&[name.to_owned()], &[])?.remove(name).context("choosing the node")?;
    let raw = if io::stdin().is_terminal() { Some(Raw::set().context("setting up the terminal")?) } else { None };
    let keys = keyboard();
    let talk = |session: Box<dyn orrery_pcu::Session>, deadline| {
        let mut line = session.console(deadline)?;
        eprint!("connected to {name}; ~. ends it\r\n");
        pump(line.as_mut(), &keys)
    };
    let answer = work.control.with_session(&node.methods, Ability::Console, &|_| (), talk);
    drop(raw);
    match (answer.value, answer.attempts.into_iter().rev().find_map(|attempt| attempt.failure)) {
        (Some(()), _) => Ok(Outcome::done()),
        (None, Some(failure)) => {
            eprintln!("pcu: {name}: {}", crate::output::lines(&failure));
            Ok(Outcome::of([&failure]))
        }
        (None, None) => bail!("{name} has no method"),
    }
}

/// Hands keys to the line and what the line says to the terminal.
fn pump(line: &mut dyn Console, keys: &Receiver<Vec<u8>>) -> Result<(), PcuError> {
    let mut escape = Escape::LineStart;
    let mut output = io::stdout().lock();
    loop {
        let mut typed = Vec::new();
        let end = match keys.try_recv() {
            Ok(bytes) => escape.pass(&bytes, &mut typed),
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => true,
        };
        let heard = line.exchange(&typed, TURN)?;
        let shown = output.write_all(&heard).and_then(|()| output.flush());
        shown.map_err(|error| PcuError::transport("writing to the terminal", error))?;
        if end {
            return Ok(());
        }
    }
}

impl Escape {
    /// Takes what was typed, and gives what goes to the line; whether the way out was typed.
    fn pass(&mut self, keys: &[u8], line: &mut Vec<u8>) -> bool {
        for key in keys {
            *self = match (*self, key) {
                (Self::LineStart, b'~') => Self::Tilde,
                (Self::Tilde, b'.') => return true,
                (before, key) => {
                    if before == Self::Tilde && *key != b'~' {
                        line.push(b'~');
                    }
                    line.push(*key);
                    if matches!(key, b'\r' | b'\n') { Self::LineStart } else { Self::Within }
                }
            };
        }
        false
    }
}

/// What is typed, until the end of input.
fn keyboard() -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if send.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

impl Raw {
    fn set() -> Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone, then.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_at_the_beginning_of_a_line_only() {
        let check = |keys: &[&str], expected: &str, expected_end: bool| {
            let (mut escape, mut line) = (Escape::LineStart, Vec::new());
            let end = keys.iter().any(|keys| escape.pass(keys.as_bytes(), &mut line));
            assert_eq!((String::from_utf8(line).unwrap().as_str(), end), (expected, expected_end), "{keys:?}");
        };
        check(&["~."], "", true);
        check(&["ls\r", "~", "."], "ls\r", true);
        check(&["a~."], "a~.", false);
        check(&["~~."], "~.", false);
        check(&["~x\r~."], "~x\r", true);
    }
}
