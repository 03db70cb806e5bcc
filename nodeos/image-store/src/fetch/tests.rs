use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    process::Command,
};

use orrery_protocol::ArtifactRef;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    Metadata,
    archive::write::{What, head},
    list,
    tests::{DIRECTORY, FILE, LIMIT, LINK, Member, SYMLINK, archive, objects, store},
    write_contents,
};

/// A compressed archive with its listing, as a server has them.
struct Published {
    image: ArtifactRef,
    archive: File,
    listing: Vec<u8>,
    /// The numbers asked for, one list for each request.
    asked: RefCell<Vec<Vec<u32>>>,
}

impl Published {
    fn new(tar: &[u8]) -> Self {
        let frames: Vec<u8> = tar.chunks(700).flat_map(|piece| zstd::bulk::compress(piece, 3).unwrap()).collect();
        let listing = list(&frames, LIMIT).unwrap().unwrap();
        assert_eq!(list(&frames, LIMIT).unwrap().unwrap(), listing);
        let archive = tempfile::tempfile().unwrap();
        archive.write_all_at(&frames, 0).unwrap();
        let image = ArtifactRef { sha256: Digest::of(&frames), size: frames.len() as u64 };
        Self { image, archive, listing, asked: RefCell::default() }
    }

    fn of(members: &[Member<'_>]) -> Self {
        Self::new(&archive(members))
    }

    fn contents(&self, wanted: &[u32]) -> Vec<u8> {
        self.asked.borrow_mut().push(wanted.to_vec());
        let mut out = Vec::new();
        write_contents(&self.archive, &self.parsed(), wanted, LIMIT, &mut out).unwrap();
        out
    }

    fn parsed(&self) -> Listing<'_> {
        Listing::parse(&self.listing, &self.image).unwrap()
    }

    fn fetch(&self, store: &Store) -> Result<Fetched, ImportError> {
        self.fetch_from(store, |contents| Ok(Box::new(io::Cursor::new(contents))))
    }

    /// Over something that does as it likes with what is asked for.
    fn fetch_from(
        &self,
        store: &Store,
        line: impl Fn(Vec<u8>) -> io::Result<Box<dyn Read>>,
    ) -> Result<Fetched, ImportError> {
        store.fetch(&self.image.sha256, &self.parsed(), LIMIT, &mut |wanted| line(self.contents(wanted)))
    }
}

/// Everything that can be seen of a tree: by path, what it is, its inode's place among the paths that share it, and what it holds.
fn seen(store: &Store, image: &Digest) -> BTreeMap<PathBuf, String> {
    let tree = store.tree(image).unwrap();
    let mut pending = vec![tree.clone()];
    let mut out = BTreeMap::new();
    while let Some(directory) = pending.pop() {
        for path in crate::paths(&directory).unwrap() {
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = if stat.is_dir() {
                pending.push(path.clone());
                String::new()
            } else if stat.is_symlink() {
                format!("{:?}", fs::read_link(&path).unwrap())
            } else {
                format!("{} {}", Digest::of(&fs::read(&path).unwrap()), stat.nlink())
            };
            let times = (stat.mtime(), stat.mtime_nsec());
            let line = format!("{:o} {} {} {times:?} {content}", stat.mode(), stat.uid(), stat.gid());
            out.insert(path.strip_prefix(&tree).unwrap().to_owned(), line);
        }
    }
    out
}

/// An archive by GNU tar with all that there is: sparse files, long names, links, equal files.
fn full() -> Vec<u8> {
    let source = TempDir::new().unwrap();
    let path = |name: &str| source.path().join(name);
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir(path(&"d".repeat(120))).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path(&long), "long").unwrap();
    fs::hard_link(path(&long), path("linked")).unwrap();
    std::os::unix::fs::symlink(&long, path("symlink")).unwrap();
    for name in ["nothing", "nothing too"] {
        fs::write(path(name), "").unwrap();
    }
    fs::write(path("large"), (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    for number in 0..40 {
        sparse.write_all_at(format!("part {number}").as_bytes(), number * (1 << 17)).unwrap();
    }
    sparse.set_len(50 << 17).unwrap();
    let mut tar = Command::new("tar");
    tar.args([
        "-cS",
        "--numeric-owner",
        "--format=pax",
        "--sparse-version=1.0",
        "--sort=name",
        "--mtime=@1600000000.5",
    ]);
    tar.arg("-C").arg(source.path()).arg(".").output().unwrap().stdout
}

#[test]
fn a_fetched_image_is_the_imported_one() {
    let full = Published::new(&full());
    let ((_one, imported), (two, fetched)) = (store(), store());
    let whole = {
        let mut bytes = vec![0; full.image.size as usize];
        full.archive.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let expect = imported.import(whole.as_slice(), &full.image.sha256, LIMIT).unwrap();
    let got = full.fetch(&fetched).unwrap();
    // Of the two empty files one is asked for. Either is then found here, or was fetched.
    assert_eq!(Imported { shared: 0, ..got.imported }, Imported { shared: 0, ..expect });
    assert_eq!((got.objects, got.bytes < 2 << 20), (4, true));
    assert_eq!(seen(&fetched, &full.image.sha256), seen(&imported, &full.image.sha256));
    assert!(fetched.verify(&full.image.sha256).unwrap().is_empty());
    assert_eq!(fs::read_dir(two.path().join(FETCHED)).unwrap().count(), 0);
    assert!(full.fetch(&fetched).unwrap().imported.present);
    assert_eq!(full.asked.borrow().len(), 1);
}

#[test]
fn only_what_lacks_is_asked_for() {
    let (_root, store) = store();
    let one = Published::of(&[("a", FILE, "one"), ("b", FILE, "two"), ("l", LINK, "a"), ("s", SYMLINK, "a")]);
    let two = Published::of(&[("x", FILE, "one"), ("y", FILE, "three"), ("z", FILE, "three"), ("b", FILE, "two")]);
    let three = Published::of(&[("d", DIRECTORY, ""), ("d/b", FILE, "two")]);
    one.fetch(&store).unwrap();
    let fetched = two.fetch(&store).unwrap();
    assert_eq!((fetched.objects, fetched.bytes), (1, 5));
    three.fetch(&store).unwrap();
    assert_eq!(*one.asked.borrow(), [[0, 1]]);
    assert_eq!(*two.asked.borrow(), [[1]]);
    assert!(three.asked.borrow().is_empty());
}

#[test]
fn a_fetch_goes_on_where_it_stopped() {
    let names: Vec<String> = (0..50).map(|number| format!("{number:02}")).collect();
    let members: Vec<Member<'_>> = names.iter().map(|name| (name.as_str(), FILE, name.as_str())).collect();
    let published = Published::of(&members);
    let (root, store) = store();
    let image = published.image.sha256;
    let short = |contents: Vec<u8>| {
        let plain = zstd::decode_all(contents.as_slice()).unwrap();
        Ok(Box::new(io::Cursor::new(zstd::encode_all(&plain[..41], 1).unwrap())) as Box<dyn Read>)
    };
    let error = published.fetch_from(&store, short).unwrap_err();
    assert!(matches!(error, ImportError::Reading(_)), "{error}");
    // Whatever else happens to the store meanwhile. One of the twenty is damaged, as by a power cut.
    let other = Published::of(&[("other", FILE, "other")]);
    other.fetch(&store).unwrap();
    store.remove(&other.image.sha256).unwrap();
    let store = Store::open(root.path()).unwrap();
    let kept = crate::paths(&root.path().join(FETCHED).join(image.to_string())).unwrap();
    let damaged = kept.iter().find(|path| fs::read(path).unwrap() == b"07").unwrap();
    fs::write(damaged, "0").unwrap();
    let refused = |_| Err(io::Error::other("refused"));
    published.fetch_from(&store, refused).unwrap_err();
    assert_eq!(published.fetch(&store).unwrap().objects, 31);
    let expect: Vec<u32> = [7].into_iter().chain(20..50).collect();
    assert_eq!(published.asked.borrow().last(), Some(&expect));
    assert!(store.verify(&image).unwrap().is_empty());
    assert_eq!(objects(root.path()), 50);
}

#[test]
fn what_a_power_cut_leaves_of_a_fetch_is_not_used() {
    let published = Published::of(&[("a", FILE, "one"), ("b", FILE, "two")]);
    let other = Published::of(&[("c", FILE, "two")]);
    let (root, store) = store();
    let image = published.image.sha256;
    other.fetch(&store).unwrap();
    published.fetch(&store).unwrap();
    // Of an object that only this image has the name reached the disk, three times, and the content did not.
    let tree = store.tree(&image).unwrap();
    let folder = root.path().join(FETCHED).join(image.to_string());
    fs::create_dir(&folder).unwrap();
    let id = published.parsed().objects()[0];
    fs::hard_link(tree.join("a"), folder.join(id.to_string())).unwrap();
    fs::write(tree.join("a"), "").unwrap();
    fs::rename(&tree, format!("{}.partial", tree.display())).unwrap();
    let store = Store::open(root.path()).unwrap();
    assert_eq!(objects(root.path()), 1);
    published.fetch(&store).unwrap();
    assert_eq!(*published.asked.borrow(), [[0], [0]]);
    assert_eq!(fs::read(store.tree(&image).unwrap().join("a")).unwrap(), b"one");
    for image in [image, other.image.sha256] {
        assert!(store.verify(&image).unwrap().is_empty());
    }
}

#[test]
fn what_the_disk_has_no_room_for_is_not_asked_for() {
    let mut skeleton = Vec::new();
    head(&mut skeleton, b"a", &Metadata::default(), What::File { size: 1 << 50 }).unwrap();
    let skeleton = zstd::bulk::compress(&skeleton, 1).unwrap();
    let published = Published::of(&[]);
    let image = ArtifactRef { size: 0, ..published.image };
    let listing = Listing::encode(&[], &[Digest([1; 32])], &skeleton).unwrap();
    let listing = Listing::parse(&listing, &image).unwrap();
    let (_root, store) = store();
    let error = store.fetch(&image.sha256, &listing, u64::MAX, &mut |_| unreachable!()).unwrap_err();
    assert!(matches!(error, ImportError::NoRoom { needed, .. } if needed == 1 << 50), "{error}");
}

#[test]
fn what_is_not_listed_is_not_kept() {
    let published = Published::of(&[("a", FILE, "one"), ("b", FILE, "two")]);
    let (root, store) = store();
    let garble = |mut contents: Vec<u8>| {
        let mut plain = zstd::decode_all(contents.as_slice()).unwrap();
        plain[4] ^= 1;
        contents = zstd::encode_all(plain.as_slice(), 1).unwrap();
        Ok(Box::new(io::Cursor::new(contents)) as Box<dyn Read>)
    };
    let error = published.fetch_from(&store, garble).unwrap_err();
    assert!(matches!(error, ImportError::WrongObject { .. }), "{error}");
    assert_eq!((store.images().unwrap().len(), objects(root.path())), (0, 0));
    // The first one was right. Nobody wants it any more.
    assert_eq!(store.retain(|_| true).unwrap(), []);
    assert_eq!(fs::read_dir(root.path().join(FETCHED)).unwrap().count(), 1);
    assert_eq!(store.retain(|_| false).unwrap(), []);
    assert_eq!(fs::read_dir(root.path().join(FETCHED)).unwrap().count(), 0);
}

#[test]
fn objects_may_go_away_meanwhile() {
    let (_root, store) = store();
    let old = Published::of(&[("a", FILE, "one"), ("b", FILE, "two")]);
    let new = Published::of(&[("a", FILE, "one"), ("b", FILE, "three")]);
    old.fetch(&store).unwrap();
    new.fetch_from(&store, |contents| {
        store.remove(&old.image.sha256).unwrap();
        Ok(Box::new(io::Cursor::new(contents)))
    })
    .unwrap();
    assert_eq!(*new.asked.borrow(), [[1], [0]]);
    assert_eq!(store.retain(|image| *image == new.image.sha256).unwrap(), []);
    assert_eq!(store.retain(|_| false).unwrap(), [new.image.sha256]);
}

#[test]
fn batches_are_bounded() {
    let check = |lacking: &[(u32, u64)], expect: &[&[u32]]| assert_eq!(batches(lacking).collect::<Vec<_>>(), expect);
    check(&[], &[]);
    check(&[(3, 1), (5, BATCH_BYTES - 1), (7, 0), (8, 1)], &[&[3, 5, 7], &[8]]);
    check(&[(0, u64::MAX), (1, u64::MAX), (2, 1)], &[&[0], &[1], &[2]]);
    let many: Vec<_> = (0..BATCH as u32 + 1).map(|number| (number, 0)).collect();
    assert_eq!(batches(&many).map(|batch| batch.len()).collect::<Vec<_>>(), [BATCH, 1]);
}

#[test]
fn a_listing_is_of_one_archive() {
    let [one, two] = ["one", "two"].map(|text| Published::of(&[("a", FILE, text)]));
    let whole = |published: &Published| {
        let mut bytes = vec![0; published.image.size as usize];
        published.archive.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let mine = one.parsed();
    assert!(crate::lists(&mine, &whole(&one), LIMIT).unwrap());
    assert!(!crate::lists(&mine, &whole(&two), LIMIT).unwrap());
    let frames: Vec<_> = mine.frames().iter().map(|frame| (frame.length, frame.unpacked)).collect();
    let skeleton = zstd::decode_all(mine.skeleton()).unwrap();
    for (tail, expect) in [(&b""[..], true), (b"\0", false)] {
        // By another compressor.
        let skeleton = zstd::encode_all([&skeleton, tail].concat().as_slice(), 1).unwrap();
        let bytes = Listing::encode(&frames, mine.objects(), &skeleton).unwrap();
        assert_eq!(crate::lists(&Listing::parse(&bytes, &one.image).unwrap(), &whole(&one), LIMIT).unwrap(), expect);
    }
}

#[test]
fn other_archives_have_no_listing() {
    let tar = archive(&[("a", FILE, "one")]);
    assert_eq!(list(&tar, LIMIT).unwrap(), None);
    let large = archive(&[("a", FILE, &"x".repeat(2 << 20))]);
    assert_eq!(list(&zstd::bulk::compress(&large, 1).unwrap(), LIMIT).unwrap(), None);
    assert!(list(&zstd::bulk::compress(b"no archive", 1).unwrap(), LIMIT).is_err());
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    let mut skeleton = Vec::new();
    for size in [u64::MAX - 2048, 0] {
        head(&mut skeleton, b"a", &Metadata::default(), What::File { size }).unwrap();
    }
    let skeleton = zstd::bulk::compress(&skeleton, 1).unwrap();
    let published = Published::of(&[]);
    let listing = Listing::encode(&[], &[Digest([1; 32]); 2], &skeleton).unwrap();
    let listing = Listing::parse(&listing, &ArtifactRef { size: 0, ..published.image }).unwrap();
    let error = write_contents(&published.archive, &listing, &[1], LIMIT, io::sink()).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn wrong_listings_never_panic(
        objects in 0usize..6,
        changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..4),
    ) {
        let published = Published::of(&[("d", DIRECTORY, ""), ("d/a", FILE, "text"), ("b", FILE, "more"), ("c", LINK, "b")]);
        let listing = published.parsed();
        let mut skeleton = zstd::decode_all(listing.skeleton()).unwrap();
        for (position, value) in changes {
            let position = position % skeleton.len();
            skeleton[position] = value;
        }
        let skeleton = zstd::encode_all(skeleton.as_slice(), 1).unwrap();
        let frames: Vec<_> = listing.frames().iter().map(|frame| (frame.length, frame.unpacked)).collect();
        let ids: Vec<_> = listing.objects().iter().copied().cycle().take(objects).collect();
        let bytes = Listing::encode(&frames, &ids, &skeleton).unwrap();
        let listing = Listing::parse(&bytes, &published.image).unwrap();
        let (_root, store) = store();
        let mut supply = |wanted: &[u32]| {
            let mut out = Vec::new();
            // What it says of that is of no interest.
            let _ = write_contents(&published.archive, &listing, wanted, LIMIT, &mut out);
            Ok(Box::new(io::Cursor::new(out)) as Box<dyn Read>)
        };
        let _ = store.fetch(&published.image.sha256, &listing, LIMIT, &mut supply);
    }
}
