//! Removing a directory tree of any depth, which whoever wrote it chose.

use std::{fs, io, path::Path};

use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

/// Removes a directory and all that is in it. However deep it is, this takes two descriptors and short paths: directories
/// move to the top before they are emptied. What is left after an error or a crash can be removed the same way.
pub(crate) fn remove_tree(top: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let mut found = false;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            found = true;
            if entry.file_type()?.is_dir() {
                empty(&entry.path(), top, &mut moved)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        if !found {
            return fs::remove_dir(top);
        }
    }
}

/// Empties a directory by removing what can be, and moving directories that are not empty to `top`.
fn empty(directory: &Path, top: &Path, moved: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
            continue;
        }
        match fs::remove_dir(entry.path()) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => {
                result?;
                continue;
            }
        }
        loop {
            *moved += 1;
            let target = top.join(moved.to_string());
            match rustix::fs::renameat_with(CWD, entry.path(), CWD, target, RenameFlags::NOREPLACE) {
                // Somebody's directory has a number for a name.
                Err(Errno::EXIST) => {}
                result => break result?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn any_depth_is_removed() {
        let check = |depth: usize, names: &[&str]| {
            let folder = tempfile::tempdir().expect("making a directory");
            let top = folder.path().join("top");
            fs::create_dir(&top).expect("making the top");
            for name in names {
                let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
                let mut at = rustix::fs::open(&top, flags, Mode::empty()).expect("opening the top");
                for _ in 0..depth {
                    rustix::fs::mkdirat(&at, *name, Mode::RWXU).expect("making a directory");
                    rustix::fs::symlinkat("/", &at, "link").or_else(ignore_existing).expect("linking");
                    at = rustix::fs::openat(&at, *name, flags, Mode::empty()).expect("opening a directory");
                }
            }
            remove_tree(&top).expect("removing");
            assert!(!top.exists(), "{depth} {names:?}");
        };
        fn ignore_existing(error: Errno) -> Result<(), Errno> {
            if error == Errno::EXIST { Ok(()) } else { Err(error) }
        }
        check(0, &[]);
        check(1, &["a", "b"]);
        check(5, &["1", "2", "3"]);
        check(3000, &["d"]);
        check(300, &["a-name-so-long-that-the-whole-path-is-none-that-the-kernel-takes", "2"]);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let folder = tempfile::tempdir().expect("making a directory");
        let (kept, top) = (folder.path().join("kept"), folder.path().join("top"));
        fs::create_dir_all(kept.join("full")).expect("making a directory");
        fs::create_dir_all(top.join("sub")).expect("making a directory");
        for link in ["link", "sub/link"] {
            std::os::unix::fs::symlink(&kept, top.join(link)).expect("linking");
        }
        remove_tree(&top).expect("removing");
        assert!(kept.join("full").exists());
    }
}
