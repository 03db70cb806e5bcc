//! What a sliver's own programs print, kept within bounds: two files outside of its root, of which the older is given up, and a
//! rate. Whoever prints more than that loses lines, which are counted, and is slowed down.
//!
//! The files count towards the sliver's disk quota. One line is `<time> <source> <text>`, where the source `node` is us.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{FlockOperation, inotify};
use time::{OffsetDateTime, macros::format_description};

/// The files: the one that is written, and the one before.
const CURRENT: &str = "log";
const PREVIOUS: &str = "log.1";
/// How large one may be, in bytes.
const FILE_BYTES: u64 = 256 << 10;
/// What is longer is several lines.
const LINE_BYTES: usize = 4 << 10;
/// How many bytes may be written at once, and from then on every second: a disk's life is shared by thousands of slivers, and this
/// is a third of a gigabyte a day. Less than a file, so that none grows beyond its size.
const BURST: u64 = 128 << 10;
const RATE: u64 = 4 << 10;

/// Turns what a program prints into lines of the log, as many as it may have. Pure.
#[derive(Debug)]
struct Recorder {
    source: &'static str,
    partial: Vec<u8>,
    tokens: u64,
    refilled: Instant,
    dropped: Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

impl Recorder {
    fn new(source: &'static str, now: Instant) -> Self {
        Self { source, partial: Vec::new(), tokens: BURST, refilled: now, dropped: Dropped::default() }
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.duration_since(self.refilled).as_millis() as u64 * RATE / 1000;
        // What is less than a byte is earned later.
        if earned > 0 {
            self.tokens = BURST.min(self.tokens + earned);
            self.refilled = now;
        }
    }

    /// What to write of these bytes, which need not end with a line.
    fn take(&mut self, bytes: &[u8], now: Instant, time: &str) -> Vec<u8> {
        self.refill(now);
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let mut text = text;
            loop {
                let room = LINE_BYTES - self.partial.len();
                let (now_fits, rest) = text.split_at(room.min(text.len()));
                self.partial.extend_from_slice(now_fits);
                text = rest;
                if text.is_empty() {
                    break;
                }
                self.end_line(time, &mut out);
            }
            if ended {
                self.end_line(time, &mut out);
            }
        }
        out
    }

    /// What is left once nothing more will come.
    fn finish(&mut self, now: Instant, time: &str) -> Vec<u8> {
        self.refill(now);
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.end_line(time, &mut out);
        }
        self.tell_dropped(time, &mut out);
        out
    }

    fn end_line(&mut self, time: &str, out: &mut Vec<u8>) {
        let text = std::mem::take(&mut self.partial);
        let cost = (time.len() + self.source.len() + text.len() + 3) as u64;
        // Those that were dropped are told of before the next that is not, at a price of its own.
        let told = if self.dropped == Dropped::default() { 0 } else { 128 };
        match self.tokens.checked_sub(cost + told) {
            Some(left) => {
                self.tokens = left;
                self.tell_dropped(time, out);
                line(time, self.source, &text, out);
            }
            None => {
                self.dropped.lines += 1;
                self.dropped.bytes += text.len() as u64 + 1;
            }
        }
    }

    fn tell_dropped(&mut self, time: &str, out: &mut Vec<u8>) {
        let Dropped { lines, bytes } = std::mem::take(&mut self.dropped);
        if lines > 0 {
            let text = format!("dropped {lines} lines, {bytes} bytes: more than {RATE} bytes a second");
            line(time, "node", text.as_bytes(), out);
        }
    }
}

fn line(time: &str, source: &str, text: &[u8], out: &mut Vec<u8>) {
    for part in [time.as_bytes(), b" ", source.as_bytes(), b" ", text, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// A moment as `2026-11-26T05:00:00.000Z`.
fn show(moment: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(moment).format(format).unwrap_or_default()
}

/// The log of one sliver, for one of its programs.
#[derive(Debug)]
pub(crate) struct Log {
    directory: PathBuf,
    recorder: Recorder,
}

impl Log {
    /// The log in `directory`, which is made.
    ///
    /// # Errors
    /// When it cannot be.
    pub(crate) fn open(directory: &Path, source: &'static str) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Self { directory: directory.into(), recorder: Recorder::new(source, Instant::now()) })
    }

    /// Takes what the program printed. Returns whether some of it was too much.
    ///
    /// # Errors
    /// When the disk does not take it; it is lost then.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let text = self.recorder.take(bytes, Instant::now(), &show(SystemTime::now()));
        self.append(&text)?;
        Ok(self.recorder.dropped != Dropped::default())
    }

    /// Ends the program's last line.
    ///
    /// # Errors
    /// As [`Log::take`].
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let text = self.recorder.finish(Instant::now(), &show(SystemTime::now()));
        self.append(&text)
    }

    /// Says something of our own.
    ///
    /// # Errors
    /// As [`Log::take`].
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        let mut out = Vec::new();
        line(&show(SystemTime::now()), "node", text.replace('\n', " ").as_bytes(), &mut out);
        self.append(&out)
    }

    fn append(&self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        // The sliver's programs have a keeper each. Nobody else waits for this lock: its holder may be suspended with the sliver.
        let lock = File::open(&self.directory)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))?;
        let current = self.directory.join(CURRENT);
        let open = || File::options().append(true).create(true).mode(0o600).open(&current);
        let mut file = open()?;
        let length = file.metadata()?.len();
        if length > 0 && length + text.len() as u64 > FILE_BYTES {
            let previous = self.directory.join(PREVIOUS);
            // Renaming over a file would have the new one written to the disk at once.
            match fs::remove_file(&previous) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(&current, &previous)?,
            }
            file = open()?;
        }
        file.write_all(text)
    }
}

/// Copies the log in `directory` to `out`, the oldest line first, and if it is to `follow`, what is added from then on, until the
/// sliver is gone. The log may be made later, and a reset may put another in its place.
///
/// # Errors
/// When the log cannot be read, or whoever reads is gone.
fn copy(directory: &Path, follow: bool, out: &mut impl Write) -> io::Result<()> {
    let watch = follow.then(|| inotify::init(inotify::CreateFlags::CLOEXEC)).transpose()?;
    // Before anything is read, so that nothing falls in between.
    let mut exists = match &watch {
        Some(watch) => look_at(watch, directory)?,
        None => true,
    };
    let open = |name: &str| match File::open(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    let inode = |file: &File| file.metadata().map(|data| data.ino());
    let mut current = open(CURRENT)?;
    if let Some(mut previous) = open(PREVIOUS)? {
        let renamed = match &current {
            Some(current) => inode(current)? == inode(&previous)?,
            None => false,
        };
        if !renamed {
            io::copy(&mut previous, out)?;
        }
    }
    loop {
        if let Some(file) = &mut current {
            io::copy(file, out)?;
        }
        let newer = open(CURRENT)?;
        let same = match (&current, &newer) {
            (Some(current), Some(newer)) => inode(current)? == inode(newer)?,
            (_, newer) => newer.is_none(),
        };
        if !same {
            // What was written before it was replaced.
            if let Some(file) = &mut current {
                io::copy(file, out)?;
            }
            current = newer;
            continue;
        }
        out.flush()?;
        let Some(watch) = watch.as_ref().filter(|_| exists) else { return Ok(()) };
        let mut events = [MaybeUninit::uninit(); 4096];
        // Whatever they say, there is something to look at.
        rustix::io::retry_on_intr(|| inotify::Reader::new(watch, &mut events).next().map(drop))?;
        exists = look_at(watch, directory)?;
    }
}

/// Has `watch` tell of what happens to the log in `directory`, by what the names mean now: a reset exchanges the sliver's
/// folder, and nothing ever happens again in the one before. Returns whether there is a sliver.
fn look_at(watch: &OwnedFd, directory: &Path) -> io::Result<bool> {
    use inotify::WatchFlags;
    let add = |path: &Path, flags| match inotify::add_watch(watch, path, flags) {
        Err(rustix::io::Errno::NOENT) => Ok(false),
        result => result.map(|_| true),
    };
    // The sliver's folder first: it tells when the log is made.
    let exists = add(directory.parent().unwrap_or(directory), WatchFlags::CREATE | WatchFlags::MOVE_SELF)?;
    add(directory, WatchFlags::MODIFY | WatchFlags::CREATE)?;
    Ok(exists)
}

/// The last argument of the reader if it is to go on.
pub(crate) const FOLLOW: &str = "follow";

/// How many read a sliver's log at once: each is a process of the node's, for which no sliver pays.
const READERS: u32 = 8;

/// The places for readers: files whose names begin like this.
pub(crate) fn places(name: &Path) -> impl Iterator<Item = PathBuf> {
    (0..READERS).map(|number| {
        let mut path = name.as_os_str().to_owned();
        path.push(number.to_string());
        path.into()
    })
}

/// One of the places, kept as long as the file is.
fn place(name: &Path) -> io::Result<File> {
    for path in places(name) {
        let file = File::create(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            result => return result.map(|()| file).map_err(io::Error::from),
        }
    }
    Err(io::Error::other(format!("{READERS} others read it at the moment; have one of them end")))
}

/// The reader's life: `<directory> <places> [follow]`.
pub(crate) fn helper(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (directory, places) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let follow = arguments.next().is_some_and(|word| word == FOLLOW);
    match place(Path::new(&places)).and_then(|_place| copy(Path::new(&directory), follow, &mut io::stdout().lock())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("reading the log: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// How long a program that prints too much waits until more is read.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Reads what there is of a pipe that does not block, `most` bytes at once. Returns whether there may be more.
///
/// # Errors
/// When reading fails.
pub(crate) fn read_some(mut pipe: &File, most: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut buffer = vec![0; most];
    match pipe.read(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok((buffer, length > 0))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok((Vec::new(), true))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::fs::{CWD, RenameFlags};

    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn readers_have_places() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a_b.reader");
        let mut taken: Vec<_> = (0..READERS).map(|_| place(&name).unwrap()).collect();
        assert!(place(&name).unwrap_err().to_string().contains("8 others"));
        taken.pop();
        place(&name).unwrap();
    }

    #[test]
    fn lines_are_told_apart() {
        let start = Instant::now();
        let mut recorder = Recorder::new("service", start);
        let mut check = |bytes: &str, expect: &str| {
            assert_eq!(text(recorder.take(bytes.as_bytes(), start, "T")), expect, "{bytes:?}");
        };
        check("one\ntw", "T service one\n");
        check("o\n\n", "T service two\nT service \n");
        check("", "");
        check("end", "");
        let long = "x".repeat(LINE_BYTES);
        check(&format!("\n{long}y\n"), &format!("T service end\nT service {long}\nT service y\n"));
        check(&long, "");
        check("\n", &format!("T service {long}\n"));
        check("last", "");
        assert_eq!(text(recorder.finish(start, "T")), "T service last\n");
        assert_eq!(text(recorder.finish(start, "T")), "");
    }

    #[test]
    fn who_prints_too_much_is_told_how_much_was_lost() {
        let start = Instant::now();
        let mut recorder = Recorder::new("s", start);
        let chatter = "0123456789\n".repeat(100_000);
        let kept = text(recorder.take(chatter.as_bytes(), start, "T"));
        assert!(kept.len() as u64 <= BURST && kept.len() as u64 > BURST - 20, "{}", kept.len());
        let lost = 100_000 - kept.lines().count() as u64;
        assert_eq!(recorder.dropped, Dropped { lines: lost, bytes: lost * 11 });
        // A second later there is room for some.
        let later = start + Duration::from_secs(1);
        let kept = text(recorder.take(chatter.as_bytes(), later, "T"));
        let first = kept.lines().next().unwrap();
        assert_eq!(first, format!("T node dropped {lost} lines, {} bytes: more than 4096 bytes a second", lost * 11));
        assert!(kept.len() as u64 <= RATE + 128, "{}", kept.len());
        // Nothing is lost without being told.
        let lost = recorder.dropped.lines;
        let end = text(recorder.finish(later, "T"));
        assert!(end.starts_with(&format!("T node dropped {lost} lines")), "{end}");
    }

    #[test]
    fn moments() {
        let at = |seconds, millis: u32| show(SystemTime::UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000));
        assert_eq!(at(0, 7), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(1_795_669_200, 999), "2026-11-26T05:00:00.999Z");
    }

    #[test]
    fn the_files_stay_small_and_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("log");
        let mut out = Vec::new();
        copy(&directory, false, &mut out).unwrap();
        assert!(out.is_empty(), "a log that is not there has lines");
        let mut log = Log::open(&directory, "s").unwrap();
        for number in 0..4000 {
            log.note(&format!("{:200} {number}", "")).unwrap();
        }
        let length = |name: &str| fs::metadata(directory.join(name)).unwrap().len();
        assert!(length(CURRENT) <= FILE_BYTES && length(PREVIOUS) <= FILE_BYTES);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        copy(&directory, false, &mut out).unwrap();
        let numbers: Vec<u32> =
            text(out).lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(*numbers.last().unwrap(), 3999);
        assert!(numbers.len() > 1000 && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }

    /// Gives up once it has this many lines.
    struct Lines(Vec<u8>, usize);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            match self.0.iter().filter(|&&byte| byte == b'\n').count() >= self.1 {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => Ok(bytes.len()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_follows_sees_every_line_across_files() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("log");
        let mut log = Log::open(&directory, "s").unwrap();
        log.note(" 0").unwrap();
        let reader = {
            let directory = directory.clone();
            std::thread::spawn(move || {
                let mut lines = Lines(Vec::new(), 2000);
                assert_eq!(copy(&directory, true, &mut lines).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                text(lines.0)
            })
        };
        // A file and a half.
        for number in 1..2000 {
            log.note(&format!("{:150} {number}", "")).unwrap();
        }
        let read = reader.join().unwrap();
        assert!(read.lines().enumerate().all(|(at, line)| line.ends_with(&format!(" {at}"))));
    }

    /// Tells what was read so far whenever the reader is about to wait.
    struct Told(Vec<u8>, mpsc::Sender<String>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.1.send(text(self.0.clone())).map_err(io::Error::other)
        }
    }

    #[test]
    fn who_follows_sees_a_log_that_is_made_later_and_one_after_a_reset() {
        let folder = tempfile::tempdir().unwrap();
        let [sliver, fresh] = ["sliver", "fresh"].map(|name| folder.path().join(name));
        fs::create_dir(&sliver).unwrap();
        let directory = sliver.join("log");
        let (sender, told) = mpsc::channel();
        let reader = {
            let directory = directory.clone();
            std::thread::spawn(move || copy(&directory, true, &mut Told(Vec::new(), sender)))
        };
        let until = |expect: &str| {
            while !told.recv_timeout(Duration::from_secs(20)).expect(expect).ends_with(expect) {}
        };
        until("");
        let mut log = Log::open(&directory, "s").unwrap();
        log.note("first").unwrap();
        until("node first\n");
        fs::create_dir(&fresh).unwrap();
        rustix::fs::renameat_with(CWD, &fresh, CWD, &sliver, RenameFlags::EXCHANGE).unwrap();
        let mut log = Log::open(&directory, "s").unwrap();
        log.note("second").unwrap();
        until("node second\n");
        fs::remove_dir_all(&fresh).unwrap();
        log.note("third").unwrap();
        until("node third\n");
        fs::rename(&sliver, &fresh).unwrap();
        reader.join().unwrap().unwrap();
    }
}
