//! The EFI system partition: a FAT16 volume holding one program, `/EFI/BOOT/BOOTX64.EFI`.
//!
//! Written by hand because its layout matters twice: it must be the same in every build, and the program must
//! lie in one piece at an offset that an ISO 9660 directory can point into. Format: Microsoft's "FAT: General
//! Overview of On-Disk Format", 1.03.

use thiserror::Error;
use time::OffsetDateTime;

/// The data area begins at a multiple of this, and clusters are at least as large.
const ALIGNMENT: usize = 2048;
const SECTOR: usize = 512;
const ROOT_ENTRIES: usize = 512;
/// The number of clusters is what makes a volume FAT16; the margins keep off the disputed borders.
const MIN_CLUSTERS: usize = 4085 + 16;
const MAX_CLUSTERS: usize = 65_524 - 16;
const END_OF_CHAIN: u16 = 0xffff;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME_LABEL: u8 = 0x08;

/// A finished volume.
#[derive(Debug)]
pub(crate) struct Esp {
    /// The volume.
    pub bytes: Vec<u8>,
    /// Where the program begins, a multiple of 2048.
    pub program_offset: usize,
}

/// The program is too large for a FAT16 volume.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("an EFI program of {0} bytes does not fit a FAT16 volume")]
pub struct TooLarge(usize);

/// Makes a volume just large enough for `program`.
///
/// # Errors
/// [`TooLarge`].
pub(crate) fn esp(program: &[u8], volume_id: u32, date: OffsetDateTime) -> Result<Esp, TooLarge> {
    // Two folders of one cluster each, then the program.
    let clusters_with = |cluster: usize| (2 + program.len().div_ceil(cluster)).max(MIN_CLUSTERS);
    let cluster = (0..=4).map(|shift| ALIGNMENT << shift).find(|&size| clusters_with(size) <= MAX_CLUSTERS);
    let cluster = cluster.ok_or(TooLarge(program.len()))?;
    let clusters = clusters_with(cluster);
    let fat_sectors = ((clusters + 2) * 2).div_ceil(SECTOR);
    let after_reserved = 2 * fat_sectors + ROOT_ENTRIES * 32 / SECTOR;
    let reserved = (1 + after_reserved).next_multiple_of(ALIGNMENT / SECTOR) - after_reserved;
    let data = (reserved + after_reserved) * SECTOR;
    let total_sectors = (data + clusters * cluster) / SECTOR;

    let mut bytes = vec![0; data];
    boot_sector(&mut bytes[..SECTOR], &Geometry { cluster, reserved, fat_sectors, total_sectors, volume_id });
    let last = 4 + program.len().div_ceil(cluster) - 1;
    for copy in 0..2 {
        let fat = &mut bytes[(reserved + copy * fat_sectors) * SECTOR..][..fat_sectors * SECTOR];
        let mut set = |index: usize, value: u16| fat[index * 2..index * 2 + 2].copy_from_slice(&value.to_le_bytes());
        set(0, 0xfff8);
        for end in 1..4 {
            set(end, END_OF_CHAIN);
        }
        for index in 4..=last {
            set(index, if index == last { END_OF_CHAIN } else { index as u16 + 1 });
        }
    }
    let entry = |name: &[u8; 11], attributes, first, size| directory_entry(name, attributes, first, size, date);
    let root = (reserved + 2 * fat_sectors) * SECTOR;
    bytes[root..root + 32].copy_from_slice(&entry(b"ORRERY-EFI ", VOLUME_LABEL, 0, 0));
    bytes[root + 32..root + 64].copy_from_slice(&entry(b"EFI        ", DIRECTORY, 2, 0));
    let first = if program.is_empty() { 0 } else { 4 };
    let folders =
        [(2, [(b"BOOT       ", DIRECTORY, 3, 0)], 0), (3, [(b"BOOTX64 EFI", ARCHIVE, first, program.len() as u32)], 2)];
    for (own, entries, parent) in folders {
        let at = bytes.len();
        bytes.extend_from_slice(&entry(b".          ", DIRECTORY, own, 0));
        bytes.extend_from_slice(&entry(b"..         ", DIRECTORY, parent, 0));
        for (name, attributes, first, size) in entries {
            bytes.extend_from_slice(&entry(name, attributes, first, size));
        }
        bytes.resize(at + cluster, 0);
    }
    let program_offset = bytes.len();
    bytes.extend_from_slice(program);
    bytes.resize(total_sectors * SECTOR, 0);
    Ok(Esp { bytes, program_offset })
}

struct Geometry {
    cluster: usize,
    reserved: usize,
    fat_sectors: usize,
    total_sectors: usize,
    volume_id: u32,
}

fn boot_sector(sector: &mut [u8], geometry: &Geometry) {
    let mut put = |at: usize, value: &[u8]| sector[at..at + value.len()].copy_from_slice(value);
    let word = |value: usize| (value as u16).to_le_bytes();
    let (small, large) =
        if geometry.total_sectors < 0x1_0000 { (geometry.total_sectors, 0) } else { (0, geometry.total_sectors) };
    // A jump that stops the machine: nobody boots this sector.
    put(0, &[0xeb, 0xfe, 0x90]);
    put(3, b"ORRERY  ");
    put(11, &word(SECTOR));
    put(13, &[(geometry.cluster / SECTOR) as u8]);
    put(14, &word(geometry.reserved));
    put(16, &[2]);
    put(17, &word(ROOT_ENTRIES));
    put(19, &word(small));
    put(21, &[0xf8]);
    put(22, &word(geometry.fat_sectors));
    put(24, &word(63));
    put(26, &word(255));
    put(32, &(large as u32).to_le_bytes());
    put(36, &[0x80, 0, 0x29]);
    put(39, &geometry.volume_id.to_le_bytes());
    put(43, b"ORRERY-EFI FAT16   ");
    put(510, &[0x55, 0xaa]);
}

fn directory_entry(name: &[u8; 11], attributes: u8, first: u16, size: u32, date: OffsetDateTime) -> [u8; 32] {
    // FAT's calendar begins in 1980 and counts seconds in pairs.
    let day = match u16::try_from(date.year() - 1980) {
        Ok(years) => years.min(127) << 9 | u16::from(u8::from(date.month())) << 5 | u16::from(date.day()),
        Err(_) => 1 << 5 | 1,
    };
    let second = u16::from(date.hour()) << 11 | u16::from(date.minute()) << 5 | u16::from(date.second() / 2);
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for (at, value) in [(14, second), (16, day), (18, day), (22, second), (24, day), (26, first)] {
        entry[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    fn check(length: usize) {
        let program: Vec<u8> = (0..length).map(|i| (i * 7 / 3) as u8).collect();
        let date = OffsetDateTime::from_unix_timestamp(1_763_700_000).unwrap();
        let esp = esp(&program, 0x1234_abcd, date).unwrap();
        assert_eq!(esp.program_offset % ALIGNMENT, 0);
        assert_eq!(esp.bytes[esp.program_offset..esp.program_offset + length], program);
        let volume = fatfs::FileSystem::new(Cursor::new(esp.bytes), fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.fat_type(), fatfs::FatType::Fat16);
        assert_eq!(volume.volume_id(), 0x1234_abcd);
        assert_eq!(volume.volume_label(), "ORRERY-EFI");
        let mut content = Vec::new();
        let root = volume.root_dir();
        root.open_file("EFI/BOOT/BOOTX64.EFI").unwrap().read_to_end(&mut content).unwrap();
        assert!(content == program);
        assert_eq!(root.iter().count(), 1);
    }

    #[test]
    fn an_independent_reader_finds_the_program() {
        check(0);
        check(1);
        check(2048);
        check(9_000_001);
        // Beyond the 16-bit sector count, and beyond what 2 KiB clusters reach.
        check(40 << 20);
        check(140 << 20);
    }
}
