//! Reading an export. Whoever wrote it is a stranger: nothing in it is believed, and nothing of the sliver changes before its
//! end was read.

use std::{collections::BTreeMap, fs::File, io::Read, os::fd::OwnedFd, path::Path};

use orrery_image_store::{
    Directories, Metadata,
    archive::{Archive, Device, Entry, Kind, PATH_BYTES},
    components, put_sparse,
};
use orrery_protocol::{EXPORT_FORMAT, EXPORT_LAYER, EXPORT_MANIFEST, ExportManifest, LayerSize};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    SnapshotError, Work,
    error::{Within, refused},
    identity::{Range, belongs},
    layer::{Deadline, own},
    work,
};

/// How large the layer may be with the holes of its files, in bytes: holes cost time, though no space.
const LARGEST: u64 = 1 << 40;
/// Bytes of the manifest.
const MANIFEST_BYTES: u64 = 64 << 10;
/// Bytes of directory names and attributes remembered until the end.
const NAME_BYTES: usize = 32 << 20;
/// The binary logarithm of the most history, in bytes, that the stream may ask the decoder to keep.
const WINDOW_LOG: u32 = 23;
const PIECE: usize = 1 << 16;

impl Work<'_> {
    /// Makes the sliver what an export is. All that runs in it ends.
    ///
    /// # Errors
    /// When the stream is not all of an export, is one of a sliver of another image, or holds what no sliver could have; and when
    /// the sliver's quota does not hold it beside what is there. Nothing has changed then.
    pub fn import(&self, stream: impl Read) -> Result<(ExportManifest, LayerSize), SnapshotError> {
        let mut stream = zstd::Decoder::new(stream).map_err(reading)?.single_frame();
        stream.window_log_max(WINDOW_LOG).map_err(reading)?;
        let mut archive = Archive::new(stream, LARGEST).keeping(belongs);
        let manifest = manifest(&mut archive)?;
        self.check_image(&manifest.image)?;
        let range = Range(self.record()?.id_base());
        let size = self.replace(|staged| work::within_quota(|| unpack(archive, staged, range, &self.deadline)))?;
        Ok((manifest, size))
    }
}

fn reading(error: std::io::Error) -> SnapshotError {
    SnapshotError::Reading(error)
}

pub(super) fn manifest(archive: &mut Archive<impl Read>) -> Result<ExportManifest, SnapshotError> {
    let unlike = |path: &[u8], reason| Err(refused(path, reason));
    let Some(mut entry) = archive.next()? else { return unlike(b"", "it is empty") };
    if entry.name != EXPORT_MANIFEST.as_bytes() || entry.kind != Kind::File || entry.size > MANIFEST_BYTES {
        return unlike(&entry.name, "it is not the beginning of an export");
    }
    let mut text = Vec::new();
    entry.content.read_to_end(&mut text).map_err(reading)?;
    // What another format says may not be understood.
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value["format"].as_u64());
    if format != Some(EXPORT_FORMAT.into()) {
        return unlike(
            EXPORT_MANIFEST.as_bytes(),
            "it is of another version of Orrery, whose exports are not known here",
        );
    }
    serde_json::from_slice(&text).or_else(|_| unlike(EXPORT_MANIFEST.as_bytes(), "it makes no sense"))
}

pub(super) fn unpack(
    mut archive: Archive<impl Read>,
    staged: &Path,
    range: Range,
    deadline: &Deadline,
) -> Result<LayerSize, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, staged, flags, Mode::empty()).within("opening", b"")?;
    let mut import = Import {
        range,
        deadline,
        tree: Directories::new(top),
        directories: BTreeMap::new(),
        name_bytes: 0,
        size: LayerSize::default(),
        buffer: vec![0; PIECE],
    };
    while let Some(entry) = archive.next()? {
        deadline.check()?;
        import.entry(entry)?;
    }
    archive.finish()?;
    import.finish()
}

struct Import<'a> {
    range: Range,
    deadline: &'a Deadline,
    tree: Directories,
    /// Given to the directories once all is in them.
    directories: BTreeMap<Vec<u8>, Metadata>,
    name_bytes: usize,
    size: LayerSize,
    buffer: Vec<u8>,
}

impl Import<'_> {
    fn entry(&mut self, entry: Entry<'_, impl Read>) -> Result<(), SnapshotError> {
        let name = entry.name.clone();
        let refuse = |reason| Err(refused(&name, reason));
        if entry.skipped_attributes > 0 {
            return refuse("it has an attribute that no sliver gives");
        }
        let Some(path) = name.strip_prefix(EXPORT_LAYER.as_bytes()) else {
            return refuse("it is outside of the layer");
        };
        let parts = if path.is_empty() { Vec::new() } else { components(path)? };
        let metadata = match entry.kind {
            // These have none of their own.
            Kind::HardLink(_) | Kind::Device(Device::Whiteout) => Metadata::default(),
            _ => {
                let directory = entry.kind == Kind::Directory;
                self.range.outward(entry.metadata.clone(), directory).map_err(|reason| refused(&name, reason))?
            }
        };
        let Some((last, parents)) = parts.split_last() else {
            if entry.kind != Kind::Directory || !self.directories.is_empty() {
                return refuse("the layer does not begin with its top");
            }
            return self.directory(Vec::new(), metadata);
        };
        self.enter(parents, &name)?;
        let parent = self.tree.current().try_clone_to_owned().within("opening", &name)?;
        match &entry.kind {
            Kind::Directory => {
                made(rustix::fs::mkdirat(&parent, *last, Mode::RWXU), &name)?;
                return self.directory(parts.join(&b'/'), metadata);
            }
            Kind::HardLink(target) => return self.link(&parent, last, target, &name),
            Kind::File => self.file(&parent, last, entry, &metadata)?,
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() >= PATH_BYTES || target.contains(&0) {
                    return refuse("the link's target is not a path");
                }
                made(rustix::fs::symlinkat(target.as_slice(), &parent, *last), &name)?;
                own(&parent, last, &metadata, FileType::Symlink).within("finishing", &name)?;
            }
            Kind::Device(Device::Whiteout) => {
                let kind = FileType::CharacterDevice;
                made(rustix::fs::mknodat(&parent, *last, kind, Mode::empty(), 0), &name)?;
            }
            Kind::Device(Device::Fifo) => {
                made(rustix::fs::mknodat(&parent, *last, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0), &name)?;
                own(&parent, last, &metadata, FileType::Fifo).within("finishing", &name)?;
            }
            Kind::Device(Device::Other) => return refuse("it is a device node"),
        }
        self.size.files += 1;
        Ok(())
    }

    /// Goes to a directory that had an entry before.
    fn enter(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), SnapshotError> {
        if !self.directories.contains_key(&parents.join(&b'/')) {
            return Err(refused(name, "it stands before its directory"));
        }
        self.tree.enter(parents)?;
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>, metadata: Metadata) -> Result<(), SnapshotError> {
        let attributes = metadata.attributes.iter().map(|(name, value)| name.len() + value.len());
        self.name_bytes += path.len() + attributes.sum::<usize>();
        if self.name_bytes > NAME_BYTES {
            return Err(refused(&path, "directories have too many names and attributes"));
        }
        self.directories.insert(path, metadata);
        self.size.files += 1;
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        last: &[u8],
        mut entry: Entry<'_, impl Read>,
        metadata: &Metadata,
    ) -> Result<(), SnapshotError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, last, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(made(opened, &entry.name)?);
        loop {
            self.deadline.check()?;
            let got = entry.content.read(&mut self.buffer).map_err(reading)?;
            if got == 0 {
                break;
            }
            put_sparse(&mut file, &self.buffer[..got]).within("writing", &entry.name)?;
        }
        file.set_len(entry.size).within("writing", &entry.name)?;
        let stat = rustix::fs::fstat(&file).within("examining", &entry.name)?;
        // The kernel's unit of space.
        self.size.bytes += entry.size.min(512 * stat.st_blocks.cast_unsigned());
        metadata.apply(&file).within("finishing", &entry.name)
    }

    /// Gives an earlier file a further name.
    fn link(&mut self, parent: &OwnedFd, last: &[u8], target: &[u8], name: &[u8]) -> Result<(), SnapshotError> {
        let path = target.strip_prefix(EXPORT_LAYER.as_bytes());
        let parts = path.ok_or_else(|| refused(name, "it links to what is outside of the layer")).map(components)??;
        let Some((first, parents)) = parts.split_last() else { return Err(refused(name, "it links to a directory")) };
        self.enter(parents, name)?;
        match rustix::fs::linkat(self.tree.current(), *first, parent, last, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(refused(name, "it links to no earlier entry")),
            // What the kernel says of directories.
            Err(Errno::PERM) => Err(refused(name, "it links to a directory")),
            result => made(result, name),
        }
    }

    /// Gives all directories what they have, the deepest first: a parent's time does not change any more then.
    fn finish(mut self) -> Result<LayerSize, SnapshotError> {
        if self.directories.is_empty() {
            return Err(refused(b"", "the layer is missing"));
        }
        for (path, metadata) in std::mem::take(&mut self.directories).iter().rev() {
            let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
            self.tree.enter(&parts)?;
            let directory = self.tree.reopen().within("opening", path)?;
            metadata.apply(directory).within("finishing", path)?;
        }
        Ok(self.size)
    }
}

/// Refuses a second entry of one name.
fn made<T>(result: rustix::io::Result<T>, name: &[u8]) -> Result<T, SnapshotError> {
    match result {
        Err(Errno::EXIST) => Err(refused(name, "it is there twice")),
        result => result.within("making", name),
    }
}
