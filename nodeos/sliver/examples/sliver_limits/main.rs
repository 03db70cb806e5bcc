//! Tries every limit of a sliver's specification, on a real kernel with two CPUs: the first process of a virtual machine set up
//! as for `sliver_vm`. Each check prints one line, the last is `SLIVER-VM ok` or `SLIVER-VM FAILED`.

mod kept;
mod sockets;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kept::kept;
use orrery_image_store::Store;
use orrery_protocol::{Digest, Rspec};
use orrery_sliver::{EnterRequest, Entered, Run, Session, SliverPaths, Slivers, Stream, internal_main};
use sockets::sockets;
use support::{fingerprint, prepare, spec};

const MIB: u64 = 1 << 20;
/// Over which time is measured.
const A_WHILE: Duration = Duration::from_secs(4);
/// The slivers' control group.
const GROUP: &str = "/sys/fs/cgroup/slivers";

fn main() -> ExitCode {
    internal_main(std::env::args_os()).unwrap_or_else(|| support::finish(run()))
}

type Check = fn(&Node) -> Result<()>;

/// In this order: later ones use what earlier ones left.
const CHECKS: &[(&str, Check)] = &[
    ("all limits are in the kernel", in_the_kernel),
    ("limits change while it runs", change),
    ("pinned to a CPU", pinned),
    ("a cap on processor time", capped),
    ("a guarantee", guaranteed),
    ("files by number", files),
    ("what the kernel keeps", kept),
    ("sockets and ports by number", sockets),
    ("caps on the disk", throttled),
    ("weights on the disk", weighed),
];

/// The slivers, and the image they are of.
struct Node {
    slivers: Slivers,
    image: String,
}

fn run() -> Result<()> {
    prepare()?;
    let store = Store::open(Path::new("/data"))?;
    let image: Digest = fs::read_to_string("/data/incoming/debian.sha256")?.trim().parse().context("a digest")?;
    store.import(File::open("/data/incoming/debian.tar.zst")?, &image, 1 << 30)?;
    let before = fingerprint(&store.tree(&image).context("the image has no tree")?)?;
    let node = Node { slivers: Slivers::open(SliverPaths::default())?, image: image.to_string() };
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check(&node) {
            Ok(()) => println!("ok {name} ({} ms)", start.elapsed().as_millis()),
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    ensure!(fingerprint(&store.tree(&image).context("the image has no tree")?)? == before, "the image changed");
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

impl Node {
    /// Makes a sliver with these limits, and starts it.
    fn start(&self, name: &str, rspec: Rspec) -> Result<String> {
        rspec.check()?;
        let record = self.slivers.create(&spec(&format!("test/{name}"), rspec)?, &self.image)?;
        self.slivers.start(&record.login())?;
        Ok(record.login())
    }

    fn enter(&self, login: &str, line: &str) -> Result<Session> {
        let stdio = [Stream::Null, Stream::Piped, Stream::Null];
        let run = Run::Command(format!("exec 2>&1; {line}").into());
        let request = EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio };
        let Entered { session, .. } = self.slivers.enter(login, request)?;
        Ok(session)
    }

    /// What a command line in a sliver wrote.
    fn said(&self, login: &str, line: &str) -> Result<String> {
        let output = self.enter(login, line)?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "`{line}` in {login}: {}, wrote {text:?}", output.status);
        Ok(text)
    }

    /// How long a command line takes.
    fn timed(&self, login: &str, line: &str) -> Result<Duration> {
        let start = Instant::now();
        self.said(login, line)?;
        Ok(start.elapsed())
    }
}

fn read(login: &str, name: &str) -> Result<String> {
    let path = PathBuf::from(GROUP).join(login).join(name);
    Ok(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
}

fn has(login: &str, files: &[(&str, &str)]) -> Result<()> {
    for (name, expect) in files {
        let now = read(login, name)?;
        ensure!(now == *expect, "{name} of {login} is {now:?} instead of {expect:?}");
    }
    Ok(())
}

/// The numbers of the only disk.
fn disk() -> Result<String> {
    Ok(fs::read_to_string("/sys/class/block/vda/dev")?.trim().to_owned())
}

/// Processor time that a sliver took, in microseconds.
fn took(login: &str) -> Result<u64> {
    let text = read(login, "cpu.stat")?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(usage.context("no usage")?.parse()?)
}

fn full() -> Rspec {
    Rspec {
        cpu_share: 70,
        cpu_cap_pct: 150,
        cpus: [1].into_iter().collect(),
        mem_limit: 96 * MIB,
        swap_limit: 16 * MIB,
        io_weight: 300,
        io_read_bps: 32 * MIB,
        io_write_iops: 900,
        pids_limit: 99,
        nofile: 2000,
        memlock: MIB,
        ..Rspec::default()
    }
}

fn in_the_kernel(node: &Node) -> Result<()> {
    let login = node.start("full", full())?;
    has(
        &login,
        &[
            ("cpu.weight", "70"),
            ("cpu.max", "150000 100000"),
            ("cpuset.cpus", "1"),
            ("memory.max", "100663296"),
            ("memory.swap.max", "16777216"),
            ("pids.max", "99"),
            ("io.weight", "default 300"),
            ("io.max", &format!("{} rbps=33554432 wbps=max riops=max wiops=900", disk()?)),
        ],
    )?;
    let inside = node.said(&login, "echo $(ulimit -Sn) $(ulimit -Hn) $(ulimit -Sl) $(ulimit -Hl)")?;
    ensure!(inside == "1024 2000 1024 1024", "inside, limits of a process are {inside}");
    let plain = node.start("plain", Rspec::default())?;
    has(&plain, &[("cpu.weight", "100"), ("cpu.max", "max 100000"), ("memory.swap.max", "0"), ("io.max", "")])?;
    // Whoever opens files is the one who runs out of them.
    let open = "perl -e 'while (open(my $f, \"<\", \"/dev/null\")) { push @f, $f } print scalar(@f), \" $!\"'";
    let most = node.said(&login, &format!("ulimit -n 2000; {open}"))?;
    ensure!(most.starts_with("1997 Too many open files"), "a process opened {most}");
    let total: u64 = fs::read_to_string("/proc/sys/fs/file-max")?.trim().parse()?;
    ensure!(total > u64::from(u32::MAX), "all slivers together may have {total} files open");
    Ok(())
}

/// The limits of everything that runs are other ones at once, and none where there is to be none.
fn change(node: &Node) -> Result<()> {
    let login = "test_full";
    let mut sleeper = node.enter(login, "ulimit -Sn 500; echo; exec sleep 1000")?;
    std::io::Read::read_exact(sleeper.stdout.as_mut().context("no output")?, &mut [0])?;
    node.slivers.apply_limits(login, Rspec { nofile: 800, memlock: 2 * MIB, ..Rspec::default() })?;
    has(
        login,
        &[
            ("cpu.weight", "100"),
            ("cpu.max", "max 100000"),
            ("cpuset.cpus", "0-1"),
            ("memory.max", "268435456"),
            ("memory.swap.max", "0"),
            ("pids.max", "256"),
            ("io.weight", "default 100"),
            ("io.max", ""),
        ],
    )?;
    let limits = node.said(login, "cat /proc/$(pgrep sleep || pidof sleep)/limits")?;
    let row = |name: &str| -> Vec<&str> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().take(2).collect()
    };
    ensure!(row("Max open files") == ["500", "800"], "a process that runs has {limits}");
    ensure!(row("Max locked memory") == ["2097152", "2097152"], "a process that runs has {limits}");
    let inside = node.said(login, "echo $(ulimit -Sn) $(ulimit -Hn)")?;
    ensure!(inside == "800 800", "inside, limits of a new process are {inside}");
    sleeper.end()?;
    sleeper.wait()?;
    // What a node manager did not come to before it died, the next one does.
    fs::write(format!("{GROUP}/{login}/pids.max"), "9")?;
    let again = Slivers::open(SliverPaths::default())?;
    ensure!(again.is_running(login), "it does not run any more");
    has(login, &[("pids.max", "256")])
}

fn pinned(node: &Node) -> Result<()> {
    let login = "test_full";
    let allowed = || node.said(login, "grep Cpus_allowed_list /proc/self/status; nproc");
    ensure!(allowed()?.ends_with("0-1\n2"), "before, it runs on {}", allowed()?);
    node.slivers.apply_limits(login, Rspec { cpus: [0].into_iter().collect(), ..Rspec::default() })?;
    ensure!(allowed()?.ends_with("\t0\n1"), "it is to run on CPU 0, and runs on {}", allowed()?);
    node.slivers.apply_limits(login, Rspec::default())?;
    Ok(())
}

const HOG: &str = "while :; do :; done";

fn capped(node: &Node) -> Result<()> {
    let login = node.start("capped", Rspec { cpu_cap_pct: 20, ..Rspec::default() })?;
    let hog = node.enter(&login, HOG)?;
    let (start, before) = (Instant::now(), took(&login)?);
    thread::sleep(A_WHILE);
    let share = (took(&login)? - before) as f64 / start.elapsed().as_micros() as f64;
    println!("    {:.1} % of a CPU, capped at 20", share * 100.0);
    ensure!((0.10..0.22).contains(&share), "it took {share}");
    hog.end()?;
    hog.wait()?;
    node.slivers.stop(&login)?;
    Ok(())
}

/// One process with a guarantee of a whole CPU beside six slivers that want both CPUs, twice over.
fn guaranteed(node: &Node) -> Result<()> {
    let crowd: Vec<_> = (0..6).map(|i| node.start(&format!("crowd{i}"), Rspec::default())).collect::<Result<_>>()?;
    let login = node.start("sure", Rspec::default())?;
    let mut hogs: Vec<_> = crowd
        .iter()
        .map(|login| node.enter(login, &format!("({HOG}) & {HOG}")))
        .chain([node.enter(&login, HOG)])
        .collect::<Result<_>>()?;
    // The part of all that slivers take which is this one's.
    let part = || -> Result<f64> {
        let all = || crowd.iter().map(|login| took(login)).sum::<Result<u64>>();
        let (own, others) = (took(&login)?, all()?);
        thread::sleep(A_WHILE);
        let (own, others) = ((took(&login)? - own) as f64, (all()? - others) as f64);
        Ok(own / (own + others))
    };
    let running = || -> Result<Vec<_>> {
        Ok(node.slivers.list()?.into_iter().filter(|record| node.slivers.is_running(&record.login())).collect())
    };
    let busy: BTreeSet<String> = crowd.iter().cloned().collect();
    node.slivers.balance(&running()?, &busy)?;
    let without = part()?;
    node.slivers.apply_limits(&login, Rspec { cpu_pct: 80, ..Rspec::default() })?;
    node.slivers.balance(&running()?, &busy)?;
    let with = part()?;
    let weights = (read(&login, "cpu.weight")?, fs::read_to_string(format!("{GROUP}/cpu.weight"))?);
    println!(
        "    {:.1} % of two CPUs by its share, {:.1} % with 40 guaranteed, {weights:?}",
        without * 100.0,
        with * 100.0
    );
    ensure!(without < 0.25, "a seventh is its share");
    ensure!(with > 0.40 * 0.95, "the guarantee is not kept");
    for hog in hogs.drain(..) {
        hog.end()?;
        hog.wait()?;
    }
    crowd.iter().chain([&login]).try_for_each(|login| node.slivers.stop(login))?;
    node.slivers.balance(&running()?, &BTreeSet::new())?;
    let group = fs::read_to_string(format!("{GROUP}/cpu.weight"))?;
    ensure!(group.trim() == "100", "without guarantees the slivers' weight is {group}");
    Ok(())
}

fn files(node: &Node) -> Result<()> {
    let login = node.start("files", Rspec { disk_inodes: 100, ..Rspec::default() })?;
    let fill = "cd /root; for i in $(seq 200); do : > f$i || break; done; ls | wc -l; rm f*";
    let said = node.said(&login, fill)?;
    println!("    {}", said.replace('\n', "; "));
    let made: u32 = said.lines().last().unwrap_or_default().parse()?;
    ensure!(said.contains("quota exceeded") && made < 100, "{made} files where 100 are too many: {said}");
    node.slivers.apply_limits(&login, Rspec { disk_inodes: 1000, ..Rspec::default() })?;
    let said = node.said(&login, fill)?;
    ensure!(said == "200", "with a higher limit, {said}");
    node.slivers.stop(&login)?;
    Ok(())
}

/// Writes past the page cache, and through it.
fn throttled(node: &Node) -> Result<()> {
    let login = node.start("slow", Rspec::default())?;
    let neighbour = node.start("quick", Rspec::default())?;
    let write = "dd if=/dev/zero of=/root/direct bs=1M count=8 oflag=direct";
    let read = "dd if=/root/direct of=/dev/null bs=1M count=8 iflag=direct";
    let through = "dd if=/dev/zero of=/root/cached bs=1M count=8 conv=fsync";
    let times = || -> Result<[Duration; 3]> {
        Ok([node.timed(&login, write)?, node.timed(&login, read)?, node.timed(&login, through)?])
    };
    let free = times()?;
    let capped = Rspec { io_read_bps: 2 * MIB, io_write_bps: 2 * MIB, ..Rspec::default() };
    node.slivers.apply_limits(&login, capped)?;
    let slow = times()?;
    println!("    8 MiB written, read, and written through the cache: {free:?}, at 2 MiB/s {slow:?}");
    // The first half second or so comes free, as the kernel counts in slices of time.
    ensure!(slow.iter().all(|took| *took > Duration::from_millis(3000)), "{slow:?}");
    ensure!(free[0] < slow[0] / 2 && free[1] < slow[1] / 2, "{free:?} without a cap");

    node.slivers.apply_limits(&login, Rspec { io_write_iops: 20, ..Rspec::default() })?;
    let single = node.timed(&login, "dd if=/dev/zero of=/root/direct bs=4k count=100 oflag=direct")?;
    println!("    100 writes, at 20 a second {single:?}");
    ensure!(single > Duration::from_millis(4000), "{single:?}");

    // What a capped sliver has not written yet must not hold up what others sync.
    node.slivers.apply_limits(&login, capped)?;
    let sync = "dd if=/dev/zero of=/root/synced bs=4k count=1 conv=fsync";
    let alone = node.timed(&neighbour, sync)?;
    let writer = node.enter(&login, "dd if=/dev/zero of=/root/cached bs=1M count=16 conv=fsync")?;
    let mut worst = Duration::ZERO;
    while writer.try_wait()?.is_none() {
        worst = worst.max(node.timed(&neighbour, sync)?);
    }
    println!("    a neighbour's sync takes {alone:?}, beside a capped writer {worst:?} at worst");
    [&login, &neighbour].into_iter().try_for_each(|login| node.slivers.stop(login))?;
    Ok(())
}

/// Two slivers that write as fast as they can, ten times as much due to one. The disk is one of few operations a second, which the
/// kernel learns on the way: by and by, weights count.
fn weighed(node: &Node) -> Result<()> {
    let heavy = node.start("heavy", Rspec { io_weight: 1000, ..Rspec::default() })?;
    let light = node.start("light", Rspec::default())?;
    let by = fs::read_to_string("/sys/fs/cgroup/io.cost.qos")?;
    ensure!(by.starts_with(&format!("{} enable=1", disk()?)), "the kernel weighs by {by}");
    let line = "for i in $(seq 8); do while :; do dd if=/dev/zero of=/root/f$i bs=16k count=64 oflag=direct conv=notrunc; \
                done & done > /dev/null 2>&1; wait";
    let mut hogs = [node.enter(&heavy, line)?, node.enter(&light, line)?];
    let written = |login: &str| -> Result<u64> {
        let text = read(login, "io.stat")?;
        let bytes = text.split_whitespace().find_map(|word| word.strip_prefix("wbytes="));
        Ok(bytes.unwrap_or("0").parse()?)
    };
    let mut counts = false;
    for _ in 0..20 {
        let before = (written(&heavy)?, written(&light)?);
        thread::sleep(A_WHILE);
        let now = (written(&heavy)? - before.0, written(&light)? - before.1);
        println!("    {} and {} KiB written, by weights of 1000 and 100", now.0 >> 10, now.1 >> 10);
        counts = 2 * now.0 > 3 * now.1;
        if counts {
            break;
        }
    }
    for hog in &mut hogs {
        hog.end()?;
        hog.wait()?;
    }
    [&heavy, &light].into_iter().try_for_each(|login| node.slivers.stop(login))?;
    ensure!(counts, "weights do not count");
    Ok(())
}
