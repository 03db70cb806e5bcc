//! Who this node is: its key, and what follows from it.

use orrery_protocol::{NodeConfig, Sha256};

/// Separates the seed from every other use of the node key.
const HOST_KEY_DOMAIN: &[u8] = b"orrery-ssh-host-key-v1\0";

/// The seed of the key by which this node's sshd proves itself, in safe mode as in the node OS. It follows from the node key,
/// so that it needs no place to be kept, survives a reinstallation, and central can know its public half before the
/// first login.
pub fn host_key_seed(config: &NodeConfig) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(HOST_KEY_DOMAIN);
    hash.update(config.key.trim().as_bytes());
    hash.finish().0
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{Digest, SigningKey};

    use super::*;
    use crate::configure::{parse_toml, tests::sample};

    #[test]
    fn the_seed_follows_from_the_key_and_nothing_else() {
        let config = parse_toml(&sample(&SigningKey::from_scalar(&[9; 32]).unwrap())).unwrap();
        let expect = Digest::of(b"orrery-ssh-host-key-v1\0-----BEGIN PRIVATE KEY-----").0;
        assert_eq!(host_key_seed(&config), expect);
        let padded = NodeConfig { key: format!("\n{}\n", config.key), name: "another".into(), ..config.clone() };
        assert_eq!(host_key_seed(&padded), expect);
        assert_ne!(host_key_seed(&NodeConfig { key: "another".into(), ..config }), expect);
    }
}
