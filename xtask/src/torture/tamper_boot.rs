//! Torture by tampering, through whole boots: one change to what a node is served or has on its disk, which the node must
//! refuse, or repair, before it boots anything; with the truth back it must come back.
//!
//! A node that was sent a refused script waits up to minutes before it asks again. After the truth is restored its machine is
//! therefore started over where such a wait would follow; that takes no decision from the node.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_qemu::{Pattern, Vm, flip_bit};
use serde::Serialize;
use serde_json::Value;

use super::{Random, Torture};
use crate::{
    command, hash,
    image::Images,
    lab::{Lab, Node, NodeOptions},
    ui,
    workspace::Workspace,
};

/// A machine emulates one processor well; more machines than cores only make each other late.
const AT_ONCE: u32 = 2;
/// From power-on to a refusal, or to a serving node with an installation on the way: what takes longer hangs.
const DECIDED: Duration = Duration::from_secs(400);
/// From serving to what central knows of it.
const REPORTED: Duration = Duration::from_secs(120);
/// How long one run's machine may live.
const MACHINE: Duration = Duration::from_secs(1800);
/// The line that the node OS prints when it serves.
const READY: [&str; 2] = ["orrery[node] +", "s ready"];
/// What PID 1 says before it leaves the medium.
const LEAVING: &str = "chain-booting";
/// Blocks of the file systems.
const BLOCK: usize = 4096;
/// Where the boot partition stands on an installed disk, in bytes.
const BOOT_PARTITION: std::ops::Range<u64> = 1 << 20..513 << 20;
/// Sectors of the emulated disk.
const SECTOR: u64 = 512;
/// What of a GPT header is protected, and its entries, in bytes.
const GPT_HEADER: usize = 92;
const GPT_ENTRIES: usize = 128 * 128;

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// The signed script that central serves.
    Script,
    /// The signed manifest that central serves.
    Manifest,
    /// The index of an image's pieces that central serves.
    ChunkIndex,
    /// A kernel, node OS or image that central serves.
    Artifact,
    /// A kernel, node OS or manifest on the disk.
    Installed,
    /// The last good script on the disk, while central is away.
    KeptScript,
    /// The accepted trust updates on the disk.
    Roots,
    /// The partition table, or both copies of it.
    PartitionTable,
}

const KINDS: [Kind; 8] = [
    Kind::Script,
    Kind::Manifest,
    Kind::ChunkIndex,
    Kind::Artifact,
    Kind::Installed,
    Kind::KeptScript,
    Kind::Roots,
    Kind::PartitionTable,
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Manifest => "manifest",
            Self::ChunkIndex => "chunk-index",
            Self::Artifact => "artifact",
            Self::Installed => "installed",
            Self::KeptScript => "kept-script",
            Self::Roots => "roots",
            Self::PartitionTable => "partition-table",
        }
    }

    /// Whether the node begins with an empty disk.
    fn installs(self) -> bool {
        matches!(self, Self::Manifest | Self::ChunkIndex | Self::Artifact)
    }
}

/// Each kind in turn, from one that the seed chooses: a hundred runs leave none out.
fn kind(seed: u64, run: u32) -> Kind {
    let first = Random::new(seed, 0).below(KINDS.len());
    KINDS[(first + run as usize) % KINDS.len()]
}

/// What came of one run.
#[derive(Debug, Serialize)]
struct Outcome {
    run: u32,
    kind: Kind,
    /// What was changed, and where.
    change: String,
    /// The line on the console by which it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    came_back: bool,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// An installation, whose central can be lied with, and an installed disk to begin with.
struct Stand {
    lab: Lab,
    disk: PathBuf,
    /// The trust update that the disk has accepted.
    update: PathBuf,
}

/// Tampers with whole boots `boots` times, and prints what came of it.
///
/// # Errors
/// A run failed, or an undisturbed node does not come up.
pub(super) fn run(workspace: &Workspace, images: &Images, torture: &Torture, boots: u32) -> Result<()> {
    let folder = workspace.output().join("torture/tamper");
    let next = AtomicU32::new(1);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let work = |number: u32| -> Result<()> {
            let mut stand = Stand::new(&folder.join(format!("lab{number}")), images)?;
            loop {
                let run = next.fetch_add(1, Ordering::Relaxed);
                if run > boots {
                    return Ok(());
                }
                let outcome = stand.run(torture.seed, run);
                tell(&outcome);
                let failed = outcome.error.is_some();
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                // What a failed run left at central must not decide the next one; its evidence stays.
                if failed {
                    stand = Stand::new(&folder.join(format!("lab{number}-after{run}")), images)?;
                }
            }
        };
        let workers: Vec<_> = (1..=AT_ONCE.min(boots)).map(|number| scope.spawn(move || work(number))).collect();
        let ended = workers.into_iter().map(|worker| worker.join().ok().context("a worker panicked")?);
        ended.collect::<Result<Vec<()>>>()
    })?;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.run);
    report(torture, &outcomes)
}

impl Stand {
    /// Installs a node that has obeyed a boot script, and accepted a trust update.
    fn new(folder: &Path, images: &Images) -> Result<Self> {
        let lab = Lab::create(folder, images)?;
        let node = lab.add_node("template", NodeOptions { deadline: MACHINE, ..NodeOptions::default() })?;
        let update = lab.trust_update(&node.config, &[&lab.release_key()], &[])?;
        lab.orrery(["trust", "publish"], [&update])?;
        let mut vm = node.spec.start()?;
        vm.expect("stage install ok", DECIDED)?;
        node.expect_ready(&mut vm, DECIDED)?;
        wait_running(&lab, &node)?;
        // The second boot is the first to obey a script of kind `boot`, and keeps it.
        vm.power_cut();
        vm.start_again()?;
        vm.expect(["stage verify ok", "boot serial"], DECIDED)?;
        node.expect_ready(&mut vm, DECIDED)?;
        vm.power_cut();
        let disk = lab.folder.join("installed.img");
        copy_disk(&node.disk, &disk)?;
        Ok(Self { lab, disk, update })
    }

    fn run(&mut self, seed: u64, run: u32) -> Outcome {
        let kind = kind(seed, run);
        let started = Instant::now();
        let mut outcome =
            Outcome { run, kind, change: String::new(), refused: None, came_back: false, seconds: 0.0, error: None };
        if let Err(error) = self.tamper(&mut Random::new(seed, run), &mut outcome) {
            outcome.error = Some(format!("{error:#}"));
        }
        outcome.seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        outcome
    }

    fn tamper(&mut self, random: &mut Random, outcome: &mut Outcome) -> Result<()> {
        let kind = outcome.kind;
        let id = format!("run{}", outcome.run);
        // A damaged table makes the disk somebody else's, as far as anyone can tell.
        let arguments = if kind == Kind::PartitionTable { vec!["--wipe".into()] } else { Vec::new() };
        let node = self.lab.add_node(&id, NodeOptions { deadline: MACHINE, arguments, ..NodeOptions::default() })?;
        if !kind.installs() {
            copy_disk(&self.disk, &node.disk)?;
            self.lab.orrery(["node", "set-state", "boot", &id], [] as [&Path; 0])?;
        }
        let mut lie = self.lie(kind, &node, random)?;
        outcome.change.clone_from(&lie.what);
        if kind == Kind::KeptScript {
            self.lab.central.stop()?;
        }
        let mut vm = node.spec.start()?;
        let result = self.see_through(&node, &mut vm, &mut lie, outcome);
        if result.is_err() {
            vm.keep_evidence();
            return result;
        }
        drop(vm);
        let folder = node.disk.parent().context("a disk without a folder")?;
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
    }

    /// Sees the change refused, gives the truth back where the node cannot get it by itself, and sees the node come back.
    fn see_through(&mut self, node: &Node, vm: &mut Vm, lie: &mut Lie, outcome: &mut Outcome) -> Result<()> {
        match outcome.kind {
            Kind::Script => {
                outcome.refused = Some(refusal(vm, ["stage verify FAILED", ""])?);
                self.restore(lie)?;
                no_leaving(vm)?;
                start_over(vm)?;
            }
            Kind::Manifest | Kind::ChunkIndex | Kind::Artifact => {
                outcome.refused = Some(refusal(vm, ["stage install FAILED", "tampered"])?);
                no_leaving(vm)?;
                // The same boot tries again within seconds.
                self.restore(lie)?;
                vm.expect("stage install ok", DECIDED)?;
            }
            Kind::Installed => {
                outcome.refused = Some(refusal(vm, ["stage load FAILED", ""])?);
                refusal(vm, ["stage repair ok", ""])?;
            }
            Kind::KeptScript => {
                refusal(vm, ["stage contact ok", "last good script"])?;
                outcome.refused = Some(refusal(vm, ["stage verify FAILED", ""])?);
                no_leaving(vm)?;
                self.lab.central.start()?;
                start_over(vm)?;
            }
            Kind::Roots => {
                // Central still has the truth.
                outcome.refused = Some(refusal(vm, ["leaving the trust updates of the disk", ""])?);
                refusal(vm, ["trust root 1", ""])?;
            }
            Kind::PartitionTable => self.see_table(node, vm, outcome)?,
        }
        // A node that used the backup of its table has been seen serving.
        if outcome.refused.as_deref() != Some(BY_BACKUP) {
            node.expect_ready(vm, DECIDED)?;
        }
        wait_running(&self.lab, node)?;
        outcome.came_back = true;
        Ok(())
    }

    /// With one table left the node may boot by that one; otherwise nothing of the disk, until it is installed anew.
    fn see_table(&self, node: &Node, vm: &mut Vm, outcome: &mut Outcome) -> Result<()> {
        let both = outcome.change.contains("both");
        let found = vm.expect_any([READY, ["stage load FAILED", ""]], DECIDED)?;
        if found.index == 0 {
            ensure!(!both, "the node booted from a disk without a partition table");
            outcome.refused = Some(BY_BACKUP.into());
            return Ok(());
        }
        no_leaving(vm)?;
        outcome.refused = Some(found.line);
        self.lab.orrery(["node", "set-state", "reinstall", &node.id], [] as [&Path; 0])?;
        start_over(vm)?;
        vm.expect("stage install ok", DECIDED).map(drop).map_err(Into::into)
    }

    /// Changes one bit of one thing.
    fn lie(&self, kind: Kind, node: &Node, random: &mut Random) -> Result<Lie> {
        match kind {
            Kind::Script => {
                let truth = self.served_script()?;
                let mut bytes = fs::read(&truth).context("reading the served script")?;
                let (at, bit) = (random.below(bytes.len()), bit(random));
                bytes[at] ^= 1 << bit;
                let lie = truth.with_extension("lie");
                fs::write(&lie, bytes).context("writing a changed script")?;
                self.serve(&lie)?;
                Ok(Lie { what: format!("bit {bit} of byte {at} of the served script"), truth: Truth::Script(truth) })
            }
            Kind::Manifest | Kind::ChunkIndex | Kind::Artifact => {
                let (name, sha256) = self.artifact(kind, random)?;
                let path = self.kept(&sha256);
                let size = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?.len();
                let (at, bit) = (random.below(usize::try_from(size)?) as u64, bit(random));
                flip_bit(&path, at, bit).with_context(|| format!("changing {}", path.display()))?;
                let what = format!("bit {bit} of byte {at} of the served {name}");
                Ok(Lie { what, truth: Truth::Bit(path, at, bit) })
            }
            Kind::Installed => {
                let (name, sha256) = self.artifact(kind, random)?;
                let content = fs::read(self.kept(&sha256)).context("reading an artifact")?;
                change_copies(&node.disk, &content, &name, random)
            }
            Kind::KeptScript => {
                let content = fs::read(self.served_script()?).context("reading the served script")?;
                change_copies(&node.disk, &content, "script", random)
            }
            Kind::Roots => {
                let content = fs::read(&self.update).context("reading the trust update")?;
                change_copies(&node.disk, &content, "trust updates", random)
            }
            Kind::PartitionTable => change_table(&node.disk, random),
        }
    }

    fn restore(&self, lie: &mut Lie) -> Result<()> {
        match &lie.truth {
            Truth::Script(path) => self.serve(path),
            Truth::Bit(path, at, bit) => {
                flip_bit(path, *at, *bit).with_context(|| format!("restoring {}", path.display()))
            }
            Truth::OnDisk => bail!("what stands on a disk is restored by the node"),
        }
    }

    /// Writes the boot script that central serves to a file.
    fn served_script(&self) -> Result<PathBuf> {
        let path = self.lab.folder.join("served-script");
        let path_text = path.display();
        self.lab.central.sql(&format!("SELECT writefile('{path_text}', envelope) FROM scripts WHERE kind = 'boot'"))?;
        Ok(path)
    }

    fn serve(&self, script: &Path) -> Result<()> {
        let script = script.display();
        self.lab.central.sql(&format!("UPDATE scripts SET envelope = readfile('{script}') WHERE kind = 'boot'"))
    }

    fn kept(&self, sha256: &str) -> PathBuf {
        self.lab.central.data().join("artifacts").join(sha256)
    }

    /// One of the release's files of this kind: what it is, and its digest.
    fn artifact(&self, kind: Kind, random: &mut Random) -> Result<(String, String)> {
        let manifest = ("manifest".to_owned(), hash::file(&self.lab.release())?);
        let path = self.lab.folder.join("release/manifest.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let parsed: Value = serde_json::from_slice(&text).context("reading the release manifest")?;
        let artifacts = parsed["artifacts"].as_array().context("a manifest without artifacts")?;
        let named = |artifact: &Value, content: &str| {
            Some((artifact["role"].as_str()?.to_owned(), artifact[content]["sha256"].as_str()?.to_owned()))
        };
        let mut choices: Vec<_> = match kind {
            Kind::ChunkIndex => artifacts.iter().filter_map(|a| named(a, "chunks")).collect(),
            Kind::Artifact => artifacts.iter().filter_map(|a| named(a, "ref")).collect(),
            Kind::Installed => {
                artifacts.iter().filter(|a| a["role"] != "image").filter_map(|a| named(a, "ref")).collect()
            }
            _ => Vec::new(),
        };
        if matches!(kind, Kind::Manifest | Kind::Installed) {
            choices.push(manifest);
        }
        ensure!(!choices.is_empty(), "the release has nothing of kind {}", kind.name());
        Ok(choices.swap_remove(random.below(choices.len())))
    }
}

/// What is said of a damaged partition table whose backup was used.
const BY_BACKUP: &str = "booted by the backup of the partition table";

/// A change, and how it is taken back.
struct Lie {
    what: String,
    truth: Truth,
}

enum Truth {
    /// The script to serve.
    Script(PathBuf),
    /// The bit to invert again.
    Bit(PathBuf, u64, u8),
    /// Nothing: the node gets it from central.
    OnDisk,
}

fn bit(random: &mut Random) -> u8 {
    random.byte() & 7
}

/// Waits for a refusal or what follows it; leaving the medium before is what must not happen.
fn refusal(vm: &mut Vm, refused: [&str; 2]) -> Result<String> {
    let found = vm.expect_any([Pattern::from(refused), Pattern::from(LEAVING)], DECIDED)?;
    ensure!(found.index == 0, "the node went on to boot: {}", found.line);
    Ok(found.line)
}

/// Nothing of this machine has been booted so far.
fn no_leaving(vm: &Vm) -> Result<()> {
    let left = vm.console().lines().into_iter().find(|line| line.text.contains(LEAVING));
    left.map_or(Ok(()), |line| bail!("the node booted what it had refused: {}", line.text))
}

fn start_over(vm: &mut Vm) -> Result<()> {
    vm.power_cut();
    vm.start_again().map_err(Into::into)
}

/// Changes one bit in every copy of `content` on the boot partition of `disk`. Its blocks are recognised by their content, so a
/// block that is one byte over and over is passed by.
fn change_copies(disk: &Path, content: &[u8], name: &str, random: &mut Random) -> Result<Lie> {
    let (at, wanted) = loop {
        let at = random.below(content.len());
        let start = at / BLOCK * BLOCK;
        let mut block = content[start..content.len().min(start + BLOCK)].to_vec();
        // The file system fills the last block with zeros.
        block.resize(BLOCK, 0);
        if block.iter().any(|byte| *byte != block[0]) {
            break (at, block);
        }
    };
    let bit = bit(random);
    let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    let mut chunk = vec![0; 256 * BLOCK];
    let mut copies = 0;
    for start in BOOT_PARTITION.step_by(chunk.len()) {
        file.read_exact_at(&mut chunk, start).with_context(|| format!("reading {}", disk.display()))?;
        for (number, block) in chunk.chunks_exact(BLOCK).enumerate() {
            if block == wanted {
                flip_bit(disk, start + (number * BLOCK + at % BLOCK) as u64, bit).context("changing a disk")?;
                copies += 1;
            }
        }
    }
    ensure!(copies > 0, "no copy of the {name} on {}", disk.display());
    Ok(Lie { what: format!("bit {bit} of byte {at} of the {name} on the disk"), truth: Truth::OnDisk })
}

/// Changes one bit of the partition table's header or entries, or the same of both tables.
fn change_table(disk: &Path, random: &mut Random) -> Result<Lie> {
    let size = fs::metadata(disk).with_context(|| format!("looking at {}", disk.display()))?.len();
    let both = random.below(2) == 1;
    let entries = random.below(2) == 1;
    let (at, bit) = (random.below(if entries { GPT_ENTRIES } else { GPT_HEADER }) as u64, bit(random));
    // Both headers name the same size of entries, which stand behind the first header and before the last.
    let [first, last] = if entries { [2 * SECTOR, size - 33 * SECTOR] } else { [SECTOR, size - SECTOR] };
    for start in [Some(first), both.then_some(last)].into_iter().flatten() {
        flip_bit(disk, start + at, bit).with_context(|| format!("changing {}", disk.display()))?;
    }
    let tables = if both { "both partition tables" } else { "the first partition table" };
    let part = if entries { "entries" } else { "header" };
    Ok(Lie { what: format!("bit {bit} of byte {at} of the {part} of {tables}"), truth: Truth::OnDisk })
}

/// Waits until central has the node running the right release.
fn wait_running(lab: &Lab, node: &Node) -> Result<()> {
    let release = lab.release_name()?;
    node.wait_for(REPORTED, "report of a node OS that runs the right release", || {
        let detail = lab.node_detail(&node.id)?;
        Ok(detail["run_level"] == "running" && detail["status"]["release"] == release.as_str())
    })
}

/// Copies a disk image; what is not written in it takes no room in the copy.
fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    command::output(Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).arg(from).arg(to)).map(drop)
}

fn tell(outcome: &Outcome) {
    let end = match &outcome.error {
        Some(error) => format!("FAILED: {error}"),
        None => format!("refused, and back ({:.1} s)", outcome.seconds),
    };
    ui::say(&format!("run {}", outcome.run), &format!("{}: {end}", outcome.change));
}

/// The figures of one kind.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Figures {
    kind: Kind,
    runs: usize,
    refused: usize,
    came_back: usize,
}

fn figures(kind: Kind, outcomes: &[Outcome]) -> Figures {
    let own = || outcomes.iter().filter(|outcome| outcome.kind == kind);
    Figures {
        kind,
        runs: own().count(),
        refused: own().filter(|outcome| outcome.refused.is_some()).count(),
        came_back: own().filter(|outcome| outcome.came_back).count(),
    }
}

/// Prints a table and a summary line, and writes the JSON file.
fn report(torture: &Torture, outcomes: &[Outcome]) -> Result<()> {
    let figures: Vec<_> = KINDS.iter().map(|kind| figures(*kind, outcomes)).collect();
    println!("kind              runs refused  came back");
    for f in &figures {
        println!("{:<16} {:>5} {:>7} {:>10}", f.kind.name(), f.runs, f.refused, f.came_back);
    }
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
    println!("torture tamper: {} boots, seed {}: {failed} failed", outcomes.len(), torture.seed);
    if let Some(path) = &torture.json {
        let value = serde_json::json!({
            "seed": torture.seed, "boots": outcomes.len(), "failed": failed, "kinds": figures, "outcomes": outcomes,
        });
        let text = serde_json::to_string_pretty(&value).context("writing JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(failed == 0, "{failed} boots failed; their machines are kept in target/orrery/torture/tamper/");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_from_the_seed_and_none_is_left_out() {
        for seed in 0..20 {
            let drawn: Vec<_> = (1..=8).map(|run| kind(seed, run)).collect();
            assert!(KINDS.iter().all(|kind| drawn.contains(kind)), "{seed}: {drawn:?}");
        }
    }

    #[test]
    fn one_bit_of_each_table_is_changed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for run in 0..50 {
            fs::write(&path, vec![0; 1 << 20]).unwrap();
            let lie = change_table(&path, &mut Random::new(1, run)).unwrap();
            let disk = fs::read(&path).unwrap();
            let changed: Vec<_> = (0..disk.len()).filter(|at| disk[*at] != 0).collect();
            assert_eq!(changed.len(), if lie.what.contains("both") { 2 } else { 1 }, "{}", lie.what);
            let protected = if lie.what.contains("entries") { 1024..1024 + GPT_ENTRIES } else { 512..604 };
            assert!(protected.contains(&changed[0]), "{}", lie.what);
        }
    }

    #[test]
    fn every_copy_of_what_is_installed_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        orrery_qemu::create_disk(&path, 514 << 20).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let content: Vec<u8> = (0..5000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for at in [2 << 20, 300 << 20] {
            file.write_all_at(&content, at).unwrap();
        }
        change_copies(&path, &content, "script", &mut Random::new(1, 1)).unwrap();
        let file = File::open(&path).unwrap();
        for at in [2 << 20, 300 << 20] {
            let mut copy = vec![0; content.len()];
            file.read_exact_at(&mut copy, at).unwrap();
            assert_eq!(copy.iter().zip(&content).filter(|(a, b)| a != b).count(), 1);
        }
    }
}
