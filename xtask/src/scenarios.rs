//! VM scenarios: the whole system as an operator has it, in machines that boot our medium.
//!
//! Each makes an installation of its own, so that they run side by side and in any order.

mod admin;
mod attended;
mod clock;
mod damage;
mod downloads;
mod image;
mod input;
mod install;
mod killed;
mod limits;
mod login;
mod machinery;
mod outage;
mod overcommit;
mod packages;
mod power;
mod reports;
mod reproducible;
mod rest;
mod rollout;
mod rotation;
mod safe;
mod servers;
mod service;
mod snapshots;
mod trust;
mod upgrade;

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
pub(crate) use machinery::initramfs_of;
use orrery_qemu::Vm;

use crate::{
    image::Images,
    lab::{Lab, Node, NodeOptions, settle_acceleration},
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

/// When a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// At every change: together these see each capability once.
    Fast,
    /// With `--all`: further media, further faults, and what takes long.
    Full,
}

/// A named scenario.
pub(crate) struct Scenario {
    /// Its name, as filters match it.
    name: &'static str,
    /// When it runs.
    tier: Tier,
    /// Runs it.
    run: fn(&Bench<'_>) -> Result<()>,
}

impl Scenario {
    const fn fast(name: &'static str, run: fn(&Bench<'_>) -> Result<()>) -> Self {
        Self { name, tier: Tier::Fast, run }
    }

    const fn full(name: &'static str, run: fn(&Bench<'_>) -> Result<()>) -> Self {
        Self { name, tier: Tier::Full, run }
    }
}

/// Which scenarios are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice<'a> {
    /// Those of every change.
    Fast,
    /// All.
    All,
    /// Those whose name contains one of these, whenever they run otherwise.
    Named(&'a [String]),
}

impl Choice<'_> {
    fn takes(self, scenario: &Scenario) -> bool {
        match self {
            Self::Fast => scenario.tier == Tier::Fast,
            Self::All => true,
            Self::Named(parts) => parts.iter().any(|part| scenario.name.contains(part)),
        }
    }
}

/// The longest first, so that none is left alone at the end.
const SCENARIOS: &[Scenario] = &[
    Scenario::full("reproducible-images", reproducible::images),
    Scenario::full("rollout", rollout::rollout),
    Scenario::fast("sliver-limits", limits::limits),
    Scenario::full("own-image", image::own),
    Scenario::full("administrative-slice", admin::slice),
    Scenario::full("sliver-packages", packages::packages),
    Scenario::full("sliver-rest", rest::rest),
    Scenario::full("sliver-servers", servers::servers),
    Scenario::full("sliver-login", login::login),
    Scenario::full("sliver-service", service::service),
    Scenario::full("sliver-machinery", machinery::machinery),
    Scenario::full("sliver-programs", machinery::programs),
    Scenario::full("sliver-rspec", machinery::rspec),
    Scenario::full("sliver-hogs", machinery::hogs),
    Scenario::fast("image-store", machinery::store),
    Scenario::full("sliver-overcommit", overcommit::overcommit),
    Scenario::fast("sliver-escapes", machinery::escapes),
    Scenario::full("sliver-interruptions", machinery::interruptions),
    Scenario::full("manager-killed", killed::manager),
    Scenario::full("sliver-nesting", machinery::nesting),
    Scenario::full("sliver-layers", machinery::layers),
    Scenario::full("sliver-snapshots", snapshots::snapshots),
    Scenario::fast("install-uefi-cd", install::uefi_cd),
    Scenario::full("install-bios-cd", install::bios_cd),
    Scenario::fast("install-bios-pxe", install::bios_pxe),
    Scenario::full("install-uefi-pxe", install::uefi_pxe),
    Scenario::fast("install-bios-usb", install::bios_usb),
    Scenario::full("damaged-downloads", damage::damaged_downloads),
    Scenario::fast("damaged-disk", damage::damaged_disk),
    Scenario::fast("power-lost", damage::power_lost),
    Scenario::fast("refused-scripts", trust::refused_scripts),
    Scenario::full("stale-script", trust::stale_script),
    Scenario::fast("wrong-authority", trust::wrong_authority),
    Scenario::full("central-away", trust::central_away),
    Scenario::full("central-killed", outage::server_killed),
    Scenario::fast("central-error", outage::server_error),
    Scenario::fast("safe-mode", trust::safe_mode),
    Scenario::full("wrong-clock", clock::clock),
    Scenario::fast("bad-configuration", input::bad_configuration),
    Scenario::full("bad-medium", input::bad_medium),
    Scenario::full("bad-network", input::bad_network),
    Scenario::full("bad-disk", input::bad_disk),
    Scenario::full("full-disk", input::full_disk),
    Scenario::full("static-address", input::static_address),
    Scenario::fast("upgrade-good", upgrade::good_upgrade),
    Scenario::full("upgrade-panics", upgrade::panicking_upgrade),
    Scenario::full("upgrade-unhealthy", upgrade::unhealthy_upgrade),
    Scenario::full("hung-machine", upgrade::hung_machine),
    Scenario::fast("mirrors", downloads::mirrors),
    Scenario::full("lying-mirror", downloads::lying_mirror),
    Scenario::fast("install-resumed", downloads::resumed),
    Scenario::full("minimum-hardware", downloads::minimum_hardware),
    Scenario::full("kexec-waived", upgrade::kexec_waived),
    Scenario::full("kexec-refused", upgrade::kexec_refused),
    Scenario::fast("rotated-keys", rotation::rotated_keys),
    Scenario::full("rotated-authority", rotation::rotated_authority),
    Scenario::full("running-authority", rotation::running_authority),
    Scenario::full("enrolment", rotation::enrolment),
    Scenario::full("renewed-key", rotation::renewed_key),
    Scenario::full("disabled-node", rotation::disabled),
    Scenario::full("kept-reports", rotation::kept_reports),
    Scenario::full("told-panic", rotation::told_panic),
    Scenario::fast("safe-networks", safe::networks),
    Scenario::fast("safe-tools", safe::tools),
    Scenario::fast("safe-shell", safe::shell),
    Scenario::full("safe-console", safe::console),
    Scenario::full("safe-idle", safe::idle),
    Scenario::full("safe-rescue", safe::rescue),
    Scenario::full("safe-retries", safe::retries),
    Scenario::full("safe-once", safe::once),
    Scenario::full("attended-install", attended::install),
    Scenario::full("several-servers", outage::several_servers),
    Scenario::full("group-threshold", trust::group_threshold),
    Scenario::full("node-logs", reports::logs),
    Scenario::full("hung-node", power::hung_node),
];

/// What a scenario works with.
pub(crate) struct Bench<'a> {
    workspace: &'a Workspace,
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

/// Runs the scenarios of `choice`.
///
/// # Errors
/// When one fails, or none has such a name.
pub(crate) fn run(workspace: &Workspace, images: &Images, choice: Choice<'_>) -> Result<()> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|scenario| choice.takes(scenario)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = SCENARIOS.iter().map(|s| s.name).collect();
        bail!("no scenario has such a name; there are: {}", names.join(", "));
    }
    settle_acceleration(images);
    ui::say("scenarios", &format!("{} chosen", chosen.len()));
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
    let bench = Bench { workspace, images, folder: workspace.output().join("scenarios").join(scenario.name) };
    (scenario.run)(&bench)?;
    // Disks are large; what passed needs no evidence.
    let _ = std::fs::remove_dir_all(&bench.folder);
    ui::say(scenario.name, &format!("ok ({})", ui::seconds(started.elapsed())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(choice: Choice<'_>, takes: &[&str], leaves: &[&str]) {
        let chosen: Vec<_> = SCENARIOS.iter().filter(|scenario| choice.takes(scenario)).map(|s| s.name).collect();
        assert!(takes.iter().all(|name| chosen.contains(name)), "{choice:?}: {chosen:?}");
        assert!(!leaves.iter().any(|name| chosen.contains(name)), "{choice:?}: {chosen:?}");
    }

    #[test]
    fn tiers_and_names_choose() {
        check(Choice::Fast, &["sliver-limits", "damaged-disk"], &["reproducible-images", "bad-disk"]);
        check(Choice::All, &["sliver-limits", "reproducible-images"], &[]);
        let parts = ["disk".to_owned(), "wrong-c".to_owned()];
        check(Choice::Named(&parts), &["damaged-disk", "bad-disk", "full-disk", "wrong-clock"], &["sliver-limits"]);
        let mut names: Vec<_> = SCENARIOS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len(), "two scenarios of the same name share a folder");
    }
}
