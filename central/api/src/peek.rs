//! Looking into an envelope without a trust root.
//!
//! Central and the command line sort signed documents; they do not obey them. A node verifies before it reads.

use orrery_protocol::{Digest, Envelope, EnvelopeError, PayloadType};

/// The parts of an envelope. Nothing in it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked<'a> {
    /// What the payload claims to be.
    pub payload_type: PayloadType,
    /// The payload.
    pub payload: &'a [u8],
    /// Ids of the keys that claim to have signed it.
    pub signers: Vec<Digest>,
}

/// Takes a well-framed envelope apart.
///
/// # Errors
/// The bytes are not exactly one envelope.
pub fn peek(bytes: &[u8]) -> Result<Peeked<'_>, EnvelopeError> {
    // Layout as in `orrery_protocol`'s envelope module; parsing proves every length below.
    Envelope::parse(bytes)?;
    let payload_type =
        if bytes[8] == PayloadType::BootScript as u8 { PayloadType::BootScript } else { PayloadType::ReleaseManifest };
    let length = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
    let (payload, signatures) = bytes[16..].split_at(length);
    let signers = signatures
        .chunks_exact(32 + 64)
        .map(|entry| {
            let mut id = [0; 32];
            id.copy_from_slice(&entry[..32]);
            Digest(id)
        })
        .collect();
    Ok(Peeked { payload_type, payload, signers })
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{SigningKey, sign};

    use super::*;

    #[test]
    fn parts_of_an_envelope() {
        let keys = [1u8, 2].map(|n| SigningKey::from_scalar(&[n; 32]).unwrap());
        for payload_type in [PayloadType::BootScript, PayloadType::ReleaseManifest] {
            let bytes = sign(payload_type, b"{}", &[&keys[0], &keys[1]]).unwrap();
            let signers = keys.iter().map(|k| k.public().id()).collect();
            assert_eq!(peek(&bytes), Ok(Peeked { payload_type, payload: b"{}", signers }));
            assert!(peek(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
