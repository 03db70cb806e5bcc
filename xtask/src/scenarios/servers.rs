//! A sliver as a server: Debian's sshd, cron and a database, installed and started by its root.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{
    Network, free_port,
    ssh::{HostKeys, Ssh},
};

use super::{
    Bench, INSTALLED, SLIVER,
    downloads::{Manner, Mirror},
    packages::done,
};
use crate::{
    apt::{Apt, Freshness},
    lab::{NodeOptions, PackageArchive},
};

/// Until a sliver has ended, after it was asked to start over.
const TOLD: Duration = Duration::from_secs(90);
/// From one minute's jobs to the next, and a while for cron to do them.
const JOBS: Duration = Duration::from_secs(100);
/// Where the sliver's own sshd listens. Ports below 23 are the node's.
const PORT: u16 = 2222;

/// The three are installed by apt, do what they are for, are ended with the sliver, and start again with all that they kept.
pub(super) fn servers(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let served = bench.folder.join("archive");
    let mut archive = PackageArchive::create(&served)?;
    let apt = Apt::open(bench.workspace, Freshness::Daily)?;
    let cache = bench.workspace.cache.join("apt/servers");
    let image = bench.images.folder.join("debian.tar.zst");
    archive.download(&apt, &image, &cache, &["openssh-server", "cron", "redis-server"])?;
    archive.index()?;
    let mirror = Mirror::start(&served, Manner::Good)?;

    let node = lab.add_node("n1", NodeOptions::default())?;
    let port = free_port().context("finding a free port")?;
    let network = Network::default().forward(node.ssh_port, 22).forward(port, PORT);
    let mut vm = node.spec.clone().network(network).start()?;
    vm.expect(["stage install ok"], INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    lab.add_slice("demo/server", &["n1"], &[])?;
    node.run_when_ready(&lab, "demo_server", "true", SLIVER)?;
    let root = node.ssh("demo_server");

    let key = lab.user_key();
    let public = fs::read_to_string(key.with_extension("pub")).context("reading the user's key")?;
    let prepare = format!(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* && \
         echo 'deb [trusted=yes] {}/ ./' > /etc/apt/sources.list.d/lab.list && \
         mkdir -p /etc/ssh/sshd_config.d && echo 'Port {PORT}' > /etc/ssh/sshd_config.d/lab.conf && \
         useradd -m -s /bin/bash somebody && install -d -o somebody /home/somebody/.ssh && \
         echo '{}' > /home/somebody/.ssh/authorized_keys && \
         echo '* * * * * somebody id -un > /home/somebody/job' > /etc/cron.d/lab",
        mirror.url,
        public.trim()
    );
    done(&root, &prepare)?;
    let install = "export DEBIAN_FRONTEND=noninteractive; apt-get -qy update && \
        apt-get -qy --no-install-recommends install openssh-server cron redis-server";
    done(&root, install)?;
    let start = "for it in ssh cron redis-server; do service $it start || exit; done";
    done(&root, start)?;

    // Through the sliver's own sshd, as a user that the node knows nothing of.
    let somebody = Ssh {
        port,
        user: "somebody".into(),
        key,
        known_hosts: lab.folder.join("server_known_hosts"),
        host_keys: HostKeys::AcceptNew,
    };
    ensure!(done(&somebody, "id -un")? == "somebody\n", "somebody else answers");
    ensure!(done(&somebody, "redis-cli set kept well && redis-cli save")? == "OK\nOK\n", "the database keeps nothing");
    let job = || Ok(done(&somebody, "cat job 2> /dev/null; true")? == "somebody\n");
    node.wait_for(JOBS, "job done by cron", job)?;

    lab.orrery(["slice", "restart", "demo/server"], [] as [&str; 0])?;
    let ended = || Ok(done(&root, "pidof sshd cron redis-server || echo none")? == "none\n");
    node.wait_for(TOLD, "sliver without servers", ended)?;
    done(&root, &format!("rm /home/somebody/job; {start}"))?;
    // The same host, by the key that it made for itself.
    let again = Ssh { host_keys: HostKeys::Strict, ..somebody };
    ensure!(done(&again, "redis-cli get kept")? == "well\n", "the database lost what it had saved");
    let job = || Ok(done(&again, "cat job 2> /dev/null; true")? == "somebody\n");
    node.wait_for(JOBS, "job done by cron after the restart", job)
}
