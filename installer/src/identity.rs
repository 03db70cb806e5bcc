//! The identity area: where a node that enrolled keeps its key.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ORRYIDN1"
//!      8     4  length of the identity, little-endian
//!     12    32  SHA-256 of the identity
//!     44     n  the identity, JSON
//! ```
//!
//! It stands between the partition table and the first partition, which no file system uses and a new partition table leaves
//! alone: so it survives a reinstallation, and the disk needs no file system to have one. It is secret as the disk is.

use std::io::{self, Read, Seek, SeekFrom, Write};

use orrery_protocol::Digest;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"ORRYIDN1";
const HEADER_BYTES: usize = 44;

/// Where the area begins, in bytes from the start of the disk.
pub(crate) const IDENTITY_AT: u64 = 512 << 10;
/// Its length, in bytes.
pub(crate) const IDENTITY_BYTES: usize = 4096;

/// Who a node became by enrolling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptIdentity {
    /// The node's id.
    pub node: String,
    /// A name for people.
    pub name: String,
    /// The groups it is in.
    pub groups: Vec<String>,
    /// Its private key, PKCS#8 in PEM.
    pub key: String,
    /// SHA-256 of the authority that the medium pins: a disk of another installation's node is nobody here.
    pub central: Digest,
    /// Whether central knows that the key is kept.
    pub confirmed: bool,
}

/// The identity on a disk, if there is a whole one.
///
/// # Errors
/// The disk cannot be read.
pub fn read_identity(disk: &mut (impl Read + Seek)) -> io::Result<Option<KeptIdentity>> {
    disk.seek(SeekFrom::Start(IDENTITY_AT))?;
    let mut area = Vec::new();
    disk.take(IDENTITY_BYTES as u64).read_to_end(&mut area)?;
    Ok(parse(&area))
}

/// Puts an identity on a disk. One write of one page: after a power cut the old one or the new one is there, or none.
///
/// # Errors
/// The disk cannot be written, or the identity is too long.
pub fn write_identity(disk: &mut (impl Write + Seek), identity: &KeptIdentity) -> io::Result<()> {
    let json = serde_json::to_vec(identity)?;
    if json.len() > IDENTITY_BYTES - HEADER_BYTES {
        return Err(io::Error::other("the identity does not fit into its area"));
    }
    let mut area = MAGIC.to_vec();
    area.extend((json.len() as u32).to_le_bytes());
    area.extend(Digest::of(&json).0);
    area.extend(json);
    area.resize(IDENTITY_BYTES, 0);
    disk.seek(SeekFrom::Start(IDENTITY_AT))?;
    disk.write_all(&area)?;
    disk.flush()
}

/// The identity in an area, if it is a whole one.
pub(crate) fn parse(area: &[u8]) -> Option<KeptIdentity> {
    let rest = area.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (digest, rest) = rest.split_first_chunk::<32>()?;
    let json = rest.get(..u32::from_le_bytes(*length) as usize)?;
    (Digest::of(json).0 == *digest).then(|| serde_json::from_slice(json).ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> KeptIdentity {
        KeptIdentity {
            node: "n1".into(),
            name: String::new(),
            groups: vec!["edge".into()],
            key: "-----BEGIN PRIVATE KEY-----".into(),
            central: Digest([7; 32]),
            confirmed: false,
        }
    }

    #[test]
    fn an_identity_is_kept_and_replaced() {
        let mut disk = Cursor::new(vec![0; 1 << 20]);
        assert_eq!(read_identity(&mut disk).unwrap(), None);
        assert_eq!(read_identity(&mut Cursor::new(vec![0; 512])).unwrap(), None);
        let confirmed = KeptIdentity { confirmed: true, ..sample() };
        for identity in [sample(), confirmed.clone()] {
            write_identity(&mut disk, &identity).unwrap();
            assert_eq!(read_identity(&mut disk).unwrap(), Some(identity));
        }
        let long = KeptIdentity { name: "x".repeat(IDENTITY_BYTES), ..sample() };
        assert!(write_identity(&mut disk, &long).is_err());
        assert_eq!(read_identity(&mut disk).unwrap(), Some(confirmed));
    }

    proptest! {
        #[test]
        fn a_damaged_area_holds_nothing(at in 0usize..300, bit in 0u8..8) {
            let mut disk = Cursor::new(vec![0; 1 << 20]);
            write_identity(&mut disk, &sample()).unwrap();
            let used = HEADER_BYTES + serde_json::to_vec(&sample()).unwrap().len();
            disk.get_mut()[IDENTITY_AT as usize + at % used] ^= 1 << bit;
            prop_assert_eq!(read_identity(&mut disk).unwrap(), None);
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let area = if magic { [MAGIC, &bytes[..]].concat() } else { bytes };
            let _ = parse(&area);
        }
    }
}
