//! Where things stand on an installed disk.

use std::path::{Path, PathBuf};

use orrery_protocol::Digest;

use crate::installed::Slot;

/// Name of the partition with kernels and node OS images; also its file system's label.
pub const BOOT_LABEL: &str = "ORRERY-BOOT";
/// Name of the partition with everything else.
pub const DATA_LABEL: &str = "ORRERY-DATA";

/// Two slots of a kernel and a node OS each, with room to grow.
pub(crate) const BOOT_BYTES: u64 = 512 << 20;
/// What of it files can have: the rest is journal, inodes, and room for manifests and what a repair leaves behind.
pub(crate) const BOOT_USABLE_BYTES: u64 = BOOT_BYTES - (64 << 20);
/// Boot partition, one reference image and a few slivers.
pub(crate) const MIN_DISK_BYTES: u64 = 2 << 30;
/// Alignment of partitions, in bytes: a multiple of every erase block and stripe in use.
pub(crate) const ALIGN_BYTES: u64 = 1 << 20;

/// A file (`manifest`, `kernel`, `nodeos`) of `slot` on the boot partition mounted at `boot`.
pub fn slot_file(boot: &Path, slot: Slot, file: &str) -> PathBuf {
    boot.join("slots").join(slot.as_str()).join(file)
}

/// A downloaded reference image on the data partition mounted at `data`.
pub fn image_path(data: &Path, image: &Digest) -> PathBuf {
    images_folder(data).join(image.to_string())
}

/// Where downloaded reference images are, on the data partition mounted at `data`.
pub(crate) fn images_folder(data: &Path) -> PathBuf {
    data.join("images").join("incoming")
}
