//! A device's dialogues as data: what to send, what to expect, what it means.

use std::{collections::BTreeMap, time::Duration};

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::Change;

/// How long an answer may take where the file says nothing.
const WITHIN: Duration = Duration::from_secs(10);
/// The longest that a file may wait for one answer, in seconds.
const LONGEST: u64 = 300;
/// Most memory that a compiled pattern may take, in bytes: a pattern that needs more is a mistake.
const PATTERN: usize = 256 << 10;

/// The dialogues of one kind of device: the table `[menu]` of a data file.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Table")]
pub(crate) struct Script {
    /// By what it is reached.
    pub(super) transport: Transport,
    /// What is asked of it over ssh.
    pub(super) channel: Channel,
    /// Over telnet: from the first word to where `ready` begins.
    pub(super) login: Vec<Step>,
    /// From there, and over ssh from the beginning, to where every action begins and ends.
    pub(super) ready: Vec<Step>,
    /// Says whether there is power.
    pub(super) status: Vec<Step>,
    on: Vec<Step>,
    off: Vec<Step>,
    cycle: Vec<Step>,
    reset: Vec<Step>,
    /// From before the last step of an action back to where it began.
    pub(super) cancel: Vec<Step>,
    /// Ends the session.
    pub(super) logout: Vec<Step>,
}

/// By what a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Transport {
    Ssh,
    Telnet,
    /// The method's option `transport` says by which; ssh unless it does.
    Either,
}

/// What is asked of an ssh server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Channel {
    /// One terminal for everything.
    #[default]
    Shell,
    /// Every line is a command of its own.
    Exec,
}

/// One step of a dialogue.
#[derive(Debug)]
pub(super) enum Step {
    Say(Say),
    /// What is said last before something happens to the power.
    Commit(Say),
    Expect(Expect),
}

/// Something to send.
#[derive(Debug, Clone)]
pub(super) struct Say {
    /// With placeholders.
    pub(super) text: String,
    /// Whether a person would press Enter after it.
    pub(super) enter: bool,
}

/// An answer to wait for.
#[derive(Debug)]
pub(super) struct Expect {
    pub(super) alternatives: Vec<Alternative>,
    pub(super) within: Duration,
    /// What it means when the device hangs up.
    pub(super) closed: Option<Outcome>,
}

/// One of several answers.
#[derive(Debug)]
pub(super) struct Alternative {
    /// A regular expression with placeholders.
    pub(super) pattern: String,
    pub(super) then: Then,
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Then {
    Meaning(Outcome),
    /// Say this, and wait for the same answers again.
    Say(Say),
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// As expected: go on.
    Next,
    /// As expected, and nothing more is to be done.
    Done,
    /// The outlet is on: go on.
    On,
    /// The outlet is off: go on.
    Off,
    /// User or password are wrong.
    Auth,
    /// Somebody else is logged in, or the device is starting.
    Busy,
    /// The account may not.
    Privilege,
    /// There is no such outlet.
    OutletUnknown,
    /// The device declines.
    Refused,
    /// Another dialogue than this.
    Prompt,
}

impl Script {
    /// The steps of a change; none when the device cannot.
    pub(super) fn change(&self, change: Change) -> Option<&[Step]> {
        let steps = match change {
            Change::On => &self.on,
            Change::Off => &self.off,
            Change::Cycle => &self.cycle,
            Change::Reset => &self.reset,
        };
        (!steps.is_empty()).then_some(steps)
    }

    /// Whether the device has several outlets.
    pub(super) fn has_outlets(&self) -> bool {
        let lists = [&self.status, &self.on, &self.off, &self.cycle, &self.reset];
        lists.into_iter().flatten().flat_map(Step::texts).any(|text| names(text).any(|name| name == "outlet"))
    }
}

impl Step {
    /// Whether something happens to the power after it.
    pub(super) fn is_commit(&self) -> bool {
        matches!(self, Self::Commit(_))
    }

    /// All texts with placeholders.
    fn texts(&self) -> Vec<&str> {
        match self {
            Self::Say(say) | Self::Commit(say) => vec![&say.text],
            Self::Expect(expect) => expect
                .alternatives
                .iter()
                .flat_map(|alternative| match &alternative.then {
                    Then::Say(say) => vec![alternative.pattern.as_str(), &say.text],
                    Then::Meaning(_) => vec![alternative.pattern.as_str()],
                })
                .collect(),
        }
    }
}

/// Compiles a pattern, its placeholders replaced; `^` and `$` are the beginning and end of any line. It is of bytes, since what is
/// matched is ASCII, and classes of all the world's letters would make every start of the program slow.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .multi_line(true)
        .unicode(false)
        .size_limit(PATTERN)
        .dfa_size_limit(PATTERN)
        .build()
        .map_err(|error| error.to_string())
}

/// The placeholders in a text: `{word}` of small letters. `{2,3}` of a pattern is none.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name).filter(|name| is_name(name))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Puts words in the places of placeholders.
pub(super) fn fill(text: &str, word: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        rest = match after.split_once('}').filter(|(name, _)| is_name(name)) {
            Some((name, after)) => {
                filled.push_str(&word(name).ok_or_else(|| name.to_owned())?);
                after
            }
            None => {
                filled.push('{');
                after
            }
        };
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `[menu]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    transport: Transport,
    #[serde(default)]
    channel: Channel,
    #[serde(default)]
    login: Vec<Line>,
    #[serde(default)]
    ready: Vec<Line>,
    #[serde(default)]
    status: Vec<Line>,
    #[serde(default)]
    on: Vec<Line>,
    #[serde(default)]
    off: Vec<Line>,
    #[serde(default)]
    cycle: Vec<Line>,
    #[serde(default)]
    reset: Vec<Line>,
    #[serde(default)]
    cancel: Vec<Line>,
    #[serde(default)]
    logout: Vec<Line>,
    /// Steps that several lists share, by name.
    #[serde(default)]
    parts: BTreeMap<String, Vec<Line>>,
}

/// A step as it is written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Line {
    line: Option<String>,
    send: Option<String>,
    #[serde(default)]
    commit: bool,
    expect: Option<Vec<Answer>>,
    within: Option<u64>,
    closed: Option<Outcome>,
    /// The name of a part, whose steps stand here.
    part: Option<String>,
}

/// An alternative as it is written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Answer {
    at: String,
    then: Option<Outcome>,
    line: Option<String>,
    send: Option<String>,
}

/// What steps may say and mean depends on what they are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Entry,
    Status,
    Change,
    Other,
}

impl TryFrom<Table> for Script {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let Table { transport, channel, .. } = table;
        if transport != Transport::Ssh && table.login.is_empty() {
            return Err("menu.login is missing: over telnet, user and password are asked for in the dialogue".into());
        }
        if channel == Channel::Exec && transport != Transport::Ssh {
            return Err("menu.channel = \"exec\" needs transport = \"ssh\"".into());
        }
        let parts = &table.parts;
        let script = Self {
            transport,
            channel,
            login: steps("login", table.login, parts, Purpose::Entry)?,
            ready: steps("ready", table.ready, parts, Purpose::Entry)?,
            status: steps("status", table.status, parts, Purpose::Status)?,
            on: steps("on", table.on, parts, Purpose::Change)?,
            off: steps("off", table.off, parts, Purpose::Change)?,
            cycle: steps("cycle", table.cycle, parts, Purpose::Change)?,
            reset: steps("reset", table.reset, parts, Purpose::Change)?,
            cancel: steps("cancel", table.cancel, parts, Purpose::Other)?,
            logout: steps("logout", table.logout, parts, Purpose::Other)?,
        };
        for (name, steps) in [("status", &script.status), ("on", &script.on), ("off", &script.off)] {
            if steps.is_empty() {
                return Err(format!("menu.{name} is missing"));
            }
        }
        for (name, state) in [("on", Outcome::On), ("off", Outcome::Off)] {
            if !meanings(&script.status).any(|meaning| meaning == state) {
                return Err(format!("menu.status: no answer means {name:?}"));
            }
        }
        Ok(script)
    }
}

fn meanings(steps: &[Step]) -> impl Iterator<Item = Outcome> {
    let expects = steps.iter().filter_map(|step| match step {
        Step::Expect(expect) => Some(expect),
        Step::Say(_) | Step::Commit(_) => None,
    });
    expects.flat_map(|expect| &expect.alternatives).filter_map(|alternative| match alternative.then {
        Then::Meaning(outcome) => Some(outcome),
        Then::Say(_) => None,
    })
}

fn steps(
    list: &str,
    lines: Vec<Line>,
    parts: &BTreeMap<String, Vec<Line>>,
    purpose: Purpose,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        let at = |fault: String| format!("menu.{list}, step {}: {fault}", index + 1);
        match &line.part {
            Some(_) if line.line.is_some() || line.send.is_some() || line.expect.is_some() => {
                return Err(at("it is one of line, send, expect and part".into()));
            }
            None => steps.push(step(line, purpose).map_err(at)?),
            Some(name) => {
                let lines = parts.get(name).ok_or_else(|| at(format!("there is no part {name:?}")))?;
                for (inner, line) in lines.iter().enumerate() {
                    let at = |fault: String| at(format!("menu.parts.{name}, step {}: {fault}", inner + 1));
                    steps.push(step(line.clone(), purpose).map_err(at)?);
                }
            }
        }
    }
    let commits = steps.iter().filter(|step| matches!(step, Step::Commit(_))).count();
    match purpose {
        Purpose::Change if !steps.is_empty() && commits != 1 => {
            return Err(format!("menu.{list}: {commits} steps have commit = true; one has to, the one that does it"));
        }
        Purpose::Entry | Purpose::Status | Purpose::Other if commits > 0 => {
            return Err(format!("menu.{list}: commit = true is for on, off, cycle and reset"));
        }
        _ => {}
    }
    if purpose != Purpose::Status && meanings(&steps).any(|meaning| matches!(meaning, Outcome::On | Outcome::Off)) {
        return Err(format!("menu.{list}: only answers of menu.status mean \"on\" or \"off\""));
    }
    Ok(steps)
}

fn step(line: Line, purpose: Purpose) -> Result<Step, String> {
    if line.part.is_some() {
        return Err("a part has no parts".into());
    }
    let waits = line.within.is_some() || line.closed.is_some();
    match (say(line.line, line.send), line.expect) {
        (Some(_), _) if waits => Err("within and closed belong to expect".into()),
        (Some(say), None) => {
            check_words(&say.text, purpose, false)?;
            Ok(if line.commit { Step::Commit(say) } else { Step::Say(say) })
        }
        (None, Some(_)) if line.commit => Err("commit = true belongs to line or send".into()),
        (None, Some(answers)) => expect(answers, line.within, line.closed, purpose),
        _ => Err("it is one of line, send, expect and part".into()),
    }
}

fn expect(
    answers: Vec<Answer>,
    within: Option<u64>,
    closed: Option<Outcome>,
    purpose: Purpose,
) -> Result<Step, String> {
    if answers.is_empty() && closed.is_none() {
        return Err("expect = [] waits for nothing".into());
    }
    if let Some(Outcome::On | Outcome::Off) = closed {
        return Err("closed cannot mean \"on\" or \"off\"".into());
    }
    let within = match within {
        Some(seconds @ 1..=LONGEST) => Duration::from_secs(seconds),
        Some(seconds) => return Err(format!("within = {seconds}: it is 1 to {LONGEST} seconds")),
        None => WITHIN,
    };
    let alternatives = answers.into_iter().map(|answer| alternative(answer, purpose)).collect::<Result<_, _>>()?;
    Ok(Step::Expect(Expect { alternatives, within, closed }))
}

fn alternative(answer: Answer, purpose: Purpose) -> Result<Alternative, String> {
    let pattern = answer.at;
    // A pattern holds no secrets, and no capture of itself.
    if let Some(name) = names(&pattern).find(|name| !matches!(*name, "outlet" | "user")) {
        return Err(format!("{pattern:?}: unknown placeholder {{{name}}}; a pattern may have {{outlet}} and {{user}}"));
    }
    let filled = fill(&pattern, |_| Some("x".into()))?;
    let compiled = compile(&filled).map_err(|error| format!("{pattern:?} is no pattern: {error}"))?;
    if compiled.is_match(b"") {
        return Err(format!("{pattern:?} also matches nothing at all"));
    }
    let then = match (say(answer.line, answer.send), answer.then) {
        (Some(say), None) => {
            check_words(&say.text, purpose, compiled.captures_len() > 1)?;
            Then::Say(say)
        }
        (None, then) if purpose != Purpose::Entry && then == Some(Outcome::Auth) => {
            return Err(format!("{pattern:?}: only login and ready can end with \"auth\""));
        }
        (None, then) => Then::Meaning(then.unwrap_or(Outcome::Next)),
        _ => return Err(format!("{pattern:?}: it is one of then, line and send")),
    };
    Ok(Alternative { pattern, then })
}

fn say(line: Option<String>, send: Option<String>) -> Option<Say> {
    match (line, send) {
        (Some(text), None) => Some(Say { text, enter: true }),
        (None, Some(text)) => Some(Say { text, enter: false }),
        _ => None,
    }
}

fn check_words(text: &str, purpose: Purpose, picks: bool) -> Result<(), String> {
    let allowed = |name: &str| match name {
        "outlet" | "user" => true,
        "password" => purpose == Purpose::Entry,
        "action" => purpose == Purpose::Change,
        "picked" => picks,
        _ => false,
    };
    match names(text).find(|name| !allowed(name)) {
        None => Ok(()),
        Some("password") => Err(format!("{text:?}: {{password}} is for login and ready")),
        Some("action") => Err(format!("{text:?}: {{action}} is for on, off, cycle and reset")),
        Some("picked") => Err(format!("{text:?}: {{picked}} is what (...) in the answer's own pattern matched")),
        Some(name) => Err(format!(
            "{text:?}: unknown placeholder {{{name}}}; there are outlet, user, password, action and picked"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"status = [{ line = "s {outlet}" }, { expect = [{ at = "ON", then = "on" }, { at = "OFF", then = "off" }] }]"#;
    const CHANGES: &str = "on = [{ line = '1', commit = true }]\noff = [{ line = '0', commit = true }]";

    fn parse(text: &str) -> Result<Script, String> {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            menu: Script,
        }
        toml::from_str::<File>(&format!("[menu]\n{text}")).map(|file| file.menu).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_script_is_read() {
        let script = parse(&format!(
            r#"
            transport = "ssh"
            {STATUS}
            {CHANGES}
            cycle = [{{ part = "go" }}, {{ line = "{{action}} {{outlet}}", commit = true }}, {{ part = "home" }}]
            parts.go = [{{ expect = [{{ at = '(\d{{1,2}})- Outlets', line = "{{picked}}" }}, {{ at = 'x \{{' }}], within = 3 }}]
            parts.home = [{{ send = "\u001b" }}, {{ expect = [], closed = "done" }}]
            "#
        ))
        .unwrap();
        assert_eq!(script.channel, Channel::Shell);
        assert!(script.has_outlets());
        assert!(script.change(Change::Reset).is_none());
        let cycle = script.change(Change::Cycle).unwrap();
        assert_eq!(cycle.iter().position(Step::is_commit), Some(1));
        assert_eq!(cycle.len(), 4);
        let Step::Expect(expect) = &cycle[0] else { panic!("{:?}", cycle[0]) };
        assert_eq!(expect.within, Duration::from_secs(3));
        assert!(matches!(&cycle[2], Step::Say(Say { text, enter: false }) if text == "\u{1b}"));
    }

    /// A wrong file says what is wrong and where.
    #[test]
    fn faults_are_told() {
        let check = |text: &str, told: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(told), "{text}\n{error}");
        };
        let ssh = |rest: &str| format!("transport = 'ssh'\n{STATUS}\n{CHANGES}\n{rest}");
        check(&format!("{STATUS}\n{CHANGES}"), "missing field `transport`");
        check(
            "transport = 'carrier pigeon'",
            "unknown variant `carrier pigeon`, expected one of `ssh`, `telnet`, `either`",
        );
        check(&format!("transport = 'ssh'\n{CHANGES}"), "menu.status is missing");
        check(&format!("transport = 'ssh'\n{STATUS}\non = [{{ line = '1', commit = true }}]"), "menu.off is missing");
        check(&format!("transport = 'telnet'\n{STATUS}\n{CHANGES}"), "menu.login is missing");
        check(&ssh("restart = []"), "unknown field `restart`");
        check(&ssh("ready = [{ sned = 'x' }]"), "unknown field `sned`, expected one of `line`, `send`");
        check(
            &ssh("ready = [{ expect = [{ at = 'x' }] }, { line = 'a', send = 'b' }]"),
            "menu.ready, step 2: it is one of line, send",
        );
        check(&ssh("ready = [{ commit = true }]"), "menu.ready, step 1");
        check(&ssh("ready = [{ line = '{passwort}' }]"), "unknown placeholder {passwort}; there are outlet, user");
        check(&ssh("ready = [{ expect = [{ at = '{name}>' }] }]"), "unknown placeholder {name}");
        check(&ssh("cycle = [{ line = '{password}', commit = true }]"), "{password} is for login and ready");
        check(&ssh("ready = [{ line = '{action}' }]"), "{action} is for on, off, cycle and reset");
        check(&ssh("ready = [{ expect = [{ at = '1- Outlets', line = '{picked}' }] }]"), "{picked} is what (...)");
        check(&ssh("ready = [{ expect = [{ at = '(' }] }]"), "is no pattern");
        check(&ssh("ready = [{ expect = [{ at = 'x*' }] }]"), "matches nothing at all");
        check(&ssh("ready = [{ expect = [{ at = '(a{1,500}){1,500}' }] }]"), "is no pattern");
        check(&ssh("ready = [{ expect = [] }]"), "waits for nothing");
        check(&ssh("ready = [{ expect = [{ at = 'x' }], within = 0 }]"), "it is 1 to 300 seconds");
        check(&ssh("ready = [{ line = 'x', within = 3 }]"), "belong to expect");
        check(&ssh("ready = [{ expect = [{ at = 'x', then = 'on' }] }]"), "only answers of menu.status mean");
        check(&ssh("ready = [{ expect = [{ at = 'x', then = 'maybe' }] }]"), "unknown variant `maybe`");
        check(&ssh("logout = [{ expect = [{ at = 'x', then = 'auth' }] }]"), "only login and ready");
        check(&ssh("ready = [{ expect = [], closed = 'on' }]"), "closed cannot mean");
        check(&ssh("cycle = [{ line = 'x' }]"), "menu.cycle: 0 steps have commit = true");
        check(&ssh("ready = [{ line = 'x', commit = true }]"), "commit = true is for on, off");
        check(&ssh("ready = [{ part = 'x' }]"), "menu.ready, step 1: there is no part \"x\"");
        check(
            &ssh("ready = [{ part = 'x' }]\nparts.x = [{ part = 'x' }]"),
            "menu.parts.x, step 1: a part has no parts",
        );
        check(&ssh("channel = 'exec'").replace("'ssh'", "'either'").replace("[menu]", ""), "menu.login is missing");
        let no_off = STATUS.replace("OFF\", then = \"off\"", "OFF\"");
        check(&format!("transport = 'ssh'\n{no_off}\n{CHANGES}"), "menu.status: no answer means \"off\"");
    }

    #[test]
    fn placeholders() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let word = |name: &str| (name == "outlet").then(|| "3".to_owned());
            assert_eq!(fill(text, word), expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        };
        check("on {outlet},{outlet}", Ok("on 3,3"));
        check(r"\d{1,3} {} {A} {", Ok(r"\d{1,3} {} {A} {"));
        check("{user}", Err("user"));
    }
}
