//! What a sliver's processes may ask of the kernel, beyond what their namespaces already withhold: which capabilities their
//! root keeps, which system calls are refused to all of them, and whom they reach by names that know no namespace.
//!
//! The first two are tables with a reason in each row. All is applied by the first process, of which the others descend, and
//! nothing inside can take it back. `no_new_privs` is not set: `su`, `sudo` and `passwd` are
//! setuid programs, and a sliver is a whole system with users. A setuid program gains no more than the sliver's root has.

mod calls;
mod capabilities;
mod filter;
mod scope;

use std::{io, sync::LazyLock};

use libc::sock_filter;
use orrery_sys::seccomp;
use rustix::thread;

use crate::admin::Broker;

/// The filter of most slivers.
static USUAL: LazyLock<Vec<sock_filter>> = LazyLock::new(|| filter::program(false, false));

/// Makes what [`confine`] needs for most slivers, so that processes which are forked from this one have it.
pub(crate) fn prepare() {
    LazyLock::force(&USUAL);
}

/// Gives up all capabilities but those of the table, of this process and of everything it will execute, and makes the sliver's
/// Landlock domain and filter, which leaves out what containers need where `nesting` says so. With a `broker`, that gets the calls
/// for sockets over the node's network, instead of their refusal. To be called with `CAP_SYS_ADMIN` in the sliver's user
/// namespace; it is gone afterwards.
///
/// # Errors
/// When the kernel refuses a part. The process must not go on then.
pub(crate) fn confine(nesting: bool, broker: Option<Broker>) -> io::Result<()> {
    let kept = capabilities::kept();
    capabilities::bound(kept)?;
    // Before the capability that these two need goes.
    scope::enter().map_err(io::Error::other)?;
    match (nesting, &broker) {
        (false, None) => seccomp::install(&USUAL)?,
        _ => seccomp::install(&filter::program(nesting, broker.is_some()))?,
    }
    if let Some(broker) = broker {
        broker.give(seccomp::install_with_listener(&filter::handed_over())?)?;
    }
    let sets = thread::CapabilitySets { effective: kept, permitted: kept, inheritable: thread::CapabilitySet::empty() };
    Ok(thread::set_capabilities(None, sets)?)
}
