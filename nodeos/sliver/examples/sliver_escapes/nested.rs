//! What is attempted from namespaces of one's own, where a sliver may have them.

use crate::attempts::{
    Attempt,
    Nested::Own,
    Proof::{ImageUnchanged, NeighbourCan, Refused},
};

/// What begins a program in namespaces of its own: user, mount, host name, queues and control groups. The processes it sees, and the
/// network, are the sliver's.
pub(crate) const NEST: &str = "nest(0xe020000);";

/// What is attempted only from namespaces of one's own.
pub(crate) const NESTED_ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "nested-proc",
        tries: "writes and reads what is the node's in a /proc of its own, which has no covers",
        program: r#"nest(0x20020000); child(sub { mkdir "/opt/p"; syscall(165, my $x = "proc", my $p = "/opt/p", my $t = "proc", 0, 0) == 0 or die "no proc: $!";
            put("/opt/p/$_", slurp("/opt/p/$_") || "x") for qw(sys/kernel/panic sys/kernel/core_pattern sys/vm/overcommit_memory sys/fs/file-max
                sys/net/ipv4/ip_forward sys/kernel/pid_max irq/default_smp_affinity sysrq-trigger mtrr);
            get("/opt/p/$_") for qw(kcore kmsg kpagecount vmallocinfo slabinfo timer_list sys/vm/stat_refresh);
            $! = 1; verdict("addresses in kallsyms", slurp("/opt/p/kallsyms") =~ /^(?!0+ )\S/m) })"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-covers",
        tries: "takes the covers off /proc and its mounts apart, in a mount namespace of its own",
        program: r#"nest(0x20000); mkdir "/opt/m"; call("umount $_", 166, $_, 2) for qw(/proc/sys /proc/kcore /proc/sysrq-trigger /sys /proc /dev/null /dev/pts /dev /run);
            call("remount", 165, "", "/proc/sys", "", 32 | 4096, 0); call("move", 165, "/proc/sys", "/opt/m", "", 8192, 0);
            call("bind without covers", 165, "/proc", "/opt/m", "", 4096, 0); call("copy without covers", 428, -100, "/proc", 1);
            call("setattr", 442, -100, "/proc/sys", 0, pack("QQQQ", 0, 1, 0, 0), 32); call("reconfigure", 165, "", "/", "", 32, "lowerdir=/etc")"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-file-systems",
        tries: "mounts the disk and what is the kernel's",
        program: r#"nest(0x20000); mkdir "/opt/m"; call("mount $_", 165, "/dev/vda", "/opt/m", $_, 0, 0)
            for qw(ext4 xfs vfat iso9660 debugfs tracefs configfs securityfs devtmpfs sysfs pstore)"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-device-nodes",
        tries: "makes device nodes on a file system of its own",
        program: r#"nest(0x20000); mkdir "/opt/m"; syscall(165, my $x = "x", my $m = "/opt/m", my $t = "tmpfs", 0, 0) == 0 or die "no tmpfs: $!";
            call("mknod $_->[0]", 133, "/opt/m/$_->[0]", $_->[1], $_->[2] << 8 | $_->[3]) for [b => 060600, 254, 0], [c => 020600, 1, 1]"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-cgroup",
        tries: "writes limits by control groups that it mounts",
        program: r#"nest(0x2020000); mkdir "/opt/m"; syscall(165, my $x = "x", my $m = "/opt/m", my $t = "cgroup2", 0, 0) == 0 or die "no control groups: $!";
            put("/opt/m/$_->[0]", $_->[1]) for ["pids.max", "max"], ["memory.max", "max"], ["cgroup.procs", "0"], ["cgroup.subtree_control", "+pids"],
                ["cgroup.freeze", "0"], ["../pids.max", "max"], ["../init/cgroup.procs", "0"];
            verdict("making a group", mkdir "/opt/m/own"); $! = 2; verdict("groups of others", scalar grep { -d } glob "/opt/m/../*one* /opt/m/../init")"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-image",
        tries: "writes the image through an overlay of its own",
        program: r#"nest(0x20000); mkdir "/opt/m"; syscall(165, my $x = "x", my $m = "/opt/m", my $t = "tmpfs", 0, 0) == 0 or die;
            mkdir "/opt/m/$_" for qw(u w o); syscall(165, $x, my $o = "/opt/m/o", my $k = "overlay", 0, my $l = "lowerdir=/usr,upperdir=/opt/m/u,workdir=/opt/m/w,userxattr") == 0 or die "no overlay: $!";
            open(my $f, ">>", "/opt/m/o/bin/true") or die "no file: $!"; syswrite $f, "x"; chmod 0777, "/opt/m/o/bin/false"; unlink "/opt/m/o/bin/env";
            syscall(165, my $u = "/usr", my $b = "/mnt", $x, 4096, 0) == 0 or die; open($f, ">>", "/mnt/bin/yes"); syswrite $f, "x"; print "refused to matter\n""#,
        proof: ImageUnchanged,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-ids",
        tries: "has ids of others in a user namespace",
        program: r#"for my $map ("0 0 65537", "0 65536 1", "1 131072 1", "0 4294901760 65535") { for my $file (qw(uid_map gid_map)) {
            pipe(my $r, my $w); my $p = fork; if (!$p) { syscall(272, 0x10000000); syswrite $w, "x"; sleep 1; exit } sysread $r, my $b, 1;
            open(my $f, ">", "/proc/$p/$file") or die; verdict("$map in $file", syswrite $f, "$map\n"); kill 9, $p; waitpid $p, 0 } }"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "nested-network-of-others",
        tries: "joins the node's network with the rights it has over its own",
        program: r#"my @before = map { "/proc/$_/ns/net" } 1, getppid, $$; sysopen(my $mine, $before[2], 0) or die; nest(0x40000000);
            call("the one of the node", 308, fileno($mine), 0x40000000); for (@before[0, 1]) { verdict("opening $_", sysopen(my $f, $_, 0)) }
            verdict("packet socket", socket(my $s, 17, 3, 0x300)); verdict("packet filter", socket(my $n, 16, 3, 12))"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "all-namespaces",
        tries: "makes namespaces until it may not",
        program: r#"my $n = 0; for (1 .. 50) { my $p = fork; last unless defined $p; next if $p; syscall(272, 0x7e020000); sleep 1000 } hold("namespaces")"#,
        proof: NeighbourCan(r#"nest(0x6e020000); print "can""#),
        control: false,
        nested: Own,
    },
    Attempt {
        name: "all-mounts",
        tries: "mounts until it may not",
        program: r#"nest(0x20000); my $n = 0; $n++ while $n < 10000 && syscall(165, my $x = "x", my $m = "/opt", my $t = "tmpfs", 0, 0) == 0; hold("$n mounts, then $!")"#,
        proof: NeighbourCan(
            r#"nest(0x20000); syscall(165, my $x = "x", my $m = "/opt", my $t = "tmpfs", 0, 0) == 0 or die; print "can""#,
        ),
        control: false,
        nested: Own,
    },
];
