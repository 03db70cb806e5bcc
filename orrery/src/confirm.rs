//! Asking before something is lost. Only who sits at a terminal is asked: scripts mean what they say.

use std::{
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, IsTerminal, Write, stderr, stdin},
};

use anyhow::{Context as _, Result, ensure};

/// How many names a question has before it counts.
const NAMED: usize = 8;

/// Whether to ask.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Confirm {
    /// Do not ask first. Where standard input is no terminal, nothing is asked.
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Says `what` will happen, and goes on at the answer `yes`.
    pub(crate) fn ask(self, what: impl FnOnce() -> Result<String>) -> Result<()> {
        if self.yes || !stdin().is_terminal() {
            return Ok(());
        }
        ensure!(stderr().is_terminal(), "nobody would see a question on standard error: say --yes");
        ask(&what()?, &mut stdin().lock(), &mut stderr())
    }

    /// Asks although standard input is something else: the answer comes from the terminal, if standard error is one.
    pub(crate) fn ask_beside_input(self, what: impl FnOnce() -> Result<String>) -> Result<()> {
        match File::open("/dev/tty") {
            Ok(terminal) if !self.yes && stderr().is_terminal() => {
                ask(&what()?, &mut BufReader::new(terminal), &mut stderr())
            }
            _ => Ok(()),
        }
    }
}

/// Names in a sentence; not all if they are many.
pub(crate) fn some(names: &[impl Display]) -> String {
    let named = names.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        _ if names.is_empty() => "none".to_owned(),
        None | Some(0) => named,
        Some(more) => format!("{named} and {more} more"),
    }
}

fn ask(what: &str, answers: &mut impl BufRead, out: &mut impl Write) -> Result<()> {
    write!(out, "{what}\nType `yes` to go on: ").and_then(|()| out.flush()).context("asking")?;
    let mut answer = String::new();
    answers.read_line(&mut answer).context("reading the answer")?;
    ensure!(answer.trim() == "yes", "the answer was not `yes`: nothing was done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_goes_on() {
        let check = |answer: &str, expect: bool| {
            let mut shown = Vec::new();
            assert_eq!(ask("n1 is lost.", &mut answer.as_bytes(), &mut shown).is_ok(), expect, "{answer:?}");
            assert_eq!(shown, b"n1 is lost.\nType `yes` to go on: ");
        };
        check("yes\n", true);
        check(" yes \r\n", true);
        check("y\n", false);
        check("\n", false);
        check("no\nyes\n", false);
        // The end of input.
        check("", false);
    }

    #[test]
    fn many_names_are_counted() {
        let check = |count: usize, expect: &str| assert_eq!(some(&(1..=count).collect::<Vec<_>>()), expect);
        check(0, "none");
        check(1, "1");
        check(8, "1, 2, 3, 4, 5, 6, 7, 8");
        check(10, "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }
}
