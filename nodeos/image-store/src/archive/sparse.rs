//! Where the parts of a sparse file stand, in the formats that GNU tar writes: its old header, and PAX records 0.0, 0.1 and
//! 1.0 (GNU tar manual, "Storing Sparse Files").

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax;

/// Part of a file that is stored; what is between two of them is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What the headers of a sparse file say.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// The file's size with its holes.
    pub(super) size: Option<u64>,
    /// Its name; the header has a made up one.
    pub(super) name: Option<Vec<u8>>,
    /// The map stands before the content.
    pub(super) map_in_content: bool,
    /// Offset and length of each extent in turn.
    pub(super) numbers: Vec<u64>,
}

impl Sparse {
    /// Takes a PAX record whose key has `key` after `GNU.sparse.`, or returns `None` if it makes no sense.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.map_in_content = pax::number(value)? == 1,
            b"minor" | b"numblocks" => {}
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(pax::number(value)?),
            b"offset" | b"numbytes" => self.numbers.push(pax::number(value)?),
            b"map" => {
                for number in value.split(|&byte| byte == b',') {
                    self.numbers.push(pax::number(number)?);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Takes what an old header says. Returns whether a block with more extents follows.
    pub(super) fn header(&mut self, header: &Header) -> Option<bool> {
        let header = header.as_gnu()?;
        self.size = Some(header.real_size().ok()?);
        self.extents_of(&header.sparse)?;
        Some(header.is_extended())
    }

    /// Takes such a block, and returns whether another follows.
    pub(super) fn extension(&mut self, block: &GnuExtSparseHeader) -> Option<bool> {
        self.extents_of(block.sparse())?;
        Some(block.is_extended())
    }

    fn extents_of(&mut self, headers: &[GnuSparseHeader]) -> Option<()> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            self.numbers.extend([header.offset().ok()?, header.length().ok()?]);
        }
        Some(())
    }

    /// The file's extents in order, which hold `stored` bytes together, and its size.
    pub(super) fn extents(&self, stored: u64) -> Option<(Vec<Extent>, u64)> {
        let size = self.size?;
        let mut extents = Vec::new();
        let (mut end, mut total) = (0, 0_u64);
        let (pairs, []) = self.numbers.as_chunks::<2>() else { return None };
        for &[offset, length] in pairs {
            if offset < end {
                return None;
            }
            end = offset.checked_add(length)?;
            total = total.checked_add(length)?;
            if length > 0 {
                extents.push(Extent { offset, length });
            }
        }
        (end <= size && total == stored).then_some((extents, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_in_order_and_hold_what_is_stored() {
        let check = |map: &str, size, stored, expect: Option<&[(u64, u64)]>| {
            let mut sparse = Sparse::default();
            sparse.record(b"map", map.as_bytes()).unwrap();
            sparse.record(b"size", format!("{size}").as_bytes()).unwrap();
            let extents = sparse.extents(stored).map(|(extents, _)| extents);
            let expect =
                expect.map(|all| all.iter().map(|&(offset, length)| Extent { offset, length }).collect::<Vec<_>>());
            assert_eq!(extents, expect, "{map}");
        };
        check("0,4,8,4,100,0", 100, 8, Some(&[(0, 4), (8, 4)]));
        check("0,4,8,4", 100, 9, None);
        check("0,4,2,4", 100, 8, None);
        check("8,4,0,4", 100, 8, None);
        check("96,8", 100, 8, None);
        check("0,4,8", 100, 4, None);
        check("18446744073709551615,2", 100, 2, None);
        assert!(Sparse::default().record(b"map", b"0,x").is_none());
        assert!(Sparse::default().record(b"colour", b"0").is_none());
    }
}
