//! The hybrid medium: one file that boots as CD and as disk, under BIOS and UEFI.
//!
//! Kernel and initramfs stand in it once, inside the EFI program; the ISO 9660 files that the BIOS loader
//! reads are directory records pointing at those bytes.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};

use time::OffsetDateTime;

use crate::{
    BuildError, Inputs, MEDIUM_CMDLINE,
    fat::{self, Esp},
    iso9660::{self, Iso9660Error, SECTOR},
    uki::Uki,
};

/// The volume that the boot stage looks for.
pub const VOLUME_ID: &str = "ORRERY";
/// The config area's file in the root of the medium.
pub const CONFIG_FILE: &str = "ORRERY.CFG";

/// What stands in a medium.
pub(crate) struct Parts<'a> {
    pub(crate) kernel: &'a [u8],
    pub(crate) initramfs: &'a [u8],
    pub(crate) uki: &'a Uki,
    pub(crate) date: OffsetDateTime,
}

/// Writes the medium to `iso`, with `work` as an empty folder to lay its tree out in.
pub(crate) fn build(inputs: &Inputs, parts: &Parts<'_>, work: &Path, iso: &Path) -> Result<(), BuildError> {
    // Identifiers that tell two media apart and are the same in every build of one.
    let digest = orrery_protocol::Digest::of(&parts.uki.bytes).0;
    let volume_id = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let esp = fat::esp(&parts.uki.bytes, volume_id, parts.date).map_err(BuildError::Esp)?;
    let tree = lay_out(inputs, &esp, work)?;
    run_xorriso(inputs, parts.date, &digest, &tree, iso)?;
    share_payload(parts, &esp, iso).map_err(|source| BuildError::Medium { path: iso.to_owned(), source })
}

/// The tree that xorriso packs. Kernel and initramfs are placeholders until [`share_payload`].
fn lay_out(inputs: &Inputs, esp: &Esp, work: &Path) -> Result<PathBuf, BuildError> {
    let tree = work.join("tree");
    for folder in [tree.clone(), tree.join("boot"), tree.join("isolinux")] {
        fs::create_dir(&folder).map_err(BuildError::writing(&folder))?;
    }
    let config = format!(
        "SERIAL 0 115200\nPROMPT 0\nTIMEOUT 1\nDEFAULT orrery\nLABEL orrery\n  KERNEL /boot/vmlinuz\n  \
         INITRD /boot/initramfs\n  APPEND {MEDIUM_CMDLINE}\n"
    );
    let loader = fs::read(&inputs.isolinux_bin).map_err(BuildError::reading(&inputs.isolinux_bin))?;
    let module = fs::read(&inputs.ldlinux_c32).map_err(BuildError::reading(&inputs.ldlinux_c32))?;
    let files: [(&str, &[u8]); 7] = [
        (CONFIG_FILE, &orrery_protocol::blank_area()),
        ("boot/efi.img", &esp.bytes),
        ("boot/vmlinuz", b"k"),
        ("boot/initramfs", b"i"),
        ("isolinux/isolinux.bin", &loader),
        ("isolinux/ldlinux.c32", &module),
        ("isolinux/isolinux.cfg", config.as_bytes()),
    ];
    for (name, content) in files {
        let path = tree.join(name);
        fs::write(&path, content).map_err(BuildError::writing(&path))?;
    }
    Ok(tree)
}

fn run_xorriso(
    inputs: &Inputs,
    date: OffsetDateTime,
    digest: &[u8; 32],
    tree: &Path,
    iso: &Path,
) -> Result<(), BuildError> {
    let stamp = format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}00",
        date.year(),
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second()
    );
    let guid: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("xorriso")
        // Neither the user's start-up file, nor zone, locale or an inherited build time may show in the result.
        .args(["-no_rc", "-as", "mkisofs", "-quiet"])
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .env_remove("SOURCE_DATE_EPOCH")
        .args(["-V", VOLUME_ID, "-A", "ORRERY", "-p", "ORRERY", "-publisher", "ORRERY", "-sysid", "LINUX"])
        .args(["-iso-level", "3", "-r"])
        .arg(format!("--modification-date={stamp}"))
        .args(["--set_all_file_dates", &stamp, "--gpt_disk_guid", &guid])
        .arg("-isohybrid-mbr")
        .arg(&inputs.isohdpfx_bin)
        .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .args(["-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat"])
        .arg("-o")
        .arg(iso)
        .arg(tree)
        .output()
        .map_err(|source| BuildError::ToolMissing { tool: "xorriso".into(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into();
        return Err(BuildError::ToolFailed { tool: "xorriso".into(), said });
    }
    Ok(())
}

/// Points `/boot/vmlinuz` and `/boot/initramfs` at the payload inside the EFI program, after checking that it
/// is there, and reads both back the way the BIOS loader will.
fn share_payload(parts: &Parts<'_>, esp: &Esp, iso: &Path) -> Result<(), Iso9660Error> {
    let mut image = File::options().read(true).write(true).open(iso)?;
    let partition = iso9660::find(&mut image, &["BOOT", "EFI.IMG"])?;
    let program = partition.offset() + esp.program_offset as u64;
    let files =
        [("VMLINUZ", parts.uki.kernel_offset, parts.kernel), ("INITRAMFS", parts.uki.initrd_offset, parts.initramfs)];
    for (name, offset, content) in files {
        let record = iso9660::find(&mut image, &["BOOT", name])?;
        let start = program + offset as u64;
        let extent = u32::try_from(start / SECTOR).map_err(|_| Iso9660Error::Damaged(start))?;
        iso9660::repoint(&mut image, &record, extent, content.len() as u32)?;
        let shared = iso9660::find(&mut image, &["BOOT", name])?;
        let mut found = vec![0; shared.size as usize];
        image.seek(SeekFrom::Start(shared.offset()))?;
        image.read_exact(&mut found)?;
        if !start.is_multiple_of(SECTOR) || found != content {
            return Err(Iso9660Error::Damaged(record.position));
        }
    }
    image.sync_all()?;
    Ok(())
}
