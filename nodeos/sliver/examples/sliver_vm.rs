//! Tries slivers on a real kernel: the first process of a virtual machine that checks every limit and powers off.
//!
//! Built static, it is `/init` of an initramfs with empty /dev, /proc, /sys, /run and /data. The first virtio disk is an ext4
//! file system with project quotas (`mke2fs -O project,quota -E quotatype=prjquota`) that has a Debian archive at
//! `incoming/debian.tar` (or `.tar.zst`, plus its SHA-256 in hexadecimal with `.sha256`). Each check prints one line, the last
//! is `SLIVER-VM ok` or `SLIVER-VM FAILED`.

#[path = "support/step.rs"]
mod step;
mod support;

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_image_store::Store;
use orrery_protocol::{Digest, Extras, Rspec};
use orrery_sliver::{EnterRequest, Entered, Pty, Record, Run, Session, SliverPaths, Slivers, Stream, internal_main};
use orrery_sys::{
    namespace::{Fork, fork},
    quota,
};
use rustix::{
    process::{DumpableBehavior, Gid, Pid, PidfdFlags, Signal, Uid, WaitOptions},
    thread::ThreadNameSpaceType,
};
use step::step;
use support::{fingerprint, prepare, spec};

/// The first argument of [`be_stranger`].
const STRANGER: &str = "stranger";

fn main() -> ExitCode {
    if let Some(code) = internal_main(std::env::args_os()) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, first] = &arguments[..]
        && word == STRANGER
    {
        let Err(error) = be_stranger(first);
        println!("    stranger: {error:#}");
        return ExitCode::FAILURE;
    }
    support::finish(run())
}

fn request(run: Run) -> EnterRequest {
    let stdio = [Stream::Null, Stream::Piped, Stream::Piped];
    EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio }
}

/// Runs a command line in a sliver; returns its exit status and all it wrote.
fn inside(slivers: &Slivers, login: &str, line: &str) -> Result<(i32, String)> {
    let Entered { session, .. } = slivers.enter(login, request(Run::Command(format!("exec 2>&1; {line}").into())))?;
    let output = session.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let signalled = || output.status.signal().map(|number| 128 + number);
    Ok((output.status.code().or_else(signalled).unwrap_or(-1), text))
}

fn expect(slivers: &Slivers, login: &str, line: &str, code: i32, part: &str) -> Result<String> {
    let (got, text) = inside(slivers, login, line)?;
    for line in text.lines() {
        println!("    {line}");
    }
    ensure!(got == code && text.contains(part), "`{line}` in {login}: status {got}, wrote {text:?}");
    Ok(text)
}

fn processes() -> Result<usize> {
    Ok(fs::read_dir("/proc")?.flatten().filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).count())
}

fn run() -> Result<()> {
    step("prepare", prepare)?;
    let store = Store::open(Path::new("/data"))?;
    let image = step("import", || import(&store))?;
    let tree = store.tree(&image).context("the image has no tree")?;
    let before = fingerprint(&tree)?;
    let image = image.to_string();

    let slivers = Slivers::open(SliverPaths::default())?;
    let small = Rspec { mem_limit: 64 << 20, disk_quota: 16 << 20, pids_limit: 40, ..Rspec::default() };
    step("create", || Ok(slivers.create(&spec("test/one", small)?, &image)?))?;
    slivers.create(&spec("test/two", Rspec::default())?, &image)?;
    step("an unused sliver has neither process nor mount", || unused(&slivers))?;
    step("suspend and resume", || suspended(&slivers))?;
    step("reset and restart", || reset(&slivers, &image))?;
    step("limits of an interrupted change", || interrupted(&slivers))?;
    step("start", || Ok(slivers.start("test_one")?))?;
    step("start again", || Ok(slivers.start("test_one")?))?;
    step("identity", || expect(&slivers, "test_one", "id; hostname; cat /proc/self/uid_map", 0, "uid=0(root)"))?;
    step("debian", || expect(&slivers, "test_one", "cat /etc/debian_version; apt --version; touch /x", 0, "apt "))?;
    step("files belong to root", || {
        expect(&slivers, "test_one", "stat -c %u:%g / /etc/passwd /x /dev /run", 0, "0:0")
    })?;
    step("capabilities", || expect(&slivers, "test_one", "grep Cap /proc/self/status", 0, "CapEff"))?;
    step("no mounting", || {
        expect(&slivers, "test_one", "mount -t tmpfs none /mnt; umount /dev/pts || umount /proc", 32, "denied")
    })?;
    step("no node files", || expect(&slivers, "test_one", "ls /data /sys/fs", 2, "No such"))?;
    step("devices", || {
        expect(&slivers, "test_one", "ls -l /dev; echo x > /dev/null; head -c4 /dev/urandom | wc -c", 0, "4")
    })?;
    step("resolver", || expect(&slivers, "test_one", "cat /etc/resolv.conf", 0, "10.0.2.3"))?;
    step("packages", || {
        expect(
            &slivers,
            "test_one",
            "dpkg -l | wc -l; mv /usr/share/doc /usr/share/doc2; ls -d /usr/share/doc2",
            0,
            "doc2",
        )
    })?;
    step("exit status", || expect(&slivers, "test_one", "exit 42", 42, ""))?;
    step("signal", || expect(&slivers, "test_one", "kill -KILL $$", 137, ""))?;
    step("a session that is killed takes its command along", || {
        expect(&slivers, "test_one", "kill -KILL $PPID; exec sleep 1000", 137, "")
    })?;
    step("signals reach a command and what it started", || signals(&slivers))?;
    step("terminal", || terminal(&slivers))?;
    step("input", || input(&slivers))?;

    step("processes are bounded", || {
        let (_, text) =
            inside(&slivers, "test_one", "for i in $(seq 100); do sleep 1000 >/dev/null 2>&1 & done; echo forked")?;
        let (_, running) = slivers.usage("test_one");
        println!("    {running} processes; {}", text.lines().last().unwrap_or_default());
        ensure!((20..=40).contains(&running), "{running} processes");
        ensure!(processes()? < 200, "{} processes on the node", processes()?);
        Ok(())
    })?;
    step("restart", || {
        slivers.stop("test_one")?;
        ensure!(!slivers.is_running("test_one"), "still running");
        expect(&slivers, "test_one", "ls /x; ps ax 2>/dev/null || ls -d /proc/[0-9]*", 0, "/x")
    })?;
    step("starts are forked from one process, which may die", || forked(&slivers))?;
    step("fork bomb", || {
        let (code, _) = inside(&slivers, "test_one", "(b() { b | b & }; b) >/dev/null 2>&1; exit 3")?;
        println!("    status {code}, {} processes", slivers.usage("test_one").1);
        ensure!(slivers.usage("test_one").1 <= 40, "too many processes");
        slivers.stop("test_one")?;
        Ok(())
    })?;
    step("memory hog is killed", || {
        let line = "head -c 200m /dev/zero | tail | wc -c";
        slivers.start("test_one")?;
        let (code, text) = inside(&slivers, "test_one", line)?;
        println!("    status {code} {text:?}");
        ensure!(code != 0, "the hog ended well: {text}");
        ensure!(slivers.is_running("test_one"), "the sliver died with it");
        expect(&slivers, "test_one", "echo alive", 0, "alive")
    })?;
    step("quota", || {
        expect(
            &slivers,
            "test_one",
            "dd if=/dev/zero of=/big bs=1M count=64; ls -l /big; rm /big; sync",
            0,
            "uota exceeded",
        )
        .or_else(|_| {
            expect(&slivers, "test_one", "dd if=/dev/zero of=/big bs=1M count=64; rm -f /big; sync", 0, "No space")
        })?;
        println!("    {:?}", slivers.disk_usage("test_one")?);
        Ok(())
    })?;
    step("slivers do not see each other", || {
        expect(&slivers, "test_one", "sleep 1000 >/dev/null 2>&1 & echo started", 0, "started")?;
        expect(&slivers, "test_two", "ls /x", 2, "No such")?;
        let text = expect(&slivers, "test_two", "cat /proc/[0-9]*/comm", 0, "cat")?;
        ensure!(!text.contains("sleep"), "another sliver's process shows");
        Ok(())
    })?;
    step("no user namespaces", || expect(&slivers, "test_two", "unshare -U true", 1, "not permitted"))?;
    step("no network namespaces", || expect(&slivers, "test_two", "unshare -n true", 1, "unshare"))?;
    step("devices are there on request", || devices(&slivers, &image))?;
    step("settings of the kernel", || {
        // The first is there only in kernels that dump core.
        let now = || ["core_pattern", "panic"].map(|name| fs::read(format!("/proc/sys/kernel/{name}")).ok());
        let before = now();
        let line = "for f in kernel/core_pattern kernel/panic user/max_user_namespaces; do \
                    echo 9 > /proc/sys/$f || echo refused; done; echo 9 >> /proc/sys/kernel/panic";
        let text = expect(&slivers, "test_two", line, 1, "Read-only")?;
        ensure!(text.matches("refused").count() == 3 && now() == before, "a setting was written");
        ensure!(fs::read_to_string("/proc/sys/user/max_user_namespaces")?.trim() != "0", "the node's limit changed");
        for name in ["kernel/io_uring_disabled", "kernel/kexec_load_disabled", "net/ipv4/ip_unprivileged_port_start"] {
            println!("    {name} {:?}", fs::read_to_string(format!("/proc/sys/{name}")).map(|t| t.trim().to_owned()));
        }
        Ok(())
    })?;
    step("whoever is not of the domain is out of reach", || stranger(&slivers))?;
    step("whoever is not hidden is caught", || control(&slivers))?;
    step("whoever enters is not caught", || {
        // Most are stopped too late to be missed by whoever entered.
        for _ in 0..15 {
            if hunt(&slivers)? {
                break;
            }
        }
        Ok(())
    })?;
    step("deep directories are removed", || {
        let line =
            "perl -e 'chdir \"/root\"; for (1..3000) { mkdir \"d\" or die $!; chdir \"d\" or die $!; } print \"dug\"'";
        expect(&slivers, "test_two", line, 0, "dug")?;
        slivers.destroy("test_two")?;
        let left: Vec<_> = fs::read_dir("/data/slivers")?.flatten().map(|e| e.file_name()).collect();
        ensure!(left == ["test_one"], "{left:?} are left");
        Ok(())
    })?;
    step("the image is unchanged", || {
        ensure!(fingerprint(&tree)? == before, "the tree changed");
        ensure!(!tree.join("x").exists(), "a file is in the tree");
        Ok(())
    })?;
    step("limits change while it runs", || {
        slivers.apply_limits("test_one", Rspec { pids_limit: 77, ..small })?;
        let now = fs::read_to_string("/sys/fs/cgroup/slivers/test_one/pids.max")?;
        ensure!(now.trim() == "77", "{now}");
        Ok(())
    })?;
    step("destroy", || {
        slivers.destroy("test_one")?;
        slivers.destroy("test_one")?;
        ensure!(!Path::new("/data/slivers/test_one").exists(), "files are left");
        ensure!(!Path::new("/sys/fs/cgroup/slivers/test_one").exists(), "a control group is left");
        let left = fs::read_to_string("/proc/self/mounts")?;
        ensure!(!left.contains("overlay"), "mounts are left: {left}");
        Ok(())
    })?;
    step("many", || {
        for i in 0..20 {
            let spec = spec(&format!("many/s{i}"), Rspec::default())?;
            slivers.create(&spec, &image)?;
            slivers.start(&spec.slice.login())?;
        }
        let (memory, processes) = slivers.usage("many_s0");
        println!(
            "    an idle sliver: {memory} bytes of memory, {processes} processes, {:?}",
            slivers.disk_usage("many_s0")?
        );
        Ok(())
    })
}

/// One process starts all slivers. If it is killed they stay, and another takes its place.
fn forked(slivers: &Slivers) -> Result<()> {
    let servers = || -> Vec<i32> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // First processes of slivers and sessions, one of which may be about to end, are forks of it, and have other names.
        let is_one = |number: &i32| {
            let read = |name: &str| fs::read(format!("/proc/{number}/{name}")).unwrap_or_default();
            let other = matches!(read("comm").as_slice(), b"" | b"sliver\n" | b"session\n");
            !other && read("cmdline").split(|byte| *byte == 0).any(|word| word == b"sliver-boot")
        };
        numbers.filter(is_one).collect()
    };
    slivers.start("test_one")?;
    let before = servers();
    slivers.stop("test_two")?;
    slivers.start("test_two")?;
    let [server] = before[..] else { bail!("there is not one process that starts slivers, but {before:?}") };
    ensure!(servers() == before, "a start leaves {:?}", servers());
    let pid = Pid::from_raw(server).context("it has no number")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
    expect(slivers, "test_two", "echo lives", 0, "lives")?;
    slivers.stop("test_two")?;
    expect(slivers, "test_two", "echo again", 0, "again")?;
    let after = servers();
    ensure!(after.len() == 1 && after != before, "after {before:?} was killed there is {after:?}");
    Ok(())
}

/// The names of all processes in a sliver, for messages.
fn inhabitants(login: &str) -> String {
    let group = format!("/slivers/{login}/");
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let inside = folders.filter(|p| fs::read_to_string(p.join("cgroup")).is_ok_and(|text| text.contains(&group)));
    inside.filter_map(|p| fs::read_to_string(p.join("stat")).ok()).collect::<Vec<_>>().join("; ")
}

/// Reaps what its parent left to this first process; to be called while no child of this process is waited for elsewhere.
fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// What there is of a sliver beside its files: nothing, before its first login and after it was unused.
fn unused(slivers: &Slivers) -> Result<()> {
    let group = Path::new("/sys/fs/cgroup/slivers/test_one");
    ensure!(!group.exists(), "a new sliver is not unused");
    let activity = || slivers.activity("test_one").context("it does not run");
    let settled = || -> Result<_> {
        let start = Instant::now();
        loop {
            reap_orphans();
            let now = activity()?;
            if now.is_idle() && activity()? == now {
                return Ok(now);
            }
            ensure!(start.elapsed() < Duration::from_secs(10), "it does not settle: {}", inhabitants("test_one"));
            std::thread::yield_now();
        }
    };

    expect(slivers, "test_one", "echo first login", 0, "first login")?;
    let since = settled()?;
    println!("    {since:?}");
    expect(slivers, "test_one", "true", 0, "")?;
    settled()?;
    ensure!(!slivers.stop_unused("test_one", since)?, "stopped although somebody was in it since");

    let session = slivers.enter("test_one", request(Run::Command("sleep 1000".into())))?.session;
    let busy = activity()?;
    ensure!(!busy.is_idle() && !slivers.stop_unused("test_one", busy)?, "stopped under a session");
    session.end()?;
    session.wait()?;
    expect(slivers, "test_one", "(setsid sleep 1000 & echo $! > /pid) >/dev/null 2>&1 <&1; true", 0, "")?;
    let busy = activity()?;
    ensure!(!busy.is_idle() && !slivers.stop_unused("test_one", busy)?, "stopped over a service");
    expect(slivers, "test_one", "kill -9 $(cat /pid)", 0, "")?;

    settled()?;

    // Whoever comes in while it is being stopped gets in.
    let done = AtomicBool::new(false);
    let stopped = std::thread::scope(|scope| -> Result<u32> {
        let resting = scope.spawn(|| -> Result<u32> {
            let mut stopped = 0;
            while !done.load(Ordering::Relaxed) {
                if let Some(now) = slivers.activity("test_one") {
                    stopped += u32::from(slivers.stop_unused("test_one", now)?);
                }
            }
            Ok(stopped)
        });
        let entered = (0..20).try_for_each(|_| {
            expect(slivers, "test_one", "echo in", 0, "in")?;
            // Just when it may be stopped, the next comes.
            let start = Instant::now();
            while slivers.activity("test_one").is_some_and(|now| !now.is_idle()) {
                ensure!(start.elapsed() < Duration::from_secs(10), "it does not settle: {}", inhabitants("test_one"));
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let stopped = resting.join().map_err(|_| anyhow::anyhow!("stopping panicked"))?;
        entered.and(stopped)
    })?;
    println!("    stopped {stopped} times while 20 came in");
    ensure!(stopped > 0, "it was never stopped, so this shows nothing");

    expect(slivers, "test_one", "true", 0, "")?;
    ensure!(slivers.stop_unused("test_one", settled()?)?, "not stopped although unused");
    ensure!(!group.exists(), "a control group of an unused sliver is left");
    reap_orphans();
    ensure!(inhabitants("test_one").is_empty(), "processes are left: {}", inhabitants("test_one"));
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains("overlay") && !mounts.contains("/run/slivers"), "mounts are left: {mounts}");
    Ok(())
}

/// A counter inside that runs as fast as it can moves only while the sliver is not suspended.
fn suspended(slivers: &Slivers) -> Result<()> {
    let counter = Path::new("/data/slivers/test_one/upper/count");
    let count = || fs::read_to_string(counter).ok().and_then(|text| text.lines().last()?.parse::<u64>().ok());
    let cpu = || slivers.activity("test_one").context("it does not run").map(|activity| activity.cpu_microseconds);
    let moves = |what: &str| -> Result<()> {
        let (start, first) = (Instant::now(), count());
        while count() <= first {
            ensure!(start.elapsed() < Duration::from_secs(20), "the counter stands still {what}");
            std::thread::yield_now();
        }
        Ok(())
    };
    let line = "i=0; while :; do i=$((i+1)); echo $i > /count; done";
    let session = slivers.enter("test_one", request(Run::Command(line.into())))?.session;
    moves("at first")?;
    for _ in 0..2 {
        slivers.set_suspended("test_one", Some("abuse"))?;
    }
    let (still, time) = (count(), cpu()?);
    match slivers.enter("test_one", request(Run::Shell)) {
        Err(error) => ensure!(error.to_string() == "slice test/one is suspended: abuse", "{error}"),
        Ok(_) => bail!("entered a suspended sliver"),
    }
    ensure!(slivers.start("test_one").is_err(), "started a suspended sliver");
    // Whatever would run, does while this works.
    fingerprint(Path::new("/data/slivers"))?;
    ensure!(count() == still && cpu()? == time, "it runs while suspended");

    // A node manager that opens the slivers makes what the records say so, either way.
    let frozen = Path::new("/sys/fs/cgroup/slivers/test_one/cgroup.freeze");
    fs::write(frozen, "0")?;
    let again = Slivers::open(SliverPaths::default())?;
    ensure!(fs::read_to_string(frozen)?.trim() == "1", "opening does not renew a suspension");
    again.set_suspended("test_one", None)?;
    moves("after it was resumed")?;
    fs::write(frozen, "1")?;
    Slivers::open(SliverPaths::default())?;
    moves("after opening thawed what is not suspended")?;

    // What stands still can be stopped, and stays suspended.
    again.set_suspended("test_one", Some("abuse"))?;
    again.stop("test_one")?;
    session.wait()?;
    ensure!(again.start("test_one").is_err(), "started a suspended sliver");
    again.set_suspended("test_one", None)?;
    expect(slivers, "test_one", "rm /count; echo in", 0, "in").map(drop)
}

/// A node manager that died between writing limits down and putting them in force, or lost the latter with the power.
fn interrupted(slivers: &Slivers) -> Result<()> {
    let path = Path::new("/data/slivers/test_two/sliver.json");
    let before = slivers.get("test_two")?;
    slivers.start("test_two")?;
    let mut changed = before.clone();
    (changed.spec.rspec.cpu_share, changed.spec.rspec.disk_quota) = (77, 48 << 20);
    fs::write(path, serde_json::to_vec(&changed)?)?;
    let again = Slivers::open(SliverPaths::default())?;
    let weight = fs::read_to_string("/sys/fs/cgroup/slivers/test_two/cpu.weight")?;
    ensure!(weight.trim() == "77", "the weight is {weight}");
    let data = File::open("/data")?;
    let project = quota::projects(data.as_fd())?.into_iter().find(|project| project.id == changed.index + 1);
    ensure!(project.is_some_and(|project| project.limit.bytes == 48 << 20), "the limit is that of {project:?}");
    again.apply_limits("test_two", before.spec.rspec)?;
    Ok(again.stop("test_two")?)
}

/// A sliver has other devices only where its specification says so, from its next start on, and none of the rights that they
/// would take without namespaces of its own.
fn devices(slivers: &Slivers, image: &str) -> Result<()> {
    expect(slivers, "test_two", "ls -d /dev/fuse /dev/net", 2, "No such")?;
    let rspec = |fuse, tun| Rspec { extras: Extras { fuse, tun, nesting: false }, ..Rspec::default() };
    slivers.create(&spec("test/three", rspec(true, false))?, image)?;
    let user = "useradd ann; su ann -s /bin/sh -c";
    expect(slivers, "test_three", &format!("{user} 'exec 3<>/dev/fuse && echo open'; ls /dev/net"), 2, "open\n")?;
    slivers.apply_limits("test_three", rspec(false, true))?;
    slivers.stop("test_three")?;
    expect(slivers, "test_three", &format!("{user} 'exec 3<>/dev/net/tun && echo open'; ls /dev/fuse"), 2, "open\n")?;
    expect(slivers, "test_three", "ip tuntap add dev t0 mode tun", 1, "not permitted")?;
    Ok(slivers.destroy("test_three")?)
}

/// A sliver that filled its disk and is running is as new after a reset, once for each number.
fn reset(slivers: &Slivers, image: &str) -> Result<()> {
    let record = slivers.get("test_one")?;
    let mut spec = record.spec.clone();
    expect(slivers, "test_one", "rm /etc/debian_version; dd if=/dev/zero of=/big bs=1M count=64", 1, "")?;
    let session = slivers.enter("test_one", request(Run::Command("sleep 1000".into())))?.session;
    spec.life.reset = 5;
    slivers.reset(&spec, image)?;
    ensure!(!session.wait()?.success() && !slivers.is_running("test_one"), "something runs on");
    ensure!(slivers.get("test_one")?.spec.life.reset == 5, "the number is not kept");
    ensure!(Record { spec: spec.clone(), ..record } == slivers.get("test_one")?, "the record changed");
    // Its mounts, which hold its last open files, are gone a moment after its processes.
    let asked = Instant::now();
    while slivers.disk_usage("test_one")?.bytes >= 64 << 10 {
        ensure!(asked.elapsed() < Duration::from_secs(10), "{:?} after a reset", slivers.disk_usage("test_one")?);
        std::thread::yield_now();
    }
    expect(slivers, "test_one", "ls /big; cat /etc/debian_version && touch /kept", 0, "No such")?;
    expect(slivers, "test_one", "dd if=/dev/zero of=/big bs=1M count=64; rm /big", 0, "exceeded")?;
    for number in [5, 4] {
        spec.life.reset = number;
        slivers.reset(&spec, image)?;
    }
    expect(slivers, "test_one", "ls /kept; grep -c . /proc/uptime", 0, "/kept")?;

    slivers.restart("test_one", 7)?;
    ensure!(!slivers.is_running("test_one"), "it was not stopped");
    slivers.start("test_one")?;
    slivers.restart("test_one", 7)?;
    ensure!(slivers.is_running("test_one"), "a restart was carried out twice");
    slivers.stop("test_one")?;
    expect(slivers, "test_one", "rm /kept", 0, "").map(drop)
}

fn import(store: &Store) -> Result<Digest> {
    let image =
        fs::read_to_string("/data/incoming/debian.sha256")?.trim().parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    let archive = ["/data/incoming/debian.tar", "/data/incoming/debian.tar.zst"];
    let path = archive.iter().find(|p| Path::new(p).exists()).context("no archive")?;
    let imported = store.import(File::open(path)?, &image, 1 << 30)?;
    println!("    {imported:?}");
    Ok(image)
}

/// Stops and traces every process that appears in the sliver. One that is no program of the sliver's is what it is after: it says
/// whether it may be traced or looked into, leaves it stopped and ends.
const HUNTER: &str = r#"
$| = 1; $SIG{ALRM} = sub { print "gave up, saw $seen\n"; exit }; alarm 30;
sub list { opendir(my $d, "/proc"); grep { /^\d+$/ } readdir $d }
my %known = map { $_ => 1 } list();
print "hunting\n";
while (1) {
    for my $pid (list()) {
        next if $known{$pid}++;
        $seen++;
        kill "STOP", $pid;
        my $traced = syscall(101, 16, $pid, 0, 0);
        my $maps;
        my $looked = open($maps, "<", "/proc/$pid/maps") && defined(readline $maps);
        open(my $comm, "<", "/proc/$pid/comm") or next;
        my $name = readline $comm;
        if ($name eq "session\n") {
            print "caught $pid after $seen: ", $traced == 0 ? "TRACED" : "not traced", $looked ? " LOOKED" : "", "\n";
            exit;
        }
        waitpid($pid, 0), syscall(101, 17, $pid, 0, 0) if $traced == 0;
        kill "CONT", $pid;
    }
}
"#;

/// Starts the hunter as the sliver's root; it ends when it has caught somebody or given up.
fn lie_in_wait(slivers: &Slivers) -> Result<Session> {
    let stdio = [Stream::Piped, Stream::Null, Stream::Null];
    let run = Run::Command("cat > /root/hunter; exec perl /root/hunter > /root/hunt 2>&1".into());
    let mut hunter = slivers.enter("test_two", EnterRequest { stdio, ..request(run) })?.session;
    hunter.stdin.take().context("no input")?.write_all(HUNTER.as_bytes())?;
    Ok(hunter)
}

/// What [`hunt`] says is worth as much as this: the same hunter does catch an ordinary process of that name.
fn control(slivers: &Slivers) -> Result<()> {
    let prey = r#"exec perl -e '$0 = "session"; while (1) { my $p = fork; if (!$p) { sleep 1; exit } waitpid $p, 0 }'"#;
    let prey = slivers.enter("test_two", request(Run::Command(prey.into())))?.session;
    lie_in_wait(slivers)?.wait()?;
    prey.end()?;
    prey.wait()?;
    expect(slivers, "test_two", "cat /root/hunt; kill -CONT -1", 0, "TRACED LOOKED").map(drop)
}

/// Who was not forked inside is not of the sliver's domain: its root sees such a process, as root of the user namespace, and neither
/// signals nor traces it.
fn stranger(slivers: &Slivers) -> Result<()> {
    slivers.start("test_two")?;
    let processes = fs::read_to_string("/sys/fs/cgroup/slivers/test_two/init/cgroup.procs")?;
    let first = processes.lines().next().context("the sliver has no first process")?;
    let mut stranger = Command::new("/proc/self/exe").arg(STRANGER).arg(first).spawn()?;
    let look = r#"perl -e 'for (1 .. 10000) { for my $d (glob "/proc/[0-9]*") {
            open(my $f, "<", "$d/comm") or next; next if readline($f) ne "stranger\n"; $d =~ /(\d+)/; my $p = $1;
            printf "signal %s, trace %s\n", kill(0, $p) ? "ok" : $!, syscall(101, 0x4206, $p, 0, 0) != -1 ? "ok" : $!; exit } }'"#;
    let seen = expect(slivers, "test_two", look, 0, "signal Operation not permitted, trace Operation not permitted");
    stranger.kill()?;
    stranger.wait()?;
    seen.map(drop)
}

/// Comes into the sliver of the process `first` by its namespaces, as its root without any confinement, and stays.
fn be_stranger(first: &str) -> Result<std::convert::Infallible> {
    let first = Pid::from_raw(first.parse()?).context("no PID")?;
    let first = rustix::process::pidfd_open(first, PidfdFlags::empty())?;
    let name_spaces = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::PROCESS_ID;
    rustix::thread::move_into_thread_name_spaces(first.as_fd(), name_spaces).context("joining the namespaces")?;
    if let Fork::Parent(child) = fork()? {
        rustix::process::waitpid(Some(child), WaitOptions::empty())?;
        bail!("it ended before it was killed");
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // Becoming somebody else forbids it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(c"stranger")?;
    loop {
        std::thread::park();
    }
}

/// The sliver's root lies in wait for processes that come in. Returns whether it kept one from entering.
fn hunt(slivers: &Slivers) -> Result<bool> {
    let hunter = lie_in_wait(slivers)?;
    let started = Instant::now();
    let mut entered = 0;
    let caught = 'hunt: loop {
        let start = Instant::now();
        let session = match slivers.enter("test_two", request(Run::Command("true".into()))) {
            Ok(entered) => entered.session,
            Err(error) => break Some((format!("{error:#}"), start.elapsed())),
        };
        entered += 1;
        while session.try_wait()?.is_none() {
            // A command that the sliver stopped is the sliver's business.
            if hunter.try_wait()?.is_some() || started.elapsed().as_secs() > 40 {
                session.end()?;
                session.wait()?;
                break 'hunt None;
            }
            std::thread::yield_now();
        }
        if hunter.try_wait()?.is_some() {
            break None;
        }
    };
    println!("    {entered} entered, then {caught:?}");
    ensure!(caught.as_ref().is_none_or(|(_, took)| took.as_secs() < 15), "entering took too long");
    hunter.wait()?;
    let text = expect(slivers, "test_two", "cat /root/hunt", 0, "hunting")?;
    ensure!(!text.contains("TRACED") && !text.contains("LOOKED"), "a process on its way in was caught");
    Ok(caught.is_some())
}

fn terminal(slivers: &Slivers) -> Result<()> {
    // The key to erase is ^H, and ends of lines are left alone.
    let modes = vec![(3, 8), (72, 0)];
    let pty = Some(Pty { term: "xterm".into(), rows: 33, columns: 99, modes });
    let mut entered = slivers.enter("test_one", EnterRequest { pty, ..request(Run::Shell) })?;
    let mut master = File::from(entered.pty.take().context("no terminal")?);
    master.write_all(b"stty size; stty -a; tty; echo $TERM $HOME $0; exit 7\n")?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // The master says EIO once nobody has the terminal open.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&text);
    for line in text.lines() {
        println!("    {line}");
    }
    let code = entered.session.wait()?.code();
    let expected = ["33 99", "erase = ^H;", "-onlcr", "/dev/pts/0"];
    ensure!(code == Some(7) && expected.iter().all(|part| text.contains(part)), "{code:?} {text:?}");
    Ok(())
}

/// A signal that is sent to a session is its command's, whose end is told as it was.
fn signals(slivers: &Slivers) -> Result<()> {
    let start = |line: &str| -> Result<Session> {
        let mut session = slivers.enter("test_one", request(Run::Command(line.into())))?.session;
        session.stdout.as_mut().context("no output")?.read_exact(&mut [0; 3])?;
        Ok(session)
    };
    let caught = start("trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done")?;
    caught.signal(Signal::USR1)?;
    ensure!(caught.wait()?.code() == Some(9), "the command did not hear it: {}", caught.wait()?);
    // The shell waits for another process of its group.
    let killed = start("echo up; sleep 1000; exit 0")?;
    // What ssh has no name for is not passed on: it would stand still.
    killed.signal(Signal::STOP)?;
    killed.signal(Signal::TERM)?;
    ensure!(killed.wait()?.signal() == Some(Signal::TERM.as_raw()), "{}", killed.wait()?);
    Ok(())
}

fn input(slivers: &Slivers) -> Result<()> {
    let stdio = [Stream::Piped, Stream::Piped, Stream::Null];
    let program = Run::Program(vec!["wc".into(), "-c".into()]);
    let mut entered = slivers.enter("test_one", EnterRequest { stdio, ..request(program) })?;
    entered.session.stdin.take().context("no input")?.write_all(&vec![b'x'; 100_000])?;
    let output = entered.session.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.trim() == "100000", "{text:?}");
    Ok(())
}
