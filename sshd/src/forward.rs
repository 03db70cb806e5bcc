//! Forwarded connections: `ssh -L` and `-D` towards targets, `ssh -R` from listeners, `ssh -A` to the client's agent.
//!
//! All bytes go through the connection's [`Backlog`], as a session's do. Sockets of the Unix domain are not forwarded.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure,
    server::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    account::{AgentListener, Family, Network},
    calls::Calls,
    channel::{Feed, Inputs, READ_BYTES, WriteHalf, feed},
    flow::Backlog,
};

/// How long a target may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest name of a target (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 255;
/// Listeners of one connection.
const MAX_LISTENERS: usize = 16;
/// Connections that may wait to be accepted.
const WAITING: u32 = 64;
/// How long a target may take for what is left when the client has gone.
const DELIVERY: Duration = Duration::from_secs(30);
/// Pause after a failure to accept, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one connection forwards.
pub(crate) struct Forwards {
    places: Arc<Semaphore>,
    listeners: HashMap<(String, u32), Listening>,
    arrivals: Arrivals,
    backlog: Arc<Backlog>,
}

/// A listener's task, ended with this.
pub(crate) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Forwards {
    /// At most `max` forwarded connections at the same time.
    pub(crate) fn new(max: usize, backlog: Arc<Backlog>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max)),
            listeners: HashMap::new(),
            arrivals: Arrivals::default(),
            backlog,
        }
    }

    /// Connects to a target, and carries what `channel` and the target say. Returns the way in for what the client
    /// sends; `None` when the request was rejected.
    pub(crate) async fn connect(
        &self,
        network: Arc<dyn Network>,
        calls: &Calls,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        host: &str,
        port: u32,
    ) -> Option<Feed> {
        let (port, place) = match self.admit(host, port) {
            Ok(admitted) => admitted,
            Err(why) => {
                reply.reject(why).await;
                return None;
            }
        };
        let (feed, inputs) = feed();
        let (host, backlog, calls) = (host.to_owned(), self.backlog.clone(), calls.clone());
        // Without its reading half, the library queues nothing: what arrives comes through the feed.
        let (_, channel) = channel.split();
        tokio::spawn(async move {
            let _place: OwnedSemaphorePermit = place;
            match timeout(CONNECT_TIMEOUT, connect(&network, &calls, &host, port)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    reply.accept().await;
                    carry(stream, channel, inputs, &backlog).await;
                }
                Ok(Err(e)) => {
                    tracing::debug!("connecting to {host} port {port} for a client: {e}");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
                Err(_elapsed) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Some(feed)
    }

    fn admit(&self, host: &str, port: u32) -> Result<(u16, OwnedSemaphorePermit), ChannelOpenFailure> {
        let port = u16::try_from(port).map_err(|_| ChannelOpenFailure::ConnectFailed)?;
        if host.len() > MAX_HOST {
            return Err(ChannelOpenFailure::ConnectFailed);
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| ChannelOpenFailure::ResourceShortage)?;
        Ok((port, place))
    }

    /// Listens on loopback for the client, and gives the port.
    ///
    /// # Errors
    /// When the address is not loopback, is taken, or there are too many listeners.
    pub(crate) async fn listen(
        &mut self,
        network: Arc<dyn Network>,
        calls: &Calls,
        address: &str,
        port: u32,
        handle: Handle,
    ) -> io::Result<u32> {
        let refused = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
        let ip = loopback(address).ok_or_else(|| refused("only addresses of loopback may be listened on"))?;
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(refused("too many listeners"));
        }
        let port = u16::try_from(port).map_err(|_| refused("no such port"))?;
        let socket = socket(&network, calls, ip).await?;
        socket.set_reuseaddr(true)?;
        socket.bind((ip, port).into())?;
        let listener = socket.listen(WAITING)?;
        let port = listener.local_addr()?.port().into();
        let task = tokio::spawn(accept(listener, (address.to_owned(), port), self.carrier(handle)));
        self.listeners.insert((address.to_owned(), port), Listening(task));
        Ok(port)
    }

    /// Carries what programs of a session ask the client's agent, until the result is dropped.
    ///
    /// # Errors
    /// When the listener is none.
    pub(crate) fn agent(&self, agent: AgentListener, handle: Handle) -> io::Result<Listening> {
        let AgentListener { listener, keep } = agent;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let carrier = self.carrier(handle);
        Ok(Listening(tokio::spawn(async move {
            let _keep = keep;
            accept_agent(listener, carrier).await;
        })))
    }

    fn carrier(&self, handle: Handle) -> Carrier {
        let (places, arrivals, backlog) = (self.places.clone(), self.arrivals.clone(), self.backlog.clone());
        Carrier { handle, places, arrivals, backlog }
    }

    /// Stops listening; whether there was such a listener. Connections it accepted go on.
    pub(crate) fn unlisten(&mut self, address: &str, port: u32) -> bool {
        self.listeners.remove(&(address.to_owned(), port)).is_some()
    }

    /// The client has agreed to a channel that a listener asked for.
    pub(crate) fn confirmed(&self, id: ChannelId) -> Option<Feed> {
        self.arrivals.with(id, |meeting| meeting.feed.take())
    }
}

/// The address to bind. `localhost` is what the OpenSSH client says unless told otherwise; the empty string and `*`
/// are every address, which is not to be had.
fn loopback(address: &str) -> Option<IpAddr> {
    match address {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        "ip6-localhost" => Some(Ipv6Addr::LOCALHOST.into()),
        other => other.parse().ok().filter(IpAddr::is_loopback),
    }
}

/// A socket of `network` for `address`.
async fn socket(network: &Arc<dyn Network>, calls: &Calls, address: IpAddr) -> io::Result<TcpSocket> {
    let network = network.clone();
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let made: OwnedFd = calls.run(move || network.socket(family)).await?;
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(made)))
}

/// Connects to the first address of `host` that answers.
async fn connect(network: &Arc<dyn Network>, calls: &Calls, host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses(network, calls, host).await? {
        let tried = match socket(network, calls, address).await {
            Ok(socket) => socket.connect(SocketAddr::new(address, port)).await,
            Err(error) => Err(error),
        };
        match tried {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn addresses(network: &Arc<dyn Network>, calls: &Calls, host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(literal) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![literal]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let (network, host) = (network.clone(), host.to_owned());
    calls.run(move || network.resolve(&host)).await
}

/// What it takes to carry an accepted connection to the client.
#[derive(Clone)]
struct Carrier {
    handle: Handle,
    places: Arc<Semaphore>,
    arrivals: Arrivals,
    backlog: Arc<Backlog>,
}

/// A channel that the client was asked to open, or not.
type Opened = Result<Channel<Msg>, russh::Error>;

impl Carrier {
    /// Carries `stream` once the client has agreed to the channel that `open` asks for.
    ///
    /// In a task of its own, never aborted: the library takes a vanished opener for the end of the whole connection.
    fn carry<S, F>(&self, stream: S, open: impl FnOnce(Handle) -> F + Send + 'static)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        F: Future<Output = Opened> + Send,
    {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("too many forwarded connections");
            return;
        };
        let Self { handle, arrivals, backlog, .. } = self.clone();
        tokio::spawn(async move {
            let _place: OwnedSemaphorePermit = place;
            let Ok(channel) = open(handle).await else { return };
            let (_, channel) = channel.split();
            if let Some(inputs) = arrivals.with(channel.id(), |meeting| meeting.inputs.take()) {
                carry(stream, channel, inputs, &backlog).await;
            }
        });
    }
}

/// Accepts for a client until cancelled.
async fn accept(listener: TcpListener, at: (String, u32), carrier: Carrier) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                let (address, port) = at.clone();
                carrier.carry(stream, async move |handle| {
                    handle.channel_open_forwarded_tcpip(address, port, peer.ip().to_string(), peer.port().into()).await
                });
            }
            Err(e) => pause(&e).await,
        }
    }
}

/// The same for a client's agent.
async fn accept_agent(listener: UnixListener, carrier: Carrier) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => carrier.carry(stream, async |handle| handle.channel_open_agent().await),
            Err(e) => pause(&e).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!("accepting a connection to forward: {error}");
    sleep(ACCEPT_PAUSE).await;
}

/// Both directions until both have ended, or the channel is closed. What the client sent before it closed is delivered.
async fn carry<S>(stream: S, channel: WriteHalf, inputs: Inputs, backlog: &Backlog)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let Inputs { mut data, mut control } = inputs;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Dropping the queue with the first failure leaves nothing in the backlog for a target that is gone.
    let mut inward = tokio::spawn(async move {
        while let Some(chunk) = data.recv().await {
            if writer.write_all(chunk.bytes()).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    let outward = async {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if channel.data_bytes(buffer[..count].to_vec()).await.is_err() {
                return;
            }
            backlog.touch();
        }
        let _ = channel.eof().await;
    };
    tokio::select! {
        _ = async { tokio::join!(&mut inward, outward) } => (),
        // Nobody resizes or signals a forwarded connection: all there can be is the end.
        () = async { while control.recv().await.is_some() {} } => (),
    }
    if !inward.is_finished() {
        let _ = timeout(DELIVERY, &mut inward).await;
        inward.abort();
    }
    let _ = channel.close().await;
}

/// Where the connection's handler, who hears of a confirmed channel first, and the task that opened it meet. Either
/// may come first: on more than one thread, nothing orders them.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<HashMap<ChannelId, Meeting>>>);

/// Both ends of a new channel's queue, until each is fetched.
struct Meeting {
    feed: Option<Feed>,
    inputs: Option<Inputs>,
}

impl Arrivals {
    fn with<T>(&self, id: ChannelId, fetch: impl FnOnce(&mut Meeting) -> Option<T>) -> Option<T> {
        let mut meetings = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let meeting = meetings.entry(id).or_insert_with(|| {
            let (feed, inputs) = feed();
            Meeting { feed: Some(feed), inputs: Some(inputs) }
        });
        let fetched = fetch(meeting);
        if meeting.feed.is_none() && meeting.inputs.is_none() {
            meetings.remove(&id);
        }
        fetched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        let check = |address: &str, expect: Option<&str>| {
            assert_eq!(loopback(address), expect.map(|ip| ip.parse().unwrap()), "{address}");
        };
        check("localhost", Some("127.0.0.1"));
        check("127.0.0.2", Some("127.0.0.2"));
        check("::1", Some("::1"));
        for everywhere in ["", "*", "0.0.0.0", "::", "10.0.0.1", "example.org"] {
            check(everywhere, None);
        }
    }
}
