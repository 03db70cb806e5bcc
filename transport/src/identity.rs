//! Who we are towards central: a P-256 key, shown in a certificate that it signs itself.

use orrery_protocol::Digest;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use thiserror::Error;
use ureq::tls::{Certificate, ClientCert, PrivateKey};

/// Identity of a client. Central looks at its key only.
#[derive(Debug, Clone)]
pub struct Identity {
    cert: ClientCert,
    spki: Digest,
}

/// No identity can be made of a key.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Not a P-256 key, PKCS#8 in PEM.
    #[error("reading the private key (it must be a P-256 key, PKCS#8 in PEM)")]
    Key(#[source] rcgen::Error),
    /// No new key can be made.
    #[error("drawing a private key")]
    Draw(#[source] rcgen::Error),
    /// The TLS library takes no such key.
    #[error("handing the private key to TLS")]
    Unusable(#[source] ureq::Error),
    /// The certificate around it.
    #[error("making a certificate for the private key")]
    Certificate(#[source] rcgen::Error),
}

impl Identity {
    /// The identity of the private key in `key_pem`.
    ///
    /// # Errors
    /// It is no P-256 key.
    pub fn from_pem(key_pem: &str) -> Result<Self, IdentityError> {
        let key = parse(key_pem)?;
        let params = CertificateParams::new(Vec::new()).map_err(IdentityError::Certificate)?;
        let certificate = params.self_signed(&key).map_err(IdentityError::Certificate)?;
        let der = Certificate::from_der(certificate.der()).to_owned();
        let private = PrivateKey::from_pem(key_pem.as_bytes()).map_err(IdentityError::Unusable)?;
        Ok(Self { cert: ClientCert::new_with_certs(&[der], private), spki: digest(&key) })
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo (RFC 5280) in DER: the name central knows it by.
    pub fn spki_sha256(&self) -> Digest {
        self.spki
    }

    pub(crate) fn client_cert(&self) -> ClientCert {
        self.cert.clone()
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of the private key in `key_pem`.
///
/// # Errors
/// It is no P-256 key.
pub fn spki_sha256(key_pem: &str) -> Result<Digest, IdentityError> {
    parse(key_pem).map(|key| digest(&key))
}

/// A new private key, PKCS#8 in PEM.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn new_key_pem() -> Result<String, IdentityError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(|key| key.serialize_pem()).map_err(IdentityError::Draw)
}

fn parse(key_pem: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem_and_sign_algo(key_pem, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Key)
}

fn digest(key: &KeyPair) -> Digest {
    Digest::of(&key.subject_public_key_info())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_name() {
        let pem = new_key_pem().unwrap();
        assert_eq!(Identity::from_pem(&pem).unwrap().spki_sha256(), spki_sha256(&pem).unwrap());
    }

    #[test]
    fn other_keys_are_refused() {
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(Identity::from_pem(bad).is_err());
        }
    }
}
