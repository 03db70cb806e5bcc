//! The kernel's log on its way to central. It holds the lines of PID 1 as well, which writes them there.
//!
//! The kernel's ring is the memory (Linux: Documentation/ABI/testing/dev-kmsg): nothing is copied but the batch under way, and
//! each record has the number that it is sent under.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use orrery_init_api::ROLE_ENV;
use orrery_protocol::LogBatch;
use rustix::{fs::OFlags, io::Errno};

use crate::{StageFailure, files::write_private, reporter::Link};

const KMSG: &str = "/dev/kmsg";
/// The number of the next record to send, for when this process starts again.
const SENT_PATH: &str = "/run/orrery/log.sent";
/// Lines of one request.
const BATCH_LINES: usize = 200;
/// Bytes of one request, about.
const BATCH_BYTES: usize = 64 * 1024;
/// The longest record (CONSOLE_EXT_LOG_MAX), in bytes; the kernel refuses a shorter buffer.
const RECORD_BYTES: usize = 8192;

/// The log, and how far it was sent.
pub(crate) struct KernelLog {
    file: File,
    next: u64,
    /// What is under way: it was read, and central has not taken it yet.
    batch: Option<LogBatch>,
    /// A record behind a gap: the first of the next batch.
    ahead: Option<(u64, String)>,
}

impl KernelLog {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(KMSG)?;
        let sent = fs::read_to_string(SENT_PATH).unwrap_or_default();
        Ok(Self { file, next: sent.trim().parse().unwrap_or(0), batch: None, ahead: None })
    }

    /// Sends what there is. Says whether there was anything.
    pub(crate) fn send(&mut self, link: &mut Link) -> Result<bool, StageFailure> {
        let mut any = false;
        loop {
            if self.batch.is_none() {
                let (boot_id, role) =
                    (crate::boot_id().unwrap_or_default(), std::env::var(ROLE_ENV).unwrap_or_default());
                let mut buffer = [0; RECORD_BYTES];
                let file = &mut self.file;
                let read = || read_record(file, &mut buffer);
                let lines = collect(self.next, &mut self.ahead, read);
                self.batch = lines.map(|(first, lines)| LogBatch { boot_id, role, first, lines });
            }
            let Some(batch) = &self.batch else { return Ok(any) };
            link.post("/v1/node/log", batch)?;
            any = true;
            self.next = batch.first + batch.lines.len() as u64;
            self.batch = None;
            if let Err(error) = write_private(SENT_PATH, self.next.to_string().as_bytes()) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The next record; none if there is none now.
fn read_record(file: &mut File, buffer: &mut [u8]) -> Option<Vec<u8>> {
    loop {
        match file.read(buffer) {
            Ok(got) => return Some(buffer[..got].to_vec()),
            // The ring went over what was to be read next: the kernel goes on with the oldest that is left.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Lines with consecutive numbers, from `next` on, and the number of the first; none if there is none.
fn collect(
    next: u64,
    ahead: &mut Option<(u64, String)>,
    mut read: impl FnMut() -> Option<Vec<u8>>,
) -> Option<(u64, Vec<String>)> {
    let mut first = None;
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
        let record = match ahead.take() {
            Some(record) => Some(record),
            None => match read() {
                Some(bytes) => parse(&bytes),
                None => break,
            },
        };
        let Some((number, line)) = record.filter(|(number, _)| *number >= next) else { continue };
        let start = *first.get_or_insert(number);
        if number != start + lines.len() as u64 {
            *ahead = Some((number, line));
            break;
        }
        bytes += line.len();
        lines.push(line);
    }
    first.map(|first| (first, lines))
}

/// The number of a record of `/dev/kmsg`, and its line for people: `priority,number,microseconds,flags;text`, then lines for
/// programs. None if it is no such record.
pub fn parse(record: &[u8]) -> Option<(u64, String)> {
    let text = String::from_utf8_lossy(record);
    let (head, body) = text.split_once(';')?;
    let mut fields = head.split(',').skip(1);
    let number = fields.next()?.parse().ok()?;
    let at: u64 = fields.next()?.parse().ok()?;
    let line = body.lines().next().unwrap_or_default();
    Some((number, format!("[{:5}.{:06}] {line}", at / 1_000_000, at % 1_000_000)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records() {
        let check = |record: &[u8], expect: Option<(u64, &str)>| {
            assert_eq!(parse(record).as_ref().map(|(number, line)| (*number, line.as_str())), expect);
        };
        check(b"6,339,5140900,-;NET: Registered\n", Some((339, "[    5.140900] NET: Registered")));
        check(b"30,7,12,-,caller=T1;a;b\n SUBSYSTEM=acpi\n DEVICE=+x\n", Some((7, "[    0.000012] a;b")));
        check(b"6,x,1,-;y", None);
        check(b"", None);
    }

    /// Batches made of records with these numbers.
    fn batches(next: u64, numbers: &[u64]) -> Vec<(u64, usize)> {
        let mut records = numbers.iter().map(|number| format!("6,{number},0,-;line {number}\n").into_bytes());
        let (mut next, mut ahead, mut made) = (next, None, Vec::new());
        while let Some((first, lines)) = collect(next, &mut ahead, || records.next()) {
            for (number, line) in (first..).zip(&lines) {
                assert!(line.ends_with(&format!("line {number}")), "{line}");
            }
            next = first + lines.len() as u64;
            made.push((first, lines.len()));
        }
        made
    }

    #[test]
    fn a_batch_has_no_gap_and_nothing_goes_twice() {
        assert_eq!(batches(0, &[]), []);
        assert_eq!(batches(0, &[0, 1, 2]), [(0, 3)]);
        assert_eq!(batches(2, &[0, 1, 2, 3]), [(2, 2)]);
        assert_eq!(batches(0, &[0, 1, 5, 6, 9]), [(0, 2), (5, 2), (9, 1)]);
        assert_eq!(batches(9, &[0, 1]), []);
        let many: Vec<_> = (0..BATCH_LINES as u64 + 3).collect();
        assert_eq!(batches(0, &many), [(0, BATCH_LINES), (BATCH_LINES as u64, 3)]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
