//! What root does with packages in a sliver of the reference image, while the image stays as it is.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::{Output, Ssh};

use super::{
    Bench, SLIVER,
    downloads::{Manner, Mirror},
    installed,
};
use crate::lab::{NodeOptions, PackageArchive, RootShell};

/// One command on an emulated processor: apt and dpkg write and flush much.
const COMMAND: Duration = Duration::from_secs(400);
/// What the store has: every object's bits, and names, modes, owners, sizes, times and links of the trees.
const STORE: &str = "cd /data && find objects -type f | sort | xargs -n 400 sha256sum | sha256sum && \
    find trees | sort | xargs -n 400 stat -c '%N %f %u %g %s %Y %h' | sha256sum";
/// What a sliver sees of a package of the image.
const SEEN: &str = "dpkg-query -W perl-base; sha256sum /usr/bin/perl /var/lib/dpkg/status; \
    find /usr /etc /var -xdev | sort | sha256sum";

/// apt installs, upgrades and removes: packages of our own that do what package managers find hard on an overlay, a package
/// that the image itself came with. The objects below, and the neighbour that shares them, are what they were.
pub(super) fn packages(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let served = bench.folder.join("archive");
    let mut archive = PackageArchive::create(&served)?;
    let scratch = tempfile::tempdir_in(&bench.folder).context("making a folder for packages")?;
    archive.build(&greeter(scratch.path(), 1)?)?;
    archive.index()?;
    let mirror = Mirror::start(&served, Manner::Good)?;

    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.add_slice("demo/root", &["n1"], &[])?;
    lab.add_slice("demo/calm", &["n1"], &[])?;
    let (root, calm) = (node.ssh("demo_root"), node.ssh("demo_calm"));
    node.run_when_ready(&lab, "demo_root", "true", SLIVER)?;
    node.run_when_ready(&lab, "demo_calm", "true", SLIVER)?;
    let mut shell = RootShell::open(&node, &mut vm)?;
    let store = shell.run(STORE, COMMAND)?;
    let seen = done(&calm, SEEN)?;
    ensure!(done(&root, SEEN)? == seen, "two slivers of one image differ");

    let source = format!("echo 'deb [trusted=yes] {}/ ./' > /etc/apt/sources.list.d/lab.list", mirror.url);
    done(&root, &format!("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* && {source}"))?;
    let install = "export DEBIAN_FRONTEND=noninteractive; apt-get -qy update && apt-get -qy install greeter";
    done(&root, install)?;
    let state = "greet; greeter-twin; cat /usr/share/greeter/kept/note /etc/greeter.conf; \
        stat -c '%U %a' /var/lib/greeter; stat -c '%U %a %h' /usr/bin/greet /usr/lib/greeter/helper; \
        readlink /usr/share/greeter/link; ls /usr/share/greeter /usr/lib/greeter; dpkg -V greeter || true";
    let first = done(&root, state)?;
    ensure!(first == expected(1), "after the installation: {first}");

    // The user's word stands through upgrades.
    done(&root, "echo mine > /etc/greeter.conf")?;
    archive.build(&greeter(scratch.path(), 2)?)?;
    archive.repack(&bench.images.folder.join("debian.tar.zst"), "perl-base", "+lab1", scratch.path())?;
    archive.index()?;
    done(
        &root,
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qy update && \
        apt-get -qy -o Dpkg::Options::=--force-confold upgrade",
    )?;
    let second = done(&root, state)?;
    ensure!(second == expected(2), "after the upgrade: {second}");
    let upgraded = "dpkg-query -Wf '${Version}' perl-base | grep -q '+lab1$' && dpkg -V perl-base && \
        stat -c %h /usr/bin/perl && perl -e 'print \"alive\\n\"'";
    let perl = done(&root, upgraded)?;
    ensure!(perl == "2\nalive\n", "the upgraded interpreter: {perl}");

    done(&root, "apt-get -qy purge greeter && ! ls -d /usr/share/greeter /usr/lib/greeter /etc/greeter.conf 2>&1")?;
    done(&root, "! dpkg -l greeter 2>/dev/null | grep ^i && dpkg --audit && apt-get -qy check")?;

    ensure!(done(&calm, SEEN)? == seen, "the neighbour sees another image");
    // Of what was read from the disk, not of what is still in memory.
    let again = shell.run(&format!("sync; echo 3 > /proc/sys/vm/drop_caches; {STORE}"), COMMAND)?;
    ensure!(again == store, "the shared image changed: {store} became {again}");
    Ok(())
}

/// Runs a command that has to succeed, and returns what it printed.
pub(super) fn done(ssh: &Ssh, command: &str) -> Result<String> {
    let output: Output = ssh.run(command, COMMAND).context("running the ssh client")?;
    ensure!(output.success(), "`{command}` in the sliver: {output}");
    Ok(output.stdout)
}

/// The tree of a package with what is hard to replace: programs that are one file under two names, setuid, a file that belongs
/// to a user of its own, a link, a configuration file, and a folder that the next version lacks.
fn greeter(scratch: &Path, version: u32) -> Result<std::path::PathBuf> {
    let tree = scratch.join(format!("greeter-{version}"));
    let write = |name: &str, mode: u32, text: &str| -> Result<()> {
        let path = tree.join(name);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).with_context(|| format!("on {}", path.display()))
    };
    let control = format!(
        "Package: greeter\nVersion: {version}\nArchitecture: all\nMaintainer: Lab <lab@example.org>\n\
         Depends: adduser\nDescription: says hello\n"
    );
    write("DEBIAN/control", 0o644, &control)?;
    write("DEBIAN/conffiles", 0o644, "/etc/greeter.conf\n")?;
    let setup = "#!/bin/sh\nset -e\nadduser --system --quiet --home /var/lib/greeter greeter\nchown -R greeter /var/lib/greeter\n";
    write("DEBIAN/postinst", 0o755, setup)?;
    write("etc/greeter.conf", 0o644, &format!("from version {version}\n"))?;
    write("usr/bin/greet", 0o755, &format!("#!/bin/sh\necho hello {version}\n"))?;
    fs::hard_link(tree.join("usr/bin/greet"), tree.join("usr/bin/greeter-twin")).context("linking a program")?;
    write("usr/lib/greeter/helper", 0o4755, "#!/bin/sh\n")?;
    write("usr/share/greeter/kept/note", 0o644, &format!("note {version}\n"))?;
    symlink(format!("kept-{version}"), tree.join("usr/share/greeter/link")).context("linking")?;
    match version {
        1 => write("usr/share/greeter/gone/note", 0o644, "old\n")?,
        _ => write("usr/share/greeter/new", 0o644, "new\n")?,
    }
    Ok(tree)
}

/// What the scenario's look at the package prints.
fn expected(version: u32) -> String {
    let (configuration, other) = match version {
        1 => ("from version 1", "gone\nkept\nlink"),
        _ => ("mine", "kept\nlink\nnew"),
    };
    // dpkg tells that a configuration file is the user's.
    let verified = if version == 1 { "" } else { "??5?????? c /etc/greeter.conf\n" };
    format!(
        "hello {version}\nhello {version}\nnote {version}\n{configuration}\ngreeter 755\nroot 755 2\nroot 4755 1\nkept-{version}\n\
         /usr/lib/greeter:\nhelper\n\n/usr/share/greeter:\n{other}\n{verified}"
    )
}
