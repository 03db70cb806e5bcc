//! What data files may say, and what those that are built in send and read, without a device.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;

use super::{BUILTIN, Table, session::HttpSession, table::Request};
use crate::{Class, Method, PowerState, SecretSource, Waiver, drivers::parse_data};

const GOOD: &str = r#"
name = "test"
about = "a test"
source = "none"
[http]
auth = "basic"
outlets = { numbers = { first = 1, last = 4 } }
[http.on]
path = "/on/{outlet}"
[http.off]
path = "/off/{outlet}"
[http.status]
request = { path = "/status" }
read = [{ json = "/outlets/{outlet-1}" }]
on = ["1"]
off = ["0"]
"#;

fn wrong(from: &str, to: &str, expected: &str) {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replace(from, to);
    match parse_data(&text) {
        Ok(_) => panic!("{to} was taken"),
        Err(error) => assert!(error.contains(expected), "{to}: {error}"),
    }
}

#[test]
fn a_file_becomes_a_driver() {
    let driver = parse_data(GOOD).unwrap();
    assert_eq!((driver.name(), driver.about()), ("test", "a test"));
    assert_eq!(driver.abilities().len(), 3);
    let cycling = format!("{GOOD}[http.cycle]\npath = \"/cycle/{{outlet}}\"\n");
    assert_eq!(parse_data(&cycling).unwrap().abilities().len(), 4);
}

#[test]
fn a_wrong_field_is_named() {
    wrong("auth = \"basic\"", "auth = \"ntlm\"", "ntlm");
    wrong("auth = \"basic\"", "authentication = \"basic\"", "unknown field `authentication`");
    wrong("path = \"/on/{outlet}\"", "path = \"/on/{outlet}\"\nverb = \"GET\"", "unknown field `verb`");
    wrong("path = \"/on/{outlet}\"", "", "missing field `path`");
    wrong("read = [{ json", "read = [{ yaml", "unknown variant `yaml`");
    wrong("[http.off]", "[http.of]", "unknown field `of`");
    wrong("first = 1, last = 4", "first = 4, last = 1", "http.outlets: there are no numbers from 4 to 1");
    wrong("name = \"test\"", "", "missing field `name`");
}

#[test]
fn what_makes_no_sense_is_told_with_its_place() {
    let on = "path = \"/on/{outlet}\"";
    wrong(on, "path = \"/on/{port}\"", "http.on: there is nothing for {port} to stand for");
    wrong(on, "path = \"/on/{outlet*2}\"", "{outlet*2} is no placeholder");
    wrong(on, "path = \"on/{outlet}\"", "http.on: a path begins with a slash");
    wrong(on, "path = \"/on {outlet}\"", "http.on: a path begins with a slash, and has %20");
    wrong(on, "path = \"/on/{password}\"", "http.on: {password} and {token} have no place in a path");
    wrong(on, "path = \"/on?t={token}\"", "http.on: there is nothing for {token} to stand for");
    wrong(on, "path = \"/on\"\nform = { a = \"1\" }", "http.on: GET has no body");
    wrong(
        on,
        "method = \"POST\"\npath = \"/on\"\nform = { a = \"1\" }\njson = 1",
        "http.on: a body is either form or json",
    );
    wrong(on, "path = \"/on\"\nheaders = { \"a b\" = \"1\" }", "http.on: \"a b\" is no header");
    wrong("outlets = { numbers = { first = 1, last = 4 } }", "outlets = \"names\"", "cannot be calculated with");
    wrong("outlets = { numbers = { first = 1, last = 4 } }", "outlets = \"one\"", "there is nothing for {outlet}");
    wrong("on = [\"1\"]", "on = []", "http.status: read, on and off must not be empty");
    wrong("on = [\"1\"]", "on = [\"0\"]", "http.status: \"0\" means two things");
    wrong("json = \"/outlets/{outlet-1}\"", "regex = 'a('", "http.status:");
    wrong("json = \"/outlets/{outlet-1}\"", "regex = '{password}(.)'", "have no place in what is read");
    wrong("off = [\"0\"]", "off = [\"0\"]\nknown = 'a'", "http.status: known has to have one group");
    wrong("off = [\"0\"]", "off = [\"0\"]\nknown = 'a('", "unclosed group");
    wrong("auth = \"basic\"", "auth = \"basic\"\naccount = \"none\"", "http.auth: without an account");
    wrong("auth = \"basic\"", "options = { outlet = \"1\" }", "http.options: outlet is a placeholder already");
    wrong(
        "auth = \"basic\"",
        "account = \"none\"\nheaders = { a = \"{user}\" }",
        "http.headers: there is nothing for {user}",
    );
}

#[test]
fn the_documentation_has_every_file_and_an_example_that_works() {
    let page = include_str!("../../../../docs/pcu/http.md");
    let (_, example) = page.split_once("```toml\nname =").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    assert_eq!(parse_data(&format!("name ={example}")).unwrap().name(), "acme-4");
    for text in BUILTIN {
        let driver = parse_data(text).unwrap();
        assert!(page.contains(&format!("| `{}` | ", driver.name())), "{}", driver.name());
    }
}

/// A session with the device that a built-in file describes, before anything is sent.
fn session(name: &str, outlet: &str) -> (HttpSession, Arc<Table>) {
    #[derive(Deserialize)]
    struct File {
        name: String,
        http: Table,
    }
    let files = BUILTIN.iter().map(|text| toml::from_str::<File>(text).unwrap());
    let files: BTreeMap<_, _> = files.map(|file| (file.name, file.http)).collect();
    let table = Arc::new(files.into_iter().find(|(known, _)| known == name).unwrap().1);
    let mut method = Method::new(name, "http://pdu");
    method.waivers.push(Waiver::ClearText);
    method.user = Some("me".into());
    method.password = Some(SecretSource::Command(vec!["echo".into(), "orrery-pcu".into()]));
    method.outlet = Some(outlet.to_owned()).filter(|outlet| !outlet.is_empty());
    for (option, default) in &table.options {
        if default.is_empty() {
            method.options.insert(option.clone(), "ID".into());
        }
    }
    (HttpSession::new(name, table.clone(), &method).unwrap(), table)
}

/// Of a family, with one outlet: the requests for its state, for on and for off, and answers with it on and off.
fn check(name: &str, outlet: &str, [status, on, off]: [&str; 3], [is_on, is_off]: [&str; 2]) {
    let (session, table) = session(name, outlet);
    let sent = |request: &Request| {
        let filled = session.fill(request, "").unwrap();
        [filled.verb.as_str(), &filled.path, &filled.body].join(" ").trim().to_owned()
    };
    for (request, expected) in [(&table.status.request, status), (&table.on, on), (&table.off, off)] {
        assert_eq!(sent(request), expected, "{name}");
    }
    for (answer, expected) in [(is_on, PowerState::On), (is_off, PowerState::Off)] {
        assert_eq!(session.read_state(answer.as_bytes(), String::new()).unwrap(), expected, "{name}: {answer}");
    }
    for garbage in ["", "<html>", "{}", "\0\u{1}\u{2}", "[[[[[[[["] {
        let class = session.read_state(garbage.as_bytes(), String::new()).unwrap_err().class();
        assert_eq!(class, Class::Prompt, "{name}: {garbage}");
    }
}

/// Requests and answers as the sources that the files name have them.
#[test]
fn every_builtin_file_says_what_its_source_says() {
    let tasmota = "GET /cm?cmnd=Power2{}&password=orrery-pcu&user=me";
    check(
        "tasmota",
        "2",
        [&tasmota.replace("{}", ""), &tasmota.replace("{}", "%20On"), &tasmota.replace("{}", "%20Off")],
        [r#"{"POWER2":"ON"}"#, r#"{"POWER":"OFF"}"#],
    );
    check(
        "shelly-gen1",
        "0",
        ["GET /relay/0", "GET /relay/0?turn=on", "GET /relay/0?turn=off"],
        [r#"{"ison":true,"has_timer":false}"#, r#"{"ison":false,"has_timer":false}"#],
    );
    check(
        "shelly-gen2",
        "1",
        [
            r#"POST /rpc/Switch.GetStatus {"id":1}"#,
            r#"POST /rpc/Switch.Set {"id":1,"on":true}"#,
            r#"POST /rpc/Switch.Set {"id":1,"on":false}"#,
        ],
        [r#"{"id":1,"output":true}"#, r#"{"id":1,"output":false}"#],
    );
    check(
        "dli-rest",
        "3",
        [
            "GET /restapi/relay/outlets/2/physical_state/",
            "PUT /restapi/relay/outlets/2/state/ value=true",
            "PUT /restapi/relay/outlets/2/state/ value=false",
        ],
        ["true", "false"],
    );
    let states = |hex: &str| format!(r#"<div id="state">{hex}</div><div id="lock">00</div><div id="perm">ff</div>"#);
    check("dli-web", "8", ["GET /status", "GET /outlet?8=ON", "GET /outlet?8=OFF"], [&states("80"), &states("7f")]);
    check(
        "epowerswitch",
        "3",
        ["GET /hidden.htm", "GET /hidden.htm?M0:O3=ON", "GET /hidden.htm?M0:O3=OFF"],
        ["M0:O2=Off\nM0:O3=On\n", "M0:O2=On\nM0:O3=Off\n"],
    );
    check(
        "epowerswitch-old",
        "3",
        ["GET /hidden.htm", "GET /hidden.htm?P03=1", "GET /hidden.htm?P03=0"],
        ["P02=0<br>P03=1<br>", "P02=1<br>P03=0 <br>"],
    );
    let netio = |state: u8| format!(r#"{{"Outputs":[{{"ID":1,"State":{}}},{{"ID":2,"State":{state}}}]}}"#, 1 - state);
    check(
        "netio-json",
        "2",
        [
            "GET /netio.json",
            r#"POST /netio.json {"Outputs":[{"Action":1,"ID":2}]}"#,
            r#"POST /netio.json {"Outputs":[{"Action":0,"ID":2}]}"#,
        ],
        [&netio(1), &netio(0)],
    );
    let gude =
        |state: u8| format!(r#"{{"outputs":[{{"name":"a","state":{}}},{{"name":"b","state":{state}}}]}}"#, 1 - state);
    check(
        "gude",
        "2",
        [
            "GET /status.json?components=1",
            "GET /status.json?components=1&cmd=1&p=2&s=1",
            "GET /status.json?components=1&cmd=1&p=2&s=0",
        ],
        [&gude(1), &gude(0)],
    );
    check(
        "gude-js",
        "2",
        ["GET /statusjsn.js?components=1", "GET /ov.html?cmd=1&p=2&s=1", "GET /ov.html?cmd=1&p=2&s=0"],
        [&gude(1), &gude(0)],
    );
    let meta = |state: u8| {
        format!(
            r#"<meta http-equiv="powerstate" content="Power Port 1,{}"><meta content="Power Port 12,{state}">"#,
            1 - state
        )
    };
    check(
        "gude-meta",
        "12",
        ["GET /ov.html", "GET /ov.html?cmd=1&p=12&s=1", "GET /ov.html?cmd=1&p=12&s=0"],
        [&meta(1), &meta(0)],
    );
    check(
        "ippower-9258",
        "1",
        ["GET /set.cmd?cmd=getpower", "GET /set.cmd?cmd=setpower+p61=1", "GET /set.cmd?cmd=setpower+p61=0"],
        ["<html>p61=1,p62=0,p63=0,p64=0</html>", "<html>p61=0,p62=1</html>"],
    );
    check(
        "ippower-9258-p60",
        "1",
        ["GET /Set.cmd?CMD=GetPower", "GET /Set.cmd?CMD=SetPower+P60=1", "GET /Set.cmd?CMD=SetPower+P60=0"],
        ["<html>P60=1,P61=0,P62=0,P63=0</html>", "<html>P60=0,P61=1</html>"],
    );
    check(
        "aten-pe",
        "3",
        [
            "GET /api/outlet/relay?index=3&pwd=orrery-pcu&usr=me",
            "POST /api/outlet/relay index=3&method=on&pwd=orrery-pcu&usr=me",
            "POST /api/outlet/relay index=3&method=off&pwd=orrery-pcu&usr=me",
        ],
        ["<3>ON</3>", "<3>OFF</3>"],
    );
    check(
        "tinycontrol-tcpdu",
        "3",
        ["GET /api/v1/read/status/?outValues", "GET /api/v1/save/?out3=1", "GET /api/v1/save/?out3=0"],
        [r#"{"out2":0,"out3":1}"#, r#"{"out2":1,"out3":0}"#],
    );
    check(
        "tinycontrol-6g10a",
        "3",
        ["GET /st0.xml", "GET /outs.cgi?out3=1", "GET /outs.cgi?out3=0"],
        ["<response><out2>0</out2><out3>1</out3></response>", "<response><out2>1</out2><out3>0</out3></response>"],
    );
    check(
        "eth008",
        "3",
        ["GET /io.cgi?relay", "GET /io.cgi?DOA3", "GET /io.cgi?DOI3"],
        ["relay 00100000 x", "relay 11011111 x"],
    );
    check(
        "energenie-pms2",
        "3",
        ["GET /energenie.html", "POST / cte3=1", "POST / cte3=0"],
        ["var sockstates = [0,0,1,0];", "var sockstates = [1,1,0,1];"],
    );
    let mfi =
        |state: u8| format!(r#"{{"sensors":[{{"port":2,"output":{}}},{{"port":3,"output":{state}}}]}}"#, 1 - state);
    check(
        "mfi-mpower",
        "3",
        ["GET /mfi/sensors.cgi", "PUT /sensors/3/ output=1", "PUT /sensors/3/ output=0"],
        [&mfi(1), &mfi(0)],
    );
    check(
        "mystrom",
        "",
        ["GET /report", "GET /relay?state=1", "GET /relay?state=0"],
        [r#"{"power":51.6,"relay":true}"#, r#"{"power":0,"relay":false}"#],
    );
    check(
        "esphome",
        "relay_1",
        ["GET /switch/relay_1", "POST /switch/relay_1/turn_on", "POST /switch/relay_1/turn_off"],
        [
            r#"{"id":"switch-relay_1","state":"ON","value":true}"#,
            r#"{"id":"switch-relay_1","state":"OFF","value":false}"#,
        ],
    );
    check(
        "home-assistant",
        "switch.n1",
        [
            "GET /api/states/switch.n1",
            r#"POST /api/services/switch/turn_on {"entity_id":"switch.n1"}"#,
            r#"POST /api/services/switch/turn_off {"entity_id":"switch.n1"}"#,
        ],
        [r#"{"state":"on"}"#, r#"{"state":"off"}"#],
    );
    check(
        "servertech-jaws",
        "AA1",
        [
            "GET /jaws/monitor/outlets/AA1",
            r#"PATCH /jaws/control/outlets/AA1 {"control_action":"on"}"#,
            r#"PATCH /jaws/control/outlets/AA1 {"control_action":"off"}"#,
        ],
        [r#"{"id":"AA1","state":"On","status":"Normal"}"#, r#"{"id":"AA1","state":"Off"}"#],
    );
    let raritan = |method: &str, params: &str| {
        format!(r#"POST /model/pdu/0/outlet/0 {{"id":1,"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
    };
    check(
        "raritan-rpc",
        "1",
        [
            &raritan("getState", "{}"),
            &raritan("setPowerState", r#"{"pstate":1}"#),
            &raritan("setPowerState", r#"{"pstate":0}"#),
        ],
        [r#"{"result":{"_ret_":{"available":true,"powerState":1}}}"#, r#"{"result":{"_ret_":{"powerState":0}}}"#],
    );
    check(
        "synaccess",
        "2",
        ["GET /cmd.cgi?$A5", "GET /cmd.cgi?$A3%202%201", "GET /cmd.cgi?$A3%202%200"],
        ["$A0,00010,0.06,XX\r\n", "01,0.00,25"],
    );
    check(
        "intellinet",
        "1",
        [
            "GET /status.xml",
            "GET /control_outlet.htm?op=0&outlet0=1&submit=Apply",
            "GET /control_outlet.htm?op=1&outlet0=1&submit=Apply",
        ],
        ["<response><outletStat0>on</outletStat0></response>", "<response><outletStat0>off</outletStat0></response>"],
    );
    // Geist's needs a token; it is tried with its login.
    let (session, table) = session("geist", "1");
    let login = session.fill(&table.login[0].request, "").unwrap();
    assert_eq!(login.path.as_str(), "/api/auth/me");
    assert_eq!(login.body.as_str(), r#"{"cmd":"login","data":{"password":"orrery-pcu"},"token":""}"#);
}
