//! `cargo xtask image`: everything in `target/orrery/images/`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use orrery_image_builder as builder;

use crate::{
    build::{self, Built, reference_image},
    hash::{self, Inputs},
    sbom, setup,
    ui::{self, Step, size},
    workspace::Workspace,
};

/// The hybrid medium holds kernel and initramfs once or twice, and fits the smallest sticks and slow lines.
const ISO_BUDGET: u64 = 28 << 20;
/// What a node fetches by TFTP at every boot.
const PXE_BUDGET: u64 = 14 << 20;
/// The file that says which inputs the images were made from.
const STAMP: &str = ".inputs";
/// The software bill of materials.
const SBOM: &str = "sbom.spdx.json";

/// What stands ready after [`run`].
pub(crate) struct Images {
    /// `target/orrery/images`.
    pub(crate) folder: PathBuf,
    /// The folder of `orrery` and `orrery-central`.
    pub(crate) tools: PathBuf,
    /// The folder of the static test programs for a VM.
    pub(crate) vm_tests: PathBuf,
    /// The static busybox that the images have.
    pub(crate) busybox: PathBuf,
}

/// Builds what is out of date.
///
/// # Errors
/// When a component does not build, or an image is over its budget.
pub(crate) fn run(workspace: &Workspace) -> Result<Images> {
    setup::check()?;
    let built = build::all(workspace)?;
    let tools = build::tools(workspace)?;
    let (vm_tests, busybox) = (built.rust.folder.clone(), built.busybox.folder.join("busybox"));
    let folder = workspace.images();
    let inputs = inputs(workspace, &built)?;
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|old| old == inputs.text()) && complete(&folder) {
        ui::say("image", &format!("up to date in {}", folder.display()));
        return Ok(Images { folder, tools, vm_tests, busybox });
    }
    let step = Step::start("image", "assembling");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    if stamp.exists() {
        fs::remove_file(&stamp).with_context(|| format!("removing {}", stamp.display()))?;
    }
    let archive = folder.join(reference_image::ARCHIVE);
    let from = built.reference_image.folder.join(reference_image::ARCHIVE);
    fs::copy(&from, &archive).with_context(|| format!("copying {}", from.display()))?;
    let inputs_of_images = image_inputs(workspace, &built, archive)?;
    let result = builder::build(&inputs_of_images, &folder, &mut |what| step.now(what)).context("building images")?;
    step.now("writing the bill of materials");
    let sbom = folder.join(SBOM);
    fs::write(&sbom, sbom::make(workspace, &built)?).with_context(|| format!("writing {}", sbom.display()))?;
    builder::write_sums(&folder).context("writing the checksums")?;
    within("orrery-boot.iso", result.iso_bytes, ISO_BUDGET)?;
    within("the PXE set", result.pxe_bytes, PXE_BUDGET)?;
    fs::write(&stamp, inputs.text()).with_context(|| format!("writing {}", stamp.display()))?;
    step.done(&format!(
        "medium {}, PXE set {} (kernel {}, initramfs {}), node OS {}, in {}",
        size(result.iso_bytes),
        size(result.pxe_bytes),
        size(result.kernel_bytes),
        size(result.initramfs_bytes),
        size(result.nodeos_bytes),
        folder.display()
    ));
    Ok(Images { folder, tools, vm_tests, busybox })
}

fn within(what: &str, bytes: u64, budget: u64) -> Result<()> {
    if bytes > budget {
        bail!("{what} is {}, over its budget of {}: see what grew in the build's output", size(bytes), size(budget));
    }
    Ok(())
}

/// Whether every file of the checksum list is there. Contents are not read again: what changes files in
/// `target` by hand asks for what it gets.
fn complete(folder: &Path) -> bool {
    let sums = fs::read_to_string(folder.join(builder::SUMS_FILE)).unwrap_or_default();
    !sums.is_empty()
        && sums.lines().all(|line| line.split_once("  ").is_some_and(|(_, name)| folder.join(name).is_file()))
}

fn inputs(workspace: &Workspace, built: &Built) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    inputs.add("release", &workspace.release.version, &workspace.release.epoch.to_string());
    for entry in built.recipes().into_iter().chain([&built.rust, &built.reference_image]) {
        for output in &entry.record.outputs {
            inputs.add("output", &format!("{}/{}", entry.record.name, output.name), &output.sha256);
        }
    }
    for overlay in overlays(workspace, &["common", "medium", "node"]) {
        add_folder(&mut inputs, &workspace.root, &overlay)?;
    }
    for loader in [EFI_STUB, ISOLINUX, LDLINUX, ISOHDPFX] {
        inputs.add_file(loader, Path::new(loader))?;
    }
    // The image builder is part of this very program.
    let program = env::current_exe().context("finding this program")?;
    inputs.add("builder", "sha256", &hash::file(&program)?);
    Ok(inputs)
}

fn add_folder(inputs: &mut Inputs, root: &Path, folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("listing {}", folder.display()))?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_folder(inputs, root, &path)?;
        } else {
            inputs.add_file(&path.strip_prefix(root).unwrap_or(&path).to_string_lossy(), &path)?;
        }
    }
    Ok(())
}

const EFI_STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";
const ISOHDPFX: &str = "/usr/lib/ISOLINUX/isohdpfx.bin";

fn overlays(workspace: &Workspace, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| workspace.root.join("rootfs-overlay").join(name)).collect()
}

fn image_inputs(workspace: &Workspace, built: &Built, reference_image: PathBuf) -> Result<builder::Inputs> {
    let busybox = built.busybox.folder.join("busybox");
    Ok(builder::Inputs {
        version: workspace.release.version.clone(),
        epoch: workspace.release.epoch.try_into().context("the epoch of release.toml is past the year 2106")?,
        kernel: built.kernel.folder.join("bzImage"),
        init: built.rust.folder.join("init"),
        stage: built.rust.folder.join("orrery-stage"),
        nodeos: built.rust.folder.join("orrery-nodeos"),
        applets: builder::busybox_applets(&busybox).context("asking busybox for its applets")?,
        busybox,
        mke2fs: built.e2fsprogs.folder.join("mke2fs"),
        e2fsck: built.e2fsprogs.folder.join("e2fsck"),
        tools: vec![
            ("usr/bin/rsync".to_owned(), built.rsync.folder.join("rsync")),
            ("usr/libexec/sftp-server".to_owned(), built.openssh.folder.join("sftp-server")),
            ("usr/sbin/smartctl".to_owned(), built.smartmontools.folder.join("smartctl")),
            ("usr/sbin/sfdisk".to_owned(), built.util_linux.folder.join("sfdisk")),
        ],
        medium_overlays: overlays(workspace, &["common", "medium"]),
        node_overlays: overlays(workspace, &["common", "node"]),
        images: vec![("debian".to_owned(), reference_image)],
        efi_stub: EFI_STUB.into(),
        isolinux_bin: ISOLINUX.into(),
        ldlinux_c32: LDLINUX.into(),
        isohdpfx_bin: ISOHDPFX.into(),
    })
}
