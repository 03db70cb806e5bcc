//! A dialogue over ssh: a terminal, or a command for every line.

use std::{
    borrow::Cow,
    fs, io,
    net::TcpStream,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use russh::{
    AlgorithmKind, ChannelMsg, Disconnect, MethodKind, Preferred, cipher,
    client::{self, AuthResult, KeyboardInteractiveAuthResponse},
    kex,
    keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
    mac,
};
use tokio::runtime::{Builder, Runtime};

use super::{line::Line, script::Channel};
use crate::{Deadline, Method, PcuError, Secret, Waiver};

/// How much a device may send before we read it, in bytes.
const WINDOW: u32 = 64 << 10;
/// How many of its messages wait for us.
const MESSAGES: usize = 16;
/// Rounds of questions at a login, and questions in one: more than any device asks.
const ROUNDS: usize = 8;
/// Longest private key file, in bytes.
const KEY_FILE: u64 = 64 << 10;
/// Bits of an RSA host key that are enough without the waiver `old-ssh`.
const RSA_BITS: u32 = 2048;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// What is shown to get in.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) key: Option<PrivateKey>,
}

/// A connection over ssh, logged in. It runs only while something is asked of it: it must not be used from asynchronous code.
pub(super) struct SshLine {
    channel: Option<russh::Channel<client::Msg>>,
    kind: Channel,
    handle: client::Handle<HostKey>,
    runtime: Runtime,
}

/// Judges the host key that a device shows.
struct HostKey {
    trust: Trust,
    old: bool,
    /// Why the one that came is not believed.
    fault: Arc<Mutex<Option<String>>>,
}

/// Which host key is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    /// The one with this SHA-256, in small hexadecimal digits.
    Hex(String),
    /// The one with this fingerprint, as OpenSSH writes it.
    OpenSsh(String),
    /// Any, by a waiver.
    Any,
    /// None: nothing is known about the device.
    Unknown,
}

impl SshLine {
    /// Connects, checks the host key, logs in.
    pub(super) fn connect(
        stream: TcpStream,
        method: &Method,
        login: Login<'_>,
        kind: Channel,
        deadline: Deadline,
        doing: &str,
    ) -> Result<Self, PcuError> {
        let transport = |error| PcuError::transport(doing, error);
        let old = method.waivers.contains(&Waiver::OldSsh);
        let fault = Arc::new(Mutex::new(None));
        let host_key = HostKey { trust: trust(method)?, old, fault: fault.clone() };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(transport)?;
        stream.set_nonblocking(true).map_err(transport)?;
        let left = deadline.left(doing)?;
        let connected = runtime.block_on(async {
            let work = async {
                let stream = tokio::net::TcpStream::from_std(stream).map_err(transport)?;
                let connecting = client::connect_stream(Arc::new(config(old)), stream, host_key);
                let mut handle = connecting.await.map_err(|error| failed(error, &fault, old, doing))?;
                authenticate(&mut handle, login, old, doing).await?;
                Ok(handle)
            };
            tokio::time::timeout(left, work).await.unwrap_or_else(|_| Err(late(doing)))
        });
        let mut line = Self { channel: None, kind, handle: connected?, runtime };
        if kind == Channel::Shell {
            line.open(None, deadline, doing)?;
        }
        Ok(line)
    }

    /// Opens a channel for a command, or for a shell on a terminal.
    fn open(&mut self, command: Option<&str>, deadline: Deadline, doing: &str) -> Result<(), PcuError> {
        let left = deadline.left(doing)?;
        let work = async {
            let channel = self.handle.channel_open_session().await?;
            match command {
                Some(command) => channel.exec(true, command).await?,
                None => {
                    let (columns, rows) = (u32::from(super::COLUMNS), u32::from(super::ROWS));
                    // A device without terminals is as well.
                    channel.request_pty(false, super::TERMINAL, columns, rows, 0, 0, &[]).await?;
                    channel.request_shell(true).await?;
                }
            }
            Ok(channel)
        };
        let opened = self.runtime.block_on(async { tokio::time::timeout(left, work).await });
        let channel = opened.map_err(|_| late(doing))?.map_err(|error| broken(error, doing))?;
        self.channel = Some(channel);
        Ok(())
    }
}

impl Line for SshLine {
    fn say(&mut self, text: &str, enter: bool, deadline: Deadline, doing: &str) -> Result<(), PcuError> {
        if self.kind == Channel::Exec {
            return self.open(Some(text), deadline, doing);
        }
        let Some(channel) = &self.channel else { return Err(gone(doing)) };
        let mut bytes = text.as_bytes().to_vec();
        if enter {
            bytes.push(b'\r');
        }
        let left = deadline.left(doing)?;
        let sent = self.runtime.block_on(async { tokio::time::timeout(left, channel.data_bytes(bytes)).await });
        sent.map_err(|_| late(doing))?.map_err(|error| broken(error, doing))
    }

    fn hear(&mut self, deadline: Deadline, doing: &str) -> Result<Option<Vec<u8>>, PcuError> {
        let Some(channel) = &mut self.channel else { return Ok(None) };
        loop {
            let left = deadline.left(doing)?;
            let heard = self.runtime.block_on(async { tokio::time::timeout(left, channel.wait()).await });
            match heard.map_err(|_| late(doing))? {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    return Ok(Some(data.to_vec()));
                }
                Some(ChannelMsg::Failure) => {
                    let detail = match self.kind {
                        Channel::Shell => "the device gives this account no shell",
                        Channel::Exec => "the device takes no commands from this account",
                    };
                    return Err(PcuError::Refused { doing: doing.into(), detail: detail.into() });
                }
                Some(ChannelMsg::Eof | ChannelMsg::Close) | None => {
                    self.channel = None;
                    return Ok(None);
                }
                Some(_) => {}
            }
        }
    }
}

impl Drop for SshLine {
    fn drop(&mut self) {
        self.channel = None;
        let goodbye = async {
            // Both fail on one that has hung up already, which needs no goodbye.
            let _ = self.handle.disconnect(Disconnect::ByApplication, "", "en").await;
            let _ = (&mut self.handle).await;
        };
        let _ = self.runtime.block_on(async { tokio::time::timeout(GOODBYE, goodbye).await });
    }
}

impl client::Handler for HostKey {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let fault = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => judge(key, &self.trust, self.old),
            // We do not ask for any.
            PublicKeyOrCertificate::Certificate(_) => Some("it shows a certificate instead of a key".into()),
        };
        let believed = fault.is_none();
        *self.fault.lock().expect("nothing panics while holding it") = fault;
        Ok(believed)
    }
}

/// Why a host key is not believed; none when it is.
fn judge(key: &PublicKey, trust: &Trust, old: bool) -> Option<String> {
    let print = key.fingerprint(HashAlg::Sha256);
    let hex: String = print.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let print = print.to_string();
    let name = key.algorithm();
    match trust {
        Trust::Any => {}
        Trust::Unknown => {
            return Some(format!(
                "nobody vouches for its {name} host key {print}; compare it with the device's own, and pin it with \
                 fingerprint = \"{print}\""
            ));
        }
        Trust::Hex(pinned) if *pinned == hex => {}
        Trust::Hex(pinned) => return Some(format!("its {name} host key is {hex} ({print}), and {pinned} is pinned")),
        Trust::OpenSsh(pinned) if *pinned == print => {}
        Trust::OpenSsh(pinned) => return Some(format!("its {name} host key is {print}, and {pinned} is pinned")),
    }
    match key.key_data().rsa().map(|rsa| rsa.key_size()) {
        Some(bits) if bits < RSA_BITS && !old => {
            Some(format!("its RSA host key has {bits} bits, which can be broken; the waiver \"old-ssh\" lets it pass"))
        }
        _ => None,
    }
}

fn trust(method: &Method) -> Result<Trust, PcuError> {
    let Some(text) = &method.fingerprint else {
        let any = method.waivers.contains(&Waiver::AnyIdentity);
        return Ok(if any { Trust::Any } else { Trust::Unknown });
    };
    if let Some(base64) = text.strip_prefix("SHA256:") {
        let base64 = base64.trim_end_matches('=');
        let sound =
            base64.len() == 43 && base64.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
        if sound {
            return Ok(Trust::OpenSsh(format!("SHA256:{base64}")));
        }
    }
    let hex = text.replace(':', "").to_ascii_lowercase();
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Trust::Hex(hex));
    }
    Err(method.misconfigured("the fingerprint is neither 64 hexadecimal digits nor SHA256:… as ssh-keygen -l shows it"))
}

/// What is offered to the device: with `old`, also what is broken or close to it, last.
fn config(old: bool) -> client::Config {
    let standard = Preferred::DEFAULT;
    let mut kex = standard.kex.to_vec();
    let mut key = standard.key.to_vec();
    let mut cipher = standard.cipher.to_vec();
    let mut mac = standard.mac.to_vec();
    kex.extend([kex::ECDH_SHA2_NISTP256, kex::ECDH_SHA2_NISTP384, kex::ECDH_SHA2_NISTP521]);
    if old {
        kex.extend([kex::DH_G14_SHA1, kex::DH_GEX_SHA1, kex::DH_G1_SHA1]);
        key.push(Algorithm::Dsa);
        cipher.extend([cipher::AES_256_CBC, cipher::AES_192_CBC, cipher::AES_128_CBC, cipher::TRIPLE_DES_CBC]);
        mac.extend([mac::HMAC_SHA1_ETM, mac::HMAC_SHA1]);
    } else {
        // Signatures over SHA-1.
        key.retain(|algorithm| *algorithm != Algorithm::Rsa { hash: None });
    }
    let preferred = Preferred {
        kex: Cow::Owned(kex),
        key: Cow::Owned(key),
        cipher: Cow::Owned(cipher),
        mac: Cow::Owned(mac),
        ..standard
    };
    client::Config {
        preferred,
        window_size: WINDOW,
        channel_buffer_size: MESSAGES,
        nodelay: true,
        ..client::Config::default()
    }
}

async fn authenticate(
    handle: &mut client::Handle<HostKey>,
    mut login: Login<'_>,
    old: bool,
    doing: &str,
) -> Result<(), PcuError> {
    let broken = |error| broken(error, doing);
    // Tells which ways there are; a device that asks for the password in its own dialogue lets us in.
    let mut ways = match handle.authenticate_none(login.user).await.map_err(broken)? {
        AuthResult::Success => return Ok(()),
        AuthResult::Failure { remaining_methods, .. } => remaining_methods,
    };
    let mut tried = Vec::new();
    if let Some(key) = login.key.take().filter(|_| ways.contains(&MethodKind::PublicKey)) {
        tried.push("the key");
        let hash = handle.best_supported_rsa_hash().await.map_err(broken)?;
        let hash = hash.unwrap_or(if old { None } else { Some(HashAlg::Sha256) });
        if key.algorithm().is_rsa() && hash.is_none() && !old {
            return Err(needs_old("it knows RSA signatures over SHA-1 only", doing));
        }
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        match handle.authenticate_publickey(login.user, key).await.map_err(broken)? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { remaining_methods, .. } => ways = remaining_methods,
        }
    }
    if let Some(password) = login.password {
        // One of the two: devices count wrong passwords, and lock accounts.
        if ways.contains(&MethodKind::Password) {
            tried.push("the password");
            let answer = handle.authenticate_password(login.user, password.reveal()).await.map_err(broken)?;
            if answer.success() {
                return Ok(());
            }
        } else if ways.contains(&MethodKind::KeyboardInteractive) {
            tried.push("the password, as an answer to its question");
            if answer_questions(handle, &login, password).await.map_err(broken)? {
                return Ok(());
            }
        }
    }
    let ways = ways.iter().map(<&str>::from).collect::<Vec<_>>().join(", ");
    let detail = match tried.as_slice() {
        [] => format!("it takes {ways}, of which the method has nothing"),
        tried => format!("it does not accept {}; it takes {ways}", tried.join(", nor ")),
    };
    Err(PcuError::Authentication { doing: doing.into(), detail })
}

/// Answers the one question that is not echoed with the password (RFC 4256), and no other one.
async fn answer_questions(
    handle: &mut client::Handle<HostKey>,
    login: &Login<'_>,
    password: &Secret,
) -> Result<bool, russh::Error> {
    let mut answer = handle.authenticate_keyboard_interactive_start(login.user, None).await?;
    let mut told = false;
    for _ in 0..ROUNDS {
        let prompts = match answer {
            KeyboardInteractiveAuthResponse::Success => return Ok(true),
            KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
        };
        let secret = prompts.iter().filter(|prompt| !prompt.echo).count();
        if prompts.len() > ROUNDS || secret > 1 || (secret == 1 && told) {
            return Ok(false);
        }
        told |= secret == 1;
        let reply = |prompt: &client::Prompt| if prompt.echo { login.user } else { password.reveal() }.to_owned();
        answer = handle.authenticate_keyboard_interactive_respond(prompts.iter().map(reply).collect()).await?;
    }
    Ok(false)
}

/// Reads a private key that nobody else can read; `password` opens an encrypted one.
pub(super) fn read_key(path: &Path, method: &Method, password: Option<&Secret>) -> Result<PrivateKey, PcuError> {
    let wrong = |detail: String| method.misconfigured(&format!("the key {}: {detail}", path.display()));
    let read = |error: io::Error| wrong(error.to_string());
    let file = fs::File::open(path).map_err(read)?;
    let about = file.metadata().map_err(read)?;
    let me = fs::metadata("/proc/self").map_err(read)?.uid();
    if about.permissions().mode() & 0o077 != 0 || (about.uid() != me && about.uid() != 0) {
        return Err(wrong("others may know what it says; run chmod 600 and chown on it".into()));
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    io::Read::read_to_string(&mut io::Read::take(file, KEY_FILE), &mut text).map_err(read)?;
    let open = |password| russh::keys::decode_secret_key(&text, password);
    // The password is the device's where the key needs none.
    let key = open(None).or_else(|error| password.map_or(Err(error), |password| open(Some(password.reveal()))));
    key.map_err(|error| wrong(error.to_string()))
}

fn failed(error: russh::Error, fault: &Mutex<Option<String>>, old: bool, doing: &str) -> PcuError {
    if let Some(detail) = fault.lock().expect("nothing panics while holding it").take() {
        return PcuError::Identity { doing: doing.into(), detail };
    }
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            let offered = theirs.join(", ");
            if !old && knows_old(&kind, &theirs) {
                return needs_old(&format!("it offers only {offered}"), doing);
            }
            PcuError::Unsupported {
                doing: doing.into(),
                detail: format!("no common algorithm ({kind:?}): it offers only {offered}"),
            }
        }
        error => broken(error, doing),
    }
}

/// Whether one of a device's algorithms is one that the waiver `old-ssh` allows.
fn knows_old(kind: &AlgorithmKind, theirs: &[String]) -> bool {
    let Preferred { kex, key, cipher, mac, .. } = config(true).preferred;
    let ours: Vec<String> = match kind {
        AlgorithmKind::Kex => kex.iter().map(|name| name.as_ref().to_owned()).collect(),
        AlgorithmKind::Key => key.iter().map(ToString::to_string).collect(),
        AlgorithmKind::Cipher => cipher.iter().map(|name| name.as_ref().to_owned()).collect(),
        AlgorithmKind::Mac => mac.iter().map(|name| name.as_ref().to_owned()).collect(),
        AlgorithmKind::Compression => Vec::new(),
    };
    theirs.iter().any(|name| ours.contains(name))
}

fn needs_old(detail: &str, doing: &str) -> PcuError {
    PcuError::Waiver { doing: doing.into(), detail: detail.into(), waiver: Waiver::OldSsh.name() }
}

fn broken(error: russh::Error, doing: &str) -> PcuError {
    match error {
        russh::Error::IO(error) => PcuError::transport(doing, error),
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::SendError | russh::Error::RecvError => gone(doing),
        error => PcuError::BadAnswer { doing: doing.into(), detail: error.to_string() },
    }
}

fn gone(doing: &str) -> PcuError {
    PcuError::transport(doing, io::Error::new(io::ErrorKind::UnexpectedEof, "the device hung up"))
}

fn late(doing: &str) -> PcuError {
    PcuError::Timeout { doing: doing.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints() {
        let check = |text: &str, expected: Option<Trust>| {
            let mut method = Method::new("x", "y");
            method.fingerprint = Some(text.into());
            assert_eq!(trust(&method).ok(), expected, "{text}");
        };
        let hex = "0123456789abcdef".repeat(4);
        check(&hex, Some(Trust::Hex(hex.clone())));
        check("01:23:45:67:89:AB:CD:EF:".repeat(4).trim_end_matches(':'), Some(Trust::Hex(hex.clone())));
        let base64 = format!("SHA256:{}", "a".repeat(43));
        check(&base64, Some(Trust::OpenSsh(base64.clone())));
        check(&format!("{base64}="), Some(Trust::OpenSsh(base64)));
        for wrong in ["", "SHA256:abc", "MD5:00", &hex[1..]] {
            check(wrong, None);
        }
    }

    #[test]
    fn what_is_old_needs_the_waiver() {
        let offers = |old: bool| {
            let Preferred { kex, key, cipher, mac, .. } = config(old).preferred;
            let mut all: Vec<String> = kex.iter().map(|name| name.as_ref().to_owned()).collect();
            all.extend(key.iter().map(ToString::to_string));
            all.extend(cipher.iter().map(|name| name.as_ref().to_owned()));
            all.extend(mac.iter().map(|name| name.as_ref().to_owned()));
            all
        };
        let old = [
            "diffie-hellman-group1-sha1",
            "diffie-hellman-group14-sha1",
            "aes128-cbc",
            "3des-cbc",
            "ssh-rsa",
            "ssh-dss",
            "hmac-sha1",
        ];
        for name in old {
            assert!(!offers(false).iter().any(|offer| offer == name), "{name}");
            assert!(offers(true).iter().any(|offer| offer == name), "{name}");
        }
        assert!(knows_old(&AlgorithmKind::Cipher, &["3des-cbc".into()]));
        assert!(!knows_old(&AlgorithmKind::Cipher, &["arcfour".into()]));
    }
}
