//! Builds what nodes boot from: the hybrid medium, the PXE set and the node OS image.
//!
//! A build is a pure function of its inputs: the same files, version and epoch give the same bytes, in
//! whatever folder and on whatever machine. Compiling the inputs is the caller's work, signing the manifest
//! the operator's.

mod archive_order;
mod chunks;
pub mod cpio;
pub mod debian;
mod fat;
mod iso;
pub mod iso9660;
pub mod media;
mod release;
#[cfg(test)]
mod tests;
mod tree;
mod uki;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use orrery_protocol::{JsonError, ReleaseManifest};
use thiserror::Error;
use time::OffsetDateTime;

pub use crate::{
    archive_order::package_contents,
    chunks::{chunk_index, compress_image},
    fat::TooLarge,
    iso::{CONFIG_FILE, VOLUME_ID},
    release::{SUMS_FILE, write_sums},
    tree::busybox_applets,
    uki::UkiError,
};
use crate::{cpio::Node, tree::Tree, uki::Payload};

/// What both kernels are told beside their role.
///
/// * `panic=10`: a kernel that panics starts the machine over, after a time in which a person can take a photograph.
/// * `softlockup_panic=1 watchdog_thresh=30`: so does one whose processor does nothing but run in the kernel for a minute,
///   which is as long as the hardware watchdog waits. The default's 20 seconds are less than a busy hypervisor may take
///   a guest's processor away for. Tasks that hang on a disk do not panic: slow arrays and USB disks make them.
/// * `printk.devkmsg=on`: PID 1 writes its lines to the kernel's log, and none of them may be dropped for being many.
/// * `gpt`: where the first copy of a partition table is damaged, the kernel takes the second one, at the disk's end. Without
///   the word it looks for that one only where a good first one says it is (`block/partitions/efi.c`).
/// * `memmap=1M$0x8000000` and `ramoops.…`: one MiB at 128 MiB is kept out of use, as a ring that outlives a reset and
///   a chain-boot: six panics of 128 KiB, and 128 KiB each of the kernel's console and of PID 1's lines. The address is
///   fixed because the kernels of the medium and of the node OS lay memory out differently and must find the same
///   ring; 128 MiB is above where boot loaders put kernels, below where they put an initramfs (the top of memory)
///   even in a machine of 192 MiB, and on ordinary machines plain memory. Where it is not, the ring is not there, and
///   nothing else is lost. `ecc=1` mends bits that flipped while the memory was not refreshed. The `$` is safe in the
///   loaders' configurations: SYSLINUX and the EFI stub know no variables, and iPXE expands `${…}` alone.
macro_rules! common_cmdline {
    () => {
        "console=tty0 console=ttyS0,115200 quiet gpt panic=10 softlockup_panic=1 watchdog_thresh=30 printk.devkmsg=on \
         memmap=1M$0x8000000 ramoops.mem_address=0x8000000 ramoops.mem_size=0x100000 ramoops.record_size=0x20000 \
         ramoops.console_size=0x20000 ramoops.pmsg_size=0x20000 ramoops.ecc=1"
    };
}

/// Kernel command line of the boot medium.
pub const MEDIUM_CMDLINE: &str = concat!("orrery.role=boot ", common_cmdline!());
/// Kernel command line of the node OS.
pub const NODE_CMDLINE: &str = concat!("orrery.role=node ", common_cmdline!());
/// The PXE set's second initramfs, which holds the config area.
pub const CONFIG_IMAGE: &str = "config.img";
/// Where it puts the area, below the root directory.
pub const CONFIG_AREA_PATH: &str = "orrery/config-area";

/// What a build is made of. Programs are static.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Version of the release, as `0.1.0`.
    pub version: String,
    /// Build time in seconds since 1970: date of every file, and floor of every node's clock.
    pub epoch: u32,
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// PID 1 of both images.
    pub init: PathBuf,
    /// The boot stage.
    pub stage: PathBuf,
    /// The node OS's program.
    pub nodeos: PathBuf,
    /// Busybox, and the names it answers to; see [`busybox_applets`].
    pub busybox: PathBuf,
    /// Names linked to busybox in `/bin`.
    pub applets: Vec<String>,
    /// `mke2fs`, for both images.
    pub mke2fs: PathBuf,
    /// `e2fsck`, for both images.
    pub e2fsck: PathBuf,
    /// What the medium has for a rescuer: paths in its root file system, and the programs.
    pub tools: Vec<(String, PathBuf)>,
    /// Folders laid over the boot medium's root file system, in this order.
    pub medium_overlays: Vec<PathBuf>,
    /// Folders laid over the node OS's root file system.
    pub node_overlays: Vec<PathBuf>,
    /// Reference images for slivers by name, listed in the release manifest; the files stay where they are.
    pub images: Vec<(String, PathBuf)>,
    /// systemd's `linuxx64.efi.stub`.
    pub efi_stub: PathBuf,
    /// The BIOS loader, `isolinux.bin`.
    pub isolinux_bin: PathBuf,
    /// Its core module, `ldlinux.c32`.
    pub ldlinux_c32: PathBuf,
    /// Its boot sector for hybrid media, `isohdpfx.bin`.
    pub isohdpfx_bin: PathBuf,
}

/// What a build made, with sizes in bytes.
#[derive(Debug)]
pub struct Built {
    /// The hybrid medium, `orrery-boot.iso`.
    pub iso: PathBuf,
    /// Bytes of the hybrid medium.
    pub iso_bytes: u64,
    /// The PXE folder.
    pub pxe: PathBuf,
    /// Bytes of all files of the PXE folder.
    pub pxe_bytes: u64,
    /// Bytes of the kernel.
    pub kernel_bytes: u64,
    /// Bytes of the boot medium's initramfs.
    pub initramfs_bytes: u64,
    /// Bytes of the node OS's initramfs.
    pub nodeos_bytes: u64,
    /// The unsigned release manifest, as in `release.json`.
    pub manifest: ReleaseManifest,
}

/// Why a build failed.
#[derive(Debug, Error)]
pub enum BuildError {
    /// An input.
    #[error("reading {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An output.
    #[error("writing {path}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something in an overlay folder has no place in an image.
    #[error("laying {path} over the root file system: {reason}", path = .path.display())]
    Overlay {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// zstd.
    #[error("compressing an initramfs")]
    Compress(#[source] io::Error),
    /// The EFI stub.
    #[error("assembling the EFI program")]
    Uki(#[source] UkiError),
    /// The EFI system partition.
    #[error("making the EFI system partition")]
    Esp(#[source] TooLarge),
    /// A program that the build runs is not there.
    #[error("starting {tool}: is it installed?")]
    ToolMissing {
        /// The program.
        tool: String,
        /// The cause.
        source: io::Error,
    },
    /// A program that the build runs gave up.
    #[error("{tool} failed: {said}", said = .said.trim())]
    ToolFailed {
        /// The program.
        tool: String,
        /// Its standard error.
        said: String,
    },
    /// The ISO is not as it was meant to be.
    #[error("finishing {path}", path = .path.display())]
    Medium {
        /// The ISO.
        path: PathBuf,
        /// What is wrong.
        source: iso9660::Iso9660Error,
    },
    /// More artifacts than a manifest holds.
    #[error("writing the release manifest: {0}")]
    Manifest(JsonError),
}

impl BuildError {
    fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// Builds everything into the folder `out`. Each file appears there whole or not at all; `progress` hears a
/// line before every step.
///
/// # Errors
/// See [`BuildError`].
pub fn build(inputs: &Inputs, out: &Path, progress: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let (pxe, node_os) = (out.join("pxe"), out.join("node-os"));
    for folder in [out, &pxe, &node_os] {
        fs::create_dir_all(folder).map_err(BuildError::writing(folder))?;
    }
    let work = tempfile::Builder::new().prefix(".work-").tempdir_in(out).map_err(BuildError::writing(out))?;
    let kernel = fs::read(&inputs.kernel).map_err(BuildError::reading(&inputs.kernel))?;

    progress("packing the boot medium's initramfs");
    let initramfs = medium_tree(inputs)?.compressed(inputs.epoch)?;
    progress("packing the node OS image");
    let nodeos = node_tree(inputs)?.compressed(inputs.epoch)?;

    progress("assembling the EFI program");
    let stub = fs::read(&inputs.efi_stub).map_err(BuildError::reading(&inputs.efi_stub))?;
    let version = &inputs.version;
    let payload = Payload {
        os_release: &format!("ID=orrery\nNAME=Orrery\nVERSION_ID={version}\nPRETTY_NAME=\"Orrery {version}\"\n"),
        cmdline: MEDIUM_CMDLINE,
        uname: uki::kernel_version(&kernel),
        kernel: &kernel,
        initrd: &initramfs,
    };
    let uki = uki::assemble(&stub, &payload).map_err(BuildError::Uki)?;

    progress("making the hybrid medium");
    let date = OffsetDateTime::from_unix_timestamp(inputs.epoch.into()).expect("a u32 is within the calendar");
    let (draft, iso) = (work.path().join("medium.iso"), out.join("orrery-boot.iso"));
    iso::build(inputs, &iso::Parts { kernel: &kernel, initramfs: &initramfs, uki: &uki, date }, work.path(), &draft)?;
    fs::rename(&draft, &iso).map_err(BuildError::writing(&iso))?;

    progress("writing the PXE set and the release");
    let config = config_image(inputs.epoch);
    let script = ipxe_script();
    let write = |path: &Path, content: &[u8]| release::replace(path, content).map_err(BuildError::writing(path));
    let pxe_files: [(&str, &[u8]); 4] =
        [("vmlinuz", &kernel), ("initramfs", &initramfs), (CONFIG_IMAGE, &config), ("boot.ipxe", script.as_bytes())];
    for (name, content) in pxe_files {
        write(&pxe.join(name), content)?;
    }
    write(&node_os.join("kernel"), &kernel)?;
    write(&node_os.join("nodeos.img"), &nodeos)?;
    let manifest =
        release::manifest(out, version, &node_os.join("kernel"), &node_os.join("nodeos.img"), &inputs.images)?;
    write(&out.join("release.json"), &manifest.encode().map_err(BuildError::Manifest)?)?;
    drop(work);
    write_sums(out)?;
    Ok(Built {
        iso_bytes: fs::metadata(&iso).map_err(BuildError::reading(&iso))?.len(),
        iso,
        pxe,
        pxe_bytes: pxe_files.iter().map(|(_, content)| content.len() as u64).sum(),
        kernel_bytes: kernel.len() as u64,
        initramfs_bytes: initramfs.len() as u64,
        nodeos_bytes: nodeos.len() as u64,
        manifest,
    })
}

fn medium_tree(inputs: &Inputs) -> Result<Tree, BuildError> {
    let mut tree = common_tree(inputs)?;
    tree.put_file("sbin/orrery-stage", 0o755, &inputs.stage)?;
    tree.put("bin/orrery-node", 0o777, Node::Symlink("../sbin/orrery-stage".to_owned()));
    for (path, program) in &inputs.tools {
        tree.put_file(path, 0o755, program)?;
    }
    finish_tree(tree, inputs, &inputs.medium_overlays)
}

fn node_tree(inputs: &Inputs) -> Result<Tree, BuildError> {
    let mut tree = common_tree(inputs)?;
    tree.put_file("sbin/orrery-nodeos", 0o755, &inputs.nodeos)?;
    finish_tree(tree, inputs, &inputs.node_overlays)
}

fn common_tree(inputs: &Inputs) -> Result<Tree, BuildError> {
    let mut tree = Tree::with_skeleton();
    tree.put_file("init", 0o755, &inputs.init)?;
    tree.put_file("bin/busybox", 0o755, &inputs.busybox)?;
    tree.put_file("sbin/mke2fs", 0o755, &inputs.mke2fs)?;
    tree.put_file("sbin/e2fsck", 0o755, &inputs.e2fsck)?;
    let release = format!("version={}\nepoch={}\n", inputs.version, inputs.epoch);
    tree.put("etc/orrery-release", 0o644, Node::File(release.into_bytes()));
    Ok(tree)
}

fn finish_tree(mut tree: Tree, inputs: &Inputs, overlays: &[PathBuf]) -> Result<Tree, BuildError> {
    for overlay in overlays {
        tree.lay_over(overlay)?;
    }
    tree.link_applets(&inputs.applets);
    Ok(tree)
}

fn config_image(epoch: u32) -> Vec<u8> {
    let mut tree = Tree::default();
    tree.put(CONFIG_AREA_PATH, 0o600, Node::File(orrery_protocol::blank_area()));
    tree.archive(epoch)
}

/// Names are relative to where the script came from, so the folder works on any TFTP or HTTP server. UEFI
/// kernels are told their initramfs by name, BIOS kernels get whatever was loaded. The plain archive stands first: its
/// length is a multiple of four, and the kernel takes an archive at such places only, but a compressed one anywhere.
fn ipxe_script() -> String {
    format!(
        "#!ipxe\nkernel vmlinuz initrd={CONFIG_IMAGE} initrd=initramfs {MEDIUM_CMDLINE}\ninitrd {CONFIG_IMAGE}\n\
         initrd initramfs\nboot\n"
    )
}
