//! An ssh server with passwords that knows the `racadm serveraction` commands of one machine. Its account may not power-cycle.

use std::{
    borrow::Cow,
    net::{Ipv4Addr, TcpListener},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use russh::{
    Channel, ChannelId, MethodKind, MethodSet,
    keys::{HashAlg, PrivateKey, load_secret_key},
    server::{self, Auth, ChannelOpenHandle, Handler, Msg, Response, Session},
};
use tokio::sync::oneshot;

const USER: &str = "op";
const PASSWORD: &[u8] = b"sesame";

/// The server. Dropping it ends it.
pub(crate) struct Racadm {
    port: u16,
    key: PrivateKey,
    machine: Arc<Mutex<Machine>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Machine {
    on: bool,
    commands: Vec<String>,
}

struct Connection(Arc<Mutex<Machine>>);

impl Racadm {
    /// Starts it; with `asks`, it takes the password only as the answer to a question (keyboard-interactive).
    pub(crate) fn start(asks: bool) -> Self {
        let key = key();
        let method = if asks { MethodKind::KeyboardInteractive } else { MethodKind::Password };
        let config = Arc::new(server::Config {
            methods: MethodSet::from(&[method][..]),
            auth_rejection_time: Duration::ZERO,
            keys: vec![key.clone()],
            ..server::Config::default()
        });
        let machine = Arc::new(Mutex::new(Machine { on: true, commands: Vec::new() }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn({
            let machine = machine.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                    let accept = async {
                        loop {
                            let (stream, _) = listener.accept().await.unwrap();
                            let serving = server::run_stream(config.clone(), stream, Connection(machine.clone()));
                            // A client that hangs up early is no matter of ours.
                            tokio::spawn(async { drop(serving.await.map(|session| tokio::spawn(session))) });
                        }
                    };
                    tokio::select! { () = accept => {}, _ = ended => {} }
                });
            }
        });
        Self { port, key, machine, end: Some(end), thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn fingerprint(&self) -> String {
        self.key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    /// The actions that were asked for.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.machine.lock().unwrap().commands.clone()
    }
}

impl Drop for Racadm {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Machine {
    fn obey(&mut self, command: &str) -> String {
        let Some(action) = command.strip_prefix("racadm serveraction ") else {
            return format!("{command}: command not found\r\n");
        };
        self.commands.push(action.to_owned());
        match action {
            "powerstatus" => format!("Server power status: {}\r\n", if self.on { "ON" } else { "OFF" }),
            "powerup" | "powerdown" => {
                self.on = action == "powerup";
                "Server power operation successful\r\n".into()
            }
            // An older one says nothing.
            "hardreset" => String::new(),
            _ => "ERROR: The user does not have sufficient privileges.\r\n".into(),
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(verdict(user, password.as_bytes()))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let Some(mut response) = response else {
            return Ok(Auth::Partial {
                name: Cow::Borrowed(""),
                instructions: Cow::Borrowed(""),
                prompts: Cow::Borrowed(&[(Cow::Borrowed("Password: "), false)]),
            });
        };
        Ok(verdict(user, &response.next().unwrap_or_default()))
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let said = self.0.lock().unwrap().obey(&String::from_utf8_lossy(data));
        session.channel_success(channel)?;
        session.data(channel, said.into_bytes())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

fn verdict(user: &str, password: &[u8]) -> Auth {
    if user == USER && password == PASSWORD { Auth::Accept } else { Auth::reject() }
}

fn key() -> PrivateKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&path).stdin(Stdio::null());
    assert!(keygen.status().expect("ssh-keygen is missing; run `cargo xtask setup`").success());
    load_secret_key(&path, None).unwrap()
}
