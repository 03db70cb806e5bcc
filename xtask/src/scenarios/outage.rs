//! A central that fails while nodes need it.

use anyhow::{Context, Result};

use super::{Bench, EARLY, INSTALLED};
use crate::lab::{NodeOptions, ScriptOptions};

/// Long enough in download for its progress to be shown, in bytes.
const LONG_DOWNLOAD: u64 = 192 << 20;

/// Central answers 500, since its database is broken: said at the node and at central, and over once central is well.
pub(super) fn server_error(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    lab.central.sql("ALTER TABLE scripts RENAME TO misplaced")?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage contact FAILED", "http", "500"], EARLY)?;
    node.wait_failure(&lab, "http", EARLY)?;

    lab.central.sql("ALTER TABLE misplaced RENAME TO scripts")?;
    vm.expect("stage contact ok", EARLY)?;
    vm.expect("stage verify ok", EARLY).map(drop).map_err(Into::into)
}

/// Central is killed in the middle of a download: once it runs again, the same install goes on where it was.
pub(super) fn server_killed(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let release = lab.publish_release_with("zeros", LONG_DOWNLOAD)?;
    for kind in ["install", "boot"] {
        lab.publish_script(kind, &ScriptOptions { serial: 2, release: release.clone(), ..lab.usual_script() })?;
    }
    let node = lab.add_node("n1", NodeOptions::default())?;
    let mut vm = node.spec.clone().fatal("stage install FAILED").start()?;
    vm.expect(["zeros: ", "% ("], INSTALLED)?;
    lab.central.kill()?;
    lab.central.start()?;
    vm.expect(["zeros: ", "going on from byte"], EARLY)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// The first of two servers is not there: the second is asked in its stead, and told of it, and the node OS finds it as well.
pub(super) fn several_servers(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let dead = format!("https://10.0.2.2:{}", orrery_qemu::free_port().context("finding a free port")?);
    let alive = lab.central.url_for_guest();
    let arguments = vec!["--url".to_owned(), alive.clone()];
    let node = lab.add_node("n1", NodeOptions { url: Some(dead.clone()), arguments, ..NodeOptions::default() })?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage contact ok", alive.as_str(), "gave a script"], EARLY)?;
    node.wait_for(EARLY, "an event about the server that is not there at central", || {
        let about = |message: &str| message.contains(&dead);
        let told = |e: &serde_json::Value| e["class"] == "refused" && e["message"].as_str().is_some_and(about);
        Ok(lab.events("n1")?.iter().any(told))
    })?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))
}
