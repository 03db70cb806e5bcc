//! Against a service that does what the emulator of the integration tests does not: sessions, tasks, versions, pages, malice.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    slice,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustls::version;
use serde_json::{Value, json};

use super::*;
use crate::{
    Class, SecretSource, Waiver,
    web::testing::{answer, certificate, read_request, serve, serve_tls},
};

/// What a request is answered with: status, headers in lines, body.
type Answer = (u16, &'static str, Value);

/// A service: what it answers to "GET /path", in turn; the last answer again and again.
struct Service {
    answers: Mutex<BTreeMap<&'static str, Vec<Answer>>>,
    /// What it was asked, with the headers that matter here.
    asked: Mutex<Vec<String>>,
}

impl Service {
    fn answer(&self, head: &[String], body: &[u8]) -> Answer {
        let asked = head[0].trim_end_matches(" HTTP/1.1").to_owned();
        let told = head.iter().filter(|line| {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            ["x-auth-token", "authorization", "if-match"].contains(&name.as_str())
        });
        let told: String = told.map(|line| format!(" {line}")).collect();
        self.asked.lock().unwrap().push(format!("{asked}{told} {}", String::from_utf8_lossy(body)).trim_end().into());
        let mut answers = self.answers.lock().unwrap();
        match answers.get_mut(asked.as_str()) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => (404, "", json!({})),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

const SYSTEM: &str = "GET /redfish/v1/Systems/1";
const RESET: &str = "POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset";

fn link(path: &str) -> Value {
    json!({ "@odata.id": path })
}

fn system() -> Value {
    json!({
        "Id": "1",
        "Name": "node",
        "PowerState": "Off",
        "Actions": { "#ComputerSystem.Reset": {
            "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
            "@Redfish.ActionInfo": "/redfish/v1/Systems/1/ResetActionInfo",
        } },
        "Boot": { "BootSourceOverrideTarget": "None", "BootSourceOverrideMode": "UEFI" },
        "Links": { "Chassis": [link("/redfish/v1/Chassis/1")], "ManagedBy": [link("/redfish/v1/Managers/1")] },
    })
}

/// A service with sessions and one system, and `changes` to it.
fn service(changes: &[(&'static str, &[Answer])]) -> (Arc<Service>, Method) {
    let root = json!({
        "RedfishVersion": "1.6.0",
        "Vendor": "Nobody",
        "Systems": link("/redfish/v1/Systems"),
        "Links": { "Sessions": link("/redfish/v1/SessionService/Sessions") },
    });
    let allowed = json!({ "Parameters": [{ "Name": "ResetType", "AllowableValues": ["On", "ForceOff"] }] });
    let mut answers: BTreeMap<_, Vec<Answer>> = BTreeMap::from([
        ("GET /redfish/v1/", vec![(200, "", root)]),
        (
            "POST /redfish/v1/SessionService/Sessions",
            vec![(201, "x-auth-token: t0\r\nlocation: /redfish/v1/SessionService/Sessions/s0\r\n", json!({}))],
        ),
        ("DELETE /redfish/v1/SessionService/Sessions/s0", vec![(204, "", json!({}))]),
        ("GET /redfish/v1/Systems", vec![(200, "", json!({ "Members": [link("/redfish/v1/Systems/1")] }))]),
        (SYSTEM, vec![(200, "", system())]),
        ("GET /redfish/v1/Systems/1/ResetActionInfo", vec![(200, "", allowed)]),
        (RESET, vec![(204, "", json!({}))]),
    ]);
    answers.extend(changes.iter().map(|(asked, answers)| (*asked, answers.to_vec())));
    let service = Arc::new(Service { answers: Mutex::new(answers), asked: Mutex::default() });
    let served = service.clone();
    let port = serve(move |mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let (status, headers, body) = served.answer(&head, &body);
            let body = if status == 204 { String::new() } else { body.to_string() };
            answer(&mut stream, &format!("{status} Said"), headers, &body);
        }
    });
    let mut method = Method::new("redfish", format!("http://127.0.0.1:{port}"));
    method.user = Some("ada".into());
    method.password = Some(SecretSource::Command(vec!["printf".into(), "secret!".into()]));
    method.waivers.push(Waiver::ClearText);
    (service, method)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn open(method: &Method) -> Result<Box<dyn Session>, PcuError> {
    Redfish.open(method, soon())
}

#[track_caller]
fn fails<T>(result: Result<T, PcuError>, class: Class, said: &str) {
    let error = result.err().expect("it fails");
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(said), "{error}");
    assert!(!error.to_string().contains("secret!"), "{error}");
}

#[test]
fn a_session_is_opened_used_and_ended() {
    let (service, method) = service(&[]);
    let mut session = open(&method).unwrap();
    session.change(Change::On, soon()).unwrap();
    let proofs: Vec<_> = session.prove(soon()).unwrap().into_iter().map(|proof| proof.0).collect();
    drop(session);
    assert_eq!(
        proofs,
        [
            "logged in as ada by a session",
            "the system is 1 (node)",
            "the power is off",
            "the resets it takes are On, ForceOff"
        ]
    );
    let asked = service.asked();
    assert_eq!(
        asked[..2],
        [
            "GET /redfish/v1/".to_owned(),
            r#"POST /redfish/v1/SessionService/Sessions {"UserName":"ada","Password":"secret!"}"#.into(),
        ]
    );
    assert!(asked[2..].iter().all(|asked| asked.contains(" x-auth-token: t0")), "{asked:?}");
    assert!(asked.contains(&format!("{RESET} x-auth-token: t0 {{\"ResetType\":\"On\"}}")), "{asked:?}");
    assert_eq!(asked.last().unwrap(), "DELETE /redfish/v1/SessionService/Sessions/s0 x-auth-token: t0");
}

#[test]
fn a_session_that_ended_is_replaced_once() {
    let gone = (401, "", json!({}));
    let here = (200, "", system());
    let (_, method) = service(&[(SYSTEM, &[here.clone(), gone.clone(), here])]);
    assert_eq!(open(&method).unwrap().state(soon()).unwrap(), PowerState::Off);
    let (service, method) = service(&[(SYSTEM, &[gone])]);
    fails(open(&method), Class::Authentication, "401");
    let logins = service.asked().iter().filter(|asked| asked.starts_with("POST /redfish/v1/SessionService")).count();
    assert_eq!(logins, 2);
}

#[test]
fn a_wrong_password_is_tried_once() {
    let (service, method) = service(&[("POST /redfish/v1/SessionService/Sessions", &[(401, "", json!({}))])]);
    fails(open(&method), Class::Authentication, "logging in to http://127.0.0.1");
    assert_eq!(service.asked().len(), 2, "{:?}", service.asked());
}

#[test]
fn without_sessions_to_be_had_user_and_password_go_along() {
    let full =
        (503, "", json!({ "error": { "@Message.ExtendedInfo": [{ "MessageId": "Base.1.8.SessionLimitExceeded" }] } }));
    let (service, method) = service(&[("POST /redfish/v1/SessionService/Sessions", slice::from_ref(&full))]);
    assert_eq!(open(&method).unwrap().state(soon()).unwrap(), PowerState::Off);
    let asked = service.asked();
    // printf %s 'ada:secret!' | base64
    assert!(asked[2..].iter().all(|asked| asked.contains("authorization: Basic YWRhOnNlY3JldCE=")), "{asked:?}");
    let only_sessions = [
        ("POST /redfish/v1/SessionService/Sessions", &[full][..]),
        ("GET /redfish/v1/Systems", &[(401, "", json!({}))]),
    ];
    let (_, method) = self::service(&only_sessions);
    fails(open(&method), Class::Busy, "SessionLimitExceeded");
}

#[test]
fn the_system_is_the_only_one_or_the_one_that_is_named() {
    let member = |id: &str, name: &str| {
        (200, "", json!({ "Id": id, "Name": name, "UUID": format!("AA-{id}"), "PowerState": "On" }))
    };
    let members = json!({ "Members": [link("/redfish/v1/Systems/a"), link("/redfish/v1/Systems/b")] });
    let (_, method) = service(&[
        ("GET /redfish/v1/Systems", &[(200, "", members)]),
        ("GET /redfish/v1/Systems/a", &[member("a", "left")]),
        ("GET /redfish/v1/Systems/b", &[member("b", "right")]),
    ]);
    let open = |outlet: Option<&str>| open(&Method { outlet: outlet.map(str::to_owned), ..method.clone() });
    for outlet in ["a", "left", "aa-b"] {
        open(Some(outlet)).unwrap();
    }
    fails(open(None), Class::OutletUnknown, "there are a (left), b (right)");
    fails(open(Some("c")), Class::OutletUnknown, "\"c\"; there are a (left), b (right)");
    let (_, one) = service(&[]);
    fails(self::open(&Method { outlet: Some("c".into()), ..one }), Class::OutletUnknown, "there are 1 (node)");
    let (_, none) = service(&[("GET /redfish/v1/Systems", &[(200, "", json!({ "Members": [] }))])]);
    fails(self::open(&none), Class::Busy, "does not know its systems yet");
}

#[test]
fn changes_that_are_not_taken_are_told() {
    let (_, method) = service(&[]);
    fails(open(&method).unwrap().change(Change::Cycle, soon()), Class::Unsupported, "On, ForceOff only");
    let refuse =
        |status, id: &str| (status, "", json!({ "error": { "@Message.ExtendedInfo": [{ "MessageId": id }] } }));
    let (_, already) = service(&[(RESET, &[refuse(409, "IDRAC.2.1.PSU501")])]);
    // It is off.
    open(&already).unwrap().change(Change::Off, soon()).unwrap();
    fails(open(&already).unwrap().change(Change::On, soon()), Class::Refused, "PSU501");
    let mut on_its_way = system();
    on_its_way["PowerState"] = "PoweringOn".into();
    let (_, on_its_way) = service(&[(SYSTEM, &[(200, "", on_its_way)]), (RESET, &[refuse(409, "IDRAC.2.1.PSU501")])]);
    open(&on_its_way).unwrap().change(Change::On, soon()).unwrap();
    let (_, forbidden) = service(&[(RESET, &[refuse(403, "Base.1.8.InsufficientPrivilege")])]);
    fails(open(&forbidden).unwrap().change(Change::Off, soon()), Class::Privilege, "InsufficientPrivilege");
    let (_, starting) = service(&[(RESET, &[(503, "retry-after: 7\r\n", json!({}))])]);
    fails(open(&starting).unwrap().change(Change::On, soon()), Class::Busy, "7 seconds");
}

#[test]
fn a_task_is_followed_to_its_end() {
    let accepted = (202, "location: /redfish/v1/Tasks/7/Monitor\r\n", json!({ "TaskState": "New" }));
    let monitor = "GET /redfish/v1/Tasks/7/Monitor";
    let running = (202, "", json!({ "TaskState": "Running" }));
    let (asked, method) =
        service(&[(RESET, slice::from_ref(&accepted)), (monitor, &[running.clone(), (204, "", json!({}))])]);
    open(&method).unwrap().change(Change::On, soon()).unwrap();
    assert_eq!(asked.asked().iter().filter(|asked| asked.starts_with(monitor)).count(), 2);
    let failed = (
        200,
        "",
        json!({ "TaskState": "Exception", "Messages": [{ "MessageId": "X.1.0.NoPower", "Message": "No." }] }),
    );
    let (_, method) = service(&[(RESET, slice::from_ref(&accepted)), (monitor, &[failed])]);
    // It says that it is off, so that a failure to put it off is none.
    fails(open(&method).unwrap().change(Change::On, soon()), Class::Refused, "NoPower: No.");
    let (_, method) = service(&[(RESET, &[accepted]), (monitor, &[running])]);
    let begun = Instant::now();
    let late = open(&method).unwrap().change(Change::On, Deadline::after(Duration::from_secs(1)));
    fails(late, Class::Timeout, "waiting for /redfish/v1/Tasks/7/Monitor");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_version_that_a_service_wants_is_claimed() {
    const PATCH: &str = "PATCH /redfish/v1/Systems/1";
    let mut told = system();
    told["IndicatorLED"] = "Off".into();
    let here = (200, "etag: W/\"7\"\r\n", told.clone());
    let mismatch = (412, "", json!({}));
    let missing = (400, "", json!({ "error": { "code": "Ami.1.0.PreconditionHeaderMissing", "message": "?" } }));
    let done = (204, "", json!({}));
    let check = |system: Answer, answers: &[Answer], claims: &[&str]| {
        let (service, method) = service(&[(SYSTEM, &[system]), (PATCH, answers)]);
        let lit = open(&method).unwrap().identify(Duration::from_secs(15), soon());
        let patched: Vec<_> = service.asked().into_iter().filter(|asked| asked.starts_with(PATCH)).collect();
        let expected: Vec<_> = claims
            .iter()
            .map(|claim| format!("{PATCH} x-auth-token: t0{claim} {{\"IndicatorLED\":\"Blinking\"}}"))
            .collect();
        // Headers come in either order.
        let sorted = |asked: String| {
            let mut words: Vec<_> = asked.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(
            patched.into_iter().map(sorted).collect::<Vec<_>>(),
            expected.into_iter().map(sorted).collect::<Vec<_>>()
        );
        lit
    };
    check(here.clone(), slice::from_ref(&done), &[" if-match: W/\"7\""]).unwrap();
    check(here.clone(), &[mismatch.clone(), done.clone()], &[" if-match: W/\"7\"", " if-match: \"7\""]).unwrap();
    let all = [" if-match: W/\"7\"", " if-match: \"7\"", ""];
    fails(check(here, &[mismatch], &all), Class::Refused, "412");
    check((200, "", told), &[missing, done], &["", " if-match: *"]).unwrap();
}

#[test]
fn what_boots_next_is_read_back() {
    let with = |target: &str| {
        let mut told = system();
        told["Boot"]["BootSourceOverrideTarget"] = target.into();
        told["Manufacturer"] = "Supermicro".into();
        (200, "", told)
    };
    let patch = ("PATCH /redfish/v1/Systems/1", &[(200, "", json!({}))][..]);
    let (service, method) = service(&[(SYSTEM, &[with("None"), with("None"), with("None"), with("Pxe")]), patch]);
    open(&method).unwrap().set_boot_device(BootDevice::Pxe, soon()).unwrap();
    let patched = service.asked().into_iter().find(|asked| asked.starts_with("PATCH")).unwrap();
    let boot = r#"{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","BootSourceOverrideTarget":"Pxe"}}"#;
    assert!(patched.ends_with(boot), "{patched}");
    // Where there are settings for the next start, they take it.
    let mut told = system();
    told["@Redfish.Settings"] = json!({ "SettingsObject": link("/redfish/v1/Systems/1/SD") });
    let pending = |target: &str| (200, "", json!({ "Boot": { "BootSourceOverrideTarget": target } }));
    let (service, method) = self::service(&[
        (SYSTEM, &[(200, "", told)]),
        ("GET /redfish/v1/Systems/1/SD", &[pending("None"), pending("Cd")]),
        ("PATCH /redfish/v1/Systems/1/SD", &[(204, "", json!({}))]),
    ]);
    open(&method).unwrap().set_boot_device(BootDevice::Cd, soon()).unwrap();
    assert!(service.asked().iter().any(|asked| asked.starts_with("PATCH /redfish/v1/Systems/1/SD ")));
}

#[test]
fn logs_are_read_page_by_page_and_bounded() {
    let log = json!({ "LogEntryType": "SEL", "Entries": link("/redfish/v1/Managers/1/Sel/Entries") });
    let entry = |at: &str| json!({ "Created": at, "Message": at });
    let pages = [
        (
            "GET /redfish/v1/Managers/1",
            &[(200, "", json!({ "LogServices": link("/redfish/v1/Managers/1/LogServices") }))][..],
        ),
        (
            "GET /redfish/v1/Managers/1/LogServices",
            &[(200, "", json!({ "Members": [link("/redfish/v1/Managers/1/Sel")] }))],
        ),
        ("GET /redfish/v1/Managers/1/Sel", &[(200, "", log)]),
        (
            "GET /redfish/v1/Managers/1/Sel/Entries",
            &[(
                200,
                "",
                json!({ "Members": [entry("2024-01-02T00:00:00Z")], "Members@odata.nextLink": "/redfish/v1/next?$skip=1" }),
            )],
        ),
        ("GET /redfish/v1/next?$skip=1", &[(200, "", json!({ "Members": [entry("2024-01-01T00:00:00Z")] }))]),
    ];
    let (_, method) = service(&pages);
    let log = open(&method).unwrap().log(soon()).unwrap();
    assert_eq!(
        log.iter().map(|entry| entry.text.as_str()).collect::<Vec<_>>(),
        ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]
    );
    // A collection whose next page is itself.
    let circle =
        json!({ "Members": [entry("2024-01-01T00:00:00Z")], "Members@odata.nextLink": "/redfish/v1/next?$skip=1" });
    let mut pages = pages.to_vec();
    let circle = [(200, "", circle)];
    pages[4].1 = &circle;
    let (_, method) = service(&pages);
    assert_eq!(open(&method).unwrap().log(soon()).unwrap().len(), 64);
}

#[test]
fn newer_sensors_are_read_expanded_or_one_by_one() {
    let cpu = json!({ "Id": "cpu", "Name": "CPU", "ReadingType": "Temperature", "Reading": 40.5, "ReadingUnits": "Cel", "Status": { "Health": "OK" } });
    let sensor = "GET /redfish/v1/Chassis/1/Sensors/cpu";
    let chassis = [
        ("GET /redfish/v1/Chassis/1", &[(200, "", json!({ "Sensors": link("/redfish/v1/Chassis/1/Sensors") }))][..]),
        (
            "GET /redfish/v1/Chassis/1/Sensors",
            &[(200, "", json!({ "Members": [link("/redfish/v1/Chassis/1/Sensors/cpu")] }))],
        ),
        (sensor, &[(200, "", cpu.clone())]),
    ];
    let expected = Sensor { name: "CPU".into(), value: Some(40.5), unit: "°C".into(), status: "ok".into() };
    let (_, method) = service(&chassis);
    assert_eq!(open(&method).unwrap().sensors(soon()).unwrap(), slice::from_ref(&expected));
    let root = json!({
        "Systems": link("/redfish/v1/Systems"),
        "ProtocolFeaturesSupported": { "ExpandQuery": { "NoLinks": true } },
    });
    let root = [(200, "", root)];
    let expanded = [(200, "", json!({ "Members": [cpu] }))];
    let mut expands = chassis.to_vec();
    expands.extend([("GET /redfish/v1/", &root[..]), ("GET /redfish/v1/Chassis/1/Sensors?$expand=.", &expanded)]);
    let (asked, method) = service(&expands);
    assert_eq!(open(&method).unwrap().sensors(soon()).unwrap(), [expected]);
    assert!(!asked.asked().iter().any(|asked| asked.starts_with(sensor)));
}

#[test]
fn nobody_is_led_elsewhere_or_astray() {
    let (_, elsewhere) = service(&[(
        "GET /redfish/v1/Systems",
        &[(200, "", json!({ "Members": [link("https://198.51.100.1/redfish/v1/Systems/1")] }))],
    )]);
    fails(open(&elsewhere), Class::Prompt, "which is not this device");
    let (_, no_object) = service(&[("GET /redfish/v1/", &[(200, "", json!([1, 2]))])]);
    fails(open(&no_object), Class::Prompt, "no object of JSON");
    let deep = (0..1000).fold(json!(1), |inner, _| json!({ "Members": inner }));
    let (_, deep) = service(&[("GET /redfish/v1/Systems", &[(200, "", deep)])]);
    fails(open(&deep), Class::Prompt, "recursion limit");
    let (_, nothing) = service(&[("GET /redfish/v1/", &[(404, "", json!({}))])]);
    fails(open(&nothing), Class::Unsupported, "404");
}

#[test]
fn a_service_is_found_whatever_its_certificate() {
    let (own, key, _) = certificate(false, "localhost");
    let port = serve_tls(&own, &key, &version::TLS12, |stream| {
        while let Some((head, _)) = read_request(stream) {
            assert_eq!(head[0], "GET /redfish/v1/ HTTP/1.1");
            assert!(!head.iter().any(|line| line.to_ascii_lowercase().starts_with("authorization")), "{head:?}");
            answer(stream, "200 OK", "", r#"{"RedfishVersion": "1.2.0", "Vendor": "Nobody"}"#);
        }
    });
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert_eq!(probe::probe(here, port, soon()).as_deref(), Some("Redfish 1.2.0, Nobody"));
    let mute = serve(|_| ());
    assert_eq!(probe::probe(here, mute, soon()), None);
}
