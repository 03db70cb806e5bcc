//! `orrery slice exec` and `shell`: programs in slivers, on one node or on many at a time.

use std::{
    io::{self, BufRead, BufReader, Read, Write, stderr, stdout},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use orrery_protocol::SliceName;
use serde::Serialize;

use super::connect::{CLIENT_FAILED, Ended, Reach, Slivers, Way, follow, line, status};
use crate::context::Context;

/// How much of a line is waited for before it is shown, in bytes.
const LINE: u64 = 64 << 10;
/// How much of each output `--json` keeps for each node, in bytes.
const KEPT: u64 = 1 << 20;

/// Options of `orrery slice exec`.
#[derive(clap::Args)]
pub(crate) struct Exec {
    /// The slice.
    slice: SliceName,
    /// Ids of the nodes; all of the slice by default.
    #[arg(long = "node", value_name = "ID", value_delimiter = ',')]
    nodes: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// On how many nodes it runs at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// One word: a line for the shell there. Several: a program and its arguments, passed on as they are.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Options of `orrery slice shell`.
#[derive(clap::Args)]
pub(crate) struct Shell {
    /// The slice.
    slice: SliceName,
    /// Id of the node; not needed if the slice is on one only.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// What became of a command on a node.
#[derive(Debug, Serialize)]
struct Outcome {
    node: String,
    /// The command's; 255 if it could not be run there, or a signal ended it.
    status: u8,
    stdout: String,
    stderr: String,
    /// More was written than is kept.
    truncated: bool,
}

impl Shell {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let slivers = Slivers::of(context, self.slice, self.reach)?;
        let way = slivers.way(&slivers.one(self.node.as_deref())?)?;
        let mut ssh = way.client("ssh");
        ssh.arg("-t").arg(way.destination());
        follow(ssh)
    }
}

impl Exec {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let line = line(&self.command);
        let slivers = Slivers::of(context, self.slice, self.reach)?;
        let nodes = slivers.chosen(&self.nodes)?;
        if let [node] = &nodes[..]
            && !context.json()
        {
            return follow(slivers.way(node)?.ssh(&["-T"], &line));
        }
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..nodes.len().min(self.at_once.into()) {
                scope.spawn(|| {
                    while let Some(node) = nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = on_one(&slivers, node, &line, !context.json());
                        outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    }
                });
            }
        });
        let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by(|one, other| one.node.cmp(&other.node));
        if context.json() {
            context.print(&outcomes, |_| String::new())?;
        }
        match outcomes.iter().map(|outcome| outcome.status).max() {
            None | Some(0) => Ok(()),
            Some(worst) => Err(Ended(worst).into()),
        }
    }
}

/// Runs a line on a node and shows or keeps what it writes. That it cannot be run there is an outcome too: the other nodes
/// go on.
fn on_one(slivers: &Slivers, node: &str, line: &str, show: bool) -> Outcome {
    let mut outcome = Outcome {
        node: node.to_owned(),
        status: CLIENT_FAILED,
        stdout: String::new(),
        stderr: String::new(),
        truncated: false,
    };
    if let Err(error) = slivers.way(node).and_then(|way| collect(&way, line, show, &mut outcome)) {
        let message = crate::explain(&error);
        if show {
            eprintln!("{node}: orrery: {message}");
        }
        outcome.stderr.push_str(&message);
    }
    outcome
}

fn collect(way: &Way, line: &str, show: bool, outcome: &mut Outcome) -> Result<()> {
    // Nobody could tell whose question it is that many clients ask at a time.
    let mut ssh = way.ssh(&["-T", "-o", "BatchMode=yes"], line);
    ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn().context("running ssh (is OpenSSH's client installed?)")?;
    let (out, errors) = (child.stdout.take().context("no output")?, child.stderr.take().context("no output")?);
    let node = &way.node;
    let (out, errors) = thread::scope(|scope| {
        let errors = scope.spawn(|| if show { prefix(errors, node, stderr()) } else { keep(errors) });
        (if show { prefix(out, node, stdout()) } else { keep(out) }, errors.join())
    });
    let (out, errors) = (out?, errors.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?);
    outcome.truncated = out.1 || errors.1;
    (outcome.stdout, outcome.stderr) = (out.0, errors.0);
    outcome.status = status(child.wait().context("waiting for ssh")?);
    Ok(())
}

/// Shows each line with the node before it: lines of several nodes stand between each other.
fn prefix(from: impl Read, node: &str, mut to: impl Write) -> io::Result<(String, bool)> {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(format!("{node}: ").as_bytes());
        if lines.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok((String::new(), false));
        }
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        // At once, or another node's might come in between.
        to.write_all(&line)?;
        to.flush()?;
    }
}

/// Reads to the end and keeps the beginning. Says whether there was more.
fn keep(mut from: impl Read) -> io::Result<(String, bool)> {
    let mut kept = Vec::new();
    from.by_ref().take(KEPT).read_to_end(&mut kept)?;
    let more = io::copy(&mut from, &mut io::sink())? > 0;
    Ok((String::from_utf8_lossy(&kept).into_owned(), more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_where_they_come_from() {
        let check = |from: &[u8], expect: &str| {
            let mut shown = Vec::new();
            prefix(from, "n1", &mut shown).unwrap();
            assert_eq!(String::from_utf8_lossy(&shown), expect);
        };
        check(b"", "");
        check(b"a\n\nb", "n1: a\nn1: \nn1: b\n");
        let long = vec![b'x'; LINE as usize + 1];
        check(&long, &format!("n1: {}\nn1: x\n", "x".repeat(LINE as usize)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        assert_eq!(keep(&b"abc"[..]).unwrap(), ("abc".to_owned(), false));
        let (kept, more) = keep(io::repeat(b'x').take(KEPT + 1)).unwrap();
        assert_eq!((kept.len() as u64, more), (KEPT, true));
    }
}
