//! `cargo xtask build`: components into the content-addressed cache.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{
    apt::{Apt, Freshness},
    recipe::Recipe,
    store::{Entry, LinkedPackage},
    ui,
    workspace::Workspace,
};

mod compile;
pub(crate) mod reference_image;
pub(crate) mod rust;

/// The components that recipes in `packages/` describe.
pub(crate) const COMPONENTS: [&str; 7] =
    ["linux", "busybox", "e2fsprogs", "rsync", "openssh", "smartmontools", "util-linux"];

/// Everything an image is made of.
pub(crate) struct Built {
    /// `bzImage` and `config`.
    pub(crate) kernel: Entry,
    /// `busybox` and `busybox.links`.
    pub(crate) busybox: Entry,
    /// `mke2fs`, `e2fsck`, `tune2fs` and `resize2fs`.
    pub(crate) e2fsprogs: Entry,
    /// `rsync`.
    pub(crate) rsync: Entry,
    /// `sftp-server`.
    pub(crate) openssh: Entry,
    /// `smartctl`.
    pub(crate) smartmontools: Entry,
    /// `sfdisk`.
    pub(crate) util_linux: Entry,
    /// `init`, `orrery-stage` and `orrery-nodeos`.
    pub(crate) rust: Entry,
    /// `debian.tar.zst`.
    pub(crate) reference_image: Entry,
}

impl Built {
    /// What was built by recipes.
    pub(crate) fn recipes(&self) -> [&Entry; COMPONENTS.len()] {
        [
            &self.kernel,
            &self.busybox,
            &self.e2fsprogs,
            &self.rsync,
            &self.openssh,
            &self.smartmontools,
            &self.util_linux,
        ]
    }
}

/// Builds one component, or all.
///
/// # Errors
/// When there is no such component, or it does not build.
pub(crate) fn run(workspace: &Workspace, component: Option<&str>) -> Result<()> {
    let Some(component) = component else {
        all(workspace)?;
        tools(workspace)?;
        return Ok(());
    };
    match component {
        "kernel" => report("linux", &recipe(workspace, "linux")?),
        name if COMPONENTS.contains(&name) => report(name, &recipe(workspace, name)?),
        "rust" => {
            report("rust", &rust::images(workspace)?);
            tools(workspace)?;
        }
        "tools" => {
            tools(workspace)?;
        }
        "reference-image" => report(component, &reference_image::build(workspace)?),
        other => bail!(
            "no component `{other}`: there are kernel, {}, rust, tools and reference-image",
            COMPONENTS.join(", ")
        ),
    }
    Ok(())
}

/// Builds all that goes into images.
///
/// # Errors
/// When a component does not build.
pub(crate) fn all(workspace: &Workspace) -> Result<Built> {
    // The quick ones first: a mistake there shows before the kernel has been waited for.
    let rust = rust::images(workspace)?;
    report("rust", &rust);
    let component = |name: &str| recipe(workspace, name).inspect(|entry| report(name, entry));
    let busybox = component("busybox")?;
    let e2fsprogs = component("e2fsprogs")?;
    let rsync = component("rsync")?;
    let openssh = component("openssh")?;
    let smartmontools = component("smartmontools")?;
    let util_linux = component("util-linux")?;
    let reference_image = reference_image::build(workspace)?;
    report("reference-image", &reference_image);
    let kernel = component("linux")?;
    Ok(Built { kernel, busybox, e2fsprogs, rsync, openssh, smartmontools, util_linux, rust, reference_image })
}

/// Builds the host's programs, `orrery` and `orrery-central`, and returns their folder.
///
/// # Errors
/// When they do not build.
pub(crate) fn tools(workspace: &Workspace) -> Result<PathBuf> {
    rust::tools(workspace)
}

/// The packages that the boot loaders on the medium come from.
///
/// # Errors
/// When one is not installed.
pub(crate) fn boot_loaders() -> Result<Vec<LinkedPackage>> {
    compile::linked(&["isolinux", "syslinux-common", "systemd-boot-efi"].map(str::to_owned))
}

fn recipe(workspace: &Workspace, name: &str) -> Result<Entry> {
    let recipe = Recipe::read(&workspace.root, name)?;
    let apt = Apt::open(workspace, Freshness::Daily)?;
    compile::build(workspace, &apt, &recipe).with_context(|| format!("building {name} ({})", recipe.summary))
}

fn report(name: &str, entry: &Entry) {
    let how = if entry.reused { "up to date in" } else { "in" };
    ui::say(name, &format!("{} {how} {}", entry.record.version, entry.folder.display()));
}
