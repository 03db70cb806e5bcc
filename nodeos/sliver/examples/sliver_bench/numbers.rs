//! What slivers cost in numbers: disk, memory, and the time it takes to make many.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use orrery_sliver::{SliverPaths, Slivers};
use rustix::process::WaitOptions;

use crate::{
    Node,
    containers::{Bundle, Lower},
    figures::{float, milliseconds, tell, timed},
};

/// As many as a busy node has, unless there are fewer in all.
const THOUSAND: usize = 1000;
/// Containers beside them, which are all alike.
const CONTAINERS: usize = 100;
const KIB: f64 = 1024.0;

/// Makes `many` slivers, the first of them first idle, then with one sleeping process each.
pub(crate) fn measure(node: &Node, many: usize) -> Result<()> {
    let first = THOUSAND.min(many / 2);
    let what = |text: &str, count: usize| format!("{text}, of {count}");
    fresh(node)?;

    let [memory, disk] = [memory_used()?, disk_used()?];
    let times = create(node, 0..first)?;
    tell(&what("time to create all", first), "slivers", "s", &[times.iter().sum::<f64>() / 1000.0]);
    tell(
        &what("memory of an idle sliver", first),
        "slivers",
        "KiB",
        &[(memory_used()? - memory) / float(first as u64)],
    );
    tell(&what("disk of an idle sliver", first), "slivers", "KiB", &[(disk_used()? - disk) / float(first as u64)]);

    let memory = memory_used()?;
    let start = Instant::now();
    for number in 0..first {
        sleep_inside(node, &login(number))?;
    }
    tell(&what("time to start all", first), "slivers", "s", &[start.elapsed().as_secs_f64()]);
    let each = (memory_used()? - memory) / float(first as u64);
    tell("memory of one with a sleeping process", "slivers", "KiB", &[each]);
    let charged: u64 = (0..first).map(|number| node.slivers.usage(&login(number)).0).sum();
    tell("of which its control group is charged", "slivers", "KiB", &[float(charged) / KIB / float(first as u64)]);
    containers(node)?;
    let start = Instant::now();
    (0..first).try_for_each(|number| node.slivers.stop(&login(number)))?;
    tell(&what("time to stop all", first), "slivers", "s", &[start.elapsed().as_secs_f64()]);
    tell("memory kept of one that was stopped", "slivers", "KiB", &[(memory_used()? - memory) / float(first as u64)]);

    let times: Vec<f64> = times.into_iter().chain(create(node, first..many)?).collect();
    tell(&what("time to create all", many), "slivers", "s", &[times.iter().sum::<f64>() / 1000.0]);
    tell(&what("creating the last hundred", many), "slivers", "ms", &times[many - 100..]);
    let list = timed(|| {
        let count = node.slivers.list()?.len();
        ensure!(count == many, "{count} slivers of {many}");
        Ok(())
    })?;
    tell(&what("listing all", many), "slivers", "ms", &[list]);
    let open = timed(|| Slivers::open(SliverPaths::default()).map(drop).context("opening the slivers"))?;
    tell(&what("opening all, as a node manager does", many), "slivers", "ms", &[open]);
    tell(&what("memory of the node in use", many), "slivers", "MiB", &[memory_used()? / KIB]);
    tell("start and stop of the last", "slivers", "ms", &[timed(|| start_stop(node, &login(many - 1)))?]);
    let start = Instant::now();
    (0..100).try_for_each(|number| node.slivers.destroy(&login(number)))?;
    tell("destroying a sliver, of 100", "slivers", "ms", &[milliseconds(start.elapsed()) / 100.0]);
    Ok(())
}

fn slice(number: usize) -> String {
    format!("many/s{number}")
}

fn login(number: usize) -> String {
    format!("many_s{number}")
}

/// Creates them, and returns how long each took in milliseconds.
fn create(node: &Node, numbers: std::ops::Range<usize>) -> Result<Vec<f64>> {
    numbers.map(|number| timed(|| node.create(&slice(number), Rspec::default()).map(drop))).collect()
}

fn start_stop(node: &Node, login: &str) -> Result<()> {
    node.slivers.start(login)?;
    Ok(node.slivers.stop(login)?)
}

/// Leaves one sleeping process in a sliver, and no session.
fn sleep_inside(node: &Node, login: &str) -> Result<()> {
    node.run(login, &["/bin/sh", "-c", "setsid sleep infinity &"])
}

/// What a new sliver has on disk, before and after it was used once, beside its image.
fn fresh(node: &Node) -> Result<()> {
    let image = tree_size(&node.tree)?;
    let login = node.create("bench/fresh", Rspec::default())?;
    let directory = Path::new("/data/slivers").join(&login);
    let tell_size = |when: &str| -> Result<()> {
        let (bytes, inodes) = tree_size(&directory)?;
        tell(&format!("disk of a sliver, {when}"), "slivers", "KiB", &[float(bytes) / KIB]);
        tell(&format!("inodes of a sliver, {when}"), "slivers", "", &[float(inodes)]);
        tell(&format!("share of its image, {when}"), "slivers", "%", &[100.0 * float(bytes) / float(image.0)]);
        Ok(())
    };
    tell_size("fresh")?;
    node.run(&login, &["/bin/true"])?;
    node.slivers.stop(&login)?;
    tell_size("used once")?;
    tell("disk of the image", "", "MiB", &[float(image.0) / KIB / KIB]);
    tell("inodes of the image", "", "", &[float(image.1)]);
    Ok(node.slivers.destroy(&login)?)
}

/// Bytes and inodes of a tree, each file once.
fn tree_size(tree: &Path) -> Result<(u64, u64)> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut pending = vec![tree.to_owned()];
    while let Some(path) = pending.pop() {
        let data = fs::symlink_metadata(&path)?;
        if seen.insert(data.ino()) {
            bytes += data.blocks() * 512;
        }
        if data.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok((bytes, seen.len() as u64))
}

/// The same with containers of crun.
fn containers(node: &Node) -> Result<()> {
    let lower = Lower::of(node, &login(0))?;
    let make = |number| Bundle::make(&lower, "crun", &format!("sleeper-{number}"), &["/bin/sleep", "infinity"]);
    let bundles = (0..CONTAINERS).map(make).collect::<Result<Vec<_>>>()?;
    let memory = memory_used()?;
    for bundle in &bundles {
        bundle.mount()?;
        bundle.create()?;
        bundle.start()?;
    }
    let each = (memory_used()? - memory) / float(CONTAINERS as u64);
    tell("memory of one with a sleeping process", "crun", "KiB", &[each]);
    for bundle in bundles {
        bundle.delete()?;
        bundle.unmount()?;
        bundle.remove()?;
    }
    lower.unmount()
}

/// KiB of memory that could not be had for something else, once all that can be read again is dropped. The kernel frees some of
/// what it does not need any more a moment later: what counts is where that comes to rest.
fn memory_used() -> Result<f64> {
    let look = || -> Result<f64> {
        reap_orphans();
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
        let text = fs::read_to_string("/proc/meminfo")?;
        let field = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("looking for memory")?;
            Ok(line.trim_end_matches("kB").trim().parse()?)
        };
        Ok(field("MemTotal:")? - field("MemAvailable:")?)
    };
    let mut least = look()?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = look()?;
        if now > least - 256.0 {
            return Ok(now.min(least));
        }
        least = now;
    }
}

/// Does what is a first process's to do: until then, processes that ended hold on to their control groups. No child of this process
/// is waited for elsewhere meanwhile.
fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// KiB that are used on the disk.
fn disk_used() -> Result<f64> {
    rustix::fs::sync();
    let data = rustix::fs::statvfs("/data").context("asking for disk space")?;
    Ok(float((data.f_blocks - data.f_bfree) * data.f_frsize) / KIB)
}
