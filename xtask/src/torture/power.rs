//! Power cuts: a node has to come back by itself, whenever its power goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{Random, Torture};
use crate::{
    command,
    image::Images,
    lab::{Lab, Node, NodeOptions, ScriptOptions},
    ui,
    workspace::Workspace,
};

/// A machine emulates one processor well; more machines than cores only make each other late.
const AT_ONCE: usize = 2;
/// From power-on to a serving node, with an installation on the way: what takes longer hangs.
const COMES_BACK: Duration = Duration::from_secs(600);
/// From serving to what central knows of it.
const REPORTED: Duration = Duration::from_secs(120);
/// How long one run's machine may live: several starts, and the last one's way up.
const MACHINE: Duration = Duration::from_secs(1800);
/// The release that upgrades lead to.
const NEXT_RELEASE: &str = "torture-next";
/// How often the power is cut in one run.
const CUTS: [usize; 4] = [1, 1, 2, 3];

/// Options of `cargo xtask torture power`.
#[derive(Args)]
pub(crate) struct Power {
    /// What the node is doing when its power goes; each run takes one of them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Phase::Install, Phase::FirstBoot, Phase::Upgrade])]
    phases: Vec<Phase>,
}

/// What a node is doing when its power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// From an empty disk until everything is committed.
    Install,
    /// From a disk that was just installed until the node OS serves for the first time.
    FirstBoot,
    /// From a node that has served until the next release is the active one.
    Upgrade,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::FirstBoot => "first-boot",
            Self::Upgrade => "upgrade",
        }
    }
}

/// What one run does, before anything of it has happened.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    phase: Phase,
    /// When the power goes after each start, as parts of the phase's duration.
    cuts: Vec<f64>,
}

impl Plan {
    fn draw(seed: u64, run: u32, phases: &[Phase]) -> Self {
        let mut random = Random::new(seed, run);
        let phase = random.one_of(phases);
        let cuts = random.one_of(&CUTS);
        Self { phase, cuts: (0..cuts).map(|_| random.fraction()).collect() }
    }
}

/// What came of one run.
#[derive(Debug, Serialize)]
struct Outcome {
    run: u32,
    phase: Phase,
    /// Seconds after each power-on.
    cuts_s: Vec<f64>,
    /// Seconds from the last power-on to the node OS serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    back_s: Option<f64>,
    /// Kernel panics on the console. Emulation on a busy machine has its own: it starves the kernel's timers.
    panics: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What a phase begins with, and how long it takes.
struct Template {
    phase: Phase,
    /// The disk it begins with; none is an empty one.
    disk: Option<PathBuf>,
    duration: Duration,
}

/// The figures of one phase.
#[derive(Debug, Serialize)]
struct Figures {
    phase: Phase,
    duration_s: f64,
    runs: usize,
    cuts: usize,
    panics: usize,
    good: usize,
    failed: usize,
}

/// Measures the phases, tortures, and prints what came of it.
///
/// # Errors
/// A run failed, or an undisturbed node does not even get through the phases.
pub(super) fn run(workspace: &Workspace, images: &Images, torture: &Torture, power: &Power) -> Result<()> {
    let lab = Lab::create(&workspace.output().join("torture/lab"), images)?;
    let step = ui::Step::start("torture", "measuring an undisturbed node");
    let templates = templates(&lab, &power.phases)?;
    let durations: Vec<_> =
        templates.iter().map(|t| format!("{} {}", t.phase.name(), ui::seconds(t.duration))).collect();
    step.done(&durations.join(", "));

    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let runs: Vec<u32> = (1..=torture.runs).collect();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(runs.len()) {
            scope.spawn(|| {
                while let Some(&run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let plan = Plan::draw(torture.seed, run, &power.phases);
                    let outcome = torment(&lab, &templates, run, &plan);
                    tell(&outcome);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.run);
    report(torture, &templates, &outcomes)
}

/// Takes one undisturbed node through the phases, as far as `phases` need it.
fn templates(lab: &Lab, phases: &[Phase]) -> Result<Vec<Template>> {
    let node = lab.add_node("template", NodeOptions { deadline: MACHINE, ..NodeOptions::default() })?;
    let mut templates = Vec::new();
    let mut vm = node.spec.start()?;
    let duration = vm.expect("stage install ok", COMES_BACK)?.at;
    vm.power_cut();
    templates.push(Template { phase: Phase::Install, disk: None, duration });

    let installed = lab.folder.join("installed.img");
    copy_disk(&node.disk, &installed)?;
    vm.start_again()?;
    let power_on = vm.console().elapsed();
    let duration = node.expect_ready(&mut vm, COMES_BACK)?.saturating_sub(power_on);
    wait_running(lab, &node, &[lab.release_name()?])?;
    vm.power_cut();
    templates.push(Template { phase: Phase::FirstBoot, disk: Some(installed), duration });

    if phases.contains(&Phase::Upgrade) {
        let served = lab.folder.join("served.img");
        copy_disk(&node.disk, &served)?;
        offer_upgrade(lab)?;
        lab.orrery(["node", "set-state", "upgrade", &node.id], [] as [&Path; 0])?;
        vm.start_again()?;
        let power_on = vm.console().elapsed();
        let promoted = vm.expect(["stage health ok", "promoted", NEXT_RELEASE], COMES_BACK)?.at;
        let duration = promoted.saturating_sub(power_on);
        templates.push(Template { phase: Phase::Upgrade, disk: Some(served), duration });
    }
    templates.retain(|template| phases.contains(&template.phase));
    Ok(templates)
}

/// Publishes the next release, and the script that leads to it.
fn offer_upgrade(lab: &Lab) -> Result<()> {
    let release = lab.publish_changed_release(NEXT_RELEASE, |_| Ok(()))?;
    lab.publish_script("upgrade", &ScriptOptions { release, ..lab.usual_script() })
}

/// One run; the node's folder stays when it failed.
fn torment(lab: &Lab, templates: &[Template], run: u32, plan: &Plan) -> Outcome {
    let mut outcome = Outcome { run, phase: plan.phase, cuts_s: Vec::new(), back_s: None, panics: 0, error: None };
    match cut_and_come_back(lab, templates, plan, &mut outcome) {
        Ok(back) => outcome.back_s = Some(rounded(back)),
        Err(error) => outcome.error = Some(format!("{error:#}")),
    }
    outcome
}

fn cut_and_come_back(lab: &Lab, templates: &[Template], plan: &Plan, outcome: &mut Outcome) -> Result<Duration> {
    let template = templates.iter().find(|t| t.phase == plan.phase).context("a phase that was not measured")?;
    let id = format!("run{}", outcome.run);
    let node = lab.add_node(&id, NodeOptions { deadline: MACHINE, ..NodeOptions::default() })?;
    if let Some(disk) = &template.disk {
        copy_disk(disk, &node.disk)?;
    }
    let mut releases = vec![lab.release_name()?];
    match plan.phase {
        Phase::Install => {}
        Phase::FirstBoot => lab.orrery(["node", "set-state", "boot", &id], [] as [&Path; 0]).map(drop)?,
        Phase::Upgrade => {
            lab.orrery(["node", "set-state", "upgrade", &id], [] as [&Path; 0])?;
            // A trial whose power went twice is given up, and that is right.
            releases.push(NEXT_RELEASE.into());
        }
    }
    // A kernel that panics starts over after a while, which is coming back without help, too; panics are counted.
    let mut vm = node.spec.clone().no_fatal().start()?;
    let result = (|| {
        for (number, part) in plan.cuts.iter().enumerate() {
            if number > 0 {
                vm.start_again()?;
            }
            let after = template.duration.mul_f64(*part);
            outcome.cuts_s.push(rounded(after));
            // The instant itself is what is wanted here, and no condition.
            thread::sleep(after);
            vm.power_cut();
        }
        vm.start_again()?;
        let power_on = vm.console().elapsed();
        // The node may have served before the last cut already.
        let mark = vm.console().mark();
        let ready = node.expect_ready_from(&mut vm, mark, COMES_BACK)?;
        wait_running(lab, &node, &releases)?;
        Ok(ready.saturating_sub(power_on))
    })();
    outcome.panics = vm.console().lines().iter().filter(|line| line.text.contains("Kernel panic")).count();
    if result.is_err() {
        vm.keep_evidence();
    } else {
        drop(vm);
        let folder = node.disk.parent().context("a disk without a folder")?;
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    result
}

/// Waits until central has the node running one of `releases`.
fn wait_running(lab: &Lab, node: &Node, releases: &[String]) -> Result<()> {
    let mut last = String::new();
    let waited = node.wait_for(REPORTED, "report of a running node OS", || {
        let detail = lab.node_detail(&node.id)?;
        let release = detail["status"]["release"].as_str().unwrap_or_default().to_owned();
        last = format!("run level {}, release {release}", detail["run_level"]);
        Ok(detail["run_level"] == "running" && releases.contains(&release))
    });
    waited.with_context(|| format!("central has it at {last}, expected one of {releases:?}"))
}

/// Copies a disk image; what is not written in it takes no room in the copy.
fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    command::output(Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).arg(from).arg(to)).map(drop)
}

fn tell(outcome: &Outcome) {
    let cuts: Vec<_> = outcome.cuts_s.iter().map(|at| format!("{at:.2} s")).collect();
    let end = match (&outcome.error, outcome.back_s) {
        (Some(error), _) => format!("FAILED: {error}"),
        (None, back) => format!("good, back after {:.1} s", back.unwrap_or_default()),
    };
    ui::say(&format!("run {}", outcome.run), &format!("{}, cut at {}: {end}", outcome.phase.name(), cuts.join(", ")));
}

/// Prints a table and a summary line, and writes the JSON file.
fn report(torture: &Torture, templates: &[Template], outcomes: &[Outcome]) -> Result<()> {
    let figures: Vec<Figures> = templates.iter().map(|template| figures(template, outcomes)).collect();
    println!("phase          duration   runs   cuts panics   good  failed");
    for f in &figures {
        let (phase, duration) = (f.phase.name(), format!("{:.1} s", f.duration_s));
        let [runs, cuts, panics, good, failed] = [f.runs, f.cuts, f.panics, f.good, f.failed];
        println!("{phase:<12} {duration:>10} {runs:>6} {cuts:>6} {panics:>6} {good:>6} {failed:>7}");
    }
    let cuts: usize = figures.iter().map(|f| f.cuts).sum();
    let failed: usize = figures.iter().map(|f| f.failed).sum();
    let good = outcomes.len() - failed;
    println!(
        "torture power: {} runs, {cuts} cuts, seed {}: {good} good, {failed} failed",
        outcomes.len(),
        torture.seed
    );
    if let Some(path) = &torture.json {
        let value = serde_json::json!({
            "seed": torture.seed, "runs": outcomes.len(), "good": good, "failed": failed,
            "phases": figures, "outcomes": outcomes,
        });
        let text = serde_json::to_string_pretty(&value).context("writing JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(failed == 0, "{failed} runs failed; their machines are kept in target/orrery/torture/lab/nodes");
    Ok(())
}

fn figures(template: &Template, outcomes: &[Outcome]) -> Figures {
    let own: Vec<_> = outcomes.iter().filter(|outcome| outcome.phase == template.phase).collect();
    let failed = own.iter().filter(|outcome| outcome.error.is_some()).count();
    Figures {
        phase: template.phase,
        duration_s: rounded(template.duration),
        runs: own.len(),
        cuts: own.iter().map(|outcome| outcome.cuts_s.len()).sum(),
        panics: own.iter().map(|outcome| outcome.panics).sum(),
        good: own.len() - failed,
        failed,
    }
}

fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_follow_from_the_seed_and_cover_everything() {
        let phases = [Phase::Install, Phase::FirstBoot];
        let plans: Vec<Plan> = (1..=200).map(|run| Plan::draw(5, run, &phases)).collect();
        assert_eq!(plans, (1..=200).map(|run| Plan::draw(5, run, &phases)).collect::<Vec<_>>());
        for phase in phases {
            assert!(plans.iter().filter(|plan| plan.phase == phase).count() > 60);
        }
        assert!(plans.iter().all(|plan| phases.contains(&plan.phase) && (1..=3).contains(&plan.cuts.len())));
        assert!([1, 2, 3].iter().all(|count| plans.iter().any(|plan| plan.cuts.len() == *count)));
    }

    #[test]
    fn figures_count_by_phase() {
        let outcome = |phase, error: Option<&str>| Outcome {
            run: 1,
            phase,
            cuts_s: vec![1.0, 2.0],
            back_s: None,
            panics: 1,
            error: error.map(str::to_owned),
        };
        let outcomes =
            [outcome(Phase::Install, None), outcome(Phase::Install, Some("no")), outcome(Phase::Upgrade, None)];
        let template = Template { phase: Phase::Install, disk: None, duration: Duration::from_millis(1234) };
        let got = figures(&template, &outcomes);
        assert_eq!((got.runs, got.cuts, got.panics, got.good, got.failed), (2, 4, 2, 1, 1));
    }
}
