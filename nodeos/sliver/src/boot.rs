//! Starting a sliver: the helper that builds its mounts as the node's root, and the process that its namespaces hang on.
//!
//! The order matters. The helper leaves for a mount namespace of its own and forks the first process into the sliver's other
//! namespaces. The helper then builds the whole tree, /proc included, with the node's
//! rights, so that when the first process takes a mount namespace of its own, owned by the sliver, every mount in it is
//! locked: no capability inside changes or removes one. All mounts go with the last process.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use orrery_protocol::{Admin, Rspec};
use orrery_sys::namespace::{self, Fork, unshare};
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    },
    process::{Pid, PidfdFlags, Resource, Rlimit},
    thread::{ThreadNameSpaceType, UnshareFlags},
};
use serde::{Deserialize, Serialize};

use crate::{
    admin::{Broker, Views},
    confine,
    error::SliverError,
    first,
    forkserver::{self, ForkServer},
    internal::become_sliver_root,
    record::IDS,
    rlimits,
};

/// What the helper is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) host_name: String,
    pub(crate) id_base: u32,
    /// The image's tree.
    pub(crate) lower: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// The leaf of the first process.
    pub(crate) leaf: PathBuf,
    pub(crate) rspec: Rspec,
    /// What is seen of the node.
    pub(crate) admin: Admin,
}

/// What the helper says when all is done.
const DONE: &str = "+";

/// Has a helper forked and waits for it. The helper and what it forks hold `lock`, until the first process
/// has closed all it has: if this process is killed, nobody starts a second one before the first is there or gone.
pub(crate) fn start(helpers: &ForkServer, login: &str, order: &Order, lock: &File) -> Result<(), SliverError> {
    let order = serde_json::to_vec(order).map_err(io::Error::from).map_err(SliverError::Helper)?;
    let said = helpers.carry_out(&order, lock).map_err(SliverError::Helper)?;
    let message = match said.trim() {
        DONE => return Ok(()),
        "" => "its helper ended without a word",
        message => message,
    };
    Err(SliverError::Start { login: login.into(), message: message.into() })
}

/// User namespaces that a sliver may have inside, of which any depth counts, and network namespaces: enough for containers, and a
/// bound on what of them no memory limit counts.
const NESTED_NAMESPACES: &str = "256";

/// Devices of every sliver.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Files that are covered in /proc by /dev/null. Permissions guard most of it already: its owner, the node's root, is nobody inside.
const MASKED_FILES: &[&str] = &[
    // The kernel's memory, addresses and log.
    "kcore",
    "kallsyms",
    "kmsg",
    "vmallocinfo",
    "slabinfo",
    "pagetypeinfo",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    // All locks on all files, which nobody takes or gives back while somebody reads it.
    "locks",
    // What makes it act.
    "sysrq-trigger",
    // The hardware.
    "iomem",
    "ioports",
    "mtrr",
    // Keys and timers of everybody; interrupts, which tell when somebody types.
    "keys",
    "key-users",
    "timer_list",
    "interrupts",
];

/// Directories that are covered there by an empty one.
const MASKED_DIRECTORIES: &[&str] = &[
    // The hardware.
    "acpi", "asound", "bus", "driver", "irq", "scsi", // The node's disks.
    "fs",
];

/// An error with what was attempted, for one line on standard error.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub(crate) struct Failed {
    doing: String,
    source: io::Error,
}

pub(crate) trait Doing<T> {
    fn doing(self, doing: impl Into<String>) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T, Failed> {
        self.map_err(|source| Failed { doing: doing.into(), source: source.into() })
    }
}

/// The life of the process that helpers are forked from.
pub(crate) fn helpers() -> ExitCode {
    confine::prepare();
    forkserver::serve(helper).unwrap_or(ExitCode::FAILURE)
}

/// The whole life of a helper. What it says goes to its standard error.
fn helper(order: &[u8]) -> ExitCode {
    match run(order) {
        Ok(()) => {
            eprint!("{DONE}");
            // What is left of this process is nothing that anybody waits for.
            let _ = rustix::stdio::dup2_stdout(io::stdin()).and_then(|()| rustix::stdio::dup2_stderr(io::stdin()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(order: &[u8]) -> Result<(), Failed> {
    let order: Order = serde_json::from_slice(order).map_err(io::Error::from).doing("reading the order")?;

    unshare(UnshareFlags::NEWNS).doing("making a mount namespace")?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .doing("making mounts private")?;
    let waiting = Waiting::make(&order)?;
    build(&order, &waiting)?;
    waiting.go()
}

/// The first process, which waits for its mounts. It ends if this value is dropped.
struct Waiting {
    pid: Pid,
    user_name_space: OwnedFd,
    /// Tells it to go on.
    go: File,
    /// Its error, or nothing when it is done.
    answer: File,
}

/// The first process's word that it waits for its mounts.
const READY: u8 = b'+';

fn pipe() -> Result<(File, File), Failed> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("making a pipe")?;
    Ok((reader.into(), writer.into()))
}

fn read_byte(mut pipe: &File) -> io::Result<u8> {
    let mut byte = [0];
    pipe.read_exact(&mut byte)?;
    Ok(byte[0])
}

impl Waiting {
    fn make(order: &Order) -> Result<Self, Failed> {
        let (go_reader, mut go) = pipe()?;
        let (answer, answer_writer) = pipe()?;
        // All of a sliver goes before anything of the node's when that is short of memory.
        fs::write("/proc/self/oom_score_adj", "500").doing("setting the OOM score")?;
        let broker = Broker::start_if(&order.admin, order.id_base, &order.leaf).doing("starting who makes sockets")?;
        let pid = match fork_as_owner(order.id_base).doing("forking the first process")? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                // Or it would wait for itself.
                drop((go, answer));
                let Err(error) = be_first_process(order, &go_reader, &answer_writer, broker);
                let _ = write!(&answer_writer, "{error}");
                std::process::exit(1)
            }
        };
        drop((go_reader, answer_writer));

        // It is in its user namespace, and has no identities until somebody outside maps them.
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let map = format!("0 {} {IDS}\n", order.id_base);
        fs::write(format!("{proc}/uid_map"), &map).doing("mapping users")?;
        fs::write(format!("{proc}/gid_map"), &map).doing("mapping groups")?;
        fs::write(order.leaf.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
            .doing("joining the control group")?;
        rlimits::apply(&order.rspec, pid, Vec::new).doing("limiting the first process")?;
        let user_name_space = File::open(format!("{proc}/ns/user")).doing("opening the user namespace")?.into();
        go.write_all(b"+").doing("telling that users are mapped")?;
        match read_byte(&answer) {
            Ok(READY) => Ok(Self { pid, user_name_space, go, answer }),
            Ok(letter) => Err(told(answer, &[letter]).err().unwrap_or_else(vanished)),
            Err(_) => Err(vanished()),
        }
    }

    /// Lets the first process take its mounts, and waits until it has.
    fn go(mut self) -> Result<(), Failed> {
        self.go.write_all(b"+").doing("telling the first process to go on")?;
        told(self.answer, &[])
    }
}

/// The first process is gone and said nothing.
fn vanished() -> Failed {
    Failed { doing: "waiting for the first process".into(), source: io::ErrorKind::UnexpectedEof.into() }
}

/// The first process's error, if it tells of one before it closes the pipe, or did `begin` to.
fn told(mut answer: File, begin: &[u8]) -> Result<(), Failed> {
    let mut message = begin.to_vec();
    answer.read_to_end(&mut message).doing("hearing from the first process")?;
    if message.is_empty() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&message).into_owned();
    Err(Failed { doing: "in the first process".into(), source: io::Error::other(message) })
}

/// Forks into the sliver's namespaces, which belong to the identity outside that is root inside, without rights over the node. What
/// the kernel counts for each user (inotify instances, bytes in message queues, pending signals, locked memory) it counts for all of a
/// user namespace to whoever made that: with the node's root, one sliver would use up what all have.
fn fork_as_owner(id: u32) -> io::Result<Fork> {
    // The control group bounds processes. The namespace takes this limit, which is an ordinary user's, from its maker.
    let none = Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(Resource::Nproc, none)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::from_raw(id), Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::from_raw(id), Uid::ROOT)?;
    let kinds = UnshareFlags::NEWUSER | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let forked = namespace::fork_into(kinds)?;
    if let Fork::Parent(_) = forked {
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    }
    Ok(forked)
}

/// The first process's life. The helper hears that all is there by the end of the pipe for answers, which closes with all others.
fn be_first_process(order: &Order, go: &File, mut answer: &File, broker: Option<Broker>) -> Result<Infallible, Failed> {
    let wait = || {
        // If the helper failed, it tells of it itself.
        read_byte(go).unwrap_or_else(|_| std::process::exit(1))
    };
    wait();
    // Each user namespace has its own of these; raising them takes a capability that the sliver's root is not left. With
    // namespaces of its own it would have every capability there, and so all of the kernel's code for network set-up.
    let nested = if order.rspec.extras.nesting { NESTED_NAMESPACES } else { "0" };
    for kind in ["user", "net"] {
        let limit = format!("/proc/sys/user/max_{kind}_namespaces");
        fs::write(&limit, nested).doing(format!("writing {limit}"))?;
    }
    // Now that it is where it stays.
    unshare(UnshareFlags::NEWCGROUP).doing("making a control group namespace")?;
    answer.write_all(&[READY]).doing("telling that it waits")?;
    wait();
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).doing("opening itself")?;
    unshare(UnshareFlags::NEWNS).doing("taking the mounts")?;
    // Joining the namespace it is in makes its topmost root this process's.
    rustix::thread::move_into_thread_name_spaces(me.as_fd(), ThreadNameSpaceType::MOUNT).doing("changing the root")?;
    rustix::system::sethostname(order.host_name.as_bytes()).doing("setting the host name")?;
    rustix::process::chdir("/").doing("changing to the root")?;
    rustix::process::setsid().doing("leading a session")?;
    let _ = rustix::thread::set_name(c"sliver");
    become_sliver_root(order.rspec.extras.nesting, broker).doing("becoming the sliver's root")?;
    first::serve().doing("opening the door")
}

/// The tree of mounts, whose root is on top of this namespace's at the end.
fn build(order: &Order, waiting: &Waiting) -> Result<(), Failed> {
    let mut devices = Vec::new();
    for name in DEVICES {
        devices.push((*name, clone_tree(&format!("/dev/{name}"))?));
    }
    for (_, name) in
        [(order.rspec.extras.fuse, "fuse"), (order.rspec.extras.tun, "net/tun")].into_iter().filter(|(asked, _)| *asked)
    {
        let path = format!("/dev/{name}");
        // What they can do is up to the namespaces of whoever opens them.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).doing(format!("opening {path} to all"))?;
        devices.push((name, clone_tree(&path)?));
    }
    let resolver = fs::read("/etc/resolv.conf").ok();

    let memory = Memory::make(order.id_base)?;
    let lower = clone_tree(&order.lower.to_string_lossy())?;
    namespace::idmap_read_only(lower.as_fd(), waiting.user_name_space.as_fd()).doing("mapping the image's owners")?;
    rustix::fs::mkdirat(&memory.all, LOWER, Mode::from(0o700)).doing("making a directory for the image")?;
    rustix::mount::move_mount(&lower, "", &memory.all, LOWER, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing("mounting the image")?;
    rustix::process::fchdir(&memory.all).doing("going where the image is")?;
    let overlay = file_system(
        "overlay",
        &[
            ("lowerdir", LOWER),
            ("upperdir", &order.upper.to_string_lossy()),
            ("workdir", &order.work.to_string_lossy()),
            // Directories of the image can be renamed.
            ("redirect_dir", "on"),
        ],
        MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let proc = mount_inside("proc", waiting.pid)?;
    let nested = order.rspec.extras.nesting.then(|| ForContainers::make(waiting.pid)).transpose()?;
    let views = Views::take(&order.admin, waiting.user_name_space.as_fd())?;
    take_root(&overlay, &memory.all)?;

    // From here on every path is resolved inside, where the sliver may have put symbolic links.
    let root = Inside::open(order.id_base)?;
    root.mount("dev", &memory.dev)?;
    if order.rspec.extras.tun {
        rustix::fs::mkdirat(&root.directory, "dev/net", Mode::from(0o755)).doing("making /dev/net")?;
    }
    for (name, device) in devices {
        root.file(&format!("dev/{name}"), &device)?;
    }
    let group = (order.id_base + 5).to_string();
    let terminals = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", &group), ("max", "256")];
    let noexec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    root.mount("dev/pts", &file_system("devpts", &terminals, noexec)?)?;
    root.mount("dev/shm", &memory.shm)?;
    for (link, target) in [
        ("dev/ptmx", "pts/ptmx"),
        ("dev/fd", "/proc/self/fd"),
        ("dev/stdin", "/proc/self/fd/0"),
        ("dev/stdout", "/proc/self/fd/1"),
        ("dev/stderr", "/proc/self/fd/2"),
    ] {
        rustix::fs::symlinkat(target, &root.directory, link).doing(format!("linking /{link}"))?;
    }
    root.mount("run", &memory.run)?;
    root.mount("sys", &memory.sys)?;
    root.mount("proc", &proc)?;
    root.freeze("proc/sys")?;
    root.mask("proc")?;
    // After the masks, which are copies of an empty /sys.
    if let Some(nested) = nested {
        nested.attach(&root, order.id_base)?;
    }
    views.mount(&root)?;
    if let Some(text) = resolver {
        root.write("etc", "resolv.conf", &text)?;
    }
    Ok(())
}

/// Names in [`Memory::all`] of directories that the sliver does not get. Nothing of the node's has such names.
const LOWER: &str = ".lower";
const NODE: &str = ".node";

/// Directories in memory, which share one file system: the kernel keeps something for each of those in each control group.
struct Memory {
    /// All of it, mounted where no path leads.
    all: OwnedFd,
    dev: OwnedFd,
    shm: OwnedFd,
    run: OwnedFd,
    /// Empty and read-only.
    sys: OwnedFd,
}

impl Memory {
    /// Makes them, of the identity `owner`.
    fn make(owner: u32) -> Result<Self, Failed> {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        // The limit of the sliver's memory is below that, and counts it too.
        let all = file_system("tmpfs", &[("mode", "700"), ("size", "50%")], flags)?;
        // On the root, whose mount this process's paths begin in all the same.
        rustix::mount::move_mount(&all, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing("mounting the file system in memory")?;
        let directory = |name: &str, mode: u32| {
            let doing = || format!("making {name}");
            let owner = (Uid::from_raw(owner), Gid::from_raw(owner));
            rustix::fs::mkdirat(&all, name, Mode::empty()).doing(doing())?;
            rustix::fs::chownat(&all, name, Some(owner.0), Some(owner.1), AtFlags::empty()).doing(doing())?;
            rustix::fs::chmodat(&all, name, Mode::from(mode), AtFlags::empty()).doing(doing())?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rustix::mount::open_tree(&all, name, flags).doing(doing())
        };
        let [dev, shm] = [directory("dev", 0o755)?, directory("shm", 0o1777)?];
        let [run, sys] = [directory("run", 0o755)?, directory("sys", 0o555)?];
        namespace::make_read_only(sys.as_fd()).doing("making /sys read-only")?;
        Ok(Self { all, dev, shm, run, sys })
    }
}

/// A detached copy of a mount, or of a single file of one.
pub(crate) fn clone_tree(path: &str) -> Result<OwnedFd, Failed> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).doing(format!("opening {path}"))
}

/// A new file system, not attached anywhere. An option without value is a flag.
pub(crate) fn file_system(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Failed> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(format!("opening {kind}"))?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&context, *key)
        } else {
            rustix::mount::fsconfig_set_string(&context, *key, *value)
        }
        .doing(format!("setting {key}={value} of {kind}"))?;
    }
    rustix::mount::fsconfig_create(&context).doing(format!("making {kind}"))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).doing(format!("mounting {kind}"))
}

/// A file system that shows the namespaces of whoever mounts it, which is therefore a child in the sliver's. It is not attached
/// anywhere.
fn mount_inside(kind: &str, first: Pid) -> Result<OwnedFd, Failed> {
    let first = rustix::process::pidfd_open(first, PidfdFlags::empty()).doing("opening the first process")?;
    rustix::thread::move_into_thread_name_spaces(first.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .doing("joining the PID namespace")?;
    let mount = || {
        rustix::thread::move_into_thread_name_spaces(first.as_fd(), ThreadNameSpaceType::CONTROL_GROUP)
            .doing("joining the control group namespace")?;
        let flags =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        file_system(kind, &[], flags)
    };
    namespace::in_child(mount).doing(format!("mounting {kind} inside"))?
}

/// What programs that make containers look for.
struct ForContainers {
    /// A second /proc. The kernel mounts one in a container only if one without covers is there already, which may be where no
    /// path leads.
    bare_proc: OwnedFd,
    /// By which they see of what version control groups are. The sliver reads there about its first process and writes nothing.
    control_group: OwnedFd,
}

impl ForContainers {
    fn make(first: Pid) -> Result<Self, Failed> {
        let bare_proc = mount_inside("proc", first)?;
        let control_group = mount_inside("cgroup2", first)?;
        namespace::make_read_only(control_group.as_fd()).doing("making control groups read-only")?;
        Ok(Self { bare_proc, control_group })
    }

    /// Puts them into /sys, which is empty otherwise, by two more file systems in memory: the first is covered by the second.
    fn attach(self, root: &Inside, owner: u32) -> Result<(), Failed> {
        let owner = owner.to_string();
        let flags =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let small = |mode| {
            let options = [("uid", owner.as_str()), ("gid", owner.as_str()), ("mode", mode), ("size", "4k")];
            file_system("tmpfs", &options, flags)
        };
        let (below, sys) = (small("500")?, small("555")?);
        for (directory, name) in [(&below, "proc"), (&sys, "fs"), (&sys, "fs/cgroup")] {
            rustix::fs::mkdirat(directory, name, Mode::from(0o555)).doing(format!("making {name} for /sys"))?;
        }
        namespace::make_read_only(sys.as_fd()).doing("making /sys read-only")?;
        root.mount("sys", &below)?;
        root.mount("sys/proc", &self.bare_proc)?;
        root.mount("sys", &sys)?;
        root.mount("sys/fs/cgroup", &self.control_group)
    }
}

/// How often mounts are listed until none is left. Again and again is for those that others cover.
const LISTS: usize = 8;

/// Makes a mount that is not attached yet the root of this namespace and process, and detaches everything else but the file
/// system at the very bottom. That one is the initial RAM file system, which pivot_root cannot exchange; covered at its top,
/// no path leads to it, not even `..` from outside of a changed root.
///
/// To detach something makes the kernel wait for all processors, so all goes to `aside` first, a mount that is detached with
/// what it holds. This process has to be there.
fn take_root(root: &OwnedFd, aside: &OwnedFd) -> Result<(), Failed> {
    rustix::fs::mkdirat(aside, NODE, Mode::from(0o700)).doing("making a directory for the node's mounts")?;
    let mut list = File::open("/proc/self/mountinfo").doing("listing mounts")?;
    let mut left = String::new();
    for _ in 0..LISTS {
        let mut text = String::new();
        list.rewind().and_then(|()| list.read_to_string(&mut text)).doing("listing mounts")?;
        // Octal escapes stand for blanks; nothing of the node's has such a name. What is aside is listed as if it were below the root.
        let points = text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| {
            *point != "/" && ![LOWER, NODE].iter().any(|own| point.trim_start_matches('/').starts_with(own))
        });
        left = points.clone().collect::<Vec<_>>().join(", ");
        if left.is_empty() {
            break;
        }
        for point in points {
            match rustix::mount::move_mount(CWD, point, aside, NODE, MoveMountFlags::empty()) {
                // Gone with what it was below.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error).doing(format!("setting {point} aside")),
            }
        }
    }
    if !left.is_empty() {
        return Err(io::Error::other("they are there still")).doing(format!("setting {left} aside"));
    }
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing("detaching the node's mounts")?;
    rustix::mount::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing("mounting the root")?;
    rustix::process::fchdir(root).doing("changing to the new root")?;
    rustix::process::chroot(".").doing("changing the root")
}

/// A copy of the mount that was opened there, or of a file of it, not attached anywhere.
fn copy(source: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(source, "", flags)?)
}

/// The sliver's root from within. Nothing follows symbolic links.
pub(crate) struct Inside {
    directory: OwnedFd,
    owner: (Uid, Gid),
}

impl Inside {
    fn open(id_base: u32) -> Result<Self, Failed> {
        let directory = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .doing("opening the root")?;
        Ok(Self { directory, owner: (Uid::from_raw(id_base), Gid::from_raw(id_base)) })
    }

    fn resolve(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }

    fn attach(&self, target: &OwnedFd, mount: &OwnedFd) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
    }

    /// Mounts on a directory, which is made if there is none.
    pub(crate) fn mount(&self, path: &str, mount: &OwnedFd) -> Result<(), Failed> {
        let open = || self.resolve(path, OFlags::PATH | OFlags::DIRECTORY);
        let target = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                rustix::fs::mkdirat(&self.directory, path, Mode::from(0o755)).doing(format!("making /{path}"))?;
                let (user, group) = self.owner;
                rustix::fs::chownat(&self.directory, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                    .doing(format!("giving away /{path}"))?;
                open()
            }
            result => result,
        }
        .doing(format!("opening /{path}"))?;
        self.attach(&target, mount).doing(format!("mounting on /{path}"))
    }

    /// Mounts on a new empty file.
    pub(crate) fn file(&self, path: &str, mount: &OwnedFd) -> Result<(), Failed> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&self.directory, path, flags, Mode::from(0o644)).doing(format!("making /{path}"))?;
        self.attach(&file, mount).doing(format!("mounting on /{path}"))
    }

    /// A copy of what is mounted where `path` is, or of a file there, not attached anywhere.
    fn copy(&self, path: &str) -> io::Result<OwnedFd> {
        copy(&self.resolve(path, OFlags::PATH)?)
    }

    /// Covers a directory with itself, read-only.
    fn freeze(&self, path: &str) -> Result<(), Failed> {
        let doing = || format!("making /{path} read-only");
        let target = self.resolve(path, OFlags::PATH | OFlags::DIRECTORY).doing(doing())?;
        let copy = self.copy(path).doing(doing())?;
        namespace::make_read_only(copy.as_fd()).doing(doing())?;
        self.attach(&target, &copy).doing(doing())
    }

    /// Covers what is masked in the /proc that is mounted at `path`, as far as this kernel has it: files with `/dev/null`, directories
    /// with `/sys`, which is empty.
    pub(crate) fn mask(&self, path: &str) -> Result<(), Failed> {
        let masking = || format!("masking parts of /{path}");
        let proc = self.resolve(path, OFlags::PATH | OFlags::DIRECTORY).doing(masking())?;
        for (names, with) in [(MASKED_FILES, "dev/null"), (MASKED_DIRECTORIES, "sys")] {
            let source = self.resolve(with, OFlags::PATH).doing(masking())?;
            // To drop one that was not attached takes the kernel longer than all of this.
            let mut spare = None;
            for name in names {
                let cover = spare.take().map_or_else(|| copy(&source), Ok).doing(masking())?;
                match rustix::mount::move_mount(&cover, "", &proc, *name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
                    Err(rustix::io::Errno::NOENT) => spare = Some(cover),
                    result => result.doing(format!("masking /{path}/{name}"))?,
                }
            }
        }
        Ok(())
    }

    /// Replaces a small file, unless it has that content or the directory is not one any more.
    fn write(&self, directory: &str, name: &str, content: &[u8]) -> Result<(), Failed> {
        let Ok(directory) = self.resolve(directory, OFlags::RDONLY | OFlags::DIRECTORY) else { return Ok(()) };
        let doing = || format!("writing {name}");
        let read = || -> io::Result<Vec<u8>> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut text = Vec::new();
            let file = File::from(rustix::fs::openat(&directory, name, flags, Mode::empty())?);
            file.take(content.len() as u64 + 1).read_to_end(&mut text)?;
            Ok(text)
        };
        if read().is_ok_and(|now| now == content) {
            return Ok(());
        }
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => {}
            // A directory: the sliver wants something else there.
            Err(_) => return Ok(()),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let write = || -> io::Result<()> {
            let mut file = File::from(rustix::fs::openat(&directory, name, flags, Mode::from(0o644))?);
            rustix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1))?;
            file.write_all(content)
        };
        match write() {
            // A full sliver starts all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Ok(()),
            result => result.doing(doing()),
        }
    }
}

/// Whether a path can be an overlay's layer: the option is a list with separators of its own.
pub(crate) fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|p| !p.contains([':', ',', '\\']))
}
