//! IPMI against controllers that nobody here wrote: OpenIPMI's `ipmi_sim`, with `ipmitool` as a second opinion; and against
//! hostile ones.

#[path = "support/bmc.rs"]
mod bmc;
#[path = "support/ipmi_sim.rs"]
mod ipmi_sim;

use std::{
    io::{Read, Write},
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bmc::{Bmc, Manners};
use ipmi_sim::{IpmiSim, Setup, ipmitool};
use orrery_pcu::{
    BootDevice, Change, Class, Console, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session,
    Waiver,
    discover::{Found, IpmiProbe, discover},
};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// A method for the controller at `port`, of `admin`.
fn method(port: u16, options: &str) -> Method {
    account(port, "admin", "secret", options)
}

fn account(port: u16, user: &str, password: &str, options: &str) -> Method {
    let mut method = Method::new("ipmi", format!("127.0.0.1:{port}"));
    method.user = Some(user.into());
    method.password = Some(SecretSource::Command(vec!["echo".into(), password.into()]));
    method.options = toml::from_str(options).unwrap();
    method
}

fn open(method: &Method) -> Result<Box<dyn Session>, PcuError> {
    open_by(method, soon())
}

fn open_by(method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method).unwrap().open(method, deadline)
}

/// The error of opening it.
#[track_caller]
fn refusal(method: &Method, deadline: Deadline) -> PcuError {
    open_by(method, deadline).err().expect("it has to fail")
}

#[test]
fn power_is_switched_and_read() {
    let sim = IpmiSim::start(&Setup::default());
    let mut session = open(&method(sim.port, "")).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    session.change(Change::On, soon()).unwrap();
    assert_eq!((sim.kept("power").as_str(), session.state(soon()).unwrap()), ("1", PowerState::On));
    session.change(Change::Reset, soon()).unwrap();
    assert_eq!(sim.kept("reset"), "1");
    session.change(Change::Off, soon()).unwrap();
    assert_eq!((sim.kept("power").as_str(), session.state(soon()).unwrap()), ("0", PowerState::Off));
    // What somebody else does is seen.
    sim.keep("power", "1");
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    // Power off, and on again by itself.
    let before = sim.kept("calls").lines().count();
    session.change(Change::Cycle, soon()).unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let calls = sim.kept("calls");
        let sets: Vec<&str> = calls.lines().skip(before).filter(|call| call.starts_with("set ")).collect();
        if sets == ["set power 0", "set power 1"] {
            break;
        }
        assert!(Instant::now() < limit, "the power was not cycled: {sets:?}");
        thread::sleep(Duration::from_millis(50));
    }
    session.identify(Duration::from_secs(5), soon()).unwrap();
    // For five seconds, and not for ever.
    assert_eq!(sim.kept("identify"), "5 0");
}

#[test]
fn the_lamp_is_lit_for_as_long_as_possible() {
    let bmc = Bmc::start(Manners::default());
    let mut session = open(&method(bmc.port, "")).unwrap();
    for (time, seconds) in [
        (Duration::ZERO, 0),
        (Duration::from_millis(100), 1),
        (Duration::from_secs(30), 30),
        (Duration::from_secs(3600), 255),
    ] {
        session.identify(time, soon()).unwrap();
        assert_eq!(bmc.lit.load(Ordering::Relaxed), seconds);
    }
}

#[test]
fn suite_3_is_taken_where_there_is_no_17_unless_17_is_demanded() {
    let sim = IpmiSim::start(&Setup::default());
    open(&method(sim.port, "cipher = 3")).unwrap();
    let error = refusal(&method(sim.port, "cipher = 17"), soon());
    assert_eq!(error.class(), Class::Unsupported, "{error}");
}

#[test]
fn suite_17_is_taken_where_there_is_one() {
    let bmc = Bmc::start(Manners::default());
    // The controller of this test computes what ipmitool computes.
    assert!(ipmitool(bmc.port, 17, &["chassis", "power", "status"]).unwrap().contains("Chassis Power is off"));
    assert!(ipmitool(bmc.port, 3, &["chassis", "power", "status"]).is_err());
    for options in ["", "cipher = 17"] {
        let mut session = open(&method(bmc.port, options)).unwrap();
        session.change(Change::Off, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
        session.change(Change::On, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::On);
        assert!(!bmc.closed.load(Ordering::Relaxed));
        drop(session);
        assert!(bmc.closed.load(Ordering::Relaxed), "the session is not closed");
    }
    let error = refusal(&method(bmc.port, "cipher = 3"), soon());
    assert_eq!(error.class(), Class::Unsupported, "{error}");
}

#[test]
fn who_may_not_is_told_why() {
    let sim = IpmiSim::start(&Setup::default());
    let check = |user: &str, password: &str, options: &str, class, says: &str| {
        let error = refusal(&account(sim.port, user, password, options), soon());
        assert_eq!(error.class(), class, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{} as {user}", sim.port)) && text.contains(says), "{text}");
        assert!(!text.contains(password), "{text}");
    };
    check("admin", "Secret", "", Class::Authentication, "password");
    check("nobody", "Secret", "", Class::Authentication, "no such user");
    // All of a long password counts; the simulator's own limit is 19 bytes.
    open(&account(sim.port, "long", "1234567890123456789", "")).unwrap();
    check("long", "123456789012345678x", "", Class::Authentication, "password");
    check("long", "1234567890123456", "", Class::Authentication, "password");
    // The simulator gives every user every privilege in RMCP+, unlike in IPMI 1.5.
    let bmc = Bmc::start(Manners::default());
    let error = refusal(&account(bmc.port, "viewer", "look", ""), soon());
    assert_eq!(error.class(), Class::Privilege, "{error}");
}

#[test]
fn a_test_proves_and_changes_nothing() {
    let sim = IpmiSim::start(&Setup::default());
    let proofs = open(&method(sim.port, "")).unwrap().prove(soon()).unwrap();
    let text: Vec<&str> = proofs.iter().map(|proof| proof.0.as_str()).collect();
    let expected = [
        "logged in as admin by IPMI 2.0, encrypted",
        "the session has the privilege of an operator, which may switch power",
        "firmware 9.08 of manufacturer 4753",
        "the power is off",
    ];
    assert_eq!(text, expected);
    assert!(!sim.kept("calls").contains("set "), "{}", sim.kept("calls"));
}

#[test]
fn the_next_boot_is_as_ipmitool_reads_it() {
    let sim = IpmiSim::start(&Setup::default());
    let check = |options: &str, device, expected: &[&str], boot: &str| {
        open(&method(sim.port, options)).unwrap().set_boot_device(device, soon()).unwrap();
        let read = ipmitool(sim.port, 3, &["chassis", "bootparam", "get", "5"]).unwrap();
        for text in expected {
            assert!(read.contains(text), "{device}: no {text:?} in {read}");
        }
        assert_eq!(sim.kept("boot"), boot);
    };
    check("", BootDevice::Pxe, &["Force PXE", "only next boot"], "pxe");
    check("firmware = 'bios'", BootDevice::Cd, &["Force Boot from CD/DVD", "only next boot"], "cdrom");
    check("", BootDevice::Setup, &["Force Boot into BIOS Setup"], "bios");
    check("", BootDevice::Default, &["No override"], "none");
}

#[test]
fn sensors_are_as_ipmitool_reads_them() {
    let sim = IpmiSim::start(&Setup::default());
    let sensors = open(&method(sim.port, "")).unwrap().sensors(soon()).unwrap();
    let listed = ipmitool(sim.port, 3, &["-c", "sdr", "list", "full"]).unwrap();
    let mut compared = 0;
    for line in listed.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let [name, value, unit, ..] = fields[..] else { panic!("{line}") };
        let sensor = sensors.iter().find(|sensor| sensor.name == name).unwrap_or_else(|| panic!("{name}: {sensors:?}"));
        let (ours, theirs) = (sensor.value.unwrap(), value.parse::<f64>().unwrap());
        // It rounds to three digits.
        assert!((ours - theirs).abs() <= theirs.abs() / 200.0, "{name}: {ours} is not {theirs}");
        let known = [("degrees C", "°C"), ("Volts", "V"), ("RPM", "rpm")];
        assert!(known.contains(&(unit, sensor.unit.as_str())), "{line} {sensor:?}");
        compared += 1;
    }
    assert_eq!(compared, 4, "{listed}");
    let of = |name: &str| sensors.iter().find(|sensor| sensor.name == name).unwrap();
    assert_eq!((of("CPU_1T").value, of("CPU_1T").status.as_str()), (Some(149.0), "critical"));
    assert_eq!((of("Inlet").value, of("Inlet").status.as_str()), (Some(-10.0), "ok"));
    assert_eq!((of("PS1").value, of("PS1").status.as_str()), (None, "states 0001h"));
}

#[test]
fn the_log_is_as_ipmitool_reads_and_writes_it() {
    let sim = IpmiSim::start(&Setup::default());
    let log = open(&method(sim.port, "")).unwrap().log(soon()).unwrap();
    // Both are from before the controller knew the time.
    let expected = [
        (None, "temperature, sensor 01h: upper critical, going high (59 60 70)"),
        (None, "power unit, sensor 05h: AC lost (04 ff ff)"),
    ];
    let found: Vec<_> = log.iter().map(|entry| (entry.at, entry.text.as_str())).collect();
    assert_eq!(found, expected);
    let listed = ipmitool(sim.port, 3, &["sel", "list"]).unwrap();
    assert_eq!(listed.matches("Pre-Init").count(), log.len(), "{listed}");
    ipmitool(sim.port, 3, &["sel", "clear"]).unwrap();
    assert_eq!(open(&method(sim.port, "")).unwrap().log(soon()).unwrap(), []);
    // Set SEL Time and Add SEL Entry: a button was pressed.
    ipmitool(sim.port, 3, &["raw", "0x0a", "0x49", "0", "0", "0", "0x60"]).unwrap();
    let entry = "0x0a 0x44 0 0 2 0 0 0 0 0x20 0 4 0x14 7 0x6f 0 0xff 0xff";
    ipmitool(sim.port, 3, &[&["raw"], &entry.split(' ').collect::<Vec<_>>()[..]].concat()).unwrap();
    let log = open(&method(sim.port, "")).unwrap().log(soon()).unwrap();
    let [entry] = &log[..] else { panic!("{log:?}") };
    assert!((0x6000_0000..0x6000_0100).contains(&entry.at.unwrap()), "{entry:?}");
    assert_eq!(entry.text, "button, sensor 07h: event 6fh/0 (00 ff ff)");
}

/// Reads from the console until `text` has come.
fn expect(console: &mut dyn Console, text: &[u8]) {
    let (mut seen, limit) = (Vec::new(), Instant::now() + Duration::from_secs(20));
    while !seen.windows(text.len()).any(|window| window == text) {
        assert!(Instant::now() < limit, "the console shows {:?}", String::from_utf8_lossy(&seen));
        seen.extend(console.exchange(b"", Duration::from_millis(200)).unwrap());
    }
}

#[test]
fn the_serial_line_goes_both_ways_and_belongs_to_one() {
    let sim = IpmiSim::start(&Setup::default());
    let mut machine = sim.serial();
    let mut console = open(&method(sim.port, "")).unwrap().console(soon()).unwrap();
    machine.write_all(b"login: ").unwrap();
    expect(&mut *console, b"login: ");
    // More than one packet, in both directions.
    let text: Vec<u8> = (0..3000u32).flat_map(|line| format!("{line}\r\n").into_bytes()).take(3000).collect();
    let mut left = console.exchange(&text, Duration::from_secs(1)).unwrap();
    assert!(left.is_empty(), "{left:?}");
    let reader = thread::spawn({
        let (mut machine, length) = (machine.try_clone().unwrap(), text.len());
        move || {
            let mut got = vec![0; length];
            machine.read_exact(&mut got).unwrap();
            got
        }
    });
    let limit = Instant::now() + Duration::from_secs(20);
    while !reader.is_finished() && Instant::now() < limit {
        left.extend(console.exchange(b"", Duration::from_millis(50)).unwrap());
    }
    assert_eq!(reader.join().unwrap(), text);
    machine.write_all(&text).unwrap();
    expect(&mut *console, &text[text.len() - 20..]);
    // It is taken; given back, it can be had.
    let error = open(&method(sim.port, "")).unwrap().console(soon()).err().unwrap();
    assert_eq!(error.class(), Class::Busy, "{error}");
    drop(console);
    let mut console = open(&method(sim.port, "")).unwrap().console(soon()).unwrap();
    machine.write_all(b"again").unwrap();
    expect(&mut *console, b"again");
}

#[test]
fn ipmi_1_5_needs_a_waiver() {
    let sim = IpmiSim::start(&Setup { rmcp_plus: false, ..Setup::default() });
    let error = refusal(&method(sim.port, ""), soon());
    assert!(matches!(error, PcuError::Waiver { waiver: "lan15", .. }), "{error}");
    let allowed = |user, password| Method { waivers: vec![Waiver::Lan15], ..account(sim.port, user, password, "") };
    let mut session = open(&allowed("admin", "secret")).unwrap();
    session.change(Change::On, soon()).unwrap();
    assert_eq!((sim.kept("power").as_str(), session.state(soon()).unwrap()), ("1", PowerState::On));
    assert_eq!(session.prove(soon()).unwrap()[0].0, "logged in as admin by IPMI 1.5, without encryption");
    let error = session.console(soon()).err().unwrap();
    assert_eq!(error.class(), Class::Unsupported, "{error}");
    for (user, password, class) in [
        ("admin", "Secret", Class::Authentication),
        ("nobody", "secret", Class::Authentication),
        ("viewer", "look", Class::Privilege),
        ("long", "1234567890123456789", Class::Configuration),
    ] {
        let error = refusal(&allowed(user, password), soon());
        assert_eq!(error.class(), class, "{user}: {error}");
    }
    // The password in the clear needs one more.
    let sim = IpmiSim::start(&Setup { rmcp_plus: false, lan15: "straight", ..Setup::default() });
    let mut method = Method { waivers: vec![Waiver::Lan15], ..method(sim.port, "") };
    assert_eq!(refusal(&method, soon()).class(), Class::Unsupported);
    method.waivers.push(Waiver::ClearText);
    assert_eq!(open(&method).unwrap().state(soon()).unwrap(), PowerState::Off);
}

#[test]
fn controllers_are_found() {
    let (sim, old) =
        (IpmiSim::start(&Setup::default()), IpmiSim::start(&Setup { rmcp_plus: false, ..Setup::default() }));
    let ask = |port| {
        let addresses = ["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
        discover(&addresses, &[&IpmiProbe { port }], 8, Duration::from_secs(3), |_| ())
    };
    let found = |port, detail: &str| {
        vec![Found { address: ([127, 0, 0, 1], port).into(), driver: "ipmi".into(), detail: detail.into() }]
    };
    assert_eq!(ask(sim.port), found(sim.port, "IPMI 2.0"));
    assert_eq!(ask(old.port), found(old.port, "IPMI 1.5 only, which needs the waiver lan15"));
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    assert_eq!(ask(nobody.local_addr().unwrap().port()), []);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_lossy_and_a_noisy_network_are_survived() {
    for manners in [Manners { lossy: true, ..Manners::default() }, Manners { noisy: true, ..Manners::default() }] {
        let bmc = Bmc::start(manners);
        let deadline = Deadline::after(Duration::from_secs(60));
        let mut session = open_by(&method(bmc.port, ""), deadline).unwrap();
        session.change(Change::On, deadline).unwrap();
        assert_eq!(session.state(deadline).unwrap(), PowerState::On, "{manners:?}");
    }
}

#[test]
fn a_change_whose_answer_is_lost_is_done_once() {
    let bmc = Bmc::start(Manners { once: true, ..Manners::default() });
    let mut session = open(&method(bmc.port, "")).unwrap();
    session.change(Change::Cycle, soon()).unwrap();
    assert_eq!(bmc.controlled.load(Ordering::Relaxed), 2);
    // Without a lost answer, a refusal is one.
    assert_eq!(session.change(Change::Cycle, soon()).unwrap_err().class(), Class::Refused);
}

#[test]
fn refusals_of_the_chassis_have_their_classes() {
    for (completion, class) in [
        (0xc0, Class::Busy),
        (0xd2, Class::Busy),
        (0xd4, Class::Privilege),
        (0xc1, Class::Unsupported),
        (0xd5, Class::Refused),
    ] {
        let bmc = Bmc::start(Manners { completion, ..Manners::default() });
        let error = open(&method(bmc.port, "")).unwrap().change(Change::Reset, soon()).unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert_eq!(bmc.controlled.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_controller_that_is_not_ours_is_not_believed() {
    let bmc = Bmc::start(Manners { impostor: true, ..Manners::default() });
    let error = refusal(&method(bmc.port, ""), soon());
    assert_eq!(error.class(), Class::Authentication, "{error}");
    let bmc = Bmc::start(Manners { downgrade: true, ..Manners::default() });
    let error = refusal(&method(bmc.port, ""), soon());
    assert_eq!(error.class(), Class::Identity, "{error}");
}

/// Somebody who answers every datagram with what `answers` makes of it.
struct Hostile {
    port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hostile {
    fn start(answers: impl Fn(&UdpSocket, &[u8], std::net::SocketAddr, &AtomicBool) + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (port, ended) = (socket.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !end.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    answers(&socket, &buffer[..length], from, &end);
                }
            }
        });
        Self { port, ended, thread: Some(thread) }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn garbage_and_silence_end_in_time() {
    let check = |hostile: &Hostile, classes: &[Class], says: &str| {
        let start = Instant::now();
        let error = refusal(&method(hostile.port, ""), Deadline::after(Duration::from_secs(3)));
        assert!(start.elapsed() < Duration::from_secs(5), "{error} after {:?}", start.elapsed());
        assert!(classes.contains(&error.class()) && error.to_string().contains(says), "{error}");
    };
    let silent = Hostile::start(|_, _, _, _| {});
    check(&silent, &[Class::Timeout], "waiting for the answer to Get Channel Authentication Capabilities");
    // The question itself, cut at every length, and of another class and another session.
    let cut = Hostile::start(|socket, datagram, from, _| {
        for end in 0..=datagram.len() {
            let _ = socket.send_to(&datagram[..end], from);
        }
        let mut other = datagram.to_vec();
        for at in 0..other.len() {
            other[at] ^= 0x55;
            let _ = socket.send_to(&other, from);
            other[at] ^= 0x55;
        }
    });
    check(&cut, &[Class::Timeout], "datagrams were no answer");
    let flood = Hostile::start(|socket, _, from, end| {
        let mut bytes = [0; 1400];
        let mut next = 1u32;
        while !end.load(Ordering::Relaxed) {
            bytes.fill_with(|| {
                // A generator of Lehmer's, good enough for noise.
                next = (u64::from(next) * 48271 % 0x7fff_ffff) as u32;
                next.to_le_bytes()[1]
            });
            bytes[..4].copy_from_slice(&[6, 0, 0xff, 7]);
            let length = 4 + next as usize % 1390;
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
    check(&flood, &[Class::Prompt, Class::Timeout], "no answer");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refusal(&method(nobody, ""), soon());
    assert_eq!(error.class(), Class::Transport, "{error}");
}
