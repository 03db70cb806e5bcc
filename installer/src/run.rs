//! The order of things.

use std::path::Path;

use orrery_protocol::{ArtifactRef, DiskRule, MAX_PAYLOAD, ReleaseArtifact, ReleaseManifest, TrustRoot, Waiver};

use crate::{
    choose::choose,
    disk::Disk,
    error::InstallError,
    fetch::{Local, fetch, fetch_bytes, holds, sync_dir},
    hardware::{self, Hardware},
    here::Here,
    installed::{InstalledState, Slot, installed_slot, write_active, write_state},
    layout::{BOOT_BYTES, BOOT_USABLE_BYTES, image_path, images_folder, slot_file},
    leftovers,
    linux::Mounted,
    pieces::{Wanted, fetch_pieces},
    plan::Plan,
    probe::Content,
    source::{Observer, Source},
    trial::{TRIAL_BOOTS, Trial, remove_trial, write_trial},
    unfinished::Unfinished,
};

/// The machine that is installed on.
pub trait Machine {
    /// A mounted file system; unmounted when dropped.
    type Volume: Volume;

    /// All disks, and what they hold.
    ///
    /// # Errors
    /// They cannot be listed.
    fn disks(&mut self) -> Result<Vec<(Disk, Content)>, InstallError>;

    /// Erases, partitions and formats a disk.
    ///
    /// # Errors
    /// Any of it failed; the disk boots nothing then.
    fn prepare(&mut self, disk: &Disk) -> Result<(), InstallError>;

    /// Mounts a prepared disk's boot and data partition.
    ///
    /// # Errors
    /// One cannot be mounted.
    fn mount(&mut self, disk: &Disk) -> Result<(Self::Volume, Self::Volume), InstallError>;

    /// Mounts a disk that was prepared before some power cut, repairing its file systems where that needs nobody's judgement.
    /// `None`: it was not prepared, or is past that.
    fn mount_again(&mut self, disk: &Disk) -> Option<(Self::Volume, Self::Volume)>;
}

/// A mounted file system.
pub trait Volume {
    /// Where.
    fn path(&self) -> &Path;
}

impl Volume for Mounted {
    fn path(&self) -> &Path {
        Self::path(self)
    }
}

/// What is asked for: by a verified boot script and the node's configuration.
#[derive(Debug)]
pub struct Request<'a> {
    /// The release manifest, as the script names it.
    pub release: ArtifactRef,
    /// Whose signatures count.
    pub trust: &'a TrustRoot,
    /// Which disk.
    pub rule: &'a DiskRule,
    /// Whether foreign data may be overwritten.
    pub wipe: bool,
    /// The serial of the script.
    pub serial: u64,
    /// What the disk is to remember.
    pub state: InstalledState,
    /// What the machine has.
    pub hardware: Hardware,
    /// What need not be fulfilled.
    pub waivers: &'a [Waiver],
}

/// Proof that everything of a release is on the disk, verified, and its slot active or on trial.
#[derive(Debug)]
#[must_use]
pub struct Committed {
    release: String,
    slot: Slot,
}

impl Committed {
    /// The release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Where it is.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

/// Installs.
///
/// # Errors
/// [`InstallError`]. Before anything is written, the disk is as it was; after that, it boots nothing.
pub fn install(
    machine: &mut impl Machine,
    source: &dyn Source,
    observer: &dyn Observer,
    request: Request<'_>,
) -> Result<Committed, InstallError> {
    let disks = machine.disks()?;
    let (disk, content) = choose(&disks, request.rule, request.wipe)?;
    // Everything that can be wrong without touching the disk is found out before it is touched.
    let release = Release::fetch(source, observer, &request)?;
    hardware::check(request.hardware, Some(disk.size), &release.manifest.minimum, request.waivers)?;
    let plan = Plan { disk: disk.clone(), content: content.clone(), release: release.manifest.clone() };
    if plan.download_bytes() > disk.size.saturating_sub(BOOT_BYTES) {
        return Err(InstallError::DiskFull { path: disk.path.clone() });
    }
    release.check_slots(observer, &disk.partition(1))?;
    let mark = Unfinished { manifest: request.release.sha256, serial: request.serial };
    let begun = (*content == Content::Ours).then(|| machine.mount_again(disk)).flatten();
    let begun = begun.filter(|(boot, data)| mark.is_on(boot.path(), data.path()));
    let (boot, data) = if let Some(volumes) = begun {
        observer.note(&format!("going on with the installation of release {} on {}", plan.release.release, disk.name));
        volumes
    } else {
        observer.note(&format!("plan: {plan}"));
        machine.prepare(disk)?;
        let volumes = machine.mount(disk)?;
        mark.write(volumes.1.path())?;
        volumes
    };
    let committed = release.write(source, observer, boot.path(), data.path(), request.commit(Slot::A, How::Active))?;
    Unfinished::clear(data.path());
    Ok(committed)
}

/// Writes a release into the slot that is not active, and makes that one active. Data stays.
///
/// # Errors
/// [`InstallError`]. Until all is written, the active slot stays what it was.
pub fn rewrite_slot(
    source: &dyn Source,
    observer: &dyn Observer,
    boot: &Path,
    data: &Path,
    request: Request<'_>,
) -> Result<Committed, InstallError> {
    // A damaged `active` names no slot that would have to be spared.
    let slot = installed_slot(boot).ok().flatten().map_or(Slot::A, Slot::other);
    let release = Release::fetch(source, observer, &request)?;
    hardware::check(request.hardware, None, &release.manifest.minimum, request.waivers)?;
    release.check_slots(observer, boot)?;
    observer.note(&format!("repair: release {} into slot {}", release.manifest.release, slot.as_str()));
    release.write(source, observer, boot, data, request.commit(slot, How::Active))
}

/// Writes a release into the slot that is not active, and arms a trial of it at `now`, in Unix seconds. The active slot and
/// the data stay.
///
/// # Errors
/// [`InstallError`]. There is no trial then.
pub fn try_slot(
    source: &dyn Source,
    observer: &dyn Observer,
    boot: &Path,
    data: &Path,
    request: Request<'_>,
    now: u64,
) -> Result<Committed, InstallError> {
    let slot = installed_slot(boot)?.map_or(Slot::A, Slot::other);
    let release = Release::fetch(source, observer, &request)?;
    hardware::check(request.hardware, None, &release.manifest.minimum, request.waivers)?;
    release.check_slots(observer, boot)?;
    observer.note(&format!("upgrade: release {} into slot {}, on trial", release.manifest.release, slot.as_str()));
    let how = How::Trial { manifest: request.release, serial: request.serial, now };
    release.write(source, observer, boot, data, request.commit(slot, how))
}

impl<'a> Request<'a> {
    fn commit(self, slot: Slot, how: How) -> Commit<'a> {
        Commit { slot, trust: self.trust, state: self.state, how }
    }
}

/// What makes a slot count once it is written.
struct Commit<'a> {
    slot: Slot,
    /// Whose signatures count: for telling which leftovers are still of use.
    trust: &'a TrustRoot,
    /// What the disk is to remember from then on.
    state: InstalledState,
    how: How,
}

/// As what a written slot counts.
enum How {
    /// It becomes the active one.
    Active,
    /// It is tried.
    Trial { manifest: ArtifactRef, serial: u64, now: u64 },
}

impl Commit<'_> {
    /// The one write after which the slot counts.
    fn make(self, boot: &Path, release: &str) -> Result<(), InstallError> {
        let Self { slot, mut state, how, .. } = self;
        match how {
            How::Active => {
                state.release = Some(release.to_owned());
                write_state(boot, &state)?;
                write_active(boot, slot)?;
            }
            How::Trial { manifest, serial, now } => {
                state.failed_trial = None;
                write_state(boot, &state)?;
                let trial = Trial {
                    slot,
                    release: release.to_owned(),
                    manifest: manifest.sha256,
                    serial,
                    boots_left: TRIAL_BOOTS,
                    started: now,
                    reason: None,
                };
                write_trial(boot, &trial)?;
            }
        }
        Ok(())
    }
}

/// A manifest whose signatures were verified, with the envelope that proves it.
struct Release {
    envelope: Vec<u8>,
    manifest: ReleaseManifest,
}

impl Release {
    fn fetch(source: &dyn Source, observer: &dyn Observer, request: &Request<'_>) -> Result<Self, InstallError> {
        // Header and sixteen signatures are far below the other half.
        if request.release.size > 2 * MAX_PAYLOAD as u64 {
            return Err(InstallError::ManifestTooLong(request.release.size));
        }
        let envelope = fetch_bytes(source, observer, &request.release, "release manifest")?;
        let manifest = ReleaseManifest::open(&envelope, request.trust)?;
        Ok(Self { envelope, manifest })
    }

    /// Both slots must be able to hold it, or the first repair would fail.
    fn check_slots(&self, observer: &dyn Observer, boot: &Path) -> Result<(), InstallError> {
        let slot = self.manifest.kernel().content.size.saturating_add(self.manifest.node_os().content.size);
        if slot.saturating_mul(2) <= BOOT_USABLE_BYTES {
            return Ok(());
        }
        let (slot, room) = (slot >> 20, BOOT_USABLE_BYTES >> 20);
        observer
            .note(&format!("kernel and node OS have {slot} MiB; the boot partition holds them twice in {room} MiB"));
        Err(InstallError::DiskFull { path: boot.into() })
    }

    fn write(
        self,
        source: &dyn Source,
        observer: &dyn Observer,
        boot: &Path,
        data: &Path,
        commit: Commit<'_>,
    ) -> Result<Committed, InstallError> {
        let slot = commit.slot;
        // Whatever was on trial in this slot is about to be overwritten.
        remove_trial(boot)?;
        for image in self.manifest.images() {
            let path = image_path(data, &image.content.sha256);
            obtain(source, observer, image, &image.name, &path, (boot, data))?;
        }
        for (name, artifact) in [("kernel", self.manifest.kernel()), ("nodeos", self.manifest.node_os())] {
            let path = slot_file(boot, slot, name);
            let active = slot_file(boot, slot.other(), name);
            if artifact.chunks.is_none() && !holds(&path, &artifact.content) && holds(&active, &artifact.content) {
                kept(observer, &artifact.content, name, &path)?;
                fetch(&Local(&active), observer, &artifact.content, name, &path)?;
                observer.note(&format!("{name}: copied from slot {}", slot.other().as_str()));
                continue;
            }
            obtain(source, observer, artifact, name, &path, (boot, data))?;
        }
        let path = slot_file(boot, slot, "manifest");
        std::fs::write(&path, &self.envelope)
            .and_then(|()| std::fs::File::open(&path)?.sync_all())
            .map_err(|e| InstallError::io("writing", &path, e))?;
        // All names up to the root have to be on the disk before one more name makes them count.
        path.ancestors().skip(1).take_while(|dir| dir.starts_with(boot)).try_for_each(sync_dir)?;
        path_sync(data)?;
        let trust = commit.trust;
        commit.make(boot, &self.manifest.release)?;
        if let Err(error) = leftovers::remove(boot, data, trust) {
            observer.note(&format!("removing reference images that no slot needs: {error}"));
        }
        Ok(Committed { release: self.manifest.release, slot })
    }
}

/// Makes `path` hold `artifact`: as it is, from pieces that are on the disk, or over the network.
fn obtain(
    source: &dyn Source,
    observer: &dyn Observer,
    artifact: &ReleaseArtifact,
    name: &str,
    path: &Path,
    (boot, data): (&Path, &Path),
) -> Result<(), InstallError> {
    let content = artifact.content;
    let Some(chunks) = artifact.chunks else {
        if !kept(observer, &content, name, path)? {
            fetch(source, observer, &content, name, path)?;
        }
        return Ok(());
    };
    if holds(path, &content) {
        return Ok(());
    }
    let here = Here::installed(boot, &images_folder(data));
    let wanted = Wanted { artifact: content, chunks, name, path };
    fetch_pieces(source, observer, &wanted, &here).map(drop)
}

/// Whether `path` holds `content` already. If it holds anything else, that goes: its space is needed, and nothing proven is lost.
fn kept(observer: &dyn Observer, content: &ArtifactRef, name: &str, path: &Path) -> Result<bool, InstallError> {
    if holds(path, content) {
        return Ok(true);
    }
    match std::fs::remove_file(path) {
        Ok(()) => observer.note(&format!("{name}: what is on the disk is not what is wanted")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(InstallError::io("removing", path, e)),
    }
    Ok(false)
}

/// Makes a whole file system reach its disk.
fn path_sync(at: &Path) -> Result<(), InstallError> {
    let sync = || Ok(rustix::fs::syncfs(std::fs::File::open(at)?)?);
    sync().map_err(|e| InstallError::io("writing", at, e))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs, path::PathBuf};

    use orrery_protocol::{ArtifactRole, Digest, MinimumHardware, PayloadType, ScriptKind, SigningKey, sign};

    use super::*;
    use crate::fetch::tests::{Deed, Quiet, Server};

    struct Simulator {
        root: tempfile::TempDir,
        prepared: usize,
    }

    impl Volume for PathBuf {
        fn path(&self) -> &Path {
            self
        }
    }

    impl Machine for Simulator {
        type Volume = PathBuf;

        fn disks(&mut self) -> Result<Vec<(Disk, Content)>, InstallError> {
            let disk = Disk {
                name: "vda".into(),
                path: "/dev/vda".into(),
                model: String::new(),
                serial: "s1".into(),
                wwid: String::new(),
                slot: String::new(),
                size: 8 << 30,
                sector_size: 512,
                removable: false,
                read_only: false,
            };
            let content = if self.prepared > 0 { Content::Ours } else { Content::Blank };
            Ok(vec![(disk, content)])
        }

        fn prepare(&mut self, _: &Disk) -> Result<(), InstallError> {
            self.prepared += 1;
            for dir in ["boot", "data"] {
                let dir = self.root.path().join(dir);
                let _ = fs::remove_dir_all(&dir);
                fs::create_dir(&dir).unwrap();
            }
            Ok(())
        }

        fn mount(&mut self, _: &Disk) -> Result<(PathBuf, PathBuf), InstallError> {
            Ok((self.root.path().join("boot"), self.root.path().join("data")))
        }

        fn mount_again(&mut self, disk: &Disk) -> Option<(PathBuf, PathBuf)> {
            self.root.path().join("data").exists().then(|| self.mount(disk).unwrap())
        }
    }

    struct World {
        server: Server,
        trust: TrustRoot,
        release: ArtifactRef,
    }

    fn world(signer: u8, trusted: u8) -> World {
        world_claiming(signer, trusted, None)
    }

    /// A release whose manifest claims another size of its node OS.
    fn world_claiming(signer: u8, trusted: u8, node_os: Option<u64>) -> World {
        let refer = |bytes: &[u8]| ArtifactRef { sha256: Digest::of(bytes), size: bytes.len() as u64 };
        let contents: [&[u8]; 3] = [b"kernel", b"node os", b"image"];
        let roles = [ArtifactRole::Kernel, ArtifactRole::NodeOs, ArtifactRole::Image];
        let mut artifacts: Vec<_> = roles
            .into_iter()
            .zip(contents)
            .map(|(role, content)| ReleaseArtifact {
                role,
                name: "debian".into(),
                content: refer(content),
                chunks: None,
                listing: None,
            })
            .collect();
        artifacts[1].content.size = node_os.unwrap_or(artifacts[1].content.size);
        let manifest = ReleaseManifest {
            version: 1,
            release: "0.1.0".into(),
            cmdline: "quiet".into(),
            artifacts,
            minimum: MinimumHardware::default(),
        };
        let key = |n| SigningKey::from_scalar(&[n; 32]).unwrap();
        let envelope = sign(PayloadType::ReleaseManifest, &manifest.encode().unwrap(), &[&key(signer)]).unwrap();
        let release = refer(&envelope);
        let mut artifacts: Vec<_> = contents.iter().map(|c| c.to_vec()).collect();
        artifacts.push(envelope);
        let server = Server { artifacts, ..Server::default() };
        World { server, trust: TrustRoot { keys: vec![key(trusted).public()], threshold: 1 }, release }
    }

    impl World {
        /// Signs the release again, with such a minimum.
        fn demand(&mut self, minimum: MinimumHardware) {
            let mut manifest = ReleaseManifest::open(self.server.artifacts.last().unwrap(), &self.trust).unwrap();
            manifest.minimum = minimum;
            let key = SigningKey::from_scalar(&[1; 32]).unwrap();
            let envelope = sign(PayloadType::ReleaseManifest, &manifest.encode().unwrap(), &[&key]).unwrap();
            self.release = ArtifactRef { sha256: Digest::of(&envelope), size: envelope.len() as u64 };
            self.server.artifacts.push(envelope);
        }
    }

    fn request<'a>(world: &'a World, rule: &'a DiskRule) -> Request<'a> {
        let mut state = InstalledState::default();
        state.accept(ScriptKind::Install, 7);
        let hardware = Hardware { memory: 512 << 20, cpus: 1 };
        Request {
            release: world.release,
            trust: &world.trust,
            rule,
            wipe: false,
            serial: 7,
            state,
            hardware,
            waivers: &[],
        }
    }

    #[test]
    fn an_installed_disk_has_everything_and_repair_takes_the_other_slot() {
        let (world, rule) = (world(1, 1), DiskRule::default());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let quiet = Quiet::default();
        let done = install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap();
        assert_eq!((done.release(), done.slot()), ("0.1.0", Slot::A));
        let disk = machine.disks().unwrap()[0].0.clone();
        let (boot, data) = machine.mount(&disk).unwrap();
        assert_eq!(fs::read(slot_file(&boot, Slot::A, "kernel")).unwrap(), b"kernel");
        assert_eq!(fs::read(slot_file(&boot, Slot::A, "nodeos")).unwrap(), b"node os");
        assert_eq!(fs::read(image_path(&data, &Digest::of(b"image"))).unwrap(), b"image");
        let manifest = fs::read(slot_file(&boot, Slot::A, "manifest")).unwrap();
        assert_eq!(ReleaseManifest::open(&manifest, &world.trust).unwrap().release, "0.1.0");
        let repaired = rewrite_slot(&world.server, &quiet, &boot, &data, request(&world, &rule)).unwrap();
        assert_eq!(repaired.slot(), Slot::B);
        assert_eq!(installed_slot(&boot).unwrap(), Some(Slot::B));
    }

    #[test]
    fn a_trial_leaves_the_active_slot_alone_and_a_failed_write_leaves_no_trial() {
        use crate::trial::{Due, Wanted, due, read_trial, wanted};
        let (mut world, rule) = (world(1, 1), DiskRule::default());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let quiet = Quiet::default();
        let _ = install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap();
        let (boot, data) = (machine.root.path().join("boot"), machine.root.path().join("data"));
        let at = |serial| wanted(&boot, &world.release, serial, &world.trust).unwrap();
        assert_eq!(at(1), Wanted::Current { slot: Slot::A, release: "0.1.0".into() });
        // A damaged kernel is not what is wanted.
        fs::write(slot_file(&boot, Slot::A, "kernel"), b"kernal").unwrap();
        assert_eq!(at(1), Wanted::New);

        let asked = Request { serial: 3, ..request(&world, &rule) };
        let done = try_slot(&world.server, &quiet, &boot, &data, asked, 1000).unwrap();
        assert_eq!((done.release(), done.slot()), ("0.1.0", Slot::B));
        assert_eq!(installed_slot(&boot).unwrap(), Some(Slot::A));
        assert_eq!(fs::read(slot_file(&boot, Slot::A, "kernel")).unwrap(), b"kernal");
        let trial = read_trial(&boot).unwrap().unwrap();
        assert_eq!((trial.slot, trial.serial, trial.boots_left, trial.started), (Slot::B, 3, TRIAL_BOOTS, 1000));
        assert_eq!(due(Some(Slot::A), Some(trial.clone())), Due::Trial(trial));

        fs::write(slot_file(&boot, Slot::B, "kernel"), b"kernol").unwrap();
        world.server.deeds =
            RefCell::new([Deed::Serve, Deed::Garble, Deed::Garble, Deed::Garble, Deed::Garble, Deed::Garble].into());
        let asked = Request { serial: 4, ..request(&world, &rule) };
        let again = try_slot(&world.server, &quiet, &boot, &data, asked, 1000);
        assert!(again.is_err());
        assert_eq!(read_trial(&boot).unwrap(), None);
        assert_eq!(installed_slot(&boot).unwrap(), Some(Slot::A));
    }

    /// Damages files of an installed node in place, repairs it, and counts what was downloaded beside the manifest.
    fn check_repair(damaged: &[&str], downloads: usize) {
        let (world, rule) = (world(1, 1), DiskRule::default());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let quiet = Quiet::default();
        let _ = install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap();
        let image = format!("data/images/incoming/{}", Digest::of(b"image"));
        for file in damaged {
            let path = machine.root.path().join(if *file == "image" { &image } else { *file });
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        world.server.requests.borrow_mut().clear();
        let (boot, data) = (machine.root.path().join("boot"), machine.root.path().join("data"));
        let repaired = rewrite_slot(&world.server, &quiet, &boot, &data, request(&world, &rule)).unwrap();
        assert_eq!(repaired.slot(), Slot::B);
        assert_eq!(world.server.requests.borrow().len(), 1 + downloads, "{damaged:?}");
        assert_eq!(fs::read(slot_file(&boot, Slot::B, "kernel")).unwrap(), b"kernel");
        assert_eq!(fs::read(slot_file(&boot, Slot::B, "nodeos")).unwrap(), b"node os");
        assert_eq!(fs::read(machine.root.path().join(image)).unwrap(), b"image");
        assert_eq!(installed_slot(&boot).unwrap(), Some(Slot::B));
    }

    #[test]
    fn a_repair_downloads_what_is_damaged() {
        check_repair(&[], 0);
        check_repair(&["image"], 1);
        check_repair(&["boot/slots/a/kernel"], 1);
        check_repair(&["boot/slots/a/nodeos", "boot/slots/a/manifest"], 1);
        check_repair(&["image", "boot/slots/a/kernel", "boot/slots/a/nodeos"], 3);
    }

    #[test]
    fn a_release_that_does_not_fit_twice_leaves_the_disk_alone() {
        let rule = DiskRule::default();
        for claim in [BOOT_USABLE_BYTES / 2, u64::MAX] {
            let world = world_claiming(1, 1, Some(claim));
            let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
            let error = install(&mut machine, &world.server, &Quiet::default(), request(&world, &rule)).unwrap_err();
            assert!(matches!(error, InstallError::DiskFull { .. }), "{error}");
            assert_eq!(machine.prepared, 0);
        }
    }

    #[test]
    fn an_unsigned_release_leaves_the_disk_alone() {
        let (world, rule) = (world(1, 2), DiskRule::default());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let error = install(&mut machine, &world.server, &Quiet::default(), request(&world, &rule)).unwrap_err();
        assert!(matches!(error, InstallError::Manifest(_)), "{error}");
        assert_eq!(machine.prepared, 0);
    }

    #[test]
    fn a_machine_that_is_too_small_is_left_alone() {
        let (mut world, rule) = (world(1, 1), DiskRule::default());
        let minimum = MinimumHardware { memory: 1 << 30, disk: 16 << 30, cpus: 1 };
        world.demand(minimum);
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let error = install(&mut machine, &world.server, &Quiet::default(), request(&world, &rule)).unwrap_err();
        assert!(matches!(error, InstallError::Hardware(_)), "{error}");
        assert_eq!(machine.prepared, 0);
        let waived = Request { waivers: &[Waiver::MinimumHardware], ..request(&world, &rule) };
        let _ = install(&mut machine, &world.server, &Quiet::default(), waived).unwrap();
    }

    /// An installation whose kernel never arrives, then one by a request with this serial; how often the disk was prepared, and
    /// how many requests the second one made.
    fn check_interrupted(serial: u64) -> (usize, usize) {
        let (world, rule) = (world(1, 1), DiskRule::default());
        *world.server.deeds.borrow_mut() = [Deed::Serve, Deed::Serve, Deed::Garble, Deed::Garble, Deed::Garble].into();
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let quiet = Quiet::default();
        install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap_err();
        world.server.requests.borrow_mut().clear();
        let again = Request { serial, ..request(&world, &rule) };
        let _ = install(&mut machine, &world.server, &quiet, again).unwrap();
        let requests = world.server.requests.borrow().len();
        // What is finished is not gone on with.
        let _ = install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap();
        (machine.prepared, requests)
    }

    #[test]
    fn an_interrupted_installation_goes_on_if_it_is_the_same() {
        // The manifest, the kernel and the node OS; the image is there.
        assert_eq!(check_interrupted(7), (2, 3));
        assert_eq!(check_interrupted(8), (3, 4));
    }

    #[test]
    fn images_of_no_slot_are_removed() {
        let (world, rule) = (world(1, 1), DiskRule::default());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let quiet = Quiet::default();
        let _ = install(&mut machine, &world.server, &quiet, request(&world, &rule)).unwrap();
        let (boot, data) = (machine.root.path().join("boot"), machine.root.path().join("data"));
        let images = images_folder(&data);
        for name in ["old", "old.chunks", "older.part"] {
            fs::write(images.join(name), "x").unwrap();
        }
        let _ = rewrite_slot(&world.server, &quiet, &boot, &data, request(&world, &rule)).unwrap();
        let left: Vec<_> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [image_path(&data, &Digest::of(b"image"))]);
    }

    #[test]
    fn a_half_installed_disk_is_not_installed() {
        let (mut world, rule) = (world(1, 1), DiskRule::default());
        // The manifest and the image arrive, the kernel never does.
        world.server.deeds = RefCell::new([Deed::Serve, Deed::Serve, Deed::Garble, Deed::Garble, Deed::Garble].into());
        let mut machine = Simulator { root: tempfile::tempdir().unwrap(), prepared: 0 };
        let error = install(&mut machine, &world.server, &Quiet::default(), request(&world, &rule)).unwrap_err();
        assert!(matches!(error, InstallError::Mismatch { .. }), "{error}");
        assert_eq!(installed_slot(&machine.root.path().join("boot")).unwrap(), None);
    }
}
