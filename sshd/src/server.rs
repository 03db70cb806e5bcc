//! Listening, and limits on who may take how much.

use std::{
    convert::Infallible,
    io,
    net::{self, SocketAddr},
    sync::Arc,
    time::Duration,
};

use russh::{
    Disconnect, MethodKind, MethodSet, SshId,
    server::{Config, run_stream},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    account::Accounts,
    connection::Connection,
    flow::{Backlog, PacedStream, WINDOW},
    forward::Forwards,
    host_key::HostKey,
    places::{Place, Places},
};

/// How much clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of people who logged in, at the same time.
    pub connections: usize,
    /// Of these, into one account.
    pub connections_per_account: usize,
    /// Connections of people who have not logged in yet, at the same time. One more ends the oldest of the network that has most.
    pub strangers: usize,
    /// Of these, from one IPv4 address or one /64 of IPv6.
    pub strangers_per_source: usize,
    /// Sessions at the same time in one connection.
    pub sessions: usize,
    /// Forwarded connections at the same time in one connection. Generous: a browser opens many.
    pub forwards: usize,
    /// Calls at the same time that an account has where they may block: to start sessions, to make sockets, to find hosts. Others wait.
    pub calls_per_account: usize,
    /// Keys a client may try. Generous: agents offer all they have.
    pub auth_attempts: usize,
    /// Time to log in.
    pub login_grace: Duration,
    /// How often a connection's key is looked at whether it still opens the account; the connection is told and ended if it does
    /// not. `None` lets whoever is in stay in.
    pub recheck: Option<Duration>,
    /// Time after which a connection that carried no data either way is told so and ended. `None` lets people leave a
    /// shell open over the week-end.
    pub idle: Option<Duration>,
    /// Silence after which a client is asked whether it still lives.
    pub keepalive: Duration,
    /// Unanswered questions after which it is taken for dead.
    pub keepalive_missed: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_per_account: 32,
            strangers: 64,
            strangers_per_source: 16,
            sessions: 10,
            forwards: 128,
            // Of 512 threads.
            calls_per_account: 16,
            auth_attempts: 10,
            login_grace: Duration::from_secs(60),
            recheck: None,
            idle: None,
            keepalive: Duration::from_secs(30),
            keepalive_missed: 4,
        }
    }
}

/// Silence of a connection, keepalives and their answers included, after which it is dropped in any case.
const SILENCE: Duration = Duration::from_secs(600);
/// Time for a client that was told of its end to hang up itself.
const FAREWELL: Duration = Duration::from_secs(5);
/// Threads for what may block: those of 128 accounts of which each takes what it may (`Limits::calls_per_account`).
const BLOCKING_THREADS: usize = 2048;
/// Pause after a failure to accept, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections for ever. Needs a runtime of tokio with I/O and time; one thread is enough.
///
/// # Errors
/// When the listener cannot be used at all. A connection's failure is logged and ends nothing else.
pub async fn serve(
    listener: net::TcpListener,
    host_key: HostKey,
    accounts: Arc<dyn Accounts>,
    limits: Limits,
) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let config = Arc::new(config(host_key, &limits));
    let places = Places::new(limits.clone());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let backlog = Arc::new(Backlog::default());
                let place = Arc::new(places.admit(peer.ip(), backlog.clone()));
                tokio::spawn(connection(
                    stream,
                    peer,
                    place,
                    backlog,
                    config.clone(),
                    accounts.clone(),
                    limits.clone(),
                ));
            }
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// [`serve`] on a runtime of its own, on this thread.
///
/// # Errors
/// As [`serve`], and when no runtime can be made.
pub fn serve_blocking(
    listener: net::TcpListener,
    host_key: HostKey,
    accounts: Arc<dyn Accounts>,
    limits: Limits,
) -> io::Result<Infallible> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    runtime.block_on(serve(listener, host_key, accounts, limits))
}

fn config(host_key: HostKey, limits: &Limits) -> Config {
    Config {
        // The version is nobody's business.
        server_id: SshId::Standard("SSH-2.0-Orrery".into()),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        // Keys cannot be guessed: a delay would only punish who has many.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: None,
        keys: vec![host_key.0],
        window_size: WINDOW,
        maximum_packet_size: 32 << 10,
        max_auth_attempts: limits.auth_attempts,
        inactivity_timeout: Some(SILENCE),
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: limits.keepalive_missed,
        nodelay: true,
        ..Config::default()
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    place: Arc<Place>,
    backlog: Arc<Backlog>,
    config: Arc<Config>,
    accounts: Arc<dyn Accounts>,
    limits: Limits,
) {
    let _ = stream.set_nodelay(true);
    // Keepalives cannot be sent to a peer that takes nothing any more; the kernel gives that one up as late as they would.
    let patience = limits.keepalive * u32::try_from(limits.keepalive_missed + 1).unwrap_or(u32::MAX);
    let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, patience);
    let forwards = Forwards::new(limits.forwards, backlog.clone());
    let handler = Connection::new(accounts, peer, &limits, forwards, backlog.clone(), place.clone());
    let stream = PacedStream::new(stream, backlog.clone());
    let grace = async {
        sleep(limits.login_grace).await;
        if !place.is_logged_in() {
            // Nothing gentler works on a client that stalls the key exchange.
            backlog.sever();
        }
        std::future::pending::<Infallible>().await
    };
    let served = async {
        let session = run_stream(config, stream, handler).await?;
        let handle = session.handle();
        let idle = async {
            let Some(limit) = limits.idle else { return std::future::pending().await };
            backlog.idle(limit).await;
            format!("nothing was sent or received for {} seconds", limit.as_secs())
        };
        let end = async {
            let words = tokio::select! {
                words = idle => words,
                words = backlog.dismissed() => words.to_owned(),
            };
            tracing::info!(%peer, "ending a connection: {words}");
            let farewell = async {
                let _ = handle.disconnect(Disconnect::ByApplication, words, String::new()).await;
                std::future::pending::<()>().await
            };
            // The words may never get through to a client that does not read.
            let _ = timeout(FAREWELL, farewell).await;
            backlog.sever();
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            result = session => result,
            never = end => match never {},
        }
    };
    tokio::select! {
        result = served => match result {
            Ok(()) => tracing::debug!(%peer, "connection ended"),
            Err(e) => tracing::debug!(%peer, "connection ended: {e}"),
        },
        never = grace => match never {},
    }
}
