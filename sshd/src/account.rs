//! What the embedding program provides: who may log in, and what a login starts.

use std::{
    any::Any,
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    sync::Arc,
};

use russh::keys::PublicKey;

use crate::process::Process;

/// Decides who may log in. Asked anew at every authentication, so that an answer may change at any time; and while a connection
/// lasts, if [`crate::Limits::recheck`] says so.
pub trait Accounts: Send + Sync + 'static {
    /// The login of `user` with `key`, or `None` to refuse. That the client holds the private half is proven by
    /// the caller before the login is used.
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>>;
}

/// An authenticated account.
pub trait Login: Send + Sync + 'static {
    /// Starts what a client asks for. Called on a thread of its own, so that it may wait; of which an account has a few
    /// ([`crate::Limits::calls_per_account`]).
    ///
    /// # Errors
    /// The client is shown the error and gets exit status 255.
    fn spawn(&self, request: &SessionRequest) -> io::Result<Session>;

    /// Where connections for the client are made, and listened for. Nothing is forwarded unless the login has this: what a
    /// login is shut into, the server's own network is outside of.
    fn network(&self) -> Option<Arc<dyn Network>> {
        None
    }
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Makes the sockets of what a login has forwarded (`ssh -L`, `-D`, `-R`, `-A`), so that they are the login's and not the
/// server's. Everything here is called on a thread that may wait.
pub trait Network: Send + Sync + 'static {
    /// The addresses of a host by its name; never asked about a literal address or `localhost`.
    ///
    /// # Errors
    /// There is no such host, or nobody who would know.
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;

    /// A TCP socket that is neither bound nor connected, and does not block.
    ///
    /// # Errors
    /// It cannot be made.
    fn socket(&self, family: Family) -> io::Result<OwnedFd>;

    /// Listens at `path`, as a session's programs see it, for those that ask the client's agent. Its folder is made for it, and
    /// nobody else's.
    ///
    /// # Errors
    /// It cannot be done, or is not.
    fn agent(&self, path: &Path) -> io::Result<AgentListener>;
}

/// Where a session's programs find the client's agent.
pub struct AgentListener {
    /// Accepts them.
    pub listener: UnixListener,
    /// Dropped when the session has ended.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRequest {
    /// What to run.
    pub command: Command,
    /// The terminal to run it on, if the client asked for one.
    pub pty: Option<Pty>,
    /// Environment variables the client sent; only `LANG` and `LC_*` get here.
    pub env: Vec<(String, String)>,
    /// Where the client is.
    pub peer: Option<SocketAddr>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A login shell.
    Shell,
    /// A command line for the account's shell, without a zero byte.
    Exec(OsString),
    /// A subsystem by name, as `sftp`.
    Subsystem(String),
}

/// A terminal by type, size and modes; [`Pty::apply_to`] makes one like it, or [`orrery_sys::terminal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// Value for `TERM`.
    pub term: String,
    /// Size at the start.
    pub size: WindowSize,
    /// What keys and line ends do, as the client's terminal has it: values of modes by their numbers in RFC 4254, section 8.
    pub modes: Vec<(u8, u32)>,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns of characters.
    pub columns: u16,
    /// Rows of characters.
    pub rows: u16,
}

/// A running session.
#[derive(Debug)]
pub struct Session {
    /// Its input and output.
    pub io: SessionIo,
    /// Its process. The server waits for it.
    pub process: Process,
}

/// The server's ends of a session's input and output.
#[derive(Debug)]
pub enum SessionIo {
    /// A terminal's master side.
    Pty(OwnedFd),
    /// Three pipes or sockets.
    Pipes {
        /// To write the session's input to.
        stdin: OwnedFd,
        /// To read its output from.
        stdout: OwnedFd,
        /// To read its error output from.
        stderr: OwnedFd,
    },
}

/// One account with a fixed list of keys.
pub struct KeyList {
    user: String,
    keys: Vec<PublicKey>,
    login: Arc<dyn Login>,
}

impl KeyList {
    /// Admits `user` with any of `keys` to `login`.
    pub fn new(user: impl Into<String>, keys: Vec<PublicKey>, login: Arc<dyn Login>) -> Self {
        Self { user: user.into(), keys, login }
    }
}

impl Accounts for KeyList {
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        // The comment is part of a parsed key and says nothing about who it is.
        let known = user == self.user && self.keys.iter().any(|k| k.key_data() == key.key_data());
        known.then(|| self.login.clone())
    }
}
