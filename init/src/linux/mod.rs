//! The real machine: one thread, one loop.
//!
//! Everything waits in [`Linux::turn`]: for children's results and output, for signals, for timers. The watchdog is petted
//! there and nowhere else, so that a PID 1 that hangs is reset by the hardware.

mod child;
mod cmdline;
mod console;
mod events;
mod mounts;
mod power;
mod supervise;
mod watch;

pub use power::{Leave, last_resort, show_panics};

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::fd::AsFd,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use orrery_init_api::{EVENTS_PATH, NEW_ROOT, Role, Stage, TRIAL_OVER};
use orrery_protocol::{Event, Outcome};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};

use self::{child::Child, console::Console, events::EventLog, supervise::Service, watch::Watch};
use crate::machine::{Finished, Machine, Transition, What, tell};

/// PID 1's view of the machine.
pub struct Linux {
    role: Role,
    boot_id: String,
    console: Console,
    log: EventLog,
    signals: Option<SignalFd>,
    watch: Option<Watch>,
    children: Vec<Child>,
    services: BTreeMap<Stage, Service>,
    shells: Vec<supervise::Shell>,
    finished: BTreeMap<Stage, Finished>,
    reason: String,
    /// sshd is open beside some work, and not for safe mode.
    attending: bool,
    /// Somebody asked for the next attempt now.
    hurried: bool,
    /// When a release on trial is given up, unless it has become healthy.
    trial_until: Option<Duration>,
    /// Set once the machine goes down: nothing is started any more.
    leaving: bool,
}

/// Time since the kernel started, suspend included.
fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Random bytes that may be had before the kernel's generator is seeded: for jitter and names, not for keys.
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // A short read leaves zeros, which do no harm here.
    let _ = getrandom(&mut bytes, GetRandomFlags::INSECURE);
    bytes
}

impl Linux {
    /// Brings the bare minimum up: file systems, consoles, signals, watchdog. Nothing here is fatal; what fails is shown.
    pub fn start() -> Self {
        let mut troubles = mounts::mount_kernel_file_systems();
        let cmdline = cmdline::Parameters::read();
        if cmdline.role == Role::Node {
            troubles.extend(mounts::set_up_cgroups());
        }
        mounts::write_quietly("/proc/self/oom_score_adj", "-1000");
        // The kernel then sends SIGINT to PID 1 for Ctrl-Alt-Del instead of resetting the machine.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
        let boot_id = cmdline.boot_id.unwrap_or_else(|| {
            let bytes = random_bytes::<16>();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        });
        troubles.extend(mounts::make_run_dir(&boot_id));
        let signals = block_signals().map_err(|error| troubles.push(format!("blocking signals: {error}"))).ok();
        let mut linux = Self {
            role: cmdline.role,
            boot_id,
            console: Console::open(),
            log: EventLog::new(EVENTS_PATH),
            signals,
            watch: Watch::open(),
            children: Vec::new(),
            services: BTreeMap::new(),
            shells: Vec::new(),
            finished: BTreeMap::new(),
            reason: String::new(),
            attending: false,
            hurried: false,
            trial_until: cmdline.trial,
            leaving: false,
        };
        let started = format!("started, boot {}", linux.boot_id);
        tell(&mut linux, "start", &started);
        if linux.watch.is_none() {
            tell(&mut linux, "start", "no watchdog: a machine that hangs stays as it is");
        }
        for trouble in troubles {
            tell(&mut linux, "start", &format!("warning: {trouble}"));
        }
        linux
    }

    /// Looks after the services until the machine goes down, by signal or by power.
    pub fn serve(&mut self) -> ! {
        loop {
            self.turn(Duration::from_secs(3600));
        }
    }

    /// Waits for the next thing to happen, at most `longest`, and deals with it.
    fn turn(&mut self, longest: Duration) {
        let now = uptime();
        let mut wait = longest.min(self.next_timer(now));
        if let Some(until) = self.trial_until {
            wait = wait.min(until.saturating_sub(now));
        }
        if let Some(watch) = &mut self.watch {
            wait = wait.min(watch.pet(now));
        }
        self.wait_for_input(wait);
        self.handle_signals();
        let now = uptime();
        self.reap(now);
        self.read_children(now);
        self.run_timers(now);
        self.end_trial(now);
    }

    /// Starts over from the medium when a release on trial has not become healthy in time. Whatever keeps it from getting
    /// there, from a stage that hangs to a role that nobody knows, ends here; a PID 1 that hangs itself is the watchdog's.
    fn end_trial(&mut self, now: Duration) {
        if self.trial_until.take_if(|until| *until <= now).is_some() && !self.leaving {
            let text = format!("{TRIAL_OVER}: not healthy {} s after the kernel's start", now.as_secs());
            tell(self, "health", &text);
            self.leave(Leave::Restart);
        }
    }

    fn wait_for_input(&self, wait: Duration) {
        let mut fds = Vec::with_capacity(1 + 2 * self.children.len());
        if let Some(signals) = &self.signals {
            fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        }
        for child in &self.children {
            fds.extend(child.inputs().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        // Without a signalfd, children that end are found by looking often.
        let wait = if self.signals.is_some() { wait } else { wait.min(Duration::from_millis(50)) };
        let timeout =
            Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
        if let Err(error) = poll(&mut fds, Some(&timeout))
            && std::io::Error::from(error).kind() != ErrorKind::Interrupted
        {
            // Out of kernel memory, at worst: not a reason to spin.
            std::thread::sleep(wait.min(Duration::from_millis(100)));
        }
    }

    fn handle_signals(&mut self) {
        while let Some(Ok(Some(signal))) = self.signals.as_ref().map(SignalFd::read_signal) {
            let leave = match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                // Ctrl-Alt-Del, and what `reboot`, `halt` and `poweroff` of busybox send.
                Ok(Ok(Signal::SIGINT | Signal::SIGTERM)) => Leave::Restart,
                Ok(Ok(Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGPWR)) => Leave::PowerOff,
                Ok(Ok(Signal::SIGHUP)) => {
                    self.hurried = true;
                    continue;
                }
                _ => continue,
            };
            if !self.leaving {
                self.leave(leave);
            }
        }
    }
}

/// Takes the signals PID 1 acts on out of normal delivery.
fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGPWR,
        Signal::SIGHUP,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Machine for Linux {
    fn role(&self) -> Role {
        self.role
    }

    fn now(&self) -> Duration {
        uptime()
    }

    fn random(&mut self) -> u32 {
        u32::from_ne_bytes(random_bytes())
    }

    fn begin(&mut self, stage: Stage, attempt: u32) {
        self.discard(stage);
        self.services.remove(&stage);
        self.finished.remove(&stage);
        self.start_stage(stage, attempt);
    }

    fn finish(&mut self, stage: Stage) -> Finished {
        loop {
            if let Some(finished) = self.finished.remove(&stage) {
                if stage == Stage::Health && finished.result.is_ok() {
                    self.trial_until = None;
                }
                return finished;
            }
            if !self.children.iter().any(|child| child.is(stage)) {
                return child::lost();
            }
            self.turn(Duration::from_secs(3600));
        }
    }

    fn start_service(&mut self, stage: Stage) {
        self.services.entry(stage).or_default();
        self.discard(stage);
        self.start_stage(stage, 1);
    }

    fn sleep(&mut self, wait: Duration) {
        let until = uptime() + wait;
        // Asked for while something ran: that has been the attempt.
        self.hurried = false;
        while let Some(left) = until.checked_sub(uptime()).filter(|left| !left.is_zero())
            && !self.hurried
        {
            self.turn(left);
        }
        if self.hurried && !self.leaving {
            tell(self, "retry", "somebody asks for the next attempt now");
        }
    }

    fn console(&mut self, line: &str) {
        self.console.line(line);
    }

    fn event(&mut self, transition: Transition) {
        let (outcome, class) = match transition.what {
            What::Ok => (Outcome::Ok, None),
            What::Failed(class) => (Outcome::Failed, Some(class.as_str().to_owned())),
            What::Info => (Outcome::Info, None),
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let event = Event {
            boot_id: self.boot_id.clone(),
            at_ms: milliseconds(uptime()),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |wall| wall.as_secs()),
            role: self.role.as_str().to_owned(),
            stage: transition.stage.to_owned(),
            outcome,
            class,
            message: transition.message,
            duration_ms: milliseconds(transition.took),
        };
        self.log.append(&event.to_json_line());
    }

    fn attend_consoles(&mut self) {
        self.open_shells();
    }

    fn attend(&mut self) {
        if !self.services.contains_key(&Stage::Safe) {
            self.attending = true;
            self.start_service(Stage::Safe);
        }
    }

    fn open_safe_mode(&mut self, reason: &str, network: bool) {
        reason.clone_into(&mut self.reason);
        self.attending = false;
        self.open_shells();
        if network && !self.services.contains_key(&Stage::Safe) {
            self.start_service(Stage::Safe);
        }
    }

    fn close_safe_mode(&mut self) {
        self.services.remove(&Stage::Safe);
        self.discard(Stage::Safe);
        self.close_shells();
    }

    fn kexec_loaded(&self) -> bool {
        fs::read("/sys/kernel/kexec_loaded").is_ok_and(|text| text.starts_with(b"1"))
    }

    fn root_unpacked(&self) -> bool {
        Path::new(NEW_ROOT).join("init").is_file()
    }
}
