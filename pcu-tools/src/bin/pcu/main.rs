//! The `pcu` command.

mod act;
mod console;
mod discover;
mod fleet;
mod interruption;
mod look;
mod manage;
mod output;
mod signals;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use orrery_pcu::{
    Action, BootDevice, Inventory, Registry,
    engine::{Control, Interrupt, Policy},
};

use output::Outcome;

/// Switch the power of nodes from afar, and know that it happened.
///
/// Which nodes there are, and how each is switched, stands in an inventory:
///
///     [nodes.n1]
///     groups = ["rack1"]
///     methods = [
///         { driver = "ipmi", address = "10.0.0.1", user = "pcu", password = { file = "/etc/pcu/n1.secret" } },
///         { driver = "manual", address = "row 3, rack 1" },
///     ]
///
/// Every change is read back from the device. What time can mend is tried again until the deadline; then the node's next method is tried.
///
/// Exit status: 0 done; 1 failures of several classes, or of this command itself; 2 wrong usage; 3 configuration (inventory, secret, waiver);
/// and when all failures are of one class: 10 transport, 11 identity, 12 authentication, 13 privilege, 14 prompt, 15 outlet unknown, 16 busy,
/// 17 refused, 18 unsupported, 19 unverified (no effect was seen), 20 a person has to do it, 21 timeout. 128 and the signal's number (129, 130, 143)
/// when a change was interrupted.
#[derive(Parser)]
#[command(name = "pcu", version, about, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Settings {
    /// The inventory
    #[arg(long, global = true, value_name = "FILE", env = "PCU_INVENTORY", default_value = "/etc/pcu/pcu.toml")]
    inventory: PathBuf,
    /// A folder of further drivers, as *.toml files
    #[arg(long, global = true, value_name = "FOLDER", env = "PCU_DRIVERS")]
    drivers: Option<PathBuf>,
    /// Print one JSON document instead of lines
    #[arg(long, global = true)]
    json: bool,
    /// Say what is being tried
    #[arg(short, long, global = true)]
    verbose: bool,
    /// How many nodes are worked on at once
    #[arg(long, global = true, value_name = "N", default_value_t = 32)]
    parallel: usize,
    /// Seconds for one node, all its methods together
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 180)]
    deadline: u64,
}

/// Which nodes.
#[derive(Args)]
struct Nodes {
    /// Nodes of the inventory
    #[arg(value_name = "NODE", required_unless_present_any = ["groups", "all"])]
    names: Vec<String>,
    /// All nodes of a group
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// All nodes of the inventory
    #[arg(long, conflicts_with_all = ["names", "groups"])]
    all: bool,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    OfNodes(OfNodes),
    /// Ask addresses whether a device that switches power is there; nobody logs in
    Discover(discover::Discover),
    /// What can be said of kinds of devices
    #[command(subcommand)]
    Driver(manage::Driver),
}

/// What is done with nodes of the inventory.
#[derive(Subcommand)]
enum OfNodes {
    /// Turn nodes on
    On(Nodes),
    /// Turn nodes off, at once: their operating system is not asked
    Off(Change),
    /// Turn nodes off, and after some seconds on
    Cycle {
        #[command(flatten)]
        change: Change,
        /// Seconds without power: supplies hold charge for some
        #[arg(long, value_name = "SECONDS", default_value_t = 5)]
        off_time: u64,
    },
    /// Reset nodes, which keep their power; what a reset did only the node itself can show
    Reset(Change),
    /// Show whether nodes have power
    Status(Nodes),
    /// Light a lamp at nodes
    Identify {
        #[command(flatten)]
        nodes: Nodes,
        /// For how long; 0 turns it off
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Choose what nodes start at their next boot, and only then
    Bootdev {
        /// What
        device: Device,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// Connect to a node's serial line; ~. at the beginning of a line ends it
    Console {
        /// The node
        #[arg(value_name = "NODE")]
        name: String,
    },
    /// Show temperatures, voltages, currents
    Sensors(Nodes),
    /// Show what the devices logged
    Log(Nodes),
    /// Go as far towards a change as is possible without one, by every method of the nodes
    Test(Nodes),
}

#[derive(Args)]
struct Change {
    #[command(flatten)]
    nodes: Nodes,
    /// Really all nodes of the inventory
    #[arg(long, requires = "all")]
    yes: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Device {
    /// The CD drive, also a virtual one
    Cd,
    /// The network
    Pxe,
    /// The first disk
    Disk,
    /// The firmware's setup
    Setup,
    /// What the firmware is configured for
    Default,
}

impl From<Device> for BootDevice {
    fn from(device: Device) -> Self {
        match device {
            Device::Cd => Self::Cd,
            Device::Pxe => Self::Pxe,
            Device::Disk => Self::Disk,
            Device::Setup => Self::Setup,
            Device::Default => Self::Default,
        }
    }
}

fn main() -> ExitCode {
    let Arguments { settings, command } = Arguments::parse();
    match run(&settings, command) {
        Ok(outcome) => ExitCode::from(outcome.status()),
        Err(error) => {
            output::complain(settings.json, &error);
            ExitCode::from(output::status_of(&error))
        }
    }
}

fn run(settings: &Settings, command: Command) -> Result<Outcome> {
    let interrupt = Interrupt::default();
    let control = settings.control(&command)?.until(&interrupt);
    let command = match command {
        Command::OfNodes(command) => command,
        Command::Discover(options) => return discover::run(settings.json, settings.parallel, &options),
        Command::Driver(driver) => return manage::run(settings.json, control.registry(), &driver),
    };
    let inventory = Inventory::read(&settings.inventory)?;
    let work = fleet::Work { settings, control: &control, interrupt: &interrupt, inventory: &inventory };
    match command {
        OfNodes::On(nodes) => act::run(&work, Action::On, &nodes, true),
        OfNodes::Off(change) => act::run(&work, Action::Off, &change.nodes, change.yes),
        OfNodes::Cycle { change, .. } => act::run(&work, Action::Cycle, &change.nodes, change.yes),
        OfNodes::Reset(change) => act::run(&work, Action::Reset, &change.nodes, change.yes),
        OfNodes::Status(nodes) => look::status(&work, &nodes),
        OfNodes::Identify { nodes, seconds } => look::identify(&work, &nodes, Duration::from_secs(seconds)),
        OfNodes::Bootdev { device, nodes } => look::boot_device(&work, &nodes, device.into()),
        OfNodes::Console { name } => console::run(&work, &name),
        OfNodes::Sensors(nodes) => look::sensors(&work, &nodes),
        OfNodes::Log(nodes) => look::log(&work, &nodes),
        OfNodes::Test(nodes) => look::test(&work, &nodes),
    }
}

impl Settings {
    fn control(&self, command: &Command) -> Result<Control> {
        let mut registry = Registry::builtin();
        if let Some(folder) = &self.drivers {
            registry.add_folder(folder).with_context(|| format!("reading the drivers in {}", folder.display()))?;
        }
        let deadline = Duration::from_secs(self.deadline.max(1));
        let mut policy = Policy { deadline, ..Policy::default() };
        if let Command::OfNodes(OfNodes::Cycle { off_time, .. }) = command {
            policy.off_time = Duration::from_secs(*off_time);
            policy.method += policy.off_time;
        }
        policy.method = policy.method.min(deadline);
        Ok(Control::new(registry, policy))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
