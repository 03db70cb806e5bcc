//! Central, as the node manager sees it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use orrery_bootstage::{StageFailure, trust};
use orrery_init_api::FailureClass;
use orrery_protocol::{ArtifactRef, Digest, NodeConfig, NodeStatus, WantedState};
use orrery_transport::{ArtifactStream, Client, TransportError};

/// Path on central with what is wanted of a node.
const WANTED: &str = "/v1/node/wanted";
/// Path on central for what a node is.
const STATUS: &str = "/v1/node/status";

/// The servers of one central, of which one is used until it fails. They are believed by the trust root in force, which they may
/// lead on from while the node OS runs: the boot stage follows the same updates again at the next boot, and keeps them.
#[derive(Debug)]
pub struct Central {
    config: NodeConfig,
    clients: Mutex<Arc<Clients>>,
    current: AtomicUsize,
}

/// A client for each server.
#[derive(Debug)]
struct Clients {
    /// The root that they believe.
    serial: u64,
    all: Vec<Client>,
}

impl Clients {
    fn new(config: &NodeConfig) -> Result<Self> {
        let serial = trust::current(config).serial;
        let all = config.central.urls.iter().map(|url| orrery_bootstage::client(config, url));
        let all = all.collect::<Result<Vec<_>, _>>();
        let all = all.map_err(|e| anyhow!("setting up the connection to central: {}", e.chain()))?;
        Ok(Self { serial, all })
    }
}

impl Central {
    /// The central of a configuration.
    ///
    /// # Errors
    /// When the configuration's key, certificate or URLs cannot be used.
    pub fn new(config: &NodeConfig) -> Result<Self> {
        let clients = Mutex::new(Arc::new(Clients::new(config)?));
        Ok(Self { config: config.clone(), clients, current: AtomicUsize::new(0) })
    }

    /// What central wants of this node.
    ///
    /// # Errors
    /// When no server answers, or one refuses.
    pub fn wanted(&self) -> Result<WantedState> {
        self.ask(|client| client.get(WANTED)).context("asking central what it wants")
    }

    /// Tells central how this node is.
    ///
    /// # Errors
    /// When no server takes it.
    pub fn report(&self, status: &NodeStatus) -> Result<()> {
        self.ask(|client| client.send("POST".parse().expect("POST is a method"), STATUS, status))
            .context("telling central this node's status")
    }

    /// The content of an artifact. What it yields is unproven.
    ///
    /// # Errors
    /// When no server has it.
    pub fn artifact(&self, artifact: &ArtifactRef) -> Result<ArtifactStream> {
        self.ask(|client| client.artifact(artifact, 0)).context("asking central for an artifact")
    }

    /// The content of a small artifact, proven.
    ///
    /// # Errors
    /// When no server has it, or what one has is something else.
    pub fn document(&self, artifact: &ArtifactRef) -> Result<Vec<u8>> {
        let path = format!("/v1/artifacts/{}", artifact.sha256);
        let bytes =
            self.ask(|client| client.get_bytes(&path, artifact.size)).context("asking central for an artifact")?;
        let got = Digest::of(&bytes);
        ensure!(got == artifact.sha256, "central's artifact {} has SHA-256 {got}", artifact.sha256);
        Ok(bytes)
    }

    /// What is stored of some files of an image, by their numbers. What it yields is unproven.
    ///
    /// # Errors
    /// When no server has the image and its listing.
    pub fn contents(&self, archive: &Digest, listing: &Digest, numbers: &[u32]) -> Result<ArtifactStream> {
        let path = format!("/v1/artifacts/{archive}/contents?listing={listing}");
        let body: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        // How much it is, the reader knows.
        self.ask(|client| client.post_for_stream(&path, &body, u64::MAX))
            .context("asking central for files of an image")
    }

    /// Asks the server in use, then the others. One that the root in force does not vouch for is asked for a newer root.
    fn ask<T>(&self, request: impl Fn(&Client) -> Result<T, TransportError>) -> Result<T> {
        let first = self.current.load(Ordering::Relaxed);
        let servers = self.config.central.urls.len();
        let mut last = None;
        for turn in 0..servers {
            let index = (first + turn) % servers;
            let mut outcome = request(&self.clients()?.all[index]).map_err(StageFailure::from);
            if outcome.as_ref().is_err_and(|failure| failure.class == FailureClass::Tls) && self.led_on(index) {
                outcome = request(&self.clients()?.all[index]).map_err(StageFailure::from);
            }
            match outcome {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => last = Some(failure),
            }
        }
        match last {
            Some(failure) => bail!("{}", failure.chain()),
            None => bail!("the configuration names no server"),
        }
    }

    /// The clients that believe the root in force.
    fn clients(&self) -> Result<Arc<Clients>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.serial != trust::current(&self.config).serial {
            *clients = Arc::new(Clients::new(&self.config)?);
        }
        Ok(clients.clone())
    }

    /// Whether a server, which need not be believed for that, led on to a newer root.
    fn led_on(&self, server: usize) -> bool {
        let before = trust::current(&self.config).serial;
        // What made this necessary says more than what this fails by.
        let _ = trust::ask(&self.config, &self.config.central.urls[server]);
        trust::current(&self.config).serial > before
    }
}
