//! Tries to break out of a sliver, on a real kernel: the first process of a virtual machine set up as for `sliver_vm`.
//!
//! Started with the word `nesting`, it does the same where containers are allowed: what is attempted then has user namespaces of
//! its own, with all capabilities there, and real programs make containers.
//!
//! Every attempt of the table is first made by the node's root, where the table says that it succeeds then, and after that by
//! the root of a sliver. What the node is, as far as one could change it from inside, is looked at from outside after each. One
//! line tells of each attempt, the last is `SLIVER-VM ok` or `SLIVER-VM FAILED`.

mod attempts;
mod containers;
mod nested;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixDatagram, UnixListener},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use attempts::{ATTEMPTS, Attempt, Nested, PRELUDE, Proof};
use nested::{NEST, NESTED_ATTEMPTS};
use orrery_image_store::Store;
use orrery_protocol::{Digest, Extras, Rspec};
use orrery_sliver::{EnterRequest, Entered, Pty, Run, Session, SliverPaths, Slivers, Stream, internal_main};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount},
    thread::UnshareFlags,
};
use support::{fingerprint, prepare, spec};

/// The first argument where containers are allowed.
const NESTING: &str = "nesting";
/// The first argument of [`be_root_of_the_node`].
const CONTROL: &str = "control";
/// Abstract sockets of the node: of streams and of datagrams.
const NODE_SOCKETS: [&str; 2] = ["node-stream", "node-datagram"];
/// What the neighbour runs all the time.
const NEIGHBOUR: &str = r#"listener(1, "\0neighbour-stream"); listener(2, "\0neighbour-datagram"); hold("two names")"#;
/// What the escapist lives in, and its neighbour.
const ONE: &str = "test_one";
const TWO: &str = "test_two";

fn main() -> ExitCode {
    if let Some(code) = internal_main(std::env::args_os()) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, tree, program] = &arguments[..]
        && word == CONTROL
    {
        let Err(error) = be_root_of_the_node(tree, program);
        println!("control: {error:#}");
        return ExitCode::FAILURE;
    }
    support::finish(run(arguments.get(1).is_some_and(|word| word == NESTING)))
}

/// The slivers, and what they must not change.
struct Node {
    slivers: Slivers,
    tree: std::path::PathBuf,
    fingerprint: u64,
    nesting: bool,
}

fn run(nesting: bool) -> Result<()> {
    prepare()?;
    let store = Store::open(Path::new("/data"))?;
    let image: Digest =
        fs::read_to_string("/data/incoming/debian.sha256")?.trim().parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    store.import(File::open("/data/incoming/debian.tar.zst")?, &image, 1 << 30)?;
    let tree = store.tree(&image).context("the image has no tree")?;

    let slivers = Slivers::open(SliverPaths::default())?;
    let extras = Extras { nesting, fuse: nesting, tun: nesting };
    let small = Rspec { mem_limit: 128 << 20, disk_quota: 16 << 20, pids_limit: 60, extras, ..Rspec::default() };
    slivers.create(&spec("test/one", small)?, &image.to_string())?;
    slivers.create(&spec("test/two", Rspec { extras, ..Rspec::default() })?, &image.to_string())?;
    // Somebody to be reached by abstract sockets: the node, and the neighbour.
    let [stream, datagram] = NODE_SOCKETS.map(SocketAddr::from_abstract_name);
    let _listening = (UnixListener::bind_addr(&stream?)?, UnixDatagram::bind_addr(&datagram?)?);
    // They are no other where containers are allowed.
    let unnoticed = if nesting { Vec::new() } else { controls(&tree)? };
    let mut neighbour = slivers.enter(TWO, perl(NEIGHBOUR))?.session;
    ensure!(listen(&mut neighbour)?.0, "the neighbour does not listen");
    let node = Node { slivers, fingerprint: fingerprint(&tree)?, tree, nesting };

    let attempts: Vec<_> = ATTEMPTS.iter().chain(if nesting { NESTED_ATTEMPTS } else { &[] }).collect();
    let mut escaped = Vec::new();
    for attempt in &attempts {
        match attempt_one(&node, attempt) {
            Ok(report) => println!("contained {}: {report}", attempt.name),
            Err(error) => {
                println!("ESCAPED {} ({}): {error:#}", attempt.name, attempt.tries);
                escaped.push(attempt.name);
            }
        }
    }
    let links = links_at_start(&node);
    println!("links in the way of mounts: {links:?}");
    let life = ordinary_life(&node);
    println!("ordinary life: {life:?}");
    let sessions = sessions_meet(&node);
    println!("sessions of one sliver: {sessions:?}");
    let containers = if nesting { containers::run(&node) } else { Ok(()) };
    println!("containers: {containers:?}");
    links.context("links in the way of mounts")?;
    life.context("ordinary life")?;
    sessions.context("sessions of one sliver")?;
    containers.context("containers")?;
    image_unchanged(&node)?;
    ensure!(unnoticed.is_empty(), "the node's root could not: {unnoticed:?}");
    ensure!(escaped.is_empty(), "escapes: {escaped:?}");
    println!("{} attempts were contained", attempts.len());
    Ok(())
}

/// Lets the node's root make each attempt that has to succeed then. Returns those that did not.
fn controls(tree: &Path) -> Result<Vec<&'static str>> {
    let mut unnoticed = Vec::new();
    for attempt in ATTEMPTS.iter().filter(|a| a.control) {
        let program = format!("{PRELUDE}{}", attempt.program);
        let output =
            Command::new("/proc/self/exe").arg(CONTROL).arg(tree).arg(program).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let done = text.lines().filter(|line| line.starts_with("DONE ")).count();
        println!("control {}: {done} of {} done", attempt.name, text.lines().count());
        if done == 0 {
            text.lines().for_each(|line| println!("    {line}"));
            unnoticed.push(attempt.name);
        }
    }
    Ok(unnoticed)
}

/// Runs a perl program over a copy of the image as a root without any confinement.
fn be_root_of_the_node(tree: &str, program: &str) -> Result<std::convert::Infallible> {
    orrery_sys::namespace::unshare(UnshareFlags::NEWNS).context("making a mount namespace")?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let none = MountFlags::empty();
    fs::create_dir_all("/run/control")?;
    mount("upper", "/run/control", "tmpfs", none, None).context("mounting a tmpfs")?;
    for name in ["upper", "work", "root"] {
        fs::create_dir(Path::new("/run/control").join(name))?;
    }
    let layers = format!("lowerdir={tree},upperdir=/run/control/upper,workdir=/run/control/work");
    let layers = std::ffi::CString::new(layers)?;
    let root = Path::new("/run/control/root");
    mount("overlay", root, "overlay", none, Some(layers.as_c_str())).context("mounting an overlay")?;
    for (kind, name) in [("proc", "proc"), ("devtmpfs", "dev"), ("sysfs", "sys"), ("tmpfs", "tmp")] {
        mount(kind, root.join(name), kind, none, None).with_context(|| format!("mounting {name}"))?;
    }
    mount("cgroup", root.join("sys/fs/cgroup"), "cgroup2", none, None).context("mounting control groups")?;
    fs::create_dir_all(root.join("dev/pts"))?;
    mount("devpts", root.join("dev/pts"), "devpts", none, Some(c"ptmxmode=0666")).context("mounting terminals")?;
    rustix::process::chroot(root)?;
    std::env::set_current_dir("/")?;
    let error = Command::new("/usr/bin/perl").arg("-e").arg(program).env("CONTROL", "1").exec();
    bail!("executing perl: {error}")
}

/// What somebody inside could change outside.
fn state() -> Result<BTreeMap<String, String>> {
    let mut state = BTreeMap::new();
    let name = rustix::system::uname();
    state.insert("host name".to_owned(), format!("{:?} {:?}", name.nodename(), name.domainname()));
    let settings = [
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/irq/default_smp_affinity",
        "/proc/swaps",
        "/proc/self/mountinfo",
        "/proc/sysvipc/shm",
        "/proc/sysvipc/sem",
        "/sys/class/net/lo/flags",
        "/sys/class/net/lo/mtu",
        "/sys/fs/cgroup/slivers/test_two/cgroup.procs",
        "/sys/fs/cgroup/slivers/test_two/init/cgroup.procs",
        "/etc/resolv.conf",
    ];
    for path in settings {
        state.insert(path.to_owned(), fs::read_to_string(path).unwrap_or_else(|error| error.to_string()));
    }
    Ok(state)
}

/// Seconds between two clocks, of which one cannot be set.
fn clocks() -> Result<i64> {
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(i64::try_from(now)? - up.tv_sec)
}

/// Where this program's own errors go.
fn errors() -> Stream {
    std::io::stderr().as_fd().try_clone_to_owned().map_or(Stream::Null, Stream::Given)
}

fn perl(program: &str) -> EnterRequest {
    let run = Run::Program(vec!["/usr/bin/perl".into(), "-e".into(), format!("{PRELUDE}{program}")]);
    let stdio = [Stream::Null, Stream::Piped, errors()];
    EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio }
}

/// Reads what a program prints until it holds what it took, or ends. Returns whether it holds, and the lines.
fn listen(session: &mut Session) -> Result<(bool, Vec<String>)> {
    let mut lines = Vec::new();
    for line in BufReader::new(session.stdout.take().context("no output")?).lines() {
        let line = line?;
        if line == "holding" {
            return Ok((true, lines));
        }
        lines.push(line);
    }
    Ok((false, lines))
}

fn attempt_one(node: &Node, attempt: &Attempt) -> Result<String> {
    node.slivers.start(ONE)?;
    let (before, clocks_before) = (state()?, clocks()?);
    let in_namespaces = node.nesting && NESTED_ATTEMPTS.iter().all(|other| other.name != attempt.name);
    let reaches_its_own = in_namespaces && attempt.nested == Nested::Own;
    let nest = if in_namespaces { NEST } else { "" };
    let Entered { mut session, .. } = node.slivers.enter(ONE, perl(&format!("{nest}{}", attempt.program)))?;
    let (holds, lines) = listen(&mut session)?;
    let proof = if reaches_its_own { Ok(()) } else { prove(node, attempt.proof, &lines) };
    let ended = if holds { None } else { Some(session.wait()?) };
    if matches!(attempt.proof, Proof::NeighbourCan(_) | Proof::NeighbourLives) {
        // With it goes what it holds.
        node.slivers.stop(ONE)?;
    } else if !reaches_its_own {
        ensure!(ended.is_some_and(|status| status.success()), "the program failed: {ended:?}, {lines:?}");
    }
    session.wait()?;
    proof?;
    let after = state()?;
    for (what, was) in &before {
        let is = after.get(what).context("a setting is gone")?;
        ensure!(is == was, "{what} was {was:?} and is {is:?}");
    }
    ensure!((clocks()? - clocks_before).abs() <= 1, "the clock was set");
    let killed = ended.and_then(|status| status.signal());
    Ok(killed.map_or_else(|| lines.join("; "), |number| format!("{} killed by signal {number}", lines.join("; "))))
}

fn prove(node: &Node, proof: Proof, lines: &[String]) -> Result<()> {
    match proof {
        Proof::Refused => {
            ensure!(!lines.is_empty(), "it said nothing");
            let done: Vec<_> = lines.iter().filter(|line| !line.starts_with("refused ")).collect();
            ensure!(done.is_empty(), "{done:?}");
        }
        Proof::ImageUnchanged => {
            ensure!(lines == ["refused to matter"], "{lines:?}");
            image_unchanged(node)?;
        }
        Proof::NeighbourCan(program) => {
            let Entered { mut session, .. } =
                node.slivers.enter(TWO, perl(program)).context("entering the neighbour")?;
            let (_, lines) = listen(&mut session)?;
            ensure!(session.wait()?.success() && lines == ["can"], "the neighbour could not: {lines:?}");
        }
        Proof::NeighbourLives => ensure!(node.slivers.is_running(TWO), "the neighbour died"),
    }
    Ok(())
}

fn image_unchanged(node: &Node) -> Result<()> {
    ensure!(fingerprint(&node.tree)? == node.fingerprint, "the image changed");
    Ok(())
}

/// Runs a command line in the escapist's sliver; returns its exit status and all it wrote.
fn inside(node: &Node, line: &str) -> Result<(i32, String)> {
    let run = Run::Command(format!("exec 2>&1; {line}").into());
    let Entered { session, .. } = node.slivers.enter(ONE, EnterRequest { run, ..perl("") })?;
    let output = session.wait_with_output()?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn expect(node: &Node, line: &str, code: i32, part: &str) -> Result<()> {
    let (got, text) = inside(node, line)?;
    ensure!(got == code && text.contains(part), "`{line}`: status {got}, wrote {text:?}");
    Ok(())
}

/// Links where the node mounts and writes when a sliver starts lead nowhere outside.
fn links_at_start(node: &Node) -> Result<()> {
    let before = state()?;
    for line in [
        "rm -f /etc/resolv.conf; ln -s ../../../data/owned /etc/resolv.conf",
        "rm -rf /srv && ln -s /data /srv; rm -f /etc/resolv.conf; mkdir /etc/resolv.conf",
    ] {
        expect(node, line, 0, "")?;
        node.slivers.stop(ONE)?;
        node.slivers.start(ONE)?;
        ensure!(!Path::new("/data/owned").exists() && !Path::new("/owned").exists(), "a file came to be outside");
        ensure!(state()?["/etc/resolv.conf"] == before["/etc/resolv.conf"], "the node's resolver changed");
    }
    expect(node, "rmdir /etc/resolv.conf; echo clean", 0, "clean")
}

/// What people do is not in the way of what the table forbids.
fn ordinary_life(node: &Node) -> Result<()> {
    expect(node, "perl -e 'print 6 * 7'", 0, "42")?;
    expect(node, "useradd -m ann && id ann", 0, "ann")?;
    expect(node, "su ann -s /bin/sh -c 'id -un; cd; touch mine && stat -c %U mine'", 0, "ann\nann")?;
    // A setuid program gives a user the sliver's root.
    expect(
        node,
        "cp /usr/bin/id /usr/local/bin/suid-id && chmod 4755 /usr/local/bin/suid-id && su ann -s /bin/sh -c suid-id",
        0,
        "euid=0(root)",
    )?;
    let package = "mkdir -p /opt/p/DEBIAN /opt/p/usr/share/p && echo hello > /opt/p/usr/share/p/hello && \
         printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: p\\n' > /opt/p/DEBIAN/control && \
         printf '#!/bin/sh\\necho configured\\n' > /opt/p/DEBIAN/postinst && chmod 755 /opt/p/DEBIAN/postinst && \
         dpkg-deb --root-owner-group -b /opt/p /opt/p.deb && ";
    expect(node, &format!("{package} dpkg -i /opt/p.deb && cat /usr/share/p/hello"), 0, "hello")?;
    expect(node, "apt-get -y purge p && apt-get -y install /opt/p.deb && dpkg -s p", 0, "install ok installed")?;
    // A program with a file capability outside of the bounding set could not be executed.
    expect(node, "ping -V", 0, "ping")?;
    let trace = "my $p = fork; if (!$p) { sleep 100 } print syscall(101, 0x4206, $p, 0, 0); kill 9, $p";
    expect(node, &format!("perl -e '{trace}'"), 0, "0")?;
    expect(node, "kill -0 1; sleep 5 & kill $! && wait $!; echo $?", 0, "143")?;
    expect(node, "getent passwd ann; ls -l /proc/self/fd | cat", 0, "/home/ann")?;
    terminal(node)
}

/// Sessions of one sliver are one system: they signal, trace and reach each other.
fn sessions_meet(node: &Node) -> Result<()> {
    let mut one = node.slivers.enter(ONE, perl(r#"listener(1, "\0mine"); hold($$)"#))?.session;
    let (holds, lines) = listen(&mut one)?;
    let process = lines.first().and_then(|line| line.strip_prefix("took ")).context("no process number")?.to_owned();
    ensure!(holds, "{lines:?}");
    let program = format!(
        r#"reach("abstract socket", 1, "\0mine"); verdict("signal", kill 0, {process}); call("seizing", 101, 0x4206, {process}, 0, 0)"#
    );
    let mut other = node.slivers.enter(ONE, perl(&program))?.session;
    let (_, lines) = listen(&mut other)?;
    ensure!(other.wait()?.success() && lines.len() == 3, "{lines:?}");
    ensure!(lines.iter().all(|line| line.starts_with("DONE ")), "{lines:?}");
    one.end()?;
    one.wait()?;
    Ok(())
}

fn terminal(node: &Node) -> Result<()> {
    let pty = Some(Pty { term: "xterm".into(), rows: 33, columns: 99, modes: Vec::new() });
    let mut entered = node.slivers.enter(ONE, EnterRequest { pty, run: Run::Shell, ..perl("") })?;
    let mut master = File::from(entered.pty.take().context("no terminal")?);
    master.write_all(b"stty size; su ann -c tty; exit 7\n")?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // The master says EIO once nobody has the terminal open.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&text);
    let code = entered.session.wait()?.code();
    ensure!(code == Some(7) && text.contains("33 99") && text.contains("/dev/pts/"), "{code:?} {text:?}");
    Ok(())
}
