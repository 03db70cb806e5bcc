//! How long it takes to get a program run, beside crun, runc and youki.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use orrery_protocol::Rspec;

use crate::{
    Node,
    alike::ensure_alike,
    containers::{Bundle, Lower, RUNTIMES},
    figures::{tell, timed},
};

/// What does nothing, inside.
const TRUE: &[&str] = &["/bin/true"];

/// One thing that is timed, with its times of each round.
struct Timed {
    what: &'static str,
    who: &'static str,
    times: Vec<f64>,
}

/// Times everything once in each round, one after the other, so that whatever else the machine does meets all alike.
pub(crate) fn measure(node: &Node, rounds: usize) -> Result<()> {
    let [running, stopped] = ["bench/running", "bench/stopped"].map(|slice| node.create(slice, Rspec::default()));
    let (running, stopped) = (running?, stopped?);
    node.slivers.start(&running)?;
    fs::create_dir_all("/sys/fs/cgroup/peers")?;
    let lower = Lower::of(node, &running)?;
    let mut ready = Vec::new();
    for runtime in RUNTIMES {
        let sleeping = Bundle::make(&lower, runtime, &format!("{runtime}-sleeping"), &["/bin/sleep", "infinity"])?;
        sleeping.mount()?;
        sleeping.create()?;
        sleeping.start()?;
        ready.push((runtime, Bundle::make(&lower, runtime, &format!("{runtime}-true"), TRUE)?, sleeping));
    }

    let mut all: Vec<Timed> = Vec::new();
    let mut note = |what, who, time| match all.iter_mut().find(|timed| (timed.what, timed.who) == (what, who)) {
        Some(timed) => timed.times.push(time),
        None => all.push(Timed { what, who, times: vec![time] }),
    };
    // The first round finds nothing in memory, and does not count.
    for round in 0..=rounds {
        let mut note = |what, who, time| {
            if round > 0 {
                note(what, who, time);
            }
        };
        note("/bin/true outside", "no isolation", alone(|| outside(node))?);
        let mut start = 0.0;
        let cold = alone(|| {
            start = timed(|| Ok(node.slivers.start(&stopped)?))?;
            node.run(&stopped, TRUE)?;
            Ok(node.slivers.stop(&stopped)?)
        })?;
        note("/bin/true where nothing runs", "slivers", cold);
        note("start alone", "slivers", start);
        for (runtime, bundle, _) in &ready {
            let mut run = 0.0;
            let cold = alone(|| {
                bundle.mount()?;
                run = timed(|| bundle.run())?;
                bundle.unmount()
            })?;
            note("/bin/true where nothing runs", runtime, cold);
            note("/bin/true in a mounted root", runtime, run);
        }
        note("/bin/true where something runs", "slivers", alone(|| node.run(&running, TRUE))?);
        for (runtime, _, sleeping) in ready.iter().filter(|(_, _, sleeping)| !sleeping.brings_in_less_confined()) {
            note("/bin/true where something runs", runtime, alone(|| sleeping.exec(TRUE))?);
        }
        let mut create = 0.0;
        let life = alone(|| {
            let mut login = String::new();
            create = timed(|| node.create("bench/new", Rspec::default()).map(|name| login = name))?;
            node.slivers.start(&login)?;
            Ok(node.slivers.destroy(&login)?)
        })?;
        note("create, start, delete", "slivers", life);
        note("create alone", "slivers", create);
        for (runtime, _, _) in &ready {
            note("create, start, delete", runtime, alone(|| live(&lower, runtime))?);
        }
    }
    let sleeping: Vec<_> = ready.iter().map(|(_, _, sleeping)| sleeping).collect();
    ensure_alike(&sleeping)?;
    for Timed { what, who, times } in &all {
        tell(what, who, "ms", times);
    }
    for (_, bundle, sleeping) in ready {
        sleeping.delete()?;
        sleeping.unmount()?;
        sleeping.remove()?;
        bundle.remove()?;
    }
    lower.unmount()?;
    [running, stopped].iter().try_for_each(|login| Ok(node.slivers.destroy(login)?))
}

/// Times what does not find anything to be written that others left: to unmount an overlay waits for all that its disk has to write.
fn alone(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    rustix::fs::syncfs(File::open("/data")?)?;
    timed(work)
}

/// The image's program, run by this one.
fn outside(node: &Node) -> Result<()> {
    let null = || Stdio::null();
    let program = node.tree.join("bin/true");
    let status = Command::new(program).env_clear().stdin(null()).stdout(null()).stderr(null()).status()?;
    ensure!(status.success(), "true is false: {status}");
    Ok(())
}

/// A container's whole life, its layer included, as that of a sliver is.
fn live(lower: &Lower, runtime: &'static str) -> Result<()> {
    let bundle = Bundle::make(lower, runtime, &format!("{runtime}-new"), &["/bin/sleep", "infinity"])?;
    bundle.mount()?;
    bundle.create()?;
    bundle.start()?;
    bundle.delete()?;
    bundle.unmount()?;
    bundle.remove()
}
