//! The medium's state machine: from a started kernel to a loaded next one.
//!
//! Each state is a value that can only be had by getting there, and holds the state it was reached from, so that going
//! back to an earlier stage means giving up what came after it. The driver keeps no other position.

use std::time::Duration;

use orrery_init_api::{ENTER, FailureClass, ScriptWord, Stage};

use crate::{
    attempts::{Attempts, Failure},
    machine::{Machine, tell},
    recover::{Again, RECONTACT, Recovery},
};

/// The kernel runs, nothing else is known.
#[derive(Debug)]
pub struct Started(());

/// The node knows who it is.
#[derive(Debug)]
pub struct Configured(Started);

/// The node has an address.
#[derive(Debug)]
pub struct Networked(Configured);

/// The clock was set, or could not be.
#[derive(Debug)]
pub struct Timed {
    networked: Networked,
    clock_set: bool,
}

/// A script was fetched that nobody has looked at.
#[derive(Debug)]
pub struct Fetched(Timed);

/// The script is signed, for this node, current and not older than the last.
#[derive(Debug)]
pub struct Verified {
    timed: Timed,
    word: ScriptWord,
}

/// What the script names is installed, as far as the script or the installer says.
#[derive(Debug)]
pub struct Installed {
    timed: Timed,
    repaired: bool,
}

/// What is installed did not verify.
#[derive(Debug)]
pub struct Damaged(Timed);

/// A next system is ready: its stage verified it, and the kernel confirms that it holds it, or it stands unpacked.
#[derive(Debug)]
#[must_use]
pub struct Loaded {
    release: String,
    way: Way,
}

/// How a node OS is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its own kernel.
    Kexec,
    /// Under the kernel that runs, from where its stage unpacked it.
    Enter,
}

impl Loaded {
    /// What was loaded: `<release> slot <a|b>`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How it is started.
    pub fn way(&self) -> Way {
        self.way
    }
}

/// Where the medium is.
#[derive(Debug)]
pub enum Boot {
    /// See the type inside.
    Started(Started),
    /// See the type inside.
    Configured(Configured),
    /// See the type inside.
    Networked(Networked),
    /// See the type inside.
    Timed(Timed),
    /// See the type inside.
    Fetched(Fetched),
    /// See the type inside.
    Verified(Verified),
    /// See the type inside.
    Installed(Installed),
    /// See the type inside.
    Damaged(Damaged),
}

/// How the medium's work ends.
#[derive(Debug)]
#[must_use]
pub enum Ending {
    /// Start the next system.
    ChainBoot(Loaded),
    /// Start over.
    FirmwareReboot,
}

/// A state, or the end.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Go on from here.
    Next(Boot),
    /// Done.
    Ended(Ending),
}

impl Boot {
    /// The beginning.
    pub fn start() -> Self {
        Self::Started(Started(()))
    }
}

impl Configured {
    fn back_to(self, stage: Stage) -> Boot {
        match stage {
            Stage::Configure => Boot::Started(self.0),
            _ => Boot::Configured(self),
        }
    }
}

impl Networked {
    fn back_to(self, stage: Stage) -> Boot {
        match stage {
            Stage::Configure | Stage::Network => self.0.back_to(stage),
            _ => Boot::Networked(self),
        }
    }
}

impl Timed {
    fn back_to(self, stage: Stage) -> Boot {
        match stage {
            Stage::Configure | Stage::Network | Stage::Time => self.networked.back_to(stage),
            _ => Boot::Timed(self),
        }
    }
}

/// Why safe mode is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Safe {
    /// What the script asked for when it was opened.
    word: Option<ScriptWord>,
    /// The failure that opened it.
    failure: Option<(Stage, FailureClass)>,
}

/// What the machine remembers beside where it is.
#[derive(Debug, Default)]
pub struct Driver {
    attempts: Attempts,
    reporter: bool,
    safe: Option<Safe>,
}

impl Driver {
    /// Goes on until the end. Every wait on the way is one of [`crate::recover`]'s.
    pub fn drive(mut self, machine: &mut impl Machine) -> Ending {
        let mut at = Boot::start();
        loop {
            match self.step(machine, at) {
                Step::Next(next) => at = next,
                Step::Ended(ending) => return ending,
            }
        }
    }

    /// Runs the stage that is due.
    pub fn step(&mut self, machine: &mut impl Machine, at: Boot) -> Step {
        match at {
            Boot::Started(started) => match self.attempts.run(machine, Stage::Configure) {
                Ok(_) => Step::Next(Boot::Configured(Configured(started))),
                Err(failure) => self.recover(machine, &failure, |_| Boot::Started(started)),
            },
            Boot::Configured(configured) => match self.attempts.run(machine, Stage::Network) {
                Ok(_) => {
                    if !self.reporter {
                        machine.start_service(Stage::Reporter);
                        self.reporter = true;
                    }
                    Step::Next(Boot::Networked(Networked(configured)))
                }
                Err(failure) => self.recover(machine, &failure, |from| configured.back_to(from)),
            },
            Boot::Networked(networked) => match self.attempts.run(machine, Stage::Time) {
                Ok(_) => Step::Next(Boot::Timed(Timed { networked, clock_set: true })),
                Err(failure) => match self.attempts.recover(machine, &failure, false, false) {
                    // The clock then stands at its floor, which is good enough for all but a certificate or script
                    // younger than the medium; those failures come back here.
                    Recovery::Proceed => Step::Next(Boot::Timed(Timed { networked, clock_set: false })),
                    other => self.act(machine, &failure, other, None, |from| networked.back_to(from)),
                },
            },
            Boot::Timed(timed) => match self.attempts.run(machine, Stage::Contact) {
                Ok(_) => Step::Next(Boot::Fetched(Fetched(timed))),
                Err(failure) => self.recover_timed(machine, &failure, timed, None),
            },
            Boot::Fetched(fetched) => self.verify(machine, fetched),
            Boot::Verified(verified) => self.execute(machine, verified),
            Boot::Installed(installed) => self.load(machine, installed),
            Boot::Damaged(Damaged(timed)) => {
                machine.attend();
                match self.attempts.run(machine, Stage::Repair) {
                    Ok(_) => Step::Next(Boot::Installed(Installed { timed, repaired: true })),
                    Err(failure) => self.recover_timed(machine, &failure, timed, Some(ScriptWord::Boot)),
                }
            }
        }
    }

    fn verify(&mut self, machine: &mut impl Machine, Fetched(timed): Fetched) -> Step {
        let word = self.attempts.run(machine, Stage::Verify).and_then(|text| {
            let text = text.unwrap_or_default();
            text.split(' ').next().unwrap_or_default().parse::<ScriptWord>().map_err(|_| {
                let message = format!("the verify stage named no kind of script but {text:?}");
                self.attempts.failed(Stage::Verify, FailureClass::Internal, message)
            })
        });
        match word {
            Ok(word) => Step::Next(Boot::Verified(Verified { timed, word })),
            Err(failure) => self.recover_timed(machine, &failure, timed, None),
        }
    }

    /// Does what the script asks for.
    fn execute(&mut self, machine: &mut impl Machine, Verified { timed, word }: Verified) -> Step {
        // Safe mode that an earlier script asked for ends with a script that asks for something else. Safe mode that a
        // failure opened stays open while the same thing is tried again: an administrator may be at work in it.
        if word != ScriptWord::Safe && self.safe.is_some_and(|safe| safe.word == Some(ScriptWord::Safe)) {
            self.safe = None;
            tell(machine, "safe", &format!("leaving safe mode, the boot script now says {word}"));
            machine.close_safe_mode();
        }
        match word {
            ScriptWord::Install => {
                machine.attend();
                match self.attempts.run(machine, Stage::Install) {
                    Ok(_) => Step::Next(Boot::Installed(Installed { timed, repaired: false })),
                    Err(failure) => self.recover_timed(machine, &failure, timed, Some(word)),
                }
            }
            ScriptWord::Upgrade => {
                machine.attend();
                let trouble = match self.attempts.run(machine, Stage::Upgrade) {
                    Ok(_) => None,
                    Err(failure) => {
                        let recovery = self.attempts.recover(machine, &failure, timed.clock_set, true);
                        (recovery != Recovery::Proceed).then_some((failure, recovery))
                    }
                };
                match trouble {
                    // The installed system boots, whatever became of its successor.
                    None => Step::Next(Boot::Installed(Installed { timed, repaired: false })),
                    Some((failure, recovery)) => {
                        self.act(machine, &failure, recovery, Some(word), |from| timed.back_to(from))
                    }
                }
            }
            ScriptWord::Boot => Step::Next(Boot::Installed(Installed { timed, repaired: false })),
            ScriptWord::Safe => {
                let safe = Safe { word: Some(word), failure: None };
                self.open_safe(machine, safe, "the boot script asks for it", true);
                machine.sleep(RECONTACT);
                Step::Next(Boot::Timed(timed))
            }
        }
    }

    fn load(&mut self, machine: &mut impl Machine, Installed { timed, repaired }: Installed) -> Step {
        let loaded = self.attempts.run(machine, Stage::Load).and_then(|text| {
            let text = text.unwrap_or_default();
            let (release, way) = match text.strip_prefix(ENTER) {
                Some(release) => (release.trim_start().to_owned(), Way::Enter),
                None => (text, Way::Kexec),
            };
            let ready = match way {
                Way::Kexec => machine.kexec_loaded(),
                Way::Enter => machine.root_unpacked(),
            };
            if ready {
                return Ok(Loaded { release, way });
            }
            let message = "there is no next system although the load stage succeeded".to_owned();
            Err(self.attempts.failed(Stage::Load, FailureClass::Kexec, message))
        });
        match loaded {
            Ok(loaded) => {
                let verb = match loaded.way {
                    Way::Kexec => "chain-booting",
                    Way::Enter => "entering",
                };
                tell(machine, "chain-boot", &format!("{verb} {}", loaded.release));
                Step::Ended(Ending::ChainBoot(loaded))
            }
            Err(failure) => match self.attempts.recover(machine, &failure, timed.clock_set, repaired) {
                Recovery::Repair => Step::Next(Boot::Damaged(Damaged(timed))),
                other => self.act(machine, &failure, other, Some(ScriptWord::Boot), |from| timed.back_to(from)),
            },
        }
    }

    /// Recovery where neither clock nor repair matter.
    fn recover(&mut self, machine: &mut impl Machine, failure: &Failure, back: impl FnOnce(Stage) -> Boot) -> Step {
        let recovery = self.attempts.recover(machine, failure, true, false);
        self.act(machine, failure, recovery, None, back)
    }

    fn recover_timed(
        &mut self,
        machine: &mut impl Machine,
        failure: &Failure,
        timed: Timed,
        word: Option<ScriptWord>,
    ) -> Step {
        // Nothing is left to repair where this is called from: only loading asks for it.
        let recovery = self.attempts.recover(machine, failure, timed.clock_set, true);
        self.act(machine, failure, recovery, word, |from| timed.back_to(from))
    }

    /// Carries a recovery out.
    fn act(
        &mut self,
        machine: &mut impl Machine,
        failure: &Failure,
        recovery: Recovery,
        word: Option<ScriptWord>,
        back: impl FnOnce(Stage) -> Boot,
    ) -> Step {
        let Again { from, after } = match recovery {
            Recovery::Retry(again) => again,
            Recovery::SafeMode(again) => {
                let safe = Safe { word, failure: Some((failure.stage, failure.class)) };
                let reason = format!("{} failed, {}: {}", failure.stage, failure.class, failure.message);
                let network = !matches!(failure.stage, Stage::Configure | Stage::Network);
                self.open_safe(machine, safe, &reason, network);
                again
            }
            Recovery::FirmwareReboot { after } => {
                tell(machine, "reboot", "starting over from the firmware");
                machine.sleep(after);
                return Step::Ended(Ending::FirmwareReboot);
            }
            // Meant for the callers that can do either; for the others, trying again is the total answer.
            Recovery::Proceed | Recovery::Repair => Again { from: failure.stage, after: Duration::from_secs(1) },
        };
        machine.sleep(after);
        Step::Next(back(from))
    }

    /// Opens safe mode; says so when the reason is a new one.
    fn open_safe(&mut self, machine: &mut impl Machine, safe: Safe, reason: &str, network: bool) {
        if self.safe.is_none_or(|open| open.failure != safe.failure) {
            tell(machine, "safe", &format!("safe mode: {reason}"));
        }
        self.safe = Some(safe);
        machine.open_safe_mode(reason, network);
    }
}
