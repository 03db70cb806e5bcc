//! Flow control of what clients send.
//!
//! The protocol library grants a client new window as soon as data arrives, not when somebody has used it, and it calls
//! its handler on the one task that also sends: a handler that waited for a full pipe would stop the very output
//! whose reading would empty that pipe. So received data is queued without waiting, and the queue is bounded from
//! outside: past [`HIGH_WATER`], the connection is read only a little at a time, and windows are topped up to next to
//! nothing. Reading never stops altogether, since the client's own window adjustments come the same way, and output may
//! be waiting for exactly those. It becomes the slower the more is queued: in a week, a client that heeds its windows sends
//! less than two MiB that nobody reads. One that does not is ended (`Connection::data`).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::SetOnce,
    time::{Instant, Sleep, sleep_until},
};

/// Bytes queued for all of a connection's processes from which on the client is slowed down.
const HIGH_WATER: usize = 512 << 10;
/// Bytes queued from which on the connection is ended: two dozen channels of which nobody has read anything for hours.
pub(crate) const MOST_QUEUED: usize = 12 << 20;
/// The window a channel starts with.
pub(crate) const WINDOW: u32 = 512 << 10;
/// The smallest window the protocol library still tops up once it is used up. A packet that small is followed by a
/// packet of the same size only after a round trip.
const TRICKLE_WINDOW: u32 = 2;
/// How often, and how much, is read from a slowed down connection; half as often with each [`STEP`] more that is queued, so that
/// each takes twice as long as the one before.
const TRICKLE_INTERVAL: Duration = Duration::from_millis(10);
const TRICKLE_BYTES: usize = 2048;
const STEP: usize = 128 << 10;
/// Five seconds between reads: a client must still be seen to answer.
const MOST_STEPS: u32 = 9;

/// What a connection has queued, when it last carried anything, and whether it is to end.
pub(crate) struct Backlog {
    last: Mutex<Instant>,
    queued: AtomicUsize,
    dismissed: SetOnce<String>,
    severed: AtomicBool,
    reader: Mutex<Option<Waker>>,
    writer: Mutex<Option<Waker>>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            queued: AtomicUsize::default(),
            dismissed: SetOnce::new(),
            severed: AtomicBool::default(),
            reader: Mutex::default(),
            writer: Mutex::default(),
        }
    }
}

impl Backlog {
    /// Data went one way or the other. Keepalives and requests do not count.
    pub(crate) fn touch(&self) {
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Instant::now();
    }

    /// Returns once no data has gone either way for `limit`.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let end = *self.last.lock().unwrap_or_else(|e| e.into_inner()) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// `bytes` were queued.
    pub(crate) fn add(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` left the queue.
    pub(crate) fn remove(&self, bytes: usize) {
        let before = self.queued.fetch_sub(bytes, Ordering::Relaxed);
        if before > HIGH_WATER && before - bytes <= HIGH_WATER {
            wake(&self.reader);
        }
    }

    /// The window to grant next time.
    pub(crate) fn window(&self) -> u32 {
        if self.is_high() { TRICKLE_WINDOW } else { WINDOW }
    }

    /// Has the client told `why` its connection ends, and ends it. The first word counts.
    pub(crate) fn dismiss(&self, why: impl Into<String>) {
        let _ = self.dismissed.set(why.into());
    }

    /// Why the connection is to end, once it is.
    pub(crate) async fn dismissed(&self) -> &str {
        self.dismissed.wait().await
    }

    /// Ends the connection, whatever its peer does or does not do.
    pub(crate) fn sever(&self) {
        self.severed.store(true, Ordering::Relaxed);
        wake(&self.reader);
        wake(&self.writer);
    }

    fn is_high(&self) -> bool {
        self.queued() > HIGH_WATER
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// How long to read nothing after a little was read.
    fn interval(&self) -> Duration {
        let steps = self.queued().saturating_sub(HIGH_WATER) / STEP;
        TRICKLE_INTERVAL * (1 << u32::try_from(steps).unwrap_or(u32::MAX).min(MOST_STEPS))
    }

    pub(crate) fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Relaxed)
    }
}

fn wake(waker: &Mutex<Option<Waker>>) {
    if let Some(waker) = waker.lock().unwrap_or_else(|e| e.into_inner()).take() {
        waker.wake();
    }
}

fn note(waker: &Mutex<Option<Waker>>, cx: &Context<'_>) {
    *waker.lock().unwrap_or_else(|e| e.into_inner()) = Some(cx.waker().clone());
}

/// A client's connection, read as fast as its [`Backlog`] allows.
pub(crate) struct PacedStream {
    stream: TcpStream,
    backlog: Arc<Backlog>,
    pause: Pin<Box<Sleep>>,
}

impl PacedStream {
    pub(crate) fn new(stream: TcpStream, backlog: Arc<Backlog>) -> Self {
        Self { stream, backlog, pause: Box::pin(sleep_until(Instant::now())) }
    }

    fn check(&self) -> io::Result<()> {
        if self.backlog.is_severed() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for PacedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Registered before looking, so that no change in between is missed.
        note(&self.backlog.reader, cx);
        self.check()?;
        if !self.backlog.is_high() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        ready!(self.pause.as_mut().poll(cx));
        let mut chunk = [0; TRICKLE_BYTES];
        let room = buf.remaining().min(TRICKLE_BYTES);
        let mut part = ReadBuf::new(&mut chunk[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        let interval = self.backlog.interval();
        self.pause.as_mut().reset(Instant::now() + interval);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PacedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        note(&self.backlog.writer, cx);
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_queue_grows_ever_slower() {
        let check = |queued: usize, window: u32, milliseconds: u64| {
            let backlog = Backlog::default();
            backlog.add(queued);
            let got = (backlog.window(), backlog.interval());
            assert_eq!(got, (window, Duration::from_millis(milliseconds)), "{queued}");
            backlog.remove(queued);
            assert_eq!((backlog.queued(), backlog.window()), (0, WINDOW));
        };
        check(0, WINDOW, 10);
        check(HIGH_WATER, WINDOW, 10);
        check(HIGH_WATER + 1, TRICKLE_WINDOW, 10);
        check(HIGH_WATER + STEP, TRICKLE_WINDOW, 20);
        check(HIGH_WATER + 9 * STEP, TRICKLE_WINDOW, 5120);
        check(MOST_QUEUED, TRICKLE_WINDOW, 5120);
    }
}
