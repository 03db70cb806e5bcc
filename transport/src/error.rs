//! What can go wrong between a node and central, each kind by its own name.

use std::io;

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

/// A failed exchange with central.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The client cannot even be set up.
    #[error("setting up the connection to central: {what}")]
    Setup {
        /// What is wrong.
        what: String,
    },
    /// The host's name has no address.
    #[error("resolving the host of {url}: {what}; check the name servers and the name")]
    Dns {
        /// The URL.
        url: String,
        /// What the name servers said.
        what: String,
    },
    /// No connection.
    #[error("connecting to {url}: {source}; check the address, firewalls, and that central is running")]
    Connect {
        /// The URL.
        url: String,
        /// The cause.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("TLS with {url}: {what}")]
    Tls {
        /// The URL.
        url: String,
        /// Who refused what, and what to try.
        what: String,
    },
    /// Silence.
    #[error("{url} did not answer in time after {received} bytes ({phase})")]
    Timeout {
        /// The URL.
        url: String,
        /// Bytes of the answer received before.
        received: u64,
        /// What was being waited for.
        phase: String,
    },
    /// An HTTP status that is no success.
    #[error("{url} answered {status} {class}: {message}")]
    Refused {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Central's word for it; empty if it gave none.
        class: String,
        /// Central's sentence for it.
        message: String,
    },
    /// The connection ended in the middle of an answer.
    #[error("{url} broke off after {received} bytes{}: {source}", .expected.map(|n| format!(" of {n}")).unwrap_or_default())]
    ShortRead {
        /// The URL.
        url: String,
        /// Bytes received.
        received: u64,
        /// Bytes expected, where known.
        expected: Option<u64>,
        /// The cause.
        source: io::Error,
    },
    /// An answer that makes no sense.
    #[error("{url}: {what}")]
    Answer {
        /// The URL.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Sorts an error of the HTTP library that came after `received` bytes of the answer.
pub(crate) fn from_ureq(url: &str, received: u64, error: ureq::Error) -> TransportError {
    let url = url.to_owned();
    match error {
        ureq::Error::HostNotFound => TransportError::Dns { url, what: "no address found".into() },
        ureq::Error::Timeout(phase) => TransportError::Timeout { url, received, phase: phase.to_string() },
        ureq::Error::Io(source) => from_io(&url, received, None, source),
        ureq::Error::Rustls(error) => TransportError::Tls { url, what: explain_tls(&error) },
        ureq::Error::Tls(what) => TransportError::Tls { url, what: what.into() },
        ureq::Error::ConnectionFailed => {
            TransportError::Connect { url, source: io::Error::from(io::ErrorKind::NotConnected) }
        }
        other => TransportError::Answer { url, what: other.to_string() },
    }
}

/// Sorts an I/O error that came after `received` bytes of the answer.
pub(crate) fn from_io(url: &str, received: u64, expected: Option<u64>, source: io::Error) -> TransportError {
    let url = url.to_owned();
    let inner = source.get_ref();
    if let Some(error) = inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return TransportError::Tls { url, what: explain_tls(error) };
    }
    if let Some(error) = inner.and_then(|e| e.downcast_ref::<crate::LookupError>()) {
        return TransportError::Dns { url, what: error.to_string() };
    }
    if let Some(ureq::Error::Timeout(phase)) = inner.and_then(|e| e.downcast_ref::<ureq::Error>()) {
        return TransportError::Timeout { url, received, phase: phase.to_string() };
    }
    if let Some(error) = inner.and_then(|e| e.source()).and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return TransportError::Tls { url, what: explain_tls(error) };
    }
    use io::ErrorKind as Kind;
    match source.kind() {
        Kind::TimedOut | Kind::WouldBlock => TransportError::Timeout { url, received, phase: "receiving".into() },
        Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
            TransportError::Connect { url, source }
        }
        _ => TransportError::ShortRead { url, received, expected, source },
    }
}

/// What a TLS failure means for an operator.
fn explain_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the server's certificate is not from the pinned CA: this is not our \
                                                central, or something on the way intercepts TLS"
                    .into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the server's certificate has expired by this clock: {why}; check both clocks")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the server's certificate is not valid yet by this clock: {why}; check both clocks")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the server's certificate is for other names: {why}; add this one with `--host`")
            }
            other => format!("the server's certificate is refused: {other}"),
        },
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => "the server does not speak TLS 1.3".into(),
        rustls::Error::AlertReceived(alert) => format!("the server refused the handshake: {alert:?}"),
        other => other.to_string(),
    }
}
