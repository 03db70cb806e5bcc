//! The vocabulary of failures.

use std::{error::Error, fmt, str::FromStr};

macro_rules! classes {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal,)+) => {
        /// What kind of failure ended a stage. PID 1 decides what to do next from this word alone; people and
        /// central read the message beside it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum FailureClass {
            $($(#[$doc])+ $variant,)+
        }

        impl FailureClass {
            /// Every class.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in result lines, events and console lines.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

classes! {
    /// No configuration on any source.
    ConfigMissing = "config-missing",
    /// A configuration was found and is broken.
    ConfigInvalid = "config-invalid",
    /// No network interface has a link.
    NoLink = "no-link",
    /// Nobody answered DHCP.
    NoDhcp = "no-dhcp",
    /// The kernel refused an address or a route.
    NetworkSetup = "network-setup",
    /// The server's name did not resolve.
    Dns = "dns",
    /// Nobody accepts connections at the server's address.
    Refused = "refused",
    /// The server is not the one whose authority is pinned, or speaks no TLS 1.3.
    Tls = "tls",
    /// The server answered with an error.
    Http = "http",
    /// A transfer ended early.
    ShortRead = "short-read",
    /// The clock could not be set.
    Clock = "clock",
    /// No valid signature of a key that is trusted.
    Signature = "signature",
    /// Signed for other nodes.
    WrongNode = "wrong-node",
    /// Signed for a time that is over.
    Expired = "expired",
    /// Older than what was accepted before.
    Stale = "stale",
    /// Does not parse.
    Malformed = "malformed",
    /// No disk fits the rule.
    NoDisk = "no-disk",
    /// Several disks fit the rule.
    AmbiguousDisk = "ambiguous-disk",
    /// The disk holds data that nobody allowed to wipe.
    ForeignData = "foreign-data",
    /// The disk is too small.
    DiskTooSmall = "disk-too-small",
    /// No space left.
    DiskFull = "disk-full",
    /// A disk or file could not be read or written.
    Io = "io",
    /// The bytes are not those that were signed for.
    Tampered = "tampered",
    /// Nothing complete is installed.
    NotInstalled = "not-installed",
    /// The kernel refused to load or start the next one.
    Kexec = "kexec",
    /// The stage ended without a result.
    Crashed = "crashed",
    /// The stage did not end in time.
    Deadline = "deadline",
    /// A bug of ours.
    Internal = "internal",
    /// The server does not know this node.
    UnknownNode = "unknown-node",
    /// The server has no script for this node.
    NoScript = "no-script",
    /// The medium cannot be read.
    Media = "media",
    /// The machine lacks something that is needed.
    Hardware = "hardware",
    /// Central did not accept this node's token, or its key any more.
    Enrolment = "enrolment",
    /// A trust update that the root in force did not sign.
    TrustRoot = "trust-root",
    /// A release on trial that did not become healthy.
    Unhealthy = "unhealthy",
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not a word of [`FailureClass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownClass;

impl fmt::Display for UnknownClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a class of failure")
    }
}

impl Error for UnknownClass {}

impl FromStr for FailureClass {
    type Err = UnknownClass;

    fn from_str(s: &str) -> Result<Self, UnknownClass> {
        Self::ALL.iter().copied().find(|class| class.as_str() == s).ok_or(UnknownClass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_reads_back_from_its_word() {
        for class in FailureClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(*class));
            assert!(class.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{class}");
        }
        assert_eq!("".parse::<FailureClass>(), Err(UnknownClass));
        assert_eq!("Dns".parse::<FailureClass>(), Err(UnknownClass));
    }
}
