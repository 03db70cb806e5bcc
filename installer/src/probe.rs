//! What a disk holds, by the signatures on it.

use std::{
    fmt,
    io::{self, Read, Seek, SeekFrom},
};

use gptman::GPTHeader;

use crate::{
    identity::{self, IDENTITY_AT, IDENTITY_BYTES},
    layout::{BOOT_LABEL, DATA_LABEL},
};

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing that anybody would know.
    Blank,
    /// An installed node, or the remains of one.
    Ours,
    /// The medium itself.
    Medium,
    /// Somebody else's data.
    Foreign(String),
    /// Nobody knows: it cannot be read, for this reason.
    Unreadable(String),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Ours => f.write_str("an Orrery node"),
            Self::Medium => f.write_str("the Orrery medium"),
            Self::Foreign(what) => f.write_str(what),
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
        }
    }
}

/// How much of the start is looked at: up to the file system in a partition that begins at the first MiB, so that a lost
/// partition table does not make a disk blank.
const START: u64 = 2 << 20;
/// How much of the end: backup partition tables and the metadata of RAIDs stand there.
const END: u64 = 1 << 20;
/// Where GPT names the first partition at the earliest; tools leave everything before it alone.
const FIRST_PARTITION: usize = 1 << 20;
/// Entries a partition table may claim; everybody writes 128.
const MAX_ENTRIES: u32 = 4096;
/// Bytes of an entry.
const ENTRY_BYTES: u32 = 128;

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// Where a kind of data has what magic.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, MD, "a member of a RAID (md)"),
    (4096, MD, "a member of a RAID (md)"),
    (4086, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS    ", "an NTFS file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT32 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
];

/// Looks at a disk with sectors of `sector_size` bytes.
///
/// # Errors
/// It cannot be read.
pub fn probe(disk: &mut (impl Read + Seek), sector_size: u64) -> io::Result<Content> {
    let size = disk.seek(SeekFrom::End(0))?;
    let mut start = read_at(disk, 0, START)?;
    // A node's identity is neither somebody's data nor a sign of an installation.
    if let Some(area) = start.get_mut(IDENTITY_AT as usize..).and_then(|rest| rest.get_mut(..IDENTITY_BYTES))
        && identity::parse(area).is_some()
    {
        area.fill(0);
    }
    let end = read_at(disk, size.saturating_sub(END), END)?;
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    // Before the partition tables: the medium written to a USB stick has some, too.
    if has(0x8001, b"CD001") && start.get(0x8028..0x8048).is_some_and(|id| id.trim_ascii_end() == b"ORRERY") {
        return Ok(Content::Medium);
    }
    // The disk may have been partitioned when it had other sectors, behind another controller.
    let sectors = [sector_size, 512, 4096];
    if let Some(sector) = sectors.into_iter().find(|s| has(*s as usize, b"EFI PART")) {
        let names = partitions(disk, size, sector, sector).or_else(|| backup(disk, size, sector));
        return Ok(names.map_or_else(|| Content::Foreign("a damaged GPT partition table".into()), by_partitions));
    }
    if let Some((.., what)) = SIGNATURES.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Ok(Content::Foreign((*what).into()));
    }
    if let Some(names) = sectors.into_iter().find_map(|sector| backup(disk, size, sector)) {
        return Ok(match by_partitions(names) {
            // Whatever somebody wrote over our partition table is not ours.
            Content::Ours if !blank(start.iter().take(FIRST_PARTITION).skip(512)) => {
                Content::Foreign("data of an unknown kind over the partition table of an Orrery node".into())
            }
            content => content,
        });
    }
    if has(510, &[0x55, 0xaa]) {
        return Ok(Content::Foreign("an MBR partition table".into()));
    }
    if md_at_end(size).iter().any(|at| end_has(&end, size, *at, MD)) {
        return Ok(Content::Foreign("a member of a RAID (md)".into()));
    }
    if blank(start.iter().chain(&end)) {
        return Ok(Content::Blank);
    }
    let place = if blank(&start) { " at its end" } else { "" };
    Ok(Content::Foreign(format!("data of an unknown kind{place}")))
}

/// Whether bytes were never written: what flash or a disk holds when it is new.
fn blank<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> bool {
    let mut bytes = bytes.into_iter();
    let first = *bytes.next().unwrap_or(&0);
    matches!(first, 0 | 0xff) && bytes.all(|byte| *byte == first)
}

/// Up to `length` bytes from `at`; fewer where the disk ends.
fn read_at(disk: &mut (impl Read + Seek), at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    disk.seek(SeekFrom::Start(at))?;
    disk.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where RAID superblocks of versions 1.0 and 0.90 stand on a device of `size` bytes (md(4)).
fn md_at_end(size: u64) -> [Option<u64>; 2] {
    let v1 = size.checked_sub(8192).map(|at| at & !4095);
    let v0 = (size & !0xffff).checked_sub(0x10000);
    [v1, v0]
}

fn end_has(end: &[u8], size: u64, at: Option<u64>, magic: &[u8]) -> bool {
    let offset = at.and_then(|at| at.checked_sub(size - end.len() as u64));
    offset.and_then(|at| end.get(at as usize..)).is_some_and(|rest| rest.starts_with(magic))
}

/// Partition names in the backup table, whose header is in the last sector.
fn backup(disk: &mut (impl Read + Seek), size: u64, sector_size: u64) -> Option<Vec<String>> {
    let last = (size / sector_size).checked_sub(1)?;
    partitions(disk, size, sector_size, last * sector_size)
}

/// Partition names in the table whose header is at `header_at`, if that is sound.
fn partitions(disk: &mut (impl Read + Seek), size: u64, sector_size: u64, header_at: u64) -> Option<Vec<String>> {
    disk.seek(SeekFrom::Start(header_at)).ok()?;
    let header = GPTHeader::read_from(disk).ok()?;
    let (count, length) = (header.number_of_partition_entries, header.size_of_partition_entry);
    // The checksum says nothing about sense: memory is reserved by these numbers, and other lengths are not understood.
    let bytes = u64::from(count) * u64::from(length);
    let end = header.partition_entry_lba.checked_mul(sector_size)?.checked_add(bytes)?;
    if count > MAX_ENTRIES || length != ENTRY_BYTES || end > size {
        return None;
    }
    let entries = header.read_partitions(disk, sector_size).ok()?;
    Some(entries.iter().filter(|p| p.is_used()).map(|p| p.partition_name.as_str().to_owned()).collect())
}

fn by_partitions(names: Vec<String>) -> Content {
    if names == [BOOT_LABEL, DATA_LABEL] {
        return Content::Ours;
    }
    Content::Foreign(format!("a GPT partition table with {} partitions ({})", names.len(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{Cursor, Write},
        process::Command,
    };

    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 4 << 20;

    fn check(patches: &[(usize, &[u8])], expect: &str) {
        let mut disk = vec![0; SIZE];
        for (at, bytes) in patches {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(probe(&mut Cursor::new(disk), 512).unwrap().to_string(), expect);
    }

    #[test]
    fn signatures() {
        check(&[], "blank");
        check(&[(0x438, &[0x53, 0xef])], "an ext2/3/4 file system");
        check(&[(510, &[0x55, 0xaa])], "an MBR partition table");
        check(&[(512, b"EFI PART")], "a damaged GPT partition table");
        check(&[(4096, b"EFI PART")], "a damaged GPT partition table");
        check(&[(0x8001, b"CD001"), (0x8028, b"ORRERY   ")], "an ISO 9660 file system");
        check(&[(0x8001, b"CD001"), (0x8028, b"ORRERY                          ")], "the Orrery medium");
        check(&[(9, b"x")], "data of an unknown kind");
    }

    #[test]
    fn both_ends_count() {
        check(&[(SIZE - 8192, MD)], "a member of a RAID (md)");
        check(&[(SIZE - 0x10000, MD)], "a member of a RAID (md)");
        check(&[(SIZE - 1, b"x")], "data of an unknown kind at its end");
        check(&[(SIZE - END as usize, b"x")], "data of an unknown kind at its end");
        check(&[(START as usize - 1, b"x")], "data of an unknown kind");
        check(&[(0, &[0xff; SIZE])], "blank");
        check(&[(0, &[0xff; SIZE / 2])], "data of an unknown kind at its end");
    }

    #[test]
    fn a_tiny_disk_is_read_to_its_end() {
        for fill in [0, 0xff] {
            assert_eq!(probe(&mut Cursor::new(vec![fill; 512]), 512).unwrap(), Content::Blank);
        }
        assert_eq!(probe(&mut Cursor::new(Vec::new()), 512).unwrap(), Content::Blank);
    }

    /// A disk with a partition table, and what it is once `erase` bytes of its start are zero and `patches` are written.
    fn check_table(labels: &[&str], sector_size: u64, erase: usize, patches: &[(usize, &[u8])], expect: &str) {
        let mut disk = Cursor::new(vec![0; SIZE]);
        let mut gpt = gptman::GPT::new_from(&mut disk, sector_size, [9; 16]).unwrap();
        for (number, label) in (1u32..).zip(labels) {
            let lba = gpt.header.first_usable_lba + u64::from(number);
            gpt[number] = gptman::GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [number as u8; 16],
                starting_lba: lba,
                ending_lba: lba,
                attribute_bits: 0,
                partition_name: (*label).into(),
            };
        }
        gptman::GPT::write_protective_mbr_into(&mut disk, sector_size).unwrap();
        gpt.write_into(&mut disk).unwrap();
        disk.get_mut()[..erase].fill(0);
        for (at, bytes) in patches {
            disk.get_mut()[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(probe(&mut disk, 512).unwrap().to_string(), expect);
    }

    #[test]
    fn partition_tables() {
        let ours = &[BOOT_LABEL, DATA_LABEL];
        let photos = "a GPT partition table with 1 partitions (photos)";
        let over = "data of an unknown kind over the partition table of an Orrery node";
        for sector_size in [512, 4096] {
            check_table(ours, sector_size, 0, &[], "an Orrery node");
            // Only the backup is left.
            check_table(ours, sector_size, SIZE / 2, &[], "an Orrery node");
            check_table(ours, sector_size, SIZE / 2, &[(70_000, b"x")], over);
            check_table(ours, sector_size, SIZE / 2, &[(0x438, &[0x53, 0xef])], "an ext2/3/4 file system");
            check_table(&["photos"], sector_size, 0, &[], photos);
            check_table(&["photos"], sector_size, SIZE / 2, &[], photos);
            let last = SIZE - sector_size as usize;
            check_table(ours, sector_size, SIZE / 2, &[(last + 20, b"x")], "data of an unknown kind at its end");
        }
    }

    /// What the real mke2fs makes, and what that is once `erase` bytes of its start are zero.
    fn check_made(arguments: &[&str], erase: usize, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let made =
            Command::new("/sbin/mke2fs").args(["-F", "-q"]).args(arguments).arg(&path).arg("12M").status().unwrap();
        assert!(made.success(), "{made}");
        File::options().write(true).open(&path).unwrap().write_all(&vec![0; erase]).unwrap();
        assert_eq!(probe(&mut File::open(&path).unwrap(), 512).unwrap().to_string(), expect, "{arguments:?}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn file_systems_as_mke2fs_makes_them() {
        let ext = "an ext2/3/4 file system";
        check_made(&["-t", "ext2"], 0, ext);
        check_made(&["-t", "ext3", "-b", "1024"], 0, ext);
        check_made(&["-t", "ext4", "-b", "4096"], 0, ext);
        check_made(&["-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota"], 0, ext);
        // The partition table in front of it is lost, or its own superblock is.
        check_made(&["-t", "ext4", "-E", "offset=1048576"], 0, "data of an unknown kind");
        check_made(&["-t", "ext4", "-b", "1024"], 4096, "data of an unknown kind");
    }

    /// A header that is sound by its checksum, whatever it claims.
    fn header(partition_entry_lba: u64, number_of_partition_entries: u32, size_of_partition_entry: u32) -> Vec<u8> {
        let mut header = GPTHeader {
            signature: *b"EFI PART",
            revision: [0, 0, 1, 0],
            header_size: 92,
            crc32_checksum: 0,
            reserved: [0; 4],
            primary_lba: 1,
            backup_lba: u64::MAX,
            first_usable_lba: u64::MAX,
            last_usable_lba: 0,
            disk_guid: [7; 16],
            partition_entry_lba,
            number_of_partition_entries,
            size_of_partition_entry,
            partition_entry_array_crc32: 0,
        };
        header.crc32_checksum = header.generate_crc32_checksum();
        let mut bytes = [&header.signature[..], &header.revision].concat();
        for word in [header.header_size, header.crc32_checksum, 0] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [header.primary_lba, header.backup_lba, header.first_usable_lba, header.last_usable_lba] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(header.disk_guid);
        bytes.extend(partition_entry_lba.to_le_bytes());
        for word in [number_of_partition_entries, size_of_partition_entry, 0] {
            bytes.extend(word.to_le_bytes());
        }
        assert!(GPTHeader::read_from(&mut Cursor::new([&bytes[..], &[0; 420]].concat())).is_ok());
        bytes
    }

    proptest! {
        #[test]
        fn probing_never_panics(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
            sector_size in prop_oneof![Just(512u64), Just(4096), Just(1 << 20)],
            gpt in proptest::option::of((
                prop_oneof![0u64..8, any::<u64>()],
                prop_oneof![0u32..8, any::<u32>()],
                prop_oneof![Just(ENTRY_BYTES), any::<u32>()],
            )),
        ) {
            if let Some((lba, count, length)) = gpt && bytes.len() >= 1024 {
                let header = header(lba, count, length);
                bytes[512..512 + header.len()].copy_from_slice(&header);
            }
            let _ = probe(&mut Cursor::new(bytes), sector_size);
        }
    }
}
