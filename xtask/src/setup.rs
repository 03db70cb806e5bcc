//! `cargo xtask setup`: the Debian packages that building and running need, and Python programs that tests talk to.

mod python;

pub(crate) use python::folder as python_tools;

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{Apt, Freshness},
    build::rust::TARGET,
    command, ui,
    workspace::Workspace,
};

/// What is needed, by what needs it.
const PACKAGES: [(&str, &[&str]); 8] = [
    (
        "building C programs",
        &[
            "build-essential",
            "flex",
            "bison",
            "bc",
            "libelf-dev",
            "libssl-dev",
            "gawk",
            "xz-utils",
            "zstd",
            "cpio",
            "rsync",
            "dpkg-dev",
            "kmod",
            "pkg-config",
        ],
    ),
    ("making images", &["xorriso", "isolinux", "syslinux-common", "systemd-boot-efi", "mmdebstrap"]),
    ("running machines", &["qemu-system-x86", "qemu-utils", "ovmf", "ipxe-qemu", "seabios"]),
    ("logging in", &["openssh-client", "openssh-sftp-server", "git"]),
    ("making container images in tests", &["skopeo", "umoci"]),
    ("acting as a compromised boot server in tests", &["sqlite3"]),
    ("switching power in tests", &["openipmi", "ipmitool", "iproute2", "libvirt-clients", "openssl", "python3-venv"]),
    (
        "serving as power units in tests",
        &["busybox-static", "lighttpd", "lighttpd-mod-openssl", "openssh-server", "snmpd"],
    ),
];
/// Services of these packages, which tests start themselves: installing them is to leave nothing that listens.
const SERVICES: [&str; 3] = ["lighttpd.service", "snmpd.service", "ssh.service"];
/// Installs by apt's arguments, and has Debian's packages start nothing meanwhile, nor at the next boot.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh
exit 101
' > $policy && chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
new=
for service in $SERVICES; do
    [ -e /lib/systemd/system/$service ] || new="$new $service"
done
apt-get "$@" || exit
for service in $new; do
    [ ! -e /lib/systemd/system/$service ] || ! command -v systemctl > /dev/null || systemctl --quiet disable $service
done
"#;

/// Installs what is missing, or says how.
///
/// # Errors
/// When something is missing and cannot be installed.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    check_rust()?;
    let missing = missing()?;
    if !missing.is_empty() {
        install_missing(workspace, &missing)?;
    }
    python::run(workspace)?;
    ui::say("setup", "everything needed is installed");
    Ok(())
}

fn install_missing(workspace: &Workspace, missing: &BTreeSet<&str>) -> Result<()> {
    for (purpose, packages) in PACKAGES {
        let names: Vec<_> = packages.iter().filter(|package| missing.contains(*package)).copied().collect();
        if !names.is_empty() {
            ui::say("setup", &format!("missing for {purpose}: {}", names.join(" ")));
        }
    }
    let apt = Apt::open(workspace, Freshness::Now)?;
    let steps = plan(&apt, missing)?;
    let Some(sudo) = way() else {
        let commands: Vec<_> = steps.iter().map(|step| format!("    {}\n", step.by_hand(&apt))).collect();
        bail!("packages are missing and this user may not install them; run:\n\n{}", commands.concat());
    };
    for step in &steps {
        install(&apt, step, sudo)?;
    }
    let still = self::missing()?;
    if !still.is_empty() {
        bail!("still missing: {}", still.into_iter().collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

/// Fails with the command to run when something is missing; for tasks that need it all.
///
/// # Errors
/// When a package is missing.
pub(crate) fn check() -> Result<()> {
    let missing = missing()?;
    if !missing.is_empty() {
        let missing: Vec<_> = missing.into_iter().collect();
        bail!("missing Debian packages: {}; run `cargo xtask setup`", missing.join(" "));
    }
    Ok(())
}

fn check_rust() -> Result<()> {
    let text = command::output(Command::new("rustc").arg("-vV")).context("asking rustc for its version")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    if host != TARGET {
        bail!("the images are built for {TARGET}, but this toolchain is for {host}: build on an x86-64 machine");
    }
    Ok(())
}

fn missing() -> Result<BTreeSet<&'static str>> {
    let wanted = PACKAGES.iter().flat_map(|(_, packages)| packages.iter().copied());
    // dpkg-query fails when it does not know one of them, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package} ${Provides}\n"])
        .args(wanted.clone())
        .output()
        .context("starting dpkg-query (Orrery builds on Debian)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .flat_map(|rest| rest.split([' ', ',']))
        .collect();
    Ok(wanted.filter(|package| !installed.contains(package)).collect())
}

/// One run of apt.
struct Install {
    packages: Vec<String>,
    backports: bool,
}

impl Install {
    fn arguments(&self, apt: &Apt) -> Vec<String> {
        let mut arguments = vec!["install".to_owned(), "-y".to_owned(), "--no-install-recommends".to_owned()];
        if self.backports {
            arguments.extend(["-t".to_owned(), format!("{}-backports", apt.codename)]);
        }
        arguments.extend(self.packages.iter().cloned());
        arguments
    }

    /// The command for somebody who may install.
    fn by_hand(&self, apt: &Apt) -> String {
        let options = apt.options().into_iter().map(|option| option.to_string_lossy().into_owned());
        let words = options.chain(self.arguments(apt)).map(|a| if a.contains(' ') { format!("'{a}'") } else { a });
        format!("sudo apt-get {}", words.collect::<Vec<_>>().join(" "))
    }

    fn works(&self, apt: &Apt) -> bool {
        command::succeeds(apt.command("apt-get").arg("-s").args(self.arguments(apt)))
    }
}

/// Finds out by simulation what installs plainly. On a machine that already has parts from backports, some
/// packages install from there only.
fn plan(apt: &Apt, missing: &BTreeSet<&str>) -> Result<Vec<Install>> {
    let install = |packages: &[&str], backports| Install {
        packages: packages.iter().map(|&package| package.to_owned()).collect(),
        backports,
    };
    let all: Vec<_> = missing.iter().copied().collect();
    let plain = install(&all, false);
    if plain.works(apt) {
        return Ok(vec![plain]);
    }
    let (plain, rest): (Vec<&str>, Vec<&str>) = all.iter().partition(|package| install(&[package], false).works(apt));
    let mut steps = Vec::new();
    if !plain.is_empty() {
        steps.push(install(&plain, false));
    }
    if !rest.is_empty() {
        let step = install(&rest, true);
        if !step.works(apt) {
            let why = command::output(apt.command("apt-get").arg("-s").args(step.arguments(apt)));
            let why = why.err().map(|error| format!("{error:#}")).unwrap_or_default();
            bail!("{} cannot be installed, neither plainly nor from backports: {why}", rest.join(" "));
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Whether installing needs sudo; `None` if this user may not install.
fn way() -> Option<bool> {
    let root = rustix::process::geteuid().is_root();
    (root || command::succeeds(Command::new("sudo").args(["-n", "true"]))).then_some(!root)
}

fn install(apt: &Apt, step: &Install, sudo: bool) -> Result<()> {
    let names = step.packages.join(" ");
    ui::say("setup", &format!("installing {names}{}", if sudo { " with sudo" } else { "" }));
    let mut command = Command::new(if sudo { "sudo" } else { "env" });
    if sudo {
        command.args(["-n", "env"]);
    }
    command.arg("DEBIAN_FRONTEND=noninteractive").arg(format!("SERVICES={}", SERVICES.join(" ")));
    command.args(["sh", "-c", INSTALL, "sh"]).args(apt.options()).args(step.arguments(apt));
    command::attached(&mut command).with_context(|| format!("installing {names}"))
}
