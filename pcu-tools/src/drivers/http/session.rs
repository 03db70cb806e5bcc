//! Being logged in to a PDU behind HTTP.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use zeroize::Zeroizing;

use super::{
    reading::{Found, all},
    table::{Account, Auth, Json, Outlets, Pattern, Request, Table},
    template::{Template, Values, percent, plain},
};
use crate::{
    Change, Deadline, Method, PcuError, PowerState, Proof, Secret, Session,
    web::{Reply, Verb, WebAuth, WebClient},
};

/// How long logging out may take. What does not work is left to the device to time out.
const LOGOUT: Duration = Duration::from_secs(2);
/// Most cookies, and longest one in bytes, that are kept.
const COOKIES: (usize, usize) = (16, 4096);
/// Longest piece of an answer in a message, in characters.
const SAID: usize = 160;

/// A session. Most devices have none but the password of each request.
pub(super) struct HttpSession {
    driver: String,
    table: Arc<Table>,
    client: WebClient,
    auth: WebAuth,
    values: Values,
    cookies: BTreeMap<String, Secret>,
    logged_in: bool,
}

/// A request with everything filled in.
pub(super) struct Filled {
    /// What it does.
    pub(super) verb: Verb,
    /// Path and query. Passwords may stand in the query.
    pub(super) path: Zeroizing<String>,
    /// The headers of the table, of the request and of its body.
    pub(super) headers: Vec<(String, Zeroizing<String>)>,
    /// The body, empty where there is none.
    pub(super) body: Zeroizing<String>,
}

impl HttpSession {
    /// Logs in, and finds the outlet.
    pub(super) fn open(driver: &str, table: Arc<Table>, method: &Method, deadline: Deadline) -> Result<Self, PcuError> {
        let mut session = Self::new(driver, table, method)?;
        session.log_in(deadline)?;
        session.state(deadline)?;
        Ok(session)
    }

    /// Prepares for a method that has what the table wants. Nothing is sent yet.
    pub(super) fn new(driver: &str, table: Arc<Table>, method: &Method) -> Result<Self, PcuError> {
        let values = values(&table, method)?;
        let mut known = method.clone();
        known.user.clone_from(&values.user);
        let auth = match (table.auth, &values.password) {
            (Auth::None, _) | (_, None) => WebAuth::None,
            (Auth::Basic, Some(_)) => WebAuth::Basic,
            (Auth::Digest, Some(_)) => WebAuth::Digest,
        };
        let client = WebClient::new(&known, table.port)?;
        Ok(Self { driver: driver.into(), table, client, auth, values, cookies: BTreeMap::new(), logged_in: false })
    }

    fn log_in(&mut self, deadline: Deadline) -> Result<(), PcuError> {
        let table = self.table.clone();
        if self.values.password.is_none() {
            return Ok(());
        }
        for step in &table.login {
            // Also of a login that fails half-way the device may keep something.
            self.logged_in = true;
            let doing = self.doing(&step.request);
            let user = self.values.user.clone().unwrap_or_else(|| "nobody".into());
            let denied = || PcuError::Authentication {
                doing: doing.clone(),
                detail: format!("the device does not let {user} in"),
            };
            let reply = match self.send(&step.request, deadline) {
                // What would be no right later on is no way in here.
                Err(PcuError::Refused { .. } | PcuError::Privilege { .. }) => return Err(denied()),
                sent => sent?,
            };
            let text = String::from_utf8_lossy(&reply.body);
            if step.shows.as_ref().is_some_and(|pattern| !pattern.0.is_match(&text)) {
                return Err(denied());
            }
            if let Some(reading) = &step.token {
                match reading.find(&reply.body, &self.values) {
                    Found::Value(token) if !token.is_empty() => self.values.token = Some(Secret::new(token)),
                    _ => return Err(denied()),
                }
            }
        }
        Ok(())
    }

    fn doing(&self, request: &Request) -> String {
        let path = request.path.fill(&self.values, percent).unwrap_or_default();
        self.client.doing(&request.method.into(), &path)
    }

    /// Sends a request, and takes from the answer what it says of failure.
    fn send(&mut self, request: &Request, deadline: Deadline) -> Result<Reply, PcuError> {
        let doing = self.doing(request);
        let filled = self.fill(request, &doing)?;
        let headers: Vec<_> = filled.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let body = filled.body.as_bytes();
        let reply = self.client.request_as(self.auth, &filled.verb, &filled.path, &headers, body, deadline)?;
        self.keep_cookies(&reply);
        self.judge(&doing, request, &reply)?;
        Ok(reply)
    }

    /// A request as it is sent.
    pub(super) fn fill(&self, request: &Request, doing: &str) -> Result<Filled, PcuError> {
        let missing = || PcuError::Configuration { doing: doing.into(), detail: "there is no user or password".into() };
        let mut path = request.path.fill(&self.values, percent).ok_or_else(missing)?;
        let query = self.pairs(&request.query);
        if !query.is_empty() {
            let sign = if path.contains('?') { '&' } else { '?' };
            path.push(sign);
            path.push_str(&query);
        }
        let mut headers = Vec::new();
        for (name, value) in self.table.headers.iter().chain(&request.headers) {
            let Some(value) = value.fill(&self.values, plain) else { continue };
            if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                let detail =
                    format!("the header {name} would get a character that is not ASCII; is the password right?");
                return Err(PcuError::Configuration { doing: doing.into(), detail });
            }
            headers.push((name.clone(), value));
        }
        if !self.cookies.is_empty() {
            let mut cookies = Zeroizing::new(String::new());
            for (name, value) in &self.cookies {
                let between = if cookies.is_empty() { "" } else { "; " };
                for part in [between, name, "=", value.reveal()] {
                    cookies.push_str(part);
                }
            }
            headers.push(("cookie".into(), cookies));
        }
        let mut body = Zeroizing::new(String::new());
        if let Some(json) = &request.json {
            headers.push(("content-type".into(), Zeroizing::new("application/json".into())));
            body = Zeroizing::new(self.json(json).ok_or_else(missing)?.to_string());
        } else if !request.form.is_empty() {
            headers.push(("content-type".into(), Zeroizing::new("application/x-www-form-urlencoded".into())));
            body = self.pairs(&request.form);
        }
        Ok(Filled { verb: request.method.into(), path, headers, body })
    }

    /// A query or form. Pairs that need what the method does not have are left out.
    fn pairs(&self, pairs: &BTreeMap<Template, Template>) -> Zeroizing<String> {
        let mut filled = Zeroizing::new(String::new());
        for (name, value) in pairs {
            let Some((name, value)) = name.fill(&self.values, plain).zip(value.fill(&self.values, plain)) else {
                continue;
            };
            let between = if filled.is_empty() { "" } else { "&" };
            for part in [between, &percent(&name), "=", &Zeroizing::new(percent(&value).into_owned())] {
                filled.push_str(part);
            }
        }
        filled
    }

    fn json(&self, json: &Json) -> Option<serde_json::Value> {
        Some(match json {
            Json::Flag(flag) => (*flag).into(),
            Json::Number(number) => (*number).into(),
            Json::Text(text) => {
                let filled = text.fill(&self.values, plain)?;
                match filled.parse::<i64>() {
                    Ok(number) if text.is_outlet() && matches!(self.table.outlets, Outlets::Numbers { .. }) => {
                        number.into()
                    }
                    _ => filled.as_str().into(),
                }
            }
            Json::List(list) => list.iter().map(|element| self.json(element)).collect::<Option<Vec<_>>>()?.into(),
            Json::Object(object) => {
                let members = object.iter().map(|(name, value)| Some((name.clone(), self.json(value)?)));
                serde_json::Value::Object(members.collect::<Option<_>>()?)
            }
        })
    }

    fn keep_cookies(&mut self, reply: &Reply) {
        for header in reply.headers.get_all("set-cookie") {
            let Some((name, value)) = header.to_str().ok().and_then(|text| text.split(';').next()?.split_once('='))
            else {
                continue;
            };
            let (name, value) = (name.trim(), value.trim());
            let room = self.cookies.len() < COOKIES.0 || self.cookies.contains_key(name);
            if room && !name.is_empty() && name.len() + value.len() <= COOKIES.1 {
                self.cookies.insert(name.into(), Secret::new(value.into()));
            }
        }
    }

    /// Success, or the failure that an answer tells of.
    fn judge(&self, doing: &str, request: &Request, reply: &Reply) -> Result<(), PcuError> {
        let doing = doing.to_owned();
        let text = String::from_utf8_lossy(&reply.body);
        let says = |patterns: &[Pattern]| {
            patterns.iter().find_map(|pattern| pattern.0.find(&text)).map(|found| clip(found.as_str()))
        };
        let table = &self.table.says;
        if let Some(detail) = says(&table.denied) {
            return Err(PcuError::Authentication { doing, detail });
        }
        if let Some(detail) = says(&table.forbidden) {
            return Err(PcuError::Privilege { doing, detail });
        }
        if let Some(detail) = says(&table.busy) {
            return Err(PcuError::Busy { doing, detail });
        }
        if says(&table.missing).is_some() || request.missing.contains(&reply.status) {
            return Err(self.no_outlet(doing, Vec::new()));
        }
        if let Some(detail) = says(&table.refused) {
            return Err(PcuError::Refused { doing, detail });
        }
        let expected =
            if request.expect.is_empty() { reply.is_success() } else { request.expect.contains(&reply.status) };
        if expected {
            return Ok(());
        }
        let detail = format!("HTTP status {}: {}", reply.status, clip(&text));
        Err(match reply.status {
            403 => PcuError::Privilege { doing, detail },
            408 | 423 | 425 | 429 | 502..=504 => PcuError::Busy { doing, detail },
            404 => PcuError::BadAnswer {
                doing,
                detail: "it has no such page (HTTP status 404); is it another model?".into(),
            },
            200..400 => PcuError::BadAnswer {
                doing,
                detail: match reply.header("location") {
                    Some(location) => format!("HTTP status {}, on to {}", reply.status, clip(location)),
                    None => format!("HTTP status {}, which nobody expected", reply.status),
                },
            },
            _ => PcuError::Refused { doing, detail },
        })
    }

    /// The state in an answer to the request for it.
    pub(super) fn read_state(&self, body: &[u8], doing: String) -> Result<PowerState, PcuError> {
        let status = &self.table.status;
        let mut why = String::new();
        for reading in &status.read {
            match reading.find(body, &self.values) {
                Found::Value(value) if status.on.contains(&value) => return Ok(PowerState::On),
                Found::Value(value) if status.off.contains(&value) => return Ok(PowerState::Off),
                Found::Value(value) if status.changing.contains(&value) => {
                    return Err(PcuError::Busy { doing, detail: format!("the outlet is {}", clip(&value)) });
                }
                Found::Value(value) => {
                    let known = [status.on.join(", "), status.off.join(", ")].join(" nor ");
                    let detail = format!("the state is {:?}, neither {known}", clip(&value));
                    return Err(PcuError::BadAnswer { doing, detail });
                }
                Found::NoSuchOutlet(known) => return Err(self.no_outlet(doing, known)),
                Found::Nothing(reason) if why.is_empty() => why = reason,
                Found::Nothing(_) => {}
            }
        }
        let text = String::from_utf8_lossy(body);
        let known = status.known.as_ref().map(|Pattern(regex)| all(regex, &text)).unwrap_or_default();
        if !known.is_empty() && !known.contains(&self.values.outlet) {
            return Err(self.no_outlet(doing, known));
        }
        Err(PcuError::BadAnswer { doing, detail: clip(&why) })
    }

    fn no_outlet(&self, doing: String, known: Vec<String>) -> PcuError {
        PcuError::OutletUnknown { doing, outlet: self.values.outlet.clone(), known }
    }
}

impl Session for HttpSession {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let table = self.table.clone();
        let status = &table.status;
        let doing = self.doing(&status.request);
        let reply = self.send(&status.request, deadline)?;
        self.read_state(&reply.body, doing)
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let table = self.table.clone();
        let request = match change {
            Change::On => Some(&table.on),
            Change::Off => Some(&table.off),
            Change::Cycle => table.cycle.as_ref(),
            Change::Reset => None,
        };
        let request = request.ok_or_else(|| {
            PcuError::unsupported(&self.driver, &format!("doing a {change} on {}", self.client.origin()))
        })?;
        self.send(request, deadline).map(drop)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        let mut proofs = Vec::new();
        if let (Some(user), Some(_)) = (&self.values.user, &self.values.password) {
            proofs.push(Proof(format!("{} answers {user}", self.client.origin())));
        }
        let outlet =
            if self.values.outlet.is_empty() { "its outlet".into() } else { format!("outlet {}", self.values.outlet) };
        proofs.push(Proof(format!("{outlet} is there, and is {state}")));
        Ok(proofs)
    }
}

impl Drop for HttpSession {
    fn drop(&mut self) {
        let table = self.table.clone();
        if let (true, Some(logout)) = (self.logged_in, &table.logout) {
            // What does not work now ends by itself.
            let _ = self.send(logout, Deadline::after(LOGOUT));
        }
    }
}

/// What stands for the placeholders, of a method that has what the table wants.
fn values(table: &Table, method: &Method) -> Result<Values, PcuError> {
    let mut options = table.options.clone();
    for (name, value) in method.options::<BTreeMap<String, String>>()? {
        match options.get_mut(&name) {
            Some(option) => *option = value,
            None => return Err(method.misconfigured(&format!("there is no option {name}"))),
        }
    }
    if let Some((name, _)) = options.iter().find(|(_, value)| value.is_empty()) {
        return Err(method.misconfigured(&format!("the option {name} is missing")));
    }
    let password = match (table.account, &method.password) {
        (Account::None, Some(_)) => return Err(method.misconfigured("the device has no password to give it")),
        (Account::None | Account::Optional, None) => None,
        (Account::Required | Account::Optional, _) => Some(method.secret()?),
    };
    // A user without a password is nobody.
    let user = password.as_ref().and_then(|_| method.user.clone().or_else(|| table.user.clone()));
    if table.auth != Auth::None && password.is_some() && user.is_none() {
        method.account()?;
    }
    Ok(Values { outlet: outlet(table, method)?, user, password, token: None, options })
}

fn outlet(table: &Table, method: &Method) -> Result<String, PcuError> {
    let given = method.outlet.as_deref();
    match table.outlets {
        Outlets::One => match given {
            None => Ok(String::new()),
            Some(outlet) => Err(PcuError::OutletUnknown {
                doing: format!("using {method}"),
                outlet: outlet.into(),
                known: vec!["just one; leave it out of the inventory".into()],
            }),
        },
        Outlets::Names => match method.outlet()? {
            "" => Err(method.misconfigured("the outlet is empty")),
            outlet => Ok(outlet.into()),
        },
        Outlets::Numbers { first, last } => {
            let number = method.outlet()?.parse::<u32>().ok().filter(|number| (first..=last).contains(number));
            number.map(|number| number.to_string()).ok_or_else(|| PcuError::OutletUnknown {
                doing: format!("using {method}"),
                outlet: given.unwrap_or_default().into(),
                known: vec![format!("numbers from {first} to {last}")],
            })
        }
    }
}

/// The beginning of what a device said, printable, in one line.
fn clip(said: &str) -> String {
    let mut words = String::new();
    for word in said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
        if words.len() > 4 * SAID {
            break;
        }
    }
    match words.char_indices().nth(SAID) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}
