//! Which certificate authority the server's certificate is from.
//!
//! Central may hold several: `ca.pem`, and those that followed, `ca-2.pem` and so on. Clients do not say which they trust, so
//! the choice follows the published trust roots: it is the oldest authority that the newest root allows. A root that adds an
//! authority thus changes nothing for those who have not heard of it, and the root that drops the old one makes the server
//! change over; nodes that missed both fetch the roots without verifying the server, and come back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    now,
    pki::{self, Authority, PkiError},
    tls::CurrentCertificate,
};

/// The server's certificate and what it may be exchanged for; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    folder: PathBuf,
    hosts: Vec<String>,
    current: Arc<CurrentCertificate>,
}

impl Certificates {
    /// The certificate for the newest published root's authorities, `allowed`; without a root, that of the first authority.
    pub(crate) fn load(folder: &Path, hosts: &[String], allowed: Option<&str>) -> Result<Self, PkiError> {
        let authority = choose(folder, allowed)?;
        let current = CurrentCertificate::new(pki::load_server(folder, authority, hosts, now())?);
        Ok(Self { folder: folder.to_owned(), hosts: hosts.to_owned(), current })
    }

    /// The certificate that connections get.
    pub(crate) fn current(&self) -> Arc<CurrentCertificate> {
        self.current.clone()
    }

    /// Changes over to what `allowed` demands, and renews what is about to expire.
    pub(crate) fn follow(&self, allowed: Option<&str>) -> Result<(), PkiError> {
        let authority = choose(&self.folder, allowed)?;
        self.current.replace(pki::load_server(&self.folder, authority, &self.hosts, now())?);
        tracing::debug!(%authority, "server certificate chosen");
        Ok(())
    }

    /// Whether any authority of this central is among `allowed`.
    pub(crate) fn can_serve(&self, allowed: &str) -> Result<bool, PkiError> {
        Ok(oldest_allowed(&self.folder, allowed)?.is_some())
    }
}

fn choose(folder: &Path, allowed: Option<&str>) -> Result<Authority, PkiError> {
    let Some(allowed) = allowed else {
        return Ok(Authority::FIRST);
    };
    // The published root named one that was here then.
    oldest_allowed(folder, allowed)?.ok_or_else(|| PkiError::Content {
        path: folder.to_owned(),
        expected: "a certificate authority that the newest trust root allows",
    })
}

fn oldest_allowed(folder: &Path, allowed: &str) -> Result<Option<Authority>, PkiError> {
    // What cannot be read as a certificate allows nothing.
    let allowed: Vec<_> = CertificateDer::pem_slice_iter(allowed.as_bytes()).filter_map(Result::ok).collect();
    for authority in pki::authorities(folder) {
        if allowed.contains(&pki::authority_certificate(folder, authority)?) {
            return Ok(Some(authority));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_allowed_authority_serves() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        pki::make_ca(folder, Authority::FIRST, 1_800_000_000).unwrap();
        let second = pki::next_authority(folder);
        pki::make_ca(folder, second, 1_800_000_000).unwrap();
        let pem = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let (one, two) = (pem("ca.pem"), pem("ca-2.pem"));
        let check = |allowed: &str, expect| assert_eq!(oldest_allowed(folder, allowed).unwrap(), expect);
        check(&one, Some(Authority::FIRST));
        check(&two, Some(second));
        check(&format!("{two}{one}"), Some(Authority::FIRST));
        check("", None);
        assert_eq!(choose(folder, None).unwrap(), Authority::FIRST);
    }
}
