//! Looking into an envelope without the keys to verify it.

use orrery_protocol::{Digest, Envelope, EnvelopeError, PayloadType};

/// What an envelope claims. Nothing of it is proven: nodes verify, with keys that neither central nor the command line need to
/// have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked<'a> {
    /// What it claims to hold.
    pub payload_type: PayloadType,
    /// The payload.
    pub payload: &'a [u8],
    /// Ids of the keys that claim to have signed it.
    pub signers: Vec<Digest>,
}

/// Reads the frame.
///
/// # Errors
/// The bytes are not exactly one envelope.
pub fn peek(bytes: &[u8]) -> Result<Peeked<'_>, EnvelopeError> {
    let envelope = Envelope::parse(bytes)?;
    Ok(Peeked {
        payload_type: envelope.claimed_type(),
        payload: envelope.unverified_payload(),
        signers: envelope.claimed_signers().collect(),
    })
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{SigningKey, sign};

    use super::*;

    #[test]
    fn parts_of_an_envelope() {
        let keys = [1u8, 2].map(|n| SigningKey::from_scalar(&[n; 32]).unwrap());
        for payload_type in [PayloadType::BootScript, PayloadType::ReleaseManifest, PayloadType::TrustUpdate] {
            let bytes = sign(payload_type, b"{}", &[&keys[0], &keys[1]]).unwrap();
            let signers = keys.iter().map(|k| k.public().id()).collect();
            assert_eq!(peek(&bytes), Ok(Peeked { payload_type, payload: b"{}", signers }));
            assert!(peek(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
