//! Running the stock OpenSSH client against a guest, with a deadline.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::process::{bound_command, spawn};
use crate::terminal::{Terminal, WindowSize};

/// Whether an unknown host key is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeys {
    /// Accepted once, then remembered: a changed key fails.
    AcceptNew,
    /// Only what the known-hosts file holds.
    Strict,
}

/// A way into a guest.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// Port on the host's loopback address.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Private key file (mode 0600).
    pub key: PathBuf,
    /// Known-hosts file.
    pub known_hosts: PathBuf,
    /// Trust.
    pub host_keys: HostKeys,
}

/// What a finished client left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status: the remote command's, or 255 for the client's own failures.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; stdout: {:?}; stderr: {:?}", self.status, self.stdout, self.stderr)
    }
}

/// Why there is no output.
#[derive(Debug, Error)]
pub enum SshError {
    /// The client couldn't be run.
    #[error("running {program}")]
    Io {
        /// `ssh`, `scp`, `sftp` or `rsync`.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was killed for its deadline.
    #[error("{program} didn't finish within {limit:?}; stderr: {stderr}")]
    Deadline {
        /// `ssh`, `scp`, `sftp` or `rsync`.
        program: &'static str,
        /// The deadline.
        limit: Duration,
        /// What it said before.
        stderr: String,
    },
}

impl Ssh {
    /// Runs `command` in the guest, without input.
    ///
    /// # Errors
    /// When the client can't be run or doesn't finish in time; a failing command is no error.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output, SshError> {
        self.run_with_input(command, b"", limit)
    }

    /// Runs `command` in the guest with `input` as its standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_input(&self, command: &str, input: &[u8], limit: Duration) -> Result<Output, SshError> {
        let mut client = self.client("ssh", "-p");
        client.arg(format!("{}@127.0.0.1", self.user)).arg(command);
        finish("ssh", client, input, limit)
    }

    /// Runs `command` with further options of `ssh`, which count before the usual ones.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_options(&self, options: &[&str], command: &str, limit: Duration) -> Result<Output, SshError> {
        let mut client = bound_command("ssh");
        client.args(options);
        self.tell(&mut client, "-p");
        client.arg(format!("{}@127.0.0.1", self.user)).arg(command);
        finish("ssh", client, b"", limit)
    }

    /// Starts a login shell in the guest on a terminal of `size`, with further `options` for `ssh`.
    ///
    /// # Errors
    /// When there is no terminal, or the client can't be run.
    pub fn terminal(&self, options: &[&str], size: WindowSize) -> Result<Terminal, SshError> {
        let mut client = self.client("ssh", "-p");
        client.arg("-tt").args(options).arg(format!("{}@127.0.0.1", self.user));
        Terminal::start(client, size).map_err(|source| SshError::Io { program: "ssh", source })
    }

    /// Copies a file into the guest.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn copy_to(&self, local: &Path, remote: &str, limit: Duration) -> Result<Output, SshError> {
        let mut client = self.client("scp", "-P");
        client.arg(local).arg(format!("{}@127.0.0.1:{remote}", self.user));
        finish("scp", client, b"", limit)
    }

    /// Copies a file out of the guest.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn copy_from(&self, remote: &str, local: &Path, limit: Duration) -> Result<Output, SshError> {
        let mut client = self.client("scp", "-P");
        client.arg(format!("{}@127.0.0.1:{remote}", self.user)).arg(local);
        finish("scp", client, b"", limit)
    }

    /// Runs `sftp` with `batch` as its commands.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn sftp(&self, batch: &str, limit: Duration) -> Result<Output, SshError> {
        let mut client = self.client("sftp", "-P");
        client.args(["-b", "-"]).arg(format!("{}@127.0.0.1", self.user));
        finish("sftp", client, batch.as_bytes(), limit)
    }

    /// Copies a file or a tree into the guest by `rsync`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn rsync_to(&self, local: &Path, remote: &str, limit: Duration) -> Result<Output, SshError> {
        let ssh = self.client("ssh", "-p");
        let words = std::iter::once(ssh.get_program()).chain(ssh.get_args());
        let shell: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut client = bound_command("rsync");
        client.args(["-a", "-e", &shell.join(" ")]).arg(local).arg(format!("{}@127.0.0.1:{remote}", self.user));
        finish("rsync", client, b"", limit)
    }

    fn client(&self, program: &str, port_option: &str) -> Command {
        let mut client = bound_command(program);
        self.tell(&mut client, port_option);
        client
    }

    /// What every client program of OpenSSH is told; the first word on anything counts.
    fn tell(&self, client: &mut Command, port_option: &str) {
        let checking = match self.host_keys {
            HostKeys::AcceptNew => "accept-new",
            HostKeys::Strict => "yes",
        };
        client.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]);
        client.args(["-o", "GlobalKnownHostsFile=none", "-o", &format!("StrictHostKeyChecking={checking}")]);
        client.args(["-o", &format!("UserKnownHostsFile={}", self.known_hosts.display())]);
        client.arg("-i").arg(&self.key).args([port_option, &self.port.to_string()]);
    }
}

fn finish(program: &'static str, mut client: Command, input: &[u8], limit: Duration) -> Result<Output, SshError> {
    let io = |source| SshError::Io { program, source };
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(client).map_err(io)?;
    let (stdin, stdout, stderr) = {
        let mut child = child.child();
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    };
    let input = input.to_vec();
    // A command that doesn't read its input closes the pipe; that's its right.
    let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let status = child.wait(limit).map_err(io)?;
    child.kill();
    let _ = writer.join();
    let text = |reader: JoinHandle<String>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    match status {
        Some(status) => Ok(Output { status, stdout, stderr }),
        None => Err(SshError::Deadline { program, limit, stderr }),
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a read error is still worth showing.
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Creates an ed25519 key pair without passphrase at `path` and `path.pub` by `ssh-keygen`.
///
/// # Errors
/// When ssh-keygen can't be run or fails.
pub fn generate_key(path: &Path) -> io::Result<()> {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "orrery-test", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ssh-keygen: {status}"))) }
}

/// Adds `public_key` (`ssh-ed25519 AAAA…`) as the key of the guest behind `port` to a known-hosts file.
///
/// # Errors
/// Those of writing the file.
pub fn trust(known_hosts: &Path, port: u16, public_key: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(known_hosts)?;
    writeln!(file, "[127.0.0.1]:{port} {}", public_key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere(folder: &Path, port: u16) -> Ssh {
        let key = folder.join("key");
        generate_key(&key).unwrap();
        let known_hosts = folder.join("known_hosts");
        Ssh { port, user: "nobody".into(), key, known_hosts, host_keys: HostKeys::AcceptNew }
    }

    #[test]
    fn a_closed_port_is_the_clients_failure() {
        let folder = tempfile::tempdir().unwrap();
        let ssh = nowhere(folder.path(), crate::free_port().unwrap());
        let output = ssh.run("true", Duration::from_secs(30)).unwrap();
        assert_eq!(output.status.code(), Some(255), "{output}");
    }

    #[test]
    fn a_silent_server_meets_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ssh = nowhere(folder.path(), listener.local_addr().unwrap().port());
        let error = ssh.run("true", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, SshError::Deadline { program: "ssh", .. }), "{error}");
    }
}
