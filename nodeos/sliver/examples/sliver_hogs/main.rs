//! A sliver that serves beside two that hog, class by class, on a real kernel with two CPUs: the first process of a virtual
//! machine set up as for `sliver_vm`, whose image has stress-ng in it. A line tells of each class what the victim did before
//! and meanwhile, the last is `SLIVER-VM ok` or `SLIVER-VM FAILED`.

#[path = "../support/mod.rs"]
mod support;

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use orrery_image_store::Store;
use orrery_protocol::{Digest, Rspec};
use orrery_sliver::{EnterRequest, Entered, Run, Session, SliverPaths, Slivers, Stream, internal_main};
use support::{fingerprint, prepare, spec};

const VICTIM: &str = "test_victim";
const HOGS: [&str; 2] = ["test_hog1", "test_hog2"];
/// The part of what it did before that the victim does at least beside two hogs; or else the part of the processor time of all
/// three that it gets. By its share, two thirds of the first, which one process can use of two CPUs, and one third of the second
/// are due to it; emulation on a busy machine measures no better than this. The second says that it is not the machine outside, or
/// what its requests cost beside such hogs, that made the first low.
const LEAST: f64 = 0.2;

/// Classes of hogs, by stress-ng's options, of which PORT is another for each hog. All would go on for longer than they are measured.
const CLASSES: &[(&str, &str)] = &[
    ("cpu", "--cpu 4"),
    ("vm", "--vm 2 --vm-bytes 80m --vm-keep"),
    ("hdd", "--hdd 2 --hdd-bytes 16m"),
    ("sync", "--sync-file 2 --sync-file-bytes 4m"),
    ("dentry", "--dentry 2 --dentries 4096"),
    ("open", "--open 4"),
    ("inotify", "--inotify 4"),
    ("fork", "--fork 8"),
    ("switch", "--switch 4"),
    ("sockpair", "--sockpair 4"),
    ("pipe", "--pipe 4"),
    ("mq", "--mq 4"),
    ("timer", "--timer 4"),
    ("cache", "--cache 2"),
    ("urandom", "--urandom 4"),
    ("sock", "--sock 4 --sock-port PORT"),
    ("udp", "--udp 4 --udp-port PORT"),
];

/// Requests of a server that computes, starts a process now and then, and keeps a file, for three seconds.
const SERVE: &str = r#"perl -e '
    open(my $f, "+>", "/root/served") or die "file: $!"; $f->autoflush(1);
    my ($n, $now) = (0, time); 1 while time == $now;
    my $end = time + 3;
    while (time < $end) {
        my $sum = 0; $sum += $_ * $_ for 1 .. 3000;
        seek($f, 0, 0) or die "file: $!"; print $f $sum or die "file: $!";
        if ($n++ % 50 == 0) { system("true") == 0 or die "process: $!" }
    }
    print $n'"#;

fn main() -> ExitCode {
    internal_main(std::env::args_os()).unwrap_or_else(|| support::finish(run()))
}

fn enter(slivers: &Slivers, login: &str, line: &str) -> Result<Session> {
    let stdio = [Stream::Null, Stream::Piped, Stream::Null];
    let run = Run::Command(format!("exec 2>&1; {line}").into());
    let request = EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio };
    let Entered { session, .. } = slivers.enter(login, request)?;
    Ok(session)
}

/// How many requests the victim served.
fn serve(slivers: &Slivers) -> Result<f64> {
    let output = enter(slivers, VICTIM, SERVE)?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the victim failed: {} {text:?}", output.status);
    text.trim().parse().with_context(|| format!("the victim said {text:?}"))
}

fn run() -> Result<()> {
    prepare()?;
    let store = Store::open(Path::new("/data"))?;
    let image: Digest = fs::read_to_string("/data/incoming/debian.sha256")?.trim().parse().context("a digest")?;
    store.import(File::open("/data/incoming/debian.tar.zst")?, &image, 2 << 30)?;
    let tree = store.tree(&image).context("the image has no tree")?;
    let untouched = fingerprint(&tree)?;
    let slivers = Slivers::open(SliverPaths::default())?;
    let rspec = Rspec { mem_limit: 128 << 20, disk_quota: 64 << 20, pids_limit: 128, ..Rspec::default() };
    for login in [VICTIM].iter().chain(&HOGS) {
        slivers.create(&spec(&login.replace('_', "/"), rspec)?, &image.to_string())?;
    }

    let mut failed = Vec::new();
    for (class, options) in CLASSES {
        if !endures(&slivers, class, options)? {
            failed.push(*class);
        }
    }
    ensure!(fingerprint(&tree)? == untouched, "the image changed");
    ensure!(failed.is_empty(), "the victim suffers: {}", failed.join(", "));
    Ok(())
}

/// Whether the victim does enough beside two hogs of this class.
fn endures(slivers: &Slivers, class: &str, options: &str) -> Result<bool> {
    let before = serve(slivers)?;
    let mut hogs = Vec::new();
    for (login, port) in HOGS.into_iter().zip(["6000", "7000"]) {
        let options = options.replace("PORT", port);
        // Or pairs of sockets take all its memory when nobody reads them in time, and it is killed for that.
        let few = if class == "sockpair" { "ulimit -n 128; " } else { "" };
        let line =
            format!("cd /root; rm -rf tmp-*; {few}exec stress-ng {options} --timeout 600 --temp-path /root --oomable");
        let mut hog = enter(slivers, login, &line)?;
        // Its word that it begins.
        let output = hog.stdout.as_mut().context("no output")?;
        output.read_exact(&mut [0]).with_context(|| format!("starting stress-ng {options}"))?;
        hogs.push(hog);
    }
    let took = |login: &str| slivers.activity(login).map_or(0.0, |activity| activity.cpu_microseconds as f64);
    let all = || [took(VICTIM), HOGS.into_iter().map(took).sum()];
    let [own, others] = all();
    let beside = serve(slivers)?;
    let part = {
        let [own_now, others_now] = all();
        (own_now - own) / (own_now - own + others_now - others)
    };
    let usage = HOGS.map(|login| slivers.usage(login));
    HOGS.iter().try_for_each(|login| slivers.stop(login))?;
    let said = hogs.into_iter().map(|hog| Ok(hog.wait_with_output()?.stdout)).collect::<Result<Vec<_>>>()?.concat();
    let ratio = beside / before;
    let [(first, processes), (second, others)] = usage;
    println!(
        "{class:8} {before:5.0} requests before, {beside:5.0} beside: {ratio:.2}; {part:.2} of the time; hogs of {} and {} MiB, {processes} and {others} processes",
        first >> 20,
        second >> 20
    );
    // The first process of each, and the one that entered.
    let lasted = processes > 2 && others > 2;
    if !lasted {
        println!("    a hog ended: {}", String::from_utf8_lossy(&said));
    }
    Ok(lasted && (ratio >= LEAST || part >= LEAST))
}
