//! The machine that the driver is the first process of.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
};

use anyhow::{Context, Result};
use orrery_init_api::{NODE_CGROUP, RUN_DIR, SLIVERS_CGROUP};
use orrery_nodeos::paths;
use orrery_protocol::{ArtifactRef, Digest, ImageRef};
use rustix::{
    mount::{MountFlags, mount},
    system::RebootCommand,
};

use crate::operations::{IMAGES, Random};

/// The device that has the ledger.
const LEDGER: &str = "/dev/vdb";
/// Files of an image besides the program.
const FILES: usize = 120;

/// Mounts what a node has, and the disk at `/data`.
pub(crate) fn prepare() -> Result<()> {
    let none = MountFlags::empty();
    // The kernel may have mounted /dev already.
    let _ = mount("dev", "/dev", "devtmpfs", none, None);
    mount("proc", "/proc", "proc", none, None).context("mounting /proc")?;
    mount("sys", "/sys", "sysfs", none, None).context("mounting /sys")?;
    mount("run", "/run", "tmpfs", none, None).context("mounting /run")?;
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", none, Some(c"nsdelegate,favordynmods"))
        .context("mounting control groups")?;
    // As the stage of the node that mounts it.
    let data = MountFlags::NOATIME | MountFlags::NODEV;
    mount("/dev/vda", paths::DATA, "ext4", data, Some(c"prjquota")).context("mounting /data")?;
    for folder in [NODE_CGROUP, SLIVERS_CGROUP, RUN_DIR, paths::STATE, paths::INCOMING] {
        fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    Ok(())
}

/// The kernel's `torture` parameter, which reaches the first process as a variable.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) boot: u64,
    /// How often something is killed.
    pub(crate) kills: u32,
    /// Whether the power goes in the end.
    pub(crate) cut: bool,
}

impl Task {
    pub(crate) fn read() -> Result<Self> {
        let text = std::env::var("torture").context("the kernel's parameter `torture` is missing")?;
        let parts: Vec<&str> = text.split(',').collect();
        let [seed, boot, kills, end] = parts[..] else { anyhow::bail!("`torture={text}` has not four parts") };
        Ok(Self { seed: seed.parse()?, boot: boot.parse()?, kills: kills.parse()?, cut: end == "cut" })
    }
}

/// What the disk of the ledger has.
pub(crate) fn ledger() -> Result<String> {
    let mut text = Vec::new();
    fs::File::open(LEDGER).and_then(|mut disk| disk.read_to_end(&mut text)).context("reading the ledger")?;
    Ok(String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned())
}

/// Says a line on the console, and returns once it has left the machine.
pub(crate) fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).context("writing to the console")?;
    rustix::termios::tcdrain(&out).context("waiting for the console")
}

/// Makes the archives of all images where a node has them.
pub(crate) fn make_images() -> Result<Vec<ImageRef>> {
    let program = fs::read("/proc/self/exe").context("reading this program")?;
    let mut images = Vec::new();
    for image in 0..IMAGES {
        let archive = archive(image, &program)?;
        let content = ArtifactRef { sha256: Digest::of(&archive), size: archive.len() as u64 };
        let path = Path::new(paths::INCOMING).join(content.sha256.to_string());
        fs::write(&path, &archive).with_context(|| format!("writing {}", path.display()))?;
        images.push(ImageRef { name: format!("image{image}"), content, listing: None });
    }
    rustix::fs::sync();
    Ok(images)
}

/// A tree that runs this program as its shell. Images have some of their files in common.
fn archive(image: usize, program: &[u8]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content)
    };
    add("bin/sh", program)?;
    for file in 0..FILES {
        let owner = if file % 3 == 0 { image } else { IMAGES };
        let mut random = Random((owner << 32 | file) as u64);
        let length = if file % 40 == 0 { 1_200_000 } else { 100 + 50 * file };
        let content: Vec<u8> = (0..length / 8 + 1).flat_map(|_| random.next().to_le_bytes()).collect();
        add(&format!("usr/{}/{file}", file % 7), &content)?;
    }
    Ok(builder.into_inner()?)
}

/// How many regular files a tree of these has.
pub(crate) const TREE_FILES: usize = FILES + 1;

/// Says in the last line what became of it, and powers the machine off.
pub(crate) fn finish(result: Result<()>) -> Result<()> {
    let line = match &result {
        Ok(()) => "END ok".to_owned(),
        Err(error) => format!("END FAILED {}", format!("{error:#}").replace('\n', " | ")),
    };
    let _ = say(&line);
    rustix::fs::sync();
    // Without it the machine's deadline ends it.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    result
}
