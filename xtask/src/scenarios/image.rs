//! An image that a user brings, made by a tool that users have.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{Bench, SLIVER, installed};
use crate::{command, lab::NodeOptions};

/// Two layers by umoci, of which the second takes a file of the first away: imported, published, and started as a sliver.
pub(super) fn own(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let folder = lab.folder.join("own");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    make_layout(&folder, &bench.images.busybox)?;
    lab.publish_image("own", &folder)?;

    let (node, _vm) = installed(&lab, "n1", NodeOptions::default())?;
    let key = lab.user_key().with_extension("pub");
    lab.orrery(["slice", "add", "demo/own", "--image", "own", "--node", "n1", "--key"], [key])?;
    let inside = "cat /etc/second; test -e /etc/first && echo first; cat /.orrery/oci.json; echo; echo mine > /etc/second; id -u";
    let said = node.run_when_ready(&lab, "demo_own", inside, SLIVER)?;
    let lines: Vec<_> = said.stdout.lines().collect();
    ensure!(lines.first() == Some(&"two") && lines.last() == Some(&"0"), "not the image that was made: {said}");
    ensure!(!lines.contains(&"first"), "a file that a layer took away is there: {said}");
    ensure!(said.stdout.contains("/bin/greet"), "how the image wants to be run is lost: {said}");
    Ok(())
}

fn make_layout(folder: &Path, busybox: &Path) -> Result<()> {
    let umoci = |line: &str| command::output(Command::new("umoci").current_dir(folder).args(line.split(' '))).map(drop);
    umoci("init --layout layout")?;
    umoci("new --image layout:v1")?;
    umoci("config --image layout:v1 --config.entrypoint /bin/greet")?;
    umoci("unpack --image layout:v1 bundle")?;
    let root = folder.join("bundle/rootfs");
    let write = |name: &str, text: &str| fs::write(root.join(name), text).with_context(|| format!("writing {name}"));
    for name in ["bin", "etc", "root", "tmp"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("making {name}"))?;
    }
    fs::copy(busybox, root.join("bin/busybox")).context("copying busybox")?;
    for name in ["sh", "cat", "test", "id", "echo"] {
        symlink("busybox", root.join("bin").join(name)).with_context(|| format!("linking {name}"))?;
    }
    write("etc/first", "one\n")?;
    umoci("repack --refresh-bundle --image layout:v1 bundle")?;
    fs::remove_file(root.join("etc/first")).context("removing a file")?;
    write("etc/second", "two\n")?;
    umoci("repack --image layout:v1 bundle")
}
