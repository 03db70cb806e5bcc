//! Which servers a client believes, against a real TLS server.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
    thread,
};

use orrery_transport::{Client, Identity, Resolver, TransportError, get_bytes_unverified, new_key_pem};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ServerConfig, ServerConnection, Stream};
use rustls_pki_types::PrivateKeyDer;

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\norrery-notice: flash the new medium\r\n\
                      date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\nroots";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, key()).unwrap()
}

/// Starts a server with a certificate of `authority` that answers every request alike; its URL.
fn serve(authority: &Authority) -> String {
    let key = key();
    let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, authority).unwrap();
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut session = ServerConnection::new(config.clone()).unwrap();
            let mut stream = Stream::new(&mut session, &mut socket);
            let (mut request, mut buffer) = (Vec::<u8>::new(), [0; 4096]);
            // A client that refuses the server sends an alert instead of a request.
            while let Ok(got @ 1..) = stream.read(&mut buffer) {
                request.extend(&buffer[..got]);
                if request.windows(4).any(|end| end == b"\r\n\r\n") {
                    stream.write_all(ANSWER.as_bytes()).unwrap();
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                    break;
                }
            }
        }
    });
    url
}

#[test]
fn a_pinned_authority_is_believed_beside_others_and_no_other_one() {
    let (old, new) = (authority(), authority());
    let url = serve(&new);
    let me = Identity::from_pem(&new_key_pem().unwrap()).unwrap();
    let ask = |ca: &str| Client::new(&url, ca, &me, Resolver::System).unwrap().get_bytes("/v1/roots", 100);
    assert_eq!(ask(&new.pem()).unwrap(), b"roots");
    assert_eq!(ask(&format!("{}{}", old.pem(), new.pem())).unwrap(), b"roots");
    assert!(matches!(ask(&old.pem()), Err(TransportError::Tls { .. })));
    // What is fetched without proof is bounded all the same.
    let blind = |limit| get_bytes_unverified(&url, "/v1/roots", &me, Resolver::System, limit);
    assert_eq!(blind(5).unwrap(), b"roots");
    assert!(blind(4).is_err());
}

#[test]
fn an_answer_carries_central_s_notice_and_clock() {
    let authority = authority();
    let url = serve(&authority);
    let me = Identity::from_pem(&new_key_pem().unwrap()).unwrap();
    let client = Client::new(&url, &authority.pem(), &me, Resolver::System).unwrap();
    let answer = client.post_for_answer("/v1/node/contact", &[0; 0], 100).unwrap();
    assert_eq!(answer.bytes, b"roots");
    assert_eq!(answer.notice.as_deref(), Some("flash the new medium"));
    assert_eq!(answer.date, Some(784_111_777));
}
