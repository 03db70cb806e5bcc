//! The operators' own program, told of every power event: it writes mails, opens tickets, rings somebody.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use orrery_central_api::PowerEvent;
use rustix::process::{Pid, Signal, kill_process_group};

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Runs `program` with the event as a line of JSON on its standard input. Nothing of its output is read.
pub(super) fn tell(program: &Path, event: &PowerEvent) -> io::Result<()> {
    tell_within(program, event, DEADLINE)
}

fn tell_within(program: &Path, event: &PowerEvent, limit: Duration) -> io::Result<()> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    // It need not read it. A message has at most some hundred bytes, which fit into any pipe.
    let _ = child.stdin.take().map(|mut input| input.write_all(&line));
    let end = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(status.to_string())),
            None if Instant::now() >= end => {
                // An error means that it has ended by itself.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {limit:?}")));
            }
            None => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use orrery_central_api::PowerContacts;

    use super::*;

    #[test]
    fn it_gets_one_line_and_a_bounded_time() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tell");
        // Another process writes it: a file that this one holds open for writing cannot be run.
        let write = |script: &str| {
            let mut cat = Command::new("sh");
            cat.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"]);
            assert!(cat.arg(&program).arg(script).status().unwrap().success());
        };
        let event = PowerEvent {
            seq: 7,
            at: 1,
            node: Some("n1".to_owned()),
            kind: "human".to_owned(),
            message: "$(id) \"; rm".to_owned(),
            contacts: PowerContacts { tech: Some("t@x".to_owned()), pi: None },
        };
        write("cat > \"$0.got\"");
        tell(&program, &event).unwrap();
        let got: PowerEvent = serde_json::from_slice(&fs::read(folder.path().join("tell.got")).unwrap()).unwrap();
        assert_eq!(got, event);
        write("exit 3");
        assert!(tell(&program, &event).unwrap_err().to_string().contains('3'));
        write("sleep 60");
        let begun = Instant::now();
        let error = tell_within(&program, &event, Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(tell(&folder.path().join("none"), &event).is_err());
    }
}
