//! Reaching slivers by the system's OpenSSH client, with what central knows of nodes: their addresses and host keys.
//!
//! Nobody is asked about a host key, and for these connections none counts but the one that central has. All else is the client's:
//! keys, agents and jump hosts are found as its own configuration says, in which a node goes by its id.

use std::{
    fmt,
    fs::File,
    io::{Seek, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Command, ExitStatus},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use orrery_central_api::{NodeDetail, SliceRecord};
use orrery_protocol::SliceName;
use orrery_transport::Client;

use crate::{
    context::Context,
    node::{addresses, host_key, segment},
};

/// The port of ssh.
const PORT: u16 = 22;
/// What OpenSSH's client exits with when it failed itself.
pub(crate) const CLIENT_FAILED: u8 = 255;
/// How long one of a node's several addresses may take to answer before the next is tried.
const ANSWER: Duration = Duration::from_secs(5);

/// A program in a sliver, or the client that was to reach it, ended with this status. All else was said already.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) u8);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it ended with status {}", self.0)
    }
}

impl std::error::Error for Ended {}

/// How nodes are reached and logged into.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Reach {
    /// Where a node is reached, if not at an address that it reported; `NODE=` before it when there are several nodes.
    #[arg(long = "address", value_name = "[NODE=]HOST[:PORT]", value_delimiter = ',')]
    addresses: Vec<Address>,
    /// A private key to log in with, as for `ssh -i`.
    #[arg(short, long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,
}

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    node: Option<String>,
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let (node, place) = match s.split_once('=') {
            Some((node, place)) => (Some(segment(node)?.to_owned()), place),
            None => (None, s),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if place.parse::<Ipv6Addr>().is_ok() => (place, None),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        // The client puts it into command lines of its own, and takes what begins with a dash for an option.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:%".contains(&b);
        ensure!(
            !host.is_empty() && !host.starts_with('-') && host.bytes().all(plain),
            "`{place}` is no address; write it like node.example.net, 192.0.2.7:2222 or [2001:db8::7]:2222"
        );
        let port = port.map_or(Ok(PORT), str::parse).with_context(|| format!("the port of `{place}` is not one"))?;
        Ok(Self { node, host: host.to_owned(), port })
    }
}

/// A slice's slivers, to be reached.
pub(crate) struct Slivers {
    slice: SliceName,
    nodes: Vec<String>,
    reach: Reach,
    client: Client,
}

impl Slivers {
    /// Those of `slice`.
    pub(crate) fn of(context: &Context, slice: SliceName, reach: Reach) -> Result<Self> {
        let client = context.client()?;
        let record: SliceRecord = client.get(&super::path(&slice))?;
        Ok(Self { slice, nodes: record.spec.nodes, reach, client })
    }

    /// The nodes of these ids; all of the slice's if there are none.
    pub(crate) fn chosen(&self, nodes: &[String]) -> Result<Vec<String>> {
        on_all(&self.slice, &self.nodes, nodes)?;
        ensure!(!self.nodes.is_empty(), "{} is on no node: give it one with `orrery slice assign`", self.slice);
        Ok(if nodes.is_empty() { self.nodes.clone() } else { nodes.to_vec() })
    }

    /// The node of this id; the slice's only one if it is not given.
    pub(crate) fn one(&self, node: Option<&str>) -> Result<String> {
        match &self.chosen(&node.map(str::to_owned).into_iter().collect::<Vec<_>>())?[..] {
            [one] => Ok(one.clone()),
            _ => bail!("{} is on several nodes: say which, of {}", self.slice, self.nodes.join(", ")),
        }
    }

    /// The way to the sliver on a node. When the node reported several addresses, those are tried now.
    pub(crate) fn way(&self, node: &str) -> Result<Way> {
        let detail: NodeDetail = self.client.get(&format!("/v1/nodes/{}", segment(node)?))?;
        let Some(key) = host_key(&detail) else {
            bail!("the host key of {node} is not known yet: it has never been in contact with central");
        };
        let (host, port) = self.place(node, &detail)?;
        Way::new(node, self.slice.login(), host, port, key, self.reach.identities.clone())
    }

    fn place(&self, node: &str, detail: &NodeDetail) -> Result<(String, u16)> {
        let given =
            |wanted: Option<&str>| self.reach.addresses.iter().find(|address| address.node.as_deref() == wanted);
        if let Some(address) = given(Some(node)).or_else(|| given(None)) {
            return Ok((address.host.clone(), address.port));
        }
        let reported: Vec<IpAddr> = addresses(detail).filter(|address| !is_link_local(address)).collect();
        let answers = |address: &&IpAddr| TcpStream::connect_timeout(&SocketAddr::new(**address, PORT), ANSWER).is_ok();
        let Some(first) = reported.first() else {
            bail!("{node} has reported no address: say with --address where it is reached");
        };
        // The client says best why the only one, or the first of several, does not answer.
        let address = if reported.len() == 1 { first } else { reported.iter().find(answers).unwrap_or(first) };
        Ok((address.to_string(), PORT))
    }
}

/// Checks that a slice with slivers on the nodes `has` has them on all of `wanted`.
pub(crate) fn on_all(slice: &SliceName, has: &[String], wanted: &[String]) -> Result<()> {
    let Some(other) = wanted.iter().find(|node| !has.contains(node)) else { return Ok(()) };
    let listed = if has.is_empty() { "no node".to_owned() } else { has.join(", ") };
    bail!("{slice} has no sliver on `{other}`: it has some on {listed}")
}

/// Addresses that say nothing without an interface.
fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The way to one sliver.
#[derive(Debug)]
pub(crate) struct Way {
    /// The node's id.
    pub(crate) node: String,
    login: String,
    host: String,
    port: u16,
    /// Without a name, so that nothing is left of it however this process ends; the client opens it by our number of it.
    known_hosts: File,
    identities: Vec<PathBuf>,
}

impl Way {
    fn new(node: &str, login: String, host: String, port: u16, key: &str, identities: Vec<PathBuf>) -> Result<Self> {
        let mut known_hosts = tempfile::tempfile().context("making a file for the node's host key")?;
        // A node that sends more than one line adds no host.
        let key = key.lines().next().unwrap_or_default();
        writeln!(known_hosts, "{node} {key}").and_then(|()| known_hosts.rewind()).context("writing the host key")?;
        Ok(Self { node: node.to_owned(), login, host, port, known_hosts, identities })
    }

    /// `ssh` or another program of OpenSSH's that takes its options, told all but whom to reach: [`Way::destination`].
    pub(crate) fn client(&self, program: &str) -> Command {
        let known_hosts = format!("/proc/{}/fd/{}", std::process::id(), self.known_hosts.as_raw_fd());
        let mut options = vec![
            format!("HostName={}", self.host.replace('%', "%%")),
            format!("Port={}", self.port),
            format!("HostKeyAlias={}", self.node),
            format!("UserKnownHostsFile={known_hosts}"),
            "GlobalKnownHostsFile=none".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "UpdateHostKeys=no".to_owned(),
        ];
        if !self.identities.is_empty() {
            options.push("IdentitiesOnly=yes".to_owned());
        }
        let mut client = Command::new(program);
        client.args(options.iter().flat_map(|option| ["-o", option]));
        self.identities.iter().for_each(|identity| {
            client.arg("-i").arg(identity);
        });
        client
    }

    /// Whom to reach, as `login@node`.
    pub(crate) fn destination(&self) -> String {
        format!("{}@{}", self.login, self.node)
    }

    /// `ssh` with further `options` that runs a command line in the sliver.
    pub(crate) fn ssh(&self, options: &[&str], line: &str) -> Command {
        let mut ssh = self.client("ssh");
        ssh.args(options).arg(self.destination()).arg("--").arg(line);
        ssh
    }
}

/// A client's end as a status for this process to end with.
pub(crate) fn status(ended: ExitStatus) -> u8 {
    ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(CLIENT_FAILED)
}

/// Runs a client to its end, on this process's terminal or pipes.
pub(crate) fn follow(mut client: Command) -> Result<()> {
    let program = client.get_program().to_string_lossy().into_owned();
    let ended = client.status().with_context(|| format!("running {program} (is OpenSSH's client installed?)"))?;
    match status(ended) {
        0 => Ok(()),
        status => Err(Ended(status).into()),
    }
}

/// Words as a line for the shell that runs a command: a single one is a line already, several are a program and its arguments.
pub(crate) fn line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,@+%^".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_ports_and_nodes() {
        let check = |text: &str, expect: Option<(Option<&str>, &str, u16)>| {
            let got = text.parse::<Address>().ok();
            let expect =
                expect.map(|(node, host, port)| Address { node: node.map(str::to_owned), host: host.to_owned(), port });
            assert_eq!(got, expect, "{text}");
        };
        check("node.example.net", Some((None, "node.example.net", 22)));
        check("127.0.0.1:2222", Some((None, "127.0.0.1", 2222)));
        check("n1=127.0.0.1:2222", Some((Some("n1"), "127.0.0.1", 2222)));
        check("2001:db8::7", Some((None, "2001:db8::7", 22)));
        check("n-1.b=[2001:db8::7]:23", Some((Some("n-1.b"), "2001:db8::7", 23)));
        check("[::1]", Some((None, "::1", 22)));
        check("", None);
        check("host:", None);
        check("host:99999", None);
        check("-oProxyCommand=x", None);
        check("n1=-oProxyCommand", None);
        check("a;b", None);
        check("=host", None);
    }

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let check = |words: &[&str], expect: &str| {
            assert_eq!(line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()), expect);
        };
        check(&["echo $HOME | wc"], "echo $HOME | wc");
        check(&["ls", "-l", "/a b"], "ls -l '/a b'");
        check(&["echo", "it's", ""], r"echo 'it'\''s' ''");
    }

    #[test]
    fn a_client_believes_central_alone() {
        let key = "ssh-ed25519 AAAA\nevil ssh-ed25519 BBBB";
        let way = Way::new("n1", "demo_hello".into(), "fe80::1%eth0".into(), 2222, key, vec!["id".into()]).unwrap();
        let ssh = way.ssh(&["-T"], "true");
        let words: Vec<_> = ssh.get_args().map(|word| word.to_string_lossy()).collect();
        for expected in [
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=none",
            "HostKeyAlias=n1",
            "Port=2222",
            "HostName=fe80::1%%eth0",
            "IdentitiesOnly=yes",
        ] {
            assert!(words.iter().any(|word| word == expected), "no {expected} in {words:?}");
        }
        assert_eq!(words[words.len() - 3..], ["demo_hello@n1", "--", "true"]);
        let known = words.iter().find_map(|word| word.strip_prefix("UserKnownHostsFile=")).unwrap();
        assert_eq!(std::fs::read_to_string(known).unwrap(), "n1 ssh-ed25519 AAAA\n");
    }
}
