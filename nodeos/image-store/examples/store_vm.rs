//! Tries what a store asks of the file system on a real kernel: the first process of a virtual machine, which powers off in the end.
//!
//! Built static, it is `/init` of an initramfs with empty /dev, /proc, /with and /without. The first virtio disk is an ext4 file
//! system with fs-verity, the second one without. Each check prints one line, the last is `SLIVER-VM ok` or `SLIVER-VM FAILED`.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use orrery_image_store::{SEALED_FROM, Store};
use orrery_protocol::Digest;
use orrery_sys::verity::enable_verity;
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

const LIMIT: u64 = 1 << 30;
const WITH: &str = "/with";
const WITHOUT: &str = "/without";
/// What stands in the middle of one file.
const MARK: &[u8] = b"here the disk is going to rot";
const MARK_AT: usize = 100_000;
/// The smallest block of a file system.
const BLOCK: usize = 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => println!("SLIVER-VM ok"),
        Err(error) => println!("SLIVER-VM FAILED {error:#}"),
    }
    rustix::fs::sync();
    // Without it the machine's deadline ends it.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let none = MountFlags::empty();
    // The kernel may have mounted /dev already.
    let _ = mount("dev", "/dev", "devtmpfs", none, None);
    mount("proc", "/proc", "proc", none, None).context("mounting /proc")?;
    mount("/dev/vda", WITH, "ext4", none, None).context("mounting the disk with verity")?;
    mount("/dev/vdb", WITHOUT, "ext4", none, None).context("mounting the disk without")?;
    for (root, sealed) in [(WITH, true), (WITHOUT, false)] {
        contents_are_final(Path::new(root), sealed).with_context(|| format!("on {root}"))?;
    }
    println!("ok objects cannot be written to where the file system sees to it");
    rot_is_an_error_and_is_mended()?;
    println!("ok a rotten block is an error, found and mended");
    for size in [4 << 10, 16 << 10, 64 << 10, 256 << 10] {
        cost(size)?;
    }
    Ok(())
}

fn archive(version: u64) -> Result<Vec<u8>> {
    let mut large: Vec<u8> = (0..200_000_u64).map(|at| (at.wrapping_mul(at ^ version) >> 7) as u8).collect();
    large[MARK_AT..MARK_AT + MARK.len()].copy_from_slice(MARK);
    let mut builder = tar::Builder::new(Vec::new());
    let threshold = vec![7; SEALED_FROM as usize];
    let files: [(&str, &[u8]); 4] =
        [("large", &large), ("small", b"small"), ("last", &threshold[1..]), ("first", &threshold)];
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4755);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content)?;
    }
    Ok(builder.into_inner()?)
}

fn contents_are_final(root: &Path, seals: bool) -> Result<()> {
    let store = Store::open(root)?;
    let archive = archive(0)?;
    let image = Digest::of(&archive);
    store.import(archive.as_slice(), &image, LIMIT)?;
    let tree = store.tree(&image).context("no tree")?;
    for (name, sealed) in [("large", seals), ("first", seals), ("last", false), ("small", false)] {
        let path = tree.join(name);
        let refused =
            File::options().write(true).open(&path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        ensure!(refused == sealed, "{name}: writing is refused: {refused}");
        let stat = fs::metadata(&path)?;
        ensure!((stat.mode() & 0o7777, stat.uid(), stat.mtime()) == (0o4755, 5, 1_600_000_000), "{name}: {stat:?}");
    }
    ensure!(store.verify(&image)?.is_empty(), "what was imported is not what it is to be");
    // The objects of another version, of which one is the same, and then nothing.
    let other = self::archive(1)?;
    ensure!(store.import(other.as_slice(), &Digest::of(&other), LIMIT)?.shared == 3);
    store.retain(|_| false)?;
    ensure!(fs::read_dir(root.join("trees"))?.count() == 0);
    Ok(())
}

fn rot_is_an_error_and_is_mended() -> Result<()> {
    let store = Store::open(Path::new(WITH))?;
    let archive = archive(0)?;
    let image = Digest::of(&archive);
    store.import(archive.as_slice(), &image, LIMIT)?;
    let file = store.tree(&image).context("no tree")?.join("large");
    let good = fs::read(&file)?;
    // The kernel keeps everybody from a disk that is mounted.
    unmount(WITH, UnmountFlags::empty()).context("unmounting the disk")?;
    rot()?;
    mount("/dev/vda", WITH, "ext4", MountFlags::empty(), None).context("mounting the disk again")?;
    let mut file = File::open(&file)?;
    let error = file.read_to_end(&mut Vec::new()).err().context("a rotten block was read")?;
    ensure!(Errno::from_io_error(&error) == Some(Errno::IO), "{error}");
    ensure!(store.verify(&image)? == [Path::new("large")], "the damage was not found");
    ensure!(store.repair(archive.as_slice(), &image, LIMIT)?.shared == 3);
    ensure!(store.verify(&image)?.is_empty(), "it was not mended");
    let mended = fs::read(store.tree(&image).context("no tree")?.join("large"))?;
    ensure!(mended == good, "it was mended with something else");
    Ok(())
}

/// Changes a byte wherever [`MARK`] stands on the disk: files that were removed had it, too.
fn rot() -> Result<()> {
    let disk = File::options().read(true).write(true).open("/dev/vda").context("opening the disk")?;
    let mut piece = vec![0; 1 << 20];
    let mut found = 0;
    for at in (0..).step_by(piece.len()) {
        if disk.read_at(&mut piece, at)? < piece.len() {
            break;
        }
        // Files begin with a block.
        let places = (MARK_AT % BLOCK..piece.len()).step_by(BLOCK);
        for place in places.filter(|place| piece[*place..].starts_with(MARK)) {
            disk.write_all_at(b"H", at + place as u64)?;
            found += 1;
        }
    }
    ensure!(found > 0, "the file's content is not on the disk");
    Ok(disk.sync_all()?)
}

/// Writes files of a size with and without, and says what each costs.
fn cost(size: usize) -> Result<()> {
    const FILES: u32 = 100;
    let content: Vec<u8> = (0..size).map(|at| ((at * at) >> 5) as u8).collect();
    for sealed in [false, true] {
        let folder = Path::new(WITH).join(format!("cost-{size}-{sealed}"));
        fs::create_dir(&folder)?;
        rustix::fs::sync();
        let start = Instant::now();
        for number in 0..FILES {
            let path = folder.join(number.to_string());
            fs::write(&path, &content)?;
            if sealed {
                ensure!(enable_verity(File::open(&path)?.as_fd())?, "no verity here");
            }
        }
        rustix::fs::sync();
        let took = start.elapsed() / FILES;
        let bytes: u64 = fs::read_dir(&folder)?.map(|e| Ok(e?.metadata()?.blocks() * 512)).sum::<io::Result<u64>>()?;
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
        let start = Instant::now();
        for number in 0..FILES {
            ensure!(fs::read(folder.join(number.to_string()))?.len() == size);
        }
        let read = start.elapsed() / FILES;
        let each = bytes / u64::from(FILES);
        println!("cost: {size} bytes, sealed {sealed}: {took:?} to write, {read:?} to read, {each} bytes on the disk");
    }
    Ok(())
}
