//! Central's certificates: a CA of its own, and the server certificate it signs.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use orrery_protocol::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, date_time_ymd,
};
use rustls::{crypto::ring, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use crate::data::write_file;

const DAY: u64 = 24 * 60 * 60;
const CA_DAYS: u64 = 3653;
const SERVER_DAYS: u64 = 825;
/// A server certificate is replaced when it has fewer days left.
const RENEW_DAYS: u64 = 30;

/// Why certificates could not be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("accessing {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold {expected}: restore it from a backup", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A host is neither an IP address nor a DNS name.
    #[error("`{0}` is neither an IP address nor a DNS name")]
    Host(String),
    /// A certificate cannot be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls refuses a key.
    #[error("loading the server key: {0}")]
    Key(#[from] rustls::Error),
}

/// One of central's certificate authorities, by its number: the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Authority(u32);

impl Authority {
    /// The one that `init` makes.
    pub(crate) const FIRST: Self = Self(1);

    /// `stem`, or `stem-2` and so on for those that followed.
    fn file(self, folder: &Path, stem: &str, extension: &str) -> PathBuf {
        match self.0 {
            1 => folder.join(format!("{stem}.{extension}")),
            n => folder.join(format!("{stem}-{n}.{extension}")),
        }
    }

    /// Its certificate's file.
    pub(crate) fn certificate(self, folder: &Path) -> PathBuf {
        self.file(folder, "ca", "pem")
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All authorities of `folder`, oldest first.
pub(crate) fn authorities(folder: &Path) -> impl Iterator<Item = Authority> {
    (1..).map(Authority).take_while(|authority| authority.certificate(folder).exists())
}

/// The authority that would come next.
pub(crate) fn next_authority(folder: &Path) -> Authority {
    Authority(authorities(folder).last().map_or(1, |last| last.0 + 1))
}

/// An authority's certificate.
pub(crate) fn authority_certificate(folder: &Path, authority: Authority) -> Result<CertificateDer<'static>, PkiError> {
    let path = authority.certificate(folder);
    CertificateDer::from_pem_slice(read(&path)?.as_bytes())
        .map_err(|_| PkiError::Content { path, expected: "a certificate in PEM" })
}

/// Makes an authority in `folder`: a certificate and a key.
pub(crate) fn make_ca(folder: &Path, authority: Authority, now: u64) -> Result<(), PkiError> {
    let key = KeyPair::generate()?;
    let certificate = ca_params(authority, now).self_signed(&key)?;
    // The certificate last: the authority exists once it does.
    write(&authority.file(folder, "ca", "key"), key.serialize_pem().as_bytes(), 0o600)?;
    write(&authority.certificate(folder), certificate.pem().as_bytes(), 0o644)
}

/// Makes a server certificate for `hosts` in `folder`, with its key in the same file.
pub(crate) fn make_server(folder: &Path, authority: Authority, hosts: &[String], now: u64) -> Result<(), PkiError> {
    let ca_path = authority.file(folder, "ca", "key");
    let ca_key = KeyPair::from_pem(&read(&ca_path)?)
        .map_err(|_| PkiError::Content { path: ca_path, expected: "a private key in PEM" })?;
    // Issuing needs the CA's name and key only; both are the same in every renewal.
    let issuer = Issuer::new(ca_params(authority, now), ca_key);
    let key = KeyPair::generate()?;
    let certificate = server_params(hosts, now)?.signed_by(&key, &issuer)?;
    // Certificate and key in one file, so that they are replaced together.
    let both = format!("{}{}", certificate.pem(), key.serialize_pem());
    write(&authority.file(folder, "server", "pem"), both.as_bytes(), 0o600)
}

/// Makes an operator's key at `path`. Returns its identity.
pub(crate) fn make_operator(path: &Path) -> Result<Digest, PkiError> {
    let key = KeyPair::generate()?;
    write(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(Digest::of(&key.subject_public_key_info()))
}

/// Loads the server certificate from an authority of `folder`, renewed first if it is about to expire or for other hosts.
pub(crate) fn load_server(
    folder: &Path,
    authority: Authority,
    hosts: &[String],
    now: u64,
) -> Result<Arc<CertifiedKey>, PkiError> {
    let path = authority.file(folder, "server", "pem");
    if !path.exists() || expires(&path)? < now + RENEW_DAYS * DAY || !is_for(&path, hosts)? {
        make_server(folder, authority, hosts, now)?;
        tracing::info!(?hosts, "server certificate renewed");
    }
    if expires(&authority.certificate(folder))? < now + SERVER_DAYS * DAY {
        tracing::warn!(
            "the certificate authority expires in less than {SERVER_DAYS} days: make the next one with `orrery-central ca \
             new` and publish a trust update that names it"
        );
    }
    let pem = read(&path)?;
    let missing = || PkiError::Content { path: path.clone(), expected: "a certificate and its key in PEM" };
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| missing())?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| missing())?;
    Ok(Arc::new(CertifiedKey::from_der(vec![certificate], key, &ring::default_provider())?))
}

/// Checks that a certificate can be made for each of `hosts`.
pub(crate) fn check_hosts(hosts: &[String]) -> Result<(), PkiError> {
    server_params(hosts, 0).map(|_| ())
}

/// What `look` sees in the first certificate of `path`.
fn inspect<T>(path: &Path, look: impl FnOnce(&X509Certificate<'_>) -> Option<T>) -> Result<T, PkiError> {
    let broken = || PkiError::Content { path: path.to_owned(), expected: "a certificate in PEM" };
    let der = CertificateDer::from_pem_slice(read(path)?.as_bytes()).map_err(|_| broken())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|_| broken())?;
    look(&certificate).ok_or_else(broken)
}

/// When the first certificate in `path` expires, in Unix seconds.
fn expires(path: &Path) -> Result<u64, PkiError> {
    inspect(path, |certificate| Some(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)))
}

/// Whether the first certificate in `path` is for these hosts and no others.
fn is_for(path: &Path, hosts: &[String]) -> Result<bool, PkiError> {
    inspect(path, |certificate| {
        let names = certificate.subject_alternative_name().ok()?.map(|extension| extension.value.general_names.iter());
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match *bytes {
                [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
                bytes => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
            },
            _ => None,
        };
        let has: BTreeSet<_> = names.into_iter().flatten().filter_map(text).collect();
        let canonical = |host: &String| host.parse::<IpAddr>().map_or_else(|_| host.clone(), |ip| ip.to_string());
        Some(has == hosts.iter().map(canonical).collect())
    })
}

fn ca_params(authority: Authority, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = match authority {
        Authority::FIRST => "Orrery central CA".to_owned(),
        Authority(n) => format!("Orrery central CA {n}"),
    };
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_DAYS);
    params
}

fn server_params(hosts: &[String], now: u64) -> Result<CertificateParams, PkiError> {
    if let Some(bad) = hosts.iter().find(|h| !is_host(h)) {
        return Err(PkiError::Host(bad.clone()));
    }
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, "Orrery central");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, now, SERVER_DAYS);
    Ok(params)
}

fn is_host(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.parse::<std::net::IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(label))
}

/// A node whose clock was lost starts at its image's build date, which may lie before this central was made:
/// a certificate "not yet valid" must not keep it away.
fn valid_for(params: &mut CertificateParams, now: u64, days: u64) {
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now + days * DAY);
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    write_file(path, content, mode).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        let check = |host: &str, expect: bool| assert_eq!(is_host(host), expect, "{host}");
        check("10.0.2.2", true);
        check("::1", true);
        check("central.example.org", true);
        check("https://central", false);
        check("central:8443", false);
        check("", false);
        check("-a.b", false);
    }

    #[test]
    fn a_server_certificate_is_renewed_when_it_expires_or_is_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let path = folder.path().join("server.pem");
        let start = 1_800_000_000;
        make_ca(folder.path(), Authority::FIRST, start).unwrap();
        make_server(folder.path(), Authority::FIRST, &hosts, start).unwrap();
        let first = fs::read(&path).unwrap();
        load_server(folder.path(), Authority::FIRST, &hosts, start + 794 * DAY).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        load_server(folder.path(), Authority::FIRST, &hosts, start + 796 * DAY).unwrap();
        assert_ne!(fs::read(&path).unwrap(), first);
        assert_eq!(expires(&path).unwrap(), start + (796 + 825) * DAY);

        let more = ["127.0.0.1", "2001:db8::0:1", "central.example.org"].map(str::to_owned);
        load_server(folder.path(), Authority::FIRST, &more, start + 796 * DAY).unwrap();
        let renewed = fs::read(&path).unwrap();
        assert!(is_for(&path, &more).unwrap() && !is_for(&path, &hosts).unwrap());
        load_server(folder.path(), Authority::FIRST, &more, start + 796 * DAY).unwrap();
        assert_eq!(fs::read(&path).unwrap(), renewed);
    }
}
