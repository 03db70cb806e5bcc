//! Disk images and host ports for scenarios.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Creates a sparse raw disk of `bytes`, replacing what was there.
///
/// # Errors
/// Those of creating and sizing the file.
pub fn create_disk(path: impl AsRef<Path>, bytes: u64) -> io::Result<()> {
    File::create(path)?.set_len(bytes)
}

/// Inverts every bit of the byte at `offset`.
///
/// # Errors
/// Those of reading and writing the file; `UnexpectedEof` past its end.
pub fn flip_byte(path: impl AsRef<Path>, offset: u64) -> io::Result<()> {
    exclusive_or(path.as_ref(), offset, 0xff)
}

/// Inverts one bit (0 is the least significant) of the byte at `offset`.
///
/// # Errors
/// Those of reading and writing the file; `UnexpectedEof` past its end.
pub fn flip_bit(path: impl AsRef<Path>, offset: u64, bit: u8) -> io::Result<()> {
    exclusive_or(path.as_ref(), offset, 1 << (bit & 7))
}

fn exclusive_or(path: &Path, offset: u64, mask: u8) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ mask], offset)
}

/// A TCP port of the loopback address that was free a moment ago.
///
/// # Errors
/// Those of binding a socket.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
