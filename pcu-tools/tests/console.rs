//! `pcu console` on a terminal, with the serial line of OpenIPMI's simulator.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/ipmi_sim.rs"]
mod ipmi_sim;
#[path = "support/terminal.rs"]
mod terminal;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use ipmi_sim::{IpmiSim, Setup};
use rustix::{process::Signal, termios::LocalModes};
use terminal::Terminal;

/// A machine, and a person at its console.
struct Console {
    machine: TcpStream,
    inventory: String,
    _simulator: IpmiSim,
    _folder: tempfile::TempDir,
}

impl Console {
    fn new() -> Self {
        let simulator = IpmiSim::start(&Setup::default());
        let folder = tempfile::tempdir().unwrap();
        let inventory = folder.path().join("pcu.toml");
        let text = format!(
            "[nodes.n1]\nmethods = [{{ driver = \"ipmi\", address = \"127.0.0.1:{}\", user = \"admin\", password = {{ command = [\"echo\", \"secret\"] }} }}]\n",
            simulator.port
        );
        fs::write(&inventory, text).unwrap();
        let inventory = inventory.display().to_string();
        Self { machine: simulator.serial(), inventory, _simulator: simulator, _folder: folder }
    }

    fn connect(&mut self) -> Terminal {
        let pcu = env!("CARGO_BIN_EXE_pcu");
        let mut terminal = Terminal::start(pcu, &["console", "n1"], ("PCU_INVENTORY", &self.inventory));
        terminal.expect("connected to n1; ~. ends it\r\n");
        terminal
    }

    /// What was typed next, as the machine gets it.
    fn heard(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.machine.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

#[test]
fn a_terminal_and_a_machine_talk_until_the_way_out() {
    let mut console = Console::new();
    let mut terminal = console.connect();
    console.machine.write_all(b"login: ").unwrap();
    terminal.expect("login: ");
    terminal.type_in("root\r");
    assert_eq!(console.heard(5), "root\r");
    // Neither a signal nor a line's end is made of it.
    terminal.type_in("\x03\x04\x1a");
    assert_eq!(console.heard(3), "\x03\x04\x1a");
    console.machine.write_all(b"still here").unwrap();
    terminal.expect("still here");
    assert!(!terminal.shown.contains("root"), "the terminal echoes: {}", terminal.shown);
    terminal.type_in("a~.\r~");
    assert_eq!(console.heard(4), "a~.\r");
    terminal.type_in(".");
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn the_terminal_gets_its_modes_back_however_it_ends() {
    let mut console = Console::new();
    let mut before = None;
    for (signal, status) in [(None, 0), (Some(Signal::TERM), 143), (Some(Signal::HUP), 129), (Some(Signal::INT), 130)] {
        // That it connects again shows that the line was given back.
        let mut terminal = console.connect();
        let during = terminal.modes();
        assert!(!during.2.intersects(LocalModes::ECHO | LocalModes::ISIG | LocalModes::ICANON), "{during:?}");
        match signal {
            Some(signal) => terminal.signal(signal),
            None => terminal.type_in("~."),
        }
        assert_eq!(terminal.wait().code(), Some(status));
        let after = terminal.modes();
        assert!(after.2.contains(LocalModes::ECHO | LocalModes::ISIG | LocalModes::ICANON), "{after:?}");
        assert_eq!(*before.get_or_insert(after), after);
    }
}
