//! Listening: TLS, connection limits, and an end that lets requests finish.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    app::{App, router},
    artifacts::Artifacts,
    authorities::Certificates,
    data::{DataError, DataFolder},
    db::{Database, OpenError},
    enrol_api::WrongTokens,
    pki::PkiError,
    power::{self, Power},
    roots_api,
    tls::{self, ClientIdentity},
};

/// Connections at a time, where the system allows as many; the rest wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Descriptors of a connection: its socket, and the artifact it serves.
const DESCRIPTORS_EACH: u64 = 2;
/// Descriptors for all else: listeners, database, logs.
const DESCRIPTORS_ELSE: u64 = 64;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// For the header of a request, and so also for an idle connection.
const HEADER_DEADLINE: Duration = Duration::from_secs(60);
/// Requests under way when the server is told to stop get so long.
const DRAIN: Duration = Duration::from_secs(10);
const CERTIFICATE_CHECK: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the server does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The data folder.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The newest trust root.
    #[error("reading the newest trust root: {0}")]
    Roots(#[from] rusqlite::Error),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Operations on the power of nodes.
    #[error("taking over power operations: {0}")]
    Power(#[source] rusqlite::Error),
    /// TLS.
    #[error("setting up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// An address cannot be listened on.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// A server that listens, and serves once it runs.
pub struct Server {
    /// Held for its lock.
    _data: DataFolder,
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    certificates: Certificates,
    db: Database,
    tls: TlsAcceptor,
    router: Router,
    power: power::Runner,
}

impl Server {
    /// Takes the data folder into use and listens on every address.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn bind(data: &Path, listen: &[SocketAddr]) -> Result<Self, ServeError> {
        let data = DataFolder::open(data)?;
        let db = Database::open(&data.path().join("central.db"))?;
        let allowed = db.now(roots_api::allowed_authorities)?;
        let certificates = Certificates::load(data.path(), data.hosts(), allowed.as_deref())?;
        let tls = TlsAcceptor::from(Arc::new(tls::server_config(certificates.current())?));
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for &address in listen {
            let failed = |source| ServeError::Listen { address, source };
            let listener = TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let artifacts = Artifacts::new(data.path().join("artifacts"));
        let power = Power::new(data.path());
        let app = App {
            db: db.clone(),
            artifacts,
            certificates: certificates.clone(),
            wrong_tokens: WrongTokens::default(),
            power: power.clone(),
        };
        let power = power::Runner::new(power, db.clone()).map_err(ServeError::Power)?;
        Ok(Self { _data: data, listeners, addresses, certificates, db, tls, router: router(app), power })
    }

    /// Where the server listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until `stop` is ready, then lets requests under way finish.
    ///
    /// # Errors
    /// A listener cannot be used.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { _data, listeners, addresses, certificates, db, tls, router, power } = self;
        let (stopping, watch) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(connection_limit()));
        let mut acceptors = JoinSet::new();
        for (listener, address) in listeners.into_iter().zip(addresses) {
            let listener =
                tokio::net::TcpListener::from_std(listener).map_err(|source| ServeError::Listen { address, source })?;
            acceptors.spawn(accept(listener, tls.clone(), router.clone(), permits.clone(), watch.clone()));
        }
        let runner = tokio::spawn(power.run(watch.clone()));
        let mut stop = pin!(stop);
        let mut checks = interval(CERTIFICATE_CHECK);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = checks.tick() => check_certificate(&db, &certificates).await,
            }
        }
        tracing::info!("stopping");
        // Receivers that are gone have stopped already.
        let _ = stopping.send(true);
        while acceptors.join_next().await.is_some() {}
        if let Err(error) = runner.await {
            tracing::error!(%error, "looking after power ended early");
        }
        Ok(())
    }
}

/// Renews the server certificate in time.
async fn check_certificate(db: &Database, certificates: &Certificates) {
    let allowed = match db.run(roots_api::allowed_authorities).await {
        Ok(allowed) => allowed,
        Err(error) => return tracing::error!(%error, "reading the newest trust root failed"),
    };
    if let Err(error) = certificates.follow(allowed.as_deref()) {
        tracing::error!(%error, "checking the server certificate failed");
    }
}

/// Accepts connections until told to stop, then waits for those that are open.
async fn accept(
    listener: tokio::net::TcpListener,
    tls: TlsAcceptor,
    router: Router,
    permits: Arc<Semaphore>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            permit = permits.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                let (tls, router, stopping) = (tls.clone(), router.clone(), stopping.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(cause) = serve(stream, tls, router, stopping).await {
                        tracing::debug!(%peer, cause, "connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: trying at once again would spin.
                tracing::warn!(%error, "accepting a connection failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("requests were still under way at the end");
    }
}

async fn serve(
    stream: TcpStream,
    tls: TlsAcceptor,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let handshake = timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await;
    let stream = handshake.map_err(|_| "TLS handshake too slow")?.map_err(|e| format!("TLS handshake: {e}"))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.and_then(ClientIdentity::of).ok_or("no client certificate")?;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(identity);
        router.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        done = connection.as_mut() => return done.map_err(|e| e.to_string()),
        _ = stopping.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(|e| e.to_string())
}

/// Raises the limit of open files as far as it goes, and says how many connections it allows.
fn connection_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Where raising is refused, the limit that holds is what counts below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let allowed = files.saturating_sub(DESCRIPTORS_ELSE) / DESCRIPTORS_EACH;
    usize::try_from(allowed).unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}
