//! What data files may say, without a device.

use crate::drivers::parse_data;

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
