//! The SNMP drivers against snmpsim and net-snmp, and against peers that mean harm.

#[path = "support/snmpd.rs"]
mod snmpd;
#[path = "support/snmpsim.rs"]
mod snmpsim;

use std::{
    fs,
    net::UdpSocket,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use orrery_pcu::{
    Ability, Change, Class, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session, Waiver,
};
use snmp2::{MessageType, Pdu, Varbinds};
use snmpd::Snmpd;
use snmpsim::{Agent, DISCOVERY, Simulator};

const APC: &str = "apc-ap7900.snmprec";
const RARITAN: &str = "raritan-px2.snmprec";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn secret(word: &str) -> Option<SecretSource> {
    Some(SecretSource::Command(vec!["echo".into(), word.into()]))
}

fn community(driver: &str, address: &str, version: &str, community: &str, outlet: &str) -> Method {
    let mut method = Method::new(driver, address);
    method.password = secret(community);
    method.outlet = Some(outlet.into());
    method.waivers = vec![Waiver::ClearText];
    method.options.insert("version".into(), version.into());
    method
}

fn user(address: &str, name: &str, auth: &str, privacy: &str, outlet: &str) -> Method {
    let mut method = Method::new("apc-rpdu-snmp", address);
    method.user = Some(name.into());
    method.password = secret("authentication");
    method.outlet = Some(outlet.into());
    method.options.insert("auth".into(), auth.into());
    method.options.insert("context".into(), "unit".into());
    if privacy.is_empty() || privacy == "des" {
        method.waivers = vec![Waiver::ClearText];
    }
    if !privacy.is_empty() {
        method.options.insert("privacy".into(), privacy.into());
        let source: toml::Table = toml::from_str("command = ['echo', 'privacy word']").unwrap();
        method.options.insert("privacy_password".into(), source.into());
    }
    method
}

fn open_by(method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method).unwrap().open(method, deadline)
}

fn open(method: &Method) -> Box<dyn Session> {
    open_by(method, soon()).unwrap_or_else(|error| panic!("{method}: {error}"))
}

#[track_caller]
fn fails<T>(found: Result<T, PcuError>, class: Class, parts: &[&str]) {
    let Err(error) = found else { panic!("it succeeds; expected {class:?}") };
    assert_eq!(error.class(), class, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{error}\nlacks {part:?}");
    }
}

/// How many commands the simulator's outlet got.
fn commands(address: &str, word: &str, outlet: u32) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("count.toml");
    let text = "name = 'count'\nabout = 'x'\nsource = 'x'\n[snmp]\n[snmp.status]\noid = '1.3.6.1.4.1.99999.1.{outlet}'\n\
        on = [1]\noff = [0]\n[snmp.on]\noid = '1.3.{outlet}'\nvalue = 1\n[snmp.off]\noid = '1.3.{outlet}'\nvalue = 0\n\
        [[snmp.sensors]]\nname = 'commands'\noid = '1.3.6.1.4.1.99999.1.{outlet}'\nunit = ''\n";
    fs::write(&file, text).unwrap();
    let mut registry = Registry::builtin();
    registry.add_file(&file).unwrap();
    let method = community("count", address, "2c", word, &outlet.to_string());
    let mut session = registry.of(&method).unwrap().open(&method, soon()).unwrap();
    session.sensors(soon()).unwrap()[0].value.unwrap()
}

#[test]
fn an_apc_unit_by_versions_1_and_2c() {
    let simulator = Simulator::start(&[Agent { data: vec![("private", APC)], ..Agent::default() }]);
    let at = simulator.address(0);
    for version in ["1", "2c"] {
        let method = |outlet: &str| community("apc-rpdu-snmp", at, version, "private", outlet);
        let mut session = open(&method("1"));
        assert_eq!(session.state(soon()).unwrap(), PowerState::On);
        session.change(Change::Off, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
        // The same one by its name.
        let mut named = open(&method("n1"));
        assert_eq!(named.state(soon()).unwrap(), PowerState::Off);
        named.change(Change::On, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::On);
        let before = commands(at, "private", 1);
        session.change(Change::Cycle, soon()).unwrap();
        assert_eq!(commands(at, "private", 1), before + 1.0);
        fails(session.change(Change::Reset, soon()), Class::Unsupported, &["reset of outlet 1"]);

        assert_eq!(open(&method("2")).state(soon()).unwrap(), PowerState::Off);
        fails(open_by(&method("9"), soon()), Class::OutletUnknown, &["\"9\"", "1 (n1), 2 (n2)", "8 (busy)"]);
        fails(open_by(&method("n9"), soon()), Class::OutletUnknown, &["\"n9\"", "3 (switch)"]);
        fails(open_by(&method("twin"), soon()), Class::Configuration, &["5 and 6 are both called"]);
        fails(open(&method("locked")).change(Change::Off, soon()), Class::Privilege, &["127.0.0.1"]);
        if version == "2c" {
            fails(open(&method("busy")).change(Change::Off, soon()), Class::Busy, &["resourceUnavailable"]);
        }
        let sensors = session.sensors(soon()).unwrap();
        assert_eq!((sensors[0].name.as_str(), sensors[0].unit.as_str()), ("phase 1 current", "A"));
        assert!((sensors[0].value.unwrap() - 2.3).abs() < 1e-9, "{sensors:?}");
    }
    // The same unit by the objects that every APC unit has.
    let mut session = open(&community("apc-masterswitch-snmp", at, "1", "private", "spare"));
    session.change(Change::Off, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
}

#[test]
fn a_test_changes_nothing_and_says_what_it_shows() {
    let simulator = Simulator::start(&[Agent { data: vec![("private", APC)], ..Agent::default() }]);
    let at = simulator.address(0);
    let proofs = |driver: &str| {
        let found = open(&community(driver, at, "2c", "private", "n2")).prove(soon()).unwrap();
        found.into_iter().map(|proof| proof.0).collect::<Vec<_>>().join("\n")
    };
    let found = proofs("apc-rpdu-snmp");
    for part in ["the power is off", "outlet 2 is one of 8, called \"n2\"", "shows only when we do", "MN:AP7900"] {
        assert!(found.contains(part), "{found}");
    }
    assert!(!found.contains("warning"), "{found}");
    assert!(proofs("apc-masterswitch-snmp").contains("the power is off"));
    assert_eq!(commands(at, "private", 2), 0.0);
}

#[test]
fn a_raritan_unit() {
    let simulator = Simulator::start(&[Agent { data: vec![("private", RARITAN)], ..Agent::default() }]);
    let at = simulator.address(0);
    let method = |driver: &str, outlet: &str| community(driver, at, "2c", "private", outlet);
    // By number, by PDU and number, by name, by label.
    for outlet in ["4", "1.4", "storage", "A4"] {
        let mut session = open(&method("raritan-px2-snmp", outlet));
        assert_eq!(session.state(soon()).unwrap(), PowerState::On, "{outlet}");
        session.change(Change::Off, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::Off, "{outlet}");
        session.change(Change::On, soon()).unwrap();
    }
    let mut session = open(&method("raritan-px2-snmp", "4"));
    let found: Vec<_> =
        session.sensors(soon()).unwrap().into_iter().map(|sensor| (sensor.value.unwrap(), sensor.unit)).collect();
    assert_eq!(found, [(1.234, "A".to_owned()), (231.0, "V".to_owned()), (270.0, "W".to_owned())]);
    fails(
        open_by(&method("raritan-px2-snmp", "2.1"), soon()),
        Class::OutletUnknown,
        &["1 (n1), 2 (n2), 3, 4 (storage)"],
    );
    // Another family's driver says what it met instead.
    fails(open_by(&method("apc-rpdu-snmp", "1"), soon()), Class::Prompt, &["PX2-5475", "1.3.6.1.4.1.13742.6"]);
}

#[test]
fn a_wrong_community_is_not_answered() {
    let simulator = Simulator::start(&[Agent { data: vec![("private", APC)], ..Agent::default() }]);
    let at = simulator.address(0);
    let wrong = community("apc-rpdu-snmp", at, "2c", "wrong", "1");
    let start = Instant::now();
    let limit = Duration::from_secs(3);
    fails(open_by(&wrong, Deadline::after(limit)), Class::Timeout, &["without a word"]);
    assert!((limit..limit * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    let mut without = community("apc-rpdu-snmp", at, "2c", "private", "1");
    without.waivers.clear();
    fails(open_by(&without, soon()), Class::Configuration, &["clear-text"]);
}

#[test]
fn version_3_with_every_algorithm() {
    let users = [
        ("md5", "MD5", "des", "DES", "reeder"),
        ("sha1", "SHA", "aes128", "AES", "reeder"),
        ("sha224", "SHA224", "", "", "reeder"),
        ("sha256", "SHA256", "aes128", "AES128", "reeder"),
        ("sha384", "SHA384", "aes192", "AES192", "reeder"),
        ("sha512", "SHA512", "aes256", "AES256", "reeder"),
        ("sha1", "SHA", "aes256", "AES256", "reeder"),
        ("sha1", "SHA", "aes256", "AES256BLMT", "blumenthal"),
        ("md5", "MD5", "aes192", "AES192BLMT", "blumenthal"),
    ];
    let agent = |theirs: [&'static str; 2]| {
        let user = Some(["pcu", theirs[0], "authentication", theirs[1], "privacy word"]);
        Agent { data: vec![("unit", APC)], user, at: None }
    };
    let agents: Vec<_> = users.iter().map(|(_, auth, _, privacy, _)| agent([auth, privacy])).collect();
    let simulator = Simulator::start(&agents);
    for (number, (auth, _, privacy, _, extension)) in users.into_iter().enumerate() {
        let mut method = user(simulator.address(number), "pcu", auth, privacy, "n1");
        method.options.insert("key_extension".into(), extension.into());
        let mut session = open(&method);
        for (change, state) in [(Change::Off, PowerState::Off), (Change::On, PowerState::On)] {
            session.change(change, soon()).unwrap();
            assert_eq!(session.state(soon()).unwrap(), state, "{auth} {privacy} {extension}");
        }
        session.change(Change::Cycle, soon()).unwrap();
        method.outlet = Some("9".into());
        fails(open_by(&method, soon()), Class::OutletUnknown, &["1 (n1)"]);
        method.outlet = Some("locked".into());
        fails(open(&method).change(Change::Off, soon()), Class::Privilege, &["notWritable"]);
    }

    let encrypted = |address| user(address, "pcu", "sha256", "aes128", "1");
    let mut wrong = encrypted(simulator.address(3));
    wrong.password = secret("another password");
    fails(open_by(&wrong, soon()), Class::Authentication, &["the password of \"pcu\" is wrong"]);
    let mut wrong = encrypted(simulator.address(3));
    wrong.user = Some("nobody".into());
    fails(open_by(&wrong, soon()), Class::Authentication, &["does not know the user \"nobody\""]);
    let mut wrong = user(simulator.address(3), "pcu", "sha512", "aes128", "1");
    wrong.password = secret("authentication");
    fails(open_by(&wrong, soon()), Class::Authentication, &["does not sign with Sha512"]);
    let mut wrong = encrypted(simulator.address(3));
    let other: toml::Table = toml::from_str("command = ['echo', 'another privacy word']").unwrap();
    wrong.options.insert("privacy_password".into(), other.into());
    fails(open_by(&wrong, soon()), Class::Authentication, &["the privacy password of \"pcu\" is wrong"]);
}

#[test]
fn a_unit_of_net_snmp() {
    let mut agent = Snmpd::start(
        "createUser first SHA-512 authentication AES-256 'privacy word'\n\
         createUser second SHA authentication AES 'privacy word'\n\
         createUser third MD5 authentication DES 'privacy word'\n\
         createUser reader SHA-256 authentication AES 'privacy word'\n\
         rwuser first priv\nrwuser second priv\nrwuser third priv\nrouser reader priv\n\
         rwcommunity private 127.0.0.1\nrocommunity public 127.0.0.1\n\
         override -rw .1.3.6.1.4.1.318.1.1.4.4.2.1.3.1 integer 1\n\
         override -rw .1.3.6.1.4.1.318.1.1.4.4.2.1.3.2 integer 2\n\
         override .1.3.6.1.4.1.318.1.1.4.4.2.1.4.1 octet_str n1\n\
         override .1.3.6.1.4.1.318.1.1.4.4.2.1.4.2 octet_str n2\n",
    );
    let at = agent.address().to_owned();
    let of_user = |name: &str, auth: &str, privacy: &str| {
        let mut method = user(&at, name, auth, privacy, "n2");
        method.driver = "apc-masterswitch-snmp".into();
        method.options.remove("context");
        method.options.insert("key_extension".into(), "blumenthal".into());
        method
    };
    let by = |version: &str, word: &str| community("apc-masterswitch-snmp", &at, version, word, "n2");
    for method in [
        of_user("first", "sha512", "aes256"),
        of_user("second", "sha1", "aes128"),
        of_user("third", "md5", "des"),
        by("1", "private"),
        by("2c", "private"),
    ] {
        let mut session = open(&method);
        assert_eq!(session.state(soon()).unwrap(), PowerState::Off, "{method}");
        session.change(Change::On, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::On, "{method}");
        session.change(Change::Off, soon()).unwrap();
        let mut unknown = method.clone();
        unknown.outlet = Some("3".into());
        fails(open_by(&unknown, soon()), Class::OutletUnknown, &["1 (n1), 2 (n2)"]);
    }
    for method in [of_user("reader", "sha256", "aes128"), by("1", "public"), by("2c", "public")] {
        fails(open(&method).change(Change::On, soon()), Class::Privilege, &[]);
    }
    fails(open_by(&of_user("second", "sha1", ""), soon()), Class::Privilege, &["authorizationError"]);
    fails(open_by(&of_user("nobody", "sha1", "aes128"), soon()), Class::Authentication, &["does not know the user"]);
    fails(
        open_by(&of_user("second", "sha256", "aes128"), soon()),
        Class::Authentication,
        &["does not sign with Sha256"],
    );
    fails(open_by(&by("2c", "other"), Deadline::after(Duration::from_secs(2))), Class::Timeout, &["without a word"]);

    // A session outlives the agent's start: its clock and its count of starts are others then.
    let mut session = open(&of_user("first", "sha512", "aes256"));
    agent.restart();
    session.change(Change::On, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
}

/// A peer that answers each datagram as it likes. It ends when this goes.
struct Peer {
    address: String,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<MessageType>>>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    fn start(mut answers: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ends, sees) = (Arc::clone(&stop), Arc::clone(&seen));
        let address = socket.local_addr().unwrap().to_string();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !ends.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = &buffer[..length];
                let number = {
                    let mut seen = sees.lock().unwrap();
                    seen.extend(Pdu::from_bytes(request).map(|pdu| pdu.message_type));
                    seen.len()
                };
                for answer in answers(number, request) {
                    // Its other end may be gone.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, stop, seen, thread: Some(thread) }
    }

    fn count(&self, kind: MessageType) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| **seen == kind).count()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What a device would answer: every object is 1. `other` is added to the request's number.
fn answer(request: &[u8], other: i32) -> Vec<u8> {
    let mut pdu = Pdu::from_bytes(request).unwrap();
    let name = pdu.varbinds.clone().next().unwrap().0;
    let name = name.as_bytes();
    let mut binding = vec![0x30, name.len() as u8 + 5, 6, name.len() as u8];
    binding.extend(name);
    binding.extend([2, 1, 1]);
    (pdu.message_type, pdu.req_id, pdu.varbinds) =
        (MessageType::Response, pdu.req_id + other, Varbinds::from_bytes(&binding));
    pdu.to_bytes().unwrap()
}

fn of_peer(peer: &Peer) -> Method {
    community("apc-rpdu-snmp", &peer.address, "2c", "private", "1")
}

#[test]
fn the_answer_is_found_among_others() {
    let peer = Peer::start(|_, request| {
        let good = answer(request, 0);
        let cut = good[..good.len() - 1].to_vec();
        vec![b"no SNMP".to_vec(), Vec::new(), cut, answer(request, 1), vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff], good]
    });
    let mut session = open(&of_peer(&peer));
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    session.change(Change::Cycle, soon()).unwrap();
    assert_eq!(peer.count(MessageType::SetRequest), 1);
}

#[test]
fn what_is_no_answer_ends_by_the_deadline() {
    let check = |answers: fn(&[u8]) -> Vec<Vec<u8>>, part: &str| {
        let peer = Peer::start(move |_, request| answers(request));
        let start = Instant::now();
        let limit = Duration::from_millis(1500);
        fails(open_by(&of_peer(&peer), Deadline::after(limit)), Class::Prompt, &[part]);
        assert!(start.elapsed() < limit * 2, "{:?}", start.elapsed());
    };
    check(|_| vec![b"\x30\x03\x02\x01\x01".to_vec()], "no answer among them");
    check(|_| vec![b"HTTP/1.0 400 Bad Request".to_vec()], "no answer among them");
    check(|request| vec![answer(request, 1)], "another request");
    check(|request| vec![request.to_vec()], "GetRequest");
    check(|request| vec![answer(request, 0)[..30].to_vec()], "no answer among them");
    check(|_| vec![vec![0x30; 60_000]], "no answer among them");
}

#[test]
fn a_flood_is_given_up() {
    let peer = Peer::start(|_, request| vec![answer(request, 7); 1000]);
    let start = Instant::now();
    fails(open_by(&of_peer(&peer), soon()), Class::Prompt, &["65 datagrams", "another request"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(peer);
    // The same by version 3, before anything is signed.
    let peer = Peer::start(|_, _| vec![vec![0x30, 0x80, 0x02, 0x01, 0x03]; 1000]);
    fails(open_by(&user(&peer.address, "pcu", "sha256", "aes128", "1"), soon()), Class::Prompt, &["65 datagrams"]);
}

#[test]
fn a_lost_answer_repeats_only_what_is_harmless() {
    // The first answer to every kind of request is lost.
    let peer = Peer::start(|number, request| if number % 2 == 1 { Vec::new() } else { vec![answer(request, 0)] });
    let mut session = open(&of_peer(&peer));
    assert_eq!(peer.count(MessageType::GetRequest), 2);
    session.change(Change::On, soon()).unwrap();
    assert_eq!(peer.count(MessageType::SetRequest), 2);
    fails(session.change(Change::Cycle, Deadline::after(Duration::from_secs(3))), Class::Timeout, &["no answer"]);
    assert_eq!(peer.count(MessageType::SetRequest), 3);
}

#[test]
fn a_table_without_end_is_given_up() {
    let peer = Peer::start(|_, request| vec![answer(request, 0)]);
    let mut method = of_peer(&peer);
    method.outlet = Some("n1".into());
    // The object after one is always that one again.
    fails(open_by(&method, soon()), Class::Prompt, &["no outlets where this driver looks"]);
    assert!(peer.count(MessageType::GetNextRequest) < 10);
}

/// A refusal by version 3, in the clear, that names an engine and a counter.
fn refusal(request: &[u8], engine: &[u8], counter: u8) -> Vec<u8> {
    let tlv = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    // Behind the first version number, and the second header's type and length, is the message's own number.
    let at = request.windows(3).position(|bytes| bytes == [2, 1, 3]).unwrap() + 5;
    let id = &request[at..at + 2 + usize::from(request[at + 1])];
    let zero = [2, 1, 0];
    let name = [0x2b, 6, 1, 6, 3, 15, 1, 1, counter, 0];
    let binding = tlv(0x30, &[tlv(6, &name), vec![0x41, 1, 1]].concat());
    let report = tlv(0xa8, &[zero.to_vec(), zero.to_vec(), zero.to_vec(), tlv(0x30, &binding)].concat());
    let users = [tlv(4, engine), zero.to_vec(), zero.to_vec(), tlv(4, b""), tlv(4, b""), tlv(4, b"")].concat();
    let header = [id, &[2, 2, 8, 0], &[4, 1, 0], &[2, 1, 3]].concat();
    let scoped = [tlv(4, engine), tlv(4, b""), report].concat();
    tlv(0x30, &[vec![2, 1, 3], tlv(0x30, &header), tlv(4, &tlv(0x30, &users)), tlv(0x30, &scoped)].concat())
}

#[test]
fn a_device_that_is_another_each_time_is_given_up() {
    for counter in [2, 4] {
        let mut engine = 0;
        let peer = Peer::start(move |_, request| {
            engine += 1;
            vec![refusal(request, &[0x80, 0, 0, 1, engine], counter)]
        });
        let method = user(&peer.address, "pcu", "sha256", "aes128", "1");
        let start = Instant::now();
        fails(open_by(&method, soon()), Class::Prompt, &["its clock jumps"]);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn nobody_there() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = Instant::now();
    fails(open_by(&community("apc-rpdu-snmp", &free, "2c", "private", "1"), soon()), Class::Transport, &["refused"]);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn every_family_says_what_it_can() {
    let registry = Registry::builtin();
    let families: Vec<_> = registry.iter().filter(|driver| driver.about().contains("MIB")).collect();
    assert!(families.len() >= 15, "{}", families.len());
    for driver in &families {
        assert!(driver.abilities().contains(&Ability::Status), "{}", driver.name());
        let can = driver.abilities().contains(&Ability::Cycle);
        assert_eq!(
            can,
            !driver.name().starts_with("gude") && !driver.about().contains("cannot cycle"),
            "{}",
            driver.name()
        );
    }
}
