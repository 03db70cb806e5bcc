//! VM scenarios: the whole system as an operator has it, in machines that boot our medium.
//!
//! Each makes an installation of its own, so that they run side by side and in any order.

mod clock;
mod damage;
mod input;
mod install;
mod limits;
mod machinery;
mod safe;
mod trust;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use orrery_qemu::Vm;

use crate::{
    image::Images,
    lab::{Lab, Node, NodeOptions},
    ui,
    workspace::Workspace,
};

/// A machine emulates one processor well; more machines than cores only make each other late.
const AT_ONCE: usize = 2;

/// From power-on to a serving node OS, with an installation on the way. Software emulation on a busy machine is slow; what
/// takes longer than this hangs.
const INSTALLED: Duration = Duration::from_secs(400);
/// From power-on to a serving node OS that is installed.
const BOOTED: Duration = Duration::from_secs(200);
/// From power-on to the first stages' outcomes.
const EARLY: Duration = Duration::from_secs(120);
/// Until the reference image is imported and a sliver made of it.
const SLIVER: Duration = Duration::from_secs(600);

/// A named scenario.
pub(crate) struct Scenario {
    /// Its name, as filters match it.
    name: &'static str,
    /// Runs it.
    run: fn(&Bench<'_>) -> Result<()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "sliver-limits", run: limits::limits },
    Scenario { name: "sliver-machinery", run: machinery::machinery },
    Scenario { name: "install-uefi-cd", run: install::uefi_cd },
    Scenario { name: "install-bios-cd", run: install::bios_cd },
    Scenario { name: "install-pxe", run: install::pxe },
    Scenario { name: "install-bios-usb", run: install::bios_usb },
    Scenario { name: "damaged-downloads", run: damage::damaged_downloads },
    Scenario { name: "damaged-disk", run: damage::damaged_disk },
    Scenario { name: "power-lost", run: damage::power_lost },
    Scenario { name: "refused-scripts", run: trust::refused_scripts },
    Scenario { name: "stale-script", run: trust::stale_script },
    Scenario { name: "wrong-authority", run: trust::wrong_authority },
    Scenario { name: "central-away", run: trust::central_away },
    Scenario { name: "safe-mode", run: trust::safe_mode },
    Scenario { name: "safe-networks", run: safe::networks },
    Scenario { name: "safe-tools", run: safe::tools },
    Scenario { name: "safe-console", run: safe::console },
    Scenario { name: "wrong-clock", run: clock::clock },
    Scenario { name: "bad-configuration", run: input::bad_configuration },
    Scenario { name: "bad-network", run: input::bad_network },
    Scenario { name: "bad-disk", run: input::bad_disk },
    Scenario { name: "static-address", run: input::static_address },
];

/// What a scenario works with.
pub(crate) struct Bench<'a> {
    images: &'a Images,
    folder: PathBuf,
}

impl Bench<'_> {
    /// An installation of this scenario's own.
    fn lab(&self) -> Result<Lab> {
        Lab::create(&self.folder.join("lab"), self.images)
    }
}

/// Starts a node's machine and sees it install itself and serve.
fn installed(lab: &Lab, id: &str, options: NodeOptions) -> Result<(Node, Vm)> {
    let node = lab.add_node(id, options)?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage install ok"], INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    Ok((node, vm))
}

/// Runs all scenarios whose name contains `filter`.
///
/// # Errors
/// When one fails, or none has such a name.
pub(crate) fn run(workspace: &Workspace, images: &Images, filter: Option<&str>) -> Result<()> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|s| filter.is_none_or(|filter| s.name.contains(filter))).collect();
    if chosen.is_empty() {
        let names: Vec<_> = SCENARIOS.iter().map(|s| s.name).collect();
        bail!("no scenario has such a name; there are: {}", names.join(", "));
    }
    ui::say("scenarios", &format!("{} in machines under {:?}", chosen.len(), orrery_qemu::acceleration()));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(chosen.len()) {
            scope.spawn(|| {
                while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = run_one(workspace, images, scenario) {
                        ui::say(scenario.name, &format!("FAILED: {error:#}"));
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(scenario.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("scenarios: {} passed, {} failed", chosen.len() - failed.len(), failed.len());
    ensure!(failed.is_empty(), "scenarios failed: {}; run one with `cargo xtask test NAME`", failed.join(", "));
    Ok(())
}

fn run_one(workspace: &Workspace, images: &Images, scenario: &Scenario) -> Result<()> {
    let started = Instant::now();
    ui::say(scenario.name, "started");
    let bench = Bench { images, folder: workspace.output().join("scenarios").join(scenario.name) };
    (scenario.run)(&bench)?;
    // Disks are large; what passed needs no evidence.
    let _ = std::fs::remove_dir_all(&bench.folder);
    ui::say(scenario.name, &format!("ok ({})", ui::seconds(started.elapsed())));
    Ok(())
}
