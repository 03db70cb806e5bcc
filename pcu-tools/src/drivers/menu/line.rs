//! What carries a dialogue: bytes to the device and back. Here over telnet; [`super::ssh`] has the other.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
};

use super::telnet::{self, Telnet};
use crate::{Deadline, PcuError};

/// Most bytes that are taken at once.
const PIECE: usize = 4096;

/// A connection to a device's dialogue. Dropping it hangs up.
pub(super) trait Line: Send {
    /// Sends this, followed by what Enter sends when `enter` is set.
    fn say(&mut self, text: &str, enter: bool, deadline: Deadline, doing: &str) -> Result<(), PcuError>;

    /// Waits until something comes; none when the device has hung up.
    ///
    /// # Errors
    /// [`PcuError::Timeout`] when nothing came, [`PcuError::Transport`] when the connection broke.
    fn hear(&mut self, deadline: Deadline, doing: &str) -> Result<Option<Vec<u8>>, PcuError>;
}

/// A connection over telnet.
pub(super) struct TelnetLine {
    stream: TcpStream,
    telnet: Telnet,
}

/// Connects to the first of a host's addresses that answers.
pub(super) fn connect(host: &str, port: u16, deadline: Deadline, doing: &str) -> Result<TcpStream, PcuError> {
    let transport = |error| PcuError::transport(doing, error);
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs().map_err(transport)? {
        match TcpStream::connect_timeout(&address, deadline.left(doing)?) {
            Ok(stream) => {
                // A dialogue is short lines, each of which is waited for.
                stream.set_nodelay(true).map_err(transport)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(transport(last))
}

impl TelnetLine {
    pub(super) fn connect(host: &str, port: u16, deadline: Deadline, doing: &str) -> Result<Self, PcuError> {
        Ok(Self { stream: connect(host, port, deadline, doing)?, telnet: Telnet::default() })
    }

    fn write(&mut self, bytes: &[u8], deadline: Deadline, doing: &str) -> Result<(), PcuError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // Set anew each time: a device that takes one byte at a time would else have the limit for each of them.
            let left = deadline.left(doing)?;
            let written = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write(rest));
            match written {
                Ok(0) => return Err(PcuError::transport(doing, io::ErrorKind::WriteZero.into())),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PcuError::transport(doing, error)),
            }
        }
        Ok(())
    }
}

impl Line for TelnetLine {
    fn say(&mut self, text: &str, enter: bool, deadline: Deadline, doing: &str) -> Result<(), PcuError> {
        let mut bytes = telnet::encode(text.as_bytes());
        if enter {
            // The end of a line of the network virtual terminal, RFC 854.
            bytes.extend(b"\r\n");
        }
        self.write(&bytes, deadline, doing)
    }

    fn hear(&mut self, deadline: Deadline, doing: &str) -> Result<Option<Vec<u8>>, PcuError> {
        let mut piece = [0; PIECE];
        loop {
            let left = deadline.left(doing)?;
            let count = match self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut piece)) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Devices that serve one at a time end others this way, too.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(PcuError::transport(doing, error)),
            };
            let received = self.telnet.receive(&piece[..count]);
            self.write(&received.reply, deadline, doing)?;
            if !received.text.is_empty() {
                return Ok(Some(received.text));
            }
        }
    }
}
