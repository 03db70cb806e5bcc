//! How long a node takes to come back, and how fast it installs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{BootMedium, Line, Processors, Vm};

use super::{Figures, copy};
use crate::{
    image::Images,
    lab::{Lab, NodeOptions, Timeline},
    ui,
    workspace::Workspace,
};

const DEADLINE: Duration = Duration::from_secs(600);
/// What the empty init prints.
const FLOOR_LINE: &str = "orrery-floor";

/// Measures and prints.
///
/// - *floor*: the same kernel, loaded by QEMU, with an empty init; two of those are what a chain-boot cannot do without.
/// - *chain-boot*: from VM start by the medium as a CD under BIOS to the node OS serving.
/// - *install stage*: bytes of all artifacts over the time of the stage, which also partitions and makes file systems.
/// - *install: downloads alone*: the same bytes over the time the console says the downloads took, which leaves out each
///   file's first chunk and last sync: a bound from above.
/// - *install: first download to end of stage*: the same bytes, with all syncs and what follows them.
/// - *plain copy*: the same bytes over HTTP to a file on the same kind of disk in the same kind of VM, with busybox.
pub(super) fn run(workspace: &Workspace, images: &Images, runs: usize) -> Result<Vec<Figures>> {
    let folder = workspace.output().join("bench");
    let lab = Lab::create(&folder.join("lab"), images)?;
    let mut floor = Vec::new();
    let mut chain = Vec::new();
    let mut install = Vec::new();
    let mut download = Vec::new();
    let mut synced = Vec::new();
    let mut plain = Vec::new();
    let artifacts = ["node-os/kernel", "node-os/nodeos.img", "debian.tar.zst"].map(|file| images.folder.join(file));
    let bytes = total_bytes(&artifacts)?;
    for round in 1..=runs {
        let step = ui::Step::start("bench", &format!("round {round} of {runs}: floor"));
        floor.push(bare_boot(images, &folder)?);
        step.now(&format!("round {round} of {runs}: install"));
        let node = lab.add_node(&format!("n{round}"), NodeOptions::default())?;
        let mut vm = node.spec.clone().processors(Processors::AtOnce).start()?;
        node.expect_ready(&mut vm, DEADLINE)?;
        let lines = vm.console().lines();
        let timeline = Timeline::read(1, Duration::ZERO, &lines);
        let stage = timeline.stages.iter().find(|s| s.stage == "install").context("no install stage on the console")?;
        install.push(megabytes(bytes) / stage.duration_s);
        let (alone, to_end) = download_seconds(&lines, artifacts.len())?;
        download.push(megabytes(bytes) / alone);
        synced.push(megabytes(bytes) / to_end);
        step.now(&format!("round {round} of {runs}: chain-boot"));
        vm.power_cut();
        vm.start_again()?;
        let power_on = vm.console().elapsed();
        let ready = node.expect_ready(&mut vm, DEADLINE)?;
        chain.push((ready - power_on).as_secs_f64());
        drop(vm);
        fs::remove_file(&node.disk).context("removing a disk")?;
        step.now(&format!("round {round} of {runs}: plain copy"));
        plain.push(megabytes(bytes) / copy::plain_copy(&lab, &format!("p{round}"), &artifacts, bytes)?);
        step.done(&format!("round {round} of {runs}"));
    }
    let figures = vec![
        Figures::new("bare boot to an empty init (floor)", "s", floor),
        Figures::new("chain-boot: VM start to node OS ready", "s", chain),
        Figures::new("install stage", "MB/s", install),
        Figures::new("install: downloads alone", "MB/s", download),
        Figures::new("install: first download to end of stage", "MB/s", synced),
        Figures::new("plain copy of the same bytes, and sync", "MB/s", plain),
    ];
    figures.iter().for_each(Figures::print);
    let [floor, chain, install, download, synced, plain] = [0, 1, 2, 3, 4, 5].map(|n: usize| figures[n].median);
    println!("chain-boot / two bare boots: {:.2}", chain / (2.0 * floor));
    println!("install stage / plain copy: {:.2}", install / plain);
    println!("install from first download to end of stage / plain copy: {:.2}", synced / plain);
    println!("install's downloads alone / plain copy: {:.2}", download / plain);
    Ok(figures)
}

/// One boot of our kernel by QEMU itself, until an init that does nothing else has printed a line.
fn bare_boot(images: &Images, folder: &Path) -> Result<f64> {
    let medium = BootMedium::Kernel {
        kernel: images.folder.join("pxe/vmlinuz"),
        initrds: vec![images.folder.join("pxe/initramfs")],
        append: format!("console=ttyS0,115200 quiet panic=-1 rdinit=/bin/busybox -- echo {FLOOR_LINE}"),
    };
    let spec = Vm::builder("floor")
        .processors(Processors::AtOnce)
        .boot(medium)
        .memory_mib(512)
        .no_network()
        .no_fatal()
        .evidence_root(folder.join("vm"));
    let mut vm = spec.start()?;
    Ok(vm.expect(FLOOR_LINE, DEADLINE)?.at.as_secs_f64())
}

fn total_bytes(files: &[PathBuf]) -> Result<u64> {
    files.iter().map(|file| Ok(fs::metadata(file).context("looking at the images")?.len())).sum()
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The seconds that `count` downloads took together, and those from the start of the first to the end of the stage.
fn download_seconds(lines: &[Line], count: usize) -> Result<(f64, f64)> {
    let found: Vec<(f64, f64)> =
        lines.iter().filter_map(|line| Some((line.at.as_secs_f64(), one_download(&line.text)?))).collect();
    let alone: f64 = found.iter().map(|(_, seconds)| seconds).sum();
    ensure!(found.len() == count && alone > 0.0, "the console has {} downloads taking {alone} s", found.len());
    let end = lines.iter().find(|line| line.text.contains(" stage install ok")).context("the install has no end")?;
    Ok((alone, end.at.as_secs_f64() - (found[0].0 - found[0].1)))
}

/// The seconds in `debian: 23.4 MiB in 1.3 s (19 MiB/s)`; the manifest and the indexes are no artifacts.
fn one_download(text: &str) -> Option<f64> {
    if text.contains("release manifest: ") || text.contains(" index: ") {
        return None;
    }
    let (seconds, rate) = text.split_once(" MiB in ")?.1.split_once(" s (")?;
    rate.contains(" MiB/s)").then_some(())?;
    seconds.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_downloads_are_read_and_other_lines_are_not() {
        let check = |text: &str, expect: Option<f64>| assert_eq!(one_download(text), expect, "{text:?}");
        check("debian: 23.4 MiB in 1.3 s (19 MiB/s)", Some(1.3));
        check("release manifest: 0.0 MiB in 0.0 s (0 MiB/s)", None);
        check("debian index: 0.0 MiB in 0.0 s (1 MiB/s)", None);
        check("debian: 23.4 MiB in 1.3 s", None);
        check("kernel: 8.5 of 23.4 MiB", None);
        check("orrery[boot] +3.214s stage network ok (0.182s) eth0 10.0.2.15/24", None);
    }
}
