//! What a machine is made of.

use std::path::PathBuf;
use std::time::Duration;

use crate::accel::Processors;

/// The firmware that starts the boot medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF without secure boot; its variables last as long as the `Vm`.
    Uefi,
}

/// What the firmware boots first; disks follow in the order they were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootMedium {
    /// Nothing but the disks.
    Disks,
    /// A CD with this ISO 9660 image.
    Cd(PathBuf),
    /// A read-only USB stick with this image.
    Usb(PathBuf),
    /// The network card's iPXE, given `script` (a path in `folder`) by DHCP and TFTP.
    Pxe {
        /// What TFTP serves.
        folder: PathBuf,
        /// Name of the boot script.
        script: String,
    },
    /// A kernel loaded by QEMU itself; initrds are concatenated in order.
    Kernel {
        /// The bzImage.
        kernel: PathBuf,
        /// Initrds.
        initrds: Vec<PathBuf>,
        /// Kernel command line.
        append: String,
    },
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// virtio-blk: `/dev/vda`.
    VirtioBlk,
    /// AHCI: `/dev/sda`. Four at most.
    Ahci,
    /// NVMe: `/dev/nvme0n1`.
    Nvme,
}

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) bus: DiskBus,
    pub(crate) serial: Option<String>,
    pub(crate) readonly: bool,
    pub(crate) operations_per_second: Option<u32>,
    pub(crate) flushed: bool,
}

impl Disk {
    /// A writable disk.
    pub fn new(path: impl Into<PathBuf>, bus: DiskBus) -> Self {
        Self { path: path.into(), bus, serial: None, readonly: false, operations_per_second: None, flushed: true }
    }

    /// Sets the serial number the guest sees (20 characters at most).
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// Makes it no faster than that, so that a flush takes its time as on hardware.
    #[must_use]
    pub fn operations_per_second(mut self, most: u32) -> Self {
        self.operations_per_second = Some(most);
        self
    }

    /// Says that a flush is done without doing it, for a disk that nobody needs after the machine.
    #[must_use]
    pub fn unflushed(mut self) -> Self {
        self.flushed = false;
        self
    }

    /// Makes writes fail. (IDE disks can't be read-only; AHCI ones are refused by QEMU.)
    #[must_use]
    pub fn readonly(mut self) -> Self {
        self.readonly = true;
        self
    }
}

/// The network card and what it is connected to: the host is 10.0.2.2 for the guest, the guest gets 10.0.2.15.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub(crate) forwards: Vec<(u16, u16)>,
    pub(crate) restrict: bool,
    pub(crate) link_up: bool,
    pub(crate) mac: String,
}

impl Default for Network {
    fn default() -> Self {
        Self { forwards: Vec::new(), restrict: false, link_up: true, mac: "52:54:00:12:34:56".into() }
    }
}

impl Network {
    /// Forwards `host` of the host's loopback address to `guest` (TCP); see [`crate::free_port`].
    #[must_use]
    pub fn forward(mut self, host: u16, guest: u16) -> Self {
        self.forwards.push((host, guest));
        self
    }

    /// Isolates the guest: no connection to the host or beyond; forwards still work.
    #[must_use]
    pub fn restrict(mut self) -> Self {
        self.restrict = true;
        self
    }

    /// Begins with the cable out; `Vm::qmp().set_link(true)` plugs it in.
    #[must_use]
    pub fn link_down(mut self) -> Self {
        self.link_up = false;
        self
    }

    /// Sets the card's address.
    #[must_use]
    pub fn mac(mut self, mac: impl Into<String>) -> Self {
        self.mac = mac.into();
        self
    }
}

/// A machine that can be started, any number of times.
#[derive(Debug, Clone)]
pub struct VmSpec {
    pub(crate) name: String,
    pub(crate) firmware: Firmware,
    pub(crate) medium: BootMedium,
    pub(crate) unreadable: Vec<u64>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) processors: Processors,
    pub(crate) disks: Vec<Disk>,
    pub(crate) network: Option<Network>,
    pub(crate) rtc: Option<String>,
    pub(crate) random: bool,
    pub(crate) watchdog: bool,
    pub(crate) reboot: bool,
    pub(crate) limit: Duration,
    pub(crate) fatal: Vec<String>,
    pub(crate) extra: Vec<String>,
    pub(crate) evidence: Option<PathBuf>,
}

impl VmSpec {
    /// A q35 machine with SeaBIOS, 1 GiB, 2 CPUs that run in turn, a virtio network card, virtio-rng, and ten minutes to live. The
    /// name is also the name of its evidence folder, so machines running at once need different ones.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            firmware: Firmware::Bios,
            medium: BootMedium::Disks,
            unreadable: Vec::new(),
            memory_mib: 1024,
            cpus: 2,
            processors: Processors::InTurn,
            disks: Vec::new(),
            network: Some(Network::default()),
            rtc: None,
            random: true,
            watchdog: false,
            reboot: true,
            limit: Duration::from_secs(600),
            fatal: vec!["Kernel panic - not syncing".into()],
            extra: Vec::new(),
            evidence: None,
        }
    }

    /// Sets the firmware.
    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// Sets what is booted first.
    #[must_use]
    pub fn boot(mut self, medium: BootMedium) -> Self {
        self.medium = medium;
        self
    }

    /// Makes every read of the sector (512 bytes) at `offset` of the CD or USB stick fail, as a scratch does.
    #[must_use]
    pub fn unreadable(mut self, offset: u64) -> Self {
        self.unreadable.push(offset / 512);
        self
    }

    /// Sets the memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Sets the number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets how the processors run where they are translated.
    #[must_use]
    pub fn processors(mut self, processors: Processors) -> Self {
        self.processors = processors;
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets the network.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Leaves the network card out.
    #[must_use]
    pub fn no_network(mut self) -> Self {
        self.network = None;
        self
    }

    /// Sets the real-time clock at start, e.g. `2020-01-01T00:00:00` (UTC).
    #[must_use]
    pub fn rtc(mut self, base: impl Into<String>) -> Self {
        self.rtc = Some(base.into());
        self
    }

    /// Leaves virtio-rng out.
    #[must_use]
    pub fn no_random(mut self) -> Self {
        self.random = false;
        self
    }

    /// Adds an i6300esb watchdog that resets the machine.
    #[must_use]
    pub fn watchdog(mut self) -> Self {
        self.watchdog = true;
        self
    }

    /// Makes QEMU exit where the machine would reboot.
    #[must_use]
    pub fn no_reboot(mut self) -> Self {
        self.reboot = false;
        self
    }

    /// Sets the hard deadline: QEMU is killed this long after each start.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Adds a text that fails any expectation when the console shows it first. A kernel panic is one already.
    #[must_use]
    pub fn fatal(mut self, text: impl Into<String>) -> Self {
        self.fatal.push(text.into());
        self
    }

    /// Forgets all fatal texts, for scenarios in which a panic is what's expected.
    #[must_use]
    pub fn no_fatal(mut self) -> Self {
        self.fatal.clear();
        self
    }

    /// Adds QEMU arguments as they are.
    #[must_use]
    pub fn extra<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.extra.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets the folder in which the evidence folder (called like the VM) is made. Otherwise it is `target/orrery/vm`
    /// of the workspace around the working directory.
    #[must_use]
    pub fn evidence_root(mut self, folder: impl Into<PathBuf>) -> Self {
        self.evidence = Some(folder.into());
        self
    }
}
