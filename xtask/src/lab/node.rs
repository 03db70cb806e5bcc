//! A node of the installation: its stamped medium, its disk, and the VM around them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use orrery_qemu::{
    BootMedium, Disk, DiskBus, Firmware, Mark, Network, Vm, VmSpec, create_disk, free_port,
    ssh::{HostKeys, Output, Ssh},
};

use super::Lab;

/// The line PID 1 prints when the node OS serves.
const READY: [&str; 2] = ["orrery[node] +", "s ready"];

/// How often a condition outside the VM is looked at.
const POLL: Duration = Duration::from_millis(300);

/// What the medium is attached as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MediumKind {
    /// The hybrid file as a CD.
    Cd,
    /// The hybrid file as a USB disk.
    Usb,
    /// The PXE set over TFTP.
    Pxe,
}

/// What a node's machine is like.
#[derive(Debug, Clone)]
pub(crate) struct NodeOptions {
    /// Its firmware.
    pub(crate) firmware: Firmware,
    /// What it boots from.
    pub(crate) medium: MediumKind,
    /// Its memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Size of its disk, in bytes; a sparse file. 0: it has none.
    pub(crate) disk_bytes: u64,
    /// How long the VM may live.
    pub(crate) deadline: Duration,
    /// Central's URL, if another than the installation's.
    pub(crate) url: Option<String>,
    /// The token that the machine enrols with. It has no key then, and `orrery enrol config` makes its configuration.
    pub(crate) token: Option<String>,
    /// Further arguments of `orrery node add`.
    pub(crate) arguments: Vec<String>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            firmware: Firmware::Bios,
            medium: MediumKind::Cd,
            memory_mib: 512,
            disk_bytes: 8 << 30,
            deadline: Duration::from_secs(1200),
            url: None,
            token: None,
            arguments: Vec::new(),
        }
    }
}

/// A registered node whose medium is stamped.
pub(crate) struct Node {
    /// Its id.
    pub(crate) id: String,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// Its disk image.
    pub(crate) disk: PathBuf,
    /// Its medium: a file, or the folder of the PXE set.
    pub(crate) medium: PathBuf,
    /// The loopback port that leads to its port 22.
    pub(crate) ssh_port: u16,
    /// Its machine.
    pub(crate) spec: VmSpec,
    known_hosts: PathBuf,
    user_key: PathBuf,
}

impl Node {
    pub(super) fn create(lab: &Lab, id: &str, options: NodeOptions) -> Result<Self> {
        let folder = lab.folder.join("nodes").join(id);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let config = folder.join("node.toml");
        let url = options.url.clone().unwrap_or_else(|| lab.central.url_for_guest());
        let public = format!("{}.pub", lab.release_key().display());
        let mut arguments = match &options.token {
            None => vec!["node", "add", id],
            Some(token) => vec!["enrol", "config", "--token", token],
        };
        arguments.extend(["--url", &url, "--release-key", &public]);
        arguments.extend(options.arguments.iter().map(String::as_str));
        arguments.push("--out");
        lab.orrery(arguments, [&config])?;

        let medium = Self::copy_medium(lab, &folder, options.medium)?;
        lab.orrery(["media", "stamp"], [medium.as_path(), Path::new("--config"), &config])?;

        let disk = folder.join("disk.img");
        create_disk(&disk, options.disk_bytes).with_context(|| format!("making {}", disk.display()))?;
        let ssh_port = free_port().context("finding a free port")?;
        let boot = match options.medium {
            MediumKind::Cd => BootMedium::Cd(medium.clone()),
            MediumKind::Usb => BootMedium::Usb(medium.clone()),
            MediumKind::Pxe => BootMedium::Pxe { folder: medium.clone(), script: "boot.ipxe".into() },
        };
        let spec = Vm::builder(id)
            .firmware(options.firmware)
            .boot(boot)
            .memory_mib(options.memory_mib)
            .network(Network::default().forward(ssh_port, 22))
            .evidence_root(folder.join("vm"))
            .deadline(options.deadline);
        let spec = match options.disk_bytes {
            0 => spec,
            _ => spec.disk(Disk::new(&disk, DiskBus::VirtioBlk).serial(format!("disk-{id}"))),
        };
        Ok(Self {
            id: id.into(),
            config,
            known_hosts: folder.join("known_hosts"),
            user_key: lab.user_key(),
            disk,
            medium,
            ssh_port,
            spec,
        })
    }

    fn copy_medium(lab: &Lab, folder: &Path, kind: MediumKind) -> Result<PathBuf> {
        if kind != MediumKind::Pxe {
            let medium = folder.join("medium.iso");
            fs::copy(lab.images.join("orrery-boot.iso"), &medium).context("copying the hybrid medium")?;
            return Ok(medium);
        }
        let medium = folder.join("pxe");
        fs::create_dir_all(&medium).with_context(|| format!("making {}", medium.display()))?;
        for entry in fs::read_dir(lab.images.join("pxe")).context("reading the PXE set")? {
            let entry = entry.context("reading the PXE set")?;
            fs::copy(entry.path(), medium.join(entry.file_name())).context("copying the PXE set")?;
        }
        Ok(medium)
    }

    /// Waits until the node OS serves.
    ///
    /// # Errors
    /// It does not in time, or the VM ends; the console is kept.
    pub(crate) fn expect_ready(&self, vm: &mut Vm, within: Duration) -> Result<Duration> {
        Ok(vm.expect(READY, within)?.at)
    }

    /// As [`Node::expect_ready`], but of what the console showed before `mark` nothing counts.
    ///
    /// # Errors
    /// As [`Node::expect_ready`].
    pub(crate) fn expect_ready_from(&self, vm: &mut Vm, mark: Mark, within: Duration) -> Result<Duration> {
        Ok(vm.expect_from(mark, READY, within)?.at)
    }

    /// A login of the installation's user to `slice`'s sliver on this node.
    pub(crate) fn ssh(&self, login: &str) -> Ssh {
        Ssh {
            port: self.ssh_port,
            user: login.into(),
            key: self.user_key.clone(),
            known_hosts: self.known_hosts.clone(),
            host_keys: HostKeys::AcceptNew,
        }
    }

    /// The command line a person would type for [`Node::ssh`].
    pub(crate) fn ssh_command(&self, login: &str) -> String {
        format!(
            "ssh -p {} -i {} -o UserKnownHostsFile={} {login}@127.0.0.1",
            self.ssh_port,
            self.user_key.display(),
            self.known_hosts.display()
        )
    }

    /// Runs `command` in `login`'s sliver, waiting for the sliver to be created.
    ///
    /// # Errors
    /// The sliver is not there in time, or the client cannot be run.
    pub(crate) fn run_when_ready(&self, lab: &Lab, login: &str, command: &str, within: Duration) -> Result<Output> {
        self.wait_for(within, &format!("sliver {login}"), || {
            let detail = lab.node_detail(&self.id)?;
            let slivers = detail["status"]["slivers"].as_array().cloned().unwrap_or_default();
            Ok(slivers
                .iter()
                .any(|s| s["slice"].as_str().is_some_and(|n| n.replace('/', "_") == login) && s["state"] == "ready"))
        })?;
        self.ssh(login).run(command, Duration::from_secs(60)).context("running the ssh client")
    }

    /// Waits until central has an event of this node with `stage` and a class of `class`; returns its message.
    ///
    /// # Errors
    /// It is not there in time.
    pub(crate) fn wait_failure(&self, lab: &Lab, class: &str, within: Duration) -> Result<String> {
        self.wait_failure_saying(lab, class, "", within)
    }

    /// As [`Node::wait_failure`], with this in its message.
    ///
    /// # Errors
    /// It is not there in time.
    pub(crate) fn wait_failure_saying(&self, lab: &Lab, class: &str, text: &str, within: Duration) -> Result<String> {
        let mut message = String::new();
        self.wait_for(within, &format!("a failure of class {class} at central that says {text:?}"), || {
            let says = |event: &serde_json::Value| event["message"].as_str().unwrap_or_default().to_owned();
            let mut failures = lab.events(&self.id)?.into_iter().filter(|event| event["class"] == class);
            let found = failures.find(|event| says(event).contains(text));
            message = found.as_ref().map(says).unwrap_or_default();
            Ok(found.is_some())
        })?;
        Ok(message)
    }

    /// Waits for a condition outside the VM.
    ///
    /// # Errors
    /// It does not hold in time, or cannot be looked at.
    pub(crate) fn wait_for(&self, within: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + within;
        while !holds()? {
            if Instant::now() > end {
                bail!("node {}: no {what} within {} s", self.id, within.as_secs());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}
