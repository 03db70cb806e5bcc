//! What the boot stage reads back: the kernel's log, events on a disk, what an earlier kernel left, an image's archive.

use std::{io, path::Component};

use orrery_bootstage::{handover::Handover, kernel_log, reporter, unpack};

/// A record of `/dev/kmsg`: one line for people comes out of it, in proportion.
pub(crate) fn kernel_log(bytes: &[u8]) -> bool {
    let Some((_, line)) = kernel_log::parse(bytes) else { return false };
    assert!(!line.contains('\n'));
    // A byte that is no UTF-8 becomes three; the rest is the time, at most 14 digits of seconds.
    assert!(line.len() <= 3 * bytes.len() + 32);
    true
}

/// Lines of events, as the power may have cut them. What was understood survives being written again.
pub(crate) fn events(bytes: &[u8]) -> bool {
    /// Escaped six times as long, still a line that is not cut.
    const UNCUT: usize = 2000;
    let (events, used) = reporter::parse_lines(bytes);
    assert!(used == 0 || bytes[..used].ends_with(b"\n"));
    if bytes.len() <= UNCUT {
        let again: Vec<u8> = events.iter().flat_map(|event| event.to_json_line()).collect();
        assert_eq!(reporter::parse_lines(&again), (events.clone(), again.len()));
    }
    !events.is_empty()
}

/// A handover, which comes out of its archive as it went in.
pub(crate) fn handover(bytes: &[u8]) -> bool {
    let Ok(handover) = Handover::decode(bytes) else { return false };
    let archive = handover.to_cpio().expect("what was decoded can be encoded");
    let mut found = Vec::new();
    unpack::entries(archive.as_slice(), |_, data| data.read_to_end(&mut found).map(drop))
        .expect("an archive of ours is one");
    assert_eq!(Handover::decode(&found).ok(), Some(handover));
    true
}

/// An archive: no name leads out, and no more data comes out than went in.
pub(crate) fn cpio(bytes: &[u8]) -> bool {
    let mut left = bytes.len() as u64;
    let read = unpack::entries(bytes, |entry, data| {
        assert!(entry.name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)));
        left = left.checked_sub(io::copy(data, &mut io::sink())?).expect("data comes from the input");
        Ok(())
    });
    read.is_ok()
}
