//! A Redfish service and being logged in to it (DSP0266).

use serde::Serialize;
use serde_json::Value;
use std::time::Duration;
use zeroize::Zeroizing;

use super::{refusal, task};
use crate::{
    Deadline, Method, PcuError, Secret,
    web::{Reply, Verb, WebAuth, WebClient, clip},
};

/// Where every service begins.
const ROOT: &str = "/redfish/v1/";
/// How long logging out may take; a session that stays ends by itself after some minutes.
const LOGOUT: Duration = Duration::from_secs(3);
/// Most pages of one collection, and most that they may weigh together, in bytes.
const PAGES: usize = 64;
const COLLECTION: usize = 4 << 20;

/// A service that has let us in, or will tell at the next request that it does not. Dropping it logs out.
#[derive(Debug)]
pub(super) struct Service {
    client: WebClient,
    root: Resource,
    login: Login,
}

#[derive(Debug)]
enum Login {
    /// Not yet.
    None,
    /// User and password with every request; `instead` of a session, which failed for this reason, if it did.
    Basic { instead: Option<String> },
    /// A session, and where it is to be deleted.
    Session { token: Secret, path: Option<String> },
}

/// Something that a service told of itself: an object of JSON.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// Where it is.
    pub(super) path: String,
    /// What it says.
    pub(super) body: Value,
    /// The version that the answer's head names.
    etag: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials<'a> {
    user_name: &'a str,
    password: &'a str,
}

impl Resource {
    /// What a service told at `path`, without a version.
    pub(super) fn told(path: &str, body: Value) -> Self {
        Self { path: path.into(), body, etag: None }
    }

    /// The text at a JSON pointer.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.body.pointer(pointer)?.as_str()
    }

    /// The link at a JSON pointer.
    pub(super) fn link(&self, pointer: &str) -> Option<&str> {
        link(self.body.pointer(pointer)?)
    }

    /// The links of the list at a JSON pointer.
    pub(super) fn links(&self, pointer: &str) -> Vec<String> {
        let list = self.body.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(link).map(str::to_owned).collect()
    }

    /// The texts of the list at a JSON pointer; none when there is no list.
    pub(super) fn texts(&self, pointer: &str) -> Option<Vec<String>> {
        let list = self.body.pointer(pointer)?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).map(clip).collect())
    }

    /// What to claim in `If-Match` when changing it, one after the other until the service believes one. The version is in the
    /// head or the body, not always the same in both; some take a weak one only as a strong one, some none at all, and some want
    /// any (github.com/ansible-collections/community.general/pull/3268 and 6434, github.com/stmcginnis/gofish/issues/171).
    fn preconditions(&self) -> Vec<Option<String>> {
        let tags = [self.etag.as_deref(), self.text("/@odata.etag")];
        let tags = tags.into_iter().flatten().filter(|tag| tag.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let mut claims: Vec<_> = tags.map(|tag| Some(tag.to_owned())).collect();
        let strong = claims.iter().flatten().find_map(|tag| tag.strip_prefix("W/"));
        claims.extend(strong.map(|tag| Some(tag.to_owned())));
        claims.push(None);
        if claims.len() == 1 {
            claims.push(Some("*".into()));
        }
        claims.dedup();
        claims
    }
}

/// The link that an object is.
pub(super) fn link(value: &Value) -> Option<&str> {
    value.get("@odata.id")?.as_str()
}

impl Service {
    /// Reads the service's root, which needs no account.
    pub(super) fn find(method: &Method, deadline: Deadline) -> Result<Self, PcuError> {
        let root = Resource::told(ROOT, Value::Null);
        let mut service = Self { client: WebClient::new(method, 443)?, root, login: Login::None };
        service.root = service.get(ROOT, deadline)?;
        Ok(service)
    }

    /// [`Self::find`], and a session; or user and password with every request, where there are no sessions to be had.
    pub(super) fn open(method: &Method, deadline: Deadline) -> Result<Self, PcuError> {
        let mut service = Self::find(method, deadline)?;
        service.log_in(deadline)?;
        Ok(service)
    }

    /// The service's root.
    pub(super) fn root(&self) -> &Resource {
        &self.root
    }

    /// How we are logged in, for people.
    pub(super) fn login(&self) -> &'static str {
        match self.login {
            Login::None => "not at all",
            Login::Basic { .. } => "with user and password at every request",
            Login::Session { .. } => "by a session",
        }
    }

    /// Where the service is, for messages.
    pub(super) fn origin(&self) -> &str {
        self.client.origin()
    }

    /// Reads a resource.
    pub(super) fn get(&mut self, link: &str, deadline: Deadline) -> Result<Resource, PcuError> {
        self.read(link, deadline).map(|(resource, _)| resource)
    }

    /// Reads a resource, and says how many bytes it was.
    fn read(&mut self, link: &str, deadline: Deadline) -> Result<(Resource, usize), PcuError> {
        let path = self.local(link)?;
        let reply = self.send(&Verb::GET, &path, None, &[], deadline)?;
        let doing = self.client.doing(&Verb::GET, &path);
        let reply = success(doing.clone(), reply)?;
        let etag = reply.header("etag").map(str::to_owned);
        // The parser goes 128 levels deep and no further.
        match serde_json::from_slice(&reply.body) {
            Ok(body @ Value::Object(_)) => Ok((Resource { path, body, etag }, reply.body.len())),
            Ok(_) => Err(PcuError::BadAnswer { doing, detail: "it is no object of JSON".into() }),
            Err(error) => Err(PcuError::BadAnswer { doing, detail: format!("it is no JSON: {error}") }),
        }
    }

    /// The members of a collection, as they are in it: links, or whole resources. What is beyond `most` of them, or
    /// beyond what a collection may weigh, is left out.
    pub(super) fn members(&mut self, link: &str, most: usize, deadline: Deadline) -> Result<Vec<Value>, PcuError> {
        let mut members = Vec::new();
        let mut next = link.to_owned();
        let mut weight = 0;
        for _ in 0..PAGES {
            let (page, bytes) = self.read(&next, deadline)?;
            weight += bytes;
            let onward = page.text("/Members@odata.nextLink").map(str::to_owned);
            if let Value::Array(some) = page.body.get("Members").cloned().unwrap_or_default() {
                members.extend(some);
            }
            match onward {
                Some(onward) if members.len() < most && weight < COLLECTION => next = onward,
                _ => break,
            }
        }
        members.truncate(most);
        Ok(members)
    }

    /// Changes a resource, and waits until that is done.
    pub(super) fn patch(&mut self, resource: &Resource, body: &Value, deadline: Deadline) -> Result<(), PcuError> {
        let sent = serde_json::to_vec(body).expect("a value is JSON");
        let doing = self.client.doing(&Verb::PATCH, &resource.path);
        let mut claims = resource.preconditions().into_iter().peekable();
        while let Some(claim) = claims.next() {
            let reply = self.send(&Verb::PATCH, &resource.path, claim.as_deref(), &sent, deadline)?;
            let mismatch = matches!(reply.status, 412 | 428)
                || (!reply.is_success()
                    && is_about_precondition(&serde_json::from_slice(&reply.body).unwrap_or_default()));
            if !mismatch || claims.peek().is_none() {
                return task::follow(self, &doing, &success(doing.clone(), reply)?, deadline);
            }
        }
        unreachable!("the last claim returns, and there are always two")
    }

    /// Asks for an action, and waits until it is done.
    pub(super) fn post(&mut self, link: &str, body: &Value, deadline: Deadline) -> Result<(), PcuError> {
        let path = self.local(link)?;
        let sent = serde_json::to_vec(body).expect("a value is JSON");
        let reply = self.send(&Verb::POST, &path, None, &sent, deadline)?;
        let doing = self.client.doing(&Verb::POST, &path);
        task::follow(self, &doing, &success(doing.clone(), reply)?, deadline)
    }

    /// A GET whose answer is taken whatever its status.
    pub(super) fn look(&mut self, link: &str, deadline: Deadline) -> Result<Reply, PcuError> {
        let path = self.local(link)?;
        self.send(&Verb::GET, &path, None, &[], deadline)
    }

    fn local(&self, link: &str) -> Result<String, PcuError> {
        self.client.local(link).ok_or_else(|| PcuError::BadAnswer {
            doing: format!("reading {}", self.origin()),
            detail: format!("it links to {}, which is not this device", clip(link)),
        })
    }

    /// Sends a request as whom we are logged in. A session that has ended is replaced, once.
    fn send(
        &mut self,
        verb: &Verb,
        path: &str,
        claim: Option<&str>,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        let reply = self.send_once(verb, path, claim, body, deadline)?;
        match self.login {
            Login::Session { .. } if reply.status == 401 => {
                self.log_in(deadline)?;
                self.send_once(verb, path, claim, body, deadline)
            }
            _ => Ok(reply),
        }
    }

    fn send_once(
        &mut self,
        verb: &Verb,
        path: &str,
        claim: Option<&str>,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        let mut headers = vec![("accept", "application/json"), ("odata-version", "4.0")];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        headers.extend(claim.map(|claim| ("if-match", claim)));
        match &self.login {
            Login::None => self.client.request(verb, path, &headers, body, deadline),
            Login::Session { token, .. } => {
                headers.push(("x-auth-token", token.reveal()));
                self.client.request(verb, path, &headers, body, deadline)
            }
            Login::Basic { instead } => {
                let instead = instead.clone();
                let sent = self.client.request_as(WebAuth::Basic, verb, path, &headers, body, deadline);
                match (sent, instead) {
                    // Sessions are the only way in, and there is none to be had now.
                    (Err(PcuError::Authentication { doing, .. }), Some(detail)) => {
                        Err(PcuError::Busy { doing, detail })
                    }
                    (sent, _) => sent,
                }
            }
        }
    }

    fn log_in(&mut self, deadline: Deadline) -> Result<(), PcuError> {
        self.login = Login::None;
        let sessions = match (self.root.link("/Links/Sessions"), self.root.link("/SessionService")) {
            (Some(link), _) => self.local(link)?,
            (None, Some(link)) => format!("{}/Sessions", self.local(link)?.trim_end_matches('/')),
            (None, None) => {
                self.login = Login::Basic { instead: None };
                return Ok(());
            }
        };
        let (user, password) = self.client.credentials()?;
        let credentials = Credentials { user_name: &user, password: password.reveal() };
        let body = Zeroizing::new(serde_json::to_vec(&credentials).expect("text is JSON"));
        let reply = self.send(&Verb::POST, &sessions, None, &body, deadline)?;
        let doing = format!("logging in to {} as {user}", self.origin());
        let token = reply.header("x-auth-token").map(|token| Secret::new(token.to_owned()));
        self.login = match (reply.is_success(), token) {
            (true, Some(token)) => Login::Session { token, path: self.session(&reply) },
            (true, None) => Login::Basic { instead: None },
            (false, _) => match refusal::of(doing, &reply) {
                refused @ (PcuError::Authentication { .. } | PcuError::Privilege { .. }) => return Err(refused),
                PcuError::Busy { detail, .. } => Login::Basic { instead: Some(detail) },
                _ => Login::Basic { instead: None },
            },
        };
        Ok(())
    }

    /// Where a new session is.
    fn session(&self, reply: &Reply) -> Option<String> {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        self.client.local(reply.header("location").or_else(|| link(&body))?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Login::Session { path: Some(path), .. } = &self.login {
            let path = path.clone();
            // Whether it works or not, there is nothing more to do.
            let _ = self.send_once(&Verb::DELETE, &path, None, &[], Deadline::after(LOGOUT));
        }
    }
}

fn success(doing: String, reply: Reply) -> Result<Reply, PcuError> {
    if reply.is_success() { Ok(reply) } else { Err(refusal::of(doing, &reply)) }
}

fn is_about_precondition(body: &Value) -> bool {
    refusal::messages(body).iter().any(|message| message.key.starts_with("Precondition"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_claimed_until_one_is_believed() {
        let check = |head: Option<&str>, body: Value, expected: &[Option<&str>]| {
            let resource = Resource { path: "/".into(), body, etag: head.map(str::to_owned) };
            let claims = resource.preconditions();
            assert_eq!(claims.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        };
        let body = |tag: &str| serde_json::json!({ "@odata.etag": tag });
        check(None, Value::Null, &[None, Some("*")]);
        check(Some("\"1\""), Value::Null, &[Some("\"1\""), None]);
        check(Some("\"1\""), body("\"1\""), &[Some("\"1\""), None]);
        check(Some("\"1\""), body("\"2\""), &[Some("\"1\""), Some("\"2\""), None]);
        check(None, body("1\r\nx: y"), &[None, Some("*")]);
        check(None, body("W/\"1\""), &[Some("W/\"1\""), Some("\"1\""), None]);
    }
}
