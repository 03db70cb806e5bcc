//! PDUs behind HTTP, against lighttpd: status and switching of devices that each need something else, and what goes wrong.

#[path = "support/lighttpd.rs"]
mod lighttpd;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use lighttpd::{Auth, Lighttpd, PASSWORD};
use orrery_pcu::{Change, Class, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session, Waiver};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// A method for the server, with the right password.
fn method(server: &Lighttpd, driver: &str, outlet: &str) -> Method {
    let mut method = Method::new(driver, format!("127.0.0.1:{}", server.port));
    method.fingerprint.clone_from(&server.fingerprint);
    if server.fingerprint.is_none() {
        method.address = format!("http://{}", method.address);
        method.waivers.push(Waiver::ClearText);
    }
    method.user = Some("admin".into());
    method.password = Some(password(server, PASSWORD));
    method.outlet = Some(outlet.into());
    method
}

fn password(server: &Lighttpd, text: &str) -> SecretSource {
    let path = server.path(&format!("secret-{}", text.len()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SecretSource::File(path)
}

fn open(method: &Method) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method)?.open(method, soon())
}

fn class(method: &Method) -> (Class, String) {
    match open(method) {
        Ok(_) => panic!("{method} was opened"),
        Err(error) => (error.class(), error.to_string()),
    }
}

/// Switches an outlet on and off, and leaves its neighbour alone.
fn switches(method: &Method, neighbour: &str) {
    let mut beside = method.clone();
    beside.outlet = Some(neighbour.into());
    let mut session = open(method).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off, "{method}");
    for (change, expected) in
        [(Change::On, PowerState::On), (Change::Off, PowerState::Off), (Change::On, PowerState::On)]
    {
        session.change(change, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), expected, "{method}");
    }
    assert_eq!(session.change(Change::Reset, soon()).unwrap_err().class(), Class::Unsupported);
    let proofs: Vec<_> = session.prove(soon()).unwrap().into_iter().map(|proof| proof.0).collect();
    assert!(proofs.last().unwrap().ends_with("is there, and is on"), "{proofs:?}");
    drop(session);
    assert_eq!(open(&beside).unwrap().state(soon()).unwrap(), PowerState::Off, "{beside}");
}

#[test]
fn tasmota_takes_the_password_in_the_query() {
    let server = Lighttpd::start("tasmota", Auth::Open, false);
    let right = method(&server, "tasmota", "2");
    switches(&right, "1");
    assert_eq!(class(&Method { outlet: Some("3".into()), ..right.clone() }).0, Class::OutletUnknown);
    let wrong = Method { password: Some(password(&server, "wrong")), ..right.clone() };
    let (class, message) = class(&wrong);
    assert_eq!(class, Class::Authentication);
    assert!(!message.contains("wrong") && !message.contains("password=w"), "{message}");
    let anybody = Method { password: None, user: None, ..right };
    assert_eq!(open(&anybody).err().unwrap().class(), Class::Authentication);
}

#[test]
fn shelly_is_told_by_digest_with_sha_256() {
    let server = Lighttpd::start("shelly2", Auth::Sha256, false);
    let right = method(&server, "shelly-gen2", "1");
    switches(&right, "0");
    // The only account's name need not be said.
    assert!(open(&Method { user: None, ..right.clone() }).is_ok());
    let (kind, message) = class(&Method { outlet: Some("5".into()), ..right.clone() });
    assert_eq!(kind, Class::OutletUnknown, "{message}");
    assert_eq!(class(&Method { password: Some(password(&server, "wrong")), ..right }).0, Class::Authentication);
}

#[test]
fn digital_loggers_are_told_by_digest_over_tls_and_cycle_by_themselves() {
    let server = Lighttpd::start("dli", Auth::Md5, true);
    let right = method(&server, "dli-rest", "3");
    switches(&right, "4");
    open(&right).unwrap().change(Change::Cycle, soon()).unwrap();
    // Outlets are labelled from one, and counted from zero.
    assert_eq!(server.read("log"), "cycle 2\n");
    assert!(server.read("state").contains("\"2\": true"));
    // There are models with more outlets than this one.
    assert_eq!(class(&Method { outlet: Some("9".into()), ..right.clone() }).0, Class::OutletUnknown);
    let (kind, message) = class(&Method { outlet: Some("99".into()), ..right });
    assert_eq!(kind, Class::OutletUnknown);
    assert!(message.contains("numbers from 1 to 16"), "{message}");
}

#[test]
fn netio_is_told_by_basic_and_has_a_list_of_outlets() {
    let server = Lighttpd::start("netio", Auth::Basic, true);
    let right = method(&server, "netio-json", "2");
    switches(&right, "3");
    open(&right).unwrap().change(Change::Cycle, soon()).unwrap();
    assert_eq!(server.read("log"), "short off 2\n");
    let (kind, message) = class(&Method { outlet: Some("7".into()), ..right.clone() });
    assert_eq!(kind, Class::OutletUnknown);
    assert!(message.contains("4, 3, 2, 1"), "{message}");
    assert_eq!(class(&Method { password: Some(password(&server, "wrong")), ..right.clone() }).0, Class::Authentication);
    assert_eq!(class(&Method { user: Some("other".into()), ..right }).0, Class::Authentication);
}

#[test]
fn epowerswitch_takes_commands_as_its_query() {
    let server = Lighttpd::start("epowerswitch", Auth::Basic, false);
    let right = method(&server, "epowerswitch", "3");
    switches(&right, "2");
    open(&right).unwrap().change(Change::Cycle, soon()).unwrap();
    assert_eq!(server.read("log"), "restart 3\n");
    let (kind, message) = class(&Method { outlet: Some("8".into()), ..right.clone() });
    assert_eq!(kind, Class::OutletUnknown);
    assert!(message.contains("1, 2, 3, 4"), "{message}");
    let mut other = right.clone();
    other.options.insert("page".into(), "other.htm".into());
    let (kind, message) = class(&other);
    assert_eq!(kind, Class::Prompt);
    assert!(message.contains("/other.htm") && message.contains("another model"), "{message}");
    other.options.insert("pages".into(), "x".into());
    assert_eq!(class(&other).0, Class::Configuration);
}

#[test]
fn energenie_is_logged_in_to_and_out_of() {
    let server = Lighttpd::start("energenie", Auth::Open, false);
    let right = method(&server, "energenie-pms2", "4");
    switches(&right, "1");
    // As often as somebody was let in.
    assert_eq!(server.read("log"), "logout\nlogout\n");
    let wrong = Method { password: Some(password(&server, "wrong")), ..right };
    assert_eq!(class(&wrong).0, Class::Authentication);
}

#[test]
fn mfi_knows_us_by_a_cookie() {
    let server = Lighttpd::start("mfi", Auth::Open, false);
    let right = Method { user: Some("ubnt".into()), ..method(&server, "mfi-mpower", "2") };
    switches(&right, "3");
    let (kind, message) = class(&Method { outlet: Some("5".into()), ..right.clone() });
    assert_eq!(kind, Class::OutletUnknown);
    assert!(message.contains("1, 2, 3"), "{message}");
    assert_eq!(class(&Method { password: Some(password(&server, "wrong")), ..right }).0, Class::Authentication);
}

#[test]
fn geist_knows_us_by_a_token() {
    let server = Lighttpd::start("geist", Auth::Open, true);
    let mut right = method(&server, "geist", "2");
    assert_eq!(class(&right).0, Class::Configuration);
    right.options.insert("device".into(), "FEE6".into());
    switches(&right, "3");
    open(&right).unwrap().change(Change::Cycle, soon()).unwrap();
    assert_eq!(server.read("log"), "reboot 1\n");
    let (kind, message) = class(&Method { outlet: Some("9".into()), ..right.clone() });
    assert_eq!(kind, Class::Refused);
    assert!(!message.contains("a67edf14"), "{message}");
    assert_eq!(class(&Method { password: Some(password(&server, "wrong")), ..right }).0, Class::Authentication);
}

#[test]
fn intellinet_tells_states_in_xml() {
    let server = Lighttpd::start("intellinet", Auth::Basic, false);
    switches(&method(&server, "intellinet", "8"), "7");
}

#[test]
fn home_assistant_knows_us_by_a_header_and_outlets_by_names() {
    let server = Lighttpd::start("home_assistant", Auth::Open, true);
    let odd = method(&server, "home-assistant", "switch.rack & 1/2");
    let right = Method { password: Some(password(&server, "eyJ0.long-lived")), ..odd.clone() };
    let mut session = open(&right).unwrap();
    session.change(Change::On, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    assert_eq!(class(&Method { outlet: Some("switch.x".into()), ..right.clone() }).0, Class::OutletUnknown);
    assert_eq!(class(&Method { password: Some(password(&server, "wrong")), ..right }).0, Class::Authentication);
    // Headers are ASCII.
    let (kind, message) = class(&odd);
    assert_eq!(kind, Class::Configuration);
    assert!(message.contains("Authorization") && !message.contains(PASSWORD), "{message}");
}

#[test]
fn failures_are_told_apart() {
    let server = Lighttpd::start("netio", Auth::Basic, true);
    let method = method(&server, "netio-json", "1");
    let mut session = open(&method).unwrap();
    let mut check = |mode: &str, expected: Class| {
        server.behave(mode);
        for result in [session.state(soon()).map(drop), session.change(Change::On, soon())] {
            let error = result.unwrap_err();
            assert_eq!(error.class(), expected, "{mode}: {error}");
            assert!(error.to_string().contains("/netio.json"), "{error}");
        }
    };
    check("403", Class::Privilege);
    check("500", Class::Refused);
    check("400", Class::Refused);
    check("503", Class::Busy);
    check("429", Class::Busy);
    check("404", Class::Prompt);
    check("302", Class::Prompt);
    check("flood", Class::Prompt);
    server.behave("garbage");
    assert_eq!(session.state(soon()).unwrap_err().class(), Class::Prompt);
    server.behave("hang");
    let begun = Instant::now();
    let error = session.state(Deadline::after(Duration::from_millis(500))).unwrap_err();
    assert_eq!(error.class(), Class::Timeout, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // What the device accepts and does not do is for others to see.
    server.behave("stuck");
    session.change(Change::On, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
}

#[test]
fn only_the_pinned_or_vouched_for_certificate_is_believed() {
    let server = Lighttpd::start("netio", Auth::Basic, true);
    let pinned = method(&server, "netio-json", "1");
    assert!(open(&pinned).is_ok());
    assert_eq!(class(&Method { fingerprint: Some("00".repeat(32)), ..pinned.clone() }).0, Class::Identity);
    let system = Method { fingerprint: None, ..pinned.clone() };
    let (kind, message) = class(&system);
    assert_eq!(kind, Class::Identity);
    assert!(message.contains(server.fingerprint.as_deref().unwrap()), "{message}");
    assert!(open(&Method { fingerprint: None, ca: Some(server.path("cert.pem")), ..pinned.clone() }).is_ok());
    // Over http a password would be readable.
    let clear = Method { address: format!("http://{}", pinned.address), ..pinned };
    assert!(matches!(open(&clear), Err(PcuError::Waiver { waiver: "clear-text", .. })));
}
