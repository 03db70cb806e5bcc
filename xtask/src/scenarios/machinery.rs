//! The sliver crate alone under our kernel: one of its test programs is the machine's first process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_image_builder::cpio::{Node, Writer};
use orrery_qemu::{BootMedium, Disk, DiskBus, Vm, create_disk};

use super::Bench;
use crate::{
    apt::{Apt, Freshness},
    command, fetch, hash,
    recipe::Source,
    workspace::Workspace,
};

const DEADLINE: Duration = Duration::from_secs(400);
const DISK_BYTES: u64 = 2 << 30;

/// Every limit of a sliver.
pub(super) fn machinery(bench: &Bench<'_>) -> Result<()> {
    run(bench, "sliver-machinery", "sliver_vm", "", &[])
}

/// Every known way out of one.
pub(super) fn escapes(bench: &Bench<'_>) -> Result<()> {
    run(bench, "sliver-escapes", "sliver_escapes", "", &[])
}

/// The same out of a sliver that may nest containers, and the containers that people make there.
pub(super) fn nesting(bench: &Bench<'_>) -> Result<()> {
    let packages = ["uidmap", "libsubid4", "bubblewrap", "crun", "libyajl2", "fuse-overlayfs", "fuse3", "libfuse3-3"];
    run(bench, "sliver-nesting", "sliver_escapes", "nesting", &packages)
}

/// Boots `program` with an argument. The disk has the reference image, and `packages`.
fn run(bench: &Bench<'_>, name: &str, program: &str, argument: &str, packages: &[&str]) -> Result<()> {
    fs::create_dir_all(&bench.folder).with_context(|| format!("making {}", bench.folder.display()))?;
    let initramfs = bench.folder.join("initramfs");
    let program = fs::read(bench.images.vm_tests.join(program)).context("reading the test program")?;
    let mut archive = Writer::new(0);
    ["dev", "proc", "sys", "run", "data", "etc"].iter().for_each(|name| archive.push(name, 0o755, &Node::Directory));
    archive.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
    archive.push("init", 0o755, &Node::File(program));
    fs::write(&initramfs, archive.finish()).context("writing the initramfs")?;

    let seed = bench.folder.join("seed");
    let incoming = seed.join("incoming");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    let image = bench.images.folder.join("debian.tar.zst");
    fs::copy(&image, incoming.join("debian.tar.zst")).context("copying the reference image")?;
    fs::write(incoming.join("debian.sha256"), hash::file(&image)?).context("writing its digest")?;
    if !packages.is_empty() {
        fetch_packages(bench.workspace, packages, &incoming.join("debs"))?;
    }
    let disk = bench.folder.join("disk.img");
    create_disk(&disk, DISK_BYTES).context("making a disk")?;
    let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota", "-d"];
    command::output(Command::new("mke2fs").args(format).arg(&seed).arg(&disk))?;

    let medium = BootMedium::Kernel {
        kernel: bench.images.folder.join("pxe/vmlinuz"),
        initrds: vec![initramfs],
        append: format!("console=ttyS0,115200 quiet panic=-1 {argument}"),
    };
    let spec = Vm::builder(name)
        .boot(medium)
        .memory_mib(1024)
        .disk(Disk::new(&disk, DiskBus::VirtioBlk))
        .no_network()
        .deadline(DEADLINE)
        .evidence_root(bench.folder.join("vm"));
    let mut vm = spec.start()?;
    let end = vm.expect("SLIVER-VM ", DEADLINE)?;
    ensure!(end.line.contains("SLIVER-VM ok"), "{}; its console is {}", end.line, vm.keep_evidence().display());
    Ok(())
}

fn fetch_packages(workspace: &Workspace, packages: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let apt = Apt::open(workspace, Freshness::Daily)?;
    for package in packages {
        let source = Source::Binary {
            package: (*package).to_owned(),
            source_package: (*package).to_owned(),
            tarball: PathBuf::new(),
        };
        let fetched = fetch::fetch(workspace, &apt, &source, &fetch::candidate(&apt, &source)?)?;
        for file in fetched.files {
            fs::copy(fetched.folder.join(&file.name), folder.join(&file.name))
                .with_context(|| format!("copying {}", file.name))?;
        }
    }
    Ok(())
}
