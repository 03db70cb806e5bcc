//! Measures slivers beside crun, runc, youki and OpenSSH's server on a real kernel: the first process of a virtual machine that prints
//! figures and powers off.
//!
//! The machine is that of `sliver_vm`, with `incoming/peers.tar.zst` and `incoming/peers.sha256` beside the image: a Debian tree
//! with what is compared. `/orrery-nodeos` is the program with the ssh gate. Each figure is one line of JSON after
//! [`figures::MARK`], the last line is `SLIVER-VM ok` or `SLIVER-VM FAILED`.
//!
//! The first argument is how many rounds there are, the second how many slivers in all; those after it are the [`PARTS`] to do,
//! or all.

mod alike;
mod caps;
mod containers;
mod figures;
mod logins;
mod numbers;
mod starts;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use orrery_image_store::Store;
use orrery_protocol::{Digest, Rspec};
use orrery_sliver::{EnterRequest, Entered, Run, SliverPaths, Slivers, Stream, internal_main};

fn main() -> ExitCode {
    if let Some(code) = internal_main(std::env::args_os()) {
        return code;
    }
    support::finish(run())
}

/// The node that all is measured on.
struct Node {
    slivers: Slivers,
    /// The image's identifier in the store.
    image: String,
    /// Where it is unpacked.
    tree: PathBuf,
}

/// A part, given the numbers of rounds and of slivers.
type Part = fn(&Node, usize, usize) -> Result<()>;

/// What can be measured.
const PARTS: [(&str, Part); 4] = [
    ("starts", |node, rounds, _| starts::measure(node, rounds)),
    ("logins", |node, rounds, _| logins::measure(node, rounds)),
    ("caps", |node, _, _| caps::measure(node)),
    ("numbers", |node, _, many| numbers::measure(node, many)),
];

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, many, parts @ ..] = &words[..] else { bail!("two numbers are missing") };
    let [rounds, many] = [rounds.parse()?, many.parse()?];
    support::prepare()?;
    let store = Store::open(Path::new("/data"))?;
    let image = import(&store, "debian")?;
    let tree = store.tree(&image).context("the image has no tree")?;
    let peers = import(&store, "peers")?;
    become_debian(&store.tree(&peers).context("the peers have no tree")?)?;
    let before = support::fingerprint(&tree)?;
    let node = Node { slivers: Slivers::open(SliverPaths::default())?, image: image.to_string(), tree };
    for (name, measure) in PARTS.iter().filter(|(name, _)| parts.is_empty() || parts.iter().any(|part| part == name)) {
        println!("{name}");
        measure(&node, rounds, many)?;
    }
    ensure!(support::fingerprint(&node.tree)? == before, "the image changed, so what was measured is something else");
    Ok(())
}

fn import(store: &Store, name: &str) -> Result<Digest> {
    let digest = fs::read_to_string(format!("/data/incoming/{name}.sha256"))?;
    let digest = digest.trim().parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    store.import(File::open(format!("/data/incoming/{name}.tar.zst"))?, &digest, 1 << 30)?;
    Ok(digest)
}

/// Lets programs of the tree run as if it were the root: with their libraries, users and settings.
fn become_debian(tree: &Path) -> Result<()> {
    std::os::unix::fs::symlink(tree.join("usr"), "/usr").context("linking /usr")?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), format!("/{name}")).context("linking folders of /usr")?;
    }
    for (path, text) in [
        ("/etc/passwd", "root:x:0:0::/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ] {
        fs::write(path, text).with_context(|| format!("writing {path}"))?;
    }
    for path in ["/root", "/tmp", "/var"] {
        fs::create_dir_all(path).with_context(|| format!("making {path}"))?;
    }
    Ok(())
}

impl Node {
    /// Makes a sliver with these limits, and returns its login.
    fn create(&self, slice: &str, rspec: Rspec) -> Result<String> {
        let record = self.slivers.create(&support::spec(slice, rspec)?, &self.image)?;
        Ok(record.login())
    }

    /// Starts a program in a sliver, which is started if it does not run.
    fn enter(&self, login: &str, words: &[&str]) -> Result<Entered> {
        let run = Run::Program(words.iter().map(|word| (*word).to_owned()).collect());
        let stdio = [Stream::Null, Stream::Null, Stream::Null];
        Ok(self.slivers.enter(
            login,
            EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio },
        )?)
    }

    /// Runs a program in a sliver to its end, which has to be a good one.
    fn run(&self, login: &str, words: &[&str]) -> Result<()> {
        let status = self.enter(login, words)?.session.wait()?;
        ensure!(status.success(), "{words:?} in {login}: {status}");
        Ok(())
    }
}
