//! What the boot state machine needs of the machine it runs on. Implemented by Linux, and by a simulator in tests.

use std::time::Duration;

use orrery_init_api::{FailureClass, Role, Stage, StageResult};

/// A stage's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What it reported, or what is to be said about a child that did not.
    pub result: StageResult,
    /// How long it took.
    pub took: Duration,
}

/// One transition, for the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The stage, or what else happened.
    pub stage: &'static str,
    /// What became of it.
    pub what: What,
    /// For people.
    pub message: String,
    /// How long it took.
    pub took: Duration,
}

/// The kinds of [`Transition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A stage succeeded.
    Ok,
    /// A stage failed.
    Failed(FailureClass),
    /// Worth telling.
    Info,
}

/// A machine that can run stages.
pub trait Machine {
    /// What it was started for.
    fn role(&self) -> Role;
    /// Time since the kernel started.
    fn now(&self) -> Duration;
    /// A random number.
    fn random(&mut self) -> u32;
    /// Starts a stage's child, ending an earlier child of the same stage first. Returns at once.
    fn begin(&mut self, stage: Stage, attempt: u32);
    /// Waits until a stage that was begun reported, ended or ran out of time. A service stays and is looked after.
    fn finish(&mut self, stage: Stage) -> Finished;
    /// Starts a service that nobody waits for: it is looked after from the beginning.
    fn start_service(&mut self, stage: Stage);
    /// Waits, looking after everything else meanwhile; shorter if somebody asks for the next attempt now.
    fn sleep(&mut self, wait: Duration);
    /// Shows a line on every console.
    fn console(&mut self, line: &str);
    /// Puts on every console how the node is, and a shell for who has the recovery key. Safe mode does so itself.
    fn attend_consoles(&mut self);
    /// Appends to the event log.
    fn event(&mut self, transition: Transition);
    /// Opens sshd beside work that an administrator may want to watch. Where it cannot be opened, the work goes on without.
    fn attend(&mut self);
    /// Opens safe mode, or only notes the new reason if it is open. Without a network it is a shell on the consoles.
    fn open_safe_mode(&mut self, reason: &str, network: bool);
    /// Closes safe mode if it is open.
    fn close_safe_mode(&mut self);
    /// Whether the kernel holds a loaded next kernel.
    fn kexec_loaded(&self) -> bool;
    /// Whether a next system stands unpacked, to be entered under this kernel.
    fn root_unpacked(&self) -> bool;
}

/// Prints `orrery[boot] +3.214s <text>`.
pub(crate) fn say(machine: &mut impl Machine, text: &str) {
    let line = format!("orrery[{}] +{:.3}s {text}", machine.role(), machine.now().as_secs_f64());
    machine.console(&line);
}

/// Shows and records how a stage ended.
pub(crate) fn announce(machine: &mut impl Machine, stage: Stage, finished: &Finished) {
    let took = finished.took.as_secs_f64();
    let (text, what, message) = match &finished.result {
        StageResult::Ok(None) => (format!("stage {stage} ok ({took:.3}s)"), What::Ok, ""),
        StageResult::Ok(Some(detail)) => (format!("stage {stage} ok ({took:.3}s) {detail}"), What::Ok, detail.as_str()),
        StageResult::Fail { class, message } => {
            (format!("stage {stage} FAILED ({took:.3}s) {class}: {message}"), What::Failed(*class), message.as_str())
        }
    };
    say(machine, &text);
    machine.event(Transition { stage: stage.as_str(), what, message: message.to_owned(), took: finished.took });
}

/// Shows and records something that is no stage's end.
pub(crate) fn tell(machine: &mut impl Machine, stage: &'static str, text: &str) {
    say(machine, text);
    machine.event(Transition { stage, what: What::Info, message: text.to_owned(), took: Duration::ZERO });
}
