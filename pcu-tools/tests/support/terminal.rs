//! A person at a terminal: a program on a pseudo-terminal that is its controlling one, so that ^C may end it.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{InputModes, LocalModes, OutputModes, tcgetattr},
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A terminal and the program on it, which ends with this.
pub(crate) struct Terminal {
    program: Child,
    window: File,
    /// The program's side.
    line: OwnedFd,
    news: Receiver<Vec<u8>>,
    /// All that was shown.
    pub(crate) shown: String,
}

impl Terminal {
    /// Starts a program with these arguments and this variable of the environment.
    pub(crate) fn start(program: &str, arguments: &[&str], (name, value): (&str, &str)) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let window = openpt(flags).unwrap();
        grantpt(&window).unwrap();
        unlockpt(&window).unwrap();
        let line = ioctl_tiocgptpeer(&window, flags).unwrap();
        let side = || Stdio::from(line.try_clone().unwrap());
        // It becomes the program, in a session of its own, which ignores no signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "env", "--default-signal", program]).args(arguments).env(name, value);
        let program = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        let window = File::from(window);
        let (send, news) = mpsc::channel();
        let mut reader = window.try_clone().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { program, window, line, news, shown: String::new() }
    }

    /// Waits until this has been shown.
    pub(crate) fn expect(&mut self, text: &str) {
        let until = Instant::now() + LIMIT;
        while !self.shown.contains(text) {
            let left = until.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(news) => self.shown += &String::from_utf8_lossy(&news),
                Err(_) => panic!("no {text:?} in {:?}", self.shown),
            }
        }
    }

    /// Types these keys.
    pub(crate) fn type_in(&mut self, keys: &str) {
        self.window.write_all(keys.as_bytes()).unwrap();
    }

    /// What the terminal does by itself: echo, signals, lines.
    pub(crate) fn modes(&self) -> (InputModes, OutputModes, LocalModes) {
        let modes = tcgetattr(&self.line).unwrap();
        (modes.input_modes, modes.output_modes, modes.local_modes)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.program), signal).unwrap();
    }

    /// Waits until the program has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.program.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
