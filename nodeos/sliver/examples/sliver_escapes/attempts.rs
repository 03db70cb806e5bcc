//! What is attempted from inside, as data: programs for perl, which has every system call at hand.
//!
//! A program prints a line for each thing it tries: `refused`, or `DONE` if the kernel let it. One that takes all it can get of
//! something ends with `holding` and keeps it until it is killed.

/// One attempt.
pub(crate) struct Attempt {
    /// Its name in reports.
    pub(crate) name: &'static str,
    /// What it is after.
    pub(crate) tries: &'static str,
    /// A perl program, after [`PRELUDE`].
    pub(crate) program: &'static str,
    /// What proves that it came to nothing, besides the node's state, which is looked at after each.
    pub(crate) proof: Proof,
    /// Whether the same program run by the node's root has to succeed, which proves that it would be noticed here.
    pub(crate) control: bool,
    /// What becomes of it in namespaces of one's own, where nesting is allowed.
    pub(crate) nested: Nested,
}

/// What becomes of an attempt in namespaces of one's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nested {
    /// The same.
    Same,
    /// It reaches what belongs to those namespaces. Nothing outside changes.
    Own,
}
use Nested::{Own, Same};

/// What proves that an attempt came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proof {
    /// All it tried was refused.
    Refused,
    /// The image has not changed; what the program says is of no consequence.
    ImageUnchanged,
    /// While it holds all it got, a neighbour can run this program.
    NeighbourCan(&'static str),
    /// The neighbour's processes live.
    NeighbourLives,
}
use Proof::{ImageUnchanged, NeighbourCan, NeighbourLives, Refused};

/// What every program begins with. `$control` is true for the node's root.
pub(crate) const PRELUDE: &str = r#"
$| = 1; alarm 100; $control = $ENV{CONTROL};
sub verdict { my ($what, $ok) = @_; my $why = "$!"; print $ok ? "DONE $what\n" : "refused $what: $why\n"; $ok }
# Perl passes strings by address, and only those that may change.
sub call { my ($what, $number, @arguments) = @_; my $r = syscall($number, @arguments); verdict($what, $r != -1); $r }
# To be replaced by /dev/null is to be refused.
sub null { my @s = stat $_[0]; @s && $s[6] == 0x103 }
sub put { my ($path, $text) = @_;
    $! = 0; return verdict("writing $path (masked)", 0) if null($path);
    my $f; verdict("writing $path", sysopen($f, $path, 1) && defined(syswrite $f, $text)) }
sub get { my ($path) = @_;
    $! = 0; return verdict("reading $path (masked)", 0) if null($path);
    my $f; verdict("reading $path", sysopen($f, $path, 0) && sysread($f, my $b, 64)) }
sub slurp { open(my $f, "<", $_[0]) or return ""; local $/; <$f> }
sub hold { print "took ", shift, "\nholding\n"; $SIG{HUP} = "DEFAULT"; alarm 0; sleep 1000; }
sub name { pack("S a*", 1, $_[0]) }
sub listener { my ($type, $name) = @_; socket(my $s, 1, $type, 0); bind($s, name($name)) or die "binding: $!";
    listen($s, 9) if $type == 1; push @listeners, $s }
sub reach { my ($what, $type, $name) = @_; socket(my $s, 1, $type, 0);
    verdict($what, $type == 1 ? connect($s, name($name)) : defined send($s, "x", 0, name($name))) }
# Goes to new namespaces, a user namespace of all ids among them.
sub nest { my $me = $$; pipe(my $wait, my $go); my $mapper = fork;
    if (!$mapper) { close $go; sysread $wait, my $b, 1;
        for (qw(uid_map gid_map)) { open(my $f, ">", "/proc/$me/$_") or die; syswrite($f, "0 0 65536\n") or die "mapping: $!" } exit 0 }
    syscall(272, 0x10000000 | $_[0]) == 0 or die "no namespaces: $!"; close $go; waitpid $mapper, 0; $? == 0 or die }
sub child { my $code = shift; my $pid = fork; defined $pid or return verdict("forking", 0);
    if (!$pid) { $code->(); exit 0 } waitpid $pid, 0; }
"#;

pub(crate) const ATTEMPTS: &[Attempt] = &[
    // Settings of the kernel.
    Attempt {
        name: "sysctl",
        tries: "writes settings of the kernel",
        program: r#"for (qw(kernel/panic kernel/core_pattern kernel/modprobe kernel/hostname kernel/randomize_va_space vm/overcommit_memory
            fs/file-max net/ipv4/ip_forward user/max_user_namespaces kernel/ns_last_pid)) {
            my $path = "/proc/sys/$_"; next unless -e $path; my $now = slurp($path); put($path, $now ne "" ? $now : "x") }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "sysrq",
        tries: "asks the kernel for help, as for a crash",
        program: r#"put("/proc/sysrq-trigger", "h")"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "proc-files",
        tries: "writes what is the hardware's in /proc",
        program: r#"put($_, slurp($_)) for "/proc/irq/default_smp_affinity", $control ? () : ("/proc/mtrr", "/proc/bus/pci/00/00.0");
            my @seen = glob("/proc/irq/* /proc/bus/* /proc/acpi/* /proc/fs/* /proc/driver/* /proc/scsi/*"); $! = 2; verdict("seeing @seen[0 .. 3]", scalar @seen);
            get($_) for qw(/proc/interrupts /proc/iomem /proc/key-users)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "kernel-memory",
        tries: "reads the kernel's memory and addresses",
        program: r#"get($_) for qw(/proc/kcore /proc/kmsg /proc/kpagecount /proc/keys /proc/vmallocinfo /proc/slabinfo /proc/timer_list);
            get("/dev/mem"), get("/dev/kmsg") unless $control;
            my $k = slurp("/proc/kallsyms"); $! = 1; verdict("addresses in kallsyms", $k =~ /^(?!0+ )\S/m) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "kernel-log",
        tries: "reads and clears the kernel's log",
        program: r#"my $b = "x" x 256; call("reading the log", 103, 3, $b, 256); call("its size", 103, 10, 0, 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // Devices.
    Attempt {
        name: "device-nodes",
        tries: "makes device nodes: disk, memory, console",
        program: r#"for ([b => 060600, 254, 0], [b => 060600, 253, 0], [c => 020600, 1, 1], [c => 020600, 5, 1], [c => 020600, 10, 237]) {
            my ($kind, $mode, $major, $minor) = @$_;
            my $path = "/opt/device-$kind-$major"; unlink $path;
            call("mknod $kind $major $minor", 133, $path, $mode, $major << 8 | $minor) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "ports",
        tries: "reaches the hardware's ports",
        program: r#"call("ioperm", 173, 0x70, 2, 1); call("iopl", 172, 3)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    // Namespaces and other processes.
    Attempt {
        name: "setns",
        tries: "joins namespaces by the first process and its own",
        program: r#"for my $n (qw(net ipc uts cgroup)) { for my $p (1, "self") {
            my $f; verdict("opening $n of $p", 0), next unless sysopen($f, "/proc/$p/ns/$n", 0);
            call("setns $n of $p", 308, fileno($f), 0) } }"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "unshare",
        tries: "makes namespaces of every kind",
        program: r#"for ([user => 0x10000000], [mount => 0x20000], [net => 0x40000000], [uts => 0x4000000], [ipc => 0x8000000], [pid => 0x20000000],
            [cgroup => 0x2000000], [time => 0x80]) { my ($kind, $flag) = @$_;
            child(sub { call("unshare $kind", 272, $flag) }) }"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "clone",
        tries: "makes processes in new namespaces",
        program: r#"for (0x10000000, 0x20000, 0x40000000, 0x30020000) {
            my $r = call(sprintf("clone %#x", $_), 56, $_ | 17, 0, 0, 0, 0);
            exit 0 if $r == 0; waitpid $r, 0 if $r > 0 }
            my $r = call("clone3", 435, pack("Q11", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88);
            exit 0 if $r == 0"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "trace-first-process",
        tries: "traces the sliver's first process, which the node made",
        program: r#"call("seizing", 101, 0x4206, 1, 0, 0); call("attaching", 101, 16, 1, 0, 0) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "first-process-memory",
        tries: "looks into the first process: memory, environment, root, descriptors",
        program: r#"get("/proc/1/maps"); get("/proc/1/auxv");
            verdict("listing its descriptors", opendir(my $d, "/proc/1/fd"));
            verdict("its root", chdir "/proc/1/root"); verdict("its program", sysopen(my $f, "/proc/1/exe", 0));
            verdict("opening its memory", sysopen(my $m, "/proc/1/mem", 2));
            my $b = "x" x 8; my $i = pack("P8 Q", $b, 8);
            call("process_vm_readv", 310, 1, $i, 1, pack("QQ", 0x400000, 8), 1, 0) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "outside-processes",
        tries: "signals, opens and traces every process number that is not its own sliver's",
        program: r#"my %own = map { $_ => 1 } map { m{(\d+)$} } glob "/proc/[0-9]*"; my $met = 0;
            for my $p (1 .. 3000) { next if $own{$p};
                $met++ if kill(0, $p) or syscall(434, $p, 0) != -1 or syscall(101, 0x4206, $p, 0, 0) != -1; }
            $! = 3; verdict("$met processes met", $met);
            verdict("the node in /proc", scalar grep { slurp($_) =~ /^kthreadd/ } glob "/proc/[0-9]*/comm")"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "outside-roots",
        tries: "finds the node's files by the roots of processes in /proc",
        program: r#"my @found = grep { -e "$_/data/slivers" or -e "$_/../data/slivers" } glob("/proc/[0-9]*/root /proc/[0-9]*/cwd");
            $! = 2; verdict("@found", scalar @found)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "kill-all",
        tries: "kills every process it can name",
        program: r#"$SIG{TERM} = "IGNORE"; kill "KILL", grep { $_ != $$ } 2 .. 5000; kill "TERM", -1; kill "KILL", 1; print "refused to be told apart\n""#,
        proof: NeighbourLives,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "first-process-door",
        tries: "takes descriptors of the first process and of its session",
        program: r#"for my $p ($control ? 1 : (1, getppid)) { my $f = syscall(434, $p, 0);
            for my $n (0 .. 9) { last if $control && $n; call("descriptor $n of $p", 438, $f, $n, 0) } }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "session-memory",
        tries: "traces its session and looks into it",
        program: r#"my $p = getppid; call("seizing", 101, 0x4206, $p, 0, 0); get("/proc/$p/maps");
            verdict("listing its descriptors", opendir(my $d, "/proc/$p/fd")); verdict("its program", sysopen(my $f, "/proc/$p/exe", 0));
            verdict("opening its memory", sysopen(my $m, "/proc/$p/mem", 2)); put("/proc/$p/oom_score_adj", 500)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "abstract-sockets",
        tries: "reaches the node's and a neighbour's sockets by names that the network shares",
        program: r#"for my $who ("node", $control ? () : "neighbour") {
            reach("the $who by stream", 1, "\0$who-stream"); reach("the $who by datagram", 2, "\0$who-datagram") }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // Mounts and roots.
    Attempt {
        name: "mount",
        tries: "mounts file systems: memory, proc, sysfs, cgroup, overlay, the disk",
        program: r#"mkdir "/opt/m"; for (qw(tmpfs proc sysfs cgroup2 devpts mqueue bpf devtmpfs)) { call("mount $_", 165, "x", "/opt/m", $_, 0, 0) }
            call("mount overlay", 165, "x", "/opt/m", "overlay", 0, "lowerdir=/etc:/usr")"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "mount-changes",
        tries: "makes /proc/sys writable, binds over it, moves it, uncovers it",
        program: r#"mkdir "/opt/m"; call("remount", 165, "", "/proc/sys", "", 32 | 4096, 0); call("bind", 165, "/opt/m", "/mnt", "", 4096, 0);
            call("bind proc", 165, "/proc/self", "/proc/fs", "", 4096, 0); call("move", 165, "/proc/sys", "/opt/m", "", 8192, 0);
            call("shared", 165, "", "/", "", 1 << 20, 0);
            for ("/proc/sys", "/proc/kcore", "/proc/sysrq-trigger", "/sys", "/proc") { call("umount $_", 166, $_, 2) unless $control }"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "mount-descriptors",
        tries: "the same by descriptors",
        program: r#"call("fsopen", 430, "tmpfs", 0); call("open_tree", 428, -100, "/etc", 1); call("fspick", 433, -100, "/", 0);
            call("mount_setattr", 442, -100, "/proc/sys", 0, pack("QQQQ", 0, 1, 0, 0), 32); call("move_mount", 429, -100, "/etc", -100, "/mnt", 0)"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "pivot-root",
        tries: "exchanges the root",
        program: r#"mkdir "/opt/m"; call("pivot_root", 155, "/opt/m", "/opt/m"); call("pivot_root", 155, ".", ".")"#,
        proof: Refused,
        control: false,
        nested: Own,
    },
    Attempt {
        name: "chroot-escape",
        tries: "leaves its root by a changed root and `..`",
        program: r#"mkdir "/opt/jail"; chdir "/"; opendir(my $top, "/"); chroot "/opt/jail"; chdir ".." for 1 .. 64;
            chroot "."; $! = 2; verdict("the node's files", -e "/data/slivers" || -e "data/slivers")"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "file-handles",
        tries: "opens files by handle, as shocker did",
        program: r#"my $h = pack("LL", 64, 0) . "\0" x 64; my $m = "\0" x 8; my $p = $control ? "/tmp" : "/dev/shm";
            my $r = syscall(303, -100, $p, $h, $m, 0); sysopen(my $d, $p, 0);
            call("by the handle of $p", 304, fileno($d), $h, 0);
            sysopen(my $root, "/", 0); call("inode 2", 304, fileno($root), pack("LlLL", 8, 1, 2, 0), 0) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // The image that slivers share.
    Attempt {
        name: "hard-link-to-image",
        tries: "links a file of the image and writes to the link",
        program: r#"link "/usr/bin/true", "/opt/true"; open(my $f, ">>", "/opt/true"); syswrite $f, "x"; chmod 0777, "/usr/bin/false";
            chown 1, 1, "/usr/bin/env"; utime 1, 1, "/usr/bin/yes"; print "refused to matter\n""#,
        proof: ImageUnchanged,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "image-by-descriptor",
        tries: "writes the image through descriptors opened for reading",
        program: r#"open(my $r, "<", "/usr/bin/sort"); my $n = fileno $r;
            for my $how (1, 2, 01002) { sysopen(my $w, "/proc/self/fd/$n", $how) and syswrite $w, "x" }
            truncate "/proc/self/fd/$n", 0; my $b = "x"; syscall(18, $n, $b, 1, 0); syscall(285, $n, 0, 0, 9999);
            open(my $d, "<", "/usr/bin"); print "refused to matter\n""#,
        proof: ImageUnchanged,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "image-by-race",
        tries: "exchanges directories of the image with links while it writes",
        program: r#"my $pid = fork; if (!$pid) { for (1 .. 300) { rename "/usr/games", "/usr/g2"; symlink "/usr/bin", "/usr/games";
            unlink "/usr/games"; rename "/usr/g2", "/usr/games" } exit }
            for (1 .. 300) { open(my $f, ">", "/usr/games/fmt"); syswrite $f, "x"; unlink "/usr/games/fmt" }
            waitpid $pid, 0; print "refused to matter\n""#,
        proof: ImageUnchanged,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "overlay-attributes",
        tries: "sets attributes that tell an overlay where its files are",
        program: r#"mkdir "/opt/d"; call("opaque", 188, "/opt/d", "trusted.overlay.opaque", "y", 1, 0);
            call("redirect", 188, "/opt/d", "trusted.overlay.redirect", "/etc", 4, 0); call("trusted", 188, "/opt/d", "trusted.x", "y", 1, 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // Limits.
    Attempt {
        name: "cgroup",
        tries: "finds control groups and writes limits",
        program: r#"my @paths = ("/sys/fs/cgroup/slivers/test_one/pids.max", "/sys/fs/cgroup/cgroup.procs", "/proc/1/root/sys/fs/cgroup/cgroup.procs");
            put($_, $control ? "0" : "max") for $control ? "/sys/fs/cgroup/cgroup.procs" : @paths;
            mkdir "/opt/m"; call("mount", 165, "x", "/opt/m", "cgroup2", 0, 0)"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "quota",
        tries: "lifts its disk limit",
        program: r#"sysopen(my $root, "/", 0); my $q = pack("Q8 L x4", 0, 0, 0, 0, 0, 0, 0, 0, 5);
            call("quotactl_fd", 443, fileno($root), (0x800008 << 8) | 2, 1, $q); call("quotactl", 179, (0x800008 << 8) | 2, "/dev/vda", 1, $q);
            call("quotactl sync", 179, 0x800001 << 8, 0, 0, 0)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "quota-project",
        tries: "moves its files to a project without limit",
        program: r#"open(my $f, ">", "/opt/file"); my $x = pack("L5 x8", 0, 0, 0, 0, 0);
            call("FSSETXATTR", 16, fileno($f), 0x401c5820, $x); opendir(my $d, "/root"); sysopen(my $r, "/root", 0);
            my $fl = pack("Q", 0); call("SETFLAGS without inheritance", 16, fileno($r), 0x40086602, pack("Q", 0x20000010));
            call("FSSETXATTR of the root", 16, fileno($r), 0x401c5820, $x)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "rlimits",
        tries: "raises hard limits",
        program: r#"for my $n (7, 8, 12, 13) { my $l = "\0" x 16; syscall(97, $n, $l); my ($soft, $hard) = unpack "QQ", $l;
            next if $hard == ~0; call("limit $n from $hard", 160, $n, pack("QQ", $hard + 1, $hard + 1)) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "nice",
        tries: "takes precedence: nice, real time, deadlines",
        program: r#"call("nice -20", 141, 0, 0, -20); call("FIFO", 144, 0, 1, pack("l", 50)); call("RR", 144, 0, 2, pack("l", 50));
            call("deadline", 314, 0, pack("LLQlLQQQ", 48, 6, 0, 0, 0, 1000000, 10000000, 10000000), 0);
            call("I/O class", 251, 1, 0, 1 << 13)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "oom-score",
        tries: "makes others be killed first when memory runs out",
        program: r#"put("/proc/self/oom_score_adj", -1000); put("/proc/self/oom_score_adj", $control ? -1 : 499)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // The whole machine.
    Attempt {
        name: "clock",
        tries: "sets the clock",
        program: r#"my $now = time; call("settimeofday", 164, pack("qq", $control ? $now : 1000000000, 0), 0);
            call("clock_settime", 227, 0, pack("qq", $control ? $now : 1000000000, 0));
            my $tick = pack("L x4 q4 l x4 q3 q2 q", 0x4000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10000) . "\0" x 120;
            call("adjtimex", 159, $tick); call("clock_adjtime", 305, 0, $tick)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "host-name",
        tries: "renames the machine",
        program: r#"call("sethostname", 170, "taken", 5); call("setdomainname", 171, "taken", 5)"#,
        proof: Refused,
        control: true,
        nested: Own,
    },
    Attempt {
        name: "reboot",
        tries: "reboots",
        program: r#"my @m = (0xfee1dead, 672274793); call("CAD off", 169, @m, 0, 0);
            if (!$control) { call("restart", 169, @m, 0x01234567, 0); call("power off", 169, @m, 0x4321fedc, 0); call("kexec", 169, @m, 0x45584543, 0) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "kexec",
        tries: "loads another kernel",
        program: r#"sysopen(my $f, "/usr/bin/true", 0); call("kexec_load", 246, 0, 0, 0, 0);
            call("kexec_file_load", 320, fileno($f), -1, 1, "", 8)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "modules",
        tries: "loads and removes kernel modules",
        program: r#"sysopen(my $f, "/usr/bin/true", 0); call("init_module", 175, "x" x 64, 64, ""); call("finit_module", 313, fileno($f), "", 0);
            call("delete_module", 176, "ext4", 0)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "swap",
        tries: "gives the kernel a file to swap to",
        program: r#"system "dd if=/dev/zero of=/opt/swap bs=4096 count=16 2>/dev/null"; call("swapon", 167, "/opt/swap", 0); call("swapoff", 168, "/opt/swap")"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "accounting",
        tries: "has the kernel write to a file of its",
        program: r#"open(my $f, ">", "/opt/acct"); call("acct", 163, "/opt/acct")"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    // Doors into the kernel.
    Attempt {
        name: "bpf",
        tries: "makes maps and programs",
        program: r#"call("map", 321, 0, pack("L18", 2, 4, 4, 1), 72); call("object", 321, 7, pack("Q9", 0), 72) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "userfaultfd",
        tries: "handles page faults itself",
        program: r#"call("userfaultfd", 323, 0); call("for user mode only", 323, 1)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "io_uring",
        tries: "queues calls that no filter sees",
        program: r#"my $p = "\0" x 120; call("setup", 425, 4, $p); call("enter", 426, 0, 0, 0, 0, 0, 0); call("register", 427, -1, 0, 0, 0)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "perf",
        tries: "counts events of itself and of all processors",
        program: r#"my $a = pack("LLQ", 1, 112, 0) . "\0" x 96; call("itself", 298, $a, 0, -1, -1, 0); call("a processor", 298, $a, -1, 0, -1, 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "keyrings",
        tries: "adds, asks for and lists keys",
        program: r#"call("add_key", 248, "user", "escape", "x", 1, -3); call("request_key", 249, "user", "escape", 0, -3) unless $control;
            call("keyctl", 250, 0, -3, 1, 0, 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "fanotify",
        tries: "watches whole file systems",
        program: r#"call("content", 300, 4, 0); call("reports", 300, 0x200, 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "personality",
        tries: "makes readable memory executable, and page zero its own",
        program: r#"for (0x400000, 0x100000) { child(sub { call("personality", 135, $_[0] || 0x400000) }) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "ldt",
        tries: "makes segments of its own",
        program: r#"my $b = pack("L4", 0, 0, 1, 0x51); call("modify_ldt", 154, 1, $b, 16)"#,
        proof: Refused,
        control: false,
        nested: Same,
    },
    Attempt {
        name: "32-bit-calls",
        tries: "calls the kernel by another architecture's numbers",
        program: r#"my $code = "\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80"; my $size = 84 + length $code;
            my $elf = "\x7fELF\x01\x01\x01" . "\0" x 9 . pack("SSLLLLLSSSSSS", 2, 3, 1, 0x8048054, 52, 0, 0, 52, 32, 1, 0, 0, 0) .
                pack("L8", 1, 0, 0x8048000, 0x8048000, $size, $size, 5, 0x1000) . $code;
            open(my $f, ">", "/opt/elf32"); syswrite $f, $elf; close $f; chmod 0755, "/opt/elf32";
            my $status = system "/opt/elf32"; $! = 1; verdict("exit, status $status", $status == 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // The network, which is shared.
    Attempt {
        name: "packet-sockets",
        tries: "opens packet sockets, which pass by the packet filter",
        program: r#"for ([3, 0x300], [2, 0x300], [10, 0x300]) { verdict("packet socket @$_", socket(my $s, 17, $_->[0], $_->[1])) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "raw-sockets",
        tries: "opens raw sockets",
        program: r#"for ([2, 1], [2, 6], [2, 255], [10, 58]) { verdict("raw socket @$_", socket(my $s, $_->[0], 3, $_->[1])) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "odd-sockets",
        tries: "opens sockets of every other family",
        program: r#"for my $f (3 .. 9, 11 .. 15, 17 .. 45) { for my $t (1, 2, 3, 5) { verdict("family $f", 1) if socket(my $s, $f, $t, 0) } }
            $! = 97; verdict("any", 0) unless $control; verdict("packet", socket(my $s, 17, 3, 0)) if $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "netlink",
        tries: "speaks to the packet filter, the auditor and device events",
        program: r#"for (4 .. 31) { next if $_ == 4; verdict("netlink $_", 1) if socket(my $s, 16, 3, $_) } $! = 97; verdict("any", 0) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "interfaces",
        tries: "takes a network interface down, and changes addresses and routes",
        program: r#"socket(my $s, 2, 2, 0); my $r = pack("a16 s x22", "lo", 0); ioctl($s, 0x8913, $r); my ($n, $flags) = unpack "a16 s", $r;
            my ($new, $mtu) = (pack("a16 s x22", "lo", $control ? $flags | 1 : 0), pack("a16 i x20", "lo", 65536));
            verdict("setting flags", ioctl($s, 0x8914, $new)); verdict("setting the MTU", ioctl($s, 0x8922, $mtu));
            socket(my $l, 16, 3, 0); send($l, pack("LSSLL CxSlLL", 32, 16, 5, 1, 0, 0, 0, 1, 0, 0), 0);
            my $b; recv($l, $b, 4096, 0); my ($len, $type, $fl, $seq, $pid, $error) = unpack "LSSLLl", $b; $! = -$error;
            verdict("netlink's answer", $type == 2 && $error == 0)"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    Attempt {
        name: "gate-port",
        tries: "takes the ports of the ssh gate and below",
        program: r#"for my $port (22, 1) { socket(my $s, 2, 1, 0); verdict("port $port", bind($s, pack("S n a4 x8", 2, $port, "\0\0\0\0"))) }"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // Terminals.
    Attempt {
        name: "typing",
        tries: "types into a terminal for who reads it next",
        program: r#"$SIG{HUP} = "IGNORE"; syscall(112); my $m; sysopen($m, "/dev/ptmx", 2); my $z = pack("l", 0); ioctl($m, 0x40045431, $z); my $n = pack("l", 0);
            ioctl($m, 0x80045430, $n); sysopen(my $t, "/dev/pts/" . unpack("l", $n), 2) or die "no terminal: $!"; ioctl($t, 0x540e, 0);
            my ($x, $y) = ("x", "\x0b"); verdict("TIOCSTI", ioctl($t, 0x5412, $x)); verdict("TIOCLINUX", ioctl($t, 0x541c, $y)) unless $control"#,
        proof: Refused,
        control: true,
        nested: Same,
    },
    // Taking all there is of something.
    Attempt {
        name: "all-processes",
        tries: "makes processes until it may not",
        program: r#"my $n = 0; while (defined(my $p = fork)) { if (!$p) { sleep 1000 } last if ++$n > 5000 } hold("$n processes")"#,
        proof: NeighbourCan(
            r#"my $p = fork; defined $p or die "no process"; exit 0 if !$p; waitpid $p, 0; print "can""#,
        ),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-pipes",
        tries: "makes pipes as large as they get until it may not",
        program: r#"my @p; while (pipe(my $r, my $w)) { fcntl($w, 1031, 1 << 20); push @p, $r, $w; last if @p > 4000 } hold(@p / 2 . " pipes")"#,
        proof: NeighbourCan(
            r#"pipe(my $r, my $w) or die; fcntl($w, 1031, 1 << 20) or die "no large pipe"; syswrite $w, "x" x 9000; print "can""#,
        ),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-inotify",
        tries: "makes inotify instances until it may not",
        program: r#"my $n = 0; for (1 .. 20) { my $p = fork; next if $p; $n++ while syscall(294, 0) != -1; sleep 1000 }
            while (syscall(294, 0) != -1) { $n++ } select undef, undef, undef, 2; hold("$n instances and those of children")"#,
        proof: NeighbourCan(
            r#"my $i = syscall(294, 0); $i != -1 or die "no instance: $!"; syscall(254, $i, my $p = "/etc", 2) != -1 or die "no watch: $!"; print "can""#,
        ),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-queues",
        tries: "makes message queues until it may not",
        program: r#"my $n = 0; $n++ while syscall(240, my $q = "q$n", 0102, 0600, 0) != -1; hold("$n queues, then $!")"#,
        proof: NeighbourCan(r#"syscall(240, my $q = "mine", 0102, 0600, 0) != -1 or die "no queue: $!"; print "can""#),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-shared-memory",
        tries: "takes shared memory of System V until it may not",
        program: r#"my $n = 0; while ((my $id = syscall(29, 0, 8 << 20, 01666)) != -1) { $n++; last if $n > 5000 } hold("$n segments")"#,
        proof: NeighbourCan(r#"syscall(29, 0, 8 << 20, 01666) != -1 or die "no segment: $!"; print "can""#),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-semaphores",
        tries: "takes semaphores of System V until it may not",
        program: r#"my $n = 0; $n++ while $n < 40000 && syscall(64, 0, 100, 01666) != -1; hold("$n sets")"#,
        proof: NeighbourCan(r#"syscall(64, 0, 10, 01666) != -1 or die "no set: $!"; print "can""#),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-socket-memory",
        tries: "fills sockets until it may not",
        program: r#"my (@s, $n); for (1 .. 2000) { socketpair(my $a, my $b, 1, 1, 0) or last; syscall(72, fileno($a), 4, 2048);
            while (my $w = syswrite $a, "x" x 65536) { $n += $w } push @s, $a, $b } hold("$n bytes")"#,
        proof: NeighbourCan(
            r#"socketpair(my $a, my $b, 1, 1, 0) or die; syswrite($a, "x" x 9000) == 9000 or die; print "can""#,
        ),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-terminals",
        tries: "makes terminals until it may not",
        program: r#"my @t; while (sysopen(my $m, "/dev/ptmx", 2)) { push @t, $m } hold(@t . " terminals")"#,
        proof: NeighbourCan(r#"sysopen(my $m, "/dev/ptmx", 2) or die "no terminal: $!"; print "can""#),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-descriptors",
        tries: "opens files in many processes until it may not",
        program: r#"my $l = "\0" x 16; syscall(97, 7, $l); my ($soft, $hard) = unpack "QQ", $l; syscall(160, 7, pack("QQ", $hard, $hard));
            pipe(my $full, my $tell); my $n = 0; for (1 .. 40) { my $p = fork; last unless defined $p; $n++, next if $p;
                my $f = 0; $f++ while syscall(290, 0, 0) != -1; syswrite $tell, pack("L", $f); sleep 1000 }
            my $all = 0; for (1 .. $n) { sysread $full, my $b, 4; $all += unpack "L", $b } hold("$all descriptors")"#,
        proof: NeighbourCan(
            r#"my @f; for (1 .. 100) { sysopen(my $f, "/etc/passwd", 0) or die "no file: $!"; push @f, $f } print "can""#,
        ),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-aio",
        tries: "queues for asynchronous reads until it may not",
        program: r#"my $n = 0; for my $size (60000, 1000, 10) { $n += $size while $n < 1000000 && syscall(206, $size, my $id = "\0" x 8) != -1 }
            hold("$n places, then $!")"#,
        proof: NeighbourCan(r#"syscall(206, 128, my $id = "\0" x 8) != -1 or die "no queue: $!"; print "can""#),
        control: false,
        nested: Same,
    },
    Attempt {
        name: "all-locks-and-timers",
        tries: "makes timers and epoll watches until it may not",
        program: r#"my $n = 0; $n++ while $n < 100000 && syscall(222, 1, 0, my $id = "\0" x 8) != -1; hold("$n timers")"#,
        proof: NeighbourCan(r#"syscall(222, 1, 0, my $id = "\0" x 8) != -1 or die "no timer: $!"; print "can""#),
        control: false,
        nested: Same,
    },
];
