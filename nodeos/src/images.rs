//! Images of slivers: unpacked from the disk, or fetched from central, of which only what is not here moves; and looked after.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orrery_image_store::{Fetched, ImportError, Imported, Store};
use orrery_protocol::{ArtifactRef, Digest, ImageRef, Listing, Outcome};
use orrery_sliver::Record;

use crate::{central::Central, host::report, manager, paths};

/// How large an image may be when unpacked, in bytes: far above any real one, and a bound on what a broken one fills.
const MAX_IMAGE: u64 = 32 << 30;
/// How often images are looked for that nothing needs. The first time is that long after the start, so that nothing which a start
/// has to do first is in the way.
const COLLECT: Duration = Duration::from_secs(60 * 60);
/// After how many times of that all images are read through.
const VERIFY: u32 = 24;
/// Damaged files that an event names.
const NAMED: usize = 5;

/// The images on this node, and where more come from.
#[derive(Debug)]
pub struct Images {
    store: Store,
    incoming: PathBuf,
    central: Arc<Central>,
    /// Held while an image is made available, and while those are removed that nothing needs: what was found to be there stays.
    changing: Mutex<()>,
}

/// An image that was made available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// What is in it.
    pub imported: Imported,
    /// What came over the network for it, in bytes.
    pub moved: u64,
}

impl Images {
    /// The images of the data partition.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn open(central: Arc<Central>) -> Result<Self> {
        Self::at(Path::new(paths::DATA), Path::new(paths::INCOMING), central)
    }

    /// The images in the store `root`. Archives that the installer brought are in `incoming`.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn at(root: &Path, incoming: &Path, central: Arc<Central>) -> Result<Self> {
        let store = Store::open(root).context("opening the image store")?;
        Ok(Self { store, incoming: incoming.to_owned(), central, changing: Mutex::default() })
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Unpacks an image that is on the disk already, so that the first sliver need not wait for it. Failing does no harm: it is
    /// tried again when the image is needed.
    pub fn unpack_ahead(&self, image: &ImageRef) {
        if self.archive(&image.content.sha256).exists()
            && let Err(e) = self.ensure(image)
        {
            tracing::warn!("unpacking image {}: {e:#}", image.name);
        }
    }

    /// Makes sure that an image is unpacked, and tells people if it was not. It stays as long as [`needed`] names it, which it has to
    /// before this is called.
    ///
    /// # Errors
    /// When it can be had neither from the disk nor from central. What has come is kept for the next time.
    pub fn ensure(&self, image: &ImageRef) -> Result<()> {
        let _changing = self.changing();
        if self.store.tree(&image.content.sha256).is_some() {
            return Ok(());
        }
        let (name, started) = (&image.name, Instant::now());
        let brought = self.bring(image);
        let (outcome, message) = match &brought {
            Ok(Brought { imported, moved }) => {
                let (files, mib) = (imported.files, imported.bytes >> 20);
                let fetched = if *moved > 0 { format!(", {} KiB fetched", moved >> 10) } else { String::new() };
                (Outcome::Ok, format!("image {name}: {files} files, {mib} MiB{fetched}"))
            }
            Err(e) => (Outcome::Failed, format!("image {name}: {e:#}")),
        };
        report("image-import", outcome, message, started.elapsed());
        brought.map(drop)
    }

    /// Unpacks an image: from its archive on the disk, or by what is here of it and the rest from central, or from the archive at
    /// central.
    ///
    /// # Errors
    /// As for [`ensure`](Self::ensure).
    pub fn bring(&self, image: &ImageRef) -> Result<Brought> {
        let name = &image.name;
        let from_disk = match self.import_from_disk(&image.content.sha256) {
            Ok(imported) => return Ok(Brought { imported, moved: 0 }),
            Err(e) => e,
        };
        tracing::info!("image {name} is not to be had from the disk: {from_disk:#}");
        let Some(listing) = &image.listing else { return self.whole(&image.content) };
        let received = Cell::new(0);
        match self.by_listing(&image.content, listing, &received, How::IfAbsent) {
            Ok(fetched) => Ok(Brought { imported: fetched.imported, moved: listing.size + received.get() }),
            // The line, most likely: next time it goes on from here.
            Err(e) if received.get() > 0 && matches!(e.downcast_ref(), Some(ImportError::Reading(_))) => Err(e),
            Err(e) if is_final(&e) => Err(e),
            // What brought nothing, or something else, would do so again.
            Err(e) => {
                tracing::warn!("image {name} is not to be had by its listing: {e:#}");
                self.whole(&image.content)
            }
        }
    }

    fn import_from_disk(&self, image: &Digest) -> Result<Imported> {
        let path = self.archive(image);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        self.store.import(file, image, MAX_IMAGE).with_context(|| format!("importing {}", path.display()))
    }

    /// Fetches what lacks. `received` says how many bytes of it came, whatever the outcome.
    fn by_listing(
        &self,
        image: &ArtifactRef,
        listing: &ArtifactRef,
        received: &Cell<u64>,
        how: How,
    ) -> Result<Fetched> {
        anyhow::ensure!(listing.size <= Listing::max_bytes(image.size), "its listing is too long");
        let bytes = self.central.document(listing)?;
        let parsed = Listing::parse(&bytes, image)?;
        let mut supply = |numbers: &[u32]| {
            let stream = self.central.contents(&image.sha256, &listing.sha256, numbers);
            Ok(Box::new(Counted { stream: stream.map_err(io::Error::other)?, received }) as Box<dyn Read>)
        };
        let fetched = match how {
            How::IfAbsent => self.store.fetch(&image.sha256, &parsed, MAX_IMAGE, &mut supply),
            How::Again => self.store.fetch_again(&image.sha256, &parsed, MAX_IMAGE, &mut supply),
        };
        fetched.context("fetching what lacks from central")
    }

    fn whole(&self, image: &ArtifactRef) -> Result<Brought> {
        let stream = self.central.artifact(image)?;
        // Hashed on the way; the tree appears only if it is the right one.
        let imported = self.store.import(stream, &image.sha256, MAX_IMAGE);
        Ok(Brought { imported: imported.context("importing the image from central")?, moved: image.size })
    }

    /// Where the installer and the boot stage put an image's archive.
    fn archive(&self, image: &Digest) -> PathBuf {
        self.incoming.join(image.to_string())
    }

    /// Looks after images, for ever: those that are not `needed` are removed, the others are read through now and then. A damaged
    /// one is mended at rest.
    pub(crate) fn tend(&self, needed: impl Fn() -> Result<Vec<ImageRef>>, at_rest: &AtRest<'_>) -> ! {
        let mut round = 0_u32;
        loop {
            thread::sleep(COLLECT);
            round = round.wrapping_add(1);
            match self.collect(&needed) {
                Ok((gone, needed)) => {
                    for image in gone {
                        let message = format!("image {image} removed: nothing needs it");
                        report("image-import", Outcome::Info, message, Duration::ZERO);
                    }
                    if round.is_multiple_of(VERIFY) {
                        needed.iter().for_each(|image| self.look_after(image, at_rest));
                    }
                }
                Err(e) => tracing::warn!("looking after images: {e:#}"),
            }
        }
    }

    /// Removes the images that are not `needed`, and returns them, and those that are.
    fn collect(&self, needed: impl Fn() -> Result<Vec<ImageRef>>) -> Result<(Vec<Digest>, Vec<ImageRef>)> {
        let _changing = self.changing();
        let needed = needed()?;
        let gone = self.store.retain(|image| needed.iter().any(|needed| needed.content.sha256 == *image))?;
        Ok((gone, needed))
    }

    fn look_after(&self, image: &ImageRef, at_rest: &AtRest<'_>) {
        let (name, started) = (&image.name, Instant::now());
        let (outcome, message) = match self.mend(image, at_rest) {
            Ok(None) => return,
            Ok(Some(Mended { damaged, mended })) => {
                let named: Vec<_> = damaged.iter().take(NAMED).map(|path| path.display().to_string()).collect();
                let fate = if mended { "mended" } else { "to be mended when no sliver runs on it" };
                let (files, named) = (damaged.len(), named.join(", "));
                (Outcome::Failed, format!("image {name}: {files} damaged files ({named}): {fate}"))
            }
            Err(e) => (Outcome::Failed, format!("image {name}: verifying: {e:#}")),
        };
        report("image-import", outcome, message, started.elapsed());
    }

    /// Reads an image through, and mends it if it is damaged and at rest. `None`: all is well, or it is not here.
    ///
    /// # Errors
    /// When it cannot be read, or be mended in no way.
    pub fn mend(&self, image: &ImageRef, at_rest: &AtRest<'_>) -> Result<Option<Mended>> {
        let ImageRef { content, listing, .. } = image;
        if self.store.tree(&content.sha256).is_none() {
            return Ok(None);
        }
        let damaged = self.store.verify(&content.sha256)?;
        if damaged.is_empty() {
            return Ok(None);
        }
        let mended = at_rest(&content.sha256, &|| self.replace(content, listing.as_ref()))?;
        Ok(Some(Mended { damaged, mended }))
    }

    /// Makes the tree of an image anew: from its archive on the disk, which may be damaged like the image, by its listing, or from
    /// the archive at central, each where the one before fails.
    fn replace(&self, image: &ArtifactRef, listing: Option<&ArtifactRef>) -> Result<()> {
        match self.repair_from_disk(&image.sha256) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::info!("image {} is not to be mended from the disk: {e:#}", image.sha256),
        }
        if let Some(listing) = listing {
            match self.by_listing(image, listing, &Cell::new(0), How::Again) {
                Ok(_) => return Ok(()),
                Err(e) if is_final(&e) => return Err(e),
                Err(e) => tracing::warn!("image {} is not to be mended by its listing: {e:#}", image.sha256),
            }
        }
        let stream = self.central.artifact(image)?;
        let repaired = self.store.repair(stream, &image.sha256, MAX_IMAGE);
        repaired.context("importing the image from central")?;
        Ok(())
    }

    fn repair_from_disk(&self, image: &Digest) -> Result<()> {
        let path = self.archive(image);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        self.store.repair(file, image, MAX_IMAGE).with_context(|| format!("importing {}", path.display()))?;
        Ok(())
    }
}

/// Whether an image that cannot be had by its listing cannot be had from its archive either: what is wrong with it is wrong there
/// too, and it takes no less space.
fn is_final(error: &anyhow::Error) -> bool {
    use ImportError::{DiskFull, Hostile, Malformed, NoRoom, Owner};
    let error = error.downcast_ref();
    matches!(error, Some(DiskFull { .. } | NoRoom { .. } | Owner { .. } | Malformed { .. } | Hostile { .. }))
}

/// Does something with an image while no sliver runs on it, and says whether that is so.
pub type AtRest<'a> = dyn Fn(&Digest, &dyn Fn() -> Result<()>) -> Result<bool> + 'a;

/// Whether an image that is here is fetched all the same.
#[derive(Debug, Clone, Copy)]
enum How {
    IfAbsent,
    Again,
}

/// What was found when an image was read through.
#[derive(Debug, PartialEq, Eq)]
pub struct Mended {
    /// Files that were not what they should be, as paths in the image.
    pub damaged: Vec<PathBuf>,
    /// Whether they are now. They are not if something runs on the image.
    pub mended: bool,
}

/// The images of the release that runs, of slivers that are here, and of those that are wanted.
///
/// # Errors
/// When it is not known which those are: nothing may be removed then.
pub(crate) fn needed(release: &[ImageRef], records: &[Record], wanted: &Path) -> Result<Vec<ImageRef>> {
    let mut needed = release.to_vec();
    for record in records {
        let mut image = record.spec.image.clone();
        // What central wants by now may be another than what the sliver started from.
        let started: Digest =
            record.image.parse().with_context(|| format!("reading the record of {}", record.login()))?;
        if image.content.sha256 != started {
            image = ImageRef { content: ArtifactRef { sha256: started, size: 0 }, listing: None, ..image };
        }
        needed.push(image);
    }
    needed.extend(manager::load(wanted)?.into_iter().flat_map(|wanted| wanted.slivers).map(|sliver| sliver.image));
    // The same one may be there with and without what it takes to fetch it.
    needed.sort_by_key(|image| (image.content.sha256.0, image.listing.is_none(), image.content.size == 0));
    needed.dedup_by_key(|image| image.content.sha256);
    Ok(needed)
}

/// Counts what is received.
struct Counted<'a, R> {
    stream: R,
    received: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.received.set(self.received.get() + length as u64);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use orrery_protocol::NodeConfig;

    use super::*;
    use crate::plan::tests::spec;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(rustix::process::geteuid().as_raw().into());
            header.set_gid(rustix::process::getegid().as_raw().into());
            header.set_size(name.len() as u64);
            builder.append_data(&mut header, name, name.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// The images of a node that no central answers, with this archive on the disk.
    fn images(archive: &[u8]) -> (tempfile::TempDir, Images, ImageRef) {
        let folder = tempfile::tempdir().unwrap();
        let config = serde_json::json!({ "central": { "urls": [], "ca": "", "release_keys": [] } });
        let central = Central::new(&serde_json::from_value::<NodeConfig>(config).unwrap()).unwrap();
        let content = ArtifactRef { sha256: Digest::of(archive), size: archive.len() as u64 };
        fs::write(folder.path().join(content.sha256.to_string()), archive).unwrap();
        let images = Images::at(&folder.path().join("store"), folder.path(), Arc::new(central)).unwrap();
        (folder, images, ImageRef { name: "test".to_owned(), content, listing: None })
    }

    #[test]
    fn a_damaged_image_is_mended_when_nothing_runs_on_it() {
        let (_folder, images, image) = images(&archive(&["a", "b"]));
        let mend = |at_rest: bool| {
            let work =
                |_: &Digest, work: &dyn Fn() -> Result<()>| if at_rest { work().map(|()| true) } else { Ok(false) };
            images.mend(&image, &work).unwrap()
        };
        assert_eq!(mend(true), None);
        assert_eq!(images.bring(&image).unwrap().moved, 0);
        assert_eq!(mend(true), None);
        let file = images.store.tree(&image.content.sha256).unwrap().join("a");
        fs::write(&file, "x").unwrap();
        let damaged = vec![PathBuf::from("a")];
        assert_eq!(mend(false), Some(Mended { damaged: damaged.clone(), mended: false }));
        assert_eq!(mend(true), Some(Mended { damaged, mended: true }));
        assert_eq!(fs::read_to_string(file).unwrap(), "a");
        assert_eq!(mend(true), None);
    }

    #[test]
    fn only_images_that_something_needs_are_kept() {
        let (folder, images, image) = images(&archive(&["a"]));
        images.bring(&image).unwrap();
        let wanted = folder.path().join("wanted.json");
        let sliver = |image: &ImageRef| {
            let mut spec = spec("one", 1, 100);
            spec.image = image.clone();
            spec
        };
        let (other, older) = (spec("one", 7, 100).image, Digest([8; 32]));
        let record = |image: &Digest| Record { index: 0, image: image.to_string(), spec: sliver(&other) };
        let digests = |needed: Vec<ImageRef>| needed.into_iter().map(|image| image.content.sha256).collect::<Vec<_>>();
        assert!(needed(&[], &[], &wanted).unwrap().is_empty());
        assert_eq!(digests(needed(&[], &[record(&older)], &wanted).unwrap()), [older]);
        fs::write(&wanted, serde_json::json!({ "slivers": [sliver(&image)] }).to_string()).unwrap();
        let all = needed(&[image.clone(), other.clone()], &[record(&other.content.sha256)], &wanted).unwrap();
        assert_eq!(all.len(), 2);
        let gone = |needed: &[ImageRef]| images.collect(|| Ok(needed.to_vec())).unwrap().0;
        assert_eq!(gone(&all), []);
        // What is not understood is no reason to remove anything.
        fs::write(&wanted, "{").unwrap();
        needed(&[], &[], &wanted).unwrap_err();
        let no_image = Record { image: "?".to_owned(), ..record(&older) };
        needed(&[], &[no_image], Path::new("/nonexistent")).unwrap_err();
        assert_eq!(gone(&[other]), [image.content.sha256]);
    }
}
