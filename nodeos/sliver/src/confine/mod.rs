//! What a sliver's processes may ask of the kernel, beyond what their namespaces already withhold: which capabilities their
//! root keeps, and which system calls are refused to all of them.
//!
//! Both are tables with a reason in each row. They are applied by whoever becomes the sliver's root, so to the first process
//! and to every session, and nothing inside can take them back. `no_new_privs` is not set: `su`, `sudo` and `passwd` are
//! setuid programs, and a sliver is a whole system with users. A setuid program gains no more than the sliver's root has.

mod calls;
mod capabilities;
mod filter;

use std::io;

use orrery_sys::seccomp;
use rustix::thread;

/// Gives up all capabilities but those of the table, of this process and of everything it will execute, and installs the
/// filter. To be called with `CAP_SYS_ADMIN` in the sliver's user namespace; it is gone afterwards.
///
/// # Errors
/// When the kernel refuses a part. The process must not go on then.
pub(crate) fn confine() -> io::Result<()> {
    let kept = capabilities::kept();
    capabilities::bound(kept)?;
    // Before the capability that allows to install it goes.
    for program in filter::programs().map_err(io::Error::other)? {
        seccomp::install(&program)?;
    }
    let sets = thread::CapabilitySets { effective: kept, permitted: kept, inheritable: thread::CapabilitySet::empty() };
    Ok(thread::set_capabilities(None, sets)?)
}
