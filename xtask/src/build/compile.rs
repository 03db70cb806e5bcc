//! Runs a recipe: unpack, configure, compile, collect.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{Apt, Candidate},
    command,
    fetch::{self, Fetched},
    hash::{self, Inputs},
    kconfig,
    recipe::{Kconfig, Recipe, Source},
    store::{self, Entry, LinkedPackage, Record, SourceFile},
    ui::Step,
    workspace::Workspace,
};

/// Raised when this module changes in a way that changes results.
const RUNNER: &str = "1";

/// The environment of a build holds nothing of the user's.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds a recipe, or finds it built.
///
/// # Errors
/// When the source cannot be had, a request for a configuration symbol is not met, or a step fails.
pub(crate) fn build(workspace: &Workspace, apt: &Apt, recipe: &Recipe) -> Result<Entry> {
    let candidate = fetch::candidate(apt, &recipe.source)?;
    let links = linked(&recipe.links)?;
    let inputs = inputs(workspace, recipe, &candidate, &links)?;
    store::get_or_build(workspace, &recipe.name, &inputs, |folder| {
        let fetched = fetch::fetch(workspace, apt, &recipe.source, &candidate)?;
        let step = Step::start(&recipe.name, "unpacking");
        let job = Job::new(workspace, recipe)?;
        job.unpack(&fetched)?;
        job.patch(workspace)?;
        if let Some(kconfig) = &recipe.kconfig {
            step.now("configuring");
            job.configure(workspace, kconfig)?;
        }
        step.now(&format!("compiling {} (log: {})", fetched.version, job.log.display()));
        job.compile()?;
        job.collect(folder)?;
        step.done(&format!("built {}", fetched.version));
        Ok(Record {
            version: fetched.version,
            licence: recipe.licence.clone(),
            source_package: Some(recipe.source.source_package().to_owned()),
            sources: [fetched.files, patches(workspace, recipe)?].concat(),
            links,
            ..Record::default()
        })
    })
}

fn inputs(workspace: &Workspace, recipe: &Recipe, source: &Candidate, links: &[LinkedPackage]) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    inputs.add("runner", "version", RUNNER);
    inputs.add("release", "epoch", &workspace.release.epoch.to_string());
    inputs.add("recipe", &recipe.name, &recipe.content);
    for patch in patches(workspace, recipe)? {
        inputs.add("patch", &patch.name, &patch.sha256);
    }
    if let Some(kconfig) = &recipe.kconfig {
        inputs.add("kconfig", "sha256", &kconfig::fingerprint(&requests(workspace, kconfig)?));
    }
    inputs.add("source", recipe.source.package(), &source.version);
    for file in &source.files {
        inputs.add("source-file", &file.name, &file.sha256);
    }
    toolchain(&mut inputs)?;
    for link in links {
        inputs.add("linked", &link.source, &link.version);
    }
    Ok(inputs)
}

fn patches(workspace: &Workspace, recipe: &Recipe) -> Result<Vec<SourceFile>> {
    let files = recipe.patches(&workspace.root).zip(&recipe.patches);
    files.map(|(path, name)| Ok(SourceFile { name: name.display().to_string(), sha256: hash::file(&path)? })).collect()
}

/// All fragments as one text.
fn requests(workspace: &Workspace, kconfig: &Kconfig) -> Result<String> {
    let mut text = String::new();
    for file in kconfig.files(&workspace.root)? {
        text.push_str(&fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?);
        text.push('\n');
    }
    Ok(text)
}

/// Adds the versions of the C toolchain.
pub(super) fn toolchain(inputs: &mut Inputs) -> Result<()> {
    for tool in ["gcc", "ld", "make"] {
        let text = command::output(Command::new(tool).arg("--version").env("LC_ALL", "C").env("PATH", PATH))
            .context("asking the toolchain for its version (`cargo xtask setup` installs it)")?;
        inputs.add("tool", tool, text.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// The source packages and versions of installed packages.
pub(super) fn linked(packages: &[String]) -> Result<Vec<LinkedPackage>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let format = "${source:Package} ${source:Version}\n";
    let text = command::output(Command::new("dpkg-query").args(["-W", "-f", format]).args(packages))
        .context("asking dpkg for the packages that get linked in (`cargo xtask setup` installs them)")?;
    let mut links: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(source, version)| LinkedPackage { source: source.to_owned(), version: version.to_owned() })
        .collect();
    links.sort();
    links.dedup();
    Ok(links)
}

/// A build under way, in a folder of a fixed name.
struct Job<'a> {
    recipe: &'a Recipe,
    folder: PathBuf,
    log: PathBuf,
    epoch: u64,
}

impl<'a> Job<'a> {
    fn new(workspace: &Workspace, recipe: &'a Recipe) -> Result<Self> {
        let folder = workspace.cache.join("build").join(&recipe.name);
        store::remove_folder(&folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = workspace.log(&recipe.name)?;
        fs::write(&log, "").with_context(|| format!("emptying {}", log.display()))?;
        Ok(Self { recipe, folder, log, epoch: workspace.release.epoch })
    }

    fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &self.folder)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .env("JOBS", thread::available_parallelism().map_or(1, usize::from).to_string())
            .envs(&self.recipe.build.environment);
        command
    }

    fn unpack(&self, fetched: &Fetched) -> Result<()> {
        match &self.recipe.source {
            Source::Source { package, .. } => {
                let description = fetched.files.iter().find(|f| f.name.ends_with(".dsc")).context("no .dsc file")?;
                command::logged(
                    self.command("dpkg-source")
                        .args(["--no-check", "-x"])
                        .arg(fetched.folder.join(&description.name))
                        .arg(self.source()),
                    &self.log,
                )
                .with_context(|| format!("unpacking {package}"))
            }
            Source::Binary { package, tarball, .. } => {
                let archive = fetched.files.iter().find(|f| f.name.ends_with(".deb")).context("no .deb file")?;
                self.unpack_tarball(&fetched.folder.join(&archive.name), tarball)
                    .with_context(|| format!("unpacking {package}"))
            }
        }
    }

    /// Package → tarball → tree as one pipe: the tarball is never on disk.
    fn unpack_tarball(&self, package: &Path, tarball: &Path) -> Result<()> {
        fs::create_dir_all(self.source()).context("making the source folder")?;
        let mut outer = self
            .command("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dpkg-deb")?;
        let mut inner = self
            .command("tar")
            .args(["-x", "--to-stdout"])
            .arg(Path::new(".").join(tarball))
            .stdin(outer.stdout.take().context("taking dpkg-deb's output")?)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting tar")?;
        let unpacked = self
            .command("tar")
            .args(["-x", "--xz", "--strip-components=1", "-C"])
            .arg(self.source())
            .stdin(inner.stdout.take().context("taking tar's output")?)
            .status()
            .context("starting tar")?;
        // Both are done when the last one is: it read to the end of the archive.
        let found = inner.wait().context("waiting for tar")?;
        outer.wait().context("waiting for dpkg-deb")?;
        if !unpacked.success() || !found.success() {
            bail!("{} in {} does not unpack", tarball.display(), package.display());
        }
        Ok(())
    }

    fn patch(&self, workspace: &Workspace) -> Result<()> {
        for patch in self.recipe.patches(&workspace.root) {
            let mut command = self.command("patch");
            command.args(["--batch", "--forward", "--strip=1", "-i"]).arg(&patch).current_dir(self.source());
            command::logged(&mut command, &self.log).with_context(|| {
                format!("applying {} (if the source is a newer one, it may have to change)", patch.display())
            })?;
        }
        Ok(())
    }

    fn configure(&self, workspace: &Workspace, kconfig: &Kconfig) -> Result<()> {
        let wanted = requests(workspace, kconfig)?;
        let requests = self.folder.join("requests.config");
        fs::write(&requests, &wanted).context("writing the requested configuration")?;
        let mut make = self.command("make");
        make.current_dir(self.source()).arg(&kconfig.base).env("KCONFIG_ALLCONFIG", &requests);
        command::logged(&mut make, &self.log).context("making the configuration")?;
        if let Some(target) = &kconfig.merge {
            self.merge(target, &requests).context("merging the requests into the configuration")?;
        }
        let result = fs::read_to_string(self.source().join(".config")).context("reading the configuration made")?;
        let unmet = kconfig::unmet(&wanted, &result);
        if !unmet.is_empty() {
            bail!(
                "{} requests of {} are not in the final configuration (a dependency is missing, or the symbol \
                 no longer exists):\n    {}",
                unmet.len(),
                kconfig.fragments.display(),
                unmet.join("\n    ")
            );
        }
        Ok(())
    }

    /// Puts the requests first, since the first line about a symbol counts there, and takes the default of
    /// every question that this opens.
    fn merge(&self, target: &str, requests: &Path) -> Result<()> {
        let script = r#"cat "$1" .config > merged.config; mv merged.config .config; yes "" | make "$2""#;
        let mut shell = self.command("sh");
        shell.current_dir(self.source()).args(["-euc", script, "sh"]).arg(requests).arg(target);
        command::logged(&mut shell, &self.log)
    }

    fn compile(&self) -> Result<()> {
        for step in &self.recipe.build.steps {
            command::logged(self.command("sh").args(["-euc", step]).current_dir(self.source()), &self.log)
                .with_context(|| format!("running the step: {step}"))?;
        }
        Ok(())
    }

    fn collect(&self, folder: &Path) -> Result<()> {
        for (from, to) in &self.recipe.outputs {
            let from = self.source().join(from);
            fs::copy(&from, folder.join(to)).with_context(|| format!("copying {}", from.display()))?;
        }
        store::remove_folder(&self.folder)
    }
}
