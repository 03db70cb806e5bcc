//! Tries the programs that a sliver runs without a login on a real kernel, as `sliver_vm` tries the rest: the first process of a
//! virtual machine with the same disk, whose last line is `SLIVER-VM ok` or `SLIVER-VM FAILED`.
//!
//! With the argument `serve` it is the service in an image of scenario `sliver-service`.

#[path = "support/step.rs"]
mod step;
mod support;

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orrery_image_store::Store;
use orrery_protocol::{Restart, Rspec, RunConfig, Service, Startup};
use orrery_sliver::{End, Ended, EnterRequest, Kept, Role, Run, SliverPaths, Slivers, Stream, internal_main};
use step::step;
use support::{fingerprint, prepare, spec};

/// The first argument of [`manager`].
const MANAGER: &str = "manager";
/// The first argument of [`serve`].
const SERVE: &str = "serve";
const LOGIN: &str = "test_one";
/// For what takes no time on an idle machine.
const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    if let Some(code) = internal_main(std::env::args_os()) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let Err(error) = match arguments.get(1).map(String::as_str) {
        Some(MANAGER) => manager(),
        Some(SERVE) => serve(),
        _ => return support::finish(run()),
    };
    println!("    {error:#}");
    ExitCode::FAILURE
}

/// Waits for a condition.
fn until<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < SOON, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// The sliver under test.
struct Bench {
    slivers: Slivers,
}

impl Bench {
    fn set(&self, startup: Startup) -> Result<()> {
        Ok(self.slivers.set_startup(LOGIN, startup)?)
    }

    /// Has the sliver a service with this command line.
    fn serve(&self, line: &str) -> Result<Child> {
        self.set(service(&["sh", "-c", line]))?;
        Ok(self.slivers.keep(LOGIN, Role::Service)?)
    }

    /// A file of the sliver's, as it wrote it.
    fn file(&self, name: &str) -> PathBuf {
        Path::new("/data/slivers").join(LOGIN).join("upper").join(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.file(name)).ok().filter(|text| text.ends_with('\n'))
    }

    fn wait_text(&self, name: &str) -> Result<String> {
        until(&format!("it wrote {name}"), || Ok(self.text(name)))
    }

    /// Waits until the program of the keeper with this PID has ended.
    fn wait_end(&self, role: Role, keeper: u32) -> Result<End> {
        let mine = |kept: &Kept| kept.keeper == keeper as i32;
        let last = || self.slivers.kept(LOGIN, role).map(|(kept, _)| kept).filter(mine);
        until("it ended", || Ok(last().and_then(|kept| kept.ended))).map(|Ended { how, .. }| how)
    }

    /// What is in a leaf.
    fn inhabitants(&self, leaf: &str) -> usize {
        let procs = format!("/sys/fs/cgroup/slivers/{LOGIN}/{leaf}/cgroup.procs");
        fs::read_to_string(procs).unwrap_or_default().lines().count()
    }

    fn inside(&self, line: &str) -> Result<String> {
        let stdio = [Stream::Null, Stream::Piped, Stream::Piped];
        let run = Run::Command(format!("exec 2>&1; {line}").into());
        let request = EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio };
        let output = self.slivers.enter(LOGIN, request)?.session.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "`{line}`: {} {text:?}", output.status);
        Ok(text)
    }

    fn log(&self) -> Result<String> {
        let stdio = [Stdio::null(), Stdio::piped(), Stdio::inherit()];
        let output = self.slivers.print_log(LOGIN, false, stdio)?.wait_with_output()?;
        ensure!(output.status.success(), "reading the log: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn wait_log(&self, part: &str) -> Result<()> {
        until(&format!("the log says {part:?}"), || Ok(self.log()?.contains(part).then_some(()))).with_context(|| {
            let log = self.log().unwrap_or_default();
            log.lines().rev().take(20).map(str::to_owned).collect::<Vec<_>>().join("\n")
        })
    }

    /// As after a start, nothing of it running.
    fn stop(&self) -> Result<()> {
        self.slivers.stop(LOGIN)?;
        for name in ["up", "said", "who"] {
            let _ = fs::remove_file(self.file(name));
        }
        Ok(())
    }
}

fn service(command: &[&str]) -> Startup {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Startup { initscript: None, service: Some(Service { command, restart: Restart::Always }) }
}

fn initscript(text: &str) -> Startup {
    Startup { initscript: Some(text.to_owned()), service: None }
}

fn run() -> Result<()> {
    step("prepare", prepare)?;
    let store = Store::open(Path::new("/data"))?;
    let image = fs::read_to_string("/data/incoming/debian.sha256")?;
    let image = image.trim().parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    step("import", || Ok(store.import(File::open("/data/incoming/debian.tar.zst")?, &image, 1 << 30)?))?;
    let tree = store.tree(&image).context("the image has no tree")?;
    // As importing a container's image would have left it.
    let description = r#"{"Entrypoint":["sh","-c"],"Cmd":["id -un > /tmp/who; pwd > /tmp/said; exec sleep 1000"],
        "User":"www-data","Env":["GREETING=hello there"],"WorkingDir":"/usr/share","StopSignal":"SIGUSR1"}"#;
    fs::create_dir_all(tree.join(".orrery"))?;
    fs::write(tree.join(RunConfig::PATH), description)?;

    let slivers = Slivers::open(SliverPaths::default())?;
    let rspec = Rspec { mem_limit: 64 << 20, disk_quota: 16 << 20, pids_limit: 40, ..Rspec::default() };
    slivers.create(&spec("test/one", rspec)?, &image.to_string())?;
    let bench = Bench { slivers };
    step("an initscript", || script(&bench))?;
    step("an initscript that fails", || failing_script(&bench))?;
    step("the image's entrypoint", || entrypoint(&bench))?;
    step("a user that there is not", || unknown_user(&bench, &tree))?;
    let before = fingerprint(&tree)?;
    step("one service at a time", || once(&bench))?;
    step("a service that ends leaves nothing", || nothing_left(&bench))?;
    step("a service outlives the node manager", || outlives(&bench))?;
    step("a service is asked to end", || asked(&bench))?;
    step("a service that does not listen is killed", || deaf(&bench))?;
    step("a suspended service stands still", || suspended(&bench))?;
    step("a log has bounds", || bounded(&bench))?;
    step("a log is followed", || followed(&bench))?;
    step("the image is unchanged", || {
        ensure!(fingerprint(&tree)? == before, "the tree changed");
        Ok(())
    })?;
    step("destroy", || {
        let mut keeper = bench.serve("touch /up; exec sleep 1000")?;
        until("it is up", || Ok(bench.file("up").exists().then_some(())))?;
        bench.slivers.destroy(LOGIN)?;
        keeper.wait()?;
        let left: Vec<_> = fs::read_dir("/run/slivers")?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?} are left");
        ensure!(!Path::new("/sys/fs/cgroup/slivers").join(LOGIN).exists(), "a control group is left");
        ensure!(fs::read_dir("/data/slivers")?.count() == 0, "files are left");
        Ok(())
    })
}

/// It runs once for each start, as root, with its arguments; what it leaves in the background goes on and is still heard.
fn script(bench: &Bench) -> Result<()> {
    let text = "#!/bin/sh\nid -u > /who; echo \"$0 $*\" > /said; echo to the log\n\
                (while ! test -e /go; do sleep 0.1; done; echo still heard; sleep 1000) &\n";
    bench.set(initscript(text))?;
    let _ = fs::remove_file(bench.file("go"));
    let mut keeper = bench.slivers.keep(LOGIN, Role::Initscript)?;
    ensure!(bench.wait_end(Role::Initscript, keeper.id())? == End::Status(0), "it failed: {}", bench.log()?);
    let said = (bench.wait_text("who")?, bench.wait_text("said")?);
    ensure!(said == ("0\n".into(), "/run/orrery/initscript start test/one\n".into()), "{said:?}");
    let mode = fs::metadata(bench.file("said"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o644, "what it writes has mode {mode:o}");
    ensure!(bench.slivers.has_run(LOGIN, Role::Initscript), "it does not count as run");
    let (kept, alive) = bench.slivers.kept(LOGIN, Role::Initscript).context("it is forgotten")?;
    ensure!(alive.is_some() && Some(kept.mark) == bench.slivers.get(LOGIN)?.mark(Role::Initscript), "{kept:?}");
    ensure!(keeper.try_wait()?.is_none(), "nobody listens to what it left running");
    bench.inside("touch /go")?;
    bench.wait_log(" initscript still heard\n")?;
    // Until the sliver stops, and not in the next one.
    bench.stop()?;
    keeper.wait()?;
    ensure!(!bench.slivers.has_run(LOGIN, Role::Initscript), "it counts as run before the start");
    // Whoever starts it, the node manager gets word.
    let word = bench.slivers.notes().join(format!("{LOGIN}.started"));
    fs::remove_file(&word).context("no word of the first start")?;
    bench.inside("true")?;
    ensure!(word.exists() && !bench.slivers.has_run(LOGIN, Role::Initscript), "no word of a login's start");
    bench.stop()?;
    let log = bench.log()?;
    let parts =
        [" node starting the initscript\n", " initscript to the log\n", " node initscript ended with status 0\n"];
    let at: Vec<_> = parts.iter().map(|part| log.find(part)).collect();
    ensure!(at.is_sorted() && at[0].is_some(), "{log}");
    Ok(())
}

fn failing_script(bench: &Bench) -> Result<()> {
    // Without an interpreter it is the shell's.
    bench.set(initscript("echo oh no >&2\nexit 3\n"))?;
    let mut keeper = bench.slivers.keep(LOGIN, Role::Initscript)?;
    let how = bench.wait_end(Role::Initscript, keeper.id())?;
    ensure!(how == End::Status(3), "{how:?}");
    keeper.wait()?;
    bench.wait_log(" initscript oh no\n")?;
    ensure!(bench.inside("echo in")? == "in\n", "no login after it");
    bench.stop()
}

/// It runs as the image says: who, where, with what, and what it prints to its standard output by name.
fn entrypoint(bench: &Bench) -> Result<()> {
    bench.set(service(&[]))?;
    let mut keeper = bench.slivers.keep(LOGIN, Role::Service)?;
    ensure!(bench.wait_text("tmp/who")? == "www-data\n", "not the image's user");
    ensure!(bench.wait_text("tmp/said")? == "/usr/share\n", "not the image's directory");
    let (kept, _) = bench.slivers.kept(LOGIN, Role::Service).context("it is forgotten")?;
    ensure!(kept.stop_signal == 10, "{kept:?}");
    // It does not know the signal, which ends it.
    bench.slivers.stop_service(LOGIN)?;
    keeper.wait()?;
    ensure!(bench.wait_end(Role::Service, keeper.id())? == End::Status(128 + 10), "it was not asked as the image says");
    let line = "set -e; id -G > /tmp/who; echo by name > /dev/stdout; echo $GREETING $HOME $ORRERY_SLICE > /dev/stderr; \
                ! touch /etc/mine; echo done > /tmp/said";
    let mut keeper = bench.serve(line)?;
    ensure!(bench.wait_end(Role::Service, keeper.id())? == End::Status(0), "{}", bench.log()?);
    keeper.wait()?;
    ensure!(bench.wait_text("tmp/who")? == "33\n", "not the user's groups alone");
    bench.wait_log(" service by name\n")?;
    // There is no /var/www to be at home in.
    bench.wait_log(" service hello there / test/one\n")?;
    bench.stop()
}

fn unknown_user(bench: &Bench, tree: &Path) -> Result<()> {
    let path = tree.join(RunConfig::PATH);
    let description = fs::read_to_string(&path)?;
    // In place, so that nothing else about the tree changes for long.
    fs::write(&path, description.replace("www-data", "nobody-here"))?;
    let mut keeper = bench.serve("true")?;
    let how = bench.wait_end(Role::Service, keeper.id())?;
    keeper.wait()?;
    fs::remove_file(&path)?;
    ensure!(matches!(&how, End::Unstarted(why) if why.contains("no user `nobody-here`")), "{how:?}");
    bench.set(service(&[]))?;
    let mut keeper = bench.slivers.keep(LOGIN, Role::Service)?;
    keeper.wait()?;
    let how = bench.wait_end(Role::Service, keeper.id())?;
    ensure!(matches!(&how, End::Unstarted(why) if why.contains("give the service a command")), "{how:?}");
    bench.stop()
}

/// However many keepers are started.
fn once(bench: &Bench) -> Result<()> {
    let mut keepers = vec![bench.serve("echo $$ >> /up; exec sleep 1000")?];
    for _ in 0..7 {
        keepers.push(bench.slivers.keep(LOGIN, Role::Service)?);
    }
    // Those that gave way.
    let given_way = until("seven gave way", || {
        let mut ended = 0;
        for keeper in &mut keepers {
            ended += usize::from(keeper.try_wait()?.is_some());
        }
        Ok((ended == 7).then_some(ended))
    })?;
    let up = bench.wait_text("up")?;
    ensure!(given_way == 7 && up.lines().count() == 1, "{up:?}");
    let memory = fs::read_to_string(format!("/sys/fs/cgroup/slivers/{LOGIN}/keepers/memory.current"))?;
    println!("    a keeper: {} bytes of memory", memory.trim());
    let service = bench.inhabitants("service");
    ensure!(bench.inhabitants("keepers") == 1 && service == 2, "{service} are not a session and a service");
    bench.stop()?;
    keepers.iter_mut().try_for_each(|keeper| keeper.wait().map(drop))?;
    Ok(())
}

fn nothing_left(bench: &Bench) -> Result<()> {
    let mut keeper = bench.serve("sleep 1000 & sleep 1000 & echo $$ > /up; exec sleep 1000")?;
    bench.wait_text("up")?;
    // A login ends it.
    bench.inside("kill -9 $(cat /up)")?;
    let how = bench.wait_end(Role::Service, keeper.id())?;
    ensure!(how == End::Status(137), "{how:?}");
    keeper.wait()?;
    ensure!(bench.inhabitants("service") == 0, "some of it is left");
    bench.wait_log(" node service ended with status 137\n")?;
    bench.stop()
}

/// Tells whoever connects to the port in `$PORT` who and which process this is, and what `/etc/prepared` says.
fn serve() -> Result<Infallible> {
    let port: u16 = std::env::var("PORT").context("reading $PORT")?.parse().context("reading $PORT")?;
    let user = rustix::process::getuid();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    println!("serving as {user} on {port}");
    loop {
        let (mut stream, _) = listener.accept().context("accepting")?;
        let prepared = fs::read_to_string("/etc/prepared").unwrap_or_default();
        // Whoever is gone is gone.
        let _ = writeln!(stream, "{user} {} {}", std::process::id(), prepared.trim());
    }
}

/// What a node manager that is about to be killed does.
fn manager() -> Result<Infallible> {
    let slivers = Slivers::open(SliverPaths::default())?;
    slivers.keep(LOGIN, Role::Service)?;
    loop {
        std::thread::park();
    }
}

/// Its service is the same after it was killed, is still heard, and its end is known.
fn outlives(bench: &Bench) -> Result<()> {
    let line = "echo $$ > /up; while ! test -e /go; do sleep 0.1; done; echo after the manager; exit 5";
    let _ = fs::remove_file(bench.file("go"));
    bench.set(service(&["sh", "-c", line]))?;
    let mut manager = Command::new("/proc/self/exe").arg(MANAGER).spawn()?;
    bench.wait_text("up")?;
    manager.kill()?;
    manager.wait()?;
    // The next one finds it, and keeps none beside it.
    let next = Slivers::open(SliverPaths::default())?;
    let (kept, keeper) = next.kept(LOGIN, Role::Service).context("it is forgotten")?;
    ensure!(keeper.is_some() && kept.ended.is_none(), "{kept:?}");
    next.keep(LOGIN, Role::Service)?.wait()?;
    ensure!(bench.inhabitants("keepers") == 1, "two keepers");
    bench.inside("touch /go")?;
    let how = bench.wait_end(Role::Service, kept.keeper as u32)?;
    ensure!(how == End::Status(5), "{how:?}");
    let (again, _) = next.kept(LOGIN, Role::Service).context("it is forgotten")?;
    ensure!(Kept { ended: None, ..again } == kept, "another run than before");
    bench.wait_log(" service after the manager\n")?;
    bench.stop()
}

/// Stopping the sliver lets a service end by itself.
fn asked(bench: &Bench) -> Result<()> {
    let line = "trap 'echo saved > /said; exit 0' TERM; echo up > /up; while :; do sleep 0.1; done";
    let mut keeper = bench.serve(line)?;
    bench.wait_text("up")?;
    let asked = Instant::now();
    bench.slivers.stop(LOGIN)?;
    ensure!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    keeper.wait()?;
    ensure!(bench.text("said").as_deref() == Some("saved\n"), "it was not asked");
    ensure!(bench.wait_end(Role::Service, keeper.id())? == End::Status(0), "its end is not known");
    bench.stop()
}

fn deaf(bench: &Bench) -> Result<()> {
    let mut keeper = bench.serve("trap '' TERM; echo up > /up; while :; do sleep 0.1; done")?;
    bench.wait_text("up")?;
    let asked = Instant::now();
    bench.slivers.stop_service(LOGIN)?;
    ensure!(asked.elapsed() > Duration::from_secs(9), "it was killed after {:?}", asked.elapsed());
    keeper.wait()?;
    ensure!(bench.inhabitants("service") == 0 && bench.slivers.is_running(LOGIN), "not the service alone");
    bench.stop()
}

fn suspended(bench: &Bench) -> Result<()> {
    let mut keeper = bench.serve("i=0; while :; do i=$((i+1)); echo $i > /up; done")?;
    bench.wait_text("up")?;
    bench.slivers.set_suspended(LOGIN, Some("abuse"))?;
    let still = fs::read(bench.file("up"))?;
    fingerprint(Path::new("/data/slivers"))?;
    ensure!(fs::read(bench.file("up"))? == still, "it runs while suspended");
    let (_, alive) = bench.slivers.kept(LOGIN, Role::Service).context("it is forgotten")?;
    ensure!(alive.is_some(), "its keeper is gone");
    bench.slivers.set_suspended(LOGIN, None)?;
    until("it goes on", || Ok((fs::read(bench.file("up"))? != still).then_some(())))?;
    bench.slivers.set_suspended(LOGIN, Some("abuse"))?;
    let asked = Instant::now();
    bench.slivers.stop(LOGIN)?;
    ensure!(asked.elapsed() < Duration::from_secs(5), "what stands still was waited for, {:?}", asked.elapsed());
    keeper.wait()?;
    // Nobody starts it.
    let mut keeper = bench.slivers.keep(LOGIN, Role::Service)?;
    keeper.wait()?;
    let how = bench.wait_end(Role::Service, keeper.id())?;
    ensure!(matches!(&how, End::Unstarted(why) if why.contains("suspended")), "{how:?}");
    bench.slivers.set_suspended(LOGIN, None)?;
    bench.stop()
}

/// A service that prints for ever, in a sliver whose disk is full.
fn bounded(bench: &Bench) -> Result<()> {
    let full = bench.inside("dd if=/dev/zero of=/big bs=1M count=64 2>&1 || true")?;
    ensure!(full.contains("exceeded"), "its disk is not full: {full}");
    let mut keeper = bench.serve("yes 0123456789abcdef0123456789abcdef")?;
    bench.wait_log(" node dropped ")?;
    // It goes on: for a while nothing but the rate bounds it.
    let begun = Instant::now();
    let seconds = 10;
    let cpu = || fs::read_to_string(format!("/sys/fs/cgroup/slivers/{LOGIN}/keepers/cpu.stat")).unwrap_or_default();
    let size = || -> Result<u64> {
        let entries = fs::read_dir(Path::new("/data/slivers").join(LOGIN).join("log"))?;
        entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
    };
    let at_first = size()?;
    while begun.elapsed() < Duration::from_secs(seconds) {
        ensure!(size()? <= 512 << 10, "the log has {} bytes", size()?);
        std::thread::yield_now();
    }
    let grown = size()?.saturating_sub(at_first);
    println!("    {grown} bytes in {seconds} s; keeper: {}", cpu().lines().next().unwrap_or_default());
    ensure!(grown > 0 && grown <= (seconds + 3) * (4 << 10) + 1024, "{grown} bytes in {seconds} s");
    bench.slivers.stop_service(LOGIN)?;
    keeper.wait()?;
    let log = bench.log()?;
    let told = log.lines().rev().find(|line| line.contains(" node dropped ")).context("nothing was told")?;
    println!("    {told}");
    println!("    {:?}", bench.slivers.disk_usage(LOGIN)?);
    // It never grows beyond two files, whatever is said.
    bench.inside("rm /big").map(drop)?;
    bench.stop()
}

fn followed(bench: &Bench) -> Result<()> {
    let _ = fs::remove_file(bench.file("go"));
    let mut keeper =
        bench.serve("echo first; while ! test -e /go; do sleep 0.1; done; echo second; exec sleep 1000")?;
    bench.wait_log(" service first\n")?;
    let stdio = [Stdio::null(), Stdio::piped(), Stdio::inherit()];
    let mut reader = bench.slivers.print_log(LOGIN, true, stdio)?;
    let mut lines = BufReader::new(reader.stdout.take().context("no output")?).lines();
    let mut find = |part: &str| -> Result<()> {
        for line in lines.by_ref() {
            if line?.ends_with(part) {
                return Ok(());
            }
        }
        anyhow::bail!("it ended before {part:?}")
    };
    find(" service first")?;
    ensure!(!bench.log()?.contains(" service second"), "too early");
    bench.inside("touch /go")?;
    find(" service second")?;
    reader.kill()?;
    reader.wait()?;
    bench.stop()?;
    keeper.wait()?;
    Ok(())
}
