//! One session: bytes between a channel and a process, until one of them ends.

use std::{
    future::pending,
    io,
    mem::discriminant,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use russh::{
    Sig,
    server::{Handle, Msg},
};
use rustix::{fs::OFlags, io::Errno, process::Signal};
use tokio::{io::unix::AsyncFd, sync::mpsc, time::timeout};

use crate::{
    account::{Session, SessionIo, WindowSize},
    flow::{Backlog, WINDOW},
    process::{Exit, Process, watch},
    queue,
    terminal::set_size,
};

pub(crate) type WriteHalf = russh::ChannelWriteHalf<Msg>;

/// Type code of error output (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// How much is read from a process at once; also the largest packet OpenSSH takes.
pub(crate) const READ_BYTES: usize = 32 << 10;
/// How long a terminal must be silent, after its shell's end, to be given up while background processes hold it open.
const PTY_LINGER: Duration = Duration::from_millis(200);

/// What a client asks of a running session.
pub(crate) enum Control {
    Resize(WindowSize),
    Signal(Signal),
}

/// Resizes and signals that wait for a session; more are dropped.
const MAX_CONTROLS: usize = 64;

/// What leads into a running session or forwarded connection. Dropping this ends it.
pub(crate) struct Feed {
    /// Gone after the client's end of file.
    pub(crate) data: Option<queue::Sender>,
    /// How many bytes the client may still send, as after the last.
    pub(crate) window: u32,
    /// What the client asks.
    pub(crate) control: mpsc::Sender<Control>,
}

/// The other end of a [`Feed`].
pub(crate) struct Inputs {
    /// What the client sends; its end is the client's end of file.
    pub(crate) data: queue::Receiver,
    /// What the client asks; its end is the channel's end.
    pub(crate) control: mpsc::Receiver<Control>,
}

/// The two ends of what leads into a channel that was just opened.
pub(crate) fn feed() -> (Feed, Inputs) {
    let (data, data_receiver) = queue::queue();
    let (control, control_receiver) = mpsc::channel(MAX_CONTROLS);
    (Feed { data: Some(data), window: WINDOW, control }, Inputs { data: data_receiver, control: control_receiver })
}

/// Carries a session to its end and closes the channel.
pub(crate) async fn run(session: Session, channel: WriteHalf, handle: Handle, inputs: Inputs, backlog: &Backlog) {
    let Session { io, process } = session;
    let Inputs { data, mut control } = inputs;
    let ended = match io {
        SessionIo::Pty(master) => match nonblocking(master) {
            Ok(master) => tokio::select! {
                exit = terminal_output(&master, &process, &channel, backlog) => Some(exit),
                () = input(data, &master) => None,
                () = obey(&mut control, &process, Some(&master)) => None,
            },
            Err(_) => None,
        },
        SessionIo::Pipes { stdin, stdout, stderr } => {
            match (nonblocking(stdin), nonblocking(stdout), nonblocking(stderr)) {
                (Ok(stdin), Ok(stdout), Ok(stderr)) => tokio::select! {
                    exit = pipe_output(stdout, stderr, &process, &channel, backlog) => Some(exit),
                    () = input_and_close(data, stdin) => None,
                    () = obey(&mut control, &process, None) => None,
                },
                _ => None,
            }
        }
    };
    // Its input and output are closed by now.
    let exit = match ended {
        Some(exit) => exit,
        None => {
            process.end();
            process.wait().await
        }
    };
    tracing::debug!(?exit, "session ended");
    let _ = finish(exit, &channel, &handle).await;
}

/// Tells the client why there is no session.
pub(crate) async fn refuse(message: String, channel: WriteHalf) {
    let _ = channel.extended_data_bytes(STDERR, message.into_bytes()).await;
    let _ = channel.exit_status(255).await;
    let _ = channel.eof().await;
    let _ = channel.close().await;
}

async fn finish(exit: io::Result<Exit>, channel: &WriteHalf, handle: &Handle) -> Result<(), russh::Error> {
    channel.eof().await?;
    match exit {
        Ok(Exit::Status(status)) => channel.exit_status(status.into()).await?,
        Ok(Exit::Signal { number, core_dumped }) => {
            let (name, text) = signal_name(number);
            let sent = handle.exit_signal_request(channel.id(), name, core_dumped, text, String::new()).await;
            sent.map_err(|()| russh::Error::SendError)?;
        }
        Err(e) => {
            tracing::error!("waiting for a session's process: {e}");
            channel.exit_status(255).await?;
        }
    }
    channel.close().await
}

/// Both outputs to their ends, then the exit. Like OpenSSH, this waits for background processes that still hold them.
async fn pipe_output(
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
    process: &Process,
    channel: &WriteHalf,
    backlog: &Backlog,
) -> io::Result<Exit> {
    let quiet = AtomicBool::new(false);
    tokio::join!(
        output(&stdout, None, channel, &quiet, backlog),
        output(&stderr, Some(STDERR), channel, &quiet, backlog)
    );
    process.wait().await
}

/// A terminal's output until all of its processes are gone, or the first is and the others are silent.
async fn terminal_output(
    master: &AsyncFd<OwnedFd>,
    process: &Process,
    channel: &WriteHalf,
    backlog: &Backlog,
) -> io::Result<Exit> {
    let quiet = AtomicBool::new(false);
    let mut all = pin!(output(master, None, channel, &quiet, backlog));
    tokio::select! {
        () = &mut all => process.wait().await,
        exit = process.wait() => {
            loop {
                quiet.store(true, Ordering::Relaxed);
                if timeout(PTY_LINGER, &mut all).await.is_ok() || quiet.load(Ordering::Relaxed) {
                    return exit;
                }
            }
        }
    }
}

/// Copies to the channel until the end. `quiet` is reset by every byte, and by waiting for the client.
async fn output(
    from: &AsyncFd<OwnedFd>,
    stream: Option<u32>,
    channel: &WriteHalf,
    quiet: &AtomicBool,
    backlog: &Backlog,
) {
    let mut buffer = vec![0; READ_BYTES];
    // A terminal whose last process has closed it reads as EIO.
    while let Ok(count @ 1..) = read(from, &mut buffer).await {
        let bytes = buffer[..count].to_vec();
        let mut send = pin!(async {
            match stream {
                None => channel.data_bytes(bytes).await,
                Some(stream) => channel.extended_data_bytes(stream, bytes).await,
            }
        });
        let sent = std::future::poll_fn(|cx| {
            quiet.store(false, Ordering::Relaxed);
            send.as_mut().poll(cx)
        });
        if sent.await.is_err() {
            return;
        }
        backlog.touch();
        quiet.store(false, Ordering::Relaxed);
    }
}

/// Copies what the client sends to a terminal. Does not end by itself.
async fn input(mut data: queue::Receiver, to: &AsyncFd<OwnedFd>) {
    while let Some(chunk) = data.recv().await {
        // What nobody reads any more is dropped, so that the client is not held up.
        let _ = write_all(to, chunk.bytes()).await;
    }
    pending().await
}

/// Copies what the client sends to a pipe, and closes it at the client's end of file. Does not end by itself.
async fn input_and_close(mut data: queue::Receiver, to: AsyncFd<OwnedFd>) {
    let mut to = Some(to);
    while let Some(chunk) = data.recv().await {
        if let Some(pipe) = &to
            && write_all(pipe, chunk.bytes()).await.is_err()
        {
            to = None;
        }
    }
    drop(to);
    pending().await
}

/// Does what the client asks until the channel ends.
async fn obey(control: &mut mpsc::Receiver<Control>, process: &Process, terminal: Option<&AsyncFd<OwnedFd>>) {
    while let Some(request) = control.recv().await {
        match (request, terminal) {
            (Control::Resize(size), Some(master)) => {
                let _ = set_size(master.get_ref(), size);
            }
            (Control::Resize(_), None) => (),
            (Control::Signal(signal), _) => process.signal(signal),
        }
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    watch(fd)
}

async fn read(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = from.readable().await?;
        match guard.try_io(|fd| retry(|| rustix::io::read(fd.as_fd(), &mut *buffer))) {
            Ok(result) => return result,
            Err(_would_block) => continue,
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = to.writable().await?;
        match guard.try_io(|fd| retry(|| rustix::io::write(fd.as_fd(), bytes))) {
            Ok(written) => bytes = &bytes[written?..],
            Err(_would_block) => continue,
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => continue,
            result => return Ok(result?),
        }
    }
}

/// The signals with a name in RFC 4254, section 6.10. The library does not know the last.
const SIGNALS: [(Signal, Sig); 12] = [
    (Signal::ABORT, Sig::ABRT),
    (Signal::ALARM, Sig::ALRM),
    (Signal::FPE, Sig::FPE),
    (Signal::HUP, Sig::HUP),
    (Signal::ILL, Sig::ILL),
    (Signal::INT, Sig::INT),
    (Signal::KILL, Sig::KILL),
    (Signal::PIPE, Sig::PIPE),
    (Signal::QUIT, Sig::QUIT),
    (Signal::SEGV, Sig::SEGV),
    (Signal::TERM, Sig::TERM),
    (Signal::USR1, Sig::USR1),
];
const USR2: &str = "USR2";

/// The signal a client names.
pub(crate) fn signal(name: &Sig) -> Option<Signal> {
    match name {
        Sig::Custom(other) => (other == USR2).then_some(Signal::USR2),
        name => SIGNALS.iter().find(|(_, sig)| discriminant(sig) == discriminant(name)).map(|(signal, _)| *signal),
    }
}

/// A signal's name on the wire, and a text for people where it has none there.
fn signal_name(number: i32) -> (Sig, String) {
    match SIGNALS.iter().find(|(signal, _)| signal.as_raw() == number) {
        Some((_, name)) => (name.clone(), String::new()),
        None if number == Signal::USR2.as_raw() => (Sig::Custom(USR2.to_owned()), String::new()),
        None => (Sig::Custom("SIG@openssh.com".to_owned()), format!("signal {number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_both_ways() {
        let check = |name: Sig, expect: Option<Signal>| {
            assert_eq!(signal(&name), expect, "{name:?}");
            if let Some(signal) = expect {
                assert_eq!(format!("{:?}", signal_name(signal.as_raw()).0), format!("{name:?}"));
            }
        };
        SIGNALS.into_iter().for_each(|(signal, name)| check(name, Some(signal)));
        check(Sig::Custom("USR2".into()), Some(Signal::USR2));
        check(Sig::Custom("STOP".into()), None);
        assert_eq!(signal_name(Signal::SYS.as_raw()).1, "signal 31");
    }
}
