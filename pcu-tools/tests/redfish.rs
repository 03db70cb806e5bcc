//! The Redfish driver against sushy-tools' emulator.

#[path = "support/openssl.rs"]
mod openssl;
#[path = "support/sushy.rs"]
mod sushy;

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use orrery_pcu::{
    BootDevice, Change, Class, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session, Waiver,
};
use sushy::{Emulator, Identity};

const LEFT: &str = "aaaaaaaa-0000-4000-8000-000000000001";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn method(address: String, password: &str) -> Method {
    let mut method = Method::new("redfish", address);
    method.user = Some("ada".into());
    method.password = Some(SecretSource::Command(vec!["printf".into(), password.into()]));
    method.outlet = Some("left".into());
    method
}

/// For an emulator without TLS.
fn clear_text(emulator: &Emulator) -> Method {
    let mut method = method(format!("http://127.0.0.1:{}", emulator.port), "secret!");
    method.waivers.push(Waiver::ClearText);
    method
}

fn open(method: &Method) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method)?.open(method, soon())
}

/// The emulator's hardware takes up to eleven seconds for a change.
fn becomes(session: &mut dyn Session, expected: PowerState) {
    let deadline = soon();
    while session.state(deadline).unwrap() != expected {
        assert!(!deadline.passed(), "it does not become {expected}");
        thread::sleep(Duration::from_millis(200));
    }
}

#[track_caller]
fn fails<T>(result: Result<T, PcuError>, class: Class, said: &str) {
    let error = result.err().expect("it fails");
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(said), "{error}");
}

/// What the emulator says of a system, asked without any of our own code.
fn raw(emulator: &Emulator) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", emulator.port)).unwrap();
    // printf %s 'ada:secret!' | base64
    let request = format!("GET /redfish/v1/Systems/{LEFT} HTTP/1.0\r\nAuthorization: Basic YWRhOnNlY3JldCE=\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn power_is_switched_and_told() {
    let emulator = Emulator::start(None);
    let mut session = open(&clear_text(&emulator)).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    session.change(Change::On, soon()).unwrap();
    becomes(&mut *session, PowerState::On);
    assert!(raw(&emulator).contains(r#""PowerState": "On""#));
    session.change(Change::Reset, soon()).unwrap();
    // The emulator is off for some seconds meanwhile.
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    becomes(&mut *session, PowerState::On);
    session.change(Change::Off, soon()).unwrap();
    becomes(&mut *session, PowerState::Off);
    fails(session.change(Change::Cycle, soon()), Class::Unsupported, "it takes On, ForceOff");
    let proofs: Vec<_> = session.prove(soon()).unwrap().into_iter().map(|proof| proof.0).collect();
    assert_eq!(proofs[0], "logged in as ada with user and password at every request");
    assert_eq!(proofs[1], format!("the system is {LEFT} (left)"));
    assert_eq!(proofs[2], "the power is off");
    assert!(proofs[3].contains("ForceRestart"), "{}", proofs[3]);
}

#[test]
fn boot_device_lamp_and_sensors() {
    let emulator = Emulator::start(None);
    let mut session = open(&clear_text(&emulator)).unwrap();
    for (device, target) in [(BootDevice::Pxe, "Pxe"), (BootDevice::Cd, "Cd"), (BootDevice::Disk, "Hdd")] {
        session.set_boot_device(device, soon()).unwrap();
        assert!(raw(&emulator).contains(&format!(r#""BootSourceOverrideTarget": "{target}""#)), "{device}");
    }
    fails(session.set_boot_device(BootDevice::Setup, soon()), Class::Unsupported, "it boots from Pxe, Cd, Hdd");
    session.identify(Duration::from_secs(15), soon()).unwrap();
    assert!(raw(&emulator).contains(r#""IndicatorLED": "Blinking""#));
    session.identify(Duration::ZERO, soon()).unwrap();
    assert!(raw(&emulator).contains(r#""IndicatorLED": "Off""#));
    let sensors = session.sensors(soon()).unwrap();
    let find = |name: &str| sensors.iter().find(|sensor| sensor.name == name).unwrap();
    let intake = find("Chassis Intake Temp");
    assert_eq!((intake.value, intake.unit.as_str(), intake.status.as_str()), (Some(25.0), "°C", "ok"));
    let fan = find("BaseBoard System Fan");
    assert_eq!((fan.value, fan.unit.as_str()), (Some(2100.0), "rpm"));
    fails(session.log(soon()), Class::Unsupported, "neither the system nor its manager has one");
}

#[test]
fn who_may_not_and_what_is_not_there() {
    let emulator = Emulator::start(None);
    let right = clear_text(&emulator);
    let mut wrong = method(right.address.clone(), "guess");
    wrong.waivers = right.waivers.clone();
    fails(open(&wrong), Class::Authentication, "does not let ada in");
    let open = |outlet: Option<&str>| open(&Method { outlet: outlet.map(str::to_owned), ..right.clone() });
    fails(open(Some("middle")), Class::OutletUnknown, &format!("there are {LEFT} (left), "));
    fails(open(None), Class::OutletUnknown, "(right)");
    open(Some("right")).unwrap();
    open(Some(&LEFT.to_uppercase())).unwrap();
    let unwaived = Method { waivers: Vec::new(), ..right.clone() };
    fails(self::open(&unwaived), Class::Configuration, "clear-text");
}

/// A certificate for 127.0.0.1, and the one of the authority that vouches for it.
fn identity() -> (Identity, String) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new([]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let vouching = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (Identity { certificate, key: key.serialize_pem() }, vouching)
}

#[test]
fn a_certificate_is_pinned_or_vouched_for() {
    let (identity, vouching) = identity();
    let emulator = Emulator::start(Some(&identity));
    let unknown = method(format!("127.0.0.1:{}", emulator.port), "secret!");
    let Err(PcuError::Identity { detail, .. }) = open(&unknown) else { panic!("it is believed") };
    // What an operator would do: compare what was told, and write it down.
    let told = detail.split_whitespace().last().unwrap().to_owned();
    let pinned = Method { fingerprint: Some(told.clone()), ..unknown.clone() };
    assert_eq!(open(&pinned).unwrap().state(soon()).unwrap(), PowerState::Off);
    let wrong = Method { fingerprint: Some("0".repeat(64)), ..unknown.clone() };
    fails(open(&wrong), Class::Identity, &told);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(&path, vouching).unwrap();
    let vouched = Method { ca: Some(path.clone()), ..unknown.clone() };
    assert_eq!(open(&vouched).unwrap().state(soon()).unwrap(), PowerState::Off);
    let (_, others) = self::identity();
    fs::write(&path, others).unwrap();
    fails(open(&vouched), Class::Identity, &told);
    let waived = Method { waivers: vec![Waiver::AnyIdentity], ..unknown };
    open(&waived).unwrap();
}

/// Where [`trusts_the_system`] finds the emulator.
const ADDRESS: &str = "ORRERY_TEST_ADDRESS";

#[test]
fn whom_the_system_trusts_is_believed() {
    let (identity, vouching) = identity();
    let emulator = Emulator::start(Some(&identity));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("system.pem");
    fs::write(&path, vouching).unwrap();
    // The system's authorities are read once in a process, so that it takes another one to have others.
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "trusts_the_system", "--ignored"])
        .env("SSL_CERT_FILE", path)
        .env(ADDRESS, format!("127.0.0.1:{}", emulator.port))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "whom_the_system_trusts_is_believed runs it"]
fn trusts_the_system() {
    let method = method(env::var(ADDRESS).unwrap(), "secret!");
    assert_eq!(open(&method).unwrap().state(soon()).unwrap(), PowerState::Off);
}

#[test]
fn tls_that_is_too_old_is_told() {
    let check = |key: &[&str], options: &[&str], class: Class, said: &str| {
        let server = openssl::Server::start(key, options);
        let mut method = method(format!("127.0.0.1:{}", server.port), "secret!");
        method.waivers.push(Waiver::AnyIdentity);
        fails(open(&method), class, said);
    };
    let rsa = |bits: &'static str| ["-newkey", bits];
    check(&rsa("rsa:2048"), &["-tls1", "-cipher", "DEFAULT@SECLEVEL=0"], Class::Unsupported, "TLS is older than 1.2");
    check(&rsa("rsa:2048"), &["-tls1_2", "-cipher", "AES128-SHA"], Class::Unsupported, "ciphers");
    check(&rsa("rsa:1024"), &["-tls1_2", "-cipher", "DEFAULT@SECLEVEL=0"], Class::Identity, "shorter than 2048 bits");
    // Neither is: it speaks well, and is no Redfish service.
    check(&rsa("rsa:2048"), &["-tls1_3"], Class::Prompt, "no JSON");
    check(&rsa("rsa:2048"), &["-tls1_2"], Class::Prompt, "no JSON");
}
