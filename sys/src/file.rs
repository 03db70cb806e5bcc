//! Files on their way to a disk.
#![allow(unsafe_code)] // sync_file_range has no wrapper.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Starts to write out what a file holds, and does not wait for it. ext4 gives the content its place on the disk now, in the journal's
/// current transaction, which is not committed before the content is there (`data=ordered`, the default). Whatever is done to the
/// file system afterwards, such as naming the file, thus reaches the disk with the content or after it: one flush, of the
/// directory, makes both last. On other file systems it promises nothing.
///
/// # Errors
/// When the disk does not take it, or `file` is no file.
pub fn begin_writing_out(file: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call takes no pointers. A length of 0 is all of the file.
    let done = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn files_are_written_out_and_pipes_are_not() {
        let path = std::env::temp_dir().join(format!("orrery-sys-file-{}", std::process::id()));
        let mut file = File::create(&path).expect("making a file");
        file.write_all(b"content").expect("writing");
        let done = begin_writing_out(&file);
        std::fs::remove_file(&path).expect("removing");
        done.expect("writing out");
        let (reader, _writer) = io::pipe().expect("making a pipe");
        assert!(begin_writing_out(&reader).is_err());
    }
}
