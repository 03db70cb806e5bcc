//! What is wrong around a node: each has its own message, and its own recovery.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use orrery_protocol::find_area;
use orrery_qemu::{Disk, DiskBus, Network, Vm};

use super::{Bench, EARLY, INSTALLED};
use crate::lab::{Node, NodeOptions, ScriptOptions};

/// A blank config area, and one that was damaged.
pub(super) fn bad_configuration(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let stamped = fs::read(&node.medium).context("reading the medium")?;

    fs::copy(lab.images.join("orrery-boot.iso"), &node.medium).context("copying a blank medium")?;
    expect(&node, &["stage configure FAILED", "blank"])?;

    let blank = fs::read(&node.medium).context("reading the medium")?;
    let differs = stamped.iter().zip(&blank).rposition(|(a, b)| a != b).context("a stamped medium differs")?;
    fs::write(&node.medium, &stamped).context("writing the medium")?;
    orrery_qemu::flip_byte(&node.medium, differs as u64).context("damaging the medium")?;
    expect(&node, &["stage configure FAILED", "damaged"])
}

/// A CD with a scratch where the configuration is: it boots, says what it cannot read, and goes on to safe mode's console.
pub(super) fn bad_medium(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let area = find_area(&fs::read(&node.medium).context("reading the medium")?).context("a medium without an area")?;
    let mut vm = node.spec.clone().unreadable(area as u64).start()?;
    vm.expect(["stage configure FAILED", "media", "ORRERY.CFG"], EARLY)?;
    vm.expect("safe mode", EARLY)?;
    // The console is somebody's, and the machine still tries.
    vm.expect(["stage configure FAILED", "media", "ORRERY.CFG"], EARLY)?;
    Ok(())
}

/// No link, no DHCP answer, a name without an address, nobody listening.
pub(super) fn bad_network(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let mut unplugged = node.spec.clone().network(Network::default().link_down()).start()?;
    unplugged.expect(["stage network FAILED", "no-link"], EARLY)?;
    // Plugged in, it goes on by itself.
    unplugged.qmp()?.set_link(true)?;
    unplugged.expect("stage network ok", EARLY)?;
    drop(unplugged);

    // A network where nobody answers DHCP: a socket that nobody is connected to.
    let silent = node.spec.clone().no_network().extra([
        "-netdev",
        "dgram,id=silent,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,remote.host=127.0.0.1,remote.port=9",
        "-device",
        "virtio-net-pci,netdev=silent",
    ]);
    silent.start()?.expect(["stage network FAILED", "no-dhcp"], EARLY)?;

    let nowhere = NodeOptions { url: Some("https://central.invalid:8443".into()), ..NodeOptions::default() };
    let lost = lab.add_node("n2", nowhere)?;
    expect(&lost, &["stage contact FAILED", "dns"])?;

    lab.central.stop()?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage contact FAILED", "refused"], EARLY)?;
    // Back again, it is found without anybody's help.
    lab.central.start()?;
    vm.expect("stage contact ok", EARLY)?;
    Ok(())
}

/// No disk, several, a small one, one with somebody's data, and that it is left alone.
pub(super) fn bad_disk(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let none = lab.add_node("n0", NodeOptions { disk_bytes: 0, ..NodeOptions::default() })?;
    expect(&none, &["stage install FAILED", "no-disk"])?;
    let second = lab.folder.join("second.img");
    orrery_qemu::create_disk(&second, 8 << 30).context("making a second disk")?;
    let twin = lab.add_node("n4", NodeOptions::default())?;
    let mut vm = twin.spec.clone().disk(Disk::new(&second, DiskBus::Nvme).serial("second")).start()?;
    vm.expect(["stage install FAILED", "ambiguous-disk", "nvme0n1"], EARLY)?;
    drop(vm);

    let small = lab.add_node("n1", NodeOptions { disk_bytes: 64 << 20, ..NodeOptions::default() })?;
    let mut vm = small.spec.start()?;
    vm.expect(["stage install FAILED", "disk-too-small"], INSTALLED)?;
    small.wait_failure(&lab, "disk-too-small", EARLY)?;
    drop(vm);

    let full = lab.add_node("n2", NodeOptions::default())?;
    let foreign = foreign_disk(&full)?;
    let mut vm = full.spec.start()?;
    vm.expect(["stage install FAILED", "foreign-data"], INSTALLED)?;
    full.wait_failure(&lab, "foreign-data", EARLY)?;
    drop(vm);
    let mut after = vec![0; foreign.len()];
    std::io::Read::read_exact(&mut fs::File::open(&full.disk)?, &mut after).context("reading the disk")?;
    ensure!(after == foreign, "the disk with somebody's data was written to");

    let wiped = lab.add_node("n3", NodeOptions { arguments: vec!["--wipe".into()], ..NodeOptions::default() })?;
    foreign_disk(&wiped)?;
    let mut vm = wiped.spec.start()?;
    vm.expect("stage install ok", INSTALLED)?;
    Ok(())
}

/// A release that the disk cannot hold: refused and reported before the disk is touched; the next one is installed.
pub(super) fn full_disk(bench: &Bench<'_>) -> Result<()> {
    const DISK: u64 = 3 << 30;
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions { disk_bytes: DISK, ..NodeOptions::default() })?;
    let release = lab.publish_release_with("huge", DISK)?;
    lab.publish_script("install", &ScriptOptions { serial: 2, release, ..lab.usual_script() })?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage install FAILED", "disk-full"], INSTALLED)?;
    node.wait_failure(&lab, "disk-full", EARLY)?;
    let written = fs::metadata(&node.disk).context("looking at the disk")?.blocks();
    ensure!(written == 0, "{written} sectors of the empty disk were written");

    lab.publish_script("install", &ScriptOptions { serial: 3, ..lab.usual_script() })?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// A node without DHCP: its address stands in its configuration.
pub(super) fn static_address(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let arguments = ["--network", "static", "--address", "10.0.2.77/24", "--gateway", "10.0.2.2"];
    let options = NodeOptions { arguments: arguments.map(String::from).to_vec(), ..NodeOptions::default() };
    let node = lab.add_node("n1", options)?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage network ok", "10.0.2.77/24"], EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    Ok(())
}

fn expect<const N: usize>(node: &Node, pieces: &[&str; N]) -> Result<()> {
    let mut vm: Vm = node.spec.start()?;
    vm.expect(*pieces, EARLY)?;
    Ok(())
}

/// An ext4 superblock where one would be: enough to be somebody's.
fn foreign_disk(node: &Node) -> Result<Vec<u8>> {
    let mut start = vec![0u8; 4096];
    start[1024 + 56..1024 + 58].copy_from_slice(&0xef53u16.to_le_bytes());
    start[1024 + 120..1024 + 126].copy_from_slice(b"family");
    let mut disk = OpenOptions::new().write(true).open(&node.disk).context("opening the disk")?;
    disk.seek(SeekFrom::Start(0)).and_then(|_| disk.write_all(&start)).context("writing to the disk")?;
    Ok(start)
}
