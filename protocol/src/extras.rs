//! What a sliver has beyond what all have.

use serde::{Deserialize, Serialize};

/// What a sliver has beyond what all have, on its operator's word. Each is more of the kernel within its reach. A sliver that runs
/// has what it was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extras {
    /// `/dev/fuse`: programs of its own serve file systems. To mount one takes a user namespace, and so nesting.
    pub fuse: bool,
    /// `/dev/net/tun`: programs of its own are network interfaces. To make one takes a network namespace, and so nesting.
    pub tun: bool,
    /// User namespaces, and in them all others and mounts: containers run inside.
    pub nesting: bool,
}

impl Extras {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
