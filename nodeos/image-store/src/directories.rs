//! Paths beneath a tree, resolved one component at a time and never through a symbolic link.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    io::Errno,
};

use crate::{
    ImportError,
    archive::{PATH_BYTES, display},
};

/// Deeper than any distribution's; each level is an open file.
pub const DEPTH: usize = 128;
const COMPONENT_BYTES: usize = 255;

/// The components of a path without `.`; none for the top of the tree.
///
/// # Errors
/// When it is absolute, has `..`, or is too long.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, ImportError> {
    let hostile = |reason| Err(ImportError::Hostile { path: display(path), reason });
    if path.len() > PATH_BYTES {
        return hostile("the path is too long");
    }
    if path.starts_with(b"/") {
        return hostile("the path is absolute");
    }
    if path.is_empty() || path.contains(&0) {
        return hostile("the path is not one");
    }
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return hostile("the path leads upwards");
    }
    if parts.len() > DEPTH || parts.iter().any(|part| part.len() > COMPONENT_BYTES) {
        return hostile("the path is too long");
    }
    Ok(parts)
}

/// The directories on the way to the last path asked for. Archives list one directory after the other, so most
/// lookups find all of theirs open.
#[derive(Debug)]
pub struct Directories {
    top: OwnedFd,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Directories {
    /// Beneath `top`.
    pub fn new(top: OwnedFd) -> Self {
        Self { top, open: Vec::new() }
    }

    /// Opens the directory at `parts`, made with all above it if missing. Returns how many were made.
    ///
    /// # Errors
    /// When the path leads through what is no directory, or one cannot be made.
    pub fn enter(&mut self, parts: &[&[u8]]) -> Result<u64, ImportError> {
        let common = self.open.iter().zip(parts).take_while(|((name, _), part)| name == *part).count();
        self.open.truncate(common);
        let mut made = 0;
        for part in &parts[common..] {
            let parent = self.current();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = match openat(parent, *part, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    made += 1;
                    mkdirat(parent, *part, Mode::RWXU).and_then(|()| openat(parent, *part, flags, Mode::empty()))
                }
                other => other,
            };
            let directory = opened.map_err(|errno| {
                let path = display(&parts.join(&b'/'));
                match errno {
                    Errno::NOTDIR | Errno::LOOP => {
                        ImportError::Hostile { path, reason: "the path passes through what is not a directory" }
                    }
                    Errno::NOSPC | Errno::DQUOT => ImportError::DiskFull { path },
                    errno => ImportError::Io { doing: "opening directory", path, source: errno.into() },
                }
            })?;
            self.open.push((part.to_vec(), directory));
        }
        Ok(made)
    }

    /// The directory entered last, good for resolving beneath it only.
    pub fn current(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(&self.top, |(_, directory)| directory).as_fd()
    }

    /// The directory entered last, good for changing its metadata.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reopen(&self) -> io::Result<OwnedFd> {
        Ok(openat(self.current(), ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}
