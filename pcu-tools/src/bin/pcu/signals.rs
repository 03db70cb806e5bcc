//! Signals that ask a command to end.

use std::{fs, io, thread};

use rustix::process::Signal;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// From a terminal's ^C, from its end, and from whoever ends programs.
const ENDING: [Signal; 3] = [Signal::INT, Signal::HUP, Signal::TERM];

/// From now on, calls `each` with the exit status of every signal that asks this program to end, which then does nothing by itself. What this
/// program was started to ignore, as by `nohup`, stays ignored.
pub(crate) fn handle(mut each: impl FnMut(u8) + Send + 'static) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let ignored = ignored()?;
    let (send, mut receive) = mpsc::unbounded_channel();
    for ending in ENDING.map(Signal::as_raw).into_iter().filter(|ending| !ignored(*ending)) {
        let mut signals = {
            let _within = runtime.enter();
            signal(SignalKind::from_raw(ending))?
        };
        let send = send.clone();
        runtime.spawn(async move { while signals.recv().await.is_some() && send.send(ending).is_ok() {} });
    }
    thread::spawn(move || {
        runtime.block_on(async {
            while let Some(ending) = receive.recv().await {
                each(status(ending));
            }
        });
    });
    Ok(())
}

/// What a shell says of a program that a signal ended.
fn status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Which signals this program was started to ignore (proc_pid_status(5), `SigIgn`).
fn ignored() -> io::Result<impl Fn(i32) -> bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    let mask = u64::from_str_radix(mask.trim(), 16).map_err(io::Error::other)?;
    Ok(move |signal: i32| mask >> (signal - 1) & 1 == 1)
}
