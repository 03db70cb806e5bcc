//! Real boots of guests of one sector.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use orrery_qemu::{
    BootMedium, ConsoleError, Disk, DiskBus, Firmware, Network, Vm, VmSpec, create_disk, flip_byte, mbr_exit, mbr_print,
};

/// Ample for firmware and one sector on a loaded host.
const BOOT: Duration = Duration::from_secs(60);

/// A small machine whose disk prints `text`.
fn machine(name: &str, folder: &Path, text: &str) -> VmSpec {
    let disk = folder.join("disk.img");
    create_disk(&disk, 1 << 20).unwrap();
    let mut image = fs::read(&disk).unwrap();
    image[..512].copy_from_slice(&mbr_print(text));
    fs::write(&disk, image).unwrap();
    Vm::builder(name)
        .memory_mib(64)
        .cpus(1)
        .disk(Disk::new(disk, DiskBus::VirtioBlk).serial("D0"))
        .no_network()
        .deadline(3 * BOOT)
        .evidence_root(folder.join("vm"))
}

#[test]
fn lines_are_matched_in_order_and_success_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = machine("order", folder.path(), "first 1\r\nsecond 2\r\n").start().unwrap();
    let first = vm.expect(["first", "1"], BOOT).unwrap();
    let second = vm.expect_any(["absent", "second"], BOOT).unwrap();
    assert_eq!((second.index, second.line.as_str()), (1, "second 2"));
    assert!(first.at <= second.at && second.at <= vm.console().elapsed());
    let (evidence, process) = (vm.evidence().to_path_buf(), vm.process_id().unwrap());
    assert!(fs::read_to_string(evidence.join("console.log")).unwrap().contains("second 2"));
    drop(vm);
    assert!(!evidence.exists());
    assert!(!Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn a_missed_deadline_names_everything_and_keeps_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = machine("deadline", folder.path(), "present\r\n").start().unwrap();
    vm.expect("present", BOOT).unwrap();
    let error = vm.expect("absent", Duration::from_millis(200)).unwrap_err();
    drop(vm);
    assert_eq!(error.cause, ConsoleError::Deadline(Duration::from_millis(200)));
    let message = error.to_string();
    for part in ["\"absent\"", "200ms", "present", error.evidence.to_str().unwrap()] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    let screenshot = fs::read(error.evidence.join("screen.png")).unwrap();
    assert!(screenshot.starts_with(b"\x89PNG"));
    for file in ["console.log", "console-times.txt", "qemu.stderr", "qemu.args", "disk0.img", "disks.txt"] {
        assert!(error.evidence.join(file).exists(), "{file}");
    }
}

#[test]
fn a_power_cut_keeps_the_disk_and_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = machine("power", folder.path(), "run A\r\n").start().unwrap();
    vm.expect("run A", BOOT).unwrap();
    vm.power_cut();
    assert!(!vm.is_running());
    let letter = mbr_print("run A").windows(5).position(|window| window == b"run A").unwrap() as u64 + 4;
    flip_byte(folder.path().join("disk.img"), letter).unwrap();
    vm.start_again().unwrap();
    let again = vm.expect("run ", BOOT).unwrap();
    assert_ne!(again.line, "run A");
    vm.reset().unwrap();
    vm.expect("run ", BOOT).unwrap();
    assert_eq!(vm.qmp().unwrap().status().unwrap(), "running");
    vm.qmp().unwrap().wait_event("RESET", BOOT).unwrap();
    vm.qmp().unwrap().quit().unwrap();
    assert!(vm.wait_exit(BOOT).unwrap().success());
}

#[test]
fn an_exit_or_a_fatal_line_fails_early() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = machine("fatal", folder.path(), "broken\r\n").fatal("broken").start().unwrap();
    let begin = Instant::now();
    assert_eq!(vm.expect("never", 2 * BOOT).unwrap_err().cause, ConsoleError::Fatal("broken".into()));
    assert!(begin.elapsed() < BOOT);
    drop(vm);

    let spec = machine("exit", folder.path(), "").extra(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    let mut image = mbr_exit(4).to_vec();
    image.resize(1 << 20, 0);
    fs::write(folder.path().join("disk.img"), image).unwrap();
    let mut vm = spec.start().unwrap();
    assert_eq!(vm.expect("never", 2 * BOOT).unwrap_err().cause, ConsoleError::Closed);
    assert_eq!(vm.wait_exit(BOOT).unwrap().code(), Some(9));
}

#[test]
fn the_hard_deadline_holds_without_anybody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = machine("hard", folder.path(), "up\r\n").deadline(Duration::from_secs(1)).start().unwrap();
    let error = vm.expect("never", BOOT).unwrap_err();
    assert_eq!((error.cause, error.overdue), (ConsoleError::Closed, Some(Duration::from_secs(1))));
}

#[test]
fn a_usb_stick_goes_before_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let stick = folder.path().join("stick.img");
    let mut image = mbr_print("from the stick\r\n").to_vec();
    image.resize(1 << 20, 0);
    fs::write(&stick, image).unwrap();
    let spec = machine("usb", folder.path(), "from the disk\r\n").boot(BootMedium::Usb(stick));
    let found = spec.start().unwrap().expect("from the", BOOT).unwrap();
    assert_eq!(found.line, "from the stick");
}

#[test]
fn uefi_starts_and_a_refused_machine_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let spec = machine("uefi", folder.path(), "").firmware(Firmware::Uefi).memory_mib(256);
    spec.start().unwrap().expect("BdsDxe", 2 * BOOT).unwrap();
    let error = spec.disk(Disk::new("/nonexistent", DiskBus::Nvme)).start().unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

/// A script in the place of a kernel is all that iPXE needs to show that it was loaded.
#[test]
fn the_network_card_runs_a_boot_script() {
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let folder = tempfile::tempdir().unwrap();
        let script = "#!ipxe\nimgfetch witness\n";
        fs::write(folder.path().join("boot.ipxe"), script).unwrap();
        fs::write(folder.path().join("witness"), "seen").unwrap();
        let medium = BootMedium::Pxe { folder: folder.path().into(), script: "boot.ipxe".into() };
        let spec = machine("pxe", folder.path(), "from the disk\r\n").boot(medium).firmware(firmware);
        let mut vm = spec.memory_mib(256).network(Network::default()).start().unwrap();
        vm.expect("witness... ok", 2 * BOOT).unwrap();
    }
}
