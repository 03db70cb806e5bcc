//! The node OS's state machine: from a started kernel to a healthy node.

use orrery_init_api::Stage;

use crate::{
    attempts::{Attempts, Failure},
    machine::{Machine, Transition, What, say, tell},
    recover::{Again, READING_TIME, Recovery},
};

/// The kernel runs; the disk's check and the network's set-up do not need each other and start together.
#[derive(Debug)]
pub struct Started(());

/// The node's disk is mounted, and the network begun.
#[derive(Debug)]
pub struct Stored(());

/// The node has an address.
#[derive(Debug)]
pub struct Networked(());

/// The services run; those not ready yet are named.
#[derive(Debug)]
pub struct Serving {
    pending: Vec<Stage>,
}

/// Everything serves; whether that is enough, the health gate says.
#[derive(Debug)]
pub struct Served(());

/// Where the node OS is.
#[derive(Debug)]
pub enum Node {
    /// See the type inside.
    Started(Started),
    /// See the type inside.
    Stored(Stored),
    /// See the type inside.
    Networked(Networked),
    /// See the type inside.
    Serving(Serving),
    /// See the type inside.
    Served(Served),
}

impl Node {
    /// The beginning.
    pub fn start() -> Self {
        Self::Started(Started(()))
    }
}

/// How bringing the node up ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ending {
    /// Everything serves and is healthy; what is left is to look after it.
    Ready,
    /// Start over from the medium.
    FirmwareReboot,
}

/// A state, or the end.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Go on from here.
    Next(Node),
    /// Done.
    Ended(Ending),
}

/// What the machine remembers beside where it is.
#[derive(Debug, Default)]
pub struct Driver {
    attempts: Attempts,
}

impl Driver {
    /// Goes on until the end.
    pub fn drive(mut self, machine: &mut impl Machine) -> Ending {
        let mut at = Node::start();
        loop {
            match self.step(machine, at) {
                Step::Next(next) => at = next,
                Step::Ended(ending) => return ending,
            }
        }
    }

    /// Runs what is due.
    pub fn step(&mut self, machine: &mut impl Machine, at: Node) -> Step {
        match at {
            Node::Started(Started(())) => {
                // Whatever fails from here on, somebody with a screen alone sees it.
                machine.attend_consoles();
                self.attempts.begin(machine, Stage::Storage);
                self.attempts.begin(machine, Stage::Network);
                match self.attempts.finish(machine, Stage::Storage) {
                    Ok(_) => Step::Next(Node::Stored(Stored(()))),
                    Err(failure) => self.act(machine, &failure, Node::Started(Started(()))),
                }
            }
            Node::Stored(Stored(())) => match self.attempts.finish(machine, Stage::Network) {
                Ok(_) => Step::Next(Node::Networked(Networked(()))),
                Err(failure) => {
                    let step = self.act(machine, &failure, Node::Stored(Stored(())));
                    self.attempts.begin(machine, Stage::Network);
                    step
                }
            },
            Node::Networked(Networked(())) => {
                // Users may come in while the clock is still being asked for; central may not be called before, since
                // certificates are checked against the clock.
                self.attempts.begin(machine, Stage::SshGate);
                self.attempts.begin(machine, Stage::Time);
                if let Err(failure) = self.attempts.finish(machine, Stage::Time) {
                    // Total by the policy: time never stops a boot.
                    let _ = self.attempts.recover(machine, &failure, false, false);
                }
                machine.start_service(Stage::Reporter);
                self.attempts.begin(machine, Stage::NodeManager);
                Step::Next(Node::Serving(Serving { pending: vec![Stage::SshGate, Stage::NodeManager] }))
            }
            Node::Serving(Serving { mut pending }) => {
                let Some(stage) = pending.pop() else {
                    say(machine, "ready");
                    machine.event(Transition {
                        stage: "ready",
                        what: What::Ok,
                        message: String::new(),
                        took: machine.now(),
                    });
                    return Step::Next(Node::Served(Served(())));
                };
                match self.attempts.finish(machine, stage) {
                    Ok(_) => Step::Next(Node::Serving(Serving { pending })),
                    Err(failure) => {
                        pending.insert(0, stage);
                        let step = self.act(machine, &failure, Node::Serving(Serving { pending }));
                        self.attempts.begin(machine, stage);
                        step
                    }
                }
            }
            // Nobody waits for this: users are served from `ready` on.
            Node::Served(Served(())) => match self.attempts.run(machine, Stage::Health) {
                Ok(_) => Step::Ended(Ending::Ready),
                Err(failure) => self.act(machine, &failure, Node::Served(Served(()))),
            },
        }
    }

    /// Carries a recovery out. The node OS has no safe mode: the medium has one.
    fn act(&mut self, machine: &mut impl Machine, failure: &Failure, again: Node) -> Step {
        match self.attempts.recover(machine, failure, true, true) {
            Recovery::Retry(Again { after, .. }) | Recovery::SafeMode(Again { after, .. }) => {
                machine.sleep(after);
                Step::Next(again)
            }
            Recovery::Proceed | Recovery::Repair | Recovery::FirmwareReboot { .. } => {
                tell(machine, "reboot", "starting over from the medium");
                machine.sleep(READING_TIME);
                Step::Ended(Ending::FirmwareReboot)
            }
        }
    }
}
