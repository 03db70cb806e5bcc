//! Slivers beside crun, runc, youki and OpenSSH's server, in one machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use orrery_image_builder::cpio::{Node, Writer};
use orrery_qemu::{BootMedium, Disk, DiskBus, Processors, Vm, VmSpec, create_disk};
use serde::{Deserialize, Serialize};

use super::{median, peers};
use crate::{build::reference_image, command, hash, image::Images, setup, ui, workspace::Workspace};

/// The program that measures, of the sliver crate's examples.
const PROGRAM: &str = "sliver_bench";
/// What stands before a figure in its line.
const MARK: &str = "FIGURE ";
/// Whose figures the others' are set against.
const WE: &str = "slivers";
const DEADLINE: Duration = Duration::from_secs(2 * 3600);
const DISK_BYTES: u64 = 8 << 30;
/// The memory of the node of which the aims speak.
const MEMORY_MIB: u32 = 4096;

/// Options of `cargo xtask bench slivers`.
#[derive(Args)]
pub(super) struct Slivers {
    /// Three rounds and 200 slivers: shows that everything works, in a minute or two
    #[arg(long)]
    quick: bool,
    /// Count instructions, each as 2 ns, instead of measuring time, which other programs on this machine take part of
    #[arg(long)]
    count_instructions: bool,
    /// Measure only this part; may be given several times
    #[arg(long, value_name = "PART", value_parser = ["starts", "logins", "caps", "numbers"])]
    only: Vec<String>,
}

/// What somebody showed for something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    what: String,
    who: String,
    unit: String,
    /// One value, or one for each round.
    values: Vec<f64>,
}

/// Measures and prints. One of `runs` is twenty rounds: a tail shows in many only.
pub(super) fn run(
    workspace: &Workspace,
    images: impl FnOnce() -> Result<Images>,
    options: &Slivers,
    runs: usize,
) -> Result<Vec<Shown>> {
    let [rounds, many] = if options.quick { [3, 200] } else { [20 * runs, 10_000] };
    setup::run(workspace)?;
    // First, since they need what `setup` does not install.
    let peers = peers::build(workspace)?;
    let images = images()?;
    ui::say("bench", &format!("beside {}", peers.record.version));
    let folder = workspace.output().join("bench/slivers");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let step = ui::Step::start("bench", &format!("{rounds} rounds, {many} slivers"));
    let archives = [images.folder.join(reference_image::ARCHIVE), peers.folder.join(peers::ARCHIVE)];
    let arguments = format!("{rounds} {many} {}", options.only.join(" "));
    let mut vm = machine(&images, &folder, archives, &arguments, options.count_instructions)?.start()?;
    let end = vm.expect("SLIVER-VM ", DEADLINE)?;
    ensure!(end.line.contains("SLIVER-VM ok"), "{}; its console is {}", end.line, vm.keep_evidence().display());
    let lines = vm.console().lines();
    let figures = lines.iter().filter_map(|line| line.text.strip_prefix(MARK)).map(serde_json::from_str);
    let figures: Vec<Shown> = figures.collect::<Result<_, _>>().context("reading figures")?;
    step.done(&format!("{rounds} rounds, {many} slivers"));
    print!("{}", table(&figures));
    Ok(figures)
}

/// A node of 4 GiB whose first process is the program, with both archives on its disk.
fn machine(images: &Images, folder: &Path, archives: [PathBuf; 2], arguments: &str, counted: bool) -> Result<VmSpec> {
    let initramfs = folder.join("initramfs");
    let mut archive = Writer::new(0);
    ["dev", "proc", "sys", "run", "data", "etc"].iter().for_each(|name| archive.push(name, 0o755, &Node::Directory));
    archive.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
    for (name, program) in [("init", PROGRAM), ("orrery-nodeos", "orrery-nodeos")] {
        let program = images.vm_tests.join(program);
        let content = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        archive.push(name, 0o755, &Node::File(content));
    }
    fs::write(&initramfs, archive.finish()).context("writing the initramfs")?;

    let seed = folder.join("seed");
    let incoming = seed.join("incoming");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    for (name, from) in ["debian", "peers"].into_iter().zip(archives) {
        fs::copy(&from, incoming.join(format!("{name}.tar.zst"))).with_context(|| format!("copying {name}"))?;
        fs::write(incoming.join(format!("{name}.sha256")), hash::file(&from)?).context("writing a digest")?;
    }
    let disk = folder.join("disk.img");
    create_disk(&disk, DISK_BYTES).context("making a disk")?;
    let format = ["-q", "-F", "-t", "ext4", "-O", "project,quota,verity", "-E", "quotatype=prjquota", "-d"];
    command::output(Command::new("mke2fs").args(format).arg(&seed).arg(&disk))?;

    let disk = Disk::new(&disk, DiskBus::VirtioBlk);
    // What the host's disk takes for a flush is not counted.
    let (disk, processors) = if counted { (disk.unflushed(), Processors::Counted) } else { (disk, Processors::AtOnce) };
    let medium = BootMedium::Kernel {
        kernel: images.folder.join("pxe/vmlinuz"),
        initrds: vec![initramfs],
        append: format!("console=ttyS0,115200 quiet panic=-1 -- {arguments}"),
    };
    Ok(Vm::builder("bench-slivers")
        .boot(medium)
        .memory_mib(MEMORY_MIB)
        .processors(processors)
        .disk(disk)
        .no_network()
        .deadline(DEADLINE)
        .evidence_root(folder.join("vm")))
}

/// One line for each figure, those of one thing together. Ratios are of medians, ours to theirs.
fn table(figures: &[Shown]) -> String {
    let ours: BTreeMap<&str, f64> =
        figures.iter().filter(|f| f.who == WE).map(|f| (f.what.as_str(), median(&f.values))).collect();
    let mut text = format!("{:<44} {:<14} {:>12} {:>12} {:>6}  slivers/it\n", "", "", "median", "p99", "n");
    let mut things: Vec<&str> = Vec::new();
    for figure in figures {
        if !things.contains(&figure.what.as_str()) {
            things.push(&figure.what);
        }
    }
    for what in things {
        for figure in figures.iter().filter(|f| f.what == what) {
            let middle = median(&figure.values);
            let tail = match figure.values.len() {
                1 => String::new(),
                _ => format!("{:.2}", percentile(&figure.values, 99)),
            };
            let ratio = ours.get(what).filter(|_| figure.who != WE);
            let ratio = ratio.map(|our| format!("{:.2}", our / middle)).unwrap_or_default();
            text += &format!(
                "{what:<44} {:<14} {middle:>12.2} {tail:>12} {:>6}  {ratio:<6} {}\n",
                figure.who,
                figure.values.len(),
                figure.unit,
            );
        }
    }
    text
}

/// The smallest value that `percent` of all do not exceed.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let check = |values: &[f64], percent, expect: f64| {
            let got = percentile(values, percent);
            assert!((got - expect).abs() < 1e-9, "{got}");
        };
        check(&hundred, 99, 99.0);
        check(&hundred, 100, 100.0);
        check(&hundred[..50], 99, 100.0);
        check(&[7.0], 99, 7.0);
        assert!(percentile(&[], 99).is_nan());
    }

    #[test]
    fn the_table_sets_ours_against_theirs() {
        let shown = |what: &str, who: &str, values: &[f64]| Shown {
            what: what.into(),
            who: who.into(),
            unit: "ms".into(),
            values: values.to_vec(),
        };
        let text =
            table(&[shown("a", "slivers", &[1.0, 2.0, 3.0]), shown("b", "x", &[9.0]), shown("a", "crun", &[8.0])]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["a", "slivers", "2.00", "3.00", "3", "ms"]);
        assert_eq!(words[2], ["a", "crun", "8.00", "1", "0.25", "ms"]);
        assert_eq!(words[3], ["b", "x", "9.00", "1", "ms"]);
    }
}
