//! The client side of central: TLS 1.3 to a pinned certificate authority, with a key of our own as identity.
//!
//! Non-goals: any other server than central, redirects, proxies, cookies.

mod error;
mod identity;
mod resolve;

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use orrery_protocol::{ArtifactRef, Refusal};
use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body, SendBody,
    http::{Request, Response},
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
    unversioned::transport::DefaultConnector,
};

/// Parsers that are private otherwise, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::resolve::parse_any as dns_answer;
}

pub use error::TransportError;
pub use identity::{Identity, IdentityError, spki_sha256};
pub use resolve::{LookupError, Resolver, lookup};
pub use ureq::http::Method;

/// The longest JSON answer that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;

/// How long connecting may take: a far-away site behind a slow link answers well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the other side may stay silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// A client of the central at `base_url`, which must chain to the authority in `ca_pem`.
    ///
    /// # Errors
    /// The URL is no `https://` URL, or the certificate is none.
    pub fn new(base_url: &str, ca_pem: &str, identity: &Identity, resolver: Resolver) -> Result<Self, TransportError> {
        let base = base_url.trim_end_matches('/').to_owned();
        if !base.starts_with("https://") {
            return Err(TransportError::Setup { what: format!("{base} is not an https:// URL") });
        }
        let ca = Certificate::from_pem(ca_pem.as_bytes())
            .map_err(|e| TransportError::Setup { what: format!("the pinned CA certificate cannot be read: {e}") })?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&[ca]))
            .client_cert(Some(identity.client_cert()))
            .unversioned_rustls_crypto_provider(Arc::new(tls13_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
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
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        Ok(Self { base, agent })
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
        self.run(method, path, None, body).map(drop)
    }

    /// A request without a body whose answer is of no interest.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn call(&self, method: Method, path: &str) -> Result<(), TransportError> {
        self.run(method, path, None, SendBody::none()).map(drop)
    }

    /// `POST` of a JSON value that is answered with bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn post_for_bytes(&self, path: &str, body: &impl Serialize, limit: u64) -> Result<Vec<u8>, TransportError> {
        let body = self.encode(path, body)?;
        let response = self.run(Method::POST, path, None, body)?;
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
        self.run(Method::PUT, path, None, SendBody::from_reader(reader)).map(drop)
    }

    /// The content of an artifact from byte `from` on. What it yields is unproven.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn artifact(&self, artifact: &ArtifactRef, from: u64) -> Result<ArtifactStream, TransportError> {
        let path = format!("/v1/artifacts/{}", artifact.sha256);
        let response = self.run(Method::GET, &path, (from > 0).then_some(from), SendBody::none())?;
        if from > 0 && response.status().as_u16() != 206 {
            return Err(TransportError::Answer {
                url: self.url(&path),
                what: "the server ignored the range of a resumed download".into(),
            });
        }
        let expected = artifact.size.saturating_sub(from);
        // One byte more than named, so that a body that goes on is noticed by whoever verifies.
        let reader = response.into_body().into_with_config().limit(expected + 1).reader();
        Ok(ArtifactStream { url: self.url(&path), reader, received: 0, expected })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn encode(&self, path: &str, body: &impl Serialize) -> Result<SendBody<'static>, TransportError> {
        SendBody::from_json(body).map_err(|e| error::from_ureq(&self.url(path), 0, e))
    }

    fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: SendBody<'_>) -> Result<T, TransportError> {
        let response = self.run(method, path, None, body)?;
        let bytes = self.read_all(path, response, MAX_JSON)?;
        serde_json::from_slice(&bytes).map_err(|e| TransportError::Answer {
            url: self.url(path),
            what: format!("the answer is not understood: {e}"),
        })
    }

    fn run(
        &self,
        method: Method,
        path: &str,
        from: Option<u64>,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, TransportError> {
        let url = self.url(path);
        let mut request = Request::builder().method(method).uri(&url);
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(body).map_err(|e| TransportError::Setup { what: format!("{url}: {e}") })?;
        let response = self.agent.run(request).map_err(|e| error::from_ureq(&url, 0, e))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(refused(url, status.as_u16(), response)) }
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

/// ring, without anything older than TLS 1.3: a version that has no cipher suite is not offered.
fn tls13_provider() -> rustls::crypto::CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
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
