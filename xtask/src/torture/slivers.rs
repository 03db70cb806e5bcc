//! Interruptions of what a node does with slivers and images: killed node managers, killed gates, power cuts.
//!
//! The work is done by `nodeos/examples/sliver_torture`, the first process of a machine. It kills on its own; when it asks for the
//! power to be cut, QEMU is killed, and the machine started again on the same disk. What happened so far goes with it on a second
//! disk: the lines that it had put on its console.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use orrery_qemu::{BootMedium, Disk, DiskBus, Vm, VmSpec, create_disk};
use serde::{Deserialize, Serialize};

use super::Torture;
use crate::{command, image::Images, scenarios, ui, workspace::Workspace};

/// A machine emulates one processor well; more machines than cores only make each other late.
const AT_ONCE: usize = 2;
/// Interruptions that one machine's disk lives through.
const ON_ONE_DISK: u32 = 20;
/// Of so many the last one is a power cut, the others kill processes.
const IN_ONE_BOOT: u32 = 4;
const DISK_BYTES: u64 = 1 << 30;
/// As a hard disk: operations then spend most of their time in flushes, as they do there, and that is where they are hit.
const DISK_OPERATIONS_PER_SECOND: u32 = 300;
const MEMORY_MIB: u32 = 512;
/// A boot with its interruptions: what takes longer hangs.
const BOOT: Duration = Duration::from_secs(400);
/// All boots of a machine.
const MACHINE: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask torture slivers`.
#[derive(Args)]
pub(crate) struct Slivers {
    /// Only the runs of this machine, to repeat what failed on it
    #[arg(long)]
    machine: Option<u32>,
}

/// An interruption that was survived, as the machine tells of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Survived {
    /// What was hit.
    hit: Hit,
    /// The operations that had begun and were not done.
    under_way: Vec<String>,
    /// Until everything was up and reconciled.
    up_ms: u64,
    /// Until everything was checked then.
    check_ms: u64,
}

/// What was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Hit {
    Manager,
    Gate,
    Node,
    Power,
}

impl Hit {
    const ALL: [Self; 4] = [Self::Manager, Self::Gate, Self::Node, Self::Power];

    fn name(self) -> &'static str {
        match self {
            Self::Manager => "node manager killed",
            Self::Gate => "ssh gate killed",
            Self::Node => "both, with their helpers",
            Self::Power => "power cut",
        }
    }
}

/// What came of one machine.
#[derive(Debug, Serialize)]
struct Outcome {
    machine: u32,
    /// Interruptions that it was to have.
    planned: u32,
    survived: Vec<Survived>,
    /// How many operations were acknowledged.
    acknowledged: usize,
    /// Wishes of central that were interrupted, and then found kept, or never heard of.
    wishes_kept: usize,
    wishes_unheard: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Tortures, and prints what came of it.
///
/// # Errors
/// An interruption was not survived.
pub(super) fn run(workspace: &Workspace, images: &Images, torture: &Torture, options: &Slivers) -> Result<()> {
    let folder = workspace.output().join("torture/slivers");
    let outcomes = machines(images, &folder, torture.runs, torture.seed, options.machine)?;
    report(torture.seed, &outcomes);
    if let Some(path) = &torture.json {
        let value = serde_json::json!({ "seed": torture.seed, "machines": outcomes });
        let text = serde_json::to_string_pretty(&value).context("writing JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    let failed: Vec<String> = outcomes.iter().filter(|o| o.error.is_some()).map(|o| o.machine.to_string()).collect();
    ensure!(
        failed.is_empty(),
        "machines {} failed; disk and console are kept in {}; repeat with --runs {} --seed {} --machine N",
        failed.join(", "),
        folder.display(),
        torture.runs,
        torture.seed
    );
    Ok(())
}

/// A few interruptions, for the tests.
///
/// # Errors
/// One was not survived.
pub(crate) fn some(images: &Images, folder: &Path, runs: u32, seed: u64) -> Result<()> {
    let outcomes = machines(images, folder, runs, seed, None)?;
    report(seed, &outcomes);
    match outcomes.iter().find_map(|outcome| outcome.error.as_ref()) {
        Some(error) => bail!("{error}"),
        None => Ok(()),
    }
}

/// Has all machines, or one of them, go through their interruptions.
fn machines(images: &Images, folder: &Path, runs: u32, seed: u64, only: Option<u32>) -> Result<Vec<Outcome>> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let initramfs = folder.join("initramfs");
    fs::write(&initramfs, scenarios::initramfs_of(&images.vm_tests.join("sliver_torture"))?)
        .with_context(|| format!("writing {}", initramfs.display()))?;
    let count = runs.div_ceil(ON_ONE_DISK);
    let chosen: Vec<u32> = (1..=count).filter(|machine| only.is_none_or(|only| only == *machine)).collect();
    ensure!(!chosen.is_empty(), "{runs} runs take machines 1 to {count}");
    let next = AtomicU32::new(0);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(chosen.len()) {
            scope.spawn(|| {
                while let Some(&machine) = chosen.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let planned = (runs - (machine - 1) * ON_ONE_DISK).min(ON_ONE_DISK);
                    let torment = Torment { images, folder, initramfs: &initramfs, seed, machine };
                    let outcome = torment.run(planned);
                    tell(&outcome);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.machine);
    Ok(outcomes)
}

/// One machine and its disk.
struct Torment<'a> {
    images: &'a Images,
    folder: &'a Path,
    initramfs: &'a Path,
    seed: u64,
    machine: u32,
}

/// What is said on a console.
#[derive(Debug, Default)]
struct Heard {
    /// Events so far, of all boots.
    ledger: Vec<String>,
    survived: Vec<Survived>,
}

impl Torment<'_> {
    fn run(&self, planned: u32) -> Outcome {
        let mut heard = Heard::default();
        let error = self.boots(planned, &mut heard).err().map(|error| format!("{error:#}"));
        let count = |part: &str| heard.ledger.iter().filter(|line| line.contains(part)).count();
        Outcome {
            machine: self.machine,
            planned,
            acknowledged: count("{\"done\""),
            wishes_kept: count("{\"settled\":\"kept\"}"),
            wishes_unheard: count("{\"settled\":\"unheard\"}"),
            survived: heard.survived,
            error,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("machine{}.{name}", self.machine))
    }

    /// All boots, the last one of which ends in order.
    fn boots(&self, planned: u32, heard: &mut Heard) -> Result<()> {
        let (disk, ledger) = (self.file("disk"), self.file("ledger"));
        create_disk(&disk, DISK_BYTES).context("making a disk")?;
        let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota"];
        command::output(Command::new("mke2fs").args(format).arg(&disk))?;
        let mut left = planned;
        let mut boot = 0;
        loop {
            let now = left.min(IN_ONE_BOOT);
            left -= now;
            check_disk(&disk, "-p")?;
            write_ledger(&ledger, &heard.ledger)?;
            self.boot(boot, now, &disk, &ledger, heard)?;
            if now == 0 {
                break;
            }
            boot += 1;
        }
        ensure!(
            heard.survived.len() == planned as usize,
            "{} of {planned} interruptions were told",
            heard.survived.len()
        );
        // Written out, but not unmounted: what counts of it is in the journal still.
        check_disk(&disk, "-p")?;
        check_disk(&disk, "-fn")?;
        fs::remove_file(&disk).and_then(|()| fs::remove_file(&ledger)).context("removing the disks of what went well")
    }

    /// One boot with so many interruptions, the last of which is a power cut.
    fn boot(&self, boot: u32, interruptions: u32, disk: &Path, ledger: &Path, heard: &mut Heard) -> Result<()> {
        let (kills, end) = match interruptions.checked_sub(1) {
            Some(kills) => (kills, "cut"),
            None => (0, "off"),
        };
        let task = format!("torture={},{},{kills},{end}", self.seed, self.machine * 1000 + boot);
        let mut vm = self.spec(boot, &task, disk, ledger).start()?;
        let result = vm.expect_any(["CUT", "END "], BOOT).map(|found| found.line);
        vm.power_cut();
        // Until all that QEMU had said is read.
        let _ = vm.console().expect("\u{0}", Duration::from_secs(10));
        let lines: Vec<String> = vm.console().lines().iter().map(|line| line.text.trim_end().to_owned()).collect();
        let outcome = result.map_err(anyhow::Error::from).and_then(|line| {
            heard.listen(&lines)?;
            let expected = if interruptions == 0 { "END ok" } else { "CUT" };
            ensure!(line.trim_end() == expected, "{line}");
            Ok(())
        });
        outcome.with_context(|| format!("boot {boot}, console in {}", vm.evidence().display())).inspect_err(|_| {
            vm.keep_evidence();
        })
    }

    fn spec(&self, boot: u32, task: &str, disk: &Path, ledger: &Path) -> VmSpec {
        let medium = BootMedium::Kernel {
            kernel: self.images.folder.join("pxe/vmlinuz"),
            initrds: vec![self.initramfs.to_owned()],
            append: format!("console=ttyS0,115200 quiet panic=-1 no_timer_check {task}"),
        };
        Vm::builder(format!("machine{}-boot{boot}", self.machine))
            .boot(medium)
            .memory_mib(MEMORY_MIB)
            .disk(Disk::new(disk, DiskBus::VirtioBlk).operations_per_second(DISK_OPERATIONS_PER_SECOND))
            .disk(Disk::new(ledger, DiskBus::VirtioBlk).readonly())
            .no_network()
            .deadline(MACHINE)
            .evidence_root(self.folder.join("vm"))
    }
}

impl Heard {
    /// Takes up what one boot said. The power may have gone in the middle of the last line.
    fn listen(&mut self, lines: &[String]) -> Result<()> {
        for (number, line) in lines.iter().enumerate() {
            let last = lines[number + 1..].iter().all(String::is_empty);
            if let Some(event) = line.strip_prefix("LEDGER ") {
                match serde_json::from_str::<serde_json::Value>(event) {
                    Ok(_) => self.ledger.push(event.to_owned()),
                    Err(_) if last => {}
                    Err(error) => return Err(error).with_context(|| format!("reading the line {line:?}")),
                }
            } else if let Some(run) = line.strip_prefix("RUN ") {
                self.survived.push(serde_json::from_str(run).with_context(|| format!("reading the line {line:?}"))?);
            }
        }
        Ok(())
    }
}

/// Writes the events where the machine finds them.
fn write_ledger(path: &Path, events: &[String]) -> Result<()> {
    let mut text = events.join("\n").into_bytes();
    // Disks have whole sectors, and at least one.
    text.resize(text.len().next_multiple_of(4096).max(4096), 0);
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Checks a file system: as a node does before it mounts it, with `-p`; or all of it, changing nothing, with `-fn`.
fn check_disk(disk: &Path, how: &str) -> Result<()> {
    let output = Command::new("e2fsck").arg(how).arg(disk).output().context("running e2fsck")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // 1: something was repaired, which is the journal's recovery.
    let good = output.status.code().is_some_and(|code| code == 0 || (code == 1 && how == "-p"));
    ensure!(good, "e2fsck {how} on {}: {}: {said}", disk.display(), output.status);
    Ok(())
}

fn tell(outcome: &Outcome) {
    let end = match &outcome.error {
        Some(error) => format!("FAILED after {} of {}: {error}", outcome.survived.len(), outcome.planned),
        None => format!("{} interruptions survived, {} operations", outcome.survived.len(), outcome.acknowledged),
    };
    ui::say(&format!("machine {}", outcome.machine), &end);
}

/// Prints a table and a summary line.
fn report(seed: u64, outcomes: &[Outcome]) {
    let survived: Vec<&Survived> = outcomes.iter().flat_map(|outcome| &outcome.survived).collect();
    println!("{:<26} {:>8} {:>12} {:>12}", "what was hit", "survived", "under way", "up again");
    for hit in Hit::ALL {
        let own: Vec<&Survived> = survived.iter().filter(|s| s.hit == hit).copied().collect();
        let amid = own.iter().filter(|s| !s.under_way.is_empty()).count();
        let mut up: Vec<u64> = own.iter().map(|s| s.up_ms).collect();
        up.sort_unstable();
        let median = up.get(up.len() / 2).copied().unwrap_or_default();
        println!("{:<26} {:>8} {amid:>12} {median:>9} ms", hit.name(), own.len());
    }
    let sum = |part: fn(&Outcome) -> usize| outcomes.iter().map(part).sum::<usize>();
    let planned: u32 = outcomes.iter().map(|outcome| outcome.planned).sum();
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
    println!(
        "torture slivers: {planned} runs, seed {seed}: {} survived, {failed} machines failed; {} operations acknowledged; \
         of the wishes that were interrupted {} were kept and {} unheard of",
        survived.len(),
        sum(|o| o.acknowledged),
        sum(|o| o.wishes_kept),
        sum(|o| o.wishes_unheard),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_heard_to_the_last_whole_line() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let mut heard = Heard::default();
        let run = r#"RUN {"hit":"power","under_way":["reset"],"up_ms":5,"check_ms":7}"#;
        heard.listen(&lines(&format!("kernel says\nLEDGER {{\"begin\":1}}\n{run}\nCUT\nLEDGER {{\"do"))).unwrap();
        assert_eq!(heard.ledger, ["{\"begin\":1}"]);
        assert_eq!((heard.survived.len(), heard.survived[0].hit), (1, Hit::Power));
        assert!(heard.listen(&lines("LEDGER {\"do\nCUT")).is_err(), "a broken line in the middle");
    }

    #[test]
    fn a_ledger_fills_sectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        write_ledger(&path, &[]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; 4096]);
        write_ledger(&path, &["a".into(), "b".into()]).unwrap();
        let text = fs::read(&path).unwrap();
        assert!(text.starts_with(b"a\nb\0") && text.len() == 4096);
    }
}
