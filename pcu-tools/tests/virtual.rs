//! Virtual machines of QEMU and libvirt: the real QEMU, and the test hypervisor that comes with libvirt.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    slice, thread,
    time::{Duration, Instant},
};

use orrery_pcu::{
    Ability, Action, Class, Method, PowerState, Registry,
    engine::{Control, Outcome, Policy},
};

/// A QEMU without a guest, ended with the test.
struct Qemu(Child);

impl Qemu {
    fn start(monitor: &Path) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "16", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let child = command.stdin(Stdio::null()).spawn().expect("no qemu-system-x86_64; run `cargo xtask setup`");
        let qemu = Self(child);
        let end = Instant::now() + Duration::from_secs(30);
        while !monitor.exists() {
            assert!(Instant::now() < end, "QEMU has no monitor");
            thread::sleep(Duration::from_millis(20));
        }
        qemu
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn control() -> Control {
    let policy = Policy {
        deadline: Duration::from_secs(30),
        off_time: Duration::from_millis(10),
        retry: Duration::from_millis(50),
        ..Policy::default()
    };
    Control::new(Registry::builtin(), policy)
}

fn state(control: &Control, method: &Method) -> Option<PowerState> {
    control.ask(slice::from_ref(method), Ability::Status, &|_| (), |session, deadline| session.state(deadline)).value
}

fn perform(control: &Control, method: &Method, action: Action, expected: Outcome) {
    let report = control.perform(slice::from_ref(method), action, &|_| ());
    assert_eq!(report.outcome, expected, "{report:?}");
}

#[test]
fn a_machine_of_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let monitor = folder.path().join("qmp");
    let _qemu = Qemu::start(&monitor);
    let (control, method) = (control(), Method::new("qmp", format!("unix:{}", monitor.display())));
    assert_eq!(state(&control, &method), Some(PowerState::On));
    perform(&control, &method, Action::Off, Outcome::Changed);
    assert_eq!(state(&control, &method), Some(PowerState::Off));
    perform(&control, &method, Action::On, Outcome::Changed);
    perform(&control, &method, Action::On, Outcome::Already);
    perform(&control, &method, Action::Cycle, Outcome::Changed);
    perform(&control, &method, Action::Reset, Outcome::Accepted);
    let tested = control.test(&[method]);
    assert!(tested[0].failure.is_none() && tested[0].proofs[0].0.starts_with("QEMU "), "{tested:?}");
}

#[test]
fn a_monitor_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let tested = control().test(&[Method::new("qmp", format!("unix:{}/none", folder.path().display()))]);
    assert_eq!(tested[0].failure.as_ref().unwrap().class, Class::Transport);
}

#[test]
fn a_domain_of_libvirt() {
    let mut method = Method::new("virsh", "test");
    method.options.insert("uri".into(), "test:///default".into());
    let control = control();
    assert_eq!(
        state(&control, &method),
        Some(PowerState::On),
        "run `cargo xtask setup`: {:?}",
        control.test(slice::from_ref(&method))
    );
    // The test hypervisor lives as long as one session, which begins with a running domain.
    perform(&control, &method, Action::Cycle, Outcome::Changed);
    perform(&control, &method, Action::Off, Outcome::Changed);

    let unknown = control.test(&[Method { address: "nope".into(), ..method.clone() }]);
    assert_eq!(unknown[0].failure.as_ref().unwrap().class, Class::OutletUnknown);
    let hostile = control.test(&[Method { address: "test;reboot".into(), ..method.clone() }]);
    assert_eq!(hostile[0].failure.as_ref().unwrap().class, Class::Configuration);
    method.options.insert("uri".into(), "nosuch:///x".into());
    assert_eq!(control.test(&[method])[0].failure.as_ref().unwrap().class, Class::Transport);
}
