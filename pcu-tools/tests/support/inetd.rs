//! Runs a server program for every connection to a port, as inetd does.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// A port of the loopback interface with a program behind it. Dropping it ends the programs.
pub(crate) struct Inetd {
    port: u16,
    ended: Arc<AtomicBool>,
    children: Arc<Mutex<Vec<Child>>>,
    thread: Option<JoinHandle<()>>,
}

impl Inetd {
    /// Starts listening; `program` makes the command that gets a connection as its standard input and output.
    pub(crate) fn start(program: impl Fn() -> Command + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let children = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (ended, children) = (ended.clone(), children.clone());
            move || {
                for stream in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let child = serve(stream.unwrap(), program());
                    children.lock().unwrap().push(child.expect("the caller has looked whether the server is there"));
                }
            }
        });
        Self { port, ended, children, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

fn serve(stream: TcpStream, mut program: Command) -> io::Result<Child> {
    let output = OwnedFd::from(stream.try_clone()?);
    program.stdin(Stdio::from(OwnedFd::from(stream))).stdout(Stdio::from(output)).stderr(Stdio::null()).spawn()
}

impl Drop for Inetd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread; an error means that it has ended.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = self.thread.take().map(JoinHandle::join);
        for child in self.children.lock().unwrap().iter_mut() {
            // An error means that it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
