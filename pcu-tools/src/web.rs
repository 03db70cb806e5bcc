//! HTTP to devices, over TLS unless the method waives it: bounded in bytes and time, and only to the device itself.
//!
//! Non-goals: cookies, compressed bodies, proxies, HTTP/2; and TLS older than 1.2, which rustls does not have.

mod auth;
mod failure;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

use ureq::{
    Agent, RequestExt,
    http::{HeaderMap, Request, StatusCode, Uri, uri::PathAndQuery},
    unversioned::{
        resolver::DefaultResolver,
        transport::{Connector, TcpConnector},
    },
};

pub(crate) use auth::WebAuth;
pub(crate) use failure::clip;
pub(crate) use ureq::http::Method as Verb;

use crate::{Deadline, Method, PcuError, Waiver};

/// Longest body that is read, in bytes.
const BODY: u64 = 1 << 20;
/// Longest head of an answer that is read, in bytes.
const HEAD: usize = 32 << 10;
/// How often in a row a page may point to another one of the same device.
const REDIRECTS: usize = 3;

/// Talks to one device. Holding one proves nothing: each connection is checked when it is made.
#[derive(Debug)]
pub(crate) struct WebClient {
    /// Asks over a connection that it keeps.
    kept: Agent,
    /// Whether [`Self::kept`] may have a connection.
    connected: bool,
    /// Asks over a new connection each time: a device may close one that is kept just when a request is on its way, and nobody
    /// knows then whether it was carried out.
    fresh: Agent,
    /// `https://bmc1:443`, with nothing after it.
    origin: String,
    method: Method,
    /// What [`WebAuth`] needs from one request to the next.
    account: auth::Account,
}

/// What a device answered, whatever its status.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body, complete.
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the status says success.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl WebClient {
    /// A client for the device of `method`: `HOST`, `HOST:PORT`, or either behind `https://` or `http://`. The latter needs the
    /// waiver `clear-text`. `default_port` is that of https; http without a port goes to 80 if that one is 443, else to it, too.
    ///
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// When the address, the fingerprint or the file of authorities are not as they should be, or the waiver is missing.
    pub(crate) fn new(method: &Method, default_port: u16) -> Result<Self, PcuError> {
        let (secure, rest) = match method.address.split_once("://") {
            None => (true, method.address.as_str()),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some((scheme, _)) => return Err(method.misconfigured(&format!("{scheme} is neither https nor http"))),
        };
        if !secure {
            method.require(Waiver::ClearText, "over http, anybody on the way reads the password")?;
        }
        let port = if !secure && default_port == 443 { 80 } else { default_port };
        let address = rest.strip_suffix('/').unwrap_or(rest).to_owned();
        let (host, port) = Method { address, ..method.clone() }.host_and_port(port)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let origin = format!("{}://{host}:{port}", if secure { "https" } else { "http" });
        let is_bare = |uri: Uri| uri.path() == "/" && uri.query().is_none();
        if host.contains('@') || !origin.parse().is_ok_and(is_bare) {
            return Err(method.misconfigured("the address is neither HOST nor HOST:PORT"));
        }
        let tls = tls::TlsConnector::new(method)?;
        Ok(Self {
            kept: agent(tls.clone(), 1),
            connected: false,
            fresh: agent(tls, 0),
            origin,
            method: method.clone(),
            account: auth::Account::default(),
        })
    }

    /// `https://bmc1:443`, for messages.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The path and query of `link` if it leads to this device: an absolute path, or a whole URL of this origin.
    pub(crate) fn local(&self, link: &str) -> Option<String> {
        let path = match link.strip_prefix(self.origin.as_str()) {
            Some("") => "/",
            Some(rest) => rest,
            // Without the port, where it is the scheme's own.
            None => match self.bare_origin().and_then(|origin| link.strip_prefix(origin)) {
                Some("") => "/",
                Some(rest) => rest,
                None => link,
            },
        };
        // Two slashes begin another host's name.
        if !path.starts_with('/') || path.starts_with("//") {
            return None;
        }
        path.split('#').next()?.parse::<PathAndQuery>().ok().map(|path| path.to_string())
    }

    /// Sends a request and reads the answer, whatever its status. A page that a GET is sent on to is fetched if it is the same
    /// device's.
    ///
    /// # Errors
    /// When the device cannot be reached, is not who it should be, does not end within the deadline, or answers what is no HTTP,
    /// too long, or sends us to another host.
    pub(crate) fn request(
        &mut self,
        verb: &Verb,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        let mut path = path.to_owned();
        for _ in 0..=REDIRECTS {
            let reply = self.exchange(verb, &path, headers, body, deadline)?;
            if *verb != Verb::GET || !matches!(reply.status, 301..=303 | 307 | 308) {
                return Ok(reply);
            }
            let Some(location) = reply.header("location") else { return Ok(reply) };
            let onward = match location.contains("://") || location.starts_with('/') {
                true => self.local(location),
                // Beside the page that says it.
                false => path
                    .split(['?', '#'])
                    .next()
                    .and_then(|page| page.rsplit_once('/'))
                    .and_then(|(folder, _)| self.local(&format!("{folder}/{location}"))),
            };
            path = onward.ok_or_else(|| PcuError::BadAnswer {
                doing: self.doing(verb, &path),
                detail: format!("it sends us on to {}, which is not this device", failure::clip(location)),
            })?;
        }
        Err(PcuError::BadAnswer {
            doing: self.doing(verb, &path),
            detail: "every page sends us on to another one".into(),
        })
    }

    /// What a request is called in messages. Queries are left out: old devices want passwords there.
    pub(crate) fn doing(&self, verb: &Verb, path: &str) -> String {
        format!("{verb} {}{}", self.origin, path.split('?').next().unwrap_or_default())
    }

    fn bare_origin(&self) -> Option<&str> {
        let port = if self.origin.starts_with("https:") { ":443" } else { ":80" };
        self.origin.strip_suffix(port)
    }

    /// One request and its answer. What only reads is asked again when the connection that was kept turns out to be dead.
    fn exchange(
        &mut self,
        verb: &Verb,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        if *verb != Verb::GET {
            return self.exchange_by(&self.fresh, verb, path, headers, body, deadline);
        }
        match self.exchange_by(&self.kept, verb, path, headers, body, deadline) {
            Err(PcuError::Transport { .. }) if self.connected => {
                self.exchange_by(&self.fresh, verb, path, headers, body, deadline)
            }
            answered => {
                self.connected |= answered.is_ok();
                answered
            }
        }
    }

    fn exchange_by(
        &self,
        agent: &Agent,
        verb: &Verb,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        let doing = self.doing(verb, path);
        let mut request = Request::builder().method(verb).uri(format!("{}{path}", self.origin));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let malformed =
            |error: ureq::http::Error| PcuError::Configuration { doing: doing.clone(), detail: error.to_string() };
        let left = Some(deadline.left(&doing)?);
        let sent = if matches!(*verb, Verb::POST | Verb::PUT | Verb::PATCH) {
            let request = request.body(body).map_err(malformed)?;
            request.with_agent(agent).configure().timeout_global(left).run()
        } else {
            let request = request.body(()).map_err(malformed)?;
            request.with_agent(agent).configure().timeout_global(left).run()
        };
        let failed = |error| failure::of(&doing, error);
        let (head, body) = sent.map_err(failed)?.into_parts();
        let body = match head.status {
            StatusCode::NO_CONTENT => Vec::new(),
            _ => body.into_with_config().limit(BODY).read_to_vec().map_err(failed)?,
        };
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// An agent that keeps so many connections open.
fn agent(tls: tls::TlsConnector, connections: usize) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .max_response_header_size(HEAD)
        .max_idle_connections(connections)
        .user_agent(concat!("orrery-pcu/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::with_parts(config, ().chain(TcpConnector::default()).chain(tls), DefaultResolver::default())
}
