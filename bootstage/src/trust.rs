//! Whom this node trusts now: the root in its medium, and the signed updates that lead on from there.
//!
//! The chain is kept in two places: in `/run/orrery`, which every stage reads, and on the boot partition, for the next
//! boot. It only ever grows, and every reader follows it from the medium's root again, so that neither place has to be trusted:
//! whoever damages one can make a node forget an update until central gives it again, and nothing else.

use std::{fs, path::Path};

use orrery_init_api::{FailureClass, Stage};
use orrery_protocol::{Envelope, NodeConfig, Root, TrustRefused};

use crate::{StageFailure, central, disks, events, files::write_private};

/// The accepted updates of this boot, envelopes one after the other.
const RUN_ROOTS: &str = "/run/orrery/roots";
/// The same on the boot partition.
pub(crate) const KEPT_ROOTS: &str = "roots";
/// What is read of a server at once, in bytes; an update has a few kilobytes.
const MAX_ANSWER: u64 = 1 << 20;
/// Beyond this the chain is no longer kept, in bytes: hundreds of updates.
const MAX_CHAIN: usize = 8 << 20;

/// The root in force.
pub fn current(config: &NodeConfig) -> Root {
    config.medium_root().follow(&fs::read(RUN_ROOTS).unwrap_or_default()).0
}

/// The configuration with the root in force in the place of the medium's.
pub fn obeying(config: &NodeConfig) -> NodeConfig {
    let mut config = config.clone();
    config.obey(&current(&config));
    config
}

/// Takes up what the installed disk keeps.
pub(crate) fn take_up(config: &NodeConfig) {
    if let Some(kept) = disks::kept_file(config, KEPT_ROOTS) {
        adopt(config, &kept, "the disk");
    }
}

/// Asks the server at `url` for updates, and follows them.
///
/// First over TLS as it should be. If the authority in force refuses the server, it is asked once more without being verified, for
/// the updates alone: only the signatures in them count (see [`orrery_transport::get_bytes_unverified`]).
///
/// # Errors
/// The server cannot be reached, or it is refused and has nothing that changes this.
pub fn ask(config: &NodeConfig, url: &str) -> Result<(), StageFailure> {
    let before = current(config);
    let path = format!("/v1/roots?after={}", before.serial);
    let verified = central::client(config, url).and_then(|client| Ok(client.get_bytes(&path, MAX_ANSWER)?));
    match verified {
        Ok(chain) => {
            adopt(config, &chain, url);
            Ok(())
        }
        Err(refused) if refused.class == FailureClass::Tls => {
            // If that fails as well, what it failed by first says more.
            if let Ok(chain) = central::get_unverified(config, url, &path, MAX_ANSWER) {
                adopt(config, &chain, url);
            }
            if current(config) == before { Err(refused) } else { Ok(()) }
        }
        // A server that knows nothing of updates may still have a script.
        Err(failure) if matches!(failure.class, FailureClass::Http | FailureClass::UnknownNode) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Follows `more` from the root in force, as far as it holds, and keeps it. Where it breaks is told, and no reason to stop:
/// the root stays what it was.
fn adopt(config: &NodeConfig, more: &[u8], from: &str) {
    let chain = Chain::follow(&config.medium_root(), &fs::read(RUN_ROOTS).unwrap_or_default());
    let before = chain.root.serial;
    let chain = chain.then(more);
    if let Some(refused) = &chain.broken {
        let message = format!("leaving the trust updates of {from} behind serial {}: {refused}", chain.root.serial);
        events::tell(Stage::Contact, Some(FailureClass::TrustRoot), message);
    }
    if chain.root.serial == before {
        return;
    }
    match write_private(RUN_ROOTS, &chain.kept) {
        Ok(()) => {
            let keys = chain.root.trust.keys.len();
            let message = format!(
                "trust root {}: {keys} release keys of which {} must sign, by {from}",
                chain.root.serial, chain.root.trust.threshold
            );
            events::tell(Stage::Contact, None, message);
        }
        Err(error) => events::tell(Stage::Contact, Some(FailureClass::TrustRoot), format!("{error:#}")),
    }
}

/// Keeps the accepted updates on the boot partition mounted at `boot`, if it has fewer.
///
/// # Errors
/// They cannot be written.
pub(crate) fn keep(config: &NodeConfig, boot: &Path) -> anyhow::Result<()> {
    keep_chain(&config.medium_root(), &fs::read(RUN_ROOTS).unwrap_or_default(), &boot.join(KEPT_ROOTS))
}

/// Whether [`keep`] would write.
pub(crate) fn is_news(config: &NodeConfig, boot: &Path) -> bool {
    let kept = fs::read(boot.join(KEPT_ROOTS)).unwrap_or_default();
    config.medium_root().follow(&kept).0.serial < current(config).serial
}

fn keep_chain(medium: &Root, accepted: &[u8], path: &Path) -> anyhow::Result<()> {
    let kept = Chain::follow(medium, &fs::read(path).unwrap_or_default());
    let accepted = Chain::follow(medium, accepted);
    if accepted.root.serial <= kept.root.serial || accepted.kept.len() > MAX_CHAIN {
        return Ok(());
    }
    write_private(path, &accepted.kept)
}

/// Updates that hold, from the medium's root to where they lead.
struct Chain {
    root: Root,
    kept: Vec<u8>,
    /// Why what was followed last was left before its end, if it was.
    broken: Option<TrustRefused>,
}

impl Chain {
    fn follow(medium: &Root, chain: &[u8]) -> Self {
        Self { root: medium.clone(), kept: Vec::new(), broken: None }.then(chain)
    }

    fn then(mut self, mut chain: &[u8]) -> Self {
        self.broken = None;
        while !chain.is_empty() {
            let (first, rest) = match Envelope::split_first(chain) {
                Ok(split) => split,
                Err(error) => return Self { broken: Some(TrustRefused::Outgoing(error)), ..self },
            };
            let (next, refused) = self.root.follow(first);
            if refused.is_some() {
                return Self { broken: refused, ..self };
            }
            if next.serial > self.root.serial {
                self.kept.extend(first);
                self.root = next;
            }
            chain = rest;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{PayloadType, SigningKey, TrustRoot, TrustUpdate, sign};
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> SigningKey {
        SigningKey::from_scalar(&[number; 32]).unwrap()
    }

    /// The root of generation `serial`, which the key of that number holds.
    fn root(serial: u8) -> Root {
        let trust = TrustRoot { keys: vec![key(serial + 1).public()], threshold: 1 };
        Root { serial: serial.into(), trust, ca: "-----BEGIN CERTIFICATE-----".into() }
    }

    fn update(serial: u8) -> Vec<u8> {
        let to = root(serial);
        let update = TrustUpdate {
            version: 1,
            serial: to.serial,
            issued: 1,
            release_keys: to.trust.keys,
            release_threshold: 1,
            ca: to.ca,
        };
        sign(PayloadType::TrustUpdate, &update.encode().unwrap(), &[&key(serial), &key(serial + 1)]).unwrap()
    }

    #[test]
    fn what_holds_is_kept_and_nothing_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEPT_ROOTS);
        let (one, two, three) = (update(1), update(2), update(3));
        let check = |accepted: &[&[u8]], expect: u64| {
            keep_chain(&root(0), &accepted.concat(), &path).unwrap();
            assert_eq!(root(0).follow(&fs::read(&path).unwrap_or_default()).0.serial, expect);
        };
        check(&[], 0);
        check(&[&two], 0);
        check(&[&one], 1);
        check(&[&one, &two, &three], 3);
        check(&[&one], 3);
        check(&[], 3);
        fs::write(&path, b"damaged").unwrap();
        check(&[&one, &two], 2);
    }

    #[test]
    fn a_chain_is_taken_up_where_it_was_left() {
        let (one, two, three) = (update(1), update(2), update(3));
        let check = |have: &[&[u8]], more: &[&[u8]], serial: u64, breaks: bool| {
            let chain = Chain::follow(&root(0), &have.concat()).then(&more.concat());
            assert_eq!((chain.root.serial, chain.broken.is_some()), (serial, breaks));
            let again = Chain::follow(&root(0), &chain.kept);
            assert_eq!((again.root, again.broken), (chain.root, None));
        };
        check(&[], &[&one, &two], 2, false);
        check(&[&one], &[&one, &two], 2, false);
        check(&[&one], &[&three], 1, true);
        check(&[&one, b"rubbish"], &[&two, &three], 3, false);
        check(&[&one, &two], &[&three[..three.len() - 1]], 2, true);
    }

    proptest! {
        #[test]
        fn a_damaged_chain_leads_no_further(at: usize, bit in 0u8..8) {
            let mut chain = [update(1), update(2)].concat();
            let at = at % chain.len();
            chain[at] ^= 1 << bit;
            // How many signatures follow is not signed itself: a wrong number may take bytes of the next update for some, and
            // that one is lost then.
            let reached = Chain::follow(&root(0), &chain).root;
            let ends = if at < update(1).len() { 0..=1 } else { 1..=1 };
            prop_assert!(ends.contains(&reached.serial));
            prop_assert_eq!(&reached, &root(reached.serial as u8));
        }
    }
}
