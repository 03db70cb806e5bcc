//! Every way in which an exchange fails has its own error: checked against a real TLS server in this process.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    thread,
};

use orrery_protocol::{ArtifactRef, Digest};
use orrery_transport::{Client, Identity, Resolver, TransportError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, version};
use rustls_pki_types::PrivateKeyDer;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, key()).unwrap()
}

/// A server for `host` that gives one `answer` to each of several connections; its port.
fn serve(authority: &Authority, host: &str, answer: &'static str) -> u16 {
    let key = key();
    let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut request = [0; 4096];
            // A failed handshake is what some of the tests are about.
            if stream.read(&mut request).is_ok() {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

fn client(trusted: &Authority, port: u16) -> Client {
    let identity = Identity::from_pem(&key().serialize_pem()).unwrap();
    Client::new(&format!("https://127.0.0.1:{port}"), &trusted.pem(), &identity, Resolver::Servers(Vec::new())).unwrap()
}

fn name(error: &TransportError) -> String {
    match error {
        TransportError::Connect { .. } => "connect".into(),
        TransportError::Tls { .. } => "tls".into(),
        TransportError::Refused { status, class, .. } => format!("refused {status} {class}"),
        TransportError::ShortRead { received, expected, .. } => format!("short {received} of {expected:?}"),
        TransportError::Answer { .. } => "answer".into(),
        other => format!("{other:?}"),
    }
}

fn check(answer: &'static str, expect: &str) {
    let authority = authority();
    let client = client(&authority, serve(&authority, "127.0.0.1", answer));
    let got = client.get::<serde_json::Value>("/v1/node/wanted");
    let got = got.map_or_else(|e| name(&e), |value| value.to_string());
    assert_eq!(got, expect, "{answer:?}");
}

#[test]
fn answers() {
    check("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}", "{\"a\":1}");
    check(
        "HTTP/1.1 404 Not Found\r\ncontent-length: 38\r\n\r\n{\"error\":\"no-script\",\"message\":\"none\"} ",
        "refused 404 no-script",
    );
    check("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops", "refused 500 ");
    check("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\noops", "answer");
    check("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "short 5 of Some(9)");
}

#[test]
fn strangers() {
    let (ours, theirs) = (authority(), authority());
    let get = |port| name(&client(&ours, port).get::<serde_json::Value>("/").unwrap_err());
    assert_eq!(get(serve(&theirs, "127.0.0.1", "")), "tls");
    assert_eq!(get(serve(&ours, "elsewhere.example", "")), "tls");
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    assert_eq!(get(closed), "connect");
}

#[test]
fn a_name_without_name_servers_is_a_name_problem() {
    let identity = Identity::from_pem(&key().serialize_pem()).unwrap();
    let resolver = Resolver::Servers(Vec::new());
    let client = Client::new("https://central.example", &authority().pem(), &identity, resolver).unwrap();
    let error = client.get::<serde_json::Value>("/").unwrap_err();
    assert!(matches!(error, TransportError::Dns { .. }), "{error}");
}

#[test]
fn an_artifact_that_breaks_off_says_how_far_it_came() {
    let authority = authority();
    let answer = "HTTP/1.1 206 Partial Content\r\ncontent-length: 6\r\n\r\nabc";
    let client = client(&authority, serve(&authority, "127.0.0.1", answer));
    let artifact = ArtifactRef { sha256: Digest::of(b""), size: 10 };
    let mut stream = client.artifact(&artifact, 4).unwrap();
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!((bytes.as_slice(), name(&stream.explain(error)).as_str()), (&b"abc"[..], "short 3 of Some(6)"));
}
