//! Against servers that behave, that do not, and that are somebody else.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use digest_auth::AuthorizationHeader;
use rustls::{
    ServerConnection, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer},
    version,
};
use sha2::Digest as _;

use super::{
    testing::{answer, certificate, read_request, serve, serve_tls},
    *,
};
use crate::{Class, SecretSource};

/// How long the hostile get.
const PATIENCE: Duration = Duration::from_millis(700);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn plain(port: u16) -> WebClient {
    let mut method = Method::new("web", format!("http://127.0.0.1:{port}"));
    method.waivers.push(Waiver::ClearText);
    WebClient::new(&method, 443).unwrap()
}

fn get(client: &mut WebClient, path: &str, deadline: Deadline) -> Result<Reply, PcuError> {
    client.request(&Verb::GET, path, &[], &[], deadline)
}

#[test]
fn addresses_lead_to_origins() {
    let check = |address: &str, expected: Result<&str, Class>| {
        let mut method = Method::new("web", address);
        method.waivers.push(Waiver::ClearText);
        let found =
            WebClient::new(&method, 443).map(|client| client.origin().to_owned()).map_err(|error| error.class());
        assert_eq!(found, expected.map(str::to_owned), "{address}");
    };
    check("bmc1", Ok("https://bmc1:443"));
    check("https://bmc1/", Ok("https://bmc1:443"));
    check("bmc1:8443", Ok("https://bmc1:8443"));
    check("http://bmc1", Ok("http://bmc1:80"));
    check("[::1]:8443", Ok("https://[::1]:8443"));
    check("::1", Ok("https://[::1]:443"));
    for wrong in ["", "ftp://bmc1", "https://", "bmc1/redfish", "bmc1:x", "user@bmc1:1/", "bmc1?x", "bmc 1"] {
        check(wrong, Err(Class::Configuration));
    }
    let error = WebClient::new(&Method::new("web", "http://bmc1"), 443).unwrap_err();
    assert!(matches!(error, PcuError::Waiver { waiver: "clear-text", .. }), "{error}");
}

#[test]
fn only_links_to_the_device_itself_are_local() {
    let client = WebClient::new(&Method::new("web", "bmc1"), 443).unwrap();
    let check = |link: &str, expected: Option<&str>| assert_eq!(client.local(link).as_deref(), expected, "{link}");
    check("/redfish/v1/", Some("/redfish/v1/"));
    check("/a?b=c#d", Some("/a?b=c"));
    check("https://bmc1/a", Some("/a"));
    check("https://bmc1:443/a", Some("/a"));
    check("https://bmc1", Some("/"));
    for wrong in [
        "",
        "a",
        "//bmc2/a",
        "https://bmc2/a",
        "https://bmc12/a",
        "http://bmc1/a",
        "https://bmc1:444/a",
        "/a b",
        "/\r\nx: y",
    ] {
        check(wrong, None);
    }
}

#[test]
fn requests_and_answers_arrive_whole() {
    let port = serve(|mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let said = format!("{} {}", head[0], String::from_utf8_lossy(&body));
            let (status, headers) = match head[0].as_str() {
                "GET /moved HTTP/1.1" => ("308 Permanent Redirect", "location: /moved/\r\n"),
                "GET /beside/a HTTP/1.1" => ("302 Found", "location: b\r\n"),
                "GET /none HTTP/1.1" => ("404 Not Found", ""),
                _ => ("200 OK", "etag: \"7\"\r\n"),
            };
            answer(&mut stream, status, headers, &said);
        }
    });
    let mut client = plain(port);
    let mut check = |verb: Verb, path: &str, body: &str, status: u16, said: &str| {
        let reply = client.request(&verb, path, &[("accept", "*/*")], body.as_bytes(), soon()).unwrap();
        assert_eq!((reply.status, String::from_utf8_lossy(&reply.body).as_ref()), (status, said));
        assert_eq!(reply.header("ETag"), (status == 200).then_some("\"7\""));
    };
    check(Verb::GET, "/", "", 200, "GET / HTTP/1.1 ");
    check(Verb::POST, "/a?b", "c", 200, "POST /a?b HTTP/1.1 c");
    check(Verb::DELETE, "/a", "", 200, "DELETE /a HTTP/1.1 ");
    check(Verb::GET, "/none", "", 404, "GET /none HTTP/1.1 ");
    check(Verb::GET, "/moved", "", 200, "GET /moved/ HTTP/1.1 ");
    check(Verb::GET, "/beside/a", "", 200, "GET /beside/b HTTP/1.1 ");
}

#[test]
fn a_connection_that_dies_is_replaced_for_what_only_reads() {
    // It answers one request a connection, and hangs up at the next one.
    let port = serve(|mut stream| {
        if let Some((head, _)) = read_request(&mut stream) {
            answer(&mut stream, "200 OK", "", &head[0]);
            if let Some((head, _)) = read_request(&mut stream) {
                assert!(head[0].starts_with("GET "), "{} came over a used connection", head[0]);
            }
        }
    });
    let mut client = plain(port);
    for verb in [Verb::GET, Verb::GET, Verb::POST, Verb::GET, Verb::DELETE, Verb::PATCH, Verb::GET] {
        let reply = client.request(&verb, "/", &[], b"", soon()).unwrap();
        assert!(reply.body.starts_with(verb.as_str().as_bytes()));
    }
}

/// A request to a server that, once asked, does as `handler` says, ends as `expected` and not much later than it may.
fn hostile(name: &str, expected: Class, handler: impl Fn(&mut TcpStream) + Send + Sync + 'static) {
    let port = serve(move |mut stream| {
        if read_request(&mut stream).is_some() {
            handler(&mut stream);
        }
    });
    ends_in_time(name, plain(port), expected);
}

fn ends_in_time(name: &str, mut client: WebClient, expected: Class) {
    let begun = Instant::now();
    let error = get(&mut client, "/", Deadline::after(PATIENCE)).unwrap_err();
    assert_eq!(error.class(), expected, "{name}: {error}");
    // A flood's first megabyte takes its time in a busy test run.
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(3), "{name} took {:?}", begun.elapsed());
    assert!(error.to_string().len() < 600, "{name}: {error}");
}

/// Writes until the client has gone.
fn forever(stream: &mut impl Write, bytes: &[u8], pause: Duration) {
    while stream.write_all(bytes).is_ok() && stream.flush().is_ok() {
        thread::sleep(pause);
    }
}

#[test]
fn what_a_device_does_is_bounded() {
    const DRIP: Duration = Duration::from_millis(20);
    let ok = "HTTP/1.1 200 OK\r\n";
    hostile("silence", Class::Timeout, |stream| {
        let _ = stream.read(&mut [0]);
    });
    hostile("hanging up", Class::Transport, |_| ());
    hostile("garbage", Class::Prompt, |stream| forever(stream, &[0x80; 100], Duration::ZERO));
    hostile("a dripping head", Class::Timeout, move |stream| {
        let _ = stream.write_all(format!("{ok}x: ").as_bytes());
        forever(stream, b"y", DRIP);
    });
    hostile("endless headers", Class::Prompt, move |stream| {
        let _ = stream.write_all(ok.as_bytes());
        forever(stream, b"x: y\r\n", Duration::ZERO);
    });
    hostile("an endless header", Class::Prompt, move |stream| {
        let _ = stream.write_all(format!("{ok}x: ").as_bytes());
        forever(stream, &[b'y'; 1000], Duration::ZERO);
    });
    hostile("one provisional answer after the other", Class::Timeout, |stream| {
        forever(stream, b"HTTP/1.1 102 Processing\r\n\r\n", DRIP);
    });
    hostile("a dripping body", Class::Timeout, move |stream| {
        let _ = stream.write_all(format!("{ok}content-length: 100000\r\n\r\n").as_bytes());
        forever(stream, b"x", DRIP);
    });
    hostile("a flood without a length", Class::Prompt, move |stream| {
        let _ = stream.write_all(format!("{ok}\r\n").as_bytes());
        forever(stream, &[b'x'; 64 << 10], Duration::ZERO);
    });
    hostile("a flood as long as it says", Class::Prompt, move |stream| {
        let _ = stream.write_all(format!("{ok}content-length: 9000000000000000000\r\n\r\n").as_bytes());
        forever(stream, &[b'x'; 64 << 10], Duration::ZERO);
    });
    hostile("a flood of chunks", Class::Prompt, move |stream| {
        let _ = stream.write_all(format!("{ok}transfer-encoding: chunked\r\n\r\n").as_bytes());
        let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
        forever(stream, chunk.as_bytes(), Duration::ZERO);
    });
    hostile("an endless chunk's length", Class::Prompt, move |stream| {
        let _ = stream.write_all(format!("{ok}transfer-encoding: chunked\r\n\r\n").as_bytes());
        forever(stream, &[b'1'; 1000], Duration::ZERO);
    });
    hostile("less than it says", Class::Transport, move |stream| {
        let _ = stream.write_all(format!("{ok}content-length: 100\r\n\r\nxyz").as_bytes());
    });
    hostile("another host", Class::Prompt, |stream| answer(stream, "302 Found", "location: http://127.0.0.2/\r\n", ""));
}

#[test]
fn a_device_that_sends_us_in_circles_is_left() {
    let port = serve(|mut stream| {
        while read_request(&mut stream).is_some() {
            answer(&mut stream, "302 Found", "location: /\r\n", "");
        }
    });
    ends_in_time("circles", plain(port), Class::Prompt);
}

#[test]
fn what_is_no_tls_is_bounded() {
    let secure = |port: u16| {
        let mut method = Method::new("web", format!("127.0.0.1:{port}"));
        method.waivers.push(Waiver::AnyIdentity);
        WebClient::new(&method, 443).unwrap()
    };
    let silence = serve(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    ends_in_time("silence", secure(silence), Class::Timeout);
    let http = serve(|mut stream| answer(&mut stream, "400 Bad Request", "", ""));
    ends_in_time("http", secure(http), Class::Prompt);
    // The beginning of a record that goes on.
    let drip = serve(|mut stream| {
        let _ = stream.write_all(&[22, 3, 3, 0x3f, 0xff]);
        forever(&mut stream, &[2], Duration::from_millis(20));
    });
    ends_in_time("a dripping handshake", secure(drip), Class::Timeout);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    ends_in_time("nobody", secure(closed), Class::Transport);
}

/// A device with this certificate and key.
fn device(
    certificate: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> u16 {
    serve_tls(certificate, key, version, |stream: &mut StreamOwned<ServerConnection, TcpStream>| {
        while read_request(stream).is_some() {
            answer(stream, "200 OK", "", "it is me");
        }
    })
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(sha2::Sha256::digest(certificate))
}

#[test]
fn the_pinned_certificate_is_believed_and_no_other() {
    let (own, key, _) = certificate(false, "localhost");
    let (_, other_key, _) = certificate(false, "localhost");
    let came = fingerprint(&own);
    for version in [&version::TLS12, &version::TLS13] {
        let port = device(&own, &key, version);
        let ask = |configure: &dyn Fn(&mut Method)| {
            let mut method = Method::new("web", format!("127.0.0.1:{port}"));
            configure(&mut method);
            get(&mut WebClient::new(&method, 443).unwrap(), "/", soon())
        };
        let reply = ask(&|method| method.fingerprint = Some(came.clone())).unwrap();
        assert_eq!(reply.body, b"it is me");
        ask(&|method| method.waivers.push(Waiver::AnyIdentity)).unwrap();
        let wrong = "00".repeat(32);
        let refusals = [
            ask(&|_| ()),
            ask(&|method| method.fingerprint = Some(wrong.clone())),
            // A pin is stronger than a waiver.
            ask(&|method| {
                method.fingerprint = Some(wrong.clone());
                method.waivers.push(Waiver::AnyIdentity);
            }),
        ];
        for refusal in refusals {
            let error = refusal.unwrap_err();
            assert_eq!(error.class(), Class::Identity, "{error}");
            assert!(error.to_string().contains(&came), "{error}");
        }
        // Who only copied the certificate has not its key.
        let mut method = Method::new("web", format!("127.0.0.1:{}", device(&own, &other_key, version)));
        for waived in [false, true] {
            match waived {
                false => method.fingerprint = Some(came.clone()),
                true => (method.fingerprint, method.waivers) = (None, vec![Waiver::AnyIdentity]),
            }
            let error = get(&mut WebClient::new(&method, 443).unwrap(), "/", soon()).unwrap_err();
            assert_eq!(error.class(), Class::Identity, "{error}");
            assert!(error.to_string().contains("does not prove"), "{error}");
        }
    }
}

#[test]
fn an_authority_vouches_for_names() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, own_authority: bool, expected: Result<(), &str>| {
        let (shown, key, vouching) = certificate(true, name);
        let (_, _, others) = certificate(true, name);
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, if own_authority { vouching } else { others }).unwrap();
        let mut method = Method::new("web", format!("127.0.0.1:{}", device(&shown, &key, &version::TLS13)));
        method.ca = Some(path);
        match (get(&mut WebClient::new(&method, 443).unwrap(), "/", soon()), expected) {
            (Ok(_), Ok(())) => (),
            (Err(PcuError::Identity { detail, .. }), Err(why)) => {
                assert!(detail.contains(why) && detail.contains(&fingerprint(&shown)), "{detail}");
            }
            (found, _) => panic!("{name} {own_authority}: {found:?}"),
        }
    };
    check("127.0.0.1", true, Ok(()));
    check("127.0.0.1", false, Err("nobody whom"));
    check("127.0.0.2", true, Err("other names"));
}

#[test]
fn files_of_authorities_have_to_have_some() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let mut method = Method::new("web", "bmc1");
    method.ca = Some(path.clone());
    for content in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        assert_eq!(WebClient::new(&method, 443).unwrap_err().class(), Class::Configuration, "{content:?}");
    }
    (method.ca, method.fingerprint) = (None, Some("abc".into()));
    assert_eq!(WebClient::new(&method, 443).unwrap_err().class(), Class::Configuration);
}

/// A client of a device that lets in `ada`, and the password that the client is configured with.
fn account(port: u16, password: &str) -> WebClient {
    let mut method = Method::new("web", format!("http://127.0.0.1:{port}"));
    method.waivers.push(Waiver::ClearText);
    method.user = Some("ada".into());
    method.password = Some(SecretSource::Command(vec!["printf".into(), password.into()]));
    WebClient::new(&method, 443).unwrap()
}

#[test]
fn basic_tells_user_and_password() {
    let port = serve(|mut stream| {
        while let Some((head, _)) = read_request(&mut stream) {
            // printf %s ada:secret! | base64
            match head.iter().any(|line| line == "authorization: Basic YWRhOnNlY3JldCE=") {
                true => answer(&mut stream, "200 OK", "", ""),
                false => answer(&mut stream, "401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n", ""),
            }
        }
    });
    let ask = |password: &str, auth| account(port, password).request_as(auth, &Verb::GET, "/", &[], &[], soon());
    assert_eq!(ask("secret!", WebAuth::Basic).unwrap().status, 200);
    for error in [ask("secret", WebAuth::Basic), ask("secret!", WebAuth::None), ask("secret!", WebAuth::Digest)] {
        let error = error.unwrap_err();
        assert_eq!(error.class(), Class::Authentication, "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn digest_answers_challenges_and_does_not_guess() {
    // A device whose every challenge is good for two requests, and that does not say when one is too old.
    let state = Mutex::new((0, 0, 0));
    let port = serve(move |mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let (nonce, used, refused) = &mut *state.lock().unwrap();
            let words: Vec<_> = head[0].split(' ').collect();
            let given = head.iter().find_map(|line| line.strip_prefix("authorization: "));
            let given = given.map(|line| AuthorizationHeader::parse(line).unwrap());
            let right = given.as_ref().is_some_and(|given| {
                let mut expected = given.clone();
                let context = digest_auth::AuthContext::new_with_method(
                    "ada",
                    "secret!",
                    words[1],
                    Some(body.as_slice()),
                    digest_auth::HttpMethod::from(words[0]),
                );
                expected.digest(&context);
                expected.response == given.response && given.uri == words[1]
            });
            let known = given.is_some_and(|given| given.nonce == nonce.to_string());
            if right && known && *used < 2 {
                *used += 1;
                answer(&mut stream, "200 OK", "", &refused.to_string());
                continue;
            }
            *refused += 1;
            *nonce += 1;
            *used = 0;
            let challenge = format!(
                "www-authenticate: Basic realm=\"x\"\r\nwww-authenticate: Digest realm=\"x\", nonce=\"{nonce}\", qop=\"auth\"\r\n"
            );
            answer(&mut stream, "401 Unauthorized", &challenge, "");
        }
    });
    let mut client = account(port, "secret!");
    let mut ask = |verb, path, body: &[u8]| {
        let reply = client.request_as(WebAuth::Digest, &verb, path, &[], body, soon()).unwrap();
        String::from_utf8(reply.body).unwrap()
    };
    assert_eq!(ask(Verb::GET, "/outlet?n=1", b""), "1");
    assert_eq!(ask(Verb::POST, "/outlet", b"on"), "1");
    assert_eq!(ask(Verb::GET, "/", b""), "2");
    let error = account(port, "guess").request_as(WebAuth::Digest, &Verb::GET, "/", &[], &[], soon()).unwrap_err();
    assert_eq!(error.class(), Class::Authentication);
    assert!(!error.to_string().contains("guess"), "{error}");
}
