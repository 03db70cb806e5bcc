//! The root file system of an initramfs: declared entry by entry, written in one order.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    BuildError,
    cpio::{Node, Writer},
};

/// The kernel's zstd decompressor holds one window in memory while it unpacks. 8 MiB is as much as a 256 MiB
/// machine can spare, and larger than nearly every file we pack.
const WINDOW_LOG: u32 = 23;
/// Media are built once and read over slow links many times.
const COMPRESSION_LEVEL: i32 = 22;

/// Paths and what stands there, parents first. Paths have no leading slash.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, (u32, Node)>);

impl Tree {
    /// What every root file system of ours starts with: mount points, and the nodes that the kernel opens as
    /// PID 1's standard streams before anything is mounted.
    pub(crate) fn with_skeleton() -> Self {
        let mut tree = Self::default();
        for path in ["dev", "proc", "sys", "run", "mnt"] {
            tree.put(path, 0o755, Node::Directory);
        }
        tree.put("root", 0o700, Node::Directory);
        tree.put("tmp", 0o1777, Node::Directory);
        tree.put("dev/console", 0o600, Node::CharDevice { major: 5, minor: 1 });
        tree.put("dev/null", 0o666, Node::CharDevice { major: 1, minor: 3 });
        tree
    }

    /// Puts `node` at `path`, over whatever stood there, and makes missing parents.
    pub(crate) fn put(&mut self, path: &str, permissions: u32, node: Node) {
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert((0o755, Node::Directory));
        }
        self.0.insert(path.to_owned(), (permissions, node));
    }

    /// Puts a copy of the host's file `source` at `path`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn put_file(&mut self, path: &str, permissions: u32, source: &Path) -> Result<(), BuildError> {
        let data = fs::read(source).map_err(BuildError::reading(source))?;
        self.put(path, permissions, Node::File(data));
        Ok(())
    }

    /// Links every name of `applets` in `/bin` to busybox, except where a real program of that name stands.
    pub(crate) fn link_applets(&mut self, applets: &[String]) {
        for name in applets.iter().filter(|name| !name.is_empty() && !name.contains('/')) {
            if !self.0.contains_key(&format!("sbin/{name}"))
                && let Entry::Vacant(free) = self.0.entry(format!("bin/{name}"))
            {
                free.insert((0o777, Node::Symlink("busybox".to_owned())));
            }
        }
    }

    /// Lays the folder `overlay` over the tree. Of permissions only the executable bit is taken, so that the
    /// umask of whoever checked the folder out does not show in the image.
    ///
    /// # Errors
    /// The folder cannot be read, or holds something that is neither file, folder nor symbolic link.
    pub(crate) fn lay_over(&mut self, overlay: &Path) -> Result<(), BuildError> {
        self.lay_folder_over(overlay, "")
    }

    fn lay_folder_over(&mut self, folder: &Path, prefix: &str) -> Result<(), BuildError> {
        for entry in fs::read_dir(folder).map_err(BuildError::reading(folder))? {
            let source = entry.map_err(BuildError::reading(folder))?.path();
            let unusable = |reason: &'static str| BuildError::Overlay { path: source.clone(), reason };
            let name = source.file_name().and_then(|name| name.to_str()).ok_or_else(|| unusable("not UTF-8"))?;
            let path = format!("{prefix}{name}");
            let metadata = source.symlink_metadata().map_err(BuildError::reading(&source))?;
            if metadata.is_dir() {
                if !matches!(self.0.get(&path), Some((_, Node::Directory))) {
                    self.put(&path, 0o755, Node::Directory);
                }
                self.lay_folder_over(&source, &format!("{path}/"))?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&source).map_err(BuildError::reading(&source))?;
                let target = target.to_str().ok_or_else(|| unusable("link target is not UTF-8"))?;
                self.put(&path, 0o777, Node::Symlink(target.to_owned()));
            } else if metadata.is_file() {
                self.put_file(&path, permissions_of(&metadata), &source)?;
            } else {
                return Err(unusable("neither file, folder nor symbolic link"));
            }
        }
        Ok(())
    }

    /// The uncompressed archive, every entry dated `mtime`.
    pub(crate) fn archive(&self, mtime: u32) -> Vec<u8> {
        let mut writer = Writer::new(mtime);
        for (path, (permissions, node)) in &self.0 {
            writer.push(path, *permissions, node);
        }
        writer.finish()
    }

    /// The archive as one zstd frame. One thread: with more, the bytes would depend on the machine.
    ///
    /// # Errors
    /// zstd refuses its parameters or runs out of memory.
    pub(crate) fn compressed(&self, mtime: u32) -> Result<Vec<u8>, BuildError> {
        compress(&self.archive(mtime)).map_err(BuildError::Compress)
    }
}

fn compress(archive: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
    compressor.window_log(WINDOW_LOG)?;
    // The kernel checks it, so a medium gone bad is a message and not a puzzling crash.
    compressor.include_checksum(true)?;
    compressor.compress(archive)
}

fn permissions_of(metadata: &fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 }
}

/// The applet names that the busybox at `path` answers to, asked of the program itself, sorted.
///
/// # Errors
/// It cannot be run here, or fails.
pub fn busybox_applets(path: &Path) -> Result<Vec<String>, BuildError> {
    let shown = || PathBuf::from(path).display().to_string();
    let output = std::process::Command::new(path)
        .arg("--list")
        .output()
        .map_err(|source| BuildError::ToolMissing { tool: shown(), source })?;
    if !output.status.success() {
        return Err(BuildError::ToolFailed { tool: shown(), said: String::from_utf8_lossy(&output.stderr).into() });
    }
    let mut names: Vec<_> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(tree: &Tree) -> Vec<&str> {
        tree.0.keys().map(String::as_str).collect()
    }

    #[test]
    fn parents_come_first_and_programs_win_over_applets() {
        let mut tree = Tree::default();
        tree.put("sbin/mke2fs", 0o755, Node::File(vec![1]));
        tree.put("bin/busybox", 0o755, Node::File(vec![2]));
        tree.link_applets(&["sh".into(), "mke2fs".into(), "busybox".into(), "../x".into()]);
        assert_eq!(names(&tree), ["bin", "bin/busybox", "bin/sh", "sbin", "sbin/mke2fs"]);
        assert_eq!(tree.0["bin/busybox"].1, Node::File(vec![2]));
    }

    #[test]
    fn overlays_keep_links_and_the_executable_bit_only() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc/empty")).unwrap();
        fs::write(folder.path().join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(folder.path().join("run.sh"), "").unwrap();
        fs::set_permissions(folder.path().join("etc/hosts"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/proc/self/mounts", folder.path().join("etc/mtab")).unwrap();
        let mut tree = Tree::default();
        tree.put("etc", 0o750, Node::Directory);
        tree.lay_over(folder.path()).unwrap();
        assert_eq!(names(&tree), ["etc", "etc/empty", "etc/hosts", "etc/mtab", "run.sh"]);
        let modes: Vec<_> = tree.0.values().map(|(mode, _)| *mode).collect();
        assert_eq!(modes, [0o750, 0o755, 0o644, 0o777, 0o755]);
    }

    #[test]
    fn compressed_archives_unpack_to_the_archive() {
        let tree = Tree::with_skeleton();
        let frame = tree.compressed(7).unwrap();
        assert_eq!(zstd::decode_all(frame.as_slice()).unwrap(), tree.archive(7));
    }
}
