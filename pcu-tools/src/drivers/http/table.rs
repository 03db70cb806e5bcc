//! The table `[http]` of a data file: what to ask for, and how to read what comes.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    reading::{Reading, compile},
    template::{NAMES, Template, Values},
};
use crate::{Secret, web::Verb};

/// A family of devices behind HTTP.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// The port of https; http without a port goes to 80 if it is 443, else to it, too.
    #[serde(default = "https")]
    pub(super) port: u16,
    /// How the device is told who asks.
    #[serde(default)]
    pub(super) auth: Auth,
    /// Whether a method has to have a password.
    #[serde(default)]
    pub(super) account: Account,
    /// The user where the method has none: of devices with a single account.
    pub(super) user: Option<String>,
    /// Which outlets there may be.
    pub(super) outlets: Outlets,
    /// What a method may choose besides, and what it is otherwise. An empty text has to be chosen.
    #[serde(default)]
    pub(super) options: BTreeMap<String, String>,
    /// Headers of every request.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Template>,
    /// What logs in, in this order.
    #[serde(default)]
    pub(super) login: Vec<Login>,
    /// What logs out.
    pub(super) logout: Option<Request>,
    /// What asks for the state.
    pub(super) status: Status,
    /// What gives power.
    pub(super) on: Request,
    /// What takes it away.
    pub(super) off: Request,
    /// What takes it away and gives it again, where the device does that by itself.
    pub(super) cycle: Option<Request>,
    /// What the device says when it does not do it, whatever the status is.
    #[serde(default)]
    pub(super) says: Says,
}

/// How a device is told who asks. Passwords that go elsewhere, into a header, a query or a form, have placeholders there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auth {
    /// Not by HTTP's means.
    #[default]
    None,
    /// RFC 7617.
    Basic,
    /// RFC 7616.
    Digest,
}

/// Whether a method has to have a password.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Account {
    /// It has to.
    #[default]
    Required,
    /// The device can be configured to let anybody in. What needs a password is left out then.
    Optional,
    /// The device has no accounts.
    None,
}

/// Which outlets there may be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Outlets {
    /// Numbers from one to another. Devices may have fewer.
    Numbers {
        /// The first.
        first: u32,
        /// The last of the largest device.
        last: u32,
    },
    /// Names, or whatever else the device calls them.
    Names,
    /// Just one, without a name.
    One,
}

/// One request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// `GET` if there is none.
    #[serde(default)]
    pub(super) method: Method,
    /// Path, and what the device wants of a query that `query` cannot say. Placeholders' values are percent-encoded.
    pub(super) path: Template,
    /// The query. What needs a password is left out where there is none.
    #[serde(default)]
    pub(super) query: BTreeMap<Template, Template>,
    /// A form as body.
    #[serde(default)]
    pub(super) form: BTreeMap<Template, Template>,
    /// JSON as body. Texts have placeholders; `"{outlet}"` alone becomes a number where outlets are numbers.
    pub(super) json: Option<Json>,
    /// Further headers.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Template>,
    /// The status of success; any of 200 to 299 if there is none.
    #[serde(default)]
    pub(super) expect: Vec<u16>,
    /// Statuses that say that there is no such outlet.
    #[serde(default)]
    pub(super) missing: Vec<u16>,
}

/// What a request does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Method {
    /// Asks; with many devices it also switches.
    #[default]
    Get,
    /// Has a body, or none.
    Post,
    /// Has a body, or none.
    Put,
    /// Has a body, or none.
    Patch,
}

impl From<Method> for Verb {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Post => Self::POST,
            Method::Put => Self::PUT,
            Method::Patch => Self::PATCH,
        }
    }
}

/// JSON with placeholders in its texts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Json {
    /// `true`.
    Flag(bool),
    /// A number.
    Number(i64),
    /// A text.
    Text(Template),
    /// A list.
    List(Vec<Self>),
    /// An object.
    Object(BTreeMap<String, Self>),
}

/// One step of logging in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// What to send.
    pub(super) request: Request,
    /// What `{token}` is from then on.
    pub(super) token: Option<Reading>,
    /// What an answer to somebody who is let in has.
    pub(super) shows: Option<Pattern>,
}

/// What asks for the state, and how to read it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    /// What to send.
    pub(super) request: Request,
    /// Where the state stands: the first of these that finds something.
    pub(super) read: Vec<Reading>,
    /// What it is when there is power.
    pub(super) on: Vec<String>,
    /// What it is when there is none.
    pub(super) off: Vec<String>,
    /// What it is while it changes.
    #[serde(default)]
    pub(super) changing: Vec<String>,
    /// A regular expression whose first group is an outlet, each time that it matches: to tell which there are.
    pub(super) known: Option<Pattern>,
}

/// What a device says when it does not do it: regular expressions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Says {
    /// It does not let us in.
    #[serde(default)]
    pub(super) denied: Vec<Pattern>,
    /// It does not let us do it.
    #[serde(default)]
    pub(super) forbidden: Vec<Pattern>,
    /// It serves somebody else.
    #[serde(default)]
    pub(super) busy: Vec<Pattern>,
    /// It has no such outlet.
    #[serde(default)]
    pub(super) missing: Vec<Pattern>,
    /// It does not do it.
    #[serde(default)]
    pub(super) refused: Vec<Pattern>,
}

/// A regular expression, compiled when the file is read.
#[derive(Debug)]
pub(super) struct Pattern(pub(super) Regex);

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        compile(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

impl Json {
    fn templates<'a>(&'a self, all: &mut Vec<&'a Template>) {
        match self {
            Self::Flag(_) | Self::Number(_) => {}
            Self::Text(text) => all.push(text),
            Self::List(list) => list.iter().for_each(|element| element.templates(all)),
            Self::Object(object) => object.values().for_each(|member| member.templates(all)),
        }
    }
}

impl Table {
    /// Refuses what parses and makes no sense; says which part it is.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Outlets::Numbers { first, last } = self.outlets
            && (first > last || last > 9999)
        {
            return Err(format!("http.outlets: there are no numbers from {first} to {last}"));
        }
        if let Some(name) = self.options.keys().find(|name| NAMES.contains(&name.as_str())) {
            return Err(format!("http.options: {name} is a placeholder already"));
        }
        if self.account == Account::None && self.auth != Auth::None {
            return Err("http.auth: without an account there is nothing to log in with".into());
        }
        self.check_headers("http.headers", &self.headers, self.login.iter().any(|step| step.token.is_some()))?;
        let mut token = false;
        for (at, step) in self.login.iter().enumerate() {
            let place = format!("http.login, step {}", at + 1);
            self.check_request(&place, &step.request, token)?;
            if let Some(reading) = &step.token {
                self.check_reading(&place, reading)?;
                token = true;
            }
        }
        let requests = [
            ("on", Some(&self.on)),
            ("off", Some(&self.off)),
            ("cycle", self.cycle.as_ref()),
            ("logout", self.logout.as_ref()),
        ];
        for (name, request) in requests {
            if let Some(request) = request {
                self.check_request(&format!("http.{name}"), request, token)?;
            }
        }
        self.check_request("http.status", &self.status.request, token)?;
        self.check_status()
    }

    fn check_status(&self) -> Result<(), String> {
        let status = &self.status;
        if status.read.is_empty() || status.on.is_empty() || status.off.is_empty() {
            return Err("http.status: read, on and off must not be empty".into());
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) =
            status.on.iter().chain(&status.off).chain(&status.changing).find(|value| !seen.insert(*value))
        {
            return Err(format!("http.status: {twice:?} means two things"));
        }
        if status.known.as_ref().is_some_and(|pattern| pattern.0.captures_len() != 2) {
            return Err("http.status: known has to have one group, (…), around the outlet".into());
        }
        status.read.iter().try_for_each(|reading| self.check_reading("http.status", reading))
    }

    fn check_reading(&self, place: &str, reading: &Reading) -> Result<(), String> {
        for template in reading.templates() {
            self.check_template(place, template, false)?;
            if template.names().any(|name| matches!(name, "user" | "password")) {
                return Err(format!("{place}: {{user}} and {{password}} have no place in what is read"));
            }
        }
        reading.check(&self.example()).map_err(|error| format!("{place}: {error}"))
    }

    fn check_request(&self, place: &str, request: &Request, token: bool) -> Result<(), String> {
        if [!request.form.is_empty(), request.json.is_some()].iter().filter(|body| **body).count() > 1 {
            return Err(format!("{place}: a body is either form or json"));
        }
        if request.method == Method::Get && (!request.form.is_empty() || request.json.is_some()) {
            return Err(format!("{place}: GET has no body; say method = \"POST\""));
        }
        // Paths show in messages, queries do not.
        if request.path.before(&['?']).names().any(|name| matches!(name, "password" | "token")) {
            return Err(format!("{place}: {{password}} and {{token}} have no place in a path"));
        }
        let mut templates = vec![&request.path];
        templates.extend(request.query.iter().chain(&request.form).flat_map(|(name, value)| [name, value]));
        if let Some(json) = &request.json {
            json.templates(&mut templates);
        }
        templates.into_iter().try_for_each(|template| self.check_template(place, template, token))?;
        let path = request.path.fill(&self.example(), super::template::percent).unwrap_or_default();
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(format!("{place}: a path begins with a slash, and has %20 for a space and so on"));
        }
        self.check_headers(place, &request.headers, token)
    }

    fn check_headers(&self, place: &str, headers: &BTreeMap<String, Template>, token: bool) -> Result<(), String> {
        for (name, value) in headers {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                return Err(format!("{place}: {name:?} is no header"));
            }
            self.check_template(place, value, token)?;
        }
        Ok(())
    }

    fn check_template(&self, place: &str, template: &Template, token: bool) -> Result<(), String> {
        for name in template.names() {
            let known = match name {
                "token" => token,
                "user" | "password" => self.account != Account::None,
                "outlet" => self.outlets != Outlets::One,
                option => self.options.contains_key(option),
            };
            if !known {
                return Err(format!("{place}: there is nothing for {{{name}}} to stand for"));
            }
        }
        if template.calculates() && !matches!(self.outlets, Outlets::Numbers { .. }) {
            return Err(format!("{place}: outlets that are not numbers cannot be calculated with"));
        }
        Ok(())
    }

    /// Values to try placeholders with.
    fn example(&self) -> Values {
        let outlet = match self.outlets {
            Outlets::Numbers { first, .. } => first.to_string(),
            Outlets::Names | Outlets::One => "x".into(),
        };
        Values {
            outlet,
            user: Some("u".into()),
            password: Some(Secret::new("p".into())),
            token: Some(Secret::new("t".into())),
            options: self.options.keys().map(|name| (name.clone(), "o".into())).collect(),
        }
    }
}

fn https() -> u16 {
    443
}
