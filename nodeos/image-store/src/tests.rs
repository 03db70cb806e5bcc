//! Whole imports, of archives made here.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
};

use orrery_protocol::{ArtifactRef, Digest, Listing};
use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use crate::{
    ImportError, Imported, Metadata, Store,
    archive::write::{What, end, head},
    list,
};

pub(crate) const LIMIT: u64 = 1 << 30;
pub(crate) const DIRECTORY: EntryType = EntryType::Directory;
pub(crate) const FILE: EntryType = EntryType::Regular;
pub(crate) const SYMLINK: EntryType = EntryType::Symlink;
pub(crate) const LINK: EntryType = EntryType::Link;

/// A name, its type, and its content or what it links to.
pub(crate) type Member<'a> = (&'a str, EntryType, &'a str);

fn header(kind: EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_mtime(1_600_000_000);
    header.set_size(size as u64);
    header
}

/// Unlike the tar crate's builder, writes any name.
pub(crate) fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, text) in members {
        let content = if *kind == FILE { text.as_bytes() } else { b"" };
        let mut header = header(*kind, if *kind == DIRECTORY { 0o755 } else { 0o644 }, content.len());
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        if *kind != FILE {
            fields.linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn store() -> (TempDir, Store) {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn import(store: &Store, archive: &[u8]) -> Result<Imported, ImportError> {
    store.import(archive, &Digest::of(archive), LIMIT)
}

pub(crate) fn objects(root: &Path) -> usize {
    let directories = fs::read_dir(root.join("objects")).unwrap();
    directories.map(|directory| fs::read_dir(directory.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn images_share_what_they_have_in_common() {
    let (root, store) = store();
    let big = "x".repeat(3 << 20);
    let one = archive(&[("etc", DIRECTORY, ""), ("etc/a", FILE, "same"), ("big", FILE, &big), ("etc/b", FILE, "one")]);
    let two = archive(&[("./etc/a", FILE, "same"), ("./big", FILE, &big), ("./etc/b", FILE, "two")]);
    let two = zstd::encode_all(two.as_slice(), 1).unwrap();
    assert_eq!(
        import(&store, &one).unwrap(),
        Imported { files: 3, directories: 1, bytes: (3 << 20) + 7, ..Imported::default() }
    );
    assert_eq!(import(&store, &two).unwrap().shared, 2);
    assert_eq!(import(&store, &two).unwrap(), Imported { present: true, ..Imported::default() });
    assert_eq!(objects(root.path()), 4);

    let trees = [one, two].map(|archive| store.tree(&Digest::of(&archive)).unwrap());
    for (name, same) in [("etc/a", true), ("big", true), ("etc/b", false)] {
        let inodes = trees.each_ref().map(|tree| fs::metadata(tree.join(name)).unwrap().ino());
        assert_eq!(inodes[0] == inodes[1], same, "{name}");
    }
    for image in store.images().unwrap() {
        assert!(store.verify(&image).unwrap().is_empty());
        store.remove(&image).unwrap();
        assert_eq!(store.tree(&image), None);
    }
    assert_eq!(objects(root.path()), 0);
}

#[test]
fn owners_that_no_sliver_has_are_refused() {
    let check = |owner: u32, group: u32, expect: Option<(&str, u32)>| {
        let (root, store) = store();
        let mut plain = Vec::new();
        let metadata = Metadata { owner, group, ..Metadata::default() };
        head(&mut plain, b"link", &metadata, What::Symlink(b"target")).unwrap();
        end(&mut plain).unwrap();
        let archive = zstd::bulk::compress(&plain, 1).unwrap();
        let image = ArtifactRef { sha256: Digest::of(&archive), size: archive.len() as u64 };
        let frame = (u32::try_from(archive.len()).unwrap(), u32::try_from(plain.len()).unwrap());
        let listing = Listing::encode(&[frame], &[], &archive).unwrap();
        let listing = Listing::parse(&listing, &image).unwrap();
        let nothing = &mut |_: &[u32]| Err(io::ErrorKind::NotFound.into());
        for result in [
            store.import(archive.as_slice(), &image.sha256, LIMIT).err(),
            store.fetch(&image.sha256, &listing, LIMIT, nothing).err(),
            list(&archive, LIMIT).err(),
        ] {
            match (result, expect) {
                (Some(ImportError::Owner { path, whose, id }), Some(expect)) => {
                    assert_eq!((path.as_path(), (whose, id)), (Path::new("link"), expect));
                }
                (result, expect) => assert!(result.is_none() && expect.is_none(), "{result:?}"),
            }
        }
        assert_eq!(store.tree(&image.sha256).is_some(), expect.is_none());
        drop(root);
    };
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    check(me.0, me.1, None);
    check(65_536, 0, Some(("user", 65_536)));
    check(0, 65_536, Some(("group", 65_536)));
    // To the kernel, that a file's owner is to stay what it is.
    check(u32::MAX, 0, Some(("user", u32::MAX)));
}

#[test]
fn a_tree_is_whole_or_absent() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let (root, store) = store();
    let whole = archive(&[("a", FILE, "content"), ("b", FILE, "more")]);
    let image = Digest::of(&whole);
    for length in (0..whole.len()).step_by(61) {
        let error = store.import(whole[..length].chain(Failing), &image, LIMIT).unwrap_err();
        assert!(matches!(error, ImportError::Reading(_)), "{length}: {error}");
        let error = store.import(&whole[..length], &image, LIMIT).unwrap_err();
        assert!(matches!(error, ImportError::Reading(_) | ImportError::WrongDigest { .. }), "{length}: {error}");
        assert_eq!((store.tree(&image), objects(root.path())), (None, 0));
    }

    // What a power cut leaves: an object that is not what its name says, a tree that is not complete.
    import(&store, &whole).unwrap();
    let tree = store.tree(&image).unwrap();
    fs::write(tree.join("a"), "").unwrap();
    fs::rename(&tree, format!("{}.partial", tree.display())).unwrap();
    fs::write(root.path().join("tmp/object"), "half").unwrap();
    let store = Store::open(root.path()).unwrap();
    assert_eq!((store.images().unwrap(), objects(root.path())), (vec![], 0));
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.path().join("trees")).unwrap().count(), 0);
    assert_eq!(import(&store, &whole).unwrap().shared, 0);
    assert_eq!(fs::read_to_string(store.tree(&image).unwrap().join("a")).unwrap(), "content");
}

#[test]
fn hostile_archives_are_refused() {
    let check = |members: &[Member<'_>], expect: &str| {
        let (root, store) = store();
        let outside = fs::read_dir(root.path()).unwrap().count();
        let result = import(&store, &archive(members));
        let message = result.map_or_else(|error| error.to_string(), |_| "accepted".into());
        assert!(message.contains(expect), "{members:?}: {message}");
        if expect != "accepted" {
            assert!(store.images().unwrap().is_empty());
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), outside);
    };
    check(&[("/etc/passwd", FILE, "")], "absolute");
    check(&[("../../escape", FILE, "")], "upwards");
    check(&[("a/../../escape", DIRECTORY, "")], "upwards");
    check(&[("bin", SYMLINK, "usr/bin"), ("bin/sh", FILE, "")], "not a directory");
    check(&[("up", SYMLINK, "../.."), ("up/escape", FILE, "")], "not a directory");
    check(&[("up", SYMLINK, "../.."), ("up/escape", DIRECTORY, "")], "not a directory");
    check(&[("up", SYMLINK, "/"), ("passwd", LINK, "up/etc/passwd")], "not a directory");
    check(&[("file", FILE, ""), ("file/below", FILE, "")], "not a directory");
    check(&[("passwd", LINK, "/etc/passwd")], "absolute");
    check(&[("passwd", LINK, "../etc/passwd")], "upwards");
    check(&[("later", LINK, "file"), ("file", FILE, "")], "no earlier entry");
    check(&[("directory", DIRECTORY, ""), ("link", LINK, "directory")], "links to a directory");
    check(&[("directory", DIRECTORY, ""), ("directory", FILE, "")], "replace a directory");
    check(&[("directory", DIRECTORY, ""), ("directory", SYMLINK, "x")], "replace a directory");
    check(&[(".", FILE, "")], "not a directory");
    check(&[("", FILE, "")], "not one");
    check(&[("empty", SYMLINK, "")], "not a path");
    check(&[("sparse", EntryType::GNUSparse, "")], "map of holes");
    check(&[("volume", EntryType::new(b'V'), "")], "not supported");
    check(&[("bin", SYMLINK, "/"), ("bin", FILE, "replaced")], "accepted");
    check(&[("file", FILE, "x"), ("file", LINK, "file")], "accepted");
    check(&[("null", EntryType::Char, ""), ("pipe", EntryType::Fifo, "")], "accepted");

    let (_root, store) = store();
    let large = archive(&[("large", FILE, "0123456789")]);
    let error = store.import(large.as_slice(), &Digest::of(&large), 521).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { limit: 521, .. }), "{error}");
    let mut bomb = large.clone();
    bomb.resize(1 << 20, 0);
    let bomb = zstd::encode_all(bomb.as_slice(), 1).unwrap();
    let error = store.import(bomb.as_slice(), &Digest::of(&bomb), 4096).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { limit: 4096, .. }), "{error}");
    let error = store.import(large.as_slice(), &Digest::of(b"another"), LIMIT).unwrap_err();
    assert!(matches!(error, ImportError::WrongDigest { .. }), "{error}");
}

#[test]
fn metadata_is_kept() {
    let (root, store) = store();
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    builder.append_data(&mut header(DIRECTORY, 0o1777, 0), "tmp", io::empty()).unwrap();
    let extended: [(&str, &[u8]); 3] =
        [("mtime", b"1600000001.25"), ("SCHILY.xattr.user.note", b"two\nlines\0"), ("SCHILY.xattr.trusted.x", b"no")];
    builder.append_pax_extensions(extended).unwrap();
    builder.append_data(&mut header(FILE, 0o4751, 4), "tmp/suid", b"text".as_slice()).unwrap();
    builder.append_data(&mut header(FILE, 0o600, 0), &long, io::empty()).unwrap();
    builder.append_link(&mut header(LINK, 0o600, 0), "linked", "tmp/suid").unwrap();
    builder.append_link(&mut header(SYMLINK, 0o777, 0), "bin", "usr/bin").unwrap();
    let archive = builder.into_inner().unwrap();
    let imported = import(&store, &archive).unwrap();
    assert_eq!((imported.files, imported.hard_links, imported.symlinks, imported.directories), (2, 1, 1, 2));

    let tree = store.tree(&Digest::of(&archive)).unwrap();
    let stat = |name: &str| fs::symlink_metadata(tree.join(name)).unwrap();
    let check = |name: &str, mode, modified| {
        let stat = stat(name);
        assert_eq!((stat.mode() & 0o7777, (stat.mtime(), stat.mtime_nsec())), (mode, modified), "{name}");
    };
    check("tmp/suid", 0o4751, (1_600_000_001, 250_000_000));
    check("tmp", 0o1777, (1_600_000_000, 0));
    check(&long, 0o600, (1_600_000_000, 0));
    check("bin", 0o777, (1_600_000_000, 0));
    assert_eq!(fs::read_link(tree.join("bin")).unwrap(), Path::new("usr/bin"));
    // Two names in the tree and the object.
    assert_eq!((stat("linked").ino(), stat("linked").nlink()), (stat("tmp/suid").ino(), 3));
    assert_eq!(objects(root.path()), 2);
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(tree.join("linked"), "user.note", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], b"two\nlines\0");
    assert!(rustix::fs::getxattr(tree.join("linked"), "trusted.x", value.as_mut_slice()).is_err());
}

#[test]
fn damage_is_found_and_mended() {
    let (root, store) = store();
    let archive = archive(&[("a", FILE, "content"), ("b", FILE, "more"), ("c", LINK, "a"), ("d", FILE, "lost")]);
    let image = Digest::of(&archive);
    import(&store, &archive).unwrap();
    let tree = store.tree(&image).unwrap();
    fs::write(tree.join("a"), "CONTENT").unwrap();
    fs::remove_file(tree.join("d")).unwrap();
    let good = fs::metadata(tree.join("b")).unwrap().ino();
    assert_eq!(store.verify(&image).unwrap(), [Path::new("a"), Path::new("c")]);

    // Another archive by mistake, or one that breaks off: nothing is lost.
    for bad in [b"another".as_slice(), &archive[..1000]] {
        store.repair(bad, &image, LIMIT).unwrap_err();
        assert_eq!(fs::read_to_string(tree.join("b")).unwrap(), "more");
    }
    // The object of the lost file went when the first attempt was cleaned up.
    assert_eq!(store.repair(archive.as_slice(), &image, LIMIT).unwrap().shared, 1);
    assert!(store.verify(&image).unwrap().is_empty());
    for (name, content) in [("a", "content"), ("b", "more"), ("c", "content"), ("d", "lost")] {
        assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), content);
    }
    assert_eq!(fs::metadata(tree.join("b")).unwrap().ino(), good);
    assert_eq!((objects(root.path()), fs::read_dir(root.path().join("trees")).unwrap().count()), (3, 1));
}

#[test]
fn a_file_with_all_its_links_gets_a_sibling() {
    let (root, store) = store();
    let one = archive(&[("a", FILE, "popular")]);
    import(&store, &one).unwrap();
    let file = store.tree(&Digest::of(&one)).unwrap().join("a");
    let links = root.path().join("links");
    fs::create_dir(&links).unwrap();
    // File systems differ in how many they allow; on one that allows more than this there is nothing to see.
    let full = (0..70_000).any(|number| fs::hard_link(&file, links.join(number.to_string())).is_err());
    let two = archive(&[("a", FILE, "popular"), ("b", FILE, "popular"), ("c", LINK, "a")]);
    assert_eq!(import(&store, &two).unwrap().shared, 2);
    let tree = store.tree(&Digest::of(&two)).unwrap();
    let inodes = ["a", "b", "c"].map(|name| fs::metadata(tree.join(name)).unwrap().ino());
    assert_eq!(inodes, [inodes[0]; 3]);
    assert_eq!(inodes[0] != fs::metadata(&file).unwrap().ino(), full);
    assert!(store.verify(&Digest::of(&two)).unwrap().is_empty());

    // The first goes with its image; the sibling is an object all the same.
    fs::remove_dir_all(&links).unwrap();
    store.remove(&Digest::of(&one)).unwrap();
    assert!(store.verify(&Digest::of(&two)).unwrap().is_empty());
    assert_eq!(objects(root.path()), 1);
    import(&store, &one).unwrap();
    assert!(store.verify(&Digest::of(&one)).unwrap().is_empty());
}

#[test]
fn one_image_may_have_more_equal_files_than_a_file_may_have_links() {
    const FILES: usize = 66_000;
    let (root, store) = store();
    let names: Vec<String> = (0..FILES).map(|number| format!("{}/{number}", number / 1000)).collect();
    let members: Vec<Member<'_>> = names.iter().map(|name| (name.as_str(), FILE, "")).collect();
    let archive = archive(&members);
    let imported = import(&store, &archive).unwrap();
    assert_eq!((imported.files, imported.shared), (FILES as u64, FILES as u64 - 1));
    let tree = store.tree(&Digest::of(&archive)).unwrap();
    let inodes: HashSet<_> = names.iter().map(|name| fs::metadata(tree.join(name)).unwrap().ino()).collect();
    assert_eq!(objects(root.path()), inodes.len());
    assert!(store.verify(&Digest::of(&archive)).unwrap().is_empty());
    store.remove(&Digest::of(&archive)).unwrap();
    assert_eq!(objects(root.path()), 0);
}

/// Sparse files as GNU tar writes them in each of its formats, and all the ways it has to write long names.
#[test]
fn archives_of_gnu_tar_are_read() {
    let source = TempDir::new().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir(source.path().join("d".repeat(120))).unwrap();
    fs::write(source.path().join(&long), "long").unwrap();
    fs::hard_link(source.path().join(&long), source.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(&long, source.path().join("symlink")).unwrap();
    let sparse = File::create(source.path().join("sparse")).unwrap();
    // More extents than a header and one block hold.
    for number in 0..40 {
        sparse.write_all_at(format!("part {number}").as_bytes(), number * (1 << 17)).unwrap();
    }
    sparse.set_len(50 << 17).unwrap();
    let content = fs::read(source.path().join("sparse")).unwrap();
    for format in ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"] {
        let mut tar = Command::new("tar");
        tar.args(["-cS", "--numeric-owner"]).arg("-C").arg(source.path());
        tar.args(format!("--format={format}").split(' ')).args(["sparse", "symlink", &long, "linked"]);
        let archive = tar.output().unwrap().stdout;
        assert!(archive.len() < content.len(), "{format}: {}", archive.len());
        let (_root, store) = store();
        let imported = import(&store, &archive).unwrap();
        assert_eq!((imported.files, imported.hard_links, imported.symlinks), (2, 1, 1), "{format}");
        let tree = store.tree(&Digest::of(&archive)).unwrap();
        assert!(fs::read(tree.join("sparse")).unwrap() == content, "{format}");
        assert!(fs::metadata(tree.join("sparse")).unwrap().blocks() * 512 < content.len() as u64, "{format}");
        assert_eq!(fs::read_to_string(tree.join("linked")).unwrap(), "long");
        assert_eq!(fs::read_link(tree.join("symlink")).unwrap(), Path::new(&long));
        assert!(tree.join(&long).is_file());
        // A hole costs as much as what it stands for.
        let error = store.import(archive.as_slice(), &Digest::of(b""), content.len() as u64).unwrap_err();
        assert!(matches!(error, ImportError::TooLarge { .. }), "{format}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_archives_never_panic(changes in proptest::collection::vec((0usize..2048, any::<u8>()), 0..6)) {
        let mut bytes = archive(&[("d", DIRECTORY, ""), ("d/a", FILE, "text"), ("b", SYMLINK, "d"), ("c", LINK, "d/a")]);
        for (position, value) in changes {
            // Mind the checksum, or nothing but it is ever looked at.
            let block = position / 512 * 512;
            bytes[position] = value;
            if bytes[block + 257..].starts_with(b"ustar") {
                bytes[block + 148..block + 156].fill(b' ');
                let sum: u32 = bytes[block..block + 512].iter().map(|&byte| u32::from(byte)).sum();
                bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        let (_root, store) = store();
        let _ = import(&store, &bytes);
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), compressed: bool) {
        if compressed {
            bytes.splice(..0, [0x28, 0xb5, 0x2f, 0xfd]);
        }
        let (_root, store) = store();
        let _ = import(&store, &bytes);
    }
}
