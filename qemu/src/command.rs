//! From a specification to QEMU's command line.

use std::path::{Path, PathBuf};

use crate::accel::Acceleration;
use crate::spec::{BootMedium, Disk, DiskBus, Firmware, Network, VmSpec};

pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Files of one start that only the run knows.
#[derive(Debug)]
pub(crate) struct RunFiles<'a> {
    pub(crate) serial: &'a Path,
    pub(crate) qmp: &'a Path,
    pub(crate) log: &'a Path,
    /// UEFI code and variables.
    pub(crate) uefi: Option<(PathBuf, PathBuf)>,
    /// The concatenated initrds.
    pub(crate) initrd: Option<PathBuf>,
}

/// The machine starts stopped, so that its link can be set before its first instruction.
pub(crate) fn arguments(spec: &VmSpec, acceleration: Acceleration, files: &RunFiles<'_>) -> Vec<String> {
    let mut line = Line(Vec::new());
    line.words("-nodefaults -no-user-config -display none -vga std -S -machine q35");
    line.0.extend(acceleration.arguments(spec.processors).iter().copied().map(String::from));
    line.pair("-m", spec.memory_mib).pair("-smp", spec.cpus).pair("-name", &spec.name);
    // Both are connected to sockets we listen on already, so that not a byte is lost.
    line.pair("-chardev", format!("socket,id=qmp,path={}", value(files.qmp))).words("-mon chardev=qmp,mode=control");
    let (serial, log) = (value(files.serial), value(files.log));
    line.pair("-chardev", format!("socket,id=serial0,path={serial},logfile={log},logappend=on"));
    line.words("-serial chardev:serial0");
    if let Some((code, variables)) = &files.uefi {
        debug_assert_eq!(spec.firmware, Firmware::Uefi);
        line.pair("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", value(code)));
        line.pair("-drive", format!("if=pflash,unit=1,format=raw,file={}", value(variables)));
    }
    medium(&mut line, spec, files);
    for (index, disk) in spec.disks.iter().enumerate() {
        attach(&mut line, index, disk);
    }
    if let Some(network) = &spec.network {
        connect(&mut line, network, &spec.medium);
    }
    if spec.random {
        line.words("-device virtio-rng-pci");
    }
    if spec.watchdog {
        line.words("-device i6300esb -action watchdog=reset");
    }
    if let Some(base) = &spec.rtc {
        line.pair("-rtc", format!("base={base}"));
    }
    if !spec.reboot {
        line.words("-no-reboot");
    }
    line.0.extend(spec.extra.iter().cloned());
    line.0
}

fn medium(line: &mut Line, spec: &VmSpec, files: &RunFiles<'_>) {
    match &spec.medium {
        BootMedium::Disks => {}
        // The network card is given its boot index where it is made. Without graphics as far as the BIOS knows,
        // iPXE's messages come on the serial port too; UEFI does that anyway.
        BootMedium::Pxe { .. } => {
            line.words("-machine graphics=off");
        }
        BootMedium::Cd(image) => {
            line.pair("-drive", medium_drive(image, &spec.unreadable));
            line.words("-device ide-cd,drive=medium,bus=ide.5,bootindex=0");
        }
        BootMedium::Usb(image) => {
            line.pair("-drive", medium_drive(image, &spec.unreadable));
            line.words("-device qemu-xhci,id=usb -device usb-storage,bus=usb.0,drive=medium,removable=on,bootindex=0");
        }
        BootMedium::Kernel { kernel, append, .. } => {
            line.pair("-kernel", kernel.display()).pair("-append", append);
            if let Some(initrd) = &files.initrd {
                line.pair("-initrd", initrd.display());
            }
        }
    }
}

/// The image of a medium, with an error of QEMU's `blkdebug` for each sector that cannot be read.
fn medium_drive(image: &Path, unreadable: &[u64]) -> String {
    let mut drive = String::from("if=none,id=medium,format=raw,readonly=on,");
    if unreadable.is_empty() {
        return drive + &format!("file={}", value(image));
    }
    drive += &format!("file.driver=blkdebug,file.image.driver=file,file.image.filename={}", value(image));
    for (number, sector) in unreadable.iter().enumerate() {
        drive += &format!(",file.inject-error.{number}.event=none,file.inject-error.{number}.sector={sector}");
    }
    drive
}

fn attach(line: &mut Line, index: usize, disk: &Disk) {
    let readonly = if disk.readonly { ",readonly=on" } else { "" };
    let slow = disk.operations_per_second.map(|most| format!(",throttling.iops-total={most}")).unwrap_or_default();
    let cache = if disk.flushed { "" } else { ",cache=unsafe" };
    // Sparse stays sparse: a guest's discards free the image's blocks.
    line.pair(
        "-drive",
        format!("if=none,id=disk{index},format=raw,discard=unmap,file={}{readonly}{slow}{cache}", value(&disk.path)),
    );
    let device = match disk.bus {
        DiskBus::VirtioBlk => "virtio-blk-pci".into(),
        DiskBus::Ahci => format!("ide-hd,bus=ide.{index}"),
        DiskBus::Nvme => "nvme".into(),
    };
    let serial = match (&disk.serial, disk.bus) {
        (Some(serial), _) => format!(",serial={}", serial.replace(',', ",,")),
        // QEMU refuses an NVMe controller without one.
        (None, DiskBus::Nvme) => format!(",serial=nvme{index}"),
        (None, _) => String::new(),
    };
    line.pair("-device", format!("{device},drive=disk{index},bootindex={}{serial}", index + 1));
}

fn connect(line: &mut Line, network: &Network, medium: &BootMedium) {
    let mut user = String::from("user,id=net0");
    if network.restrict {
        user += ",restrict=on";
    }
    for (host, guest) in &network.forwards {
        user += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
    }
    let mut order = ",romfile=";
    if let BootMedium::Pxe { folder, script } = medium {
        user += &format!(",tftp={},bootfile={}", value(folder), script.replace(',', ",,"));
        order = ",bootindex=0";
    }
    line.pair("-netdev", user);
    line.pair("-device", format!("virtio-net-pci,id=nic0,netdev=net0,mac={}{order}", network.mac));
}

/// A path as value of a QEMU option, in which a comma is written twice.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

struct Line(Vec<String>);

impl Line {
    fn words(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(String::from));
        self
    }

    fn pair(&mut self, option: &str, value: impl ToString) -> &mut Self {
        self.0.extend([option.into(), value.to_string()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: VmSpec, expected: &[&str]) {
        let files = RunFiles {
            serial: Path::new("/r/serial"),
            qmp: Path::new("/r/qmp"),
            log: Path::new("/r/log"),
            uefi: None,
            initrd: None,
        };
        let line = arguments(&spec, Acceleration::Tcg, &files).join(" ");
        for part in expected {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
    }

    #[test]
    fn media_come_first_and_disks_after() {
        let disk = |bus| Disk::new("/d,1", bus).serial("S1");
        check(
            VmSpec::new("x").boot(BootMedium::Cd("/m.iso".into())).disk(disk(DiskBus::Ahci)),
            &["ide-cd,drive=medium,bus=ide.5,bootindex=0", "ide-hd,bus=ide.0,drive=disk0,bootindex=1", "file=/d,,1"],
        );
        check(
            VmSpec::new("x").boot(BootMedium::Usb("/m.iso".into())).disk(disk(DiskBus::Nvme)),
            &["usb-storage,bus=usb.0,drive=medium,removable=on,bootindex=0", "nvme,drive=disk0,bootindex=1,serial=S1"],
        );
        check(
            VmSpec::new("x").boot(BootMedium::Pxe { folder: "/pxe".into(), script: "boot.ipxe".into() }),
            &["tftp=/pxe,bootfile=boot.ipxe", "mac=52:54:00:12:34:56,bootindex=0"],
        );
    }

    #[test]
    fn a_medium_may_be_scratched() {
        check(
            VmSpec::new("x").boot(BootMedium::Cd("/m.iso".into())).unreadable(1024).unreadable(5000),
            &[
                "readonly=on,file.driver=blkdebug,file.image.driver=file,file.image.filename=/m.iso",
                ",file.inject-error.0.event=none,file.inject-error.0.sector=2,",
                ",file.inject-error.1.event=none,file.inject-error.1.sector=9 ",
            ],
        );
    }

    #[test]
    fn options_reach_the_command_line() {
        check(
            VmSpec::new("x")
                .network(Network::default().forward(4022, 22).restrict())
                .rtc("2020-01-01T00:00:00")
                .watchdog()
                .no_reboot()
                .extra(["-snapshot"]),
            &[
                "restrict=on,hostfwd=tcp:127.0.0.1:4022-:22",
                "-rtc base=2020-01-01T00:00:00",
                "-device i6300esb -action watchdog=reset",
                "-no-reboot -snapshot",
            ],
        );
    }
}
