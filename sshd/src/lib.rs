//! An ssh server for machines without user accounts of their own.
//!
//! Who may log in ([`Accounts`]) and what a login starts ([`Login`]) are the caller's; this crate is the protocol
//! between them and a stock OpenSSH client: public key authentication, shells, commands and subsystems with or without a
//! terminal, exit statuses and signals, forwarding of ports and of the agent for logins that may, flow control in both
//! directions, limits on connections and on their idleness.
//!
//! Not here, on purpose: passwords, X11 forwarding, forwarding of Unix sockets, and any notion of who a user is.

mod account;
mod calls;
mod channel;
mod connection;
mod flow;
mod forward;
mod host_key;
mod local;
mod places;
mod process;
mod queue;
mod server;
mod terminal;

pub use account::{
    Accounts, AgentListener, Command, Family, KeyList, Login, Network, Pty, Session, SessionIo, SessionRequest,
    WindowSize,
};
pub use host_key::HostKey;
pub use local::LocalShell;
pub use process::{Elsewhere, Exit, Process};
pub use russh::keys::PublicKey;
pub use server::{Limits, serve, serve_blocking};

/// Parses one key in OpenSSH's one-line form (`ssh-ed25519 AAAA… comment`).
///
/// # Errors
/// When it is not a public key, or one of an algorithm this server does not speak.
pub fn parse_key(line: &str) -> Result<PublicKey, KeyError> {
    PublicKey::from_openssh(line.trim()).map_err(|source| KeyError { source })
}

/// Not a public key in OpenSSH's one-line form.
#[derive(Debug, thiserror::Error)]
#[error("not an OpenSSH public key: {source}")]
pub struct KeyError {
    source: russh::keys::ssh_key::Error,
}
