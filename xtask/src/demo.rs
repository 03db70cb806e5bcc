//! The main job in front of your eyes: from power-on of a bare machine to a command in a sliver.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use orrery_qemu::{Firmware, Vm};

use crate::{
    image::Images,
    lab::{Lab, MediumKind, Node, NodeOptions, Timeline},
    ui,
    workspace::Workspace,
};

/// The slice that the demo makes.
const SLICE: &str = "demo/hello";
const LOGIN: &str = "demo_hello";

/// Software emulation on a loaded machine is slow; what takes longer than this hangs.
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);
const BOOT_DEADLINE: Duration = Duration::from_secs(240);
const SLIVER_DEADLINE: Duration = Duration::from_secs(600);

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Demo {
    /// Run a command in the sliver, cut the power, see the node come back with its data, and exit
    #[arg(long)]
    once: bool,
    /// Write the timeline (each stage of each boot: start, duration, outcome) to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Firmware of the machine
    #[arg(long, value_enum, default_value_t = FirmwareKind::Bios)]
    firmware: FirmwareKind,
    /// What it boots from
    #[arg(long, value_enum, default_value_t = MediumKind::Cd)]
    medium: MediumKind,
    /// Memory of each machine, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FirmwareKind {
    Bios,
    Uefi,
}

struct Running {
    node: Node,
    vm: Vm,
    timeline: Timeline,
    power_on: Duration,
    boots: usize,
}

/// Runs the demo.
///
/// # Errors
/// Anything that keeps a node from coming up; its console is kept and named.
pub(crate) fn run(workspace: &Workspace, images: &Images, demo: &Demo) -> Result<()> {
    let folder = workspace.output().join("demo");
    let step = ui::Step::start("demo", "making an installation: keys, central, a signed release");
    let lab = Lab::create(&folder, images)?;
    step.done(&format!("central serves at {}", lab.central.url()));

    let mut running = Vec::new();
    for number in 1..=demo.nodes {
        let id = format!("node{number}");
        let firmware = match demo.firmware {
            FirmwareKind::Bios => Firmware::Bios,
            FirmwareKind::Uefi => Firmware::Uefi,
        };
        let options = NodeOptions {
            firmware,
            medium: demo.medium,
            memory_mib: demo.memory,
            deadline: if demo.once { Duration::from_secs(3600) } else { Duration::from_secs(7 * 24 * 3600) },
            ..NodeOptions::default()
        };
        let node = lab.add_node(&id, options)?;
        ui::say(&id, &format!("registered; its medium is {}", node.medium.display()));
        running.push(node);
    }
    let ids: Vec<String> = running.iter().map(|n| n.id.clone()).collect();
    lab.add_slice(SLICE, &ids.iter().map(String::as_str).collect::<Vec<_>>(), &["mem_limit=128M"])?;

    let mut running = running.into_iter().map(Running::power_on).collect::<Result<Vec<_>>>()?;
    for machine in &mut running {
        machine.follow_to_ready(INSTALL_DEADLINE)?;
        machine.use_sliver(&lab, "first")?;
    }
    if demo.once {
        for machine in &mut running {
            machine.power_cycle()?;
            machine.follow_to_ready(BOOT_DEADLINE)?;
            machine.find_data(&lab)?;
        }
    }
    if let Some(path) = &demo.json {
        write_timelines(path, &running)?;
    }
    if !demo.once {
        stay(&lab, &running)?;
    }
    Ok(())
}

impl Running {
    fn power_on(node: Node) -> Result<Self> {
        ui::say(&node.id, "power on: an empty disk, and the medium");
        let vm = node.spec.start()?;
        Ok(Self { node, vm, timeline: Timeline::default(), power_on: Duration::ZERO, boots: 1 })
    }

    fn power_cycle(&mut self) -> Result<()> {
        ui::say(&self.node.id, "cutting the power, and switching it on again");
        self.vm.power_cut();
        self.vm.start_again()?;
        self.power_on = self.vm.console().elapsed();
        self.boots += 1;
        Ok(())
    }

    /// Shows each stage as it ends, until the node OS serves.
    fn follow_to_ready(&mut self, within: Duration) -> Result<()> {
        let end = self.power_on + within;
        let ready = loop {
            let left = end.saturating_sub(self.vm.console().elapsed());
            let patterns = [["orrery[", "] +"], ["orrery[node] +", "s ready"]];
            let found = self.vm.expect_any(patterns, left)?;
            let line = found.line.trim().to_string();
            if let Some(text) = line.split_once("orrery[").map(|(_, text)| text) {
                println!(
                    "  {:7.2}s  {}: orrery[{text}",
                    (found.at.saturating_sub(self.power_on)).as_secs_f64(),
                    self.node.id
                );
            }
            if line.contains("orrery[node] +") && line.ends_with("ready") {
                break found.at;
            }
        };
        let seconds = ready.saturating_sub(self.power_on).as_secs_f64();
        let lines = self.vm.console().lines();
        self.timeline.stages.extend(Timeline::read(self.boots, self.power_on, &lines).stages);
        ui::say(&self.node.id, &format!("the node OS serves, {seconds:.1} s after power-on"));
        Ok(())
    }

    fn use_sliver(&self, lab: &Lab, word: &str) -> Result<()> {
        let command = format!(
            "echo {word} > /root/kept && sync && id -un && . /etc/os-release && echo \"$PRETTY_NAME\" && uname -r"
        );
        let step = ui::Step::start(&self.node.id, "waiting for the sliver: importing the reference image");
        let output = self.node.run_when_ready(lab, LOGIN, &command, SLIVER_DEADLINE)?;
        ensure!(output.success(), "the command in the sliver failed: {output}");
        step.done(&format!("in the sliver: {}", output.stdout.trim().replace('\n', ", ")));
        Ok(())
    }

    fn find_data(&self, lab: &Lab) -> Result<()> {
        let output = self.node.run_when_ready(lab, LOGIN, "cat /root/kept", SLIVER_DEADLINE)?;
        ensure!(output.success() && output.stdout.trim() == "first", "the sliver's data is gone: {output}");
        ui::say(&self.node.id, "came back by the chain-boot path, the sliver's data is intact");
        Ok(())
    }
}

fn write_timelines(path: &Path, running: &[Running]) -> Result<()> {
    let timelines: Vec<_> = running
        .iter()
        .map(|machine| serde_json::json!({ "node": machine.node.id, "stages": machine.timeline.stages }))
        .collect();
    let text = serde_json::to_string_pretty(&serde_json::json!({ "nodes": timelines })).context("writing JSON")?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Keeps everything running until Ctrl-C.
fn stay(lab: &Lab, running: &[Running]) -> Result<()> {
    println!();
    for machine in running {
        println!("{} is live. A shell in its sliver:\n    {}", machine.node.id, machine.node.ssh_command(LOGIN));
        println!("Its console:\n    tail -f {}", machine.vm.evidence().join("console.log").display());
    }
    println!("What central knows:\n    ORRERY_OPERATOR={} orrery node list", lab.central.operator().display());
    println!("Ctrl-C ends it all.");
    // The machines and central die with this process, whatever ends it.
    while let Some(machine) = running.iter().find(|machine| machine.vm.is_running()) {
        std::thread::sleep(Duration::from_secs(1));
        if !machine.vm.is_running() {
            ui::say(&machine.node.id, "its machine has ended");
        }
    }
    bail!("no machine is running any more: see {}", lab.folder.join("nodes").display())
}
