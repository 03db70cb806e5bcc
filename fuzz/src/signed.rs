//! What is signed: the frame, which is read before anything is proven, and the payloads, which are read after it, but which a
//! stolen key could have signed.

use orrery_protocol::{BootScript, Envelope, PayloadType, ReleaseManifest, Root, SigningKey, TrustRoot, TrustUpdate};

/// The key that signed the seeds.
fn root() -> TrustRoot {
    let key = SigningKey::from_scalar(&[1; 32]).expect("a small number is a scalar");
    TrustRoot { keys: vec![key.public()], threshold: 1 }
}

/// The frame, alone and as the first of several.
pub(crate) fn envelope(bytes: &[u8]) -> bool {
    if let Ok((first, rest)) = Envelope::split_first(bytes) {
        assert_eq!([first, rest].concat(), bytes);
    }
    let Ok(envelope) = Envelope::parse(bytes) else { return false };
    let _ = envelope.claimed_signers().count();
    assert!(
        envelope.claimed_type() == PayloadType::BootScript
            || envelope.verify(PayloadType::BootScript, &root()).is_err()
    );
    envelope.verify(envelope.claimed_type(), &root()).is_ok()
}

/// A script's payload.
pub(crate) fn boot_script(bytes: &[u8]) -> bool {
    let Ok(script) = BootScript::decode(bytes) else { return false };
    if let Ok(again) = script.encode() {
        assert_eq!(BootScript::decode(&again), Ok(script));
    }
    true
}

/// A manifest's payload.
pub(crate) fn release_manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = ReleaseManifest::decode(bytes) else { return false };
    // That there is one of each is what having a manifest proves.
    let _ = (manifest.kernel(), manifest.node_os(), manifest.images().count());
    if let Ok(again) = manifest.encode() {
        assert_eq!(ReleaseManifest::decode(&again), Ok(manifest));
    }
    true
}

/// A trust update's payload.
pub(crate) fn trust_update(bytes: &[u8]) -> bool {
    let Ok(update) = TrustUpdate::decode(bytes) else { return false };
    if let Ok(again) = update.encode() {
        assert_eq!(TrustUpdate::decode(&again), Ok(update));
    }
    true
}

/// Several updates, one after the other.
pub(crate) fn trust_chain(bytes: &[u8]) -> bool {
    let start = Root { serial: 0, trust: root(), ca: String::new() };
    let (reached, _) = start.follow(bytes);
    assert!(reached.serial >= start.serial);
    reached.serial > start.serial
}
