//! A process that changes a store is killed at random instants. Whatever it was at, opening the store again finds whole trees only,
//! every object that they need, and no other.
//!
//! Started without arguments this is the test; with a folder and a number, it is the process that gets killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use orrery_image_store::{Store, list, write_contents};
use orrery_protocol::{ArtifactRef, Digest, Listing};

const ROUNDS: u64 = 100;
const IMAGES: u64 = 3;
const FILES: u64 = 60;
const LIMIT: u64 = 1 << 30;

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [folder, seed] if Path::new(folder).is_absolute() => work(Path::new(folder), seed.parse().unwrap()),
        _ => rounds(),
    }
}

/// Numbers that follow from a seed (Steele et al., 2014, "SplitMix").
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A file of an image: two thirds of them are in all images, and some are longer than what an import holds in memory.
fn content(image: u64, file: u64) -> Vec<u8> {
    let owner = if file.is_multiple_of(3) { image } else { IMAGES };
    let length = if file.is_multiple_of(20) { 1_200_000 } else { 100 + file * 50 };
    let mut random = Random(owner << 32 | file);
    (0..length).map(|_| random.below(256) as u8).collect()
}

fn archive(image: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in 0..FILES {
        let content = content(image, file);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, format!("{}/{file}", file % 7), content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The archive as one that is fetched by its listing: what is published of it.
fn published(archive: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let frames: Vec<u8> = archive.chunks(1 << 16).flat_map(|piece| zstd::bulk::compress(piece, 1).unwrap()).collect();
    let listing = list(&frames, LIMIT).unwrap().unwrap();
    (frames, listing)
}

/// Where a round is cut. What only now and then is met at a random instant is waited for at its place, in rounds of its own.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Import,
    Fetch,
    AnyTime,
}

impl Cut {
    fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Import,
            1 => Self::Fetch,
            _ => Self::AnyTime,
        }
    }
}

/// Bytes that come up to a point, and then never again. Reaching it is said.
struct Stalling<R> {
    source: R,
    left: usize,
}

impl<R: Read> Read for Stalling<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            println!("begun");
            loop {
                thread::park();
            }
        }
        let wanted = buffer.len().min(self.left);
        let count = self.source.read(&mut buffer[..wanted])?;
        self.left -= count;
        Ok(count)
    }
}

/// Changes the store until killed. Says that it has begun, or has come to where it is to be cut, so that nobody waits for its start.
fn work(folder: &Path, seed: u64) {
    let read = |image: u64, name: &str| fs::read(folder.join(format!("{image}.{name}"))).unwrap();
    let archives: Vec<_> = (0..IMAGES).map(|image| read(image, "tar")).collect();
    let published: Vec<_> = (0..IMAGES).map(|image| (read(image, "zst"), read(image, "listing"))).collect();
    let store = Store::open(&folder.join("store")).unwrap();
    let mut random = Random(seed);
    let image_of = |number: usize| {
        let frames = &published[number].0;
        ArtifactRef { sha256: Digest::of(frames), size: frames.len() as u64 }
    };
    let supply_of = |number: usize, listing: &Listing, wanted: &[u32]| {
        let frames = File::open(folder.join(format!("{number}.zst")))?;
        let mut contents = Vec::new();
        write_contents(&frames, listing, wanted, LIMIT, &mut contents).map_err(io::Error::other)?;
        Ok::<_, io::Error>(contents)
    };
    let number = random.below(IMAGES) as usize;
    match Cut::of(seed) {
        Cut::Import => {
            let archive = archives[number].as_slice();
            let image = Digest::of(archive);
            store.remove(&image).unwrap();
            let left = 1 + random.below(archive.len() as u64 - 1) as usize;
            let ended = store.import(Stalling { source: archive, left }, &image, LIMIT);
            unreachable!("an import ended that was not given the whole archive: {ended:?}");
        }
        Cut::Fetch => {
            let image = image_of(number);
            store.remove(&image.sha256).unwrap();
            // The same image as an archive has all the objects too.
            store.remove(&Digest::of(&archives[number])).unwrap();
            let listing = Listing::parse(&published[number].1, &image).unwrap();
            let mut supply = |wanted: &[u32]| {
                let contents = supply_of(number, &listing, wanted)?;
                // Near the end, since the one long file that only this image has may be the first.
                let left = contents.len() - 1 - random.below((contents.len() as u64 / 100).max(1)) as usize;
                Ok(Box::new(Stalling { source: io::Cursor::new(contents), left }) as Box<dyn Read>)
            };
            // It ends only if all that the image needs came in earlier rounds.
            store.fetch(&image.sha256, &listing, LIMIT, &mut supply).unwrap();
        }
        Cut::AnyTime => {}
    }
    println!("begun");
    loop {
        let number = random.below(IMAGES) as usize;
        let archive = archives[number].as_slice();
        let image = Digest::of(archive);
        match random.below(9) {
            0..=2 => drop(store.import(archive, &image, LIMIT).unwrap()),
            3 => drop(store.repair(archive, &image, LIMIT).unwrap()),
            4 if store.tree(&image).is_some() => assert!(store.verify(&image).unwrap().is_empty()),
            operation @ 5..8 => {
                let image = image_of(number);
                let listing = Listing::parse(&published[number].1, &image).unwrap();
                let mut supply = |wanted: &[u32]| {
                    Ok(Box::new(io::Cursor::new(supply_of(number, &listing, wanted)?)) as Box<dyn Read>)
                };
                match operation {
                    5 => drop(store.fetch(&image.sha256, &listing, LIMIT, &mut supply).unwrap()),
                    6 => drop(store.fetch_again(&image.sha256, &listing, LIMIT, &mut supply).unwrap()),
                    _ => drop(store.retain(|kept| *kept != image.sha256).unwrap()),
                }
            }
            _ => store.remove(&image).unwrap(),
        }
    }
}

fn rounds() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = BTreeMap::new();
    for image in 0..IMAGES {
        let archive = archive(image);
        let (frames, listing) = published(&archive);
        for content in [&archive, &frames] {
            images.insert(Digest::of(content).to_string(), image);
        }
        for (name, content) in [("tar", archive), ("zst", frames), ("listing", listing)] {
            fs::write(folder.path().join(format!("{image}.{name}")), content).unwrap();
        }
    }
    let root = folder.path().join("store");
    // What was found, so that a test that kills too early or too late to see anything is noticed.
    let (mut interrupted, mut fetching, mut seen) = (0, 0, BTreeSet::new());
    for seed in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .arg(folder.path())
            .arg(seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        if Cut::of(seed) == Cut::AnyTime {
            thread::sleep(Duration::from_micros(Random(!seed).below(250_000)));
        }
        let finished = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(finished.is_none(), "seed {seed}: the process ended by itself: {finished:?}");

        interrupted += usize::from(names(&root.join("trees")).iter().any(|tree| tree.ends_with(".partial")));
        let store = Store::open(&root).unwrap();
        assert_eq!(names(&root.join("tmp")), BTreeSet::new(), "seed {seed}");
        let trees = names(&root.join("trees"));
        // By inode: names in trees, in objects, and in all, as found and as the file system counts them.
        let mut links: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut link = |path: &Path| {
            let stat = fs::metadata(path).unwrap();
            links.entry(stat.ino()).or_insert((0, stat.nlink())).0 += 1;
            stat.ino()
        };
        let mut in_trees = BTreeSet::new();
        for tree in &trees {
            let image = images[tree];
            for file in 0..FILES {
                let path = root.join("trees").join(tree).join((file % 7).to_string()).join(file.to_string());
                assert!(fs::read(&path).unwrap() == content(image, file), "seed {seed}: {}", path.display());
                in_trees.insert(link(&path));
            }
            assert!(store.verify(&tree.parse().unwrap()).unwrap().is_empty(), "seed {seed}");
        }
        // What is kept for an image that is not complete.
        let incomplete = paths(&root.join("fetched")).unwrap();
        assert!(incomplete.iter().all(|folder| !trees.contains(folder.file_name().unwrap().to_str().unwrap())));
        fetching += usize::from(!incomplete.is_empty());
        incomplete.iter().flat_map(|folder| paths(folder).unwrap()).for_each(|path| _ = link(&path));
        let objects = objects(&root);
        objects.iter().for_each(|object| links.entry(*object).or_insert((0, 1)).0 += 1);
        assert!(links.values().all(|(count, links)| count == links), "seed {seed}: an object is missing");
        // What a fetch keeps is no reason for an object: after a power cut it may be another.
        let alone = objects.difference(&in_trees).count();
        assert_eq!(alone, 0, "seed {seed}: objects that no tree has");
        seen.insert(trees);
    }
    assert!(interrupted > ROUNDS as usize / 8, "only {interrupted} rounds were cut in the middle of a change");
    assert!(seen.len() > 4, "only {} states were seen", seen.len());
    assert!(fetching > ROUNDS as usize / 20, "only {fetching} rounds were cut in a fetch");
    println!(
        "{ROUNDS} rounds, {fetching} of them cut in a fetch, {interrupted} cut in the middle of a change, {} states seen",
        seen.len()
    );
}

fn names(folder: &Path) -> BTreeSet<String> {
    paths(folder).unwrap().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn objects(root: &Path) -> BTreeSet<u64> {
    let directories = paths(&root.join("objects")).unwrap();
    directories.iter().flat_map(|folder| paths(folder).unwrap()).map(|path| fs::metadata(path).unwrap().ino()).collect()
}

fn paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}
