//! Whether the processor is shared fairly, and how exactly each limit is kept.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use orrery_sliver::Session;

use crate::{
    Node,
    figures::{float, tell, tell_cap},
};

/// Slivers that compete.
const COMPETITORS: usize = 100;
/// For how long they are watched.
const WATCH: Duration = Duration::from_secs(30);
/// How long something may take to fill what it is allowed.
const FILLING: Duration = Duration::from_secs(120);
/// Runs until it is killed.
const BUSY: &[&str] = &["/bin/sh", "-c", "while :; do :; done"];

/// Measures all, each limit with a sliver of its own.
pub(crate) fn measure(node: &Node) -> Result<()> {
    fairness(node)?;
    weights(node)?;
    memory(node)?;
    processes(node)?;
    disk(node)?;
    files(node)
}

/// Jain's index of processor time, over slivers of equal weight that never rest: 1 if all have the same, 1/n if one has all.
fn fairness(node: &Node) -> Result<()> {
    let busy = (0..COMPETITORS).map(|number| Busy::start(node, &format!("fair/s{number}"), 100, 1));
    let busy = busy.collect::<Result<Vec<_>>>()?;
    let shares = watch(node, &busy)?;
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    tell(
        "fairness index of processor time (Jain)",
        "slivers",
        "",
        &[sum * sum / (squares * float(COMPETITORS as u64))],
    );
    tell("processor time of each of 100", "slivers", "ms", &shares);
    busy.into_iter().try_for_each(|one| one.end(node))
}

/// Two slivers with as many loops as there are processors.
fn weights(node: &Node) -> Result<()> {
    for weight in [2, 10] {
        let names = [("weight/one", 100), ("weight/more", 100 * weight)];
        let busy =
            names.map(|(slice, weight)| Busy::start(node, slice, weight, thread::available_parallelism()?.get()));
        let busy = busy.into_iter().collect::<Result<Vec<_>>>()?;
        let times = watch(node, &busy)?;
        tell_cap(&format!("cpu_share of {weight} to 1"), "", f64::from(weight), times[1] / times[0]);
        busy.into_iter().try_for_each(|one| one.end(node))?;
    }
    Ok(())
}

fn memory(node: &Node) -> Result<()> {
    let rspec = Rspec { mem_limit: 64 << 20, ..Rspec::default() };
    let login = node.create("cap/memory", rspec)?;
    node.slivers.start(&login)?;
    let status = node.enter(&login, &["/bin/sh", "-c", "head -c 200m /dev/zero | tail"])?.session.wait()?;
    ensure!(!status.success(), "a memory hog ended well");
    let peak: u64 = fs::read_to_string(format!("/sys/fs/cgroup/slivers/{login}/memory.peak"))?.trim().parse()?;
    tell_cap("mem_limit", "KiB", float(rspec.mem_limit >> 10), float(peak >> 10));
    Ok(node.slivers.destroy(&login)?)
}

fn processes(node: &Node) -> Result<()> {
    let rspec = Rspec { pids_limit: 100, ..Rspec::default() };
    let login = node.create("cap/processes", rspec)?;
    let line = "while (defined(my $p = fork)) { $p or sleep 1e6 } open my $f, '>', '/full'; sleep 1e6";
    let bomb = node.enter(&login, &["/usr/bin/perl", "-e", line])?.session;
    let full = format!("/data/slivers/{login}/upper/full");
    let start = Instant::now();
    while !fs::exists(&full)? {
        ensure!(start.elapsed() < FILLING && bomb.try_wait()?.is_none(), "processes are not refused");
        thread::yield_now();
    }
    let (_, count) = node.slivers.usage(&login);
    tell_cap("pids_limit", "", f64::from(rspec.pids_limit), f64::from(count));
    node.slivers.destroy(&login)?;
    bomb.wait()?;
    Ok(())
}

fn disk(node: &Node) -> Result<()> {
    let rspec = Rspec { disk_quota: 64 << 20, ..Rspec::default() };
    let login = node.create("cap/disk", rspec)?;
    let status = node.enter(&login, &["/bin/dd", "if=/dev/zero", "of=/big", "bs=4k"])?.session.wait()?;
    ensure!(!status.success(), "a disk hog ended well");
    let bytes = node.slivers.disk_usage(&login)?.bytes;
    tell_cap("disk_quota in bytes", "KiB", float(rspec.disk_quota >> 10), float(bytes >> 10));
    Ok(node.slivers.destroy(&login)?)
}

/// The same quota also is one of files.
fn files(node: &Node) -> Result<()> {
    let rspec = Rspec { disk_quota: 16 << 20, ..Rspec::default() };
    let login = node.create("cap/files", rspec)?;
    let line = "for (1 .. 1e5) { open my $f, '>', \"/f$_\" or exit 1 }";
    let status = node.enter(&login, &["/usr/bin/perl", "-e", line])?.session.wait()?;
    ensure!(status.code() == Some(1), "a hog of files ended well");
    tell_cap("disk_quota in files", "", float(rspec.disk_quota >> 14), float(node.slivers.disk_usage(&login)?.inodes));
    Ok(node.slivers.destroy(&login)?)
}

/// A sliver whose processes never rest, once it is not suspended any more.
struct Busy {
    login: String,
    sessions: Vec<Session>,
}

impl Busy {
    fn start(node: &Node, slice: &str, weight: u32, processes: usize) -> Result<Self> {
        let login = node.create(slice, Rspec { cpu_share: weight, ..Rspec::default() })?;
        let sessions = (0..processes).map(|_| Ok(node.enter(&login, BUSY)?.session)).collect::<Result<_>>()?;
        // Or those that are there already would keep the next from coming in.
        node.slivers.set_suspended(&login, Some("waits for the others"))?;
        Ok(Self { login, sessions })
    }

    fn end(self, node: &Node) -> Result<()> {
        node.slivers.destroy(&self.login)?;
        self.sessions.into_iter().try_for_each(|session| session.wait().map(drop).context("waiting for a loop"))
    }

    /// Milliseconds of processor time so far.
    fn time(&self, node: &Node) -> Result<f64> {
        let activity = node.slivers.activity(&self.login).context("a busy sliver does not run")?;
        Ok(float(activity.cpu_microseconds) / 1000.0)
    }
}

/// Lets all go on for a while, and returns the milliseconds of processor time that each takes.
fn watch(node: &Node, busy: &[Busy]) -> Result<Vec<f64>> {
    busy.iter().try_for_each(|one| node.slivers.set_suspended(&one.login, None))?;
    let before = busy.iter().map(|one| one.time(node)).collect::<Result<Vec<_>>>()?;
    thread::sleep(WATCH);
    let after = busy.iter().map(|one| one.time(node)).collect::<Result<Vec<_>>>()?;
    // They are in the way of their own end, too.
    busy.iter().try_for_each(|one| node.slivers.set_suspended(&one.login, Some("has been watched")))?;
    Ok(after.iter().zip(before).map(|(after, before)| after - before).collect())
}
