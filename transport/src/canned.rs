//! A server whose answer is known beforehand, byte by byte: for tests of what the client makes of it.

use std::sync::Arc;

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

use crate::{Client, Resolver, agent_over, tls};

/// A client whose every connection yields `answer` and then ends, whatever is asked. All but TLS is as it is with central.
pub fn client(answer: &[u8]) -> Client {
    let connector = Canned(answer.into());
    // A literal address, so that nobody is asked for it.
    let agent = agent_over(connector, tls().build(), Resolver::Servers(Vec::new()), true);
    Client { base: "https://192.0.2.1".into(), agent }
}

#[derive(Debug)]
struct Canned(Arc<[u8]>);

impl Connector for Canned {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Connection>, ureq::Error> {
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Connection { buffers, answer: self.0.clone(), given: 0 }))
    }
}

#[derive(Debug)]
struct Connection {
    buffers: LazyBuffers,
    answer: Arc<[u8]>,
    given: usize,
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let rest = &self.answer[self.given..];
        let room = self.buffers.input_append_buf();
        let count = rest.len().min(room.len());
        room[..count].copy_from_slice(&rest[..count]);
        self.buffers.input_appended(count);
        self.given += count;
        Ok(count > 0)
    }

    /// Each request gets a connection of its own, and so the whole answer.
    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use orrery_protocol::{ArtifactRef, Digest};

    use super::*;
    use crate::TransportError;

    #[test]
    fn bodies_are_read_to_their_limit() {
        let check = |answer: &[u8], expect: Option<&[u8]>| {
            assert_eq!(client(answer).get_bytes("/x", 5).ok().as_deref(), expect, "{}", answer.escape_ascii());
        };
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Some(b"hello"));
        check(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Some(b"hello"));
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello!", None);
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", None);
        check(b"HTTP/1.1 200 OK\r\n", None);
        check(b"", None);
    }

    #[test]
    fn a_refusal_says_why() {
        let answer =
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 41\r\n\r\n{\"error\": \"no-script\", \"message\": \"none\"}";
        match client(answer).get_bytes("/x", 5) {
            Err(TransportError::Refused { status: 404, class, .. }) => assert_eq!(class, "no-script"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_range_is_demanded() {
        let artifact = ArtifactRef { sha256: Digest([0; 32]), size: 9 };
        let read = |answer: &[u8]| {
            let mut bytes = Vec::new();
            client(answer).artifact_part(&artifact, 2..4).ok()?.read_to_end(&mut bytes).ok()?;
            Some(bytes)
        };
        assert_eq!(read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"), None);
        assert_eq!(read(b"HTTP/1.1 206 OK\r\ncontent-length: 2\r\n\r\nab"), Some(b"ab".to_vec()));
    }
}
