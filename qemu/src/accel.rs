//! Choosing between KVM and translation, by trial: a device node that opens proves little inside nested machines,
//! where guests may hang at their first instruction, or once firmware or a boot loader uses one that is not emulated.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs, io};

use crate::guest::mbr_exit;
use crate::process::{bound_command, spawn};
use crate::spec::VmSpec;

/// A working KVM runs the probe in well under a second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// A working KVM boots a real guest in a few seconds, also when the machine is busy.
const PROOF_LIMIT: Duration = Duration::from_secs(60);

/// What this process has found out.
static FOUND: Mutex<Option<Acceleration>> = Mutex::new(None);

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

    /// The `-accel` and `-cpu` arguments, and those of the clock.
    pub(crate) fn arguments(self, processors: Processors) -> &'static [&'static str] {
        const IN_TURN: &str = "tcg,thread=single,tb-size=256";
        match (self, processors) {
            (_, Processors::Counted) => &["-accel", IN_TURN, "-cpu", "max", "-icount", "shift=1,sleep=on"],
            (Self::Kvm, _) => &["-accel", "kvm", "-cpu", "host"],
            (Self::Tcg, Processors::InTurn) => &["-accel", IN_TURN, "-cpu", "max"],
            (Self::Tcg, Processors::AtOnce) => &["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"],
        }
    }
}

/// How a machine's processors run where they are translated; with KVM they run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processors {
    /// One host thread runs them in turn, and nothing else of QEMU can catch one of them between two instructions. The guest sees as many processors.
    InTurn,
    /// Each has a host thread. In about one of 300 starts QEMU 10.0.2 then aborts (`iotlb_to_section: Assertion section_index <
    /// d->map.sections_nb`): one processor uses the memory map while another, in firmware, replaces it.
    AtOnce,
    /// As [`Processors::InTurn`], whatever the host has, and each instruction takes 2 ns of the guest's time: what it measures is what it does,
    /// and not what the host does meanwhile. Where all processors wait, time passes as it does outside.
    Counted,
}

/// What this host can do: `ORRERY_ACCEL` when set, else what [`prove_acceleration`] found out since the host started, else the
/// result of booting a tiny guest.
#[must_use]
pub fn acceleration() -> Acceleration {
    if let Some(settled) = settled() {
        return settled;
    }
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    *found.get_or_insert_with(|| if kvm_works().unwrap_or(false) { Acceleration::Kvm } else { Acceleration::Tcg })
}

/// Settles by a real guest whether KVM can be used: `spec` has to print `line`. Done once per boot of the host and
/// remembered in the cache directory; returns what will be used from then on.
pub fn prove_acceleration(spec: &VmSpec, line: &str) -> Acceleration {
    if let Some(settled) = settled() {
        return settled;
    }
    let proven = match acceleration() {
        Acceleration::Tcg => Acceleration::Tcg,
        Acceleration::Kvm => {
            let printed = spec.start().is_ok_and(|mut vm| vm.expect(line, PROOF_LIMIT).is_ok());
            if printed { Acceleration::Kvm } else { Acceleration::Tcg }
        }
    };
    *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(proven);
    if let Some(file) = cache_file() {
        // Found out again next time.
        let _ = remember(&file, &host_boot(), proven);
    }
    proven
}

/// What is known without trying.
fn settled() -> Option<Acceleration> {
    let forced = env::var("ORRERY_ACCEL").ok().and_then(|word| Acceleration::parse(&word));
    forced.or_else(|| remembered(&cache_file()?, &host_boot()))
}

fn host_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
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

fn cache_file() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("ORRERY_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|base| base.join("orrery")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/orrery")))
        .map(|folder| folder.join("qemu-acceleration-proven"))
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
        .args(acceleration.arguments(Processors::InTurn))
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
