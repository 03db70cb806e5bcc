//! Whether containers are confined alike: else their figures say nothing beside one another.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::containers::Bundle;

/// Lines of a process's status that say who it is. They depend on who reads them.
const IDENTITIES: &[&str] = &["Uid", "Gid", "Groups"];
/// Those that say what it may do.
const RIGHTS: &[&str] = &["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"];
/// Limits that the containers are given.
const LIMITS: [&str; 4] = ["memory.max", "memory.swap.max", "pids.max", "cpu.weight"];

/// What the kernel says, one fact in each.
type Facts = BTreeSet<String>;

/// Compares the running containers' own programs with one another, and a program that is brought into one with its own. Not where
/// [`Bundle::brings_in_less_confined`].
///
/// # Errors
/// When two differ; the error says in what.
pub(crate) fn ensure_alike(running: &[&Bundle]) -> Result<()> {
    let mut all: Vec<(&str, Facts)> = Vec::new();
    for bundle in running {
        let own = PathBuf::from("/proc").join(read(&bundle.control_group().join("cgroup.procs"))?.trim());
        let mut facts = of_program(&own)?;
        if !bundle.brings_in_less_confined() {
            bundle.exec(&["/bin/cp", "/proc/self/status", "/proc/self/mountinfo", "/proc/self/uid_map", "/root"])?;
            let brought = of_program(&bundle.root().join("root"))?;
            ensure_same(&facts, &brought)
                .with_context(|| format!("comparing what is brought into {}", bundle.name()))?;
        }
        facts.extend(of_container(&own, &bundle.control_group())?);
        if let Some((first, expected)) = all.first() {
            ensure_same(expected, &facts).with_context(|| format!("comparing {first} with {}", bundle.name()))?;
        }
        all.push((bundle.name(), facts));
    }
    Ok(())
}

fn ensure_same(one: &Facts, other: &Facts) -> Result<()> {
    let [less, more]: [Vec<_>; 2] = [one.difference(other).collect(), other.difference(one).collect()];
    ensure!(less.is_empty() && more.is_empty(), "they are confined otherwise: {less:?} against {more:?}");
    Ok(())
}

/// What a program sees of itself as others see it, of a folder of `/proc` or a copy.
fn of_program(folder: &Path) -> Result<Facts> {
    let mut facts = lines(folder, RIGHTS)?;
    let mounts = read(&folder.join("mountinfo"))?;
    facts.extend(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| format!("mounted: {point}")));
    facts.insert(format!("uid_map: {}", read(&folder.join("uid_map"))?));
    Ok(facts)
}

/// What else the node sees of a container's own process, and of its control group.
fn of_container(process: &Path, group: &Path) -> Result<Facts> {
    let mut facts = lines(process, IDENTITIES)?;
    for limit in LIMITS {
        facts.insert(format!("{limit}: {}", read(&group.join(limit))?));
    }
    for entry in fs::read_dir(process.join("ns")).context("listing namespaces")? {
        let kind = entry.context("listing namespaces")?.file_name();
        let [its, ours] = [process, Path::new("/proc/self")].map(|who| fs::read_link(who.join("ns").join(&kind)));
        let shared = its.context("reading a namespace")? == ours.context("reading a namespace")?;
        facts.insert(format!("namespace {} is the node's: {shared}", kind.display()));
    }
    Ok(facts)
}

/// Lines of a process's status of these names.
fn lines(folder: &Path, names: &[&str]) -> Result<Facts> {
    let status = read(&folder.join("status"))?;
    let wanted = |line: &&str| line.split_once(':').is_some_and(|(name, _)| names.contains(&name));
    Ok(status.lines().filter(wanted).map(|line| line.trim_end().to_owned()).collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}
