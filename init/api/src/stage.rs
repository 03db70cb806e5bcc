//! Names of roles, stages and kinds of script.

use std::{error::Error, fmt, str::FromStr};

use crate::{NODEOS_BINARY, STAGE_BINARY};

macro_rules! names {
    ($(#[$outer:meta])+ $name:ident { $($(#[$doc:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$outer])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])+ $variant,)+
        }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name on command lines, the console and in events.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(s: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|it| it.as_str() == s).ok_or(UnknownName)
            }
        }
    };
}

/// None of the names that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown name")
    }
}

impl Error for UnknownName {}

names! {
    /// What this kernel was started for; `orrery.role=` on its command line.
    Role {
        /// The medium: find the boot server, do what its script says.
        Boot = "boot",
        /// The node OS.
        Node = "node",
    }
}

impl Role {
    /// The binary whose first argument is the stage.
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Boot => STAGE_BINARY,
            Self::Node => NODEOS_BINARY,
        }
    }
}

names! {
    /// A child of PID 1; the first argument of its binary.
    Stage {
        /// Find and check the node's configuration.
        Configure = "configure",
        /// Bring an interface up; stays to renew a DHCP lease.
        Network = "network",
        /// Set the clock.
        Time = "time",
        /// Post facts, fetch the signed script.
        Contact = "contact",
        /// Check the script; its result's first word is a [`ScriptWord`].
        Verify = "verify",
        /// Install the node OS on the disk.
        Install = "install",
        /// Write the script's release into the slot that is not active, and arm a trial of it; its result's first word is
        /// `trial` or `current`.
        Upgrade = "upgrade",
        /// Verify the installed node OS and hand it to the kernel; its result is `<release> slot <a|b>`.
        Load = "load",
        /// Download again whatever of the installed node OS is damaged.
        Repair = "repair",
        /// sshd for the administrators; stays.
        Safe = "safe",
        /// Stream events to central; stays, and flushes on SIGTERM.
        Reporter = "reporter",
        /// Check and mount the node's disk.
        Storage = "storage",
        /// Pull the wanted state, keep slivers that way; stays.
        NodeManager = "node-manager",
        /// `ssh slice@node`; stays.
        SshGate = "ssh-gate",
        /// Judge whether this node OS does what it is for; makes a release on trial the active one, or gives it up.
        Health = "health",
    }
}

names! {
    /// What a verified script asks for: the first word of the verify stage's result.
    ScriptWord {
        /// Install, then load.
        Install = "install",
        /// Put a release on trial in the other slot, then load.
        Upgrade = "upgrade",
        /// Load what is installed.
        Boot = "boot",
        /// Open safe mode.
        Safe = "safe",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for stage in Stage::ALL {
            assert_eq!(stage.as_str().parse(), Ok(*stage));
        }
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(*role));
        }
        for word in ScriptWord::ALL {
            assert_eq!(word.as_str().parse(), Ok(*word));
        }
        assert_eq!("reboot".parse::<Stage>(), Err(UnknownName));
    }
}
