//! The built-in scripts against words that devices are known to say, from the sources that their files name.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    BUILTIN,
    dialogue::{Dialogue, Words},
    line::Line,
    script::{Script, Step},
};
use crate::{Change, Class, Deadline, PcuError, PowerState, Secret};

/// What stands for `{action}`.
const ACTION: &str = "off";

#[derive(serde::Deserialize)]
struct File {
    name: String,
    menu: Script,
}

/// Answers every line that it is told with the next of its answers, and keeps what it was told.
struct Device {
    answers: VecDeque<&'static str>,
    now: Vec<u8>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Line for Device {
    fn say(&mut self, text: &str, enter: bool, _deadline: Deadline, _doing: &str) -> Result<(), PcuError> {
        let mut told = text.to_owned();
        if enter {
            told.push('⏎');
        }
        self.told.lock().unwrap().push(told);
        self.now = self.answers.pop_front().unwrap_or_default().replace('\n', "\r\n").into_bytes();
        Ok(())
    }

    fn hear(&mut self, _deadline: Deadline, doing: &str) -> Result<Option<Vec<u8>>, PcuError> {
        match std::mem::take(&mut self.now) {
            now if !now.is_empty() => Ok(Some(now)),
            _ if self.answers.is_empty() => Ok(None),
            _ => Err(PcuError::Timeout { doing: doing.into() }),
        }
    }
}

fn script(name: &str) -> Script {
    let mut files = BUILTIN.iter().map(|text| toml::from_str::<File>(text).unwrap());
    files.find(|file| file.name == name).unwrap().menu
}

/// Leads lists of steps one after the other with a device that says `first`, and then `answers`; also returns what it was told.
fn lead(
    lists: &[&[Step]],
    outlet: &str,
    first: &str,
    answers: &[&'static str],
) -> (Result<Option<PowerState>, PcuError>, Vec<String>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let device = Device {
        answers: answers.iter().copied().collect(),
        now: first.replace('\n', "\r\n").into_bytes(),
        told: told.clone(),
    };
    let words = Words { outlet: outlet.into(), user: Some("op".into()), password: Some(Secret::new("sesame".into())) };
    let mut dialogue = Dialogue::new(Box::new(device), words);
    let deadline = Deadline::after(Duration::from_secs(5));
    let run = |state, steps: &&[Step]| {
        let ended = dialogue.run(*steps, ACTION, "asking", deadline)?;
        Ok(ended.state.or(state))
    };
    let state = lists.iter().try_fold(None, run);
    let told = told.lock().unwrap().clone();
    (state, told)
}

#[test]
fn states_are_read() {
    let check = |name: &str, outlet: &str, answers: &[&'static str], expected: Result<PowerState, Class>| {
        let (state, _) = lead(&[&script(name).status], outlet, "", answers);
        let state = state.map(|state| state.unwrap()).map_err(|error| error.class());
        assert_eq!(state, expected, "{name} outlet {outlet}");
    };
    let apc = "olStatus 3\nE000: Success\n 3: Switch 2188 A: On\n\napc>";
    check("apc-cli", "3", &[apc], Ok(PowerState::On));
    check("apc-cli", "3", &["olStatus 3\nE000: Success\n 3: Web: On: Off\n\napc>"], Ok(PowerState::Off));
    check("apc-cli", "99", &["olStatus 99\nE102: Parameter Error\n\napc>"], Err(Class::OutletUnknown));
    check("apc-cli", "3", &["olStatus 3\nE101: Command Not Found\n\napc>"], Err(Class::Refused));
    check("apc-cli", "3", &["olStatus 3\nE104: User Level Denial\n\napc>"], Err(Class::Privilege));

    let rpc = "status\n\nAverage Power:    0 Watts\nTrue RMS Voltage: 120.9 Volts\nCircuit Breaker: On\n\n\
               1)...Outlet 1   1   On\n2)...Outlet 2   2   Off\n\nRPC-3>";
    check("baytech-rpc", "1", &[rpc], Ok(PowerState::On));
    check("baytech-rpc", "2", &[rpc], Ok(PowerState::Off));
    check("baytech-rpc", "9", &[rpc], Err(Class::OutletUnknown));
    let nc = "status\nCircuit Breaker: Good\n\nOutlet  1       : On\nOutlet  2       : Off\n\nRPC3-NC>";
    check("baytech-rpc-nc", "2", &[nc], Ok(PowerState::Off));
    check("baytech-rpc-nc", "3", &[nc], Err(Class::OutletUnknown));

    let wti = "/S\nNetwork Power Switch v3.02\n\nPlug | Name | Password | Status | Boot Delay | Default |\n\
               -----+------+----------+--------+------------+---------+\n \
               1   | n1   | (defined) | OFF   | 0.5 Secs   |   ON    |\n \
               2   | n2   | (defined) | ON    | 0.5 Secs   |   OFF   |\n-----+\nNPS> ";
    check("wti", "1", &[wti], Ok(PowerState::Off));
    check("wti", "2", &[wti], Ok(PowerState::On));
    check("wti", "3", &[wti], Err(Class::OutletUnknown));

    let head = "status .a1\n\n   Outlet   Outlet                     Outlet      Control\n   ID       Name                       Status      State\n\n";
    let sentry = |row: &str| -> &'static str {
        Box::leak(format!("{head}{row}\n   Command successful\n\nSwitched CDU: ").into())
    };
    check("sentry", ".a1", &[sentry("   .A1      TowerA_Outlet1             On          On\n")], Ok(PowerState::On));
    check(
        "sentry",
        ".a1",
        &[sentry("   .A1                                 Off         Wake On\n")],
        Ok(PowerState::Off),
    );
    check(
        "sentry",
        "n1",
        &[sentry("   .A1      n1                         On          Idle On\n")],
        Ok(PowerState::On),
    );
    check("sentry", ".a2", &["status .a2\n\n   Outlet not found\n\nSwitched CDU: "], Err(Class::OutletUnknown));

    let px = "show outlets 20\nOutlet 20: 20 (no name)\nPower state: On\n\n[My PDU] # ";
    check("raritan-px", "20", &[px], Ok(PowerState::On));
    check(
        "raritan-px",
        "8",
        &["show outlets 8\nOutlet 8 - Test:\nPower state: Off\n\n[My PDU] # "],
        Ok(PowerState::Off),
    );
    check("raritan-px", "99", &["show outlets 99\nInvalid outlet\n\n[My PDU] # "], Err(Class::OutletUnknown));

    let pm = "status 3\nOutlet  Name  Status    Users\n3             Unlocked ON\npm>";
    check("cyclades-pm", "3", &[pm], Ok(PowerState::On));
    check(
        "cyberpower-cli",
        "2",
        &["oltsta show\n 1  Outlet1  On\n 2  Outlet2  Off\n\nCyberPower > "],
        Ok(PowerState::Off),
    );
    check(
        "ilo-ssh",
        "",
        &["\nstatus=0\nstatus_tag=COMMAND COMPLETED\n\n\npower: server power is currently: Off\n\n"],
        Ok(PowerState::Off),
    );
    check("ilo-ssh", "", &["\nstatus=2\nstatus_tag=COMMAND PROCESSING FAILED\n\n"], Err(Class::Refused));
    check("ilo-telnet", "", &["power\n\npower: server power is currently: On\n\n</>hpiLO-> "], Ok(PowerState::On));
    check("idrac-racadm", "", &["Server power status: ON\n"], Ok(PowerState::On));
    check("idrac-racadm", "", &["no such command\n"], Err(Class::Prompt));
    check("drac5", "", &["racadm serveraction powerstatus\nServer power status: Powering OFF\n$ "], Ok(PowerState::On));
    check("drac5", "", &["racadm serveraction powerstatus\nOFF\n$ "], Ok(PowerState::Off));
    check("dell-cmc", "server-4", &["racadm serveraction powerstatus -m server-4\nON\n$ "], Ok(PowerState::On));
    let ilom = "show -d properties /SYS\n\n  /SYS\n    Properties:\n        type = Host System\n        power_state = Off\n\n-> ";
    check("sun-ilom", "", &[ilom], Ok(PowerState::Off));
}

#[test]
fn changes_are_told() {
    let check = |name: &str, change: Change, answers: &[&'static str], told: &[&str], class: Option<Class>| {
        let (ended, said) = lead(&[script(name).change(change).unwrap()], "3", "", answers);
        assert_eq!(ended.as_ref().err().map(PcuError::class), class, "{name} {change}: {ended:?}");
        assert_eq!(said, told, "{name} {change}");
    };
    check("apc-cli", Change::Off, &["olOff 3\nE000: Success\n\napc>"], &["olOff 3⏎"], None);
    check("apc-cli", Change::On, &["olOn 3\nE104: User Level Denial\n\napc>"], &["olOn 3⏎"], Some(Class::Privilege));
    check("baytech-rpc", Change::Off, &["off 3\nTurn Off outlet 3 (Y/N)>", "Y\n\nRPC-3>"], &["off 3⏎", "Y⏎"], None);
    check(
        "baytech-rpc",
        Change::Cycle,
        &["reboot 3\nOutlet 3 is already off.\nRPC-3>"],
        &["reboot 3⏎"],
        Some(Class::Refused),
    );
    check("wti", Change::Cycle, &["/BOOT 3,Y\n\nNPS> "], &["/BOOT 3,Y⏎"], None);
    check("sentry", Change::Off, &["off 3\n\n   Command successful\n\nSwitched CDU: "], &["off 3⏎"], None);
    check("sentry", Change::Off, &["off 3\n\n   Access denied\n\nSwitched CDU: "], &["off 3⏎"], Some(Class::Refused));
    check("raritan-px", Change::On, &["power outlets 3 on /y\n[My PDU] # "], &["power outlets 3 on /y⏎"], None);
    check("cyclades-pm", Change::On, &["on 3\n3: Outlet turned on.\npm>"], &["on 3⏎"], None);
    check(
        "ilo-ssh",
        Change::Off,
        &["\nstatus=0\nstatus_tag=COMMAND COMPLETED\n\nForcing server power off .......\n"],
        &["power off hard⏎"],
        None,
    );
    check(
        "idrac-racadm",
        Change::Reset,
        &["Server power operation successful\n"],
        &["racadm serveraction hardreset⏎"],
        None,
    );
    check(
        "idrac-racadm",
        Change::On,
        &["ERROR: Unable to perform requested operation.\n"],
        &["racadm serveraction powerup⏎"],
        Some(Class::Refused),
    );
}

#[test]
fn a_wrong_password_is_told_as_one() {
    let check = |name: &str, first: &str, answers: &[&'static str]| {
        let script = script(name);
        let (ended, _) = lead(&[&script.login, &script.ready], "3", first, answers);
        assert_eq!(ended.unwrap_err().class(), Class::Authentication, "{name}");
    };
    check("apc-menu", "\nUser Name : ", &["op\nPassword  : ", "******\n\nUser Name : "]);
    check(
        "baytech-rpc",
        "Unit ID: x\nEnter username>",
        &["op\nEnter password>", "\nInvalid password\nEnter username>"],
    );
    check("wti", "\nEnter Password: ", &["\nInvalid Password\nEnter Password: "]);
    check("sentry", "Sentry Switched CDU Version 6.0g\n\nUsername: ", &["op\nPassword: ", "\nUsername: "]);
    check("raritan-px", "Username: ", &["op\nPassword: ", "\nUsername: "]);
}

/// The device that the documentation shows how to add.
#[test]
fn the_documented_device_works() {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        name: String,
        #[serde(rename = "about")]
        _about: String,
        #[serde(rename = "source")]
        _source: String,
        menu: Script,
    }
    let page = include_str!("../../../../docs/pcu/menu.md");
    let mut files = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let file: Whole = toml::from_str(files.find(|text| text.contains("[menu]")).unwrap()).unwrap();
    assert_eq!(file.name, "acme-strip");
    let script = file.menu;
    let check = |lists: &[&[Step]], first: &str, answers: &[&'static str], told: &[&str], class: Option<Class>| {
        let (ended, said) = lead(lists, "3", first, answers);
        assert_eq!(ended.as_ref().err().map(PcuError::class), class, "{ended:?}");
        assert_eq!(said, told);
        ended.ok().flatten()
    };
    let entry: [&[Step]; 2] = [&script.login, &script.ready];
    check(&entry, "login: ", &["op\npassword: ", "********\nstrip> "], &["op⏎", "sesame⏎"], None);
    check(&entry, "login: ", &["op\npassword: ", "no\nlogin: "], &["op⏎", "sesame⏎"], Some(Class::Authentication));
    check(&entry, "already in use by op\n", &[], &[], Some(Class::Busy));
    let state = check(&[&script.status], "", &["get 3\nport 3 is OFF\nstrip> "], &["get 3⏎"], None);
    assert_eq!(state, Some(PowerState::Off));
    let off = script.change(Change::Off).unwrap();
    let answers = ["set 3 off\nswitch port 3 off, sure? ", "y\ndone\nstrip> "];
    check(&[off], "", &answers, &["set 3 off⏎", "y"], None);
    check(&[off], "", &["set 3 off\nno such port\nstrip> "], &["set 3 off⏎"], Some(Class::Refused));
    let commit = off.iter().position(Step::is_commit).unwrap();
    check(&[&off[..commit], &script.cancel], "", &["sure? ", "n\nstrip> "], &["set 3 off⏎", "n"], None);
}
