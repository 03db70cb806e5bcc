//! Devices that are led through a dialogue over ssh or telnet: the family of the table `[menu]`.
//!
//! A data file is a [`script::Script`]; [`dialogue`] leads it over a [`line::Line`]. Non-goal: a language. A dialogue that needs
//! a decision other than "what did it answer" is a driver of its own.

#[cfg(test)]
mod devices;
mod dialogue;
mod line;
mod script;
mod ssh;
mod telnet;
mod text;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;

pub(super) use self::script::Script;
use self::{
    dialogue::{Dialogue, Words},
    line::{Line, TelnetLine},
    script::{Step, Transport},
    ssh::SshLine,
};
use super::About;
use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Secret, Session, Waiver, driver::Proof};

/// The devices that are known.
pub(super) const BUILTIN: &[&str] = &[
    include_str!("../../data/menu/apc-cli.toml"),
    include_str!("../../data/menu/apc-menu.toml"),
    include_str!("../../data/menu/baytech-rpc.toml"),
    include_str!("../../data/menu/baytech-rpc-nc.toml"),
    include_str!("../../data/menu/cyberpower-cli.toml"),
    include_str!("../../data/menu/cyclades-pm.toml"),
    include_str!("../../data/menu/dell-cmc.toml"),
    include_str!("../../data/menu/drac5.toml"),
    include_str!("../../data/menu/idrac-racadm.toml"),
    include_str!("../../data/menu/ilo-ssh.toml"),
    include_str!("../../data/menu/ilo-telnet.toml"),
    include_str!("../../data/menu/raritan-px.toml"),
    include_str!("../../data/menu/sentry.toml"),
    include_str!("../../data/menu/sun-ilom.toml"),
    include_str!("../../data/menu/wti.toml"),
];

/// The terminal that devices are told we are, and its size: old enough for all of them, and so large that few ask to press Enter.
const TERMINAL: &str = "vt100";
const COLUMNS: u16 = 200;
const ROWS: u16 = 100;
/// How long a device is waited for when we leave.
const GOODBYE: Duration = Duration::from_secs(3);

/// A driver that is a script.
pub(super) struct Menu {
    about: About,
    abilities: Vec<Ability>,
    script: Arc<Script>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `ssh` or `telnet`, for devices that have both.
    transport: Option<Transport>,
    /// A file with a private key for ssh.
    key: Option<PathBuf>,
}

/// How a device is reached, and what is said to it.
struct Device {
    method: Method,
    /// Host and port.
    address: String,
    host: String,
    port: u16,
    telnet: bool,
    words: Words,
    key: Option<PathBuf>,
    script: Arc<Script>,
}

struct MenuSession {
    device: Device,
    /// None when the last dialogue went wrong: where it stands then, nobody knows, so that the next one begins anew.
    dialogue: Option<Dialogue>,
}

impl Menu {
    pub(super) fn new(about: About, script: Script) -> Self {
        let changes = [
            (Change::On, Ability::On),
            (Change::Off, Ability::Off),
            (Change::Cycle, Ability::Cycle),
            (Change::Reset, Ability::Reset),
        ];
        let changes = changes.into_iter().filter(|(change, _)| script.change(*change).is_some());
        let abilities = [Ability::Status].into_iter().chain(changes.map(|(_, ability)| ability)).collect();
        Self { about, abilities, script: Arc::new(script) }
    }
}

impl Driver for Menu {
    fn name(&self) -> &str {
        &self.about.name
    }

    fn about(&self) -> &str {
        &self.about.about
    }

    fn abilities(&self) -> &[Ability] {
        &self.abilities
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let mut session = MenuSession { device: Device::new(method, &self.script)?, dialogue: None };
        // Shows that the outlet is there.
        session.state(deadline)?;
        Ok(Box::new(session))
    }
}

impl Device {
    fn new(method: &Method, script: &Arc<Script>) -> Result<Self, PcuError> {
        let Options { transport, key } = method.options()?;
        let telnet = match (script.transport, transport) {
            (own, None) | (Transport::Either, Some(own)) => own == Transport::Telnet,
            (own, Some(wanted)) if own == wanted => own == Transport::Telnet,
            (own, Some(wanted)) => {
                let detail = format!("transport = {wanted:?}: this device is reached by {own:?} only");
                return Err(method.misconfigured(&detail.to_lowercase()));
            }
        };
        if telnet {
            method.require(Waiver::ClearText, "telnet shows the password to everybody on the way")?;
            if key.is_some() {
                return Err(method.misconfigured("a key is of no use over telnet"));
            }
        }
        let (host, port) = method.host_and_port(if telnet { 23 } else { 22 })?;
        let outlet = if script.has_outlets() { method.outlet()? } else { "" };
        // Over telnet a device may ask for neither of them.
        let user = if telnet { method.user.clone() } else { Some(method.account()?.to_owned()) };
        let needs_password = !telnet && key.is_none();
        let password = if needs_password || method.password.is_some() { Some(method.secret()?) } else { None };
        let said = [Some(outlet), user.as_deref(), password.as_ref().map(Secret::reveal)];
        if said.into_iter().flatten().any(|word| word.chars().any(char::is_control)) {
            // It would be a line of its own.
            return Err(method.misconfigured("the outlet, user or password has a control character"));
        }
        let words = Words { outlet: outlet.into(), user, password };
        let address = format!("{host}:{port}");
        Ok(Self { method: method.clone(), address, host, port, telnet, words, key, script: script.clone() })
    }

    /// Connects, logs in, and goes to where every action begins.
    fn enter(&self, deadline: Deadline) -> Result<Dialogue, PcuError> {
        let by = if self.telnet { "telnet" } else { "ssh" };
        let doing = match &self.words.user {
            None => format!("logging in to {} by {by}", self.address),
            Some(user) => format!("logging in to {} by {by} as {user}", self.address),
        };
        let line: Box<dyn Line> = if self.telnet {
            Box::new(TelnetLine::connect(&self.host, self.port, deadline, &doing)?)
        } else {
            let password = self.words.password.as_ref();
            let key = self.key.as_ref().map(|path| ssh::read_key(path, &self.method, password)).transpose()?;
            let stream = line::connect(&self.host, self.port, deadline, &doing)?;
            let login = ssh::Login { user: self.method.account()?, password, key };
            Box::new(SshLine::connect(stream, &self.method, login, self.script.channel, deadline, &doing)?)
        };
        let mut dialogue = Dialogue::new(line, self.words.clone());
        let login: &[Step] = if self.telnet { &self.script.login } else { &[] };
        dialogue.run(login, "", &doing, deadline)?;
        dialogue.run(&self.script.ready, "", &doing, deadline)?;
        Ok(dialogue)
    }

    /// "switching outlet 3 of pdu:22 off".
    fn doing(&self, what: &str, how: &str) -> String {
        let of = match self.words.outlet.as_str() {
            "" => self.address.clone(),
            outlet => format!("outlet {outlet} of {}", self.address),
        };
        [what, &of, how].join(" ").trim_end().to_owned()
    }
}

impl MenuSession {
    /// Leads a dialogue. When it goes wrong, the connection is closed without a word: in a menu, `4` may be "log out" or "off".
    fn lead<T>(
        &mut self,
        deadline: Deadline,
        steps: impl FnOnce(&Device, &mut Dialogue) -> Result<T, PcuError>,
    ) -> Result<T, PcuError> {
        let mut dialogue = match self.dialogue.take() {
            Some(dialogue) => dialogue,
            None => self.device.enter(deadline)?,
        };
        let done = steps(&self.device, &mut dialogue)?;
        self.dialogue = Some(dialogue);
        Ok(done)
    }

    fn steps(&self, change: Change, doing: &str) -> Result<Arc<Script>, PcuError> {
        match self.device.script.change(change) {
            Some(_) => Ok(self.device.script.clone()),
            None => Err(PcuError::unsupported(&self.device.method.driver, doing)),
        }
    }
}

impl Session for MenuSession {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        self.lead(deadline, |device, dialogue| {
            let doing = device.doing("reading the state of", "");
            let ended = dialogue.run(&device.script.status, "status", &doing, deadline)?;
            ended.state.ok_or_else(|| PcuError::BadAnswer { doing, detail: "it does not say on or off".into() })
        })
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let doing = self.device.doing("switching", &change.to_string());
        let script = self.steps(change, &doing)?;
        let steps = script.change(change).unwrap_or_default();
        self.lead(deadline, |_, dialogue| dialogue.run(steps, &change.to_string(), &doing, deadline).map(drop))
    }

    /// Goes up to the last step of a change that would change nothing, and back.
    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        let mut proofs = vec![
            Proof(format!("logged in to {}", self.device.address)),
            Proof(self.device.doing("the power of", &format!("is {state}"))),
        ];
        let change = match state {
            PowerState::On => Change::On,
            PowerState::Off => Change::Off,
        };
        let doing = self.device.doing("testing", "");
        let script = self.steps(change, &doing)?;
        let before: Vec<_> =
            script.change(change).unwrap_or_default().iter().take_while(|step| !step.is_commit()).collect();
        if before.is_empty() {
            return Ok(proofs);
        }
        let count = before.len();
        self.lead(deadline, |_, dialogue| {
            dialogue.run(before, &change.to_string(), &doing, deadline)?;
            dialogue.run(&script.cancel, "", &doing, deadline).map(drop)
        })?;
        proofs.push(Proof(format!("went {count} steps towards {change}, up to the one that does it, and back")));
        if script.cancel.is_empty() {
            self.dialogue = None;
        }
        Ok(proofs)
    }
}

impl Drop for MenuSession {
    fn drop(&mut self) {
        if let Some(mut dialogue) = self.dialogue.take() {
            let doing = self.device.doing("logging out from", "");
            // A device that does not answer any more is left by hanging up.
            let _ = dialogue.run(&self.device.script.logout, "", &doing, Deadline::after(GOODBYE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::parse_data;

    #[test]
    fn every_file_is_a_driver_that_switches() {
        for text in BUILTIN {
            let driver = parse_data(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert!(driver.abilities().starts_with(&[Ability::Status, Ability::On, Ability::Off]), "{}", driver.name());
            assert!(driver.about().contains("ssh") || driver.about().contains("telnet"), "{}", driver.about());
        }
    }

    #[test]
    fn a_wrong_file_says_where() {
        let check = |text: &str, told: &str| {
            let Err(error) = parse_data(&text.replace("HEAD", "name = 'x'\nabout = 'y'\nsource = 'z'")) else {
                panic!("{text} is a driver")
            };
            assert!(error.contains(told), "{text}\n{error}");
        };
        check("name = 'x'\nabout = 'y'", "missing field `source`");
        check("HEAD", "has no table of a family");
        check("HEAD\n[menu]\ntransport = 'ssh'", "menu.status is missing");
        check("HEAD\n[menu]\ntransport = 'ssh'\nstatus = [{ lime = 'x' }]", "line 6");
    }

    #[test]
    fn a_method_says_what_is_missing() {
        let check = |change: &dyn Fn(&mut Method), told: &str| {
            let driver = parse_data(BUILTIN.iter().find(|text| text.contains("\"apc-cli\"")).unwrap()).unwrap();
            // Nothing answers there; only what comes before connecting is looked at.
            let mut method = Method::new("apc-cli", "127.0.0.1:1");
            method.outlet = Some("3".into());
            method.user = Some("op".into());
            method.options.insert("key".into(), "/no/such/key".into());
            change(&mut method);
            let Err(error) = driver.open(&method, Deadline::after(Duration::from_secs(1))) else { panic!("{told}") };
            assert!(error.to_string().contains(told), "{error}");
        };
        check(&|method| method.outlet = None, "there is no outlet");
        check(&|method| method.user = None, "there is no user");
        check(&|method| drop(method.options.remove("key")), "there is no password");
        check(&|_| {}, "the key /no/such/key: No such file");
        check(&|method| method.outlet = Some("3\rolOff all".into()), "has a control character");
        check(&|method| drop(method.options.insert("transport".into(), "telnet".into())), "waivers = [\"clear-text\"]");
        check(&|method| drop(method.options.insert("transport".into(), "fax".into())), "unknown variant `fax`");
        check(&|method| drop(method.options.insert("speed".into(), 9600.into())), "unknown field `speed`");
        check(&|method| method.address = String::new(), "neither HOST nor HOST:PORT");
    }
}
