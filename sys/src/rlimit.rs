//! Resource limits of other processes, which rustix sets but does not read.
#![allow(unsafe_code)] // prlimit64.

use std::{io, mem::MaybeUninit, ptr};

use rustix::process::{Pid, Resource, Rlimit};

/// A limit that a process has (`prlimit(2)`).
///
/// # Errors
/// When there is no such process, or it is somebody's whom this one has no rights over.
pub fn get(process: Pid, resource: Resource) -> io::Result<Rlimit> {
    let mut limit = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: there is no new limit, and the old one is written to memory that has its layout and outlives the call.
    let returned =
        unsafe { libc::prlimit64(process.as_raw_nonzero().get(), resource as u32, ptr::null(), limit.as_mut_ptr()) };
    if returned == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled it in, as the call succeeded.
    let limit = unsafe { limit.assume_init() };
    let known = |value: u64| (value != libc::RLIM64_INFINITY).then_some(value);
    Ok(Rlimit { current: known(limit.rlim_cur), maximum: known(limit.rlim_max) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_are_read() {
        let me = rustix::process::getpid();
        for resource in [Resource::Nofile, Resource::Core, Resource::Memlock] {
            assert_eq!(get(me, resource).expect("reading"), rustix::process::getrlimit(resource));
        }
        let nobody = Pid::from_raw(i32::MAX).expect("a number");
        assert!(get(nobody, Resource::Nofile).is_err());
    }
}
