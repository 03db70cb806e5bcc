//! Containers of crun, runc and youki that have what a sliver has: the same image below an overlay, namespaces, identities, limits,
//! capabilities, mounts, and a filter of system calls of like size.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use orrery_sys::namespace::idmap_read_only;
use rustix::{
    fs::CWD,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount},
};
use serde_json::{Value, json};

use crate::Node;

/// The programs.
pub(crate) const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

/// The image as the identities of a sliver see it, for any number of containers with those.
pub(crate) struct Lower {
    point: PathBuf,
    id_base: u32,
}

impl Lower {
    /// Maps the image as it is mapped for the sliver of `login`, which has to run.
    pub(crate) fn of(node: &Node, login: &str) -> Result<Self> {
        let id_base = node.slivers.get(login)?.id_base();
        let first = fs::read_to_string(format!("/sys/fs/cgroup/slivers/{login}/init/cgroup.procs"))?;
        let name_space = File::open(format!("/proc/{}/ns/user", first.trim())).context("opening a user namespace")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &node.tree, flags).context("cloning the image")?;
        idmap_read_only(tree.as_fd(), name_space.as_fd()).context("mapping the image's owners")?;
        let point = PathBuf::from("/run/peers/lower");
        fs::create_dir_all(&point)?;
        rustix::mount::move_mount(&tree, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context("mounting the image")?;
        Ok(Self { point, id_base })
    }

    /// To be called once no container is left.
    pub(crate) fn unmount(self) -> Result<()> {
        unmount(&self.point, UnmountFlags::empty()).context("unmounting the image")
    }
}

/// A bundle: configuration and private layer of a container that may or may not be there.
pub(crate) struct Bundle {
    runtime: &'static str,
    name: String,
    folder: PathBuf,
    layers: PathBuf,
    lower: PathBuf,
}

impl Bundle {
    /// Makes the container's private layer and writes its configuration.
    pub(crate) fn make(lower: &Lower, runtime: &'static str, name: &str, program: &[&str]) -> Result<Self> {
        let (folder, layers) = (Path::new("/run/peers").join(name), Path::new("/data/peers").join(name));
        for path in [folder.join("rootfs"), layers.join("upper"), layers.join("work")] {
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
            chown(&path, Some(lower.id_base), Some(lower.id_base))?;
        }
        let text = serde_json::to_vec(&configuration(name, lower.id_base, program))?;
        fs::write(folder.join("config.json"), text).context("writing a configuration")?;
        Ok(Self { runtime, name: name.to_owned(), folder, layers, lower: lower.point.clone() })
    }

    /// The other way round.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder)?;
        Ok(fs::remove_dir_all(&self.layers)?)
    }

    /// Mounts the container's root, as an engine does that calls the runtime.
    pub(crate) fn mount(&self) -> Result<()> {
        let [upper, work] = ["upper", "work"].map(|name| self.layers.join(name));
        let options = [("lowerdir", &self.lower), ("upperdir", &upper), ("workdir", &work)]
            .map(|(name, path)| format!("{name}={}", path.display()))
            .join(",");
        let options = std::ffi::CString::new(options)?;
        mount("overlay", self.root(), "overlay", MountFlags::NODEV, &*options).context("mounting an overlay")
    }

    pub(crate) fn unmount(&self) -> Result<()> {
        unmount(self.root(), UnmountFlags::empty()).context("unmounting an overlay")
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its root is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    pub(crate) fn control_group(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/peers").join(&self.name)
    }

    /// Runs the container's program to its end; the container is gone then.
    pub(crate) fn run(&self) -> Result<()> {
        self.call(&["run", "--no-pivot", "--bundle", &self.folder.to_string_lossy(), &self.name])
    }

    /// Makes the container, whose program does not run yet.
    pub(crate) fn create(&self) -> Result<()> {
        self.call(&["create", "--no-pivot", "--bundle", &self.folder.to_string_lossy(), &self.name])
    }

    /// Lets the container's program run.
    pub(crate) fn start(&self) -> Result<()> {
        self.call(&["start", &self.name])
    }

    /// Whether [`exec`](Self::exec) confines a program less than the container's own: youki 0.7.0's enters no user namespace, so that
    /// it is the node's root, and loads no filter of system calls.
    pub(crate) fn brings_in_less_confined(&self) -> bool {
        self.runtime == "youki"
    }

    /// Runs another program in the running container.
    pub(crate) fn exec(&self, program: &[&str]) -> Result<()> {
        self.call(&[&["exec", &self.name], program].concat())
    }

    /// Kills what runs and removes the container.
    pub(crate) fn delete(&self) -> Result<()> {
        self.call(&["delete", "--force", &self.name])
    }

    fn call(&self, arguments: &[&str]) -> Result<()> {
        let log = "/run/peers/errors";
        let status = Command::new(format!("/usr/bin/{}", self.runtime))
            .env("PATH", "/usr/sbin:/usr/bin")
            .arg("--root")
            .arg(format!("/run/{}", self.runtime))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A pipe would be held open by what runs inside.
            .stderr(File::create(log)?)
            .status()
            .with_context(|| format!("starting {}", self.runtime))?;
        ensure!(status.success(), "{} {arguments:?}: {status}: {}", self.runtime, fs::read_to_string(log)?);
        Ok(())
    }
}

/// What a sliver's root may do.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETFCAP",
    "CAP_KILL",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
];

/// What is covered in a sliver's /proc.
const MASKED: &[&str] = &[
    "kcore",
    "kallsyms",
    "kmsg",
    "vmallocinfo",
    "slabinfo",
    "pagetypeinfo",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "sysrq-trigger",
    "keys",
    "key-users",
    "timer_list",
    "interrupts",
    "iomem",
    "ioports",
    "mtrr",
    "acpi",
    "asound",
    "bus",
    "driver",
    "irq",
    "scsi",
    "fs",
    "sched_debug",
];

/// Calls that are refused whatever their arguments.
const REFUSED: &[&str] = &[
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "setns",
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "add_key",
    "request_key",
    "keyctl",
    "open_by_handle_at",
    "fanotify_init",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "settimeofday",
    "clock_settime",
    "swapon",
    "swapoff",
    "quotactl",
    "acct",
    "syslog",
    "sethostname",
    "setdomainname",
    "vhangup",
    "iopl",
    "ioperm",
    "modify_ldt",
    "uselib",
    "sysfs",
    "ustat",
    "nfsservctl",
    "lookup_dcookie",
];

/// What the runtime is told, by the specification of the Open Container Initiative.
fn configuration(name: &str, id_base: u32, program: &[&str]) -> Value {
    let rspec = Rspec::default();
    let small = |destination: &str, options: &[&str]| {
        let options: Vec<_> = ["nosuid", "nodev"].iter().chain(options).collect();
        json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let map = json!([{ "containerID": 0, "hostID": id_base, "size": 65536 }]);
    let kinds = ["user", "mount", "pid", "ipc", "uts", "cgroup"];
    let masked: Vec<_> = MASKED.iter().map(|name| format!("/proc/{name}")).collect();
    let namespace_flags = ["0x10000000", "0x20000", "0x40000000", "0x20000000", "0x8000000", "0x4000000", "0x2000000"]
        .map(|flag| u64::from_str_radix(&flag[2..], 16).unwrap_or_default());
    let refused_flags = namespace_flags.map(|flag| {
        json!({
            "names": ["clone", "unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM,
            "args": [{ "index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ" }],
        })
    });
    let refused = json!({ "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM });
    let unknown = json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS });
    let calls: Vec<_> = [refused, unknown].into_iter().chain(refused_flags).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": program,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "cwd": "/root",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                "inheritable": [], "ambient": [],
            },
            // Without `noNewPrivileges`, which is false then: where it stands, youki loads the filter only when it may not any more.
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": name,
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            small("/dev/shm", &["mode=1777", "size=50%"]),
            small("/run", &["mode=755", "size=10%"]),
            small("/sys", &["noexec", "ro", "mode=555", "size=4k"]),
        ],
        "linux": {
            "uidMappings": map, "gidMappings": map,
            "namespaces": kinds.map(|kind| json!({ "type": kind })),
            "cgroupsPath": format!("/peers/{name}"),
            "resources": {
                "memory": { "limit": rspec.mem_limit },
                "pids": { "limit": rspec.pids_limit },
                // Swap by the kernel's name: of memory and swap together, youki takes none for no limit.
                "unified": { "cpu.weight": rspec.cpu_share.to_string(), "memory.swap.max": "0" },
            },
            "maskedPaths": masked,
            "readonlyPaths": ["/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": calls,
            },
        },
    })
}
