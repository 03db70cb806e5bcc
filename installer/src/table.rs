//! The partition table.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gptman::{GPT, GPTPartitionEntry};

use crate::layout::{ALIGN_BYTES, BOOT_BYTES, BOOT_LABEL, DATA_LABEL};

/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as GPT stores it.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// Zeroes everything that anyone recognises the old content by: both ends of the disk, and where the new partitions start.
/// From here on, until the installation is committed, the disk boots nothing.
pub(crate) fn zap(disk: &mut (impl Write + Seek), size: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let ends = [0, size.saturating_sub(zeros.len() as u64)];
    let starts = [ALIGN_BYTES, ALIGN_BYTES + BOOT_BYTES];
    for at in ends.into_iter().chain(starts) {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&zeros)?;
    }
    disk.flush()
}

/// Writes a protective MBR and a GPT with our two partitions.
pub(crate) fn write(
    disk: &mut (impl Read + Write + Seek),
    sector_size: u64,
    guids: [[u8; 16]; 3],
) -> Result<(), gptman::Error> {
    let [disk_guid, boot_guid, data_guid] = guids.map(random_guid);
    let mut gpt = GPT::new_from(disk, sector_size, disk_guid)?;
    let align = ALIGN_BYTES / sector_size;
    let boot_end = align + BOOT_BYTES / sector_size;
    // A whole number of alignment units, so that file system blocks of any size fill the partition.
    let data_end = (gpt.header.last_usable_lba + 1) / align * align;
    if data_end <= boot_end {
        return Err(gptman::Error::NoSpaceLeft);
    }
    gpt[1] = entry(BOOT_LABEL, boot_guid, align, boot_end);
    gpt[2] = entry(DATA_LABEL, data_guid, boot_end, data_end);
    GPT::write_protective_mbr_into(disk, sector_size)?;
    gpt.write_into(disk)?;
    disk.flush()?;
    Ok(())
}

fn entry(name: &str, guid: [u8; 16], start: u64, end: u64) -> GPTPartitionEntry {
    GPTPartitionEntry {
        partition_type_guid: LINUX_DATA,
        unique_partition_guid: guid,
        starting_lba: start,
        ending_lba: end - 1,
        attribute_bits: 0,
        partition_name: name.into(),
    }
}

/// Random bytes marked as a UUID of version 4 (RFC 9562), in GPT's mixed-endian order.
fn random_guid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[7] = bytes[7] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Content, probe};

    fn check(sector_size: u64) {
        let mut disk = tempfile::tempfile().unwrap();
        let size = 2 << 30;
        disk.set_len(size).unwrap();
        disk.write_all(&[0xaa; 4096]).unwrap();
        assert!(matches!(probe(&mut disk, sector_size).unwrap(), Content::Foreign(_)));
        zap(&mut disk, size).unwrap();
        assert_eq!(probe(&mut disk, sector_size).unwrap(), Content::Blank);
        write(&mut disk, sector_size, [[1; 16], [2; 16], [3; 16]]).unwrap();
        assert_eq!(probe(&mut disk, sector_size).unwrap(), Content::Ours);
        let gpt = GPT::find_from(&mut disk).unwrap();
        assert_eq!(gpt[1].size().unwrap() * sector_size, BOOT_BYTES);
        assert!(gpt[2].size().unwrap() * sector_size > size - BOOT_BYTES - (3 << 20));
        assert_eq!(gpt[2].starting_lba * sector_size % ALIGN_BYTES, 0);
    }

    #[test]
    fn a_zapped_and_partitioned_disk_is_ours() {
        check(512);
        check(4096);
    }
}
