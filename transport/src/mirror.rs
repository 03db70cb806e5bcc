//! Any server that has artifacts under their digests, and is trusted with nothing.

use std::ops::Range;

use orrery_protocol::ArtifactRef;
use ureq::Agent;

use crate::{ArtifactStream, Resolver, TransportError, agent, artifact_stream, authorities, tls};

/// A client of one mirror. It shows no identity, and believes nothing: who downloads verifies.
#[derive(Debug, Clone)]
pub struct Mirror {
    base: String,
    agent: Agent,
}

impl Mirror {
    /// A client of the mirror at `base_url`: `http://`, or `https://` with a certificate of the authority in `ca_pem`.
    ///
    /// # Errors
    /// The URL is neither, or the certificate is none.
    pub fn new(base_url: &str, ca_pem: &str, resolver: Resolver) -> Result<Self, TransportError> {
        let base = base_url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(TransportError::Setup { what: format!("the mirror {base} is no http:// or https:// URL") });
        }
        let tls = tls().root_certs(authorities(ca_pem)?).build();
        Ok(Self { base, agent: agent(tls, resolver, false) })
    }

    /// The base URL.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// The bytes `range` of the artifact, at the base URL under its digest. What it yields is unproven, and may go on after
    /// them.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn artifact(&self, artifact: &ArtifactRef, range: Range<u64>) -> Result<ArtifactStream, TransportError> {
        artifact_stream(&self.agent, format!("{}/{}", self.base, artifact.sha256), artifact, range)
    }
}
