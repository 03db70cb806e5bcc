//! Packet sockets (packet(7)).
#![allow(unsafe_code)] // rustix lacks this option.

use std::{io, os::fd::AsRawFd};

/// Has a packet socket hear nothing more of what this machine itself sends.
///
/// # Errors
/// When it is no packet socket.
pub fn ignore_outgoing(socket: &impl AsRawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads an integer of that size, which outlives the call, and no memory depends on the option.
    let returned = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size,
        )
    };
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
