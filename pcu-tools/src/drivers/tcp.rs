//! Connecting within a deadline.

use std::net::{TcpStream, ToSocketAddrs};

use crate::{Deadline, PcuError};

/// Connects to the first of a host's addresses that answers.
pub(super) fn connect((host, port): &(String, u16), deadline: Deadline) -> Result<TcpStream, PcuError> {
    let doing = format!("connecting to {host} port {port}");
    let addresses =
        (host.as_str(), *port).to_socket_addrs().map_err(|error| PcuError::transport(doing.as_str(), error))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, deadline.left(&doing)?) {
            Ok(stream) => {
                let set = stream.set_nodelay(true);
                return set.map(|()| stream).map_err(|error| PcuError::transport(doing, error));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(PcuError::transport(doing, last.unwrap_or_else(|| std::io::Error::other("the name has no address"))))
}
