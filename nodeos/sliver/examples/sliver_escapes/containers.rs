//! Containers in a sliver that may nest them, by the programs people make them with. `incoming/debs` on the disk holds those that the
//! image lacks.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use orrery_sliver::{EnterRequest, Run, Stream};

use crate::{Node, TWO, errors, perl};

/// Makes containers of every kind.
pub(crate) fn run(node: &Node) -> Result<()> {
    install(node)?;
    for (what, line, part) in CONTAINERS {
        let text = inside(node, line, Stream::Null).with_context(|| format!("container by {what}"))?;
        ensure!(text.contains(part), "{what}: wrote {text:?}");
        println!("    {what}: {}", text.lines().last().unwrap_or_default());
    }
    // Nothing of them is left to the sliver, nor to the node.
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains("fuse"), "a container's mount is the node's");
    ensure!(
        inside(node, "ip -br link", Stream::Null)?.lines().all(|line| !line.starts_with("tun0")),
        "a tunnel is the node's"
    );
    Ok(())
}

/// Runs a command line; returns what it wrote.
fn inside(node: &Node, line: &str, input: Stream) -> Result<String> {
    let stdio = [input, Stream::Piped, errors()];
    let request = EnterRequest { run: Run::Command(line.into()), stdio, ..perl("") };
    let output = node.slivers.enter(TWO, request)?.session.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}, wrote {text:?}", output.status);
    Ok(text)
}

fn install(node: &Node) -> Result<()> {
    for entry in fs::read_dir("/data/incoming/debs").context("listing packages")? {
        let name = entry?.file_name();
        let package = File::open(std::path::Path::new("/data/incoming/debs").join(&name))?;
        inside(node, &format!("cat > /run/{}", name.display()), Stream::Given(package.into()))?;
    }
    inside(node, "dpkg -i /run/*.deb > /run/installed 2>&1 || { cat /run/installed; exit 1; }", Stream::Null).map(drop)
}

/// By what, how, and what it has to say.
const CONTAINERS: &[(&str, &str, &str)] = &[
    (
        "unshare",
        "unshare --user --map-root-user --pid --mount --net --ipc --uts --cgroup --fork --mount-proc sh -ec '
            hostname box; mount -t tmpfs none /mnt; echo kept > /mnt/file; ip link set lo up; ping -c1 127.0.0.1 >/dev/null;
            echo $(hostname) $(cat /mnt/file) $(ls -d /proc/[0-9]* | grep -c /proc/1$) $$'",
        "box kept 1 1",
    ),
    (
        "unshare, by a user with a range of ids",
        // Debian's are setuid root, which lets them write a map only with a capability that the sliver's root lacks.
        r#"chmod u-s /usr/bin/new?idmap; setcap cap_setuid+ep /usr/bin/newuidmap; setcap cap_setgid+ep /usr/bin/newgidmap
            useradd -m ann; echo ann:20000:1000 > /etc/subuid; cp /etc/subuid /etc/subgid
            su ann -s /bin/sh -c "cd /; exec unshare --user --map-auto --map-root-user --mount --pid --fork --mount-proc sh -ec '
                mount -t tmpfs none /mnt; touch /mnt/file; chown 5:7 /mnt/file; echo \$(id -u) \$(stat -c %u:%g /mnt/file) \$\$'""#,
        "0 5:7 1",
    ),
    (
        "bubblewrap",
        "bwrap --unshare-all --unshare-user --uid 1000 --gid 1000 --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp --hostname box \
            sh -ec 'touch /tmp/x; ! touch /etc/x 2>/dev/null; echo $(id -u) $(hostname) $(cat /proc/1/comm)'",
        "1000 box bwrap",
    ),
    (
        "crun, of an OCI bundle",
        r#"set -e; r=/run/bundle/rootfs; mkdir -p $r/proc $r/dev $r/sys $r/tmp; cd /run/bundle
            for f in /bin/sh /usr/bin/id /bin/cat /bin/hostname; do for l in $f $(ldd $f | grep -o '/[^ ]*'); do
                mkdir -p $r$(dirname $l); cp -L $l $r$l; done; done
            crun spec --rootless
            perl -0pi -e 's/"terminal": true/"terminal": false/; s/"sh"/"sh", "-c", "echo in a container: \$(id -u) \$(hostname) \$\$"/' config.json
            crun --cgroup-manager=disabled --root /run/crun run box"#,
        "in a container: 0 crun 1",
    ),
    (
        "fuse-overlayfs",
        "cd /run && mkdir -p l u w m && echo below > l/file && unshare --user --map-root-user --mount sh -ec '
            fuse-overlayfs -o lowerdir=l,upperdir=u,workdir=w m; cat m/file; echo above > m/file; umount m' && cat l/file u/file | tr '\\n' ' '",
        "below\nbelow above",
    ),
    (
        "a tunnel",
        "unshare --user --map-root-user --net sh -ec 'ip tuntap add dev tun0 mode tun; ip addr add 10.9.0.1/24 dev tun0; ip link set tun0 up;
            ip -br addr show tun0'",
        "10.9.0.1/24",
    ),
];
