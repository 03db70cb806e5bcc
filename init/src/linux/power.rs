//! Leaving: by kexec, by reset, by power.

use std::{fs, io::Write, os::unix::process::CommandExt, panic, process::Command, thread, time::Duration};

use orrery_init_api::{ENTERED_ENV, NEW_ROOT, Stage};
use rustix::{
    process::{Pid, Signal, kill_process_group},
    system::{RebootCommand, reboot},
};

use super::{Linux, mounts, uptime};
use crate::{
    boot::{Loaded, Way},
    machine::{Machine, say, tell},
};

/// How the machine is left through the firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Reset.
    Restart,
    /// Switched off.
    PowerOff,
}

/// The reporter gets this long to send what it has.
const FLUSH: Duration = Duration::from_secs(5);
/// Services get this long to end when the machine is not in a hurry.
const GRACE: Duration = Duration::from_secs(3);
/// What was killed is waited for this long.
const DEATH: Duration = Duration::from_secs(2);
/// How long a last message stands on the console.
const READING_TIME: Duration = Duration::from_secs(10);

impl Linux {
    /// Starts the next system. That takes a [`Loaded`], which nothing but the state machine makes. Should it not start, the
    /// machine starts over from the firmware.
    pub fn chain_boot(&mut self, loaded: Loaded) -> ! {
        self.leaving = true;
        self.flush_log();
        // On the medium nothing holds state worth a grace, and the chain-boot is what people wait for.
        self.stop_everything();
        match loaded.way() {
            Way::Kexec => self.pass_control(RebootCommand::Kexec),
            Way::Enter => self.enter(),
        }
    }

    /// Becomes the PID 1 of the node OS that stands unpacked, under the kernel that runs. Nothing but this process is left, and
    /// nothing of it is passed on: every descriptor closes when the program is replaced. The watchdog runs on meanwhile,
    /// as it does across a chain-boot. The medium's root stays below, out of reach.
    fn enter(&mut self) -> ! {
        if let Some(watch) = &mut self.watch {
            watch.pet_now();
        }
        let error = match mounts::move_root(NEW_ROOT) {
            Ok(()) => Command::new("/init").env_clear().env(ENTERED_ENV, "1").current_dir("/").exec(),
            Err(error) => error,
        };
        say(self, &format!("entering {NEW_ROOT} failed, {error}; resetting the machine"));
        self.sleep(READING_TIME);
        reset()
    }

    /// Leaves in order: the log is flushed, everything is stopped, and the disks are unmounted before.
    pub fn leave(&mut self, leave: Leave) -> ! {
        self.leaving = true;
        let (command, text) = match leave {
            Leave::Restart => (RebootCommand::Restart, "rebooting"),
            Leave::PowerOff => (RebootCommand::PowerOff, "switching off"),
        };
        tell(self, "reboot", text);
        self.flush_log();
        signal_everybody(Signal::TERM);
        // What shells on a terminal listen to instead.
        signal_everybody(Signal::HUP);
        self.wait_until(GRACE, Self::childless);
        self.stop_everything();
        if let Some(watch) = self.watch.take_if(|_| leave == Leave::PowerOff) {
            watch.stop();
        }
        self.pass_control(command)
    }

    fn flush_log(&mut self) {
        self.services.clear();
        self.shells.clear();
        if let Some(reporter) = self.child_of(Stage::Reporter) {
            reporter.signal(Signal::TERM);
            self.wait_until(FLUSH, |linux| linux.child_of(Stage::Reporter).is_none());
        }
    }

    fn stop_everything(&mut self) {
        signal_everybody(Signal::KILL);
        self.wait_until(DEATH, Self::childless);
        rustix::fs::sync();
        mounts::unmount_all();
    }

    fn pass_control(&mut self, command: RebootCommand) -> ! {
        // The watchdog runs on, and resets a machine whose next kernel does not come up.
        if let Some(watch) = &mut self.watch {
            watch.pet_now();
        }
        let error = reboot(command).err().map_or_else(|| "it returned".to_owned(), |error| error.to_string());
        say(self, &format!("{command:?} failed, {error}; resetting the machine"));
        self.sleep(READING_TIME);
        reset()
    }

    fn wait_until(&mut self, longest: Duration, done: impl Fn(&Self) -> bool) {
        let until = uptime() + longest;
        while !done(self) {
            let Some(left) = until.checked_sub(uptime()).filter(|left| !left.is_zero()) else { return };
            // Orphans' deaths arrive as SIGCHLD as well; the bound covers those of processes that are not ours.
            self.turn(left.min(Duration::from_millis(100)));
        }
    }
}

/// Sends a signal to every process but PID 1, who sends it.
fn signal_everybody(signal: Signal) {
    // kill(-1, …): "process group 1" is negated to -1, every process there is.
    let _ = kill_process_group(Pid::INIT, signal);
}

/// Resets the machine, whatever it takes.
fn reset() -> ! {
    loop {
        let _ = reboot(RebootCommand::Restart);
        thread::sleep(Duration::from_secs(1));
    }
}

/// The end of a PID 1 that has a bug: shown, then the machine starts over from the firmware. Ending the process instead
/// would make the kernel panic, and hide why.
pub fn last_resort(message: &str) -> ! {
    let now = uptime().as_secs_f64();
    let message = message.replace(char::is_control, " ");
    let line = format!("\norrery +{now:.3}s PID 1 failed: {message}; resetting the machine\n");
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let fallback = active.trim().is_empty().then_some("console");
    for name in active.split_ascii_whitespace().chain(fallback) {
        if let Ok(mut device) = fs::OpenOptions::new().write(true).open(format!("/dev/{name}")) {
            let _ = device.write_all(line.as_bytes());
        }
    }
    thread::sleep(READING_TIME);
    rustix::fs::sync();
    reset()
}

/// Makes every panic the last resort, before anything unwinds or aborts.
pub fn show_panics() {
    panic::set_hook(Box::new(|info| last_resort(&info.to_string())));
}
