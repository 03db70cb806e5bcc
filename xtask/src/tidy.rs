//! `cargo xtask tidy`: rules about the source that the compiler does not know.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    cargo::Graph,
    command,
    ui::{self, Step},
    workspace::Workspace,
};

/// What each crate may use of the workspace: `protocol` ← `sys` ← domain libraries ← programs. A crate that is
/// not listed, or a use that is not, is refused until someone thought about it here.
const LAYERS: [(&str, &[&str]); 22] = [
    ("orrery-protocol", &[]),
    ("no-std-proof", &["orrery-protocol"]),
    ("orrery-sys", &[]),
    ("orrery-init-api", &["orrery-protocol"]),
    ("orrery-central-api", &["orrery-protocol"]),
    ("orrery-transport", &["orrery-protocol"]),
    ("orrery-installer", &["orrery-protocol", "orrery-sys"]),
    ("orrery-sshd", &["orrery-sys"]),
    ("orrery-image-store", &["orrery-protocol", "orrery-sys"]),
    ("orrery-image-source", &["orrery-image-store", "orrery-protocol"]),
    ("orrery-sliver", &["orrery-init-api", "orrery-protocol", "orrery-sys", "orrery-image-store"]),
    ("orrery-image-builder", &["orrery-protocol"]),
    ("orrery-qemu", &[]),
    ("orrery-rmcp", &[]),
    ("orrery-pcu", &["orrery-rmcp"]),
    ("orrery-init", &["orrery-init-api", "orrery-protocol", "orrery-sys"]),
    (
        "orrery-bootstage",
        &["orrery-init-api", "orrery-installer", "orrery-protocol", "orrery-sshd", "orrery-sys", "orrery-transport"],
    ),
    (
        "orrery-nodeos",
        &[
            "orrery-bootstage",
            "orrery-image-store",
            "orrery-init-api",
            "orrery-installer",
            "orrery-protocol",
            "orrery-sliver",
            "orrery-sshd",
            "orrery-sys",
            "orrery-transport",
        ],
    ),
    (
        "orrery-central",
        &["orrery-central-api", "orrery-image-store", "orrery-pcu", "orrery-protocol", "orrery-transport"],
    ),
    (
        "orrery",
        &[
            "orrery-central-api",
            "orrery-image-builder",
            "orrery-image-source",
            "orrery-image-store",
            "orrery-protocol",
            "orrery-transport",
        ],
    ),
    ("guest-probe", &["orrery-sys"]),
    (
        "xtask",
        &[
            "orrery-central-api",
            "orrery-image-builder",
            "orrery-image-store",
            "orrery-installer",
            "orrery-protocol",
            "orrery-qemu",
        ],
    ),
];
/// The one crate that may hold unsafe code.
const UNSAFE_FOLDER: &str = "sys/";
/// Longer files are split: nobody reads them to the end.
const MAX_LINES: usize = 800;

/// Checks everything and reports all that is wrong.
///
/// # Errors
/// When something is wrong, or a check cannot run.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let step = Step::start("tidy", "checking layers, unsafe code, file lengths and names of machines");
    let mut faults = layers(&Graph::read(&workspace.root)?);
    let forbidden = forbidden_names(workspace);
    for file in files(&workspace.root)? {
        let path = workspace.root.join(&file);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = file.display().to_string();
        if name.ends_with(".rs") {
            faults.extend(long_file(&name, &text));
            if !name.starts_with(UNSAFE_FOLDER) {
                faults.extend(unsafe_code(&name, &text));
            }
        }
        if name.ends_with("Cargo.toml") && text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{name}: does not take the workspace's lints"));
        }
        // The lock file names the registry, as every lock file does.
        if !name.ends_with("Cargo.lock") {
            faults.extend(machine_names(&name, &text, &forbidden));
        }
    }
    step.now("linking protocol without std");
    let mut proof = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With the profile of the images: unwinding tables would need a part of std.
    proof.current_dir(&workspace.root).args(["build", "--locked", "--profile", "image", "--package", "no-std-proof"]);
    if let Err(error) = command::output(&mut proof) {
        faults.push(format!("protocol does not link without std: {error:#}"));
    }
    if !faults.is_empty() {
        drop(step);
        for fault in &faults {
            ui::say("tidy", fault);
        }
        bail!("{} faults", faults.len());
    }
    step.done("nothing to complain about");
    Ok(())
}

fn layers(graph: &Graph) -> Vec<String> {
    let mut faults = Vec::new();
    for (member, uses) in graph.members() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == member) else {
            faults.push(format!("the crate {member} has no place in the layers (xtask/src/tidy.rs)"));
            continue;
        };
        for used in uses.iter().filter(|used| !allowed.contains(*used)) {
            faults.push(format!("{member} must not use {used} (the layers are in xtask/src/tidy.rs)"));
        }
    }
    faults
}

/// Tracked files, and new ones that are not ignored.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let list = command::output(Command::new("git").current_dir(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]))
    .context("listing the files of the repository")?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

/// Names that only this machine has: where the checkout and cargo's home are, and the hosts of its package
/// sources. They come from the machine, so that none has to be written down here.
fn forbidden_names(workspace: &Workspace) -> Vec<String> {
    let mut names = apt::host_names().unwrap_or_default();
    let home = std::env::var("CARGO_HOME").ok().or_else(|| Some(format!("{}/.cargo", std::env::var("HOME").ok()?)));
    for path in [Some(workspace.root.display().to_string()), home].into_iter().flatten() {
        // A path of one part, such as /src, is an ordinary word.
        if path.matches('/').count() > 1 {
            names.push(path);
        }
    }
    names
}

fn machine_names(name: &str, text: &str, forbidden: &[String]) -> Vec<String> {
    let found = |(number, line): (usize, &str)| {
        let word = forbidden.iter().find(|word| line.contains(word.as_str()))?;
        Some(format!("{name}:{}: names this machine's {word}", number + 1))
    };
    text.lines().enumerate().filter_map(found).collect()
}

fn long_file(name: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| format!("{name}: {lines} lines, {MAX_LINES} at most: split it"))
}

fn unsafe_code(name: &str, text: &str) -> Vec<String> {
    let fault = |(number, line): (usize, &str)| {
        let code = code_of(line);
        // Attributes such as `#[unsafe(no_mangle)]` count; naming the lint, to deny it, does not.
        let keyword = code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        let allowed = code.contains("allow(unsafe_code)") || code.contains("expect(unsafe_code)");
        (keyword || allowed).then(|| format!("{name}:{}: unsafe code stands in sys alone", number + 1))
    };
    text.lines().enumerate().filter_map(fault).collect()
}

/// A line without comment and string contents. Good for ordinary code; literals over several lines are rare.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if in_string => {
                characters.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => code.push(c),
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: bool) {
        assert_eq!(!unsafe_code("a.rs", line).is_empty(), expect, "{line}");
    }

    #[test]
    fn unsafe_in_code_only() {
        check("unsafe { f() }", true);
        check("#[unsafe(no_mangle)]", true);
        check("#![allow(unsafe_code)]", true);
        check("#![deny(unsafe_code)]", false);
        check("// unsafe { f() }", false);
        check("let s = \"unsafe\"; // why", false);
        check("let s = \"a\\\"\"; unsafe { f() }", true);
        check("let not_unsafe = 1;", false);
    }

    #[test]
    fn names_of_machines() {
        let names = ["mirror.example".to_owned()];
        assert_eq!(machine_names("a", "x\nhttp://mirror.example/debian\n", &names).len(), 1);
        assert_eq!(machine_names("a", "x\n", &names).len(), 0);
    }
}
