//! A private apt state in the cache: the host's own sources, with the backports suite and source packages
//! added. The host's configuration and its package lists are read, never written.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    command, lock,
    ui::{self, Step},
    workspace::Workspace,
};

mod sources;

use sources::Stanza;

/// Lists older than this are refreshed before versions are looked up.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The private apt state, with package lists in it.
pub(crate) struct Apt {
    folder: PathBuf,
    /// The distribution's code name, such as `bookworm`.
    pub(crate) codename: String,
    stanzas: Vec<Stanza>,
}

/// How fresh the lists have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Refresh when older than a day; when that fails, use what is there.
    Daily,
    /// Refresh now.
    Now,
}

/// What apt would download for a package.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Candidate {
    /// The version, as it stands in file names (without an epoch).
    pub(crate) version: String,
    /// The files.
    pub(crate) files: Vec<CandidateFile>,
}

/// One file of a candidate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CandidateFile {
    /// Its name.
    pub(crate) name: String,
    /// In hexadecimal.
    pub(crate) sha256: String,
}

impl Apt {
    /// Derives the sources from the host's and makes sure that there are package lists.
    ///
    /// # Errors
    /// When the host is no Debian-like machine, or there are no lists and none can be downloaded.
    pub(crate) fn open(workspace: &Workspace, freshness: Freshness) -> Result<Self> {
        let apt = Self::derive(workspace)?;
        let _lock = lock::acquire(workspace, "apt")?;
        apt.refresh(workspace, freshness)?;
        Ok(apt)
    }

    fn derive(workspace: &Workspace) -> Result<Self> {
        let codename = codename()?;
        let host = sources::read_host(Path::new("/etc/apt"))?;
        let stanzas = sources::derive(&host, &codename);
        if stanzas.is_empty() {
            bail!(
                "no entry in /etc/apt/sources.list or /etc/apt/sources.list.d is for the suite {codename}; \
                 add the distribution's own archive there"
            );
        }
        Ok(Self { folder: workspace.cache.join("apt"), codename, stanzas })
    }

    /// The distribution's own suites as a deb822 file, without backports: what a tree of packages is made of.
    pub(crate) fn binary_sources(&self) -> String {
        let backports = format!("{}-backports", self.codename);
        let mut stanzas = self.stanzas.clone();
        for stanza in &mut stanzas {
            stanza.suites.retain(|suite| *suite != backports);
        }
        stanzas.retain(|stanza| !stanza.suites.is_empty());
        sources::render(&stanzas, "deb")
    }

    fn refresh(&self, workspace: &Workspace, freshness: Freshness) -> Result<()> {
        for folder in ["lists/partial", "archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let text = sources::render(&self.stanzas, "deb deb-src");
        let unchanged = fs::read_to_string(self.source_list()).is_ok_and(|old| old == text);
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        let fresh = age.is_some_and(|age| age < STALE) && freshness == Freshness::Daily;
        if unchanged && fresh {
            return Ok(());
        }
        fs::write(self.source_list(), text).context("writing the private apt sources")?;
        let step = Step::start("apt", "refreshing the private package lists");
        let log = workspace.log("apt")?;
        match command::logged(self.command("apt-get").args(["-q", "update"]), &log) {
            Ok(()) => {
                fs::write(&stamp, "").context("noting the refresh")?;
                remove_file(&self.resolved())?;
                step.done("package lists refreshed");
            }
            Err(_) if age.is_some() && unchanged => {
                drop(step);
                ui::say("apt", &format!("no fresh package lists (see {}); using the last ones", log.display()));
            }
            Err(error) => return Err(error.context("downloading package lists (is there a network?)")),
        }
        Ok(())
    }

    fn source_list(&self) -> PathBuf {
        self.folder.join("orrery.sources")
    }

    fn resolved(&self) -> PathBuf {
        self.folder.join("resolved.json")
    }

    /// The options that make an apt program use this state instead of the host's.
    pub(crate) fn options(&self) -> Vec<OsString> {
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("-o{name}="));
            option.push(value);
            option
        };
        vec![
            option("Dir::Etc::sourcelist", &self.source_list()),
            option("Dir::Etc::sourceparts", Path::new("/dev/null")),
            option("Dir::State::Lists", &self.folder.join("lists")),
            option("Dir::Cache::archives", &self.folder.join("archives")),
            // apt's download user may not enter the cache folder of the user who builds.
            "-oAPT::Sandbox::User=root".into(),
        ]
    }

    /// An apt program on this state.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").args(self.options());
        command
    }

    /// What `apt-get source` would download with the options `choice`.
    ///
    /// # Errors
    /// When the package is unknown.
    pub(crate) fn source_candidate(&self, package: &str, choice: &[String]) -> Result<Candidate> {
        let name = format!("source {} {package}", choice.join(" ")).replace("  ", " ");
        self.candidate(&name, |apt| {
            let mut command = apt.command("apt-get");
            command.args(["-qq", "source", "--print-uris", "--download-only"]).args(choice).arg(package);
            command
        })
    }

    /// What `apt-get download` would download.
    ///
    /// # Errors
    /// When the package is unknown.
    pub(crate) fn binary_candidate(&self, package: &str) -> Result<Candidate> {
        self.candidate(&format!("binary {package}"), |apt| {
            let mut command = apt.command("apt-get");
            command.args(["-qq", "download", "--print-uris", package]);
            command
        })
    }

    /// Reading all lists takes apt seconds; the answers hold until the next refresh.
    fn candidate(&self, name: &str, query: impl Fn(&Self) -> Command) -> Result<Candidate> {
        let mut known: BTreeMap<String, Candidate> =
            fs::read(self.resolved()).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        if let Some(candidate) = known.get(name) {
            return Ok(candidate.clone());
        }
        let answer = command::output(&mut query(self))
            .with_context(|| format!("looking up the package of `{name}` for {}", self.codename))?;
        let candidate = parse_uris(&answer).with_context(|| format!("reading apt's answer for `{name}`: {answer}"))?;
        known.insert(name.to_owned(), candidate.clone());
        let new = self.folder.join(format!("resolved.{}.new", std::process::id()));
        fs::write(&new, serde_json::to_vec_pretty(&known).context("writing versions as JSON")?)
            .and_then(|()| fs::rename(&new, self.resolved()))
            .context("noting package versions")?;
        Ok(candidate)
    }
}

/// Parses lines such as `'http://…/a_1-2.dsc' a_1-2.dsc 2001 SHA256:ab…`.
fn parse_uris(text: &str) -> Result<Candidate> {
    let mut files = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('\'')) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let &[_, name, _, hash] = fields.as_slice() else { bail!("unexpected line: {line}") };
        let Some(sha256) = hash.strip_prefix("SHA256:") else { bail!("no SHA-256 in: {line}") };
        files.push(CandidateFile { name: name.replace("%3a", ":"), sha256: sha256.to_owned() });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let main = files.iter().find(|f| f.name.ends_with(".dsc") || f.name.ends_with(".deb")).context("no package")?;
    let version = main.name.rsplit_once('.').and_then(|(stem, _)| stem.split('_').nth(1)).context("no version")?;
    let version = version.split_once(':').map_or(version, |(_, version)| version).to_owned();
    Ok(Candidate { version, files })
}

/// The host names of this machine's package sources.
///
/// # Errors
/// When the sources cannot be read.
pub(crate) fn host_names() -> Result<Vec<String>> {
    let stanzas = sources::read_host(Path::new("/etc/apt"))?;
    let uris = stanzas.iter().flat_map(|stanza| &stanza.uris);
    let mut names: Vec<_> =
        uris.filter_map(|uri| uri.split("://").nth(1)?.split(['/', ':']).next().map(str::to_owned)).collect();
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    Ok(names)
}

fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("finding VERSION_CODENAME in /etc/os-release (Orrery builds on Debian)")
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<(&str, &[&str])>) {
        let got = parse_uris(text).ok();
        let got =
            got.as_ref().map(|c| (c.version.as_str(), c.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>()));
        assert_eq!(got, expect.map(|(version, files)| (version, files.to_vec())));
    }

    #[test]
    fn answers_of_apt() {
        check(
            "'http://a/b/e_1.47.dsc' e_1.47.dsc 12 SHA256:ab\n'http://a/b/e_1.47.tar.xz' e_1.47.tar.xz 9 SHA256:cd\n",
            Some(("1.47", &["e_1.47.dsc", "e_1.47.tar.xz"])),
        );
        check("'http://a/l_1%3a2-1_all.deb' l_1%3a2-1_all.deb 12 SHA256:ab\n", Some(("2-1", &["l_1:2-1_all.deb"])));
        check("'http://a/b/e_1.47.dsc' e_1.47.dsc 12 MD5Sum:ab\n", None);
        check("", None);
    }
}
