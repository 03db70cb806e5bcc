//! The sliver crate alone under our kernel: one of its test programs is the machine's first process.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use orrery_image_builder::cpio::{Node, Writer};
use orrery_qemu::{BootMedium, Disk, DiskBus, Vm, create_disk};

use super::Bench;
use crate::{build::reference_image, command, hash};

const DEADLINE: Duration = Duration::from_secs(900);
const DISK_BYTES: u64 = 2 << 30;

/// Of the disk that is slow on purpose.
const FEW_OPERATIONS: u32 = 400;

/// A program to be a machine's first process.
struct Trial<'a> {
    name: &'a str,
    program: &'a str,
    cpus: u32,
    slow_disk: bool,
    /// The archive that its slivers start from.
    image: PathBuf,
}

impl<'a> Trial<'a> {
    fn new(bench: &Bench<'_>, name: &'a str, program: &'a str) -> Self {
        let image = bench.images.folder.join(reference_image::ARCHIVE);
        Self { name, program, cpus: 1, slow_disk: false, image }
    }
}

/// The life of a sliver, and its walls.
pub(super) fn machinery(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-machinery", "sliver_vm"))
}

/// Every known way out of one.
pub(super) fn escapes(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-escapes", "sliver_escapes"))
}

/// Every limit of a sliver.
pub(super) fn rspec(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial { cpus: 2, slow_disk: true, ..Trial::new(bench, "sliver-rspec", "sliver_limits") })
}

/// A sliver that serves beside slivers that hog.
pub(super) fn hogs(bench: &Bench<'_>) -> Result<()> {
    let built = reference_image::build_with(bench.workspace, "image-with-hogs", &["stress-ng"])?;
    let image = built.folder.join(reference_image::ARCHIVE);
    run(bench, &Trial { cpus: 2, image, ..Trial::new(bench, "sliver-hogs", "sliver_hogs") })
}

fn run(bench: &Bench<'_>, trial: &Trial<'_>) -> Result<()> {
    fs::create_dir_all(&bench.folder).with_context(|| format!("making {}", bench.folder.display()))?;
    let initramfs = bench.folder.join("initramfs");
    let program = fs::read(bench.images.vm_tests.join(trial.program)).context("reading the test program")?;
    let mut archive = Writer::new(0);
    ["dev", "proc", "sys", "run", "data", "etc"].iter().for_each(|name| archive.push(name, 0o755, &Node::Directory));
    archive.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
    archive.push("init", 0o755, &Node::File(program));
    fs::write(&initramfs, archive.finish()).context("writing the initramfs")?;

    let seed = bench.folder.join("seed");
    let incoming = seed.join("incoming");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    fs::copy(&trial.image, incoming.join("debian.tar.zst")).context("copying the reference image")?;
    fs::write(incoming.join("debian.sha256"), hash::file(&trial.image)?).context("writing its digest")?;
    let disk = bench.folder.join("disk.img");
    create_disk(&disk, DISK_BYTES).context("making a disk")?;
    let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota", "-d"];
    command::output(Command::new("mke2fs").args(format).arg(&seed).arg(&disk))?;

    let disk = Disk::new(disk, DiskBus::VirtioBlk);
    let medium = BootMedium::Kernel {
        kernel: bench.images.folder.join("pxe/vmlinuz"),
        initrds: vec![initramfs],
        append: "console=ttyS0,115200 quiet panic=-1".into(),
    };
    let spec = Vm::builder(trial.name)
        .boot(medium)
        .memory_mib(1024)
        .cpus(trial.cpus)
        .disk(if trial.slow_disk { disk.operations_per_second(FEW_OPERATIONS) } else { disk })
        .no_network()
        .deadline(DEADLINE)
        .evidence_root(bench.folder.join("vm"));
    let mut vm = spec.start()?;
    let end = vm.expect("SLIVER-VM ", DEADLINE)?;
    ensure!(end.line.contains("SLIVER-VM ok"), "{}; its console is {}", end.line, vm.keep_evidence().display());
    Ok(())
}
