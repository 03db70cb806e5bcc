//! A machine that exists in memory, and the properties of the state machines under random faults.

use std::{collections::BTreeMap, time::Duration};

use orrery_init_api::{FailureClass, Role, Stage, StageResult};
use proptest::prelude::*;

use crate::{
    boot,
    machine::{Finished, Machine, Transition, What},
    node,
    recover::{SHORTEST, stays},
};

/// Plays back what each stage is to report; success when the list is at its end.
struct Simulator {
    role: Role,
    script: BTreeMap<Stage, Vec<StageResult>>,
    now: Duration,
    begun: Vec<Stage>,
    services: Vec<Stage>,
    ran: Vec<Stage>,
    lines: Vec<String>,
    events: Vec<Transition>,
    safe: bool,
    safe_network: bool,
    attended: bool,
    consoles: bool,
    loaded: bool,
    /// Runs of stages since the last wait; a tight loop shows here.
    since_sleep: usize,
    worst: usize,
}

impl Simulator {
    fn new(role: Role, script: impl IntoIterator<Item = (Stage, StageResult)>) -> Self {
        let mut by_stage = BTreeMap::<Stage, Vec<StageResult>>::new();
        for (stage, result) in script {
            by_stage.entry(stage).or_default().insert(0, result);
        }
        Self {
            role,
            script: by_stage,
            now: Duration::ZERO,
            begun: Vec::new(),
            services: Vec::new(),
            ran: Vec::new(),
            lines: Vec::new(),
            events: Vec::new(),
            safe: false,
            safe_network: false,
            attended: false,
            consoles: false,
            loaded: false,
            since_sleep: 0,
            worst: 0,
        }
    }
}

impl Machine for Simulator {
    fn role(&self) -> Role {
        self.role
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn random(&mut self) -> u32 {
        0
    }

    fn begin(&mut self, stage: Stage, _attempt: u32) {
        assert!(stays(stage) || !self.begun.contains(&stage), "{stage} begun twice");
        self.begun.retain(|begun| *begun != stage);
        self.begun.push(stage);
    }

    fn finish(&mut self, stage: Stage) -> Finished {
        assert!(self.begun.contains(&stage), "{stage} was not begun");
        self.begun.retain(|begun| *begun != stage);
        self.ran.push(stage);
        self.since_sleep += 1;
        self.worst = self.worst.max(self.since_sleep);
        self.now += Duration::from_millis(10);
        let result = self.script.get_mut(&stage).and_then(Vec::pop).unwrap_or_else(|| match stage {
            Stage::Verify => StageResult::ok("boot serial 1"),
            Stage::Load => StageResult::ok("0.1.0 slot a"),
            _ => StageResult::ok(""),
        });
        if stage == Stage::Load && result.is_ok() {
            self.loaded = true;
        }
        Finished { result, took: Duration::from_millis(10) }
    }

    fn start_service(&mut self, stage: Stage) {
        assert!(!self.services.contains(&stage), "{stage} started twice");
        self.services.push(stage);
    }

    fn sleep(&mut self, wait: Duration) {
        assert!(wait >= SHORTEST);
        self.now += wait;
        self.since_sleep = 0;
    }

    fn console(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn event(&mut self, transition: Transition) {
        self.events.push(transition);
    }

    fn attend_consoles(&mut self) {
        self.consoles = true;
    }

    fn attend(&mut self) {
        self.attended = true;
    }

    fn open_safe_mode(&mut self, _reason: &str, network: bool) {
        self.safe = true;
        self.safe_network |= network;
    }

    fn close_safe_mode(&mut self) {
        self.safe = false;
    }

    fn kexec_loaded(&self) -> bool {
        self.loaded
    }

    fn root_unpacked(&self) -> bool {
        self.loaded
    }
}

/// Drives the medium to its end, at most `limit` stages long.
fn boot_for(machine: &mut Simulator, limit: usize) -> Option<boot::Ending> {
    let mut driver = boot::Driver::default();
    let mut at = boot::Boot::start();
    for _ in 0..limit {
        match driver.step(machine, at) {
            boot::Step::Next(next) => at = next,
            boot::Step::Ended(ending) => return Some(ending),
        }
    }
    None
}

fn fail(class: FailureClass) -> StageResult {
    StageResult::fail(class, "simulated")
}

/// Boots with these faults, and compares the order of stages.
fn check(script: &[(Stage, StageResult)], expect: &[Stage]) -> Simulator {
    let mut machine = Simulator::new(Role::Boot, script.iter().cloned());
    assert!(boot_for(&mut machine, 100).is_some(), "{:#?}", machine.lines);
    assert_eq!(machine.ran, expect, "{:#?}", machine.lines);
    machine
}

#[test]
fn the_straight_paths() {
    use Stage::{Configure, Contact, Install, Load, Network, Time, Verify};
    let machine = check(&[], &[Configure, Network, Time, Contact, Verify, Load]);
    assert_eq!(machine.lines.last().unwrap(), "orrery[boot] +0.060s chain-booting 0.1.0 slot a");
    assert_eq!(machine.lines[0], "orrery[boot] +0.010s stage configure ok (0.010s)");
    assert_eq!(machine.services, [Stage::Reporter]);
    check(
        &[(Verify, StageResult::ok("install serial 7"))],
        &[Configure, Network, Time, Contact, Verify, Install, Load],
    );
    let machine = check(
        &[(Verify, StageResult::ok("upgrade serial 7"))],
        &[Configure, Network, Time, Contact, Verify, Stage::Upgrade, Load],
    );
    assert!(machine.attended && !machine.safe);
    let machine = check(
        &[(Load, StageResult::ok("enter 0.1.0 slot a under kernel 6.12.1"))],
        &[Configure, Network, Time, Contact, Verify, Load],
    );
    assert!(machine.lines.last().unwrap().ends_with("entering 0.1.0 slot a under kernel 6.12.1"));
}

#[test]
fn faults_on_the_way() {
    use Stage::{Configure, Contact, Load, Network, Repair, Time, Verify};
    let machine = check(
        &[(Network, fail(FailureClass::NoLink)), (Time, fail(FailureClass::Clock))],
        &[Configure, Network, Network, Time, Contact, Verify, Load],
    );
    assert_eq!(machine.lines[1], "orrery[boot] +0.020s stage network FAILED (0.010s) no-link: simulated");
    assert_eq!(machine.lines[2], "orrery[boot] +0.020s recovery: network again in 1 s (1 failed)");
    assert_eq!(machine.events[1].what, What::Failed(FailureClass::NoLink));
    // A disk that was tampered with is repaired once, then everything is asked for again.
    check(&[(Load, fail(FailureClass::Tampered))], &[Configure, Network, Time, Contact, Verify, Load, Repair, Load]);
    check(
        &[(Load, fail(FailureClass::Tampered)), (Load, fail(FailureClass::Tampered))],
        &[Configure, Network, Time, Contact, Verify, Load, Repair, Load, Contact, Verify, Load],
    );
    // With a clock at its floor, a refused certificate sends us back to the time servers.
    check(
        &[(Time, fail(FailureClass::Clock)), (Contact, fail(FailureClass::Tls))],
        &[Configure, Network, Time, Contact, Time, Contact, Verify, Load],
    );
    // A verify stage that does not say what for is a failure, not a boot.
    check(&[(Verify, StageResult::ok("sing"))], &[Configure, Network, Time, Contact, Verify, Contact, Verify, Load]);
}

#[test]
fn a_failed_upgrade_does_not_stop_the_boot() {
    use Stage::{Configure, Contact, Load, Network, Time, Upgrade, Verify};
    let upgrade = || (Verify, StageResult::ok("upgrade serial 7"));
    // What was tried before is not tried again, and needs no further attempt.
    let machine = check(
        &[upgrade(), (Upgrade, fail(FailureClass::Unhealthy))],
        &[Configure, Network, Time, Contact, Verify, Upgrade, Load],
    );
    assert!(!machine.safe);
    let broken = || (Upgrade, fail(FailureClass::ShortRead));
    check(
        &[upgrade(), broken(), upgrade(), broken(), upgrade(), broken()],
        &[Configure, Network, Time, Contact, Verify, Upgrade, Contact, Verify, Upgrade, Contact, Verify, Upgrade, Load],
    );
}

#[test]
fn safe_mode_opens_and_closes_with_the_script() {
    use Stage::{Configure, Contact, Load, Network, Time, Verify};
    let machine = check(
        &[(Verify, StageResult::ok("safe")), (Verify, StageResult::ok("safe")), (Verify, StageResult::ok("boot"))],
        &[Configure, Network, Time, Contact, Verify, Contact, Verify, Contact, Verify, Load],
    );
    assert!(!machine.safe && machine.safe_network);
    assert_eq!(machine.lines.iter().filter(|line| line.contains(" safe mode: ")).count(), 1);
}

#[test]
fn what_only_an_operator_can_decide_opens_safe_mode_at_once() {
    let script = [(Stage::Verify, StageResult::ok("install")), (Stage::Install, fail(FailureClass::ForeignData))];
    let mut machine = Simulator::new(Role::Boot, script);
    assert!(boot_for(&mut machine, 100).is_some());
    assert!(machine.safe && machine.safe_network);
    assert!(machine.lines.iter().any(|l| l.ends_with("safe mode: install failed, foreign-data: simulated")));
    assert!(machine.now > Duration::from_secs(20));
}

#[test]
fn the_node_comes_up() {
    let mut machine = Simulator::new(Role::Node, [(Stage::Network, fail(FailureClass::NoDhcp))]);
    assert_eq!(node::Driver::default().drive(&mut machine), node::Ending::Ready);
    use Stage::{Health, Network, NodeManager, SshGate, Storage, Time};
    assert_eq!(machine.ran, [Storage, Network, Network, Time, NodeManager, SshGate, Health]);
    assert!(machine.lines.iter().any(|line| line.ends_with("s ready")));
    assert!(machine.consoles && !machine.safe);

    let mut machine = Simulator::new(Role::Node, [(Health, fail(FailureClass::Unhealthy))]);
    assert_eq!(node::Driver::default().drive(&mut machine), node::Ending::FirmwareReboot);

    let mut machine = Simulator::new(Role::Node, [(Stage::Storage, fail(FailureClass::Io))]);
    assert_eq!(node::Driver::default().drive(&mut machine), node::Ending::FirmwareReboot);
}

fn any_result() -> impl Strategy<Value = StageResult> {
    prop_oneof![
        2 => prop::sample::select(FailureClass::ALL).prop_map(fail),
        1 => Just(StageResult::ok("")),
        1 => prop::sample::select(vec!["install", "upgrade", "boot", "safe"]).prop_map(StageResult::ok),
    ]
}

fn any_script() -> impl Strategy<Value = Vec<(Stage, StageResult)>> {
    prop::collection::vec((prop::sample::select(Stage::ALL), any_result()), 0..60)
}

proptest! {
    /// Whatever fails, however often: once the faults are over the medium gets to a kexec, unless it starts over.
    #[test]
    fn the_medium_always_arrives(script in any_script()) {
        let mut machine = Simulator::new(Role::Boot, script);
        let ending = boot_for(&mut machine, 2000);
        prop_assert!(ending.is_some(), "{:#?}", machine.lines);
        if let Some(boot::Ending::ChainBoot(_)) = ending {
            // Nothing is loaded that was not verified in the same pass.
            let verify = machine.ran.iter().rposition(|s| *s == Stage::Verify);
            let contact = machine.ran.iter().rposition(|s| *s == Stage::Contact);
            prop_assert!(contact < verify && machine.ran.last() == Some(&Stage::Load));
        }
        // configure, network, time, contact, verify, install, load, repair, load: the longest way without a wait.
        prop_assert!(machine.worst <= 9, "{:#?}", machine.lines);
    }

    /// A stage that fails for ever is tried for ever, ever more slowly.
    #[test]
    fn a_permanent_fault_never_spins(
        stage in prop::sample::select(vec![Stage::Configure, Stage::Network, Stage::Contact, Stage::Verify]),
        class in prop::sample::select(FailureClass::ALL),
    ) {
        let mut machine = Simulator::new(Role::Boot, std::iter::repeat_n((stage, fail(class)), 60));
        prop_assert!(boot_for(&mut machine, 110).is_none_or(|ending| matches!(ending, boot::Ending::ChainBoot(_))));
        prop_assert!(machine.safe);
        prop_assert!(machine.now > Duration::from_secs(20 * 30));
    }

    #[test]
    fn the_node_always_arrives_or_starts_over(script in any_script()) {
        let mut machine = Simulator::new(Role::Node, script);
        let mut driver = node::Driver::default();
        let mut at = Some(node::Node::start());
        for _ in 0..2000 {
            at = match at.map(|at| driver.step(&mut machine, at)) {
                Some(node::Step::Next(next)) => Some(next),
                Some(node::Step::Ended(_)) | None => None,
            };
        }
        prop_assert!(at.is_none());
    }
}
