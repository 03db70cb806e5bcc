//! IPMI 2.0 over a LAN, as bytes: RMCP and RMCP+ framing, sessions, messages, the commands that power control needs, and
//! serial over LAN. Nothing here has a socket or a clock: a [`Login`] and the [`Session`] that comes out of it are given
//! datagrams and the time, and say what to send and when.
//!
//! Sections are those of the Intelligent Platform Management Interface Specification, Second Generation, v2.0, revision 1.1.
//!
//! Absent on purpose: cipher suites without authentication, integrity and encryption (0, 1, 2 and their like) and those with
//! MD5 or RC4; MD2; the BMC key K<sub>G</sub>; bridging to other controllers; being a BMC.

mod bytes;
pub mod capabilities;
pub mod chassis;
pub mod command;
mod completion;
mod credentials;
mod integrity;
mod lan15;
mod login;
mod message;
mod packet;
pub mod presence;
mod rakp;
mod resend;
mod rmcp;
pub mod sdr;
pub mod sel;
mod session;
pub mod sol;
mod suite;
mod window;

pub use bytes::Malformed;
pub use command::{Answer, Request, Unusable};
pub use completion::Completion;
pub use credentials::{Credentials, CredentialsError};
pub use integrity::{Keys, Rejected};
pub use lan15::Authentication15;
pub use login::{Login, LoginError, Progress, Step};
pub use message::{BMC, Message, REMOTE_CONSOLE};
pub use packet::{Packet, PayloadType};
pub use rakp::{Handshake, OpenSession, Opened, Proof, Rakp1, Rakp2, Rakp3, Rakp4, Status};
pub use resend::Resend;
pub use rmcp::{Class, PORT, unwrap, wrap};
pub use session::{Discarded, Received, Session};
pub use suite::Suite;
pub use window::Window;

/// Fills a buffer with random bytes that nobody can guess: session numbers, nonces and initialisation vectors come from it.
pub type Random = fn(&mut [u8]);

/// What an account may do (6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Privilege {
    /// Read.
    User = 2,
    /// Also switch power and choose what to boot.
    Operator = 3,
    /// Also configure.
    Administrator = 4,
}
