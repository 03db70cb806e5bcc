//! The partition table.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gptman::{GPT, GPTPartitionEntry};

use crate::{
    identity::{IDENTITY_AT, IDENTITY_BYTES, read_identity},
    layout::{ALIGN_BYTES, BOOT_BYTES, BOOT_LABEL, DATA_LABEL},
};

/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as GPT stores it.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// Zeroes everything that anyone recognises the old content by: both ends of the disk, and where the new partitions start.
/// From here on, until the installation is committed, the disk boots nothing. An identity stays: the node that
/// installs is the one it belongs to, and has no other place for it.
pub(crate) fn zap(disk: &mut (impl Read + Write + Seek), size: u64) -> io::Result<()> {
    const LENGTH: u64 = 1 << 20;
    let spared = read_identity(disk)?.map_or(0, |_| IDENTITY_BYTES as u64);
    let behind = IDENTITY_AT + spared;
    let start = [(0, IDENTITY_AT), (behind, LENGTH - behind)];
    let others = [size.saturating_sub(LENGTH), ALIGN_BYTES, ALIGN_BYTES + BOOT_BYTES].map(|at| (at, LENGTH));
    let zeros = vec![0; LENGTH as usize];
    for (at, length) in start.into_iter().chain(others) {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&zeros[..length as usize])?;
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
    use crate::{
        identity::write_identity,
        probe::{Content, probe},
    };

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
    fn an_identity_outlives_a_new_partition_table() {
        let identity = crate::identity::tests::sample();
        let mut disk = tempfile::tempfile().unwrap();
        let size = 2 << 30;
        disk.set_len(size).unwrap();
        disk.write_all(&vec![0xaa; 1 << 20]).unwrap();
        write_identity(&mut disk, &identity).unwrap();
        zap(&mut disk, size).unwrap();
        // Half-installed, with nothing but the identity left, it is not somebody else's.
        assert_eq!(probe(&mut disk, 512).unwrap(), Content::Blank);
        write(&mut disk, 512, [[1; 16], [2; 16], [3; 16]]).unwrap();
        assert_eq!(probe(&mut disk, 512).unwrap(), Content::Ours);
        assert_eq!(read_identity(&mut disk).unwrap(), Some(identity));
        // With a lost partition table as well, whose backup names ours.
        disk.seek(SeekFrom::Start(0)).unwrap();
        disk.write_all(&[0; 64 << 10]).unwrap();
        assert_eq!(probe(&mut disk, 512).unwrap(), Content::Ours);
        // What only looks like an identity is nobody's, and goes.
        disk.seek(SeekFrom::Start(IDENTITY_AT + 20)).unwrap();
        disk.write_all(b"x").unwrap();
        assert!(matches!(probe(&mut disk, 512).unwrap(), Content::Foreign(_)));
        zap(&mut disk, size).unwrap();
        assert_eq!(probe(&mut disk, 512).unwrap(), Content::Blank);
    }

    #[test]
    fn a_zapped_and_partitioned_disk_is_ours() {
        check(512);
        check(4096);
    }
}
