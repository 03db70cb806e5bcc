//! The server's own key.

use russh::keys::{
    PrivateKey,
    ssh_key::private::{Ed25519Keypair, KeypairData},
};

/// An Ed25519 host key.
#[derive(Clone)]
pub struct HostKey(pub(crate) PrivateKey);

impl HostKey {
    /// The one key that follows from `seed`, so that whoever knows the seed knows the key before it was ever used. The
    /// seed is as secret as the key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair = KeypairData::from(Ed25519Keypair::from_seed(seed));
        Self(PrivateKey::new(pair, "").expect("an Ed25519 key pair is a private key"))
    }

    /// The public half in OpenSSH's one-line form.
    pub fn public_line(&self) -> String {
        self.0.public_key().to_openssh().expect("an Ed25519 key has an OpenSSH form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_key() {
        let line = HostKey::from_seed(&[7; 32]).public_line();
        assert_eq!(HostKey::from_seed(&[7; 32]).public_line(), line);
        assert_ne!(HostKey::from_seed(&[8; 32]).public_line(), line);
        // RFC 8032, section 7.1, test 1: a mistake in deriving would otherwise only be the same mistake twice.
        let seed: [u8; 32] = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let public = HostKey::from_seed(&seed).0.public_key().key_data().ed25519().unwrap().0;
        assert_eq!((public[..4].to_vec(), public[31]), (vec![0xd7, 0x5a, 0x98, 0x01], 0x1a));
    }
}
