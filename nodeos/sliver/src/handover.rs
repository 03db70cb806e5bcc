//! Messages that carry descriptors, between the node's side and a sliver's.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Descriptors that a message has room for.
const MOST: usize = 3;

/// Sends a message. It does not wait where `flags` say so.
pub(crate) fn send(socket: impl AsFd, text: &[u8], descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no space for descriptors"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL | flags)?;
    Ok(())
}

/// Receives a message into `buffer`. Returns its length and what descriptors it has, in the order they were sent.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((got.bytes, descriptors.flatten().collect()))
}

/// Answers whoever asked for something inside: with [`crate::enter::STARTED`] and perhaps a descriptor, or with an error's text.
pub(crate) fn answer(control: &UnixStream, text: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send(control, text, descriptor.as_slice(), SendFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    #[test]
    fn descriptors_come_in_the_order_they_were_sent() {
        let (ours, theirs) = UnixStream::pair().expect("making a connection");
        let (reader, writer) = rustix::pipe::pipe().expect("making a pipe");
        let null = File::open("/dev/null").expect("opening /dev/null");
        send(&ours, b"hello", &[null.as_fd(), writer.as_fd(), null.as_fd()], SendFlags::DONTWAIT).expect("sending");
        drop(writer);
        let mut buffer = [0; 16];
        let (length, descriptors) = receive(&theirs, &mut buffer).expect("receiving");
        assert_eq!((&buffer[..length], descriptors.len()), (b"hello".as_slice(), 3));
        rustix::io::write(&descriptors[1], b"through").expect("writing to what was sent");
        drop(descriptors);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).expect("reading");
        assert_eq!(text, "through");
        send(&ours, b"alone", &[], SendFlags::empty()).expect("sending");
        assert_eq!(receive(&theirs, &mut buffer).expect("receiving").1.len(), 0);
    }
}
