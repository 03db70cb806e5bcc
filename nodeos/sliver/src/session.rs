//! A session: a process that the sliver's first forked for a command, or for a socket.
//!
//! It is inside in every respect, and confined. What it works with it is given: a command's standard descriptors, and the connection
//! to whoever asked. It forks the command, lasts as long, and tells how that ended; when whoever waits
//! for that is gone, the session ends, and the command is sent SIGHUP.

use std::{
    convert::Infallible,
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process,
};

use orrery_sys::{
    namespace::{self, Fork, fork},
    terminal,
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags, ResolveFlags},
    net::SendFlags,
    process::{Pid, PidfdFlags, Signal, WaitOptions},
    pty::OpenptFlags,
    termios::Winsize,
};

use crate::{
    enter::{Command, Pty, Run, SIGNALS, STARTED, Task, doing},
    handover::{answer, receive, send},
    socket,
    user::Identity,
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Tells a session what to do, and gives it standard input, output and error.
pub(crate) fn tell(mut session: &UnixStream, stdio: &[OwnedFd], task: &Task) -> io::Result<()> {
    let stdio: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
    send(session, &[0], &stdio, SendFlags::empty())?;
    let text = serde_json::to_vec(task)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    // At once, or it would wait a second time.
    session.write_all(&[&length.to_ne_bytes()[..], &text].concat())
}

/// The whole life of a session.
pub(crate) fn run(connection: &UnixStream) {
    // Not that of the first process, for `ps`.
    let _ = rustix::thread::set_name(c"session");
    if let Err(error) = work(connection) {
        let _ = answer(connection, error.to_string().as_bytes(), None);
        // For the command, too, there is nothing more to tell.
        let _ = connection.shutdown(Shutdown::Both);
    }
}

fn work(mut connection: &UnixStream) -> io::Result<()> {
    let (_, stdio) = receive(connection, &mut [0])?;
    // Whoever asked for the session is gone otherwise.
    let Ok(stdio) = <[OwnedFd; 3]>::try_from(stdio) else { return Ok(()) };
    let mut length = [0; 4];
    connection.read_exact(&mut length)?;
    let mut text = vec![0; u32::from_ne_bytes(length) as usize];
    connection.read_exact(&mut text)?;
    let command = match serde_json::from_slice(&text)? {
        Task::Socket(wish) => return socket::make(connection, &wish),
        Task::Command(command) => command,
    };
    namespace::heed_children()?;
    match doing("forking", fork())? {
        Fork::Parent(child) => {
            // So that no pipe is held open here when the command is gone.
            drop(stdio);
            wait(connection, child)
        }
        Fork::Child => match become_command(connection, stdio, command)? {},
    }
}

/// Waits for the command's end and tells of it, or until nobody would hear. Passes signals on meanwhile.
fn wait(mut connection: &UnixStream, child: Pid) -> io::Result<()> {
    let command = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
    loop {
        let mut events = [PollFd::new(&command, PollFlags::IN), PollFd::new(connection, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, None))?;
        if events[0].revents().contains(PollFlags::IN) {
            break;
        }
        let mut number = [0];
        if connection.read(&mut number)? == 0 {
            return Ok(());
        }
        if let Some(signal) = SIGNALS.get(usize::from(number[0])) {
            // Nobody has waited for it, so that no other has its number.
            let _ = rustix::process::kill_process_group(child, *signal);
        }
    }
    let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
    if let Some((_, status)) = status {
        let _ = connection.write_all(&status.as_raw().to_ne_bytes());
    }
    Ok(())
}

/// Opens a terminal of the sliver's own, and makes it standard input, output and error. Returns the master side.
fn make_terminal(pty: &Pty) -> io::Result<OwnedFd> {
    // Not by way of /dev/ptmx, which is a link that the sliver may change. The file system at /dev/pts it cannot.
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let master = rustix::fs::openat2(
        &root,
        "dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::pty::unlockpt(&master)?;
    let size = Winsize { ws_row: pty.rows, ws_col: pty.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size)?;
    // Before anything runs on it that sets its own. A terminal with other keys than the client's is still a terminal.
    let _ = terminal::set_modes(&master, &pty.modes);
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)?;
    Ok(master)
}

/// Everything between the fork and the command.
fn become_command(
    connection: &UnixStream,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    order: Command,
) -> io::Result<Infallible> {
    doing("tying the command to its session", rustix::process::set_parent_process_death_signal(Some(Signal::HUP)))?;
    doing("leading a session", rustix::process::setsid())?;
    doing("taking standard input", rustix::stdio::dup2_stdin(&stdin))?;
    doing("taking standard output", rustix::stdio::dup2_stdout(&stdout))?;
    doing("taking standard error", rustix::stdio::dup2_stderr(&stderr))?;
    drop((stdin, stdout, stderr));
    let master = order.pty.as_ref().map(|pty| doing("making a terminal", make_terminal(pty))).transpose()?;

    let user = order.user.as_deref().map(Identity::find).transpose()?;
    let home = user.as_ref().map_or("/root", |user| &user.home);
    let home = if fs::metadata(home).is_ok_and(|m| m.is_dir()) { home } else { "/" };
    if order.directory.as_ref().is_none_or(|d| std::env::set_current_dir(d).is_err()) {
        doing("changing to the home directory", std::env::set_current_dir(home))?;
    }
    let shell = if fs::metadata("/bin/bash").is_ok() { "/bin/bash" } else { "/bin/sh" };
    let mut command = match &order.run {
        Run::Shell => {
            let mut command = process::Command::new(shell);
            command.arg0(if shell.ends_with("bash") { "-bash" } else { "-sh" });
            command
        }
        Run::Command(line) => {
            let mut command = process::Command::new(shell);
            command.arg("-c").arg(line);
            command
        }
        Run::Program(words) => {
            let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
            let mut command = process::Command::new(program);
            command.args(arguments);
            command
        }
    };
    command.env_clear();
    let name = user.as_ref().map_or("root", |user| &user.name);
    command.envs([("HOME", home), ("USER", name), ("LOGNAME", name), ("SHELL", shell), ("PATH", PATH)]);
    command.envs(order.environment);
    if let Some(pty) = &order.pty {
        command.env("TERM", &pty.term);
    }
    if let Some(user) = &user {
        doing("becoming the user", user.assume())?;
        // Becoming somebody else cleared it.
        doing("tying the command to its session", rustix::process::set_parent_process_death_signal(Some(Signal::HUP)))?;
    }
    doing("answering", answer(connection, STARTED, master.as_ref().map(AsFd::as_fd)))?;
    let error = command.exec();
    // Whoever entered is told as a shell would tell, and knows already that it is there.
    let _ = writeln!(io::stderr(), "{}: {error}", command.get_program().to_string_lossy());
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}
