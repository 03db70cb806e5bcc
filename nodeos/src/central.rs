//! Central, as the node manager sees it.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use orrery_protocol::{ArtifactRef, NodeConfig, NodeStatus, WantedState};
use orrery_transport::{ArtifactStream, Client, TransportError};

/// Path on central with what is wanted of a node.
const WANTED: &str = "/v1/node/wanted";
/// Path on central for what a node is.
const STATUS: &str = "/v1/node/status";

/// The servers of one central, of which one is used until it fails.
#[derive(Debug)]
pub struct Central {
    clients: Vec<Client>,
    current: AtomicUsize,
}

impl Central {
    /// The central of a configuration.
    ///
    /// # Errors
    /// When the configuration's key, certificate or URLs cannot be used.
    pub fn new(config: &NodeConfig) -> Result<Self> {
        let clients = config.central.urls.iter().map(|url| orrery_bootstage::client(config, url));
        let clients = clients.collect::<Result<Vec<_>, _>>();
        let clients = clients.map_err(|e| anyhow!("setting up the connection to central: {}", e.chain()))?;
        Ok(Self { clients, current: AtomicUsize::new(0) })
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

    /// Asks the server in use, then the others.
    fn ask<T>(&self, request: impl Fn(&Client) -> Result<T, TransportError>) -> Result<T> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.clients.len() {
            let index = (first + turn) % self.clients.len();
            match request(&self.clients[index]) {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(e) => last = Some(e),
            }
        }
        match last {
            Some(e) => Err(e.into()),
            None => bail!("the configuration names no server"),
        }
    }
}
