use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

/// How a place behaves.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Honest,
    /// Has the byte at this position wrong.
    Wrong(u64),
    /// Breaks off for good after this many bytes altogether.
    Gone(u64),
    Refusing,
}

/// Several mirrors, and the server of the last resort.
struct Places {
    artifacts: Vec<Vec<u8>>,
    manners: Vec<Manner>,
    turn: Cell<usize>,
    sent: RefCell<Vec<u64>>,
}

impl Places {
    fn new(artifacts: &[&[u8]], manners: &[Manner]) -> Self {
        let artifacts = artifacts.iter().map(|a| a.to_vec()).collect();
        let sent = RefCell::new(vec![0; manners.len()]);
        Self { artifacts, manners: manners.to_vec(), turn: Cell::new(0), sent }
    }
}

impl Source for Places {
    fn open(&self, artifact: &ArtifactRef, range: std::ops::Range<u64>) -> Result<Box<dyn Read>, TransferError> {
        let gone = |class| TransferError { class, message: class.into(), transient: class == "refused" };
        let content = self.artifacts.iter().find(|a| Digest::of(a) == artifact.sha256).ok_or(gone("http"))?;
        let turn = self.turn.get();
        let mut bytes = content[range.start as usize..range.end as usize].to_vec();
        match self.manners[turn] {
            Manner::Honest => {}
            Manner::Wrong(at) if content.len() as u64 > 1000 => {
                if range.contains(&at) {
                    bytes[(at - range.start) as usize] ^= 1;
                }
            }
            Manner::Wrong(_) => {}
            Manner::Gone(after) => {
                let left = after.saturating_sub(self.sent.borrow()[turn]);
                if left == 0 {
                    return Err(gone("http"));
                }
                bytes.truncate(left as usize);
            }
            Manner::Refusing => return Err(gone("refused")),
        }
        self.sent.borrow_mut()[turn] += bytes.len() as u64;
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn place(&self) -> String {
        format!("place {}", self.turn.get())
    }

    fn pass_over(&self) -> bool {
        let more = self.turn.get() + 1 < self.manners.len();
        self.turn.set(self.turn.get() + usize::from(more));
        more
    }
}

#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl Observer for Notes {
    fn progress(&self, _: &str, done: u64, total: u64) {
        assert!(done <= total);
    }
    fn note(&self, text: &str) {
        self.0.borrow_mut().push(text.into());
    }
    fn pause(&self, _: u32) {}
}

/// Content that repeats nowhere.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

const PIECE: usize = 5000;

fn refer(bytes: &[u8]) -> ArtifactRef {
    ArtifactRef { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

fn index_of(content: &[u8]) -> Vec<u8> {
    let chunks: Vec<_> = content.chunks(PIECE).map(|c| (Digest::of(c), c.len() as u32)).collect();
    ChunkIndex::encode(&chunks).unwrap()
}

/// An artifact, its index, and a folder to download it to.
struct World {
    content: Vec<u8>,
    index: Vec<u8>,
    folder: tempfile::TempDir,
}

impl World {
    fn new(length: usize) -> Self {
        let content = noise(length, 1);
        Self { index: index_of(&content), content, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("images/new")
    }

    fn fetch(&self, manners: &[Manner]) -> (Result<u64, InstallError>, Vec<u64>, Vec<String>) {
        let places = Places::new(&[&self.content, &self.index], manners);
        let (path, notes) = (self.path(), Notes::default());
        let wanted = Wanted { artifact: refer(&self.content), chunks: refer(&self.index), name: "image", path: &path };
        let here = Here::installed(self.folder.path(), &self.folder.path().join("images"));
        let fetched = fetch_pieces(&places, &notes, &wanted, &here).map(|Fetched(bytes)| bytes);
        assert_eq!(fetched.is_ok(), path.exists());
        if fetched.is_ok() {
            assert_eq!(fs::read(&path).unwrap(), self.content);
            assert!(!path.with_extension("part").exists());
            assert_eq!(fs::read(index_path(&path)).unwrap(), self.index);
        }
        (fetched, places.sent.into_inner(), notes.0.into_inner())
    }
}

#[test]
fn a_lying_mirror_is_noticed_within_one_piece_and_passed_over() {
    let world = World::new(20 * PIECE);
    let at = 7 * PIECE as u64 + 5;
    let (fetched, _, notes) = world.fetch(&[Manner::Wrong(at), Manner::Honest]);
    assert_eq!(fetched.unwrap(), (world.content.len() + world.index.len()) as u64);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("5000 bytes at 35000 from place 0"), "{notes:?}");
    assert!(notes[0].ends_with("passing over place 0"), "{notes:?}");
}

#[test]
fn a_mirror_that_fails_is_passed_over_and_what_it_gave_is_kept() {
    let world = World::new(10 * PIECE);
    let index = world.index.len() as u64;
    let (fetched, sent, notes) =
        world.fetch(&[Manner::Refusing, Manner::Gone(index + 4 * PIECE as u64), Manner::Honest]);
    assert_eq!(fetched.unwrap(), world.content.len() as u64 + index);
    assert_eq!(sent, [0, index + 4 * PIECE as u64, 6 * PIECE as u64]);
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn a_server_of_the_last_resort_that_lies_is_refused_and_the_truth_is_kept() {
    let world = World::new(10 * PIECE);
    let (fetched, _, notes) = world.fetch(&[Manner::Wrong(5 * PIECE as u64)]);
    assert!(matches!(fetched, Err(InstallError::Mismatch { .. })));
    assert_eq!(notes.len() as u32, TRIES - 1);
    let (fetched, _, notes) = world.fetch(&[Manner::Honest]);
    assert_eq!(fetched.unwrap(), 5 * PIECE as u64);
    assert!(notes[0].ends_with("MiB fetched, the rest was here"), "{notes:?}");
}

#[test]
fn pieces_of_other_files_are_not_fetched() {
    let world = World::new(200 * PIECE);
    let mut old = world.content.clone();
    old[150 * PIECE] ^= 1;
    old[10 * PIECE] ^= 1;
    let path = world.folder.path().join("images/old");
    fs::create_dir(world.folder.path().join("images")).unwrap();
    fs::write(index_path(&path), index_of(&old)).unwrap();
    // The old file is damaged besides, which its index does not know.
    old[100 * PIECE] ^= 1;
    fs::write(&path, old).unwrap();
    let (fetched, _, notes) = world.fetch(&[Manner::Honest]);
    assert_eq!(fetched.unwrap(), (3 * PIECE + world.index.len()) as u64);
    assert_eq!(notes, ["image: 0.0 of 1.0 MiB fetched, the rest was here"]);
}

#[test]
fn a_damaged_file_is_mended() {
    let world = World::new(50 * PIECE);
    let _ = world.fetch(&[Manner::Honest]).0.unwrap();
    let mut damaged = world.content.clone();
    damaged[1234] ^= 8;
    fs::write(world.path(), damaged).unwrap();
    assert_eq!(world.fetch(&[Manner::Honest]).0.unwrap(), PIECE as u64);
}

#[test]
fn an_index_that_makes_no_sense_is_refused() {
    let mut world = World::new(2 * PIECE);
    world.index = index_of(&world.content[1..]);
    assert!(matches!(world.fetch(&[Manner::Honest]).0, Err(InstallError::Index { .. })));
    world.index = vec![0; 1000];
    assert!(matches!(world.fetch(&[Manner::Honest]).0, Err(InstallError::IndexTooLong { .. })));
    // Right in itself, but of other content: found out at the end.
    world.index = index_of(&noise(2 * PIECE, 2));
    let other = noise(2 * PIECE, 2);
    let places = Places::new(&[&world.index], &[Manner::Honest]);
    let path = world.path();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path.with_extension("part"), other).unwrap();
    let wanted = Wanted { artifact: refer(&world.content), chunks: refer(&world.index), name: "image", path: &path };
    let fetched = fetch_pieces(&places, &Notes::default(), &wanted, &Here::default());
    assert!(matches!(fetched, Err(InstallError::Mismatch { .. })));
    assert!(!path.exists() && !path.with_extension("part").exists());
}

#[test]
fn requests_are_for_neighbours() {
    let chunk = |offset: u64, length: u32| Chunk { sha256: Digest([0; 32]), offset, length };
    let mib = 1 << 20;
    let check = |chunks: &[Chunk], expect: usize| assert_eq!(neighbours(chunks).len(), expect, "{chunks:?}");
    check(&[chunk(5, 3)], 1);
    check(&[chunk(5, 3), chunk(8, 1), chunk(10, 1)], 2);
    check(&(0..9).map(|n| chunk(n * u64::from(mib), mib)).collect::<Vec<_>>(), 9);
}

proptest! {
    /// Power goes at any byte, and any part of the file may not have reached the disk: what is good is not fetched again.
    #[test]
    fn downloads_go_on_after_a_power_cut(cut in 1u64..100_000, lost in 0usize..100_000, length in 0usize..15_000) {
        let world = World::new(20 * PIECE);
        let index = world.index.len() as u64;
        let (first, _, _) = world.fetch(&[Manner::Gone(index + cut)]);
        prop_assert!(first.is_err() || cut >= world.content.len() as u64);
        if first.is_err() {
            let part = world.path().with_extension("part");
            let mut bytes = fs::read(&part).unwrap();
            let end = (lost + length).min(bytes.len());
            bytes[lost..end].fill(0);
            fs::write(&part, &bytes).unwrap();
            let good = bytes.chunks(PIECE).zip(world.content.chunks(PIECE)).filter(|(a, b)| a == b).count();
            prop_assert!(good + length.div_ceil(PIECE) + 1 >= cut as usize / PIECE);
            let (second, sent, _) = world.fetch(&[Manner::Honest]);
            prop_assert_eq!(second.unwrap(), ((20 - good) * PIECE) as u64);
            prop_assert_eq!(sent[0], ((20 - good) * PIECE) as u64);
        }
    }

    /// Whatever the mirrors do, an honest server of the last resort is enough; and no piece that came is fetched twice.
    #[test]
    fn bad_mirrors_only_cost_time(mirrors in proptest::collection::vec((0u8..4, 0u64..100_000), 0..5)) {
        let world = World::new(20 * PIECE);
        let mut manners: Vec<_> = mirrors.iter().map(|(kind, at)| match kind {
            0 => Manner::Honest,
            1 => Manner::Wrong(*at),
            2 => Manner::Gone(*at),
            _ => Manner::Refusing,
        }).collect();
        manners.push(Manner::Honest);
        let (fetched, _, _) = world.fetch(&manners);
        prop_assert_eq!(fetched.unwrap(), (world.content.len() + world.index.len()) as u64);
    }
}
