//! Fuzz targets for every parser of untrusted bytes. `cargo xtask fuzz` builds and drives this program: libFuzzer brings
//! `main`, the environment variable `ORRERY_FUZZ_TARGET` names the target.
//!
//! One program for all targets: instrumented dependencies are compiled and linked once. A target finds a panic, an
//! overflow, a hang, or memory out of proportion; several also demand that what was parsed survives a round trip.

#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;

mod network;
mod signed;
mod storage;

/// Every target by name; its seeds are in `corpus/<name>/`.
const TARGETS: [(&str, fn(&[u8])); 12] = [
    ("node-config", storage::node_config),
    ("config-area", storage::config_area),
    ("disk-probe", storage::disk_probe),
    ("chunk-index", storage::chunk_index),
    ("envelope", signed::envelope),
    ("boot-script", signed::boot_script),
    ("release-manifest", signed::release_manifest),
    ("trust-update", signed::trust_update),
    ("trust-chain", signed::trust_chain),
    ("answers", network::answers),
    ("dns", network::dns),
    ("dhcp", network::dhcp),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("ORRERY_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => panic!("ORRERY_FUZZ_TARGET={name:?} is no target"),
    }
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
