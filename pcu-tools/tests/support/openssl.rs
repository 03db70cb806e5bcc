//! OpenSSL's server, with whatever is old about its TLS, on a free port of this machine.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// A server that runs, and is ended with this.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts one: `key` says how `openssl req` makes its key and certificate, `options` what it speaks.
    pub(crate) fn start(key: &[&str], options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let run = |arguments: &[&str]| {
            let made = Command::new("openssl").args(arguments).stdin(Stdio::null()).output();
            let made = made.unwrap_or_else(|error| panic!("running openssl: {error}; run `cargo xtask setup`"));
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        let (certificate, private) = (file("certificate"), file("key"));
        let request =
            ["req", "-x509", "-nodes", "-subj", "/CN=bmc", "-days", "30", "-out", &certificate, "-keyout", &private];
        run(&[&request[..], key].concat());
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert", &certificate, "-key", &private])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // "ACCEPT 127.0.0.1:40000".
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.parse().ok());
        let server = Self { child, port: said.unwrap_or_default(), _folder: folder };
        assert!(server.port != 0, "openssl does not say where it listens");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
