//! How the node is.

use std::{env, fmt, fs, path::Path};

use orrery_init_api::{CLOCK_PATH, EVENTS_PATH, PLAN_PATH, REASON_ENV, STAGE_BINARY};
use orrery_installer::{discover, probe};
use orrery_protocol::{BootScript, Event, NicFacts, Outcome};
use serde::Serialize;

use crate::{clock::ClockState, facts, files::read_json, handover, node_config};

/// Stages that write to the disk.
const INSTALLING: [&str; 3] = ["install", "upgrade", "repair"];
/// As many of the last events are shown.
const EVENTS_SHOWN: usize = 12;

/// What can be found out about this node, right now and from here.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NodeState {
    /// Its id; none before it is configured or has enrolled.
    pub(crate) node: Option<String>,
    /// This boot's id.
    pub(crate) boot_id: String,
    /// The image's version.
    pub(crate) version: String,
    /// Why safe mode was opened, if it is known here.
    pub(crate) reason: Option<String>,
    /// A stage that is writing to the disk.
    pub(crate) installing: Option<String>,
    /// Unix seconds by this machine's clock.
    pub(crate) clock: u64,
    /// What the clock stands on.
    pub(crate) clock_source: String,
    /// The script in force, if one was accepted.
    pub(crate) script: Option<Script>,
    /// Network interfaces.
    pub(crate) network: Vec<NicFacts>,
    /// Disks.
    pub(crate) disks: Vec<Disk>,
    /// How the last stages ended, oldest first. What central has confirmed long ago may have made room.
    pub(crate) events: Vec<Event>,
}

/// What there is to know of a script.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Script {
    kind: String,
    serial: u64,
    expires: u64,
    networks: Vec<String>,
}

/// A disk and what it holds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Disk {
    device: String,
    bytes: u64,
    model: String,
    serial: String,
    content: String,
}

impl NodeState {
    /// Everything.
    pub(crate) fn gather() -> Self {
        Self { disks: disks(), ..Self::at_a_glance() }
    }

    /// All but the disks, which take a while to look at, and may hang.
    pub(crate) fn at_a_glance() -> Self {
        let script = read_json::<BootScript>(PLAN_PATH).ok();
        Self {
            node: node_config().ok().map(|config| config.id).filter(|id| !id.is_empty()),
            boot_id: crate::boot_id().unwrap_or_default(),
            version: handover::image_version(),
            reason: env::var(REASON_ENV).ok().filter(|reason| !reason.is_empty()),
            installing: installing(),
            clock: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
            clock_source: read_json::<ClockState>(CLOCK_PATH).map(|state| state.source).unwrap_or_default(),
            script: script.map(|script| Script {
                kind: script.kind.to_string(),
                serial: script.serial,
                expires: script.expires,
                networks: script.networks.iter().map(ToString::to_string).collect(),
            }),
            network: facts::nics(),
            events: events(&fs::read(EVENTS_PATH).unwrap_or_default()),
            disks: Vec::new(),
        }
    }

    /// The last stage that failed, unless it has succeeded since.
    pub(crate) fn failure(&self) -> Option<&Event> {
        let last = self.events.iter().rev().find(|event| event.outcome == Outcome::Failed)?;
        let mended = |event: &&Event| event.stage == last.stage && event.at_ms > last.at_ms;
        let ok = self.events.iter().filter(mended).any(|event| event.outcome == Outcome::Ok);
        (!ok).then_some(last)
    }

    /// What a login is shown first.
    pub(crate) fn greeting(&self) -> String {
        let node = self.node.as_deref().unwrap_or("without configuration");
        let mut text = format!("Orrery {}, node {node}\n", self.version);
        if let Some(reason) = &self.reason {
            text.push_str(&format!("Safe mode: {reason}\n"));
        }
        if let Some(stage) = &self.installing {
            text.push_str(&format!("NOTICE: `{stage}` is running. It writes to the disk; leave that alone.\n"));
        }
        text.push_str("`orrery-node state` shows how this node is, `orrery-node --help` what to do.\n");
        text
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node      {}", self.node.as_deref().unwrap_or("no configuration"))?;
        writeln!(f, "boot      {} under Orrery {}", self.boot_id, self.version)?;
        if let Some(reason) = &self.reason {
            writeln!(f, "safe mode {reason}")?;
        }
        if let Some(stage) = &self.installing {
            writeln!(f, "running   {stage}: it writes to the disk")?;
        }
        let source = if self.clock_source.is_empty() { "nothing yet" } else { &self.clock_source };
        writeln!(f, "clock     {} s since 1970, from {source}", self.clock)?;
        match &self.script {
            Some(script) => {
                let networks = if script.networks.is_empty() { "nowhere".into() } else { script.networks.join(", ") };
                let Script { kind, serial, expires, .. } = script;
                writeln!(f, "script    {kind}, serial {serial}, until {expires} s; it admits from {networks}")?;
            }
            None => writeln!(f, "script    none was accepted")?,
        }
        write_network(f, &self.network)?;
        for Disk { device, bytes, model, serial, content } in &self.disks {
            writeln!(f, "disk      {device}, {} MiB, {model} {serial}: {content}", bytes >> 20)?;
        }
        writeln!(f, "\nlast events, seconds after power-on:")?;
        for event in &self.events {
            let seconds = event.at_ms as f64 / 1000.0;
            let outcome = match event.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Info => "",
            };
            let class = event.class.as_deref().unwrap_or_default();
            writeln!(f, "  {seconds:8.1}  {:10} {outcome:6} {class} {}", event.stage, event.message)?;
        }
        Ok(())
    }
}

/// A line for each interface.
pub(crate) fn write_network(f: &mut impl fmt::Write, network: &[NicFacts]) -> fmt::Result {
    if network.is_empty() {
        writeln!(f, "network   no interface: is its driver in the kernel?")?;
    }
    network.iter().try_for_each(|nic| {
        let addresses = if nic.addresses.is_empty() { "no address".into() } else { nic.addresses.join(", ") };
        let link = if nic.link { "link" } else { "no link" };
        writeln!(f, "network   {} {}, {link}, {addresses}", nic.name, nic.mac)
    })
}

/// The last events of a log whose beginning may have been given back to the memory, and reads as zeros.
fn events(log: &[u8]) -> Vec<Event> {
    let lines = log.split(|byte| *byte == b'\n').rev();
    let mut events: Vec<Event> =
        lines.filter_map(|line| serde_json::from_slice(line).ok()).take(EVENTS_SHOWN).collect();
    events.reverse();
    events
}

/// A stage whose process is writing to the disk.
fn installing() -> Option<String> {
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let cmdline = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let mut words = cmdline.split(|byte| *byte == 0);
        let ours = words.next() == Some(STAGE_BINARY.as_bytes());
        let stage = std::str::from_utf8(words.next()?).ok()?;
        (ours && INSTALLING.contains(&stage)).then(|| stage.to_owned())
    })
}

fn disks() -> Vec<Disk> {
    let found = discover(Path::new("/sys/block")).unwrap_or_default();
    let describe = |disk: orrery_installer::Disk| {
        let content = fs::File::open(&disk.path).and_then(|mut file| probe(&mut file, disk.sector_size));
        Disk {
            device: disk.path.display().to_string(),
            bytes: disk.size,
            model: disk.model,
            serial: disk.serial,
            content: content.map_or_else(|error| format!("cannot be read: {error}"), |content| content.to_string()),
        }
    };
    found.into_iter().map(describe).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn event(stage: &str, outcome: Outcome, at_ms: u64) -> Event {
        Event {
            boot_id: "b".into(),
            at_ms,
            wall: 0,
            role: "boot".into(),
            stage: stage.into(),
            outcome,
            class: (outcome == Outcome::Failed).then(|| "dns".into()),
            message: "looking up central".into(),
            duration_ms: 1,
        }
    }

    #[test]
    fn the_log_is_read_from_its_end() {
        let mut log = vec![0; 4096];
        log.extend_from_slice(b"half a line\n");
        for number in 0..20 {
            log.extend(event("time", Outcome::Ok, number).to_json_line());
        }
        let times: Vec<_> = events(&log).iter().map(|event| event.at_ms).collect();
        assert_eq!(times, (8..20).collect::<Vec<_>>());
        assert!(events(b"").is_empty());
    }

    #[test]
    fn a_failure_counts_until_it_is_mended() {
        let check = |events: Vec<Event>, expect: Option<&str>| {
            let state = NodeState { events, ..NodeState::default() };
            assert_eq!(state.failure().map(|event| event.stage.as_str()), expect);
        };
        let (failed, ok) = (Outcome::Failed, Outcome::Ok);
        check(vec![], None);
        check(vec![event("network", ok, 1), event("contact", failed, 2)], Some("contact"));
        check(vec![event("contact", failed, 2), event("network", ok, 3)], Some("contact"));
        check(vec![event("contact", failed, 2), event("contact", ok, 3)], None);
    }

    #[test]
    fn people_read_it() {
        let state = NodeState {
            node: Some("n1".into()),
            boot_id: "0123".into(),
            version: "0.1.0".into(),
            reason: Some("the script asks for it".into()),
            installing: Some("install".into()),
            clock: 1_800_000_000,
            clock_source: "sntp".into(),
            script: Some(Script { kind: "safe".into(), serial: 3, expires: 1_900_000_000, networks: vec![] }),
            network: vec![NicFacts {
                name: "eth0".into(),
                mac: "52:54:00:12:34:56".into(),
                link: true,
                addresses: vec!["10.0.2.15/24".into()],
            }],
            disks: vec![Disk {
                device: "/dev/vda".into(),
                bytes: 8 << 30,
                model: "QEMU".into(),
                serial: "disk-n1".into(),
                content: "blank".into(),
            }],
            events: vec![event("network", Outcome::Ok, 1500), event("contact", Outcome::Failed, 2500)],
        };
        insta::assert_snapshot!("state", state);
        insta::assert_snapshot!("greeting", state.greeting());
    }
}
