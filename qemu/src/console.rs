//! The serial console: a timestamped record of what the guest printed, and expectations on it.

use std::io::{self, Read, Write};
use std::mem;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long a match in an unfinished line waits for its rest. At 115200 baud a line takes some 10 ms.
const LINE_GRACE: Duration = Duration::from_millis(300);

/// One line, without its end and without terminal control sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its text.
    pub text: String,
    /// When its first byte came, after the VM's first start.
    pub at: Duration,
}

/// What to look for: pieces that stand in one line, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(vec![text.into()])
    }
}

impl From<&String> for Pattern {
    fn from(text: &String) -> Self {
        Self(vec![text.clone()])
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self(vec![text])
    }
}

impl<const N: usize> From<[&str; N]> for Pattern {
    fn from(pieces: [&str; N]) -> Self {
        Self(pieces.map(String::from).to_vec())
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.0.join(" … "))
    }
}

impl Pattern {
    /// Where the last piece ends.
    fn find(&self, line: &[u8]) -> Option<usize> {
        self.0.iter().try_fold(0, |from, piece| find(&line[from..], piece.as_bytes()).map(|at| from + at + piece.len()))
    }
}

fn find(text: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() { Some(0) } else { text.windows(piece.len()).position(|window| window == piece) }
}

/// A fulfilled expectation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Which of the patterns it was (0 when there was one).
    pub index: usize,
    /// The line it was found in, whole unless its end didn't come soon.
    pub line: String,
    /// When that line began, after the VM's first start.
    pub at: Duration,
}

/// A place in the console's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    line: usize,
    column: usize,
}

/// Why an expectation failed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ConsoleError {
    /// It didn't appear in time.
    #[error("it didn't appear within {0:?}")]
    Deadline(Duration),
    /// A fatal text appeared before it.
    #[error("a fatal line came first: {0}")]
    Fatal(String),
    /// The machine went away.
    #[error("the machine stopped")]
    Closed,
}

#[derive(Debug)]
struct RawLine {
    bytes: Vec<u8>,
    at: Duration,
}

#[derive(Debug, Default)]
struct Record {
    /// The last one has no end yet.
    lines: Vec<RawLine>,
    open: bool,
    cursor: Mark,
    /// Counts attached sockets, so that a reader left over from before a power cut can't close a newer console.
    generation: u64,
}

/// Shared by the reader thread and those who wait.
#[derive(Debug, Clone)]
pub struct Console {
    start: Instant,
    fatal: Arc<Vec<String>>,
    shared: Arc<(Mutex<Record>, Condvar)>,
}

impl Console {
    pub(crate) fn new(fatal: Vec<String>) -> Self {
        Self { start: Instant::now(), fatal: Arc::new(fatal), shared: Arc::default() }
    }

    /// Reads `stream` on a thread of its own until it is closed.
    pub(crate) fn attach(&self, mut stream: impl Read + Send + 'static) {
        let generation = {
            let mut record = self.record();
            record.open = true;
            record.generation += 1;
            record.generation
        };
        let console = self.clone();
        thread::spawn(move || {
            let mut escapes = Escapes::Text;
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) | Ok(0) => break,
                    Ok(count) => console.take(&buffer[..count], &mut escapes),
                }
            }
            console.close(generation);
        });
    }

    /// Waits until `pattern` shows up after what was matched last.
    ///
    /// # Errors
    /// When it doesn't in time, a fatal text comes first, or the machine stops.
    pub fn expect(&self, pattern: impl Into<Pattern>, within: Duration) -> Result<Match, ConsoleError> {
        self.expect_any([pattern.into()], within)
    }

    /// Waits for the first of several patterns; in one line, the pattern given first counts.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_any<P: Into<Pattern>>(
        &self,
        patterns: impl IntoIterator<Item = P>,
        within: Duration,
    ) -> Result<Match, ConsoleError> {
        let patterns: Vec<Pattern> = patterns.into_iter().map(Into::into).collect();
        let end = Instant::now() + within;
        let mut record = self.record();
        // Complete lines are looked at once; the last, unfinished one again each time it has grown.
        let mut from = record.cursor;
        loop {
            if let Some((mut found, after)) = self.scan(&record, &mut from, &patterns)? {
                record.cursor = after;
                // The caller may want to read what follows in the line; a prompt has no end, so not for long.
                let unfinished = |record: &mut Record| record.open && after.line + 1 == record.lines.len();
                let waited = self.shared.1.wait_timeout_while(record, LINE_GRACE, unfinished);
                let line = &waited.unwrap_or_else(PoisonError::into_inner).0.lines[after.line];
                found.line = String::from_utf8_lossy(&line.bytes).into_owned();
                return Ok(found);
            }
            if !record.open {
                return Err(ConsoleError::Closed);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConsoleError::Deadline(within));
            }
            record = self.shared.1.wait_timeout(record, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Self::expect`], but looks from `mark` on.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_from(
        &self,
        mark: Mark,
        pattern: impl Into<Pattern>,
        within: Duration,
    ) -> Result<Match, ConsoleError> {
        self.record().cursor = mark;
        self.expect(pattern, within)
    }

    /// The end of what was printed so far.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let record = self.record();
        match record.lines.len().checked_sub(1) {
            Some(line) => Mark { line, column: record.lines[line].bytes.len() },
            None => Mark::default(),
        }
    }

    /// All lines so far, the last one perhaps unfinished.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let line = |raw: &RawLine| Line { text: String::from_utf8_lossy(&raw.bytes).into_owned(), at: raw.at };
        self.record().lines.iter().map(line).collect()
    }

    /// The last `count` lines that aren't empty, with their times.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<Line> {
        let mut lines = self.lines();
        lines.retain(|line| !line.text.trim().is_empty());
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Time since the VM's first start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn scan(
        &self,
        record: &Record,
        from: &mut Mark,
        patterns: &[Pattern],
    ) -> Result<Option<(Match, Mark)>, ConsoleError> {
        while let Some(line) = record.lines.get(from.line) {
            let rest = &line.bytes[from.column.min(line.bytes.len())..];
            let hit = patterns.iter().enumerate().find_map(|(index, pattern)| Some((index, pattern.find(rest)?)));
            let text = || String::from_utf8_lossy(&line.bytes).into_owned();
            if let Some((index, end)) = hit {
                let after = Mark { line: from.line, column: from.column + end };
                return Ok(Some((Match { index, line: text(), at: line.at }, after)));
            }
            if self.fatal.iter().any(|fatal| find(rest, fatal.as_bytes()).is_some()) {
                return Err(ConsoleError::Fatal(text()));
            }
            if from.line + 1 == record.lines.len() {
                break;
            }
            *from = Mark { line: from.line + 1, column: 0 };
        }
        Ok(None)
    }

    fn take(&self, bytes: &[u8], escapes: &mut Escapes) {
        let at = self.start.elapsed();
        let mut record = self.record();
        for &byte in bytes {
            if !escapes.keeps(byte) {
                continue;
            }
            if record.lines.is_empty() {
                record.lines.push(RawLine { bytes: Vec::new(), at });
            }
            let Some(last) = record.lines.last_mut() else { continue };
            if byte == b'\n' {
                record.lines.push(RawLine { bytes: Vec::new(), at });
            } else {
                if last.bytes.is_empty() {
                    last.at = at;
                }
                last.bytes.push(byte);
            }
        }
        self.shared.1.notify_all();
    }

    fn close(&self, generation: u64) {
        let mut record = self.record();
        if record.generation == generation {
            record.open = false;
            // What the next start prints begins a line of its own.
            let at = self.start.elapsed();
            record.lines.push(RawLine { bytes: Vec::new(), at });
        }
        self.shared.1.notify_all();
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Types `text` into the console.
pub(crate) fn send(mut stream: &UnixStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())
}

/// Tells text from terminal control sequences, a byte at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Text,
    Escape,
    Sequence,
}

impl Escapes {
    fn keeps(&mut self, byte: u8) -> bool {
        let next = match (*self, byte) {
            (Self::Text, 0x1b) => Self::Escape,
            (Self::Escape, b'[') => Self::Sequence,
            (Self::Sequence, 0x20..=0x3f) => Self::Sequence,
            _ => Self::Text,
        };
        let before = mem::replace(self, next);
        before == Self::Text && next == Self::Text && (byte == b'\n' || byte == b'\t' || byte >= 0x20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    fn printed(text: &str) -> Console {
        let console = Console::new(vec!["panic".into()]);
        console.record().open = true;
        console.take(text.as_bytes(), &mut Escapes::Text);
        console
    }

    fn check(text: &str, pattern: &str, expected: Result<&str, ConsoleError>) {
        let found = printed(text).expect(pattern, SHORT).map(|found| found.line);
        assert_eq!(found, expected.map(String::from), "{pattern:?} in {text:?}");
    }

    #[test]
    fn patterns_are_found_in_lines() {
        check("one\r\ntwo three\r\n", "three", Ok("two three"));
        check("a\x1b[1;31mred\x1b[0m b\n", "red b", Ok("ared b"));
        check("login: ", "login:", Ok("login: "));
        check("one\ntwo\n", "onetwo", Err(ConsoleError::Deadline(SHORT)));
        check("ok\npanic\n", "ok", Ok("ok"));
        check("panic here\nok\n", "ok", Err(ConsoleError::Fatal("panic here".into())));
        check("panic here\nok\n", "here", Ok("panic here"));
    }

    #[test]
    fn a_match_moves_the_cursor_and_a_mark_moves_it_back() {
        let console = printed("");
        let begin = console.mark();
        console.take(b"a 1 a\na 2\n", &mut Escapes::Text);
        for line in ["a 1 a", "a 1 a", "a 2"] {
            assert_eq!(console.expect("a", SHORT).unwrap().line, line);
        }
        assert_eq!(console.expect("a", SHORT), Err(ConsoleError::Deadline(SHORT)));
        assert_eq!(console.expect_from(begin, ["a", "2"], SHORT).unwrap().line, "a 2");
        let any = console.expect_any(["b", "a"], SHORT);
        assert_eq!(any, Err(ConsoleError::Deadline(SHORT)));
    }

    #[test]
    fn a_closed_console_fails_at_once() {
        let console = printed("bye");
        console.close(0);
        assert_eq!(console.expect("bye", SHORT).unwrap().line, "bye");
        assert_eq!(console.expect("more", Duration::from_secs(60)), Err(ConsoleError::Closed));
    }
}
