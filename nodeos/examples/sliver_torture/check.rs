//! What must be true whenever everything stands still: all that was acknowledged is in force, and nothing else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_image_store::Store;
use orrery_init_api::SLIVERS_CGROUP;
use orrery_nodeos::paths;
use orrery_sliver::Record;
use orrery_sys::quota;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    process::Pid,
};

use crate::{
    driver::LOG,
    machine::TREE_FILES,
    model::{Model, Presence},
    operations::{content, sliver},
    worker::FILES,
};

/// What was killed may take so long to be gone.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);
/// Where slivers' locks and notes are.
const RUN: &str = "/run/slivers";
/// What stands in a sliver's directory.
const PARTS: [&str; 3] = ["sliver.json", "upper", "work"];
/// What may be on the data partition.
const TOP: [&str; 8] = ["fetched", "images", "lost+found", "objects", "slivers", "state", "tmp", "trees"];
/// What the kernel says when it is at fault.
const TROUBLE: [&str; 5] = ["EXT4-fs error", "EXT4-fs warning", "BUG: ", "WARNING: ", "Oops"];

/// What there was before the node's processes.
pub(crate) struct Baseline {
    mounts: String,
}

impl Baseline {
    pub(crate) fn take() -> Result<Self> {
        Ok(Self { mounts: mounts()? })
    }
}

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("listing mounts")
}

/// Looks at everything, until it is right. `own` are the node's processes, `reap` is called before each look.
pub(crate) fn everything(model: &Model, baseline: &Baseline, own: &[Pid], reap: fn()) -> Result<()> {
    let started = Instant::now();
    loop {
        reap();
        match look(model, baseline, own) {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            // Helpers of who was killed are about to end.
            Err(_) => thread::sleep(POLL),
        }
    }
}

fn look(model: &Model, baseline: &Baseline, own: &[Pid]) -> Result<()> {
    let logins = model.logins();
    let now = mounts()?;
    ensure!(now == baseline.mounts, "mounts were {} and are {now}", baseline.mounts);
    let records = directories(model, &logins)?;
    quotas(&records)?;
    groups(&records)?;
    processes(&logins, own)?;
    locks()?;
    files(model, &logins)?;
    store(model)?;
    complaints()
}

/// Nothing went wrong in the kernel, nor by what the node's processes say.
fn complaints() -> Result<()> {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    let complaint = log.lines().find(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    ensure!(complaint.is_none(), "the node complains: {complaint:?}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut messages = File::from(rustix::fs::open("/dev/kmsg", flags, Mode::empty()).context("opening /dev/kmsg")?);
    let mut buffer = [0; 8192];
    loop {
        match messages.read(&mut buffer) {
            Ok(length) => {
                let message = String::from_utf8_lossy(&buffer[..length]);
                ensure!(!TROUBLE.iter().any(|word| message.contains(word)), "the kernel says {message}");
            }
            // Overwritten meanwhile: there is a next one.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading the kernel's messages"),
        }
    }
}

/// The names in a directory, none if it is not there.
fn names(path: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Directories on the disk and in memory, with the records in them.
fn directories(model: &Model, logins: &BTreeMap<String, usize>) -> Result<BTreeMap<String, Record>> {
    let top = names(paths::DATA);
    ensure!(top.iter().all(|name| TOP.contains(&name.as_str())), "on the data partition there are {top:?}");
    let home = Path::new(paths::DATA).join("slivers");
    let there = names(&home);
    ensure!(there.iter().eq(logins.keys()), "the directories of slivers are {there:?}, not {:?}", logins.keys());
    let folders: Vec<_> = names(RUN).into_iter().filter(|name| Path::new(RUN).join(name).is_dir()).collect();
    ensure!(folders.is_empty(), "{RUN} has {folders:?}");

    let mut records = BTreeMap::new();
    for (login, slot) in logins {
        // A record that was about to be replaced is left beside it, and taken by the next one.
        let parts: BTreeSet<_> = names(home.join(login)).into_iter().filter(|name| name != "sliver.json.new").collect();
        ensure!(parts.iter().eq(&PARTS), "{login} has {parts:?}");
        let text =
            fs::read(home.join(login).join(PARTS[0])).with_context(|| format!("reading the record of {login}"))?;
        let record: Record = serde_json::from_slice(&text).with_context(|| format!("parsing the record of {login}"))?;
        let wanted = sliver(&model.wanted, *slot).context("a sliver that nobody wants")?;
        ensure!(record.spec == *wanted, "{login} is {:?}, not {wanted:?}", record.spec);
        ensure!(record.image == wanted.image.content.sha256.to_string(), "{login} is of {}", record.image);
        records.insert(login.clone(), record);
    }
    let numbers: BTreeSet<u32> = records.values().map(|record| record.index).collect();
    ensure!(numbers.len() == records.len(), "two slivers have the same number");
    Ok(records)
}

/// Limits of disk space.
fn quotas(records: &BTreeMap<String, Record>) -> Result<()> {
    let data = File::open(paths::DATA)?;
    let mut projects: BTreeMap<u32, quota::Project> =
        quota::projects(data.as_fd())?.into_iter().map(|project| (project.id, project)).collect();
    for (login, record) in records {
        let project = projects.remove(&(record.index + 1)).with_context(|| format!("{login} has no project"))?;
        let limit = record.spec.rspec.disk_quota;
        ensure!(project.limit.bytes == limit, "{login} may take {:?}, not {limit} bytes", project.limit);
        ensure!(project.limit.inodes >= 64, "{login} may take {:?}", project.limit);
    }
    // Everything else on the disk is in project 0.
    projects.retain(|id, project| *id != 0 && *project != quota::Project { id: *id, ..quota::Project::default() });
    ensure!(projects.is_empty(), "projects of no sliver are in use: {projects:?}");
    Ok(())
}

/// Control groups, with limits and suspensions.
fn groups(records: &BTreeMap<String, Record>) -> Result<()> {
    let home = Path::new(SLIVERS_CGROUP);
    for login in names(home).into_iter().filter(|name| home.join(name).is_dir()) {
        let record = records.get(&login).with_context(|| format!("the control group {login} is of no sliver"))?;
        let group = home.join(&login);
        let value = |name: &str| -> Result<String> {
            let text = fs::read_to_string(group.join(name)).with_context(|| format!("reading {name} of {login}"))?;
            Ok(text.trim().to_owned())
        };
        ensure!(!value("init/cgroup.procs")?.is_empty(), "the control group {login} has no first process");
        let rspec = record.spec.rspec;
        for (name, limit) in [
            ("cpu.weight", u64::from(rspec.cpu_share)),
            ("memory.max", rspec.mem_limit),
            ("pids.max", rspec.pids_limit.into()),
        ] {
            let now = value(name)?;
            ensure!(now == limit.to_string(), "{name} of {login} is {now}, not {limit}");
        }
        let suspended = record.spec.life.suspended.is_some();
        let frozen = value("cgroup.events")?.lines().any(|line| line == "frozen 1");
        ensure!(frozen == suspended, "{login} is suspended: {suspended}, and stands still: {frozen}");
    }
    Ok(())
}

/// Of a process, if it is still there.
fn parent(name: &str) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{name}/status")).ok()?;
    let number = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(number.trim().parse().ok()?)
}

/// Every process is the node's, the kernel's, or in a sliver's group.
fn processes(logins: &BTreeMap<String, usize>, own: &[Pid]) -> Result<()> {
    for name in names("/proc") {
        let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
        // Ended meanwhile.
        let Ok(group) = fs::read_to_string(format!("/proc/{name}/cgroup")) else { continue };
        // Threads of the kernel have no program.
        let kernels = fs::read_link(format!("/proc/{name}/exe")).is_err()
            && fs::read_to_string(format!("/proc/{name}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        let group = group.trim().trim_start_matches("0::/");
        let slivers = group.strip_prefix("slivers/").and_then(|rest| rest.split('/').next());
        if pid != Pid::INIT && !own.contains(&pid) && !kernels && !slivers.is_some_and(|s| logins.contains_key(s)) {
            let words = fs::read_to_string(format!("/proc/{name}/cmdline")).unwrap_or_default().replace('\0', " ");
            // What starts slivers for one of the node's processes lives as long as that.
            if words.contains("sliver-boot") && parent(&name).is_some_and(|parent| own.contains(&parent)) {
                continue;
            }
            bail!("process {name} ({words}) in the group {group:?} is nobody's");
        }
    }
    Ok(())
}

/// Nobody holds a lock.
fn locks() -> Result<()> {
    let locks = names(RUN).into_iter().filter(|name| name.ends_with(".lock")).map(|name| Path::new(RUN).join(name));
    for path in locks.chain([paths::DATA.into()]) {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let free = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        free.with_context(|| format!("{} is locked", path.display()))?;
    }
    Ok(())
}

/// What users wrote.
fn files(model: &Model, logins: &BTreeMap<String, usize>) -> Result<()> {
    for (login, slot) in logins {
        let directory = Path::new(paths::DATA).join("slivers").join(login).join("upper").join(FILES);
        let there = names(&directory);
        for name in &there {
            let known = name.parse().is_ok_and(|number: u32| model.files[*slot].contains_key(&number));
            ensure!(known, "file {name} of {login} should be gone");
        }
        for number in model.sure_files(*slot) {
            let path = directory.join(number.to_string());
            let good = fs::read(&path).is_ok_and(|text| text == content(number));
            ensure!(good, "file {number} of {login}, which was flushed, is damaged or missing; there are {there:?}");
        }
    }
    Ok(())
}

/// Images are whole or not there, and every object is of one.
fn store(model: &Model) -> Result<()> {
    let root = Path::new(paths::DATA);
    let left = names(root.join("tmp"));
    ensure!(left.is_empty(), "the image store left {left:?}");
    let trees = names(root.join("trees"));
    let mut needed = BTreeSet::new();
    for (image, presence) in model.images.iter().zip(&model.presence) {
        let name = image.content.sha256.to_string();
        let there = trees.contains(&name);
        let right = if there { Presence::Present } else { Presence::Absent };
        ensure!(*presence == right || *presence == Presence::Either, "{} is there: {there}", image.name);
        if there {
            let files = regular_files(&root.join("trees").join(&name))?;
            ensure!(files.len() == TREE_FILES, "{} has {} files", image.name, files.len());
            needed.extend(files);
        }
    }
    let known: BTreeSet<String> = model.images.iter().map(|image| image.content.sha256.to_string()).collect();
    ensure!(trees.is_subset(&known), "there are the trees {trees:?}");
    let objects = regular_files(&root.join("objects"))?;
    ensure!(objects == needed, "{} objects, {} needed", objects.len(), needed.len());
    Ok(())
}

/// The regular files below a directory, by number of their inode.
fn regular_files(directory: &Path) -> Result<BTreeSet<u64>> {
    let mut pending = vec![directory.to_owned()];
    let mut found = BTreeSet::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                found.insert(entry.metadata()?.ino());
            }
        }
    }
    Ok(found)
}

/// Reads every image again.
pub(crate) fn images() -> Result<()> {
    let store = Store::open(Path::new(paths::DATA))?;
    for image in store.images()? {
        let damaged = store.verify(&image)?;
        ensure!(damaged.is_empty(), "of {image}, {damaged:?} are damaged");
    }
    Ok(())
}
