//! How long it takes to ask many management controllers for their state, next to ipmitool.

use std::{
    fmt::Write as _,
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::Figures;
use crate::{
    command,
    ipmi_sim::{PASSWORD, SUITE, Simulator, USER},
    setup, ui,
    workspace::Workspace,
};

/// How long all simulators may take until each answers.
const STARTUP: Duration = Duration::from_secs(120);
/// Options of `cargo xtask bench power`.
#[derive(Args)]
pub(crate) struct Power {
    /// How many management controllers are simulated
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=2000))]
    controllers: u16,
    /// How many are asked at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
}

/// How many of those asked answered, from what was printed.
type Answers = fn(&str) -> usize;

/// The simulators, ended with the benchmark.
struct Controllers {
    simulators: Vec<Simulator>,
    ports: Vec<u16>,
}

/// Starts the simulators, then asks all of them, in each round once by each way:
///
/// - `pcu status --all --parallel N`
/// - `ipmitool … chassis power status` by `xargs -P N`
/// - the same one after the other
pub(super) fn run(workspace: &Workspace, options: &Power, runs: usize) -> Result<Vec<Figures>> {
    let folder = workspace.output().join("bench/power");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    setup::run(workspace)?;
    let pcu = build(workspace)?;
    let step = ui::Step::start("bench", &format!("starting {} simulators", options.controllers));
    let controllers = Controllers::start(&folder, options.controllers)?;
    let secret = folder.join("secret");
    write_secret(&secret)?;
    let inventory = folder.join("pcu.toml");
    fs::write(&inventory, controllers.inventory(&secret)).context("writing the inventory")?;
    let ports = folder.join("ports");
    let lines: String = controllers.ports.iter().map(|port| format!("{port}\n")).collect();
    fs::write(&ports, lines).context("writing the list of ports")?;
    controllers.wait(&secret)?;

    let parallel = options.parallel.to_string();
    let mut ways: [(&'static str, Vec<f64>, usize); 3] =
        ["pcu", "ipmitool, in parallel", "ipmitool, one by one"].map(|name| (name, Vec::new(), 0));
    for round in 1..=runs {
        step.now(&format!("round {round} of {runs}"));
        let mut asked = Command::new(&pcu);
        asked.args(["--json", "--parallel", &parallel, "--inventory"]).arg(&inventory).args(["status", "--all"]);
        let ipmitool = |at_once: &str| {
            let mut asked = Command::new("xargs");
            asked.arg("-a").arg(&ports).args([
                "-P",
                at_once,
                "-I{}",
                "ipmitool",
                "-I",
                "lanplus",
                "-H",
                "127.0.0.1",
                "-p",
                "{}",
            ]);
            asked
                .args(["-C", SUITE, "-L", "OPERATOR", "-U", USER, "-f"])
                .arg(&secret)
                .args(["chassis", "power", "status"]);
            asked
        };
        let answered: [(Command, Answers); 3] =
            [(asked, pcu_answers), (ipmitool(&parallel), ipmitool_answers), (ipmitool("1"), ipmitool_answers)];
        for ((_, seconds, failures), (mut asked, answers)) in ways.iter_mut().zip(answered) {
            let start = Instant::now();
            let output = asked.stdin(Stdio::null()).stderr(Stdio::null()).output().context("asking all")?;
            seconds.push(start.elapsed().as_secs_f64());
            *failures += usize::from(options.controllers) - answers(&String::from_utf8_lossy(&output.stdout));
        }
    }
    step.done(&format!("{} controllers asked, {runs} times by each way", options.controllers));

    let mut figures = Vec::new();
    for (name, seconds, failures) in ways {
        let figure = Figures::new(name, "s", seconds);
        figure.print();
        println!("{name}: {failures} of {} without an answer", usize::from(options.controllers) * runs);
        figures.push(figure);
    }
    println!("pcu / ipmitool in parallel: {:.2}", figures[0].median / figures[1].median);
    println!("pcu / ipmitool one by one: {:.3}", figures[0].median / figures[2].median);
    Ok(figures)
}

/// Compiles `pcu` as a user would install it.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = workspace.root.join("target");
    let arguments = ["build", "--locked", "--release", "--package", "orrery-pcu", "--bin", "pcu", "--target-dir"];
    command::attached(Command::new(cargo).current_dir(&workspace.root).args(arguments).arg(&target))?;
    Ok(target.join("release/pcu"))
}

impl Controllers {
    fn start(folder: &Path, count: u16) -> Result<Self> {
        // All are held until all are known, so that no port is given twice.
        let held: Vec<_> = (0..count)
            .map(|_| UdpSocket::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()
            .context("finding free ports")?;
        let ports: Vec<_> = held
            .iter()
            .map(|socket| Ok(socket.local_addr()?.port()))
            .collect::<std::io::Result<_>>()
            .context("finding free ports")?;
        drop(held);
        let mut controllers = Self { simulators: Vec::new(), ports };
        for (index, port) in controllers.ports.iter().enumerate() {
            let simulator = Simulator::start(&folder.join(format!("bmc{index}")), *port, None)?;
            controllers.simulators.push(simulator);
        }
        Ok(controllers)
    }

    fn inventory(&self, secret: &Path) -> String {
        self.ports.iter().enumerate().fold(String::new(), |mut text, (index, port)| {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[nodes.n{index}]\nmethods = [{{ driver = \"ipmi\", address = \"127.0.0.1:{port}\", user = {USER:?}, password = {{ file = {secret:?} }}, cipher = {SUITE} }}]\n"
            );
            text
        })
    }

    /// Waits until each has answered a peer once.
    fn wait(&self, secret: &Path) -> Result<()> {
        let end = Instant::now() + STARTUP;
        for port in &self.ports {
            let port = port.to_string();
            let mut ask = Command::new("ipmitool");
            ask.args(["-I", "lanplus", "-H", "127.0.0.1", "-p", &port, "-C", SUITE, "-U", USER, "-f"]).arg(secret);
            ask.args(["chassis", "power", "status"]);
            while !command::succeeds(&mut ask) {
                ensure!(Instant::now() < end, "a simulator does not answer on port {port}");
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }
}

fn write_secret(path: &PathBuf) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, PASSWORD)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .context("writing the password")
}

fn pcu_answers(said: &str) -> usize {
    let document: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    let nodes = document["nodes"].as_array().map_or(&[] as &[_], Vec::as_slice);
    nodes.iter().filter(|node| node["result"]["value"].is_string()).count()
}

fn ipmitool_answers(said: &str) -> usize {
    said.lines().filter(|line| line.starts_with("Chassis Power is ")).count()
}
