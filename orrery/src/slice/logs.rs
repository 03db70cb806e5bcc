//! `orrery slice logs`: what a sliver's initscript and service printed, as its node keeps it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::Stdio,
};

use anyhow::{Context as _, Result};
use orrery_protocol::SliceName;
use serde_json::json;

use super::connect::{Ended, Reach, Slivers, status};
use crate::{context::Context, units::clean};

/// The subsystems of a node's ssh gate that print a log: until now, and from then on.
const LOGS: &str = "orrery-logs";
const FOLLOW: &str = "orrery-logs-follow";
/// More than any line has, in bytes.
const LINE: u64 = 64 << 10;

/// Options of `orrery slice logs`.
#[derive(clap::Args)]
pub(crate) struct Logs {
    /// The slice.
    slice: SliceName,
    /// Id of the node; not needed if the slice is on one only.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// Go on with what is added.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Logs {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let slivers = Slivers::of(context, self.slice, self.reach)?;
        let way = slivers.way(&slivers.one(self.node.as_deref())?)?;
        let mut ssh = way.client("ssh");
        ssh.args(["-T", "-s"]).arg(way.destination()).arg(if self.follow { FOLLOW } else { LOGS });
        let mut ssh = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running ssh")?;
        let json = context.json();
        let shown = ssh.stdout.take().map_or(Ok(()), |output| show(output, json, &mut io::stdout().lock()));
        if shown.is_err() {
            // Nobody listens any more.
            let _ = ssh.kill();
        }
        let ended = ssh.wait().context("waiting for ssh")?;
        match shown {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("writing the log"),
            Ok(()) if !ended.success() => Err(Ended(status(ended)).into()),
            _ => Ok(()),
        }
    }
}

/// Passes lines on: one of JSON each, or without what would do something to a terminal, since they are of strangers.
fn show(log: impl Read, json: bool, out: &mut impl Write) -> io::Result<()> {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut log).take(LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\n');
        if json {
            let mut parts = line.splitn(3, ' ').map(str::to_owned);
            let [time, source, text] = std::array::from_fn(|_| parts.next().unwrap_or_default());
            writeln!(out, "{}", json!({ "time": time, "source": source, "text": text }))?;
        } else {
            writeln!(out, "{}", clean(line))?;
        }
        out.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: bool) -> String {
        let mut out = Vec::new();
        show(&b"T service one\nT service \x1b[2Jtwo \xff\nT node"[..], json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_log_does_nothing_to_a_terminal() {
        let text = shown(false);
        assert!(!text.contains('\x1b'), "{text:?}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "T service one", "T node"));
    }

    #[test]
    fn a_program_gets_lines_in_parts() {
        let lines: Vec<serde_json::Value> = shown(true).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[1], json!({ "time": "T", "source": "service", "text": "\u{1b}[2Jtwo \u{fffd}" }));
        assert_eq!(lines[2], json!({ "time": "T", "source": "node", "text": "" }));
    }
}
