//! Loading the next kernel (kexec_file_load(2)).
#![allow(unsafe_code)] // The call has no wrapper.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Gives the kernel its successor with an initramfs and a command line. What it executes is a copy made now: the files may
/// change afterwards.
///
/// # Errors
/// As kexec_file_load(2): `EPERM` where loading is switched off, `ENOEXEC` where `kernel` is no kernel.
pub fn file_load(kernel: impl AsFd, initramfs: impl AsFd, command_line: &CStr) -> io::Result<()> {
    let (kernel, initramfs) = (kernel.as_fd().as_raw_fd(), initramfs.as_fd().as_raw_fd());
    let bytes = command_line.to_bytes_with_nul();
    // SAFETY: both descriptors are open for the duration of the borrows; the pointer is valid for the length given, which
    // includes the final NUL as the call demands; the kernel only reads it.
    let result = unsafe {
        libc::syscall(libc::SYS_kexec_file_load, kernel, initramfs, bytes.len(), bytes.as_ptr(), 0 as libc::c_ulong)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused() {
        let null = File::open("/dev/null").expect("opening /dev/null");
        assert!(file_load(&null, &null, c"quiet").is_err());
    }
}
