//! Power of nodes: how it is switched, what was done with it and why, and what central does about nodes that fell silent.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What can be done with a node's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerAction {
    /// Give power.
    On,
    /// Take it away.
    Off,
    /// Take it away and give it again.
    Cycle,
    /// Reset the machine, which keeps its power.
    Reset,
}

impl PowerAction {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Cycle => "cycle",
            Self::Reset => "reset",
        }
    }
}

/// `PUT /v1/nodes/{id}/power`: the methods by which a node's power is switched, the preferred one first, as in an inventory of `pcu`.
/// Secrets and programs are named, and stand in central's own `power` folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerMethods {
    /// The methods.
    pub methods: Vec<Value>,
}

/// `PUT /v1/nodes/{id}/power/contacts`: who is told when a node stays down; both of them whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerContacts {
    /// Who looks after the machine.
    #[serde(default)]
    pub tech: Option<String>,
    /// Who answers for the site.
    #[serde(default)]
    pub pi: Option<String>,
}

/// `PUT /v1/nodes/{id}/power/hold`: central is to do nothing with the node's power by itself, or may again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerHold {
    /// Why not, in one line; none: it may again.
    pub reason: Option<String>,
}

/// What central knows of a node's power.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodePower {
    /// The node.
    pub node: String,
    /// Its methods, the preferred one first.
    pub methods: Vec<Value>,
    /// Who is told when it stays down.
    #[serde(flatten)]
    pub contacts: PowerContacts,
    /// Why central does nothing with its power by itself, if so.
    pub held: Option<String>,
    /// When its methods were last tested, in Unix seconds.
    pub tested: Option<u64>,
    /// What that test found.
    pub tests: Vec<PowerTest>,
    /// Where it stands, if it is down.
    pub record: Option<PowerRecord>,
}

/// What a test of one method found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerTest {
    /// The method.
    pub method: String,
    /// What was proven.
    pub proofs: Vec<String>,
    /// Why an action would fail; none: it would not.
    pub failure: Option<PowerFailure>,
}

/// Why a method failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerFailure {
    /// The class: `transport`, `authentication`, `outlet-unknown`, ….
    pub class: String,
    /// What was tried, on what, and what happened.
    pub message: String,
    /// What to try.
    pub advice: String,
}

/// One try of one method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerAttempt {
    /// The method.
    pub method: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Why it failed; none: it did not.
    pub failure: Option<PowerFailure>,
}

/// `POST /v1/nodes/{id}/power/operations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPowerOperation {
    /// What to do.
    pub action: PowerAction,
    /// Why, in one line.
    pub reason: String,
    /// How long the node may take to call home afterwards, in seconds.
    #[serde(default = "confirm_within")]
    pub confirm_within: u64,
}

/// Where nothing else is said: 20 minutes.
fn confirm_within() -> u64 {
    20 * 60
}

/// Something done with a node's power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOperation {
    /// Its number: grows, with gaps.
    pub id: u64,
    /// The node.
    pub node: String,
    /// What was asked for.
    pub action: PowerAction,
    /// Who asked: an operator's name, or `central (ladder)`.
    pub who: String,
    /// Why.
    pub reason: String,
    /// When, in Unix seconds.
    pub requested: u64,
    /// When central began, in Unix seconds.
    pub started: Option<u64>,
    /// When the device was done, in Unix seconds.
    pub finished: Option<u64>,
    /// The method that did it.
    pub method: Option<String>,
    /// What the device made of it.
    pub outcome: Option<PowerOutcome>,
    /// Every try of a method, in order.
    pub attempts: Vec<PowerAttempt>,
    /// By when the node has to call home, in Unix seconds; none: nothing is awaited of it.
    pub confirm_by: Option<u64>,
    /// When it was confirmed, in Unix seconds.
    pub confirmed: Option<u64>,
    /// Where it stands.
    pub result: PowerResult,
    /// What else there is to say, for people.
    pub note: Option<String>,
}

/// What the device made of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerOutcome {
    /// Done, and seen in the device's state.
    Changed,
    /// Nothing to do: the state was the one asked for.
    Already,
    /// The device accepted it, and shows no state that would prove it.
    Accepted,
    /// No method did it.
    Failed,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerResult {
    /// Asked for.
    Pending,
    /// Central talks to the device.
    Running,
    /// The device did it, or says so; the node has not called home since.
    Unconfirmed,
    /// The node called home in a new boot; of what nothing has to follow: the state was read back.
    Confirmed,
    /// The node did not call home in time.
    Expired,
    /// No method did it.
    Failed,
    /// Central was stopped in the middle.
    Unknown,
    /// Another operation began before this one was confirmed.
    Superseded,
}

impl PowerResult {
    /// Whether it may still change.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Running | Self::Unconfirmed)
    }
}

/// `GET /v1/nodes/{id}/power/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerStateRead {
    /// `on` or `off`.
    pub state: String,
    /// The method that says so.
    pub method: String,
}

/// `POST /v1/power/tests`: methods are to be tested now; of all nodes if none is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerTestRequest {
    /// Ids of nodes.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// Tests that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerTestsAsked {
    /// The nodes that will be tested: those that have methods.
    pub nodes: Vec<String>,
}

/// `GET /v1/power/report`: whether a node's power could be switched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerReport {
    /// The node.
    pub node: String,
    /// What is to be expected.
    pub standing: PowerStanding,
    /// Whether a test is asked for or under way.
    pub testing: bool,
    /// When its methods were last tested, in Unix seconds.
    pub tested: Option<u64>,
    /// What that found.
    pub tests: Vec<PowerTest>,
}

/// What is to be expected of a node's methods, as their last test has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerStanding {
    /// Every method would work.
    Works,
    /// Some would.
    Degraded,
    /// None would.
    WouldFail,
    /// They were never tested.
    Untested,
    /// There is none.
    NoMethod,
}

impl PowerStanding {
    /// What a test's results come to.
    #[must_use]
    pub fn of(methods: usize, tests: &[PowerTest]) -> Self {
        match (methods, tests.len(), tests.iter().filter(|test| test.failure.is_none()).count()) {
            (0, _, _) => Self::NoMethod,
            (_, 0, _) => Self::Untested,
            (_, _, 0) => Self::WouldFail,
            (_, all, working) if all == working => Self::Works,
            _ => Self::Degraded,
        }
    }
}

/// `GET`, `PUT /v1/power/policy`: what central does with power by itself. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PowerPolicy {
    /// Whether silent nodes climb the ladder: reset, power cycle, safe mode, a person.
    pub ladder: bool,
    /// Whether silent nodes get an escalation record.
    pub escalation: bool,
    /// How long a node may be silent.
    pub silent_after: u64,
    /// How long an operation of the ladder's is given to bring the node home, before the next rung.
    pub rung_wait: u64,
    /// Nodes that are on the ladder at once.
    pub max_at_once: u32,
    /// Operations of the ladder within an hour.
    pub max_per_hour: u32,
    /// When more than this part of the nodes, and at least three, fall silent together, it is an outage and not the nodes.
    pub storm_percent: u32,
    /// How long central must have listened without an outage before it does anything.
    pub settle: u64,
    /// How often all methods are tested; none: never.
    pub test_every: Option<u64>,
    /// A program in central's `power` folder that is given every power event as a line of JSON.
    pub notify: Option<String>,
}

impl Default for PowerPolicy {
    fn default() -> Self {
        Self {
            ladder: false,
            escalation: false,
            silent_after: 30 * 60,
            rung_wait: 30 * 60,
            max_at_once: 2,
            max_per_hour: 4,
            storm_percent: 20,
            settle: 15 * 60,
            test_every: None,
            notify: None,
        }
    }
}

impl PowerPolicy {
    /// Whether its numbers are safe. Nodes in safe mode call home every five minutes; what is below twice that would call healthy ones
    /// silent.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        const YEAR: u64 = 366 * 24 * 60 * 60;
        let within = |name: &str, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it has to be from {least} to {most}")),
        };
        within("silent_after", self.silent_after, 600, YEAR)?;
        within("rung_wait", self.rung_wait, 600, YEAR)?;
        within("settle", self.settle, 600, YEAR)?;
        within("max_at_once", self.max_at_once.into(), 1, 100)?;
        within("max_per_hour", self.max_per_hour.into(), 1, 1000)?;
        within("storm_percent", self.storm_percent.into(), 1, 90)?;
        self.test_every.map_or(Ok(()), |every| within("test_every", every, 3600, YEAR))
    }
}

/// A step of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// The machine is reset by its device.
    Reset,
    /// Its power is taken away and given again.
    Cycle,
    /// It is to come up in safe mode, once, and its power is taken away and given again.
    Safe,
    /// Only a person can help.
    Human,
}

/// How far a node's downtime has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EscalationLevel {
    /// Less than a week.
    Down,
    /// One week: the tech contact.
    Tech,
    /// Two weeks: the PI; the node takes no new slivers.
    Pi,
    /// Three weeks: the site's slices are to be suspended.
    Suspended,
}

/// That a node is, or was, down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRecord {
    /// Its number.
    pub id: u64,
    /// The node.
    pub node: String,
    /// When the node was last heard, in Unix seconds.
    pub since: u64,
    /// When this was noticed, in Unix seconds.
    pub opened: u64,
    /// The rung it is on, if it climbs.
    pub rung: Option<Rung>,
    /// Since when, in Unix seconds.
    pub rung_at: Option<u64>,
    /// How far its downtime has gone.
    pub level: EscalationLevel,
    /// Since when, in Unix seconds.
    pub level_at: u64,
    /// When it was over, in Unix seconds.
    pub closed: Option<u64>,
    /// How it was over.
    pub why: Option<String>,
}

/// `GET /v1/power/ladder`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LadderStanding {
    /// Whether nodes climb.
    pub ladder: bool,
    /// Whether downtime is recorded.
    pub escalation: bool,
    /// Why central does nothing by itself now, if so.
    pub holding: Option<String>,
    /// Since when it has listened without an outage, in Unix seconds.
    pub calm_since: u64,
    /// Nodes that are down, the longest first.
    pub records: Vec<PowerRecord>,
}

/// Something that central did or noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerEvent {
    /// Its place among all: grows, with gaps.
    pub seq: u64,
    /// When, in Unix seconds.
    pub at: u64,
    /// The node; none: all of them.
    pub node: Option<String>,
    /// `ladder`, `human`, `escalation`, `closed`, `holding`, `calm` or `test`.
    pub kind: String,
    /// What, for people.
    pub message: String,
    /// The contacts that it is for.
    #[serde(flatten)]
    pub contacts: PowerContacts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_would_call_healthy_nodes_dead_is_refused() {
        assert_eq!(PowerPolicy::default().check(), Ok(()));
        let check = |change: fn(&mut PowerPolicy), expect: &str| {
            let mut policy = PowerPolicy::default();
            change(&mut policy);
            let error = policy.check().unwrap_err();
            assert!(error.starts_with(expect), "{error}");
        };
        check(|policy| policy.silent_after = 599, "silent_after");
        check(|policy| policy.rung_wait = 0, "rung_wait");
        check(|policy| policy.settle = 60, "settle");
        check(|policy| policy.max_at_once = 0, "max_at_once");
        check(|policy| policy.max_per_hour = 0, "max_per_hour");
        check(|policy| policy.storm_percent = 0, "storm_percent");
        check(|policy| policy.test_every = Some(1), "test_every");
    }

    #[test]
    fn what_tests_come_to() {
        let test = |works: bool| PowerTest {
            method: String::new(),
            proofs: Vec::new(),
            failure: (!works).then(|| PowerFailure {
                class: "busy".into(),
                message: String::new(),
                advice: String::new(),
            }),
        };
        let check = |methods, tests: &[bool], expect| {
            let tests: Vec<_> = tests.iter().map(|works| test(*works)).collect();
            assert_eq!(PowerStanding::of(methods, &tests), expect);
        };
        check(0, &[], PowerStanding::NoMethod);
        check(2, &[], PowerStanding::Untested);
        check(2, &[true, true], PowerStanding::Works);
        check(2, &[false, true], PowerStanding::Degraded);
        check(2, &[false, false], PowerStanding::WouldFail);
    }
}
