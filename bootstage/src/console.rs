//! What stands on a console in place of a shell: how the node is, for everybody, and a shell for who has the recovery key.
//!
//! Whoever reaches the console's keyboard reaches the power button too, but not what is on the node: a serial console
//! server or a remote management board is a network service, and often a badly kept one.

use std::{
    convert::Infallible,
    fmt::Write as _,
    io::{self, BufRead, IsTerminal, Write},
    os::unix::process::CommandExt,
    process::Command,
    thread,
    time::Duration,
};

use orrery_protocol::{Digest, RecoveryKey};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    stdio::{stdin, stdout},
    termios::{LocalModes, OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr},
};

use crate::{
    node_config,
    rescue::{NodeState, write_network},
};

/// How often it is looked whether there is news.
const REFRESH: Duration = Duration::from_secs(2);
/// What a wrong key costs, the first time; twice as much every time after.
const FIRST_DELAY: Duration = Duration::from_secs(2);
const MAX_DELAY: Duration = Duration::from_secs(300);
const PROMPT: &str = "recovery key: ";

/// Shows and asks until the right key is typed, and becomes a shell then.
///
/// # Errors
/// The terminal went away, or the shell cannot be started.
pub fn run() -> io::Result<Infallible> {
    let terminal = Terminal::prepare()?;
    let mut shown = String::new();
    let mut wrong = 0;
    loop {
        let state = NodeState::at_a_glance();
        let recovery = node_config().ok().and_then(|config| config.recovery);
        let screen = screen(&state, recovery.is_some());
        if screen != shown {
            show(&screen, state.clock, recovery.is_some())?;
            shown = screen;
        }
        if !typed_within(REFRESH)? {
            continue;
        }
        let mut line = String::new();
        // The end of file is a key that people hit; a terminal that is gone is an error.
        if io::stdin().lock().read_line(&mut line).is_ok_and(|read| read == 0) {
            thread::sleep(Duration::from_secs(1));
        }
        match judge(&line, recovery.as_ref()) {
            Answer::Nothing => shown.clear(),
            Answer::Open => {
                terminal.restore()?;
                return shell();
            }
            Answer::Refused(why) => {
                let wait = delay(wrong);
                wrong += 1;
                say(&format!("\n{why}; next try in {} s\n", wait.as_secs()))?;
                thread::sleep(wait);
                // What was typed meanwhile would be tries that cost nothing.
                tcflush(stdin(), QueueSelector::IFlush)?;
                shown.clear();
            }
        }
    }
}

/// What a line is worth.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    Open,
    Refused(String),
}

fn judge(line: &str, recovery: Option<&Digest>) -> Answer {
    match (line.trim(), recovery) {
        ("", _) | (_, None) => Answer::Nothing,
        (typed, Some(digest)) => match typed.parse::<RecoveryKey>() {
            Ok(key) if key.is(digest) => Answer::Open,
            Ok(_) => Answer::Refused("this is not this node's recovery key".into()),
            Err(error) => Answer::Refused(error.to_string()),
        },
    }
}

fn delay(wrong: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1u32.checked_shl(wrong).unwrap_or(u32::MAX)).min(MAX_DELAY)
}

/// All that is shown but the clock, which always is news.
fn screen(state: &NodeState, key: bool) -> String {
    let mut text = format!("--- Orrery {} ---\n", state.version);
    let node = state.node.as_deref().unwrap_or("no configuration");
    let _ = writeln!(text, "node      {node}");
    let _ = write_network(&mut text, &state.network);
    let _ = writeln!(
        text,
        "clock     from {}",
        if state.clock_source.is_empty() { "nothing yet" } else { &state.clock_source }
    );
    match state.failure() {
        Some(event) => {
            let class = event.class.as_deref().unwrap_or("unknown");
            let _ = writeln!(text, "failed    {} ({class}): {}", event.stage, event.message);
            text.push_str("next      the node tries again by itself; what it tries and when is said above\n");
        }
        None => text.push_str("next      nothing has failed; the node goes on by itself\n"),
    }
    if let Some(stage) = &state.installing {
        let _ = writeln!(text, "running   {stage}: it writes to the disk");
    }
    text.push_str(if key {
        "login     type the node's recovery key; it is not shown\n"
    } else {
        "login     none here: the configuration has no recovery key\n"
    });
    text
}

fn show(screen: &str, clock: u64, ask: bool) -> io::Result<()> {
    let prompt = if ask { PROMPT } else { "" };
    say(&format!("\n{screen}          {clock} s since 1970\n{prompt}"))
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

fn typed_within(limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
    let terminal = stdin();
    match poll(&mut [PollFd::new(&terminal, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The terminal while it asks: no echo, since consoles are often recorded, and no key that ends this process, since that
/// would end the waiting.
struct Terminal(Termios);

impl Terminal {
    fn prepare() -> io::Result<Self> {
        if !io::stdin().is_terminal() {
            return Err(io::Error::other("the recovery login needs a terminal"));
        }
        let before = tcgetattr(stdout())?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        modes.local_modes.insert(LocalModes::ICANON);
        tcsetattr(stdout(), OptionalActions::Flush, &modes)?;
        Ok(Self(before))
    }

    fn restore(self) -> io::Result<()> {
        Ok(tcsetattr(stdout(), OptionalActions::Flush, &self.0)?)
    }
}

fn shell() -> io::Result<Infallible> {
    say("\n")?;
    Err(Command::new("/bin/busybox").arg0("-sh").current_dir("/root").exec())
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{NicFacts, Outcome};

    use super::*;
    use crate::rescue::tests::event;

    const KEY: &str = "01234-56789-ABCDE-FGHJK-MNPQR-STVWX-YZ012-34567";

    #[test]
    fn only_the_right_key_opens() {
        let digest = KEY.parse::<RecoveryKey>().unwrap().digest();
        let check = |line: &str, recovery: Option<&Digest>, expect: fn(&Answer) -> bool| {
            let answer = judge(line, recovery);
            assert!(expect(&answer), "{line:?}: {answer:?}");
        };
        check(&format!("{KEY}\n"), Some(&digest), |a| *a == Answer::Open);
        check(&KEY.to_lowercase().replace('-', " "), Some(&digest), |a| *a == Answer::Open);
        check(&KEY.replace('7', "8"), Some(&digest), |a| matches!(a, Answer::Refused(_)));
        check("root\n", Some(&digest), |a| matches!(a, Answer::Refused(_)));
        check("\n", Some(&digest), |a| *a == Answer::Nothing);
        check(&format!("{KEY}\n"), None, |a| *a == Answer::Nothing);
    }

    #[test]
    fn guessing_gets_slower_and_stays_possible() {
        let seconds: Vec<_> = [0, 1, 2, 7, 8, 40].map(|wrong| delay(wrong).as_secs()).to_vec();
        assert_eq!(seconds, [2, 4, 8, 256, 300, 300]);
    }

    #[test]
    fn the_screen_says_how_the_node_is() {
        let state = NodeState {
            node: Some("n1".into()),
            version: "0.1.0".into(),
            clock_source: "rtc".into(),
            network: vec![NicFacts { name: "eth0".into(), mac: "52:54:00:12:34:56".into(), ..NicFacts::default() }],
            events: vec![event("contact", Outcome::Failed, 2500)],
            ..NodeState::default()
        };
        insta::assert_snapshot!("failed", screen(&state, true));
        insta::assert_snapshot!("fresh", screen(&NodeState::default(), false));
    }
}
