//! One client's connection: authentication, and requests for sessions.

use std::{
    collections::HashMap, ffi::OsString, io, net::SocketAddr, os::unix::ffi::OsStringExt, path::Path, sync::Arc,
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Sig,
    keys::{HashAlg, PublicKey, ssh_key::Fingerprint},
    server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, VerifiedPublicKey},
};
use tokio::time::{Instant, sleep};

use crate::{
    account::{Accounts, Command, Login, Network, Pty, Session, SessionRequest, WindowSize},
    calls::Calls,
    channel::{self, Control, Feed, feed},
    flow::{Backlog, MOST_QUEUED},
    forward::{Forwards, Listening},
    places::{Crowded, Place},
    server::Limits,
};

/// The longest command line, and the longest value of an environment variable, in bytes.
const MAX_COMMAND: usize = 128 << 10;
const MAX_ENV: usize = 1024;
/// What one connection has in the log about sessions, in lines and in what time: a session costs a client less than a login.
const MAX_LINES: usize = 60;
const LINES_TIME: Duration = Duration::from_secs(60);
/// The longest name of a subsystem that is logged.
const MAX_NAME: usize = 32;
/// Environment variables a client may set.
const MAX_ENVS: usize = 32;

pub(crate) struct Connection {
    accounts: Arc<dyn Accounts>,
    peer: SocketAddr,
    max_sessions: usize,
    recheck: Option<Duration>,
    forwards: Forwards,
    backlog: Arc<Backlog>,
    place: Arc<Place>,
    login: Option<Arc<dyn Login>>,
    /// Who logged in, for the log.
    who: Option<Who>,
    calls: Calls,
    channels: HashMap<ChannelId, State>,
}

struct Who {
    user: String,
    key: Fingerprint,
    /// Since when so many lines were logged.
    since: Instant,
    lines: usize,
}

enum State {
    /// Opened; the client says what it wants.
    Preparing(Preparing),
    /// A session that was started.
    Running(Feed),
    /// A forwarded connection.
    Forwarding(Feed),
}

impl State {
    fn feed(&mut self) -> Option<&mut Feed> {
        match self {
            Self::Preparing(_) => None,
            Self::Running(feed) | Self::Forwarding(feed) => Some(feed),
        }
    }

    /// Whether nobody is at the other end any more.
    fn is_over(&self) -> bool {
        match self {
            Self::Preparing(_) => false,
            Self::Running(feed) | Self::Forwarding(feed) => feed.control.is_closed(),
        }
    }
}

struct Preparing {
    channel: ChannelWriteHalf<Msg>,
    pty: Option<Pty>,
    env: Vec<(String, String)>,
    /// Held as long as the session.
    agent: Option<Listening>,
}

impl Connection {
    pub(crate) fn new(
        accounts: Arc<dyn Accounts>,
        peer: SocketAddr,
        limits: &Limits,
        forwards: Forwards,
        backlog: Arc<Backlog>,
        place: Arc<Place>,
    ) -> Self {
        let (max_sessions, recheck) = (limits.sessions, limits.recheck);
        Self {
            accounts,
            peer,
            max_sessions,
            recheck,
            forwards,
            backlog,
            place,
            login: None,
            who: None,
            calls: Calls::new(limits.calls_per_account),
            channels: HashMap::new(),
        }
    }

    fn network(&self) -> Option<Arc<dyn Network>> {
        self.login.as_ref()?.network()
    }

    /// Forgets what has ended by itself: the library reports a channel's close only when the client closes first.
    fn forget_ended(&mut self) {
        self.channels.retain(|_, state| !state.is_over());
    }

    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        self.accounts.authorize(user, key)
    }

    /// Ends the connection once its key does not open the account any more: what was started and is forwarded ends with it.
    fn watch(&self, user: &str, key: &PublicKey) {
        let Some(recheck) = self.recheck else { return };
        let (accounts, backlog) = (self.accounts.clone(), Arc::downgrade(&self.backlog));
        let (user, key) = (user.to_owned(), key.clone());
        tokio::spawn(async move {
            loop {
                sleep(recheck).await;
                // Gone with the connection.
                let Some(backlog) = backlog.upgrade() else { return };
                if accounts.authorize(&user, &key).is_none() {
                    return backlog.dismiss("your key does not open this account any more");
                }
            }
        });
    }

    fn preparing(&mut self, id: ChannelId) -> Option<&mut Preparing> {
        match self.channels.get_mut(&id) {
            Some(State::Preparing(preparing)) => Some(preparing),
            _ => None,
        }
    }

    fn control(&self, id: ChannelId, request: Control) {
        if let Some(State::Running(feed)) = self.channels.get(&id) {
            let _ = feed.control.try_send(request);
        }
    }

    /// Whether what a client sends is within its window, which the protocol library does not look at, and something can be done with
    /// it. The channel, and then the connection, is ended otherwise.
    fn has_room(&mut self, id: ChannelId, bytes: &[u8], session: &server::Session) -> bool {
        let Some(feed) = self.channels.get_mut(&id).and_then(State::feed) else { return false };
        let before = std::mem::replace(&mut feed.window, window(session, id));
        let why = if bytes.len() > before as usize {
            "more was sent than the channel's window had room for"
        } else if self.backlog.queued() > MOST_QUEUED {
            "too much waits for programs that do not read it"
        } else {
            return true;
        };
        // Not as by an end of file: the process must not take a part for the whole.
        self.channels.remove(&id);
        self.backlog.dismiss(why);
        false
    }

    /// Tells the log that a session begins, but not what it does.
    fn log(&mut self, command: &Command) {
        let (peer, Some(who)) = (self.peer, &mut self.who) else { return };
        if who.since.elapsed() >= LINES_TIME {
            (who.since, who.lines) = (Instant::now(), 0);
        }
        who.lines += 1;
        let (user, key, what) = (&who.user, &who.key, kind(command));
        match who.lines {
            ..=MAX_LINES => tracing::info!(user, %peer, %key, "session: {what}"),
            n if n == MAX_LINES + 1 => tracing::warn!(user, %peer, %key, "sessions: more than are logged"),
            _ => (),
        }
    }

    fn start(&mut self, id: ChannelId, command: Command, session: &mut server::Session) -> Result<(), russh::Error> {
        let Some(login) = self.login.clone() else { return session.channel_failure(id) };
        let Preparing { channel, pty, env, agent } = match self.channels.remove(&id) {
            Some(State::Preparing(preparing)) => preparing,
            Some(running) => {
                self.channels.insert(id, running);
                return session.channel_failure(id);
            }
            None => return session.channel_failure(id),
        };
        self.log(&command);
        // The reply goes out before anything the session prints.
        session.channel_success(id)?;
        let request = SessionRequest { command, pty, env, peer: Some(self.peer) };
        let (mut feed, inputs) = feed();
        feed.window = window(session, id);
        self.channels.insert(id, State::Running(feed));
        let (handle, peer, backlog, calls) = (session.handle(), self.peer, self.backlog.clone(), self.calls.clone());
        tokio::spawn(async move {
            let _agent = agent;
            // However long it takes, other sessions go on; what the client sends meanwhile waits in the inputs.
            match calls.run(move || login.spawn(&request)).await {
                Ok(started) => channel::run(started, channel, handle, inputs, &backlog).await,
                Err(e) => {
                    tracing::warn!(%peer, "refusing a session: {e}");
                    channel::refuse(format!("{e}\r\n"), channel).await;
                }
            }
        });
        Ok(())
    }
}

/// The login of somebody for whom there is no place. It ends with the time to log in.
struct TurnedAway(Crowded);

impl Login for TurnedAway {
    fn spawn(&self, _: &SessionRequest) -> io::Result<Session> {
        Err(io::Error::other(self.0))
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(if self.authorize(user, offer.public_key).is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(match self.authorize(user, key.public_key) {
            Some(login) => {
                let fingerprint = key.public_key.fingerprint(HashAlg::Sha256);
                tracing::info!(user, peer = %self.peer, key = %fingerprint, "logged in");
                self.who = Some(Who { user: user.to_owned(), key: fingerprint, since: Instant::now(), lines: 0 });
                self.watch(user, key.public_key);
                // Whoever finds no place hears why: a refused key would be the wrong story.
                self.login = Some(match self.place.log_in(user) {
                    Ok(calls) => {
                        self.calls = calls;
                        login
                    }
                    Err(crowded) => {
                        tracing::warn!(user, peer = %self.peer, "{crowded}");
                        Arc::new(TurnedAway(crowded))
                    }
                });
                Auth::Accept
            }
            None => {
                tracing::warn!(user, peer = %self.peer, "login refused");
                Auth::reject()
            }
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.forget_ended();
        let sessions = self.channels.values().filter(|state| !matches!(state, State::Forwarding(_))).count();
        if sessions >= self.max_sessions {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // What arrives comes through this handler. Without its reading half, the library queues nothing.
        let id = channel.id();
        let (_, channel) = channel.split();
        self.channels.insert(id, State::Preparing(Preparing { channel, pty: None, env: Vec::new(), agent: None }));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let Some(network) = self.network() else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        self.forget_ended();
        let id = channel.id();
        if let Some(feed) = self.forwards.connect(network, &self.calls, channel, reply, host, port).await {
            self.channels.insert(id, State::Forwarding(feed));
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut server::Session,
    ) -> Result<bool, russh::Error> {
        let Some(network) = self.network() else { return Ok(false) };
        match self.forwards.listen(network, &self.calls, address, *port, session.handle()).await {
            Ok(given) => {
                *port = given;
                Ok(true)
            }
            Err(e) => {
                tracing::warn!(peer = %self.peer, "not listening on `{address}` port {port} for a client: {e}");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut server::Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.unlisten(address, port))
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.forget_ended();
        // Said of a channel that is open already, this means nothing.
        if !self.channels.contains_key(&id)
            && let Some(feed) = self.forwards.confirmed(id)
        {
            self.channels.insert(id, State::Forwarding(feed));
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut server::Session) -> Result<(), russh::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut server::Session) -> Result<(), russh::Error> {
        if let Some(feed) = self.channels.get_mut(&id).and_then(State::feed) {
            feed.data = None;
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, bytes: &[u8], session: &mut server::Session) -> Result<(), russh::Error> {
        if !self.has_room(id, bytes, session) {
            return Ok(());
        }
        if let Some(Feed { data: Some(data), .. }) = self.channels.get_mut(&id).and_then(State::feed) {
            data.send(bytes, &self.backlog);
        }
        Ok(())
    }

    /// Nobody reads these, but they take from the window.
    async fn extended_data(
        &mut self,
        id: ChannelId,
        _: u32,
        bytes: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.has_room(id, bytes, session);
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.backlog.window()
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        modes: &[(russh::Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        match self.preparing(id) {
            Some(preparing) if term.len() <= MAX_ENV && !term.contains('\0') => {
                let modes = modes.iter().map(|&(mode, value)| (mode as u8, value)).collect();
                preparing.pty = Some(Pty { term: term.to_owned(), size: window_size(columns, rows), modes });
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.control(id, Control::Resize(window_size(columns, rows)));
        session.channel_success(id)
    }

    async fn signal(&mut self, id: ChannelId, name: Sig, _: &mut server::Session) -> Result<(), russh::Error> {
        if let Some(signal) = channel::signal(&name) {
            self.control(id, Control::Signal(signal));
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        match self.preparing(id) {
            Some(preparing) if is_harmless(name, value) && preparing.env.len() < MAX_ENVS => {
                preparing.env.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    /// OpenSSH's client wants no answer to this, and takes one, which the library gives all the same, for that to its next
    /// request: so it is never a refusal.
    async fn agent_request(&mut self, id: ChannelId, session: &mut server::Session) -> Result<bool, russh::Error> {
        let wanted = self.preparing(id).is_some_and(|preparing| preparing.agent.is_none());
        let Some(network) = self.network().filter(|_| wanted) else { return Ok(true) };
        let made = self.calls.run(move || {
            let path = agent_path()?;
            Ok((network.agent(Path::new(&path))?, path))
        });
        let listening = made.await.and_then(|(agent, path)| Ok((path, self.forwards.agent(agent, session.handle())?)));
        match (listening, self.preparing(id)) {
            (Ok((path, listening)), Some(preparing)) => {
                preparing.env.push(("SSH_AUTH_SOCK".into(), path));
                preparing.agent = Some(listening);
            }
            (Ok(_), None) => {}
            (Err(e), _) => tracing::warn!(peer = %self.peer, "not forwarding an agent: {e}"),
        }
        Ok(true)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut server::Session) -> Result<(), russh::Error> {
        self.start(id, Command::Shell, session)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        if command.len() > MAX_COMMAND || command.contains(&0) {
            return session.channel_failure(id);
        }
        self.start(id, Command::Exec(OsString::from_vec(command.to_vec())), session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.start(id, Command::Subsystem(name.to_owned()), session)
    }
}

/// A path in a folder of its own, which nobody can have made before.
fn agent_path() -> io::Result<String> {
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("/tmp/ssh-{:016x}/agent", u64::from_ne_bytes(number)))
}

/// Whether a variable from afar may be set: the ones that choose a language.
fn is_harmless(name: &str, value: &str) -> bool {
    (name == "LANG" || name.starts_with("LC_"))
        && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        && name.len() <= 64
        && value.len() <= MAX_ENV
        && !value.contains('\0')
}

/// What kind of session is asked for, in the words of this server and the names of its subsystems.
fn kind(command: &Command) -> &str {
    match command {
        Command::Shell => "shell",
        Command::Exec(_) => "command",
        Command::Subsystem(line) => {
            // What follows is a layer task's arguments.
            let name = line.split(' ').next().unwrap_or_default();
            let plain = name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if plain && !name.is_empty() { name } else { "subsystem" }
        }
    }
}

/// How many bytes a client may send on a channel.
fn window(session: &server::Session, id: ChannelId) -> u32 {
    session.sender_window_size(id).try_into().unwrap_or(u32::MAX)
}

fn window_size(columns: u32, rows: u32) -> WindowSize {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    WindowSize { columns: clamp(columns), rows: clamp(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let check = |command: Command, expect: &str| assert_eq!(kind(&command), expect, "{command:?}");
        check(Command::Shell, "shell");
        check(Command::Exec("mysql -psecret".into()), "command");
        check(Command::Subsystem("sftp".into()), "sftp");
        check(Command::Subsystem("orrery-snapshot create secret".into()), "orrery-snapshot");
        check(Command::Subsystem("a\nb".into()), "subsystem");
        check(Command::Subsystem(String::new()), "subsystem");
        check(Command::Subsystem("x".repeat(MAX_NAME + 1)), "subsystem");
    }

    #[test]
    fn variables() {
        let check = |name: &str, value: &str, expect| assert_eq!(is_harmless(name, value), expect, "{name}={value}");
        check("LANG", "C.UTF-8", true);
        check("LC_ALL", "", true);
        check("LC_TIME", "de_DE.UTF-8", true);
        check("LD_PRELOAD", "/tmp/x.so", false);
        check("PATH", ".", false);
        check("LC_=x", "", false);
        check("LANG", "a\0b", false);
        check("LANG", &"x".repeat(2000), false);
    }
}
