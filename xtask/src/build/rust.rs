//! The Rust programs: static ones for the images, kept in the store; ordinary ones for the host.
//!
//! The images' programs come out byte for byte the same in every folder: source paths are mapped away, the
//! environment is a short list, and cargo names the workspace's crates relative to its root.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build::compile,
    cargo::Graph,
    command,
    hash::{self, Inputs},
    store::{self, Entry, Record, SourceFile},
    ui::Step,
    workspace::Workspace,
};

/// The one target images are built for. Naming it keeps the static flags away from build scripts.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Packages and binaries in the images.
const IMAGE_PROGRAMS: [(&str, &str); 3] =
    [("orrery-init", "init"), ("orrery-bootstage", "orrery-stage"), ("orrery-nodeos", "orrery-nodeos")];
/// Packages with [`VM_TESTS`].
const VM_TESTS_PACKAGES: [&str; 3] = ["orrery-nodeos", "orrery-sliver", "orrery-image-store"];
/// Static test programs for a VM, built with the others since they are made of the same crates.
pub(crate) const VM_TESTS: [&str; 9] = [
    "store_vm",
    "sliver_vm",
    "sliver_programs",
    "sliver_layers",
    "sliver_escapes",
    "sliver_limits",
    "sliver_hogs",
    "sliver_torture",
    "sliver_bench",
];
/// Packages and programs for the operator's machine.
const TOOLS: [(&str, &str); 3] = [("orrery", "orrery"), ("orrery-central", "orrery-central"), ("orrery-pcu", "pcu")];
/// The list of crates in the images' programs, kept beside them for the SBOM.
pub(crate) const CRATES_FILE: &str = "crates.json";

/// What cargo and the C compiler of build scripts may see of the user's environment.
const ENVIRONMENT: [&str; 15] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// Builds `init`, `orrery-stage` and `orrery-nodeos`.
///
/// # Errors
/// When they do not compile.
pub(crate) fn images(workspace: &Workspace) -> Result<Entry> {
    let graph = Graph::read(&workspace.root)?;
    let reachable = graph.reachable(&IMAGE_PROGRAMS.map(|(package, _)| package))?;
    let links = compile::linked(&["libc6-dev".to_owned()])?;

    let mut inputs = Inputs::default();
    inputs.add("rustc", "version", &command::output(cargo_command("rustc").arg("-vV"))?);
    compile::toolchain(&mut inputs)?;
    for link in &links {
        inputs.add("linked", &link.source, &link.version);
    }
    inputs.add("flags", "rustc", &flags(&[]).join(" "));
    inputs.add("programs", "names", &format!("{IMAGE_PROGRAMS:?} {VM_TESTS:?}"));
    inputs.add_file("Cargo.toml", &workspace.root.join("Cargo.toml"))?;
    let mut sources = Vec::new();
    for package in &reachable {
        match &package.checksum {
            Some(checksum) => inputs.add("crate", &package.name, &format!("{} {checksum}", package.version)),
            None => {
                let files = tree_files(&package.folder)?;
                let mut own = Inputs::default();
                for file in &files {
                    let name = file.strip_prefix(&package.folder).unwrap_or(file).to_string_lossy();
                    own.add_file(&name, file)?;
                }
                let sha256 = hash::bytes(own.text().as_bytes());
                inputs.add("crate-source", &package.name, &sha256);
                sources.push(SourceFile { name: package.name.clone(), sha256 });
            }
        }
    }

    store::get_or_build(workspace, "rust", &inputs, |folder| {
        let step = Step::start("rust", "compiling the programs of the images");
        let target = workspace.output().join("rust");
        let log = fresh_log(workspace, "rust")?;
        // Apart from the tests: features that only these need of a crate would be compiled into the images too.
        let mut programs = cargo(workspace, &target)?;
        for (package, binary) in IMAGE_PROGRAMS {
            programs.args(["--package", package, "--bin", binary]);
        }
        let mut tests = cargo(workspace, &target)?;
        for package in VM_TESTS_PACKAGES {
            tests.args(["--package", package]);
        }
        for test in VM_TESTS {
            tests.args(["--example", test]);
        }
        let maps = maps(workspace)?;
        let c_maps: Vec<_> = maps.iter().map(|(from, to)| format!("-ffile-prefix-map={from}={to}")).collect();
        for mut cargo in [programs, tests] {
            cargo.args(["--profile", "image", "--target", TARGET]);
            cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&maps).join("\u{1f}")).env("CFLAGS", c_maps.join(" "));
            command::logged(&mut cargo, &log).context("compiling the programs of the images")?;
        }
        let built = target.join(TARGET).join("image");
        let programs = IMAGE_PROGRAMS.map(|(_, binary)| (built.join(binary), binary));
        let tests = VM_TESTS.map(|test| (built.join("examples").join(test), test));
        for (from, binary) in programs.into_iter().chain(tests) {
            fs::copy(&from, folder.join(binary)).with_context(|| format!("copying {}", from.display()))?;
        }
        let crates: Vec<_> = reachable.iter().filter(|package| package.checksum.is_some()).collect();
        fs::write(folder.join(CRATES_FILE), serde_json::to_vec_pretty(&crates).context("listing crates")?)
            .context("writing the list of crates")?;
        step.done("compiled");
        Ok(Record {
            version: workspace.release.version.clone(),
            licence: "MIT OR Apache-2.0".to_owned(),
            sources,
            links,
            ..Record::default()
        })
    })
}

/// Builds `orrery`, `orrery-central` and `pcu` for this machine, and returns their folder. They are compiled as the tests are,
/// so that a test run compiles them once.
///
/// # Errors
/// When they do not compile.
pub(crate) fn tools(workspace: &Workspace) -> Result<PathBuf> {
    let step = Step::start("tools", "compiling orrery, orrery-central and pcu");
    let mut cargo = cargo_command("cargo");
    cargo.current_dir(&workspace.root).args(["build", "--locked"]);
    for (package, program) in TOOLS {
        cargo.args(["--package", package, "--bin", program]);
    }
    command::logged(&mut cargo, &fresh_log(workspace, "tools")?).context("compiling the tools")?;
    step.done("compiled");
    Ok(workspace.root.join("target/debug"))
}

fn fresh_log(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let log = workspace.log(name)?;
    fs::write(&log, "").with_context(|| format!("emptying {}", log.display()))?;
    Ok(log)
}

/// `cargo build` in the workspace, with a clean environment.
fn cargo(workspace: &Workspace, target: &Path) -> Result<Command> {
    let mut command = clean_command("cargo");
    command
        .current_dir(&workspace.root)
        .env("SOURCE_DATE_EPOCH", workspace.release.epoch.to_string())
        .args(["build", "--locked", "--target-dir"])
        .arg(target);
    Ok(command)
}

/// Cargo or rustc with a clean environment.
pub(crate) fn clean_command(program: &str) -> Command {
    let mut command = cargo_command(program);
    command
        .env_clear()
        .envs(ENVIRONMENT.iter().filter_map(|name| env::var_os(name).map(|value| (name, value))))
        .env("LC_ALL", "C");
    command
}

/// The cargo or rustc that runs us, else the one on the path.
fn cargo_command(program: &str) -> Command {
    Command::new(env::var_os(program.to_uppercase()).unwrap_or_else(|| program.into()))
}

fn flags(maps: &[(String, String)]) -> Vec<String> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Clink-arg=-Wl,--build-id=none".to_owned()];
    flags.extend(maps.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")));
    flags
}

/// Folders of this machine whose names must not be in an image, and what stands there instead. Of several
/// that match, the last one counts, so the workspace comes after what may contain it.
fn maps(workspace: &Workspace) -> Result<Vec<(String, String)>> {
    let home = match env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").context("finding cargo's home: set CARGO_HOME")?).join(".cargo"),
    };
    let sysroot = command::output(cargo_command("rustc").args(["--print", "sysroot"]))?;
    let mut maps = vec![(sysroot.trim().to_owned(), "/rust".to_owned())];
    // One folder per registry: its name tells which mirror the crates came through.
    if let Ok(registries) = fs::read_dir(home.join("registry/src")) {
        let mut registries: Vec<_> = registries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        registries.sort();
        maps.extend(registries.iter().map(|folder| (folder.display().to_string(), "/crates".to_owned())));
    }
    maps.push((workspace.root.display().to_string(), "/orrery".to_owned()));
    Ok(maps)
}

/// The files of a crate: all but hidden ones, build outputs and crates nested in its folder.
fn tree_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("listing {}", next.display()))? {
            let path = entry.with_context(|| format!("listing {}", next.display()))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.ends_with("target") || path.join("Cargo.toml").exists() {
                continue;
            }
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}
