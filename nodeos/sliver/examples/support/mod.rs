//! What every first process of a virtual machine for slivers does.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use orrery_protocol::{Admin, ArtifactRef, Digest, ImageRef, Life, Rspec, SliverSpec, Startup};
use orrery_sliver::prepare_node;
use rustix::mount::{MountFlags, mount};

/// Mounts what a node has, as its PID 1 does, and the disk at `/data`.
pub(crate) fn prepare() -> Result<()> {
    let none = MountFlags::empty();
    // The kernel may have mounted /dev already.
    let _ = mount("dev", "/dev", "devtmpfs", none, None);
    mount("proc", "/proc", "proc", none, None).context("mounting /proc")?;
    mount("sys", "/sys", "sysfs", none, None).context("mounting /sys")?;
    // Which gives the interface its address too.
    fs::write("/sys/class/net/lo/flags", "0x1").context("starting the loopback interface")?;
    mount("run", "/run", "tmpfs", none, None).context("mounting /run")?;
    let options = Some(c"nsdelegate,favordynmods");
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", none, options).context("mounting control groups")?;
    mount("/dev/vda", "/data", "ext4", none, Some(c"prjquota")).context("mounting /data")?;
    fs::write("/etc/resolv.conf", "nameserver 10.0.2.3\n").context("writing resolv.conf")?;
    prepare_node(Path::new("/sys/fs/cgroup/slivers")).context("preparing the node")
}

/// A sliver's description with these limits.
pub(crate) fn spec(slice: &str, rspec: Rspec) -> Result<SliverSpec> {
    let content = ArtifactRef { sha256: Digest([0; 32]), size: 1 };
    let image = ImageRef { name: "debian".into(), content, listing: None };
    Ok(SliverSpec {
        version: 0,
        slice: slice.parse().map_err(|e| anyhow::anyhow!("{e}"))?,
        keys: Vec::new(),
        image,
        rspec,
        startup: Startup::default(),
        life: Life::default(),
        admin: Admin::default(),
    })
}

/// A digest of names, sizes and times of a whole tree.
pub(crate) fn fingerprint(tree: &Path) -> Result<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut pending = vec![tree.to_owned()];
    let mut sum = 0_u64;
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let data = fs::symlink_metadata(&path)?;
            let mut hasher = DefaultHasher::new();
            (&path, data.mode(), data.uid(), data.gid(), data.size(), data.mtime(), data.ctime()).hash(&mut hasher);
            sum = sum.wrapping_add(hasher.finish());
            if data.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(sum)
}

/// Says in the last line what became of it, and powers the machine off.
pub(crate) fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => println!("SLIVER-VM ok"),
        Err(error) => println!("SLIVER-VM FAILED {error:#}"),
    }
    rustix::fs::sync();
    // Without it the machine's deadline ends it.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    ExitCode::FAILURE
}
