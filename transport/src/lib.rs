//! The client side of central: TLS 1.3 to a pinned certificate authority, with a key of our own as identity.
//!
//! Non-goals: any other server than central, redirects, proxies, cookies.

mod canned;
mod date;
mod error;
mod identity;
mod mirror;
mod resolve;

use std::{
    io::{self, Read},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use orrery_protocol::{ArtifactRef, Refusal};
use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body, SendBody,
    http::{Request, Response},
    tls::{PemItem, RootCerts, TlsConfig, TlsConfigBuilder, TlsProvider, parse_pem},
    unversioned::transport::{Connector, DefaultConnector},
};

/// Parsers that are private otherwise, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::canned::client;
    pub use crate::resolve::parse_any as dns_answer;
}

pub use error::TransportError;
pub use identity::{Identity, IdentityError, new_key_pem, spki_sha256};
pub use mirror::Mirror;
pub use resolve::{LookupError, Resolver, lookup};
pub use ureq::http::Method;

/// The longest JSON answer that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;

/// How long connecting may take: a far-away site behind a slow link answers well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the other side may stay silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// The header by which central tells the people at a node something, in one line.
const NOTICE_HEADER: &str = "orrery-notice";

/// An answer, and what its headers say beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The body.
    pub bytes: Vec<u8>,
    /// A line for the people at the node.
    pub notice: Option<String>,
    /// The server's clock, in Unix seconds.
    pub date: Option<u64>,
}

/// A client of one central. Keeps its connection.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    agent: Agent,
}

/// The body of an artifact, from wherever the download began.
pub struct ArtifactStream {
    url: String,
    reader: ureq::BodyReader<'static>,
    received: u64,
    expected: u64,
}

impl Client {
    /// A client of the central at `base_url`, which must chain to one of the authorities in `ca_pem`, one after the other.
    ///
    /// # Errors
    /// The URL is no `https://` URL, or a certificate is none.
    pub fn new(base_url: &str, ca_pem: &str, identity: &Identity, resolver: Resolver) -> Result<Self, TransportError> {
        let tls = tls().client_cert(Some(identity.client_cert())).root_certs(authorities(ca_pem)?);
        Self::with_tls(base_url, tls.build(), resolver)
    }

    fn with_tls(base_url: &str, tls: TlsConfig, resolver: Resolver) -> Result<Self, TransportError> {
        let base = base_url.trim_end_matches('/').to_owned();
        if !base.starts_with("https://") {
            return Err(TransportError::Setup { what: format!("{base} is not an https:// URL") });
        }
        Ok(Self { base, agent: agent(tls, resolver, true) })
    }

    /// The base URL.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// `GET` of a JSON value.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, TransportError> {
        self.json(Method::GET, path, SendBody::none())
    }

    /// A request with a JSON body whose answer is a JSON value.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, TransportError> {
        let body = self.encode(path, body)?;
        self.json(method, path, body)
    }

    /// A request with a JSON body whose answer is of no interest.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<(), TransportError> {
        let body = self.encode(path, body)?;
        self.run(method, path, body).map(drop)
    }

    /// A request without a body whose answer is of no interest.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn call(&self, method: Method, path: &str) -> Result<(), TransportError> {
        self.run(method, path, SendBody::none()).map(drop)
    }

    /// `POST` of a JSON value that is answered with bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn post_for_bytes(&self, path: &str, body: &impl Serialize, limit: u64) -> Result<Vec<u8>, TransportError> {
        self.post_for_answer(path, body, limit).map(|answer| answer.bytes)
    }

    /// As [`Client::post_for_bytes`], with what the answer's headers say.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn post_for_answer(&self, path: &str, body: &impl Serialize, limit: u64) -> Result<Answer, TransportError> {
        let body = self.encode(path, body)?;
        let response = self.run(Method::POST, path, body)?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (notice, date) = (header(NOTICE_HEADER), header("date").and_then(|text| date::unix_seconds(&text)));
        Ok(Answer { bytes: self.read_all(path, response, limit)?, notice, date })
    }

    /// `POST` of raw bytes that is answered with a stream of at most `limit` bytes. What it yields is unproven.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn post_for_stream(&self, path: &str, mut bytes: &[u8], limit: u64) -> Result<ArtifactStream, TransportError> {
        let response = self.run(Method::POST, path, SendBody::from_reader(&mut bytes))?;
        let expected = response.body().content_length().unwrap_or(limit);
        let reader = response.into_body().into_with_config().limit(limit).reader();
        Ok(ArtifactStream { url: self.url(path), reader, received: 0, expected })
    }

    /// `GET` of bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn get_bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, TransportError> {
        let response = self.run(Method::GET, path, SendBody::none())?;
        self.read_all(path, response, limit)
    }

    /// `PUT` of raw bytes, answered with a JSON value.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn put_bytes<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, TransportError> {
        let mut reader = bytes;
        self.json(Method::PUT, path, SendBody::from_reader(&mut reader))
    }

    /// `PUT` of a stream of unknown length.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn put_stream(&self, path: &str, reader: &mut dyn Read) -> Result<(), TransportError> {
        self.run(Method::PUT, path, SendBody::from_reader(reader)).map(drop)
    }

    /// The content of an artifact from byte `from` on. What it yields is unproven.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn artifact(&self, artifact: &ArtifactRef, from: u64) -> Result<ArtifactStream, TransportError> {
        self.artifact_part(artifact, from..artifact.size.max(from))
    }

    /// The bytes `range` of an artifact. What it yields is unproven, and may go on after them.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn artifact_part(&self, artifact: &ArtifactRef, range: Range<u64>) -> Result<ArtifactStream, TransportError> {
        artifact_stream(&self.agent, self.url(&format!("/v1/artifacts/{}", artifact.sha256)), artifact, range)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn encode(&self, path: &str, body: &impl Serialize) -> Result<SendBody<'static>, TransportError> {
        SendBody::from_json(body).map_err(|e| error::from_ureq(&self.url(path), 0, e))
    }

    fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: SendBody<'_>) -> Result<T, TransportError> {
        let response = self.run(method, path, body)?;
        let bytes = self.read_all(path, response, MAX_JSON)?;
        serde_json::from_slice(&bytes).map_err(|e| TransportError::Answer {
            url: self.url(path),
            what: format!("the answer is not understood: {e}"),
        })
    }

    fn run(&self, method: Method, path: &str, body: SendBody<'_>) -> Result<Response<Body>, TransportError> {
        run(&self.agent, self.url(path), None, method, body)
    }

    fn read_all(&self, path: &str, response: Response<Body>, limit: u64) -> Result<Vec<u8>, TransportError> {
        let url = self.url(path);
        let expected = response.body().content_length();
        let mut bytes = Vec::new();
        let mut reader = response.into_body().into_with_config().limit(limit + 1).reader();
        reader.read_to_end(&mut bytes).map_err(|e| error::from_io(&url, bytes.len() as u64, expected, e))?;
        if bytes.len() as u64 > limit {
            return Err(TransportError::Answer { url, what: format!("the answer is longer than {limit} bytes") });
        }
        Ok(bytes)
    }
}

/// `GET` of bytes, at most `limit` of them, from a server that proves nothing: whoever is on the way may have written them.
///
/// There is one use for this. A node whose medium pins an authority that its operator has replaced since cannot verify the
/// server, and gets the signed updates that lead to the new authority this way. Nothing of the answer counts but
/// the signatures in it; whoever meddles can only keep the node where it is.
///
/// # Errors
/// [`TransportError`].
pub fn get_bytes_unverified(
    base_url: &str,
    path: &str,
    identity: &Identity,
    resolver: Resolver,
    limit: u64,
) -> Result<Vec<u8>, TransportError> {
    let tls = tls().client_cert(Some(identity.client_cert())).disable_verification(true);
    Client::with_tls(base_url, tls.build(), resolver)?.get_bytes(path, limit)
}

/// The certificates in `pem`, at least one.
fn authorities(pem: &str) -> Result<RootCerts, TransportError> {
    let refuse = |what: &dyn std::fmt::Display| TransportError::Setup {
        what: format!("the pinned CA certificates cannot be read: {what}"),
    };
    let mut found = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        match item.map_err(|e| refuse(&e))? {
            PemItem::Certificate(certificate) => found.push(certificate),
            _ => return Err(refuse(&"there is something else among them")),
        }
    }
    if found.is_empty() { Err(refuse(&"there is none")) } else { Ok(RootCerts::new_with_certs(&found)) }
}

fn tls() -> TlsConfigBuilder {
    TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(Arc::new(tls13_provider()))
}

fn agent(tls: TlsConfig, resolver: Resolver, https_only: bool) -> Agent {
    agent_over(DefaultConnector::default(), tls, resolver, https_only)
}

fn agent_over(connector: impl Connector, tls: TlsConfig, resolver: Resolver, https_only: bool) -> Agent {
    let config = Agent::config_builder()
        .tls_config(tls)
        .https_only(https_only)
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE_TIMEOUT))
        .timeout_per_read(Some(SILENCE_TIMEOUT))
        .timeout_per_write(Some(SILENCE_TIMEOUT))
        .input_buffer_size(128 * 1024)
        .user_agent(concat!("orrery/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::with_parts(config, connector, resolver)
}

/// One request, answered with success.
fn run(
    agent: &Agent,
    url: String,
    range: Option<String>,
    method: Method,
    body: SendBody<'_>,
) -> Result<Response<Body>, TransportError> {
    let mut request = Request::builder().method(method).uri(&url);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let request = request.body(body).map_err(|e| TransportError::Setup { what: format!("{url}: {e}") })?;
    let response = agent.run(request).map_err(|e| error::from_ureq(&url, 0, e))?;
    let status = response.status();
    if status.is_success() { Ok(response) } else { Err(refused(url, status.as_u16(), response)) }
}

/// The bytes `range` of `artifact`, which is at `url`. The whole is asked for without a range: that, any server can.
fn artifact_stream(
    agent: &Agent,
    url: String,
    artifact: &ArtifactRef,
    range: Range<u64>,
) -> Result<ArtifactStream, TransportError> {
    let asked = match range.end < artifact.size {
        true => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
        false => (range.start > 0).then(|| format!("bytes={}-", range.start)),
    };
    let response = run(agent, url.clone(), asked, Method::GET, SendBody::none())?;
    if range.start > 0 && response.status().as_u16() != 206 {
        return Err(TransportError::Answer { url, what: "the server ignored the range that was asked for".into() });
    }
    let expected = range.end.saturating_sub(range.start);
    // One byte more than named, so that a body that goes on is noticed by whoever verifies.
    let reader = response.into_body().into_with_config().limit(expected + 1).reader();
    Ok(ArtifactStream { url, reader, received: 0, expected })
}

/// ring, without anything older than TLS 1.3: a version that has no cipher suite is not offered.
///
/// ChaCha20-Poly1305 (RFC 8439) comes first: a processor with AES instructions runs AES-GCM faster still, but any processor runs
/// this one faster than a node's network, with or without them.
fn tls13_provider() -> rustls::crypto::CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    provider
}

/// What central says of a request it does not fulfil.
fn refused(url: String, status: u16, response: Response<Body>) -> TransportError {
    let mut text = Vec::new();
    // The answer only explains the failure; without it, the status has to do.
    let _ = response.into_body().into_with_config().limit(64 * 1024).reader().read_to_end(&mut text);
    match serde_json::from_slice::<Refusal>(&text) {
        Ok(Refusal { error, message }) => TransportError::Refused { url, status, class: error, message },
        Err(_) => TransportError::Refused { url, status, class: String::new(), message: "no reason given".into() },
    }
}

impl ArtifactStream {
    /// The error behind a failed read, in this crate's terms.
    pub fn explain(&self, error: io::Error) -> TransportError {
        error::from_io(&self.url, self.received, Some(self.expected), error)
    }
}

impl Read for ArtifactStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buf)?;
        self.received += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_authorities_may_stand_one_after_the_other() {
        let certificate = || {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem()
        };
        let count = |roots| match roots {
            RootCerts::Specific(found) => found.len(),
            _ => 0,
        };
        let check = |pem: &str, expect: Option<usize>| assert_eq!(authorities(pem).ok().map(count), expect);
        let (one, two) = (certificate(), certificate());
        check(&one, Some(1));
        check(&format!("{one}{two}"), Some(2));
        check(&format!("# old\n{one}\n# new\n{two}"), Some(2));
        check("", None);
        check(&format!("{one}{}", new_key_pem().unwrap()), None);
    }
}
