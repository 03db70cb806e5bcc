//! `pcu discover` over a network with sushy-tools' emulator, snmpsim and OpenIPMI's simulator at their own ports, and with devices that say
//! nothing, or nonsense.
//!
//! The network is a namespace of its own: the ports are free there, and this user may listen at them.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/ipmi_sim.rs"]
mod ipmi_sim;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/snmpsim.rs"]
mod snmpsim;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/sushy.rs"]
mod sushy;

use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use ipmi_sim::{IpmiSim, Setup};
use serde_json::{Value, json};
use snmpsim::{Agent, Simulator};
use sushy::{Emulator, Identity};

const NETWORK: &str = "127.0.77.0/29";
const PORTS: [u16; 3] = [161, 443, 623];

#[test]
fn devices_are_found_among_others() {
    let inner = env::current_exe().unwrap();
    let user = ["--user", "--map-current-user", "--keep-caps"];
    let within = Command::new("unshare")
        .args(if rustix::process::getuid().is_root() { &[][..] } else { &user })
        .args(["--net", "sh", "-c"])
        .arg(r#"ip link set lo up && exec "$0" --exact within_the_network --ignored --nocapture"#)
        .arg(inner)
        .output()
        .expect("there is no unshare: run `cargo xtask setup`");
    let (said, errors) = (String::from_utf8_lossy(&within.stdout), String::from_utf8_lossy(&within.stderr));
    assert!(
        !errors.starts_with("unshare:"),
        "this machine allows no network of one's own ({}); run the test as root, or allow user namespaces",
        errors.trim()
    );
    assert!(within.status.success() && said.contains("1 passed"), "{said}{errors}");
}

#[test]
#[ignore = "devices_are_found_among_others runs it"]
fn within_the_network() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["bmc".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let identity = Identity { certificate, key: key.serialize_pem() };
    let _redfish = Emulator::start_at(Ipv4Addr::new(127, 0, 77, 2), 443, Some(&identity));
    let agent = Agent { data: vec![("public", "apc-ap7900.snmprec")], at: Some("127.0.77.3:161"), user: None };
    let _snmp = Simulator::start(&[agent]);
    let _ipmi = IpmiSim::start(&Setup { at: Some("127.0.77.4:623".parse().unwrap()), ..Setup::default() });
    silent(Ipv4Addr::new(127, 0, 77, 5));
    nonsense(Ipv4Addr::new(127, 0, 77, 6));

    let begun = Instant::now();
    let output = pcu(&["--json", "discover", "--snmp", NETWORK]);
    let took = begun.elapsed();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found =
        |address: &str, driver: &str, detail: &str| json!({ "address": address, "driver": driver, "detail": detail });
    let detail = document["found"][1]["detail"].as_str().unwrap_or_default();
    let expected = [
        found("127.0.77.2:443", "redfish", document["found"][0]["detail"].as_str().unwrap_or_default()),
        found("127.0.77.3:161", "apc-rpdu-snmp", detail),
        found("127.0.77.4:623", "ipmi", "IPMI 2.0"),
    ];
    assert_eq!(document, json!({ "asked": 6, "found": expected }));
    assert!(document["found"][0]["detail"].as_str().unwrap().starts_with("Redfish 1."), "{document}");
    assert!(detail.contains("AP7900"), "{document}");
    // Silence takes two seconds a question, however many are silent; the rest is for a machine that does other things, too.
    assert!(took < Duration::from_secs(20), "it took {took:?}");

    let output = pcu(&["discover", NETWORK]);
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    let [redfish, ipmi] = lines[..] else { panic!("{said}") };
    assert!(redfish.starts_with("127.0.77.2:443           redfish              Redfish 1."), "{said}");
    assert_eq!(ipmi, "127.0.77.4:623           ipmi                 IPMI 2.0");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "2 of 6 addresses answered\n");
}

fn pcu(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_pcu")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Listens at every port, takes connections, and says nothing.
fn silent(host: Ipv4Addr) {
    for port in PORTS {
        let (listener, socket) = (TcpListener::bind((host, port)).unwrap(), UdpSocket::bind((host, port)).unwrap());
        thread::spawn(move || {
            let connections: Vec<_> = listener.incoming().collect();
            drop((connections, socket));
        });
    }
}

/// Answers everything with what it was asked, and with bytes that mean nothing.
fn nonsense(host: Ipv4Addr) {
    for port in PORTS {
        let (listener, socket) = (TcpListener::bind((host, port)).unwrap(), UdpSocket::bind((host, port)).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                for answer in [&buffer[..length], &buffer[..length / 2], &[0x30; 1400]] {
                    let _ = socket.send_to(answer, from);
                }
            }
        });
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.read(&mut [0; 2048]);
                while stream.write_all(&[0x16; 4096]).is_ok() {}
            }
        });
    }
}
