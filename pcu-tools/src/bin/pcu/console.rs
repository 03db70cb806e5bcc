//! A node's serial line on this terminal.

use std::{
    cell::OnceCell,
    io::{self, IsTerminal, Read, Write},
    process,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver, TryRecvError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use orrery_pcu::{Ability, Console, PcuError, engine::Interrupt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{
    fleet::Work,
    output::{self, Outcome, say},
    signals,
};

/// How long the line is listened to before the keyboard is looked at again.
const TURN: Duration = Duration::from_millis(50);

/// A terminal, with the modes that it had and gets back; none when this is no terminal.
#[derive(Clone, Default)]
struct Terminal(Arc<OnceLock<Termios>>);

/// A terminal whose keys go through as they are, for the time of this.
struct Raw<'a>(&'a Terminal);

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
    let (terminal, ended, keys) = (Terminal::default(), Arc::new(OnceLock::new()), OnceCell::new());
    // Until it is connected, ^C and signals end us as they end every program.
    let talk = |session: Box<dyn orrery_pcu::Session>, deadline| {
        let failed = |error| PcuError::transport("setting up the terminal", error);
        let mut line = session.console(deadline)?;
        let _raw = terminal.raw().map_err(failed)?;
        if keys.get().is_none() {
            expect_signals(&terminal, &ended, work.interrupt).map_err(failed)?;
        }
        say(&format!("connected to {name}; ~. ends it\r"));
        pump(line.as_mut(), keys.get_or_init(keyboard), work.interrupt)
    };
    let answer = work.control.with_session(&node.methods, Ability::Console, &|_| (), talk);
    let ended = ended.get().copied();
    match (answer.value, answer.attempts.into_iter().rev().find_map(|attempt| attempt.failure)) {
        (Some(()), _) => Ok(Outcome::done().ended(ended)),
        (None, Some(failure)) => {
            say(&format!("pcu: {name}: {}", output::lines(&failure)));
            Ok(Outcome::of([&failure]).ended(ended))
        }
        (None, None) => bail!("{name} has no method"),
    }
}

/// The first signal hangs up, which takes a second at most; the next one ends without.
fn expect_signals(terminal: &Terminal, ended: &Arc<OnceLock<u8>>, interrupt: &Interrupt) -> io::Result<()> {
    let (terminal, ended, interrupt) = (terminal.clone(), Arc::clone(ended), interrupt.clone());
    signals::handle(move |status| {
        if ended.set(status).is_err() {
            terminal.restore();
            process::exit(status.into());
        }
        interrupt.raise();
    })
}

/// Hands keys to the line and what the line says to the terminal, while there is one.
fn pump(line: &mut dyn Console, keys: &Receiver<Vec<u8>>, interrupt: &Interrupt) -> Result<(), PcuError> {
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
        if end || shown.is_err() || interrupt.is_raised() {
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

impl Terminal {
    fn raw(&self) -> io::Result<Raw<'_>> {
        if io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            raw.make_raw();
            self.0.get_or_init(|| before);
            tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        }
        Ok(Raw(self))
    }

    fn restore(&self) {
        if let Some(before) = self.0.get() {
            // The terminal may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        self.0.restore();
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
