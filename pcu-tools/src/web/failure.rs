//! What the errors of HTTP and TLS mean for an operator.

use std::io;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::{PcuError, web::trust::Distrust};

/// Longest piece of a device's words in a message, in bytes.
const CLIP: usize = 200;

/// The beginning of what a device said, printable.
pub(crate) fn clip(said: &str) -> String {
    let kept: String = said.chars().take(CLIP).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if said.chars().nth(CLIP).is_some() { format!("{kept}…") } else { kept }
}

/// Sorts an error of the HTTP library.
pub(super) fn of(doing: &str, error: ureq::Error) -> PcuError {
    let doing = doing.to_owned();
    match error {
        ureq::Error::Timeout(_) => PcuError::Timeout { doing },
        ureq::Error::HostNotFound => {
            PcuError::transport(doing, io::Error::new(io::ErrorKind::NotFound, "the host's name has no address"))
        }
        ureq::Error::ConnectionFailed => PcuError::transport(doing, io::ErrorKind::NotConnected.into()),
        ureq::Error::Io(error) => from_io(doing, error),
        ureq::Error::Rustls(error) => from_tls(doing, &error),
        ureq::Error::BodyExceedsLimit(limit) => {
            PcuError::BadAnswer { doing, detail: format!("it is longer than {limit} bytes") }
        }
        other => PcuError::BadAnswer { doing, detail: clip(&other.to_string()) },
    }
}

fn from_io(doing: String, error: io::Error) -> PcuError {
    let kind = error.kind();
    match error.downcast::<ureq::Error>() {
        Ok(inner) => of(&doing, inner),
        Err(error) => match error.downcast::<rustls::Error>() {
            Ok(inner) => from_tls(doing, &inner),
            Err(_) if kind == io::ErrorKind::UnexpectedEof => {
                PcuError::transport(doing, io::Error::new(kind, "the device closed the connection early"))
            }
            Err(error) => PcuError::transport(doing, error),
        },
    }
}

fn from_tls(doing: String, error: &rustls::Error) -> PcuError {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            let detail = match other.0.downcast_ref::<Distrust>() {
                Some(distrust) => distrust.to_string(),
                None => error.to_string(),
            };
            PcuError::Identity { doing, detail }
        }
        Error::InvalidCertificate(_) => PcuError::Identity { doing, detail: error.to_string() },
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | Error::AlertReceived(
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity,
        ) => PcuError::Unsupported {
            doing,
            detail: format!(
                "its TLS is older than 1.2, or all of its ciphers are broken ones ({error}); newer firmware may help"
            ),
        },
        Error::InvalidMessage(_) => PcuError::BadAnswer {
            doing,
            detail: format!("it does not speak TLS on this port ({error}); http:// needs the waiver clear-text"),
        },
        _ => PcuError::BadAnswer { doing, detail: clip(&error.to_string()) },
    }
}
