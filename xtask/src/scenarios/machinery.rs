//! The sliver crate alone under our kernel: one of its test programs is the machine's first process.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use orrery_image_builder::cpio::{Node, Writer};
use orrery_qemu::{BootMedium, Disk, DiskBus, Vm, create_disk};

use super::Bench;
use crate::{command, hash};

const DEADLINE: Duration = Duration::from_secs(400);
const DISK_BYTES: u64 = 2 << 30;
const STORE_DISK_BYTES: u64 = 256 << 20;

/// Every limit of a sliver.
pub(super) fn machinery(bench: &Bench<'_>) -> Result<()> {
    run(bench, "sliver-machinery", "sliver_vm")
}

/// Every known way out of one.
pub(super) fn escapes(bench: &Bench<'_>) -> Result<()> {
    run(bench, "sliver-escapes", "sliver_escapes")
}

/// What a store asks of the file system, with fs-verity and without.
pub(super) fn store(bench: &Bench<'_>) -> Result<()> {
    let initramfs = initramfs(bench, "store_vm")?;
    let disks = [("with.img", "project,quota,verity"), ("without.img", "project,quota")];
    let disks = disks.map(|(name, features)| (bench.folder.join(name), features));
    for (disk, features) in &disks {
        create_disk(disk, STORE_DISK_BYTES).context("making a disk")?;
        // Blocks of the size that a node's data partition has; a disk this small would get others.
        let format = ["-q", "-F", "-b", "4096", "-t", "ext4", "-O", features, "-E", "quotatype=prjquota"];
        command::output(Command::new("mke2fs").args(format).arg(disk))?;
    }
    start(bench, "image-store", initramfs, disks.map(|(disk, _)| disk))
}

fn run(bench: &Bench<'_>, name: &str, program: &str) -> Result<()> {
    let initramfs = initramfs(bench, program)?;
    let seed = bench.folder.join("seed");
    let incoming = seed.join("incoming");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    let image = bench.images.folder.join("debian.tar.zst");
    fs::copy(&image, incoming.join("debian.tar.zst")).context("copying the reference image")?;
    fs::write(incoming.join("debian.sha256"), hash::file(&image)?).context("writing its digest")?;
    let disk = bench.folder.join("disk.img");
    create_disk(&disk, DISK_BYTES).context("making a disk")?;
    let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota", "-d"];
    command::output(Command::new("mke2fs").args(format).arg(&seed).arg(&disk))?;

    start(bench, name, initramfs, [disk])
}

/// An initramfs whose `/init` is a test program.
fn initramfs(bench: &Bench<'_>, program: &str) -> Result<PathBuf> {
    fs::create_dir_all(&bench.folder).with_context(|| format!("making {}", bench.folder.display()))?;
    let initramfs = bench.folder.join("initramfs");
    let program = fs::read(bench.images.vm_tests.join(program)).context("reading the test program")?;
    let mut archive = Writer::new(0);
    let folders = ["dev", "proc", "sys", "run", "data", "etc", "with", "without"];
    folders.iter().for_each(|name| archive.push(name, 0o755, &Node::Directory));
    archive.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
    archive.push("init", 0o755, &Node::File(program));
    fs::write(&initramfs, archive.finish()).context("writing the initramfs")?;
    Ok(initramfs)
}

/// Starts a machine, and waits for its program's verdict.
fn start<const N: usize>(bench: &Bench<'_>, name: &str, initramfs: PathBuf, disks: [PathBuf; N]) -> Result<()> {
    let medium = BootMedium::Kernel {
        kernel: bench.images.folder.join("pxe/vmlinuz"),
        initrds: vec![initramfs],
        append: "console=ttyS0,115200 quiet panic=-1".into(),
    };
    let spec = disks.iter().fold(Vm::builder(name), |vm, disk| vm.disk(Disk::new(disk, DiskBus::VirtioBlk)));
    let spec =
        spec.boot(medium).memory_mib(1024).no_network().deadline(DEADLINE).evidence_root(bench.folder.join("vm"));
    let mut vm = spec.start()?;
    let end = vm.expect("SLIVER-VM ", DEADLINE)?;
    ensure!(end.line.contains("SLIVER-VM ok"), "{}; its console is {}", end.line, vm.keep_evidence().display());
    Ok(())
}
