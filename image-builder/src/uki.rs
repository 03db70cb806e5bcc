//! The unified kernel image: kernel, initramfs and command line as sections of one UEFI program.
//!
//! Built from systemd's EFI stub, which looks its payload up by section name
//! (<https://uapi-group.org/specifications/specs/unified_kernel_image/>). Headers are edited in place: PE
//! format, chapters "COFF File Header" to "Section Table". Signing for Secure Boot comes after.

use thiserror::Error;

/// Payloads begin at this alignment in the file, so that an ISO 9660 directory, which counts in sectors of
/// this size, can point straight at them.
pub(crate) const PAYLOAD_ALIGNMENT: usize = 2048;

const SECTION_HEADER_BYTES: usize = 40;
const PAGE: usize = 4096;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// What goes into the image beside the stub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// `os-release` text.
    pub os_release: &'a str,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The kernel's version, shown by boot loaders.
    pub uname: Option<&'a str>,
    /// The kernel, a bzImage with its own EFI stub.
    pub kernel: &'a [u8],
    /// The initramfs.
    pub initrd: &'a [u8],
}

/// A finished image, and where its payloads lie in it.
#[derive(Debug)]
pub(crate) struct Uki {
    /// The file.
    pub bytes: Vec<u8>,
    /// Offset of the kernel, a multiple of [`PAYLOAD_ALIGNMENT`].
    pub kernel_offset: usize,
    /// Offset of the initramfs, likewise.
    pub initrd_offset: usize,
}

/// Why no image could be made of a stub.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UkiError {
    /// Not a PE32+ program, or cut short.
    #[error("the EFI stub is not a PE32+ program")]
    NotPe,
    /// The header has no room for the new sections.
    #[error("the EFI stub's header has room for {free} more sections, {needed} are needed")]
    HeaderFull {
        /// Section headers that still fit.
        free: usize,
        /// Section headers to add.
        needed: usize,
    },
    /// The stub is signed, or names sections through a string table.
    #[error("the EFI stub is already signed or not linked as a plain image")]
    NotPlain,
    /// The sum of all sections is beyond what PE can address.
    #[error("the payload is too large for one EFI program")]
    TooLarge,
}

/// Adds the payload to the stub.
///
/// # Errors
/// The stub is not usable, see [`UkiError`].
pub(crate) fn assemble(stub: &[u8], payload: &Payload<'_>) -> Result<Uki, UkiError> {
    let header = Header::parse(stub)?;
    let sections: Vec<(&[u8; 8], &[u8])> = [
        (b".osrel\0\0", Some(payload.os_release.as_bytes())),
        (b".cmdline", Some(payload.cmdline.as_bytes())),
        (b".uname\0\0", payload.uname.map(str::as_bytes)),
        (b".initrd\0", Some(payload.initrd)),
        (b".linux\0\0", Some(payload.kernel)),
    ]
    .into_iter()
    .filter_map(|(name, data)| data.map(|data| (name, data)))
    .collect();
    let table_end = header.table + header.sections * SECTION_HEADER_BYTES;
    let free = header.headers_size.saturating_sub(table_end) / SECTION_HEADER_BYTES;
    if free < sections.len() {
        return Err(UkiError::HeaderFull { free, needed: sections.len() });
    }

    // What follows the last section is a symbol table that nothing needs.
    let mut bytes = stub[..header.raw_end].to_vec();
    let mut address = header.image_size;
    let mut offsets = Vec::with_capacity(sections.len());
    for (index, (name, data)) in sections.iter().enumerate() {
        address = address.next_multiple_of(PAGE.max(header.section_alignment));
        let offset = bytes.len().next_multiple_of(PAYLOAD_ALIGNMENT);
        bytes.resize(offset, 0);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(header.file_alignment), 0);
        let raw_size = bytes.len() - offset;
        let at = table_end + index * SECTION_HEADER_BYTES;
        bytes[at..at + 8].copy_from_slice(*name);
        // The stub takes the virtual size for the exact length of the payload.
        for (field, value) in [(8, data.len()), (12, address), (16, raw_size), (20, offset)] {
            put_u32(&mut bytes, at + field, u32::try_from(value).map_err(|_| UkiError::TooLarge)?);
        }
        bytes[at + 24..at + 36].fill(0);
        put_u32(&mut bytes, at + 36, CHARACTERISTICS);
        address += data.len();
        offsets.push(offset);
    }

    let count = (header.sections + sections.len()) as u16;
    bytes[header.coff + 2..header.coff + 4].copy_from_slice(&count.to_le_bytes());
    // Time stamp, symbol table and its length.
    bytes[header.coff + 4..header.coff + 16].fill(0);
    let image_size = address.next_multiple_of(header.section_alignment);
    put_u32(&mut bytes, header.optional + 56, u32::try_from(image_size).map_err(|_| UkiError::TooLarge)?);
    // The checksum; UEFI does not look at it, and the old one no longer fits.
    put_u32(&mut bytes, header.optional + 64, 0);
    let [.., initrd_offset, kernel_offset] = offsets[..] else { return Err(UkiError::NotPe) };
    Ok(Uki { bytes, kernel_offset, initrd_offset })
}

/// The version that a bzImage tells in its setup header (the kernel's `Documentation/arch/x86/boot.rst`).
pub(crate) fn kernel_version(kernel: &[u8]) -> Option<&str> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let pointer = u16::from_le_bytes(kernel.get(0x20e..0x210)?.try_into().ok()?);
    let text = kernel.get(usize::from(pointer) + 0x200..)?;
    let end = text.iter().take(128).position(|b| *b == b' ' || *b == 0)?;
    std::str::from_utf8(&text[..end]).ok().filter(|version| !version.is_empty())
}

/// What is needed of a stub's headers: offsets in the file, and sizes.
struct Header {
    coff: usize,
    optional: usize,
    table: usize,
    sections: usize,
    section_alignment: usize,
    file_alignment: usize,
    image_size: usize,
    headers_size: usize,
    raw_end: usize,
}

impl Header {
    fn parse(stub: &[u8]) -> Result<Self, UkiError> {
        let word = |at: usize| Some(u16::from_le_bytes(stub.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_le_bytes(stub.get(at..at + 4)?.try_into().ok()?) as usize);
        let parse = || {
            let pe = long(0x3c)?;
            if stub.get(..2)? != b"MZ" || stub.get(pe..pe + 4)? != b"PE\0\0" {
                return None;
            }
            let (coff, optional) = (pe + 4, pe + 24);
            let table = optional + usize::from(word(coff + 16)?);
            let sections = usize::from(word(coff + 2)?);
            let mut raw_end = 0;
            let mut plain = true;
            for index in 0..sections {
                let at = table + index * SECTION_HEADER_BYTES;
                raw_end = raw_end.max(long(at + 16)?.checked_add(long(at + 20)?)?);
                plain &= *stub.get(at)? != b'/';
            }
            // Data directory 4 is the certificate table.
            plain &= long(optional + 112 + 4 * 8 + 4)? == 0;
            let header = Self {
                coff,
                optional,
                table,
                sections,
                section_alignment: long(optional + 32)?,
                file_alignment: long(optional + 36)?,
                image_size: long(optional + 56)?,
                headers_size: long(optional + 60)?,
                raw_end,
            };
            let sane = word(optional)? == 0x20b
                && header.section_alignment.is_power_of_two()
                && header.file_alignment.is_power_of_two()
                && (header.headers_size..=stub.len()).contains(&raw_end);
            sane.then_some((header, plain))
        };
        match parse() {
            None => Err(UkiError::NotPe),
            Some((_, false)) => Err(UkiError::NotPlain),
            Some((header, true)) => Ok(header),
        }
    }
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use object::{Object, ObjectSection};
    use proptest::prelude::*;

    use super::*;

    /// The smallest program that passes for a stub: one section, room for `free` more.
    pub(crate) fn tiny_stub(free: usize) -> Vec<u8> {
        let (pe, optional_bytes) = (0x40, 240);
        let table = pe + 24 + optional_bytes;
        let headers = (table + (1 + free) * SECTION_HEADER_BYTES).next_multiple_of(8);
        let mut bytes = vec![0; headers];
        bytes[..2].copy_from_slice(b"MZ");
        put_u32(&mut bytes, 0x3c, pe as u32);
        bytes[pe..pe + 8].copy_from_slice(b"PE\0\0\x64\x86\x01\0");
        put_u32(&mut bytes, pe + 8, 0x6000_0000);
        bytes[pe + 20] = optional_bytes as u8;
        let optional = pe + 24;
        bytes[optional..optional + 2].copy_from_slice(&[0x0b, 0x02]);
        for (at, value) in [(32, 512), (36, 512), (56, 0x3000), (60, headers as u32), (64, 99), (108, 16)] {
            put_u32(&mut bytes, optional + at, value);
        }
        bytes[table..table + 8].copy_from_slice(b".text\0\0\0");
        for (at, value) in [(8, 4), (12, 0x2000), (16, 512), (20, headers as u32), (36, 0x6000_0020)] {
            put_u32(&mut bytes, table + at, value);
        }
        bytes.extend_from_slice(&[0x90; 512]);
        bytes.extend_from_slice(b"left-over symbols");
        bytes
    }

    const PAYLOAD: Payload<'static> = Payload {
        os_release: "ID=orrery\n",
        cmdline: "quiet",
        uname: Some("6.12.1"),
        kernel: &[7; 5000],
        initrd: &[8; 3001],
    };

    #[test]
    fn sections_read_back_as_they_were_put_in() {
        let uki = assemble(&tiny_stub(5), &PAYLOAD).unwrap();
        let file = object::read::pe::PeFile64::parse(&*uki.bytes).unwrap();
        let check = |name: &str, expect: &[u8]| {
            let section = file.section_by_name(name).unwrap();
            assert_eq!(section.size() as usize, expect.len(), "{name}");
            assert_eq!(&section.data().unwrap()[..expect.len()], expect, "{name}");
            assert_eq!(section.address() % PAGE as u64, 0, "{name}");
        };
        check(".text", &[0x90; 4]);
        check(".osrel", b"ID=orrery\n");
        check(".cmdline", b"quiet");
        check(".uname", b"6.12.1");
        check(".linux", PAYLOAD.kernel);
        check(".initrd", PAYLOAD.initrd);
        for (offset, content) in [(uki.kernel_offset, PAYLOAD.kernel), (uki.initrd_offset, PAYLOAD.initrd)] {
            assert_eq!(offset % PAYLOAD_ALIGNMENT, 0);
            assert_eq!(&uki.bytes[offset..offset + content.len()], content);
        }
        let mut end = 0;
        for section in file.sections() {
            assert!(section.address() >= end, "sections overlap in memory");
            end = section.address() + section.size();
        }
        let header = Header::parse(&uki.bytes).unwrap();
        assert!(header.image_size as u64 >= end);
        assert_eq!(header.raw_end, uki.bytes.len());
        assert!(!uki.bytes.windows(8).any(|w| w == b"left-ove"));
    }

    #[test]
    fn unusable_stubs_are_refused() {
        fn check(change: impl FnOnce(&mut Vec<u8>), expect: UkiError) {
            let mut stub = tiny_stub(5);
            change(&mut stub);
            assert_eq!(assemble(&stub, &PAYLOAD).unwrap_err(), expect);
        }
        check(|stub| *stub = tiny_stub(3), UkiError::HeaderFull { free: 3, needed: 5 });
        check(|stub| stub[0] = b'E', UkiError::NotPe);
        check(|stub| stub.truncate(300), UkiError::NotPe);
        check(|stub| stub.truncate(700), UkiError::NotPe);
        check(|stub| put_u32(stub, 0x40 + 24 + 148, 8), UkiError::NotPlain);
        check(|stub| stub[0x40 + 24 + 240] = b'/', UkiError::NotPlain);
    }

    #[test]
    fn the_kernel_tells_its_version() {
        let mut kernel = vec![0; 0x400];
        assert_eq!(kernel_version(&kernel), None);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e] = 0x40;
        kernel[0x240..0x250].copy_from_slice(b"6.12.117 (a@b) #");
        assert_eq!(kernel_version(&kernel), Some("6.12.117"));
        assert_eq!(kernel_version(&kernel[..0x242]), None);
    }

    proptest! {
        #[test]
        fn broken_stubs_never_panic(at in 0usize..600, value: u32) {
            let mut stub = tiny_stub(5);
            put_u32(&mut stub, at, value);
            let _ = assemble(&stub, &PAYLOAD);
        }
    }
}
