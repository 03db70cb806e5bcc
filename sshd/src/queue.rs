//! Received bytes on their way from the connection's handler, which never waits, to a process.
//!
//! A queue costs about what is in it, however small the packets were that it came in.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::flow::Backlog;

/// What a chunk costs beside its bytes.
const CHUNK_OVERHEAD: usize = 64;
/// Packets are put together up to this size, which is that of the largest.
const CHUNK_BYTES: usize = 32 << 10;

/// The end to put bytes in. Dropping it is the end of file.
pub(crate) struct Sender(Arc<Queue>);

/// The end to take bytes from. Dropping it drops them, and all that would follow.
pub(crate) struct Receiver(Arc<Queue>);

/// Received bytes. They count until this is dropped.
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    backlog: Arc<Backlog>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    ended: bool,
    unwanted: bool,
}

/// A new queue's two ends.
pub(crate) fn queue() -> (Sender, Receiver) {
    let queue = Arc::<Queue>::default();
    (Sender(queue.clone()), Receiver(queue))
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Sender {
    /// Queues `bytes`, which count in `backlog`.
    pub(crate) fn send(&self, bytes: &[u8], backlog: &Arc<Backlog>) {
        backlog.touch();
        let mut state = self.0.state();
        if state.unwanted || bytes.is_empty() {
            return;
        }
        match state.chunks.back_mut() {
            Some(last) if last.bytes.len() + bytes.len() <= CHUNK_BYTES => last.append(bytes),
            _ => state.chunks.push_back(Chunk::new(bytes, backlog)),
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_one();
    }
}

impl Receiver {
    /// The next bytes, or `None` at the end of file.
    pub(crate) async fn recv(&mut self) -> Option<Chunk> {
        loop {
            {
                let mut state = self.0.state();
                if let Some(chunk) = state.chunks.pop_front() {
                    return Some(chunk);
                }
                if state.ended {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.unwanted = true;
        state.chunks.clear();
    }
}

impl Chunk {
    fn new(bytes: &[u8], backlog: &Arc<Backlog>) -> Self {
        backlog.add(bytes.len() + CHUNK_OVERHEAD);
        Self { bytes: bytes.to_vec(), backlog: backlog.clone() }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.backlog.add(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.backlog.remove(self.bytes.len() + CHUNK_OVERHEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_queued_costs_what_it_is() {
        let check = |packets: usize, size: usize, most: usize| {
            let backlog = Arc::new(Backlog::default());
            let (sender, receiver) = queue();
            for _ in 0..packets {
                sender.send(&vec![b'x'; size], &backlog);
            }
            let queued = backlog.queued();
            assert!((packets * size..=most).contains(&queued), "{packets} of {size} bytes: {queued}");
            drop(receiver);
            sender.send(b"late", &backlog);
            assert_eq!(backlog.queued(), 0);
        };
        check(0, 1, 0);
        check(1, 1, 1 + CHUNK_OVERHEAD);
        check(512 << 10, 1, (512 << 10) + 16 * CHUNK_OVERHEAD);
        check(16, CHUNK_BYTES, (512 << 10) + 16 * CHUNK_OVERHEAD);
    }

    #[tokio::test]
    async fn bytes_come_in_order_up_to_the_end() {
        let backlog = Arc::new(Backlog::default());
        let (sender, mut receiver) = queue();
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for (number, part) in sent.chunks(777).enumerate() {
            sender.send(part, &backlog);
            // One that is only a beginning, and one that is taken before there is more.
            if number == 3 {
                assert_eq!(receiver.recv().await.unwrap().bytes(), &sent[..4 * 777]);
            }
        }
        drop(sender);
        let mut got = sent[..4 * 777].to_vec();
        while let Some(chunk) = receiver.recv().await {
            got.extend_from_slice(chunk.bytes());
        }
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        assert_eq!(backlog.queued(), 0);
    }
}
