//! Signals by way of the protocol, which the stock client sends to nobody.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use orrery_sshd::{
    Command, Elsewhere, HostKey, KeyList, Limits, LocalShell, Login, Process, Session, SessionIo, SessionRequest,
    parse_key, serve_blocking,
};
use russh::{
    ChannelMsg, Sig,
    client::{self, Handler},
    keys::{
        PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Runs commands as if they were another's children.
struct Far;

#[derive(Debug)]
struct FarProcess {
    child: Mutex<Child>,
    pidfd: OwnedFd,
}

impl AsFd for FarProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Elsewhere for FarProcess {
    fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.child.lock().unwrap().try_wait()
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child.lock().unwrap()), signal).unwrap();
    }

    fn end(&self) {
        self.signal(Signal::KILL);
    }
}

impl Login for Far {
    fn spawn(&self, request: &SessionRequest) -> io::Result<Session> {
        let Command::Exec(line) = &request.command else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut command = std::process::Command::new("/bin/sh");
        command.arg("-c").arg(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn()?;
        let io = SessionIo::Pipes {
            stdin: child.stdin.take().unwrap().into(),
            stdout: child.stdout.take().unwrap().into(),
            stderr: child.stderr.take().unwrap().into(),
        };
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Session { io, process: Process::Elsewhere(Box::new(FarProcess { child: Mutex::new(child), pidfd })) })
    }
}

/// A client that believes every server.
struct Trusting;

impl Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// How `line` ends that is sent `signal` once it has said something.
async fn ended(port: u16, key: &PrivateKey, line: &str, signal: Sig) -> String {
    let mut client = client::connect(Arc::default(), (Ipv4Addr::LOCALHOST, port), Trusting).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), None);
    assert!(client.authenticate_publickey("tester", key).await.unwrap().success());
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, line).await.unwrap();
    loop {
        match channel.wait().await.expect("an end") {
            ChannelMsg::Data { .. } => channel.signal(signal.clone()).await.unwrap(),
            ChannelMsg::ExitStatus { exit_status } => return format!("status {exit_status}"),
            ChannelMsg::ExitSignal { signal_name, .. } => return format!("signal {signal_name:?}"),
            _ => (),
        }
    }
}

#[tokio::test]
async fn a_process_hears_signals_and_its_end_is_told_as_it_was() {
    let key = PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[7; 32])), "").unwrap();
    let logins: [Arc<dyn Login>; 2] = [Arc::new(LocalShell::new("/", Vec::new())), Arc::new(Far)];
    for login in logins {
        let public = parse_key(&key.public_key().to_openssh().unwrap()).unwrap();
        let accounts = Arc::new(KeyList::new("tester", vec![public], login));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || serve_blocking(listener, HostKey::from_seed(&[42; 32]), accounts, Limits::default()));
        let check = async |line: &str, signal: Sig, expect: &str| {
            assert_eq!(ended(port, &key, line, signal.clone()).await, expect, "{line} with {signal:?}");
        };
        let caught = "trap 'exit 9' USR1 USR2; echo up; while :; do sleep 0.02; done";
        check(caught, Sig::USR1, "status 9").await;
        check(caught, Sig::Custom("USR2".into()), "status 9").await;
        check("echo up; sleep 1000; exit 0", Sig::TERM, "signal TERM").await;
        check("echo up; exec sleep 1000", Sig::Custom("USR2".into()), "signal Custom(\"USR2\")").await;
        // The first is none that may be sent.
        check("echo up; sleep 0.1; exit 3", Sig::Custom("STOP".into()), "status 3").await;
    }
}
