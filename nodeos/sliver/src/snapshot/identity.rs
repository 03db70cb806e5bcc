//! Whose the files of a layer are: in a sliver, and outside of it, where each sliver has a range of identities of its own.
//!
//! Identities also stand inside of extended attributes: in access control lists, and in file capabilities, which name the root of
//! the user namespace that they are good for.

use orrery_image_store::Metadata;

use crate::record::IDS;

/// Who owns what nobody inside owns (`fs.overflowuid`).
const NOBODY: u32 = 65_534;
const CAPABILITY: &[u8] = b"security.capability";
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const OVERLAY: &[u8] = b"trusted.overlay.";
/// The longest redirect that the kernel takes (`OVL_REDIRECT_MAX` of fs/overlayfs).
const REDIRECT_BYTES: usize = 256;

/// Extended attributes that a private layer has: those of its files, and the overlay's own.
pub(crate) fn belongs(name: &[u8]) -> bool {
    name.starts_with(b"user.") || [CAPABILITY, ACCESS, DEFAULT].contains(&name) || name.starts_with(OVERLAY)
}

/// A sliver's range of identities, by the one outside that is 0 inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range(pub(crate) u32);

impl Range {
    fn inside(self, id: u32) -> u32 {
        id.checked_sub(self.0).filter(|id| *id < IDS).unwrap_or(NOBODY)
    }

    /// An identity inside as it is outside.
    pub(crate) fn outside(self, id: u32) -> Option<u32> {
        (id < IDS).then(|| self.0 + id)
    }

    /// What a file of this sliver's layer has, as its users see it, with what of the overlay's own makes sense elsewhere: that a
    /// directory hides the image's, or continues one that was renamed. What tells which of the image's inodes a file was
    /// copied from does not.
    pub(crate) fn inward(self, metadata: Metadata) -> Result<Metadata, &'static str> {
        let mut attributes = Vec::new();
        for (name, value) in metadata.attributes {
            let kept = match name.as_slice() {
                CAPABILITY => capability_inward(&value, self),
                ACCESS | DEFAULT => Some(access_list(&value, |id| Some(self.inside(id)))?),
                METACOPY => return Err("its content is the image's"),
                OPAQUE | REDIRECT => Some(value),
                name if name.starts_with(OVERLAY) => None,
                _ => Some(value),
            };
            attributes.extend(kept.map(|value| (name, value)));
        }
        Ok(Metadata { owner: self.inside(metadata.owner), group: self.inside(metadata.group), attributes, ..metadata })
    }

    /// What a file of this sliver's layer has to have outside, of what it is to have inside. Nothing is believed of who says so.
    pub(crate) fn outward(self, metadata: Metadata, directory: bool) -> Result<Metadata, &'static str> {
        let foreign = "its owner is none that a sliver has";
        let mut attributes = Vec::new();
        for (name, value) in metadata.attributes {
            let value = match name.as_slice() {
                CAPABILITY => capability_outward(&value, self).ok_or("its capabilities make no sense")?,
                ACCESS | DEFAULT => access_list(&value, |id| self.outside(id))?,
                OPAQUE if directory && value == b"y" => value,
                REDIRECT if directory && is_redirect(&value) => value,
                name if name.starts_with(b"user.") => value,
                _ => return Err("it has an attribute that no sliver gives"),
            };
            attributes.push((name, value));
        }
        let owner = self.outside(metadata.owner).ok_or(foreign)?;
        let group = self.outside(metadata.group).ok_or(foreign)?;
        Ok(Metadata { owner, group, attributes, ..metadata })
    }
}

/// Whether this leads to a place in the image: a name beside the directory, or a path from the top.
fn is_redirect(value: &[u8]) -> bool {
    let name = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    value.len() <= REDIRECT_BYTES
        && match value.strip_prefix(b"/") {
            Some(path) => path.split(|&byte| byte == b'/').all(name),
            None => name(value) && !value.contains(&b'/'),
        }
}

// `struct vfs_cap_data` and `vfs_ns_cap_data` of linux/capability.h: a word with the revision in its topmost byte and a flag, two
// pairs of sets, and from revision 3 on the root that they are good for; all little-endian.
const SETS: usize = 20;
const REVISION_2: u8 = 2;
const REVISION_3: u8 = 3;

/// File capabilities as the sliver's users see them; none if they are another root's.
fn capability_inward(value: &[u8], range: Range) -> Option<Vec<u8>> {
    let (sets, root) = value.split_at_checked(SETS)?;
    let good = match (sets[3], root) {
        (REVISION_2, []) => true,
        (REVISION_3, root) => u32::from_le_bytes(root.try_into().ok()?) == range.0,
        _ => false,
    };
    let mut sets = sets.to_vec();
    sets[3] = REVISION_2;
    good.then_some(sets)
}

/// File capabilities that are good for this sliver's root and nobody else's.
fn capability_outward(value: &[u8], range: Range) -> Option<Vec<u8>> {
    let (sets, root) = value.split_at_checked(SETS)?;
    let plain = sets[3] == REVISION_2 && root.is_empty();
    let mut value = sets.to_vec();
    value[3] = REVISION_3;
    value.extend_from_slice(&range.0.to_le_bytes());
    plain.then_some(value)
}

/// An access control list with other identities (linux/posix_acl_xattr.h: a version, and entries of tag, permissions and
/// identity, little-endian).
fn access_list(value: &[u8], change: impl Fn(u32) -> Option<u32>) -> Result<Vec<u8>, &'static str> {
    const VERSION: u32 = 2;
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let malformed = "its access control list makes no sense";
    let (version, entries) = value.split_first_chunk().ok_or(malformed)?;
    let (entries, []) = entries.as_chunks::<8>() else { return Err(malformed) };
    if u32::from_le_bytes(*version) != VERSION {
        return Err(malformed);
    }
    let mut changed = version.to_vec();
    for &[tag0, tag1, permissions0, permissions1, id @ ..] in entries {
        let id = match u16::from_le_bytes([tag0, tag1]) {
            USER | GROUP => change(u32::from_le_bytes(id)).ok_or(malformed)?.to_le_bytes(),
            _ => id,
        };
        changed.extend([tag0, tag1, permissions0, permissions1]);
        changed.extend(id);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Range = Range(65_536);
    const THERE: Range = Range(196_608);

    fn with(name: &[u8], value: &[u8]) -> Metadata {
        Metadata { owner: 5, group: 6, attributes: vec![(name.to_vec(), value.to_vec())], ..Metadata::default() }
    }

    #[test]
    fn owners_move_from_range_to_range() {
        let check = |owner: u32, expect: u32| {
            let metadata = Metadata { owner, group: owner, ..Metadata::default() };
            let inside = HERE.inward(metadata).unwrap();
            assert_eq!((inside.owner, inside.group), (expect, expect));
            assert_eq!(THERE.outward(inside, false).unwrap().owner, 196_608 + expect);
        };
        check(65_536, 0);
        check(66_536, 1000);
        check(131_071, 65_535);
        // The node's, and the neighbours'.
        check(0, NOBODY);
        check(131_072, NOBODY);
        let foreign = Metadata { owner: 65_536, ..Metadata::default() };
        assert!(THERE.outward(foreign, false).is_err());
    }

    #[test]
    fn capabilities_are_good_for_one_root() {
        let mut plain = vec![1, 0, 0, 2];
        plain.extend([7; 16]);
        let outside = THERE.outward(with(CAPABILITY, &plain), false).unwrap().attributes.remove(0).1;
        assert_eq!((outside[3], &outside[20..]), (3, &196_608_u32.to_le_bytes()[..]));
        let inward = |range: Range| range.inward(with(CAPABILITY, &outside)).unwrap().attributes;
        assert_eq!(inward(THERE), [(CAPABILITY.to_vec(), plain.clone())]);
        assert_eq!(inward(HERE), []);
        for bad in [&outside[..], &plain[..19], &[], &[0; 20]] {
            assert!(HERE.outward(with(CAPABILITY, bad), false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn access_lists_name_the_same_people() {
        let list = |id: u32| {
            let mut list = vec![2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0];
            list.extend(id.to_le_bytes());
            list
        };
        let outside = HERE.outward(with(ACCESS, &list(1000)), false).unwrap();
        assert_eq!(outside.attributes[0].1, list(66_536));
        assert_eq!(
            HERE.inward(Metadata { attributes: outside.attributes, ..Metadata::default() }).unwrap().attributes[0].1,
            list(1000)
        );
        for bad in [&list(65_536)[..], &list(1)[..15], &[2, 0], &[1, 0, 0, 0]] {
            assert!(HERE.outward(with(DEFAULT, bad), false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn of_the_overlays_attributes_two_travel() {
        let kept = |name: &[u8]| HERE.inward(with(name, b"y")).map(|metadata| metadata.attributes.len());
        assert_eq!(kept(b"trusted.overlay.origin"), Ok(0));
        assert_eq!(kept(b"trusted.overlay.impure"), Ok(0));
        assert_eq!(kept(OPAQUE), Ok(1));
        assert_eq!(kept(b"user.overlay.opaque"), Ok(1));
        assert!(kept(METACOPY).is_err());
        let check = |name: &[u8], value: &[u8], directory, good: bool| {
            let taken = HERE.outward(with(name, value), directory).is_ok();
            assert_eq!(taken, good, "{} {}", name.escape_ascii(), value.escape_ascii());
        };
        check(OPAQUE, b"y", true, true);
        check(OPAQUE, b"x", true, false);
        check(OPAQUE, b"y", false, false);
        check(REDIRECT, b"/usr/share/doc", true, true);
        check(REDIRECT, b"doc", true, true);
        check(REDIRECT, b"/etc", false, false);
        for bad in [&b""[..], b"/", b"..", b"/usr/../etc", b"/usr//doc", b"a/b", b"./", b"/a\0", &[b'a'; 257]] {
            check(REDIRECT, bad, true, false);
        }
        check(b"trusted.overlay.origin", b"", true, false);
        check(b"trusted.other", b"", true, false);
        check(b"security.selinux", b"", true, false);
        check(b"user.any", b"\0", false, true);
    }
}
