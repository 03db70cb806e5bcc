//! What makes a slice administrative (the paper, section 4.3): a view of the whole node, and rights over it.

use alloc::{collections::BTreeSet, string::String};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A part of the node that a sliver sees below `/node`. Nothing of it can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// All processes, by their own numbers: `/node/proc`.
    Processes,
    /// All control groups, with what each sliver uses and may use: `/node/cgroup`.
    Cgroups,
    /// Devices and their counters: `/node/sys`.
    Hardware,
    /// What the node reports and central does not have yet: `/node/events.jsonl`.
    Events,
}

/// A right over the node, under the name of the kernel's capability for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Packet and raw IP sockets on the node's network: to capture and send any packet.
    NetRaw,
}

/// Not one of the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminWordError {
    /// All of them.
    words: &'static [&'static str],
}

impl fmt::Display for AdminWordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is only ")?;
        for (index, word) in self.words.iter().enumerate() {
            write!(f, "{}`{word}`", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl core::error::Error for AdminWordError {}

/// Words of a type, in the order of its values.
macro_rules! words {
    ($kind:ident: $($value:ident = $word:literal),+) => {
        impl $kind {
            /// Its name in configuration and on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }

        impl FromStr for $kind {
            type Err = AdminWordError;

            fn from_str(text: &str) -> Result<Self, AdminWordError> {
                match text { $($word => Ok(Self::$value),)+ _ => Err(AdminWordError { words: &[$($word),+] }) }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

words!(View: Processes = "processes", Cgroups = "cgroups", Hardware = "hardware", Events = "events");
words!(Capability: NetRaw = "net_raw");

/// What an operator gives the slivers of a slice beyond their own walls. The default, an ordinary slice, has nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// What they see.
    pub views: BTreeSet<View>,
    /// What they may do.
    pub capabilities: BTreeSet<Capability>,
}

impl Admin {
    /// Whether the slice is an ordinary one.
    pub fn is_none(&self) -> bool {
        self.views.is_empty() && self.capabilities.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn words_are_read_and_written() {
        let text = r#"{"views":["processes","events"],"capabilities":["net_raw"]}"#;
        let admin: Admin = serde_json::from_str(text).unwrap();
        assert!(!admin.is_none() && admin.views.contains(&View::Events));
        assert_eq!(serde_json::to_string(&admin).unwrap(), text);
        assert!(serde_json::from_str::<Admin>("{}").unwrap().is_none());
        assert!(serde_json::from_str::<Admin>(r#"{"capabilities":["sys_admin"]}"#).is_err());
        let refused = "all".parse::<View>().unwrap_err().to_string();
        assert_eq!(refused, "there is only `processes`, `cgroups`, `hardware`, `events`");
    }
}
