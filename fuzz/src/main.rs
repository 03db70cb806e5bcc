//! Fuzz targets for every parser of untrusted bytes. `cargo xtask fuzz` builds and drives this program: libFuzzer brings
//! `main`, the environment variable `ORRERY_FUZZ_TARGET` names the target.
//!
//! One program for all targets: instrumented dependencies are compiled and linked once. A target finds a panic, an
//! overflow, a hang, or memory out of proportion; several also demand that what was parsed survives a round trip.

#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;

mod boot;
mod images;
mod ipmi;
mod network;
mod signed;
mod storage;

/// Says whether the input is a good one.
type Target = fn(&[u8]) -> bool;

/// Every target by name; its seeds are in `corpus/<name>/`, and those that have to be good are named `good-…`.
const TARGETS: [(&str, Target); 27] = [
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
    ("http-answer", network::http_answer),
    ("dns", network::dns),
    ("dhcp", network::dhcp),
    ("ipmi-datagram", ipmi::datagram),
    ("ipmi-login", ipmi::login),
    ("ipmi-answer", ipmi::answer),
    ("ipmi-serial", ipmi::serial),
    ("kernel-log", boot::kernel_log),
    ("events", boot::events),
    ("handover", boot::handover),
    ("cpio", boot::cpio),
    ("image-archive", images::image_archive),
    ("image-layers", images::image_layers),
    ("image-listing", images::image_listing),
    ("image-import", images::image_import),
    ("sliver-export", images::sliver_export),
    ("layer-task", network::layer_task),
];

/// Whether every input has to be good: then the corpus is checked, not the parser.
static DEMANDED: LazyLock<bool> = LazyLock::new(|| env::var_os("ORRERY_FUZZ_GOOD").is_some());

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("ORRERY_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => panic!("ORRERY_FUZZ_TARGET={name:?} is no target"),
    }
});

fuzz_target!(|bytes: &[u8]| {
    let good = TARGET(bytes);
    assert!(good || !*DEMANDED, "the parser refuses this seed");
});
