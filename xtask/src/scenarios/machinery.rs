//! The sliver crate alone under our kernel: one of its test programs is the machine's first process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_image_builder::cpio::{Node, Writer};
use orrery_qemu::{BootMedium, Disk, DiskBus, Processors, Vm, create_disk};

use super::Bench;
use crate::{
    apt::{Apt, Freshness},
    build::reference_image,
    command, fetch, hash,
    recipe::Source,
    torture,
    workspace::Workspace,
};

const DEADLINE: Duration = Duration::from_secs(900);
const DISK_BYTES: u64 = 2 << 30;
const STORE_DISK_BYTES: u64 = 256 << 20;

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
    /// The program's only argument, if any.
    argument: &'a str,
    /// Debian packages on the disk.
    packages: &'a [&'a str],
}

impl<'a> Trial<'a> {
    fn new(bench: &Bench<'_>, name: &'a str, program: &'a str) -> Self {
        let image = bench.images.folder.join(reference_image::ARCHIVE);
        Self { name, program, cpus: 1, slow_disk: false, image, argument: "", packages: &[] }
    }
}

/// The life of a sliver, and its walls.
pub(super) fn machinery(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-machinery", "sliver_vm"))
}

/// What runs in one without a login.
pub(super) fn programs(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-programs", "sliver_programs"))
}

/// Every known way out of one.
pub(super) fn escapes(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-escapes", "sliver_escapes"))
}

/// The same out of a sliver that may nest containers, and the containers that people make there.
pub(super) fn nesting(bench: &Bench<'_>) -> Result<()> {
    let packages = &["uidmap", "libsubid4", "bubblewrap", "crun", "libyajl2", "fuse-overlayfs", "fuse3", "libfuse3-3"];
    run(bench, &Trial { argument: "nesting", packages, ..Trial::new(bench, "sliver-nesting", "sliver_escapes") })
}

/// Snapshots, clones, exports and imports.
pub(super) fn layers(bench: &Bench<'_>) -> Result<()> {
    run(bench, &Trial::new(bench, "sliver-layers", "sliver_layers"))
}

/// What is hit, and when, in the tests' few interruptions: always the same, so that a failure is the change's doing.
const SEED: u64 = 1;
const INTERRUPTIONS: u32 = 20;

/// Node managers killed, and power cut, in the middle of what they do.
pub(super) fn interruptions(bench: &Bench<'_>) -> Result<()> {
    torture::some_slivers(bench.images, &bench.folder, INTERRUPTIONS, SEED)
}

/// An initial RAM file system whose first process is `program`.
///
/// # Errors
/// The program cannot be read.
pub(crate) fn initramfs_of(program: &Path) -> Result<Vec<u8>> {
    let program = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let mut archive = Writer::new(0);
    let folders = ["dev", "proc", "sys", "run", "data", "etc", "with", "without"];
    folders.iter().for_each(|name| archive.push(name, 0o755, &Node::Directory));
    archive.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
    archive.push("init", 0o755, &Node::File(program));
    Ok(archive.finish())
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

/// What a store asks of the file system, with fs-verity and without.
pub(super) fn store(bench: &Bench<'_>) -> Result<()> {
    fs::create_dir_all(&bench.folder).with_context(|| format!("making {}", bench.folder.display()))?;
    let disks = [("with.img", "project,quota,verity"), ("without.img", "project,quota")];
    let disks = disks.map(|(name, features)| (bench.folder.join(name), features));
    for (disk, features) in &disks {
        create_disk(disk, STORE_DISK_BYTES).context("making a disk")?;
        // Blocks of the size that a node's data partition has; a disk this small would get others.
        let format = ["-q", "-F", "-b", "4096", "-t", "ext4", "-O", features, "-E", "quotatype=prjquota"];
        command::output(Command::new("mke2fs").args(format).arg(disk))?;
    }
    let disks = disks.map(|(disk, _)| Disk::new(disk, DiskBus::VirtioBlk));
    start(bench, &Trial::new(bench, "image-store", "store_vm"), disks)
}

fn run(bench: &Bench<'_>, trial: &Trial<'_>) -> Result<()> {
    fs::create_dir_all(&bench.folder).with_context(|| format!("making {}", bench.folder.display()))?;
    let seed = bench.folder.join("seed");
    let incoming = seed.join("incoming");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    fs::copy(&trial.image, incoming.join("debian.tar.zst")).context("copying the reference image")?;
    fs::write(incoming.join("debian.sha256"), hash::file(&trial.image)?).context("writing its digest")?;
    if !trial.packages.is_empty() {
        fetch_packages(bench.workspace, trial.packages, &incoming.join("debs"))?;
    }
    let disk = bench.folder.join("disk.img");
    create_disk(&disk, DISK_BYTES).context("making a disk")?;
    let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota", "-d"];
    command::output(Command::new("mke2fs").args(format).arg(&seed).arg(&disk))?;

    let disk = Disk::new(disk, DiskBus::VirtioBlk);
    let disk = if trial.slow_disk { disk.operations_per_second(FEW_OPERATIONS) } else { disk };
    start(bench, trial, [disk])
}

/// Starts a machine, and waits for its program's verdict.
fn start<const N: usize>(bench: &Bench<'_>, trial: &Trial<'_>, disks: [Disk; N]) -> Result<()> {
    let initramfs = bench.folder.join("initramfs");
    fs::write(&initramfs, initramfs_of(&bench.images.vm_tests.join(trial.program))?)
        .context("writing the initramfs")?;
    let medium = BootMedium::Kernel {
        kernel: bench.images.folder.join("pxe/vmlinuz"),
        initrds: vec![initramfs],
        append: format!("console=ttyS0,115200 quiet panic=-1 {}", trial.argument),
    };
    let spec = disks
        .into_iter()
        .fold(Vm::builder(trial.name), |vm, disk| vm.disk(disk))
        .boot(medium)
        .memory_mib(1024)
        .cpus(trial.cpus)
        .processors(Processors::AtOnce)
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
