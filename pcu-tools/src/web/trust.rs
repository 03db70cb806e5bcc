//! Whom to believe that it is the device: the pinned certificate, or one that an authority vouches for.

use std::{
    fs,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{Method, PcuError, Waiver};

/// SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

/// Why a device is not believed, with the fingerprint that it has.
#[derive(Debug, Error)]
pub(super) enum Distrust {
    #[error("its certificate has the fingerprint {came}, and only {pinned} is believed")]
    Other { came: Fingerprint, pinned: Fingerprint },
    #[error("{why}; its certificate has the fingerprint {came}")]
    NotVouchedFor { why: String, came: Fingerprint },
    #[error(
        "it does not prove that it has the key of its certificate ({error}): somebody else shows it, or its key is shorter than 2048 \
         bits or its certificate of a version before 3, which newer firmware or a new certificate mends; it has the fingerprint {came}"
    )]
    Unproven { error: Error, came: Fingerprint },
}

/// Checks a device's certificate as its method says, and always that the device has the certificate's key.
#[derive(Debug)]
pub(super) struct Trust {
    provider: Arc<CryptoProvider>,
    whom: Whom,
}

#[derive(Debug)]
enum Whom {
    /// Who has exactly this certificate, whatever it says.
    Pinned(Fingerprint),
    /// Whom one of the authorities vouches for. Where there are none: nobody.
    VouchedFor { by: String, authorities: Option<Arc<WebPkiServerVerifier>> },
    /// Waived.
    Anyone,
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// As 64 digits, with or without colons.
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.replace(':', ""), &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl Trust {
    /// What `method` says: its fingerprint, else its waiver, else its authorities, else the system's.
    pub(super) fn of(method: &Method, provider: Arc<CryptoProvider>) -> Result<Self, PcuError> {
        let whom = match (&method.fingerprint, &method.ca) {
            (Some(text), _) => {
                let parsed = Fingerprint::parse(text);
                Whom::Pinned(
                    parsed.ok_or_else(|| method.misconfigured("the fingerprint is not 64 hexadecimal digits"))?,
                )
            }
            (None, _) if method.waivers.contains(&Waiver::AnyIdentity) => Whom::Anyone,
            (None, Some(path)) => {
                let wrong =
                    |what: String| method.misconfigured(&format!("the authorities in {}: {what}", path.display()));
                let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(wrong("there is none".into()));
                }
                vouched_for(path.display().to_string(), Arc::new(roots), &provider)
            }
            (None, None) => vouched_for("this system".into(), system_roots(), &provider),
        };
        Ok(Self { provider, whom })
    }
}

fn vouched_for(by: String, roots: Arc<RootCertStore>, provider: &Arc<CryptoProvider>) -> Whom {
    // It fails when there are no roots only.
    let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().ok();
    Whom::VouchedFor { by, authorities }
}

/// The system's authorities, read once. Those that cannot be read vouch for nobody.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let came = Fingerprint::of(certificate);
        match &self.whom {
            Whom::Anyone => Ok(ServerCertVerified::assertion()),
            Whom::Pinned(pinned) if came == *pinned => Ok(ServerCertVerified::assertion()),
            Whom::Pinned(pinned) => Err(distrust(Distrust::Other { came, pinned: *pinned })),
            Whom::VouchedFor { by, authorities: None } => {
                Err(distrust(Distrust::NotVouchedFor { why: format!("{by} has no certificates of authorities"), came }))
            }
            Whom::VouchedFor { by, authorities: Some(authorities) } => authorities
                .verify_server_cert(certificate, intermediates, name, ocsp, now)
                .map_err(|error| distrust(Distrust::NotVouchedFor { why: explain(by, &error), came })),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
            .map_err(|error| distrust(Distrust::Unproven { error, came: Fingerprint::of(certificate) }))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
            .map_err(|error| distrust(Distrust::Unproven { error, came: Fingerprint::of(certificate) }))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn distrust(why: Distrust) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// What is wrong with a certificate, for people.
fn explain(by: &str, error: &Error) -> String {
    use CertificateError as Wrong;
    match error {
        Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
            "its certificate has expired by this system's clock".into()
        }
        Error::InvalidCertificate(Wrong::NotValidYet | Wrong::NotValidYetContext { .. }) => {
            "its certificate is not valid yet by this system's clock".into()
        }
        Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            "its certificate is for other names".into()
        }
        // A self-signed certificate that may sign others is an error of another kind to webpki; an authority of the same name as
        // ours has another key.
        Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature | Wrong::Other(_)) => {
            format!("nobody whom {by} trusts vouches for it")
        }
        other => format!("its certificate is not acceptable ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let plain = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let colons: Vec<_> = (0..32).map(|at| plain[2 * at..][..2].to_uppercase()).collect();
        let parsed = Fingerprint::parse(plain).unwrap();
        assert_eq!(parsed.to_string(), plain);
        assert_eq!(Fingerprint::parse(&colons.join(":")), Some(parsed));
        for wrong in ["", "00", &plain[1..], &format!("{plain}00"), &plain.replace('a', "g"), &plain.replace("aa", "é")]
        {
            assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
        }
    }
}
