//! `cargo xtask fuzz`: libFuzzer on every parser of untrusted bytes, with the pinned stable toolchain.
//!
//! The coverage instrumentation is a pass of LLVM that stable rustc runs when asked to. The address sanitizer, which
//! only nightly has, would add little: there is no unsafe code in our parsers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build::rust::TARGET,
    command,
    ui::{self, Step},
    workspace::Workspace,
};

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// One target of fuzz/src/main.rs; without it, all in turn
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// What mutations follow from; 0 draws one
    #[arg(long, default_value_t = 0)]
    seed: u32,
}

/// What cargo-fuzz passes, less the sanitizers: counters for edges, their table, and traced comparisons.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// The longest input, in bytes: beyond the headers of everything that is parsed.
const MAX_INPUT: u32 = 32 << 10;
/// An input that takes longer is a find, in seconds.
const TIMEOUT: u32 = 10;
/// Memory out of proportion is a find, in MiB.
const MEMORY: u32 = 1024;

/// Runs one target, or all.
///
/// # Errors
/// A target cannot be built, or found something: the error names the input, which is kept.
pub(crate) fn run(workspace: &Workspace, options: &Fuzz) -> Result<()> {
    match &options.target {
        Some(target) => {
            let targets = targets(workspace)?;
            if !targets.contains(target) {
                bail!("no fuzz target is named {target}; there are: {}", targets.join(", "));
            }
            let program = build(workspace)?;
            fuzz(workspace, &program, target, options.seconds, options.seed)
        }
        None => all(workspace, options.seconds, options.seed),
    }
}

/// Runs every target for so many seconds.
///
/// # Errors
/// As [`run`], after all targets have run.
pub(crate) fn run_all(workspace: &Workspace, seconds: u32) -> Result<()> {
    all(workspace, seconds, 0)
}

fn all(workspace: &Workspace, seconds: u32, seed: u32) -> Result<()> {
    let program = build(workspace)?;
    let mut finds = Vec::new();
    for target in targets(workspace)? {
        if let Err(error) = fuzz(workspace, &program, &target, seconds, seed) {
            ui::say("fuzz", &format!("{target}: {error:#}"));
            finds.push(target);
        }
    }
    if !finds.is_empty() {
        bail!("fuzzing failed in: {}", finds.join(", "));
    }
    Ok(())
}

/// Every target has a folder of seeds.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/corpus");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        names.push(entry.with_context(|| format!("listing {}", folder.display()))?.file_name().display().to_string());
    }
    names.sort();
    Ok(names)
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let step = Step::start("fuzz", "building the targets with coverage instrumentation");
    let output = workspace.root.join("target/fuzz");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace.root.join("fuzz")).env("RUSTFLAGS", INSTRUMENTATION);
    // With a target named, build scripts and procedural macros stay as they are.
    cargo.args(["build", "--locked", "--release", "--target", TARGET, "--target-dir"]).arg(&output);
    command::logged(&mut cargo, &workspace.log("fuzz-build")?)?;
    step.done("built");
    Ok(output.join(TARGET).join("release/orrery-fuzz"))
}

/// A seed that its parser refuses at the first byte leads nowhere: those named `good-…` are accepted.
fn check_seeds(workspace: &Workspace, program: &Path, target: &str) -> Result<()> {
    let folder = workspace.root.join("fuzz/corpus").join(target);
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        if entry.file_name().as_encoded_bytes().starts_with(b"good-") {
            seeds.push(entry.path());
        }
    }
    if seeds.is_empty() {
        bail!("{} has no seed named good-…", folder.display());
    }
    let output = workspace.output().join("fuzz");
    fs::create_dir_all(&output).with_context(|| format!("making {}", output.display()))?;
    let mut checker = Command::new(program);
    checker.env("ORRERY_FUZZ_TARGET", target).env("ORRERY_FUZZ_GOOD", "1").args(seeds);
    command::logged(checker.current_dir(&output), &workspace.log(&format!("fuzz-{target}"))?)
        .with_context(|| format!("{target}: a seed in {} is refused", folder.display()))
}

fn fuzz(workspace: &Workspace, program: &Path, target: &str, seconds: u32, seed: u32) -> Result<()> {
    let step = Step::start("fuzz", &format!("{target} for {seconds} s"));
    let folder = workspace.output().join("fuzz");
    let finds = folder.join("corpus").join(target);
    fs::create_dir_all(&finds).with_context(|| format!("making {}", finds.display()))?;
    let crashes = folder.join(format!("{target}-"));
    let mut fuzzer = Command::new(program);
    fuzzer.current_dir(&folder).env("ORRERY_FUZZ_TARGET", target).env("RUST_BACKTRACE", "1");
    fuzzer.args([
        format!("-max_total_time={seconds}"),
        format!("-seed={seed}"),
        format!("-max_len={MAX_INPUT}"),
        format!("-timeout={TIMEOUT}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-artifact_prefix={}", crashes.display()),
        "-print_final_stats=1".into(),
    ]);
    check_seeds(workspace, program, target)?;
    // New inputs go into the first folder; the committed seeds are only read.
    fuzzer.arg(&finds).arg(workspace.root.join("fuzz/corpus").join(target));
    let log = workspace.log(&format!("fuzz-{target}"))?;
    let before = fs::metadata(&log).map_or(0, |m| m.len());
    command::logged(&mut fuzzer, &log)
        .with_context(|| format!("fuzzing {target}: the input is kept as {}*", crashes.display()))?;
    let said = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let said = String::from_utf8_lossy(said.get(usize::try_from(before)?..).unwrap_or_default()).into_owned();
    let runs = said.lines().rev().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    step.done(&format!("{target}: nothing in {} inputs", runs.unwrap_or("?").trim()));
    Ok(())
}
