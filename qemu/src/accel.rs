//! Choosing between KVM and translation, by trial: a device node that opens proves little inside nested machines,
//! where guests may hang at their first instruction.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, io};

use crate::guest::mbr_exit;
use crate::process::{bound_command, spawn};

/// A working KVM runs the probe in well under a second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How guest instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// By the host's processor.
    Kvm,
    /// By translation.
    Tcg,
}

impl Acceleration {
    /// The word used in the cache and in `ORRERY_ACCEL`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg].into_iter().find(|acceleration| acceleration.name() == word)
    }

    /// The `-accel` and `-cpu` arguments.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"],
        }
    }
}

/// What this host can do: `ORRERY_ACCEL` when set, else the result of booting a tiny guest, found out once per boot
/// of the host and remembered in the cache directory.
#[must_use]
pub fn acceleration() -> Acceleration {
    static FOUND: OnceLock<Acceleration> = OnceLock::new();
    *FOUND.get_or_init(|| {
        if let Some(forced) = env::var("ORRERY_ACCEL").ok().and_then(|word| Acceleration::parse(&word)) {
            return forced;
        }
        let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let cache = cache_folder().map(|folder| folder.join("qemu-acceleration"));
        if let Some(known) = cache.as_deref().and_then(|file| remembered(file, host_boot.trim())) {
            return known;
        }
        let found = if kvm_works().unwrap_or(false) { Acceleration::Kvm } else { Acceleration::Tcg };
        if let Some(file) = cache {
            let _ = remember(&file, host_boot.trim(), found);
        }
        found
    })
}

fn remembered(file: &Path, host_boot: &str) -> Option<Acceleration> {
    let text = fs::read_to_string(file).ok()?;
    let (boot, word) = text.trim().split_once(' ')?;
    (boot == host_boot).then(|| Acceleration::parse(word)).flatten()
}

fn remember(file: &Path, host_boot: &str, found: Acceleration) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, format!("{host_boot} {}\n", found.name()))
}

fn cache_folder() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("ORRERY_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|base| base.join("orrery")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/orrery")))
}

fn kvm_works() -> io::Result<bool> {
    const CODE: u8 = 0x10;
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    Ok(run_probe(Acceleration::Kvm, CODE)? == Some(i32::from(CODE) * 2 + 1))
}

fn run_probe(acceleration: Acceleration, code: u8) -> io::Result<Option<i32>> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("probe.img");
    fs::write(&image, mbr_exit(code))?;
    let mut command = bound_command(crate::command::QEMU);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16"])
        .args(acceleration.arguments())
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-drive"])
        .arg(format!("file={},format=raw,if=ide", image.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let qemu = spawn(command)?;
    Ok(qemu.wait(PROBE_LIMIT)?.and_then(|status| status.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_guest_exits_with_its_code() {
        assert_eq!(run_probe(Acceleration::Tcg, 3).unwrap(), Some(7));
    }

    #[test]
    fn the_cache_counts_for_one_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/acceleration");
        remember(&file, "boot-1", Acceleration::Kvm).unwrap();
        assert_eq!(remembered(&file, "boot-1"), Some(Acceleration::Kvm));
        assert_eq!(remembered(&file, "boot-2"), None);
    }
}
