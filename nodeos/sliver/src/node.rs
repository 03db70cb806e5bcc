//! What the whole node is set to before it has slivers.

use std::{fs, io, path::Path};

use crate::error::{At, SliverError};

/// Settings of the kernel, and why.
const SYSCTLS: &[(&str, &str)] = &[
    // A sliver shares the node's network namespace but has no rights over it, so that ports below 1024 and ping need these.
    // Port 22 and those below stay the node's, or a sliver could take the gate's place while that restarts.
    ("net/ipv4/ip_unprivileged_port_start", "23"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // What holds ports of the node when nobody's socket does any more, all slivers together: see `ports`. Beyond that, such
    // connections end at once.
    ("net/ipv4/tcp_max_tw_buckets", "8192"),
    ("net/ipv4/tcp_max_orphans", "8192"),
    // Connections that nobody has accepted, reset ones among them, and as many that have only begun, of each socket that listens. For the latter nobody
    // pays: see `ports`.
    ("net/core/somaxconn", "512"),
    // Neighbours on the network that the node knows, which are counted for all its networks together: by itself the kernel knows 1,024, and
    // who asks for as many keeps others from theirs. Each takes about half a KiB.
    ("net/ipv4/neigh/default/gc_thresh1", "8192"),
    ("net/ipv4/neigh/default/gc_thresh2", "16384"),
    ("net/ipv4/neigh/default/gc_thresh3", "32768"),
    ("net/ipv6/neigh/default/gc_thresh1", "8192"),
    ("net/ipv6/neigh/default/gc_thresh2", "16384"),
    ("net/ipv6/neigh/default/gc_thresh3", "32768"),
    // What the kernel says is the node's business.
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/perf_event_paranoid", "3"),
    // Each sliver may have 256 terminals; together they must not use up all.
    ("kernel/pty/max", "262144"),
    // What is counted for the whole node, and so would be used up for everybody by some. Each of these costs memory, of which a
    // sliver has its limit.
    ("fs/file-max", "9223372036854775807"),
    // Each sliver has a maker of its own that is charged; of the node's, each follower of a log needs one.
    ("fs/inotify/max_user_instances", "16384"),
    ("fs/aio-max-nr", "2147483647"),
    ("kernel/pid_max", "4194304"),
    ("kernel/threads-max", "4194304"),
    // The kernel's favourite ways to be broken, which nothing here needs.
    ("kernel/io_uring_disabled", "2"),
    ("kernel/kexec_load_disabled", "1"),
    // Who changes identity cannot be traced: a process on its way into a sliver has to stay so.
    ("fs/suid_dumpable", "0"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
];

/// What all sockets of a kind together may hold, as parts of the node's memory: beyond the last, connections are reset and datagrams
/// dropped, whoever's they are. So that is far off, and what bounds a sliver is its own limit of memory, which pays for its
/// sockets. By itself the kernel allows 9 %, which a sliver can take. Beyond the first, a socket for datagrams holds a single one.
const SOCKET_PARTS: [(&str, [u64; 3]); 2] = [("tcp_mem", [8, 4, 2]), ("udp_mem", [2, 2, 2])];
/// In what unit the kernel is told, in bytes (Linux: `networking/ip-sysctl.rst`).
const PAGE: u64 = 4096;

/// Sets the kernel up for slivers and enables the controllers their limits need. A setting this kernel lacks is skipped.
///
/// # Errors
/// When a control group or a setting that exists cannot be written.
pub fn prepare_node(cgroup: &Path) -> Result<(), SliverError> {
    for (name, value) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        match fs::write(&path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Some can only be raised, and setting them again is refused.
            Err(_) if fs::read_to_string(&path).is_ok_and(|now| now.trim() == *value) => {}
            result => result.at("setting", &path)?,
        }
    }
    let memory = rustix::system::sysinfo();
    let pages = memory.totalram * u64::from(memory.mem_unit) / PAGE;
    for (name, parts) in SOCKET_PARTS {
        let path = Path::new("/proc/sys/net/ipv4").join(name);
        let parts = parts.map(|part| (pages / part).to_string());
        fs::write(&path, parts.join(" ")).at("setting", &path)?;
    }
    fs::create_dir_all(cgroup).at("making", cgroup)?;
    let controllers = [cgroup.parent().unwrap_or(cgroup), cgroup];
    for directory in controllers {
        let path = directory.join("cgroup.subtree_control");
        fs::write(&path, "+cpu +cpuset +memory +pids +io").at("enabling controllers in", &path)?;
    }
    Ok(())
}
