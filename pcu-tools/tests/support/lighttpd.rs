//! lighttpd: HTTP, TLS, Basic and Digest by somebody else. What devices answer is in `devices.py`, a CGI script that keeps the state of
//! their outlets in files.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use sha2::{Digest, Sha256};

/// How long the server may take to listen.
const START: Duration = Duration::from_secs(10);
/// Other tests may take a port between its choice and its use.
const TRIES: usize = 5;

/// Who is let in, and how.
#[derive(Clone, Copy)]
pub(crate) enum Auth {
    /// Everybody, as far as the server is concerned.
    Open,
    /// `admin` with [`PASSWORD`], by Basic.
    Basic,
    /// The same by Digest with MD5.
    Md5,
    /// The same by Digest with SHA-256.
    Sha256,
}

/// The password of `admin`. What has to be escaped somewhere is in it.
pub(crate) const PASSWORD: &str = "p&w\"=+ %ü";

/// A running server; it ends with this.
pub(crate) struct Lighttpd {
    child: Child,
    folder: tempfile::TempDir,
    /// Where it listens, on 127.0.0.1.
    pub(crate) port: u16,
    /// SHA-256 of its certificate, where it has one.
    pub(crate) fingerprint: Option<String>,
}

impl Lighttpd {
    /// Serves `device` of `devices.py`, over TLS if `tls`.
    pub(crate) fn start(device: &str, auth: Auth, tls: bool) -> Self {
        let server = ["/usr/sbin/lighttpd", "/usr/bin/lighttpd"].into_iter().find(|path| Path::new(path).exists());
        let server = server.expect("there is no lighttpd; run `cargo xtask setup`");
        for _ in 0..TRIES {
            if let Some(started) = Self::try_start(server, device, auth, tls) {
                return started;
            }
        }
        panic!("lighttpd did not start; are all its modules there? `cargo xtask setup` installs them");
    }

    fn try_start(server: &str, device: &str, auth: Auth, tls: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::create_dir(folder.path().join("www")).unwrap();
        fs::write(folder.path().join("www/device.cgi"), include_str!("devices.py")).unwrap();
        fs::write(folder.path().join("device"), device).unwrap();
        fs::write(folder.path().join("users"), format!("admin:{PASSWORD}\n")).unwrap();
        let mut modules = vec!["mod_rewrite", "mod_auth", "mod_authn_file", "mod_cgi"];
        let mut fingerprint = None;
        let mut conf = format!(
            "server.document-root = \"{path}/www\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
             url.rewrite-once = ( \"\" => \"/device.cgi\" )\ncgi.assign = ( \".cgi\" => \"{}\" )\n\
             auth.backend = \"plain\"\nauth.backend.plain.userfile = \"{path}/users\"\n",
            python().display()
        );
        let method = match auth {
            Auth::Open => None,
            Auth::Basic => Some("\"method\" => \"basic\""),
            Auth::Md5 => Some("\"method\" => \"digest\", \"algorithm\" => \"MD5\""),
            Auth::Sha256 => Some("\"method\" => \"digest\", \"algorithm\" => \"SHA-256\""),
        };
        if let Some(method) = method {
            conf += &format!(
                "auth.require = ( \"/\" => ( {method}, \"realm\" => \"pdu\", \"require\" => \"valid-user\" ) )\n"
            );
        }
        if tls {
            let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
            fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
            fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            fingerprint = Some(hex::encode(Sha256::digest(made.cert.der())));
            modules.push("mod_openssl");
            conf += &format!(
                "ssl.engine = \"enable\"\nssl.pemfile = \"{path}/cert.pem\"\nssl.privkey = \"{path}/key.pem\"\n"
            );
        }
        conf += &format!(
            "server.modules = ( {} )\n",
            modules.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
        );
        fs::write(folder.path().join("conf"), conf).unwrap();
        let child = Command::new(server)
            .args(["-D", "-f"])
            .arg(folder.path().join("conf"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("errors")).unwrap())
            .process_group(0)
            .spawn()
            .expect("lighttpd is there");
        let mut started = Self { child, folder, port, fingerprint };
        let begun = Instant::now();
        while begun.elapsed() < START {
            if started.child.try_wait().unwrap().is_some() {
                eprintln!("{}", started.read("errors"));
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(started);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// A file of the device's folder: `state`, `log`, `errors`, `cert.pem`. Empty when there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Where a file of the device's folder is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the device does from now on: `ok`, `403`, `500`, `503`, `garbage`, `flood`, `hang`, `stuck`.
    pub(crate) fn behave(&self, mode: &str) {
        fs::write(self.path("mode"), mode).unwrap();
    }
}

impl Drop for Lighttpd {
    fn drop(&mut self) {
        // Scripts that hang belong to its group.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The Python of the folder of Python tools.
pub(crate) fn python() -> PathBuf {
    let folder = std::env::var_os("ORRERY_PYTHON_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
        cache.join("orrery/python-tools/bin")
    });
    let python = folder.join("python3");
    assert!(python.exists(), "there is no {}; run `cargo xtask setup`", python.display());
    python
}
