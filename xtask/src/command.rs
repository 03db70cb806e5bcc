//! Running programs: output captured for answers, or sent to a log file whose end is shown on failure.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// How much of a log an error shows.
const TAIL_LINES: usize = 25;

/// Runs `command`, returning what it printed.
///
/// # Errors
/// When it cannot be started, or fails; the error carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading what {name} printed"))
}

/// Whether `command` ran and succeeded; what it printed is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Runs `command` with all it prints appended to `log`.
///
/// # Errors
/// When it cannot be started, or fails; the error carries the end of the log and its path.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let name = name_of(command);
    let mut file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening the log {}", log.display()))?;
    writeln!(file, "$ {command:?}").with_context(|| format!("writing the log {}", log.display()))?;
    let errors = file.try_clone().context("sharing the log")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(file))
        .stderr(Stdio::from(errors))
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        bail!("{name} failed ({status}); the end of {}:\n{}", log.display(), tail(&text));
    }
    Ok(())
}

/// Runs `command` with the terminal it has.
///
/// # Errors
/// When it cannot be started, or fails.
pub(crate) fn attached(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let status = command.status().with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match command.get_args().next().filter(|first| !first.to_string_lossy().starts_with('-')) {
        Some(first) => format!("`{program} {}`", first.to_string_lossy()),
        None => format!("`{program}`"),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("    {line}\n")).collect()
}
