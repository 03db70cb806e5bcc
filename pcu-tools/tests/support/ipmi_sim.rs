//! OpenIPMI's simulator of a management controller, of Debian's package `openipmi`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use orrery_rmcp::presence;

/// Keeps the state of a machine's power in a file, and writes down what it was told. The simulator runs it for everything that
/// concerns the chassis.
const CHASSIS: &str = r#"#!/bin/sh
cd "${0%/*}"
shift
echo "$*" >>calls
what=$1; shift
case $what in
get)
    for name; do echo "$name:$(cat "$name")"; done ;;
set)
    while [ $# -gt 1 ]; do
        echo "$2" >"$1"
        shift 2
    done ;;
*) exit 1 ;;
esac
"#;

/// A controller with a watchdog, four sensors that can be read and one with states, and two entries in its log.
const CONTROLLER: &str = "\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 50 0x0a
sel_add 0x20 2 0 0 0 0 0x20 0 4 1 1 1 0x59 0x60 0x70
sel_add 0x20 2 0 0 0 0 0x20 0 4 9 5 0x6f 4 0xff 0xff
sensor_add 0x20 0 1 0x01 0x01
sensor_set_threshold 0x20 0 1 settable 111000 0xa0 0x90 0x70 00 00 00
sensor_set_event_support 0x20 0 1 enable scanning per-state 000111111000000 000111111000000 000111111000000 000111111000000
sensor_set_value 0x20 0 1 0x95 0
main_sdr_add 0x20 0 0 0x51 1 0x31 0x20 0 1 3 1 0x67 0x88 1 1 0xc0 0x0f 0xc0 0x7f 0x38 0x38 0 1 0 0 1 0 0 0 0 0 3 0x60 0xb0 0 0xb0 0 0xa0 0x90 0x70 0 0 0 0 0 0 0 0 0xc6 'C 'P 'U '_ '1 'T
sensor_add 0x20 0 2 0x02 0x01
sensor_set_event_support 0x20 0 2 enable scanning per-state 000111111000000 000111111000000 000111111000000 000111111000000
sensor_set_value 0x20 0 2 0xc2 0
main_sdr_add 0x20 0 0 0x51 1 0x30 0x20 0 2 7 1 0x67 0x88 2 1 0xc0 0x0f 0xc0 0x7f 0x38 0x38 0 4 0 0 17 0 0 0 0 0xd0 3 0x60 0xb0 0 0xb0 0 0xa0 0x90 0x70 0 0 0 0 0 0 0 0 0xc5 '3 'V '3 'a 'u
sensor_add 0x20 0 3 0x04 0x01
sensor_set_event_support 0x20 0 3 enable scanning per-state 000111111000000 000111111000000 000111111000000 000111111000000
sensor_set_value 0x20 0 3 20 0
main_sdr_add 0x20 0 0 0x51 1 0x2f 0x20 0 3 29 1 0x67 0x88 4 1 0xc0 0x0f 0xc0 0x7f 0x38 0x38 0 18 0 0 100 0 0xff 0xc0 0 0x01 3 0x60 0xb0 0 0xb0 0 0xa0 0x90 0x70 0 0 0 0 0 0 0 0 0xc4 'F 'A 'N '1
sensor_add 0x20 0 4 0x01 0x01
sensor_set_event_support 0x20 0 4 enable scanning per-state 000111111000000 000111111000000 000111111000000 000111111000000
sensor_set_value 0x20 0 4 0xf6 0
main_sdr_add 0x20 0 0 0x51 1 0x30 0x20 0 4 64 1 0x67 0x88 1 1 0xc0 0x0f 0xc0 0x7f 0x38 0x38 0x80 1 0 0 1 0 0 0 0 0 3 0x60 0xb0 0 0xb0 0 0xa0 0x90 0x70 0 0 0 0 0 0 0 0 0xc5 'I 'n 'l 'e 't
sensor_add 0x20 0 5 0x08 0x6f
sensor_set_bit 0x20 0 5 0 1 0
sensor_set_event_support 0x20 0 5 enable scanning per-state 000000000011111 000000000011111 000000000011111 000000000011111
main_sdr_add 0x20 0 0 0x51 2 0x1e 0x20 0 5 10 1 0 0x40 8 0x6f 0x1f 0 0x1f 0 0x1f 0 0xc0 0 0 1 0 0 0 0 0 0 0 0xc3 'P 'S '1
mc_enable 0x20
";

/// What a simulator is started with.
pub(crate) struct Setup {
    /// Whether it has RMCP+; otherwise IPMI 1.5 only.
    pub(crate) rmcp_plus: bool,
    /// What IPMI 1.5 may be authenticated with.
    pub(crate) lan15: &'static str,
    /// Where; on a free port of 127.0.0.1 without.
    pub(crate) at: Option<SocketAddrV4>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { rmcp_plus: true, lan15: "md5", at: None }
    }
}

/// A running simulator. Dropping it ends it.
pub(crate) struct IpmiSim {
    /// Its UDP port on 127.0.0.1.
    pub(crate) port: u16,
    folder: tempfile::TempDir,
    process: Child,
    serial: TcpListener,
}

impl IpmiSim {
    /// Starts one, and waits until it answers.
    pub(crate) fn start(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let chassis = at("chassis");
        fs::write(&chassis, CHASSIS).unwrap();
        fs::set_permissions(&chassis, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, value) in [("power", "0"), ("boot", "none"), ("calls", "")] {
            fs::write(at(name), value).unwrap();
        }
        fs::create_dir(at("state")).unwrap();
        let serial = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = setup.at.unwrap_or_else(|| SocketAddrV4::new(Ipv4Addr::LOCALHOST, free()));
        let (host, port) = (address.ip(), address.port());
        let lan15 = setup.lan15;
        let config = format!(
            "name \"sim\"\n\
             set_working_mc 0x20\n\
             startlan 1\n\
             addr {host} {port}\n\
             priv_limit admin\n\
             allowed_auths_user {lan15}\n\
             allowed_auths_operator {lan15}\n\
             allowed_auths_admin {lan15}\n\
             {guid}\n\
             endlan\n\
             chassis_control \"{chassis} 0x20\"\n\
             sol \"tcp:127.0.0.1:{serial}\" 115200\n\
             user 2 true \"admin\" \"secret\" admin 10 {lan15}\n\
             user 3 true \"viewer\" \"look\" user 10 {lan15}\n\
             user 4 true \"long\" \"1234567890123456789\" operator 10 {lan15}\n",
            guid = if setup.rmcp_plus { "guid a123456789abcdefa123456789abcdef" } else { "" },
            chassis = chassis.display(),
            serial = serial.local_addr().unwrap().port(),
        );
        fs::write(at("lan.conf"), config).unwrap();
        fs::write(at("controller"), CONTROLLER).unwrap();
        let mut process = Command::new("ipmi_sim")
            .args(["-n", "-c"])
            .arg(at("lan.conf"))
            .arg("-f")
            .arg(at("controller"))
            .arg("-s")
            .arg(at("state"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(at("output")).unwrap())
            .stderr(fs::File::create(at("errors")).unwrap())
            .spawn()
            .expect("there is no ipmi_sim: run `cargo xtask setup`");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            // Until it listens, the system says that nobody does.
            let asked = socket.send(&presence::ping(1)).is_ok();
            if asked && socket.recv(&mut [0; 100]).is_ok() {
                return Self { port, folder, process, serial };
            }
            let ended = process.try_wait().unwrap();
            if ended.is_some() || Instant::now() > limit {
                let _ = process.kill();
                let said = [at("output"), at("errors")].map(|file| fs::read_to_string(file).unwrap());
                panic!("ipmi_sim does not answer ({ended:?}): {said:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A file that it keeps: `power`, `reset`, `boot`, `identify`, `calls`.
    pub(crate) fn kept(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default().trim().to_owned()
    }

    /// Puts a value into such a file.
    pub(crate) fn keep(&self, name: &str, value: &str) {
        fs::write(self.path(name), value).unwrap();
    }

    /// The machine's end of the serial line.
    pub(crate) fn serial(&self) -> TcpStream {
        self.serial.set_nonblocking(true).unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match self.serial.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    return stream;
                }
                Err(_) if Instant::now() < limit => thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("ipmi_sim does not connect to the serial line: {error}"),
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for IpmiSim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What `ipmitool` prints.
pub(crate) fn ipmitool(port: u16, cipher: u8, arguments: &[&str]) -> Result<String, String> {
    let (port, cipher) = (port.to_string(), cipher.to_string());
    let output = Command::new("ipmitool")
        .args(["-I", "lanplus", "-H", "127.0.0.1", "-p", &port, "-C", &cipher, "-U", "admin", "-E", "-L", "OPERATOR"])
        .args(arguments)
        .env("IPMI_PASSWORD", "secret")
        .output()
        .expect("there is no ipmitool: run `cargo xtask setup`");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(said + &String::from_utf8_lossy(&output.stderr)) }
}
