//! The kernel's own file systems, cgroups, and taking everything down again.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use orrery_init_api::{BOOT_ID_PATH, NODE_CGROUP, RUN_DIR, SLIVERS_CGROUP};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount};

/// One file system to mount, if its mount point exists or can be made.
struct Wanted {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: &'static str,
    /// Only where the kernel offers the mount point.
    optional: bool,
}

const fn wanted(kind: &'static str, at: &'static str, flags: MountFlags, options: &'static str) -> Wanted {
    Wanted { kind, at, flags, options, optional: false }
}

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const INERT: MountFlags = PLAIN.union(MountFlags::NOEXEC);

/// A sliver's processes change groups each time somebody comes in, which otherwise waits until every processor has been through a
/// quiescent state: 8 ms and more, at each start and each login. The price is a memory barrier in each fork and exit.
const CONTROL_GROUPS: &str = "nsdelegate,favordynmods";

/// In this order: later ones are mounted on directories of earlier ones.
const WANTED: &[Wanted] = &[
    wanted("proc", "/proc", INERT, ""),
    wanted("sysfs", "/sys", INERT, ""),
    wanted("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    wanted("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    wanted("tmpfs", "/dev/shm", INERT, "mode=1777"),
    wanted("tmpfs", "/run", PLAIN, "mode=0755"),
    wanted("tmpfs", "/tmp", PLAIN, "mode=1777"),
    Wanted { kind: "cgroup2", at: "/sys/fs/cgroup", flags: INERT, options: CONTROL_GROUPS, optional: true },
    Wanted { kind: "efivarfs", at: "/sys/firmware/efi/efivars", flags: INERT, options: "", optional: true },
    Wanted { kind: "pstore", at: "/sys/fs/pstore", flags: INERT, options: "", optional: true },
];

/// Mounts them, and tells what did not work.
pub(super) fn mount_kernel_file_systems() -> Vec<String> {
    let mut troubles = Vec::new();
    if let Err(error) = root_that_can_be_pivoted() {
        troubles.push(format!("moving the root file system: {error}"));
    }
    for it in WANTED {
        if it.optional {
            if !Path::new(it.at).is_dir() {
                continue;
            }
        } else if let Err(error) = fs::create_dir_all(it.at) {
            troubles.push(format!("making {}: {error}", it.at));
        }
        let options = CString::new(it.options).unwrap_or_default();
        match mount(it.kind, it.at, it.kind, it.flags, options.as_c_str()) {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => troubles.push(format!("mounting {} at {}: {error}", it.kind, it.at)),
        }
    }
    troubles
}

/// Moves a bind mount of the initramfs over itself. The initramfs proper has no parent mount, wherefore `pivot_root(2)`
/// refuses it, and slivers could not be given roots of their own.
fn root_that_can_be_pivoted() -> io::Result<()> {
    const STAGING: &str = "/.root";
    fs::create_dir_all(STAGING)?;
    mount_bind("/", STAGING)?;
    move_root(STAGING)
}

/// Moves the mount at `to` over the root and makes it this process's.
pub(super) fn move_root(to: &str) -> io::Result<()> {
    rustix::process::chdir(to)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// The folder shared with children: readable by root alone, since it holds the node's key.
pub(super) fn make_run_dir(boot_id: &str) -> Option<String> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(RUN_DIR)
        .and_then(|()| fs::set_permissions(RUN_DIR, fs::Permissions::from_mode(0o700)))
        .and_then(|()| fs::write(BOOT_ID_PATH, format!("{boot_id}\n")));
    made.err().map(|error| format!("making {RUN_DIR}: {error}"))
}

/// The node's services and the slivers, each under a parent of their own.
pub(super) fn set_up_cgroups() -> Vec<String> {
    const CONTROLLERS: &str = "+cpu +cpuset +memory +pids +io";
    let mut troubles = Vec::new();
    let mut note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            troubles.push(format!("{what}: {error}"));
        }
    };
    note("enabling controllers", fs::write("/sys/fs/cgroup/cgroup.subtree_control", CONTROLLERS));
    note("making the node's cgroup", fs::create_dir_all(NODE_CGROUP));
    note("making the slivers' cgroup", fs::create_dir_all(SLIVERS_CGROUP));
    note(
        "enabling the slivers' controllers",
        fs::write(format!("{SLIVERS_CGROUP}/cgroup.subtree_control"), CONTROLLERS),
    );
    // What slivers do must not keep the node's own services from working: reclaim leaves them this much, and they
    // come first when the processor is short.
    note("reserving memory", fs::write(format!("{NODE_CGROUP}/memory.min"), "48M"));
    note("raising the processor's weight", fs::write(format!("{NODE_CGROUP}/cpu.weight"), "1000"));
    troubles
}

/// Writes what is good to have and no condition.
pub(super) fn write_quietly(path: &str, value: &str) {
    let _ = fs::write(path, value);
}

/// Unmounts whatever can be, latest first; what is held on to becomes read-only at least, so that its journal is clean.
pub(super) fn unmount_all() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in targets(&mounts).into_iter().rev() {
        if unmount(&target, UnmountFlags::empty()).is_ok() {
            continue;
        }
        let _ = mount_remount(&target, MountFlags::RDONLY, "");
        let _ = unmount(&target, UnmountFlags::DETACH);
    }
    rustix::fs::sync();
}

/// The mount points in a `/proc/self/mounts` that are worth unmounting: those with a disk or memory of their own.
fn targets(mounts: &str) -> Vec<Vec<u8>> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            let kernels = ["rootfs", "proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "cgroup2", "efivarfs", "pstore"];
            (target != "/" && !kernels.contains(&kind)).then(|| unescape(target))
        })
        .collect()
}

/// Undoes the kernel's `\040` for a space and the like.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, after) {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_are_unmounted() {
        let mounts = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\n/dev/vda1 /mnt/boot ext4 ro 0 0\n\
                      /dev/vda2 /data ext4 rw 0 0\noverlay /data/a\\040b\\134 overlay rw 0 0\nbroken\n";
        let expect = [b"/mnt/boot".to_vec(), b"/data".to_vec(), b"/data/a b\\".to_vec()];
        assert_eq!(targets(mounts), expect);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\"), b"a\\");
        assert_eq!(unescape("\\777\\01"), b"\\777\\01");
        assert_eq!(unescape("\\377"), [0xff]);
    }
}
