//! From an empty disk to a serving node, and again by the chain-boot path, on every kind of medium.

use anyhow::{Result, ensure};
use orrery_qemu::Firmware;

use super::{BOOTED, Bench, installed};
use crate::lab::{MediumKind, NodeOptions, Timeline};

/// The least memory that the medium has to do with, in MiB.
const LEAST_MEMORY: u32 = 256;

pub(super) fn bios_cd(bench: &Bench<'_>) -> Result<()> {
    twice(bench, Firmware::Bios, MediumKind::Cd)
}

pub(super) fn uefi_cd(bench: &Bench<'_>) -> Result<()> {
    twice(bench, Firmware::Uefi, MediumKind::Cd)
}

pub(super) fn bios_usb(bench: &Bench<'_>) -> Result<()> {
    twice(bench, Firmware::Bios, MediumKind::Usb)
}

pub(super) fn bios_pxe(bench: &Bench<'_>) -> Result<()> {
    twice(bench, Firmware::Bios, MediumKind::Pxe)
}

pub(super) fn uefi_pxe(bench: &Bench<'_>) -> Result<()> {
    twice(bench, Firmware::Uefi, MediumKind::Pxe)
}

/// Installs, then cuts the power: the second boot must not install again.
fn twice(bench: &Bench<'_>, firmware: Firmware, medium: MediumKind) -> Result<()> {
    let lab = bench.lab()?;
    let options = NodeOptions { firmware, medium, memory_mib: LEAST_MEMORY, ..NodeOptions::default() };
    let (node, mut vm) = installed(&lab, "n1", options)?;
    let state = lab.node_detail("n1")?;
    ensure!(state["boot_state"] == "boot", "after an installation, central wants {}", state["boot_state"]);

    vm.power_cut();
    vm.start_again()?;
    let power_on = vm.console().elapsed();
    node.expect_ready(&mut vm, BOOTED)?;
    let second = Timeline::read(2, power_on, &vm.console().lines());
    let stages: Vec<_> = second.stages.iter().map(|s| s.stage.as_str()).collect();
    ensure!(!stages.contains(&"install"), "the second boot installed again: {stages:?}");
    ensure!(stages.contains(&"load"), "the second boot did not chain-boot: {stages:?}");
    node.wait_for(BOOTED, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))
}
