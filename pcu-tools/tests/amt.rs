//! Intel AMT: HTTP, TLS and Digest against lighttpd, messages against those of another client, the PyPI package `amt`, which has been
//! used with real machines. What the machine answers is by Intel's reference; there was no machine.

#[allow(dead_code, reason = "AMT knows one way of letting in")]
#[path = "support/lighttpd.rs"]
mod lighttpd;

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

use lighttpd::{Auth, Lighttpd, PASSWORD, python};
use orrery_pcu::{
    BootDevice, Change, Class, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session, Waiver,
};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn method(server: &Lighttpd, password: &str) -> Method {
    let mut method = Method::new("amt", format!("127.0.0.1:{}", server.port));
    method.fingerprint.clone_from(&server.fingerprint);
    if server.fingerprint.is_none() {
        method.address = format!("http://{}", method.address);
        method.waivers.push(Waiver::ClearText);
    }
    let path = server.path(&format!("secret-{}", password.len()));
    fs::write(&path, password).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    method.password = Some(SecretSource::File(path));
    method
}

fn open(method: &Method) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method)?.open(method, soon())
}

#[test]
fn power_is_switched_and_proven_over_tls() {
    let server = Lighttpd::start("amt", Auth::Md5, true);
    let mut session = open(&method(&server, PASSWORD)).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    // 4097: not from where it is.
    assert_eq!(session.change(Change::Reset, soon()).unwrap_err().class(), Class::Refused);
    session.change(Change::On, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    session.change(Change::Reset, soon()).unwrap();
    session.change(Change::Cycle, soon()).unwrap();
    let proofs: Vec<_> = session.prove(soon()).unwrap().into_iter().map(|proof| proof.0).collect();
    assert_eq!(proofs, ["AMT of n1 lets admin in", "the power is on", "it offers now: off, cycle, reset"]);
    session.change(Change::Off, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    assert_eq!(session.identify(Duration::ZERO, soon()).unwrap_err().class(), Class::Unsupported);
}

#[test]
fn the_next_boot_is_chosen_when_nothing_else_stands_in_its_way() {
    let server = Lighttpd::start("amt", Auth::Md5, false);
    let mut session = open(&method(&server, PASSWORD)).unwrap();
    let mut check = |device: BootDevice, source: &str, setup: &str, role: &str| {
        session.set_boot_device(device, soon()).unwrap();
        assert_eq!((server.read("source").as_str(), server.read("role").as_str()), (source, role), "{device}");
        let options = server.read("options");
        assert!(options.contains(&format!("\"BIOSSetup\": \"{setup}\"")), "{device}: {options}");
        assert!(options.contains("\"UseSOL\": \"false\""), "{device}: {options}");
    };
    check(BootDevice::Pxe, "Intel(r) AMT: Force PXE Boot", "false", "1");
    check(BootDevice::Setup, "", "true", "1");
    check(BootDevice::Cd, "Intel(r) AMT: Force CD/DVD Boot", "false", "1");
    check(BootDevice::Disk, "Intel(r) AMT: Force Hard-drive Boot", "false", "1");
    check(BootDevice::Default, "", "false", "32768");
}

#[test]
fn messages_are_those_of_another_client() {
    let server = Lighttpd::start("amt", Auth::Md5, false);
    let mut session = open(&method(&server, PASSWORD)).unwrap();
    for change in [Change::On, Change::Cycle, Change::Off] {
        session.change(change, soon()).unwrap();
    }
    session.set_boot_device(BootDevice::Pxe, soon()).unwrap();
    session.set_boot_device(BootDevice::Cd, soon()).unwrap();
    let ours: BTreeSet<_> = server.read("log").lines().map(str::to_owned).collect();
    fs::remove_file(server.path("log")).unwrap();

    let script = "import os, sys, amt.client\n\
                  client = amt.client.Client('127.0.0.1', os.environ['PASSWORD'])\n\
                  client.uri = sys.argv[1]\n\
                  assert client.power_status() == '8'\n\
                  assert client.power_on() == 0\n\
                  assert client.power_status() == '2'\n\
                  assert client.power_cycle() == 0\n\
                  assert client.power_off() == 0\n\
                  client.set_next_boot('pxe')\n\
                  client.set_next_boot('cd')\n";
    let theirs = Command::new(python())
        .args(["-c", script, &format!("http://127.0.0.1:{}/wsman", server.port)])
        .env("PASSWORD", PASSWORD)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&theirs.stderr);
    assert!(!said.contains("No module named"), "{said}; run `cargo xtask setup`");
    assert!(theirs.status.success(), "{said}");
    let theirs: BTreeSet<_> = server.read("log").lines().map(str::to_owned).collect();
    // The power state, three changes of it, two boot sources, and a role.
    assert_eq!(theirs.len(), 7);
    for message in &theirs {
        assert!(
            ours.contains(message),
            "{message}\nis not among\n{}",
            ours.iter().cloned().collect::<Vec<_>>().join("\n")
        );
    }
}

#[test]
fn failures_are_told_apart() {
    let server = Lighttpd::start("amt", Auth::Md5, true);
    let right = method(&server, PASSWORD);
    let class = |method: &Method| open(method).err().map(|error| error.class());
    assert_eq!(class(&method(&server, "wrong")), Some(Class::Authentication));
    assert_eq!(class(&Method { fingerprint: Some("11".repeat(32)), ..right.clone() }), Some(Class::Identity));
    assert_eq!(class(&Method { outlet: Some("1".into()), ..right.clone() }), Some(Class::Configuration));
    let mut session = open(&right).unwrap();
    let mut check = |mode: &str, expected: Class| {
        server.behave(mode);
        let error = session.change(Change::On, soon()).unwrap_err();
        assert_eq!(error.class(), expected, "{mode}: {error}");
    };
    check("denied", Class::Privilege);
    check("busy", Class::Busy);
    check("403", Class::Privilege);
    check("404", Class::Unsupported);
    check("503", Class::Busy);
    check("400", Class::Refused);
    check("garbage", Class::Prompt);
    check("flood", Class::Prompt);
    server.behave("hang");
    let error = session.state(Deadline::after(Duration::from_millis(500))).unwrap_err();
    assert_eq!(error.class(), Class::Timeout, "{error}");
}
