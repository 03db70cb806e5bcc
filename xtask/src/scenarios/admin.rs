//! Administrative slices: what an operator shows and allows them of the node, and that nobody else has any of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::Ssh;

use super::{Bench, SLIVER, installed, packages::done};
use crate::lab::{Lab, Node, NodeOptions};

/// One command on an emulated processor.
const COMMAND: Duration = Duration::from_secs(120);
/// Until a node has asked central again, and done what it was told.
const TOLD: Duration = Duration::from_secs(90);

/// Makes a packet socket and one for raw ICMP, without options and with the flags that programs set; says how that ended.
const SOCKETS: &str = r#"perl -e '
    for my $a ([17, 3, 0x300], [17, 0x80803, 0x300], [17, 2, 0x300], [2, 3, 1], [10, 3, 58]) {
        print socket(my $s, $$a[0], $$a[1], $$a[2]) ? "made" : "no: $!", "\n";
    }'"#;
/// What that prints without the right, and with it.
const REFUSED: &str = "no: Address family not supported by protocol\nno: Address family not supported by protocol\n\
    no: Address family not supported by protocol\nno: Operation not permitted\nno: Operation not permitted\n";
const MADE: &str = "made\nmade\nmade\nmade\nmade\n";
/// Captures packets of the whole node until a neighbour's is among them.
const CAPTURE: &str = r#"perl -e '
    socket(my $s, 17, 3, 0x300) or die "socket: $!"; open(my $f, ">", "/root/ready"); close $f; alarm 100;
    while (sysread($s, my $packet, 2000)) { if ($packet =~ /needle in a haystack/) { print "seen\n"; last; } }'"#;
/// A neighbour's datagram, again and again.
const SEND: &str = r#"perl -e 'socket(my $s, 2, 2, 17) or die $!; my $to = pack("S n C4 x8", 2, 9, 10, 0, 2, 2);
    for (1 .. 100) { send($s, "needle in a haystack", 0, $to) or die $!; select(undef, undef, undef, 0.2); }'"#;

pub(super) fn slice(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, _vm) = installed(&lab, "n1", NodeOptions::default())?;
    for slice in ["demo/watch", "demo/plain"] {
        lab.add_slice(slice, &["n1"], &[])?;
        node.run_when_ready(&lab, &slice.replace('/', "_"), "true", SLIVER)?;
    }
    let (watch, plain) = (node.ssh("demo_watch"), node.ssh("demo_plain"));
    printed(&watch, SOCKETS, REFUSED)?;
    ordinary(&watch)?;

    // A view alone allows nothing.
    let views = ["--view", "processes,cgroups,hardware,events"];
    admin(&lab, &views)?;
    until(&node, &watch, "ls /node", "cgroup\nevents.jsonl\nproc\nsys\n")?;
    printed(&watch, SOCKETS, REFUSED)?;
    views_show(&watch, &plain)?;
    nothing_is_written(&watch, 0)?;

    admin(&lab, &[&views[..], &["--capability", "net_raw"]].concat())?;
    until(&node, &watch, SOCKETS, MADE)?;
    captures(&watch, &plain)?;
    nothing_is_written(&watch, 1)?;
    // Root in the sliver is root there and no more; packages and users work as they did.
    printed(
        &watch,
        "id -u; useradd -m somebody && su somebody -c 'id -un'; cat /proc/self/uid_map | wc -l",
        "0\nsomebody\n1\n",
    )?;
    // It is a right of root's inside, not of a user's.
    let as_user = format!("cat > /tmp/sockets << 'end'\n{SOCKETS}\nend\nsu somebody -c 'sh /tmp/sockets' | sort -u");
    printed(&watch, &as_user, "no: Operation not permitted\n")?;
    printed(&plain, SOCKETS, REFUSED)?;
    ordinary(&plain)?;
    refused_to_users(&lab)?;

    // What was given is taken away, and ends with whatever used it.
    done(&watch, &format!("setsid {CAPTURE} > /dev/null 2>&1 < /dev/null &"))?;
    admin(&lab, &["--none"])?;
    until(&node, &watch, SOCKETS, REFUSED)?;
    ordinary(&watch)?;
    printed(&watch, "pidof perl || echo none", "none\n")
}

fn admin(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let said = lab.orrery([&["slice", "admin", "demo/watch"], arguments].concat(), [] as [&str; 0])?;
    let shown = said["admin"]["views"].as_array().map_or(0, Vec::len);
    let expect = if arguments.contains(&"--none") { 0 } else { 4 };
    ensure!(shown == expect, "`orrery slice admin {arguments:?}` shows {said}");
    Ok(())
}

fn printed(ssh: &Ssh, command: &str, expect: &str) -> Result<()> {
    let output = ssh.run(command, COMMAND).context("running the ssh client")?;
    ensure!(output.stdout == expect, "`{command}` as {} printed {output}", ssh.user);
    Ok(())
}

/// Waits until the node knows of a change.
fn until(node: &Node, ssh: &Ssh, command: &str, expect: &str) -> Result<()> {
    let said = || Ok(ssh.run(command, COMMAND).context("running the ssh client")?.stdout == expect);
    node.wait_for(TOLD, &format!("{expect:?} from `{command}`"), said)
}

/// An ordinary sliver's /node is nothing, or an empty folder.
fn ordinary(ssh: &Ssh) -> Result<()> {
    printed(ssh, "ls -A /node 2> /dev/null; grep -c ' /node' /proc/mounts; pidof orrery-nodeos", "0\n")
}

/// Everything of the node is seen: its services, its neighbour's process with the memory it takes, its network card, its reports.
fn views_show(watch: &Ssh, plain: &Ssh) -> Result<()> {
    done(plain, "setsid sleep 4321 < /dev/null > /dev/null 2>&1 &")?;
    let seen = "tr '\\0' ' ' < /node/proc/1/cmdline; echo; for p in /node/proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2> /dev/null | grep -cx 'sleep 4321 '; \
        cat /node/cgroup/slivers/demo_plain/pids.max; test $(cat /node/cgroup/slivers/demo_plain/memory.current) -gt 0 && echo used; \
        test $(cat /node/sys/class/net/eth0/statistics/rx_bytes) -gt 0 && echo received; ls -l /node/events.jsonl | cut -c1-10";
    let said = done(watch, seen)?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.first().is_some_and(|init| init.contains("init")), "PID 1 is {said}");
    ensure!(lines[1..] == ["1", "256", "used", "received", "-rw-------"], "the view shows {said}");
    // What is on its way to central is there for as long as it is.
    done(watch, "grep -a . /node/events.jsonl > /dev/null; test $? -lt 2").map(drop)
}

/// With so many brokers of sockets beside it: not through any view, by any right of the sliver's root; and what is for the node's root alone stays so.
fn nothing_is_written(watch: &Ssh, brokers: usize) -> Result<()> {
    let attempts = "
        try() { if sh -c \"$1\" 2> /dev/null > /dev/null; then echo \"WORKED: $1\"; else echo refused; fi; }
        try 'echo 1 > /node/proc/sys/kernel/panic'
        try 'echo b > /node/proc/sysrq-trigger && ! test /node/proc/sysrq-trigger -ef /dev/null'
        try 'echo -1000 > /node/proc/self/oom_score_adj'
        try 'echo 10 > /node/cgroup/slivers/demo_plain/pids.max'
        try 'echo 1 > /node/cgroup/slivers/demo_plain/cgroup.kill'
        try 'echo 1 > /node/cgroup/slivers/demo_plain/cgroup.freeze'
        try 'mkdir /node/cgroup/mine'
        try 'echo $$ > /node/cgroup/cgroup.procs'
        try 'echo 1 > /node/sys/class/net/eth0/mtu'
        try 'echo x >> /node/events.jsonl'
        try 'rm /node/events.jsonl'
        try 'touch /node/mine'
        try 'mount -o remount,rw /node/proc'
        try 'umount /node/proc'
        try 'cat /node/proc/1/environ'
        try 'ls /node/proc/1/root/'
        try 'ls /node/proc/1/fd'
        try 'head -c1 /node/proc/1/mem'
        try 'cat /node/proc/1/root/run/orrery/node.json'
        try 'test -s /node/proc/kcore'
        try 'cat /node/proc/kallsyms | grep -q .'
        try 'nsenter --net=/node/proc/1/ns/net true'
        try 'ip link set dev eth0 down'
        try 'ip route add 192.0.2.0/24 via 10.0.2.2'
        brokers() { for p in /node/proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '^/proc/self/exe sliver-sockets' && echo $p; done; }
        for broker in $(brokers 2> /dev/null) none; do
            try \"cat $broker/environ\"
            try \"ls $broker/fd\"
        done
        ";
    let said = done(watch, attempts)?;
    let expect = 24 + 2 * (1 + brokers);
    ensure!(!said.contains("WORKED") && said.lines().count() == expect, "in an administrative sliver: {said}");
    Ok(())
}

/// A neighbour's datagrams are captured, and belong to the sliver that sent them.
fn captures(watch: &Ssh, plain: &Ssh) -> Result<()> {
    done(
        watch,
        &format!(
            "rm -f /root/ready; setsid {CAPTURE} > /root/captured 2>&1 < /dev/null & until test -e /root/ready; do :; done"
        ),
    )?;
    done(plain, SEND)?;
    printed(
        watch,
        "for i in $(seq 100); do test -s /root/captured && break; sleep 0.1; done; cat /root/captured",
        "seen\n",
    )
}

/// Whoever is no operator cannot make a slice administrative, least of all by what he may say of it.
fn refused_to_users(lab: &Lab) -> Result<()> {
    let mut stranger = lab.operator_command();
    let nowhere = lab.folder.join("nobody");
    stranger.env("ORRERY_OPERATOR", &nowhere).args(["slice", "admin", "demo/plain", "--view", "processes"]);
    let refused = stranger.output().context("running orrery as nobody")?;
    ensure!(!refused.status.success(), "nobody made a slice administrative");
    let spec = lab.orrery(["slice", "show", "demo/plain"], [] as [&str; 0])?;
    ensure!(spec.get("admin").is_none(), "an ordinary slice is shown as {spec}");
    Ok(())
}
