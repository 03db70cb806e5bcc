//! WS-Management (DSP0226) as Intel AMT speaks it: messages of SOAP 1.2, written and read. No I/O.

use std::fmt::Write as _;

use roxmltree::{Document, Node};

use crate::drivers::xml::{self, escape};

const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
const ADDRESSING: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
const WSMAN: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
const ANONYMOUS: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";
/// Longest value that is taken from an answer, in characters.
const VALUE: usize = 512;

/// One instance of a class, or where there is only one, the class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instance {
    /// The class with its schema.
    pub(super) class: &'static str,
    /// What tells it from its kin.
    pub(super) selectors: &'static [(&'static str, &'static str)],
}

/// Writes the messages of one conversation.
#[derive(Debug)]
pub(super) struct Writer {
    to: String,
    sent: u64,
}

/// An answer that is no fault.
#[derive(Debug)]
pub(super) struct Answer<'a>(Document<'a>);

/// Why the device did not do it, in its words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Of WS-Management or WS-Addressing: `AccessDenied`. Empty where there is none.
    pub(super) subcode: String,
    /// For people.
    pub(super) reason: String,
}

/// What an answer is.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// What was asked for.
    Answer(Answer<'a>),
    /// A refusal.
    Fault(Fault),
}

impl Writer {
    /// For the service at `to`.
    pub(super) fn new(to: String) -> Self {
        Self { to, sent: 0 }
    }

    /// Asks for an instance.
    pub(super) fn get(&mut self, instance: Instance) -> String {
        self.envelope(&format!("{TRANSFER}/Get"), instance, "")
    }

    /// Replaces an instance by `body`, its element.
    pub(super) fn put(&mut self, instance: Instance, body: &str) -> String {
        self.envelope(&format!("{TRANSFER}/Put"), instance, body)
    }

    /// Calls a method; `input` are the elements of its parameters, with the prefix `p`.
    pub(super) fn invoke(&mut self, instance: Instance, method: &str, input: &str) -> String {
        let class = instance.class;
        let body = format!(r#"<p:{method}_INPUT xmlns:p="{class}">{input}</p:{method}_INPUT>"#);
        self.envelope(&format!("{class}/{method}"), instance, &body)
    }

    fn envelope(&mut self, action: &str, Instance { class, selectors }: Instance, body: &str) -> String {
        self.sent += 1;
        let must = r#"s:mustUnderstand="true""#;
        let (to, id, selectors) = (escape(&self.to), self.sent, selector_set(selectors));
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<s:Envelope xmlns:s="{SOAP}" xmlns:a="{ADDRESSING}" xmlns:w="{WSMAN}"><s:Header><a:Action {must}>{action}</a:Action><a:To {must}>{to}</a:To><w:ResourceURI {must}>{class}</w:ResourceURI><a:MessageID {must}>{id}</a:MessageID><a:ReplyTo><a:Address>{ANONYMOUS}</a:Address></a:ReplyTo>{selectors}</s:Header><s:Body>{body}</s:Body></s:Envelope>"#
        )
    }
}

/// A parameter `name` that points to an instance.
pub(super) fn reference(name: &str, Instance { class, selectors }: Instance) -> String {
    let selectors = selector_set(selectors);
    format!(
        "<p:{name}><a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters><w:ResourceURI>{class}</w:ResourceURI>{selectors}\
         </a:ReferenceParameters></p:{name}>"
    )
}

/// A parameter that is a number.
pub(super) fn number(name: &str, value: u32) -> String {
    format!("<p:{name}>{value}</p:{name}>")
}

/// An instance as an element, to be put: `fields` in their order.
pub(super) fn element(instance: Instance, fields: &[(String, String)]) -> String {
    let class = instance.class;
    let name = class.rsplit('/').next().unwrap_or(class);
    let mut written = format!(r#"<p:{name} xmlns:p="{class}">"#);
    for (field, value) in fields {
        // Writing to a string cannot fail.
        let _ = write!(written, "<p:{field}>{}</p:{field}>", escape(value));
    }
    written + &format!("</p:{name}>")
}

fn selector_set(selectors: &[(&str, &str)]) -> String {
    if selectors.is_empty() {
        return String::new();
    }
    let mut written = String::from("<w:SelectorSet>");
    for (name, value) in selectors {
        // Writing to a string cannot fail.
        let _ = write!(written, r#"<w:Selector Name="{}">{}</w:Selector>"#, escape(name), escape(value));
    }
    written + "</w:SelectorSet>"
}

/// Reads an answer.
///
/// # Errors
/// When it is no SOAP message, for people.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed<'_>, String> {
    let document = xml::parse(bytes)?;
    let body = body(&document).ok_or("it is no SOAP message")?;
    match body.children().find(Node::is_element) {
        Some(fault) if fault.has_tag_name((SOAP, "Fault")) => {
            let below = |node: Node<'_, '_>, names: &[&str]| {
                let mut values =
                    node.descendants().filter(|node| names.contains(&node.tag_name().name()) && node.is_element());
                values.next_back().map(|node| clip(node.text().unwrap_or_default()))
            };
            let subcode = fault
                .descendants()
                .find(|node| node.has_tag_name((SOAP, "Subcode")))
                .and_then(|subcode| below(subcode, &["Value"]))
                .unwrap_or_default();
            let subcode = subcode.rsplit(':').next().unwrap_or_default().to_owned();
            let reason = below(fault, &["Text"]).unwrap_or_default();
            Ok(Parsed::Fault(Fault { subcode, reason }))
        }
        Some(_) => Ok(Parsed::Answer(Answer(document))),
        None => Err("its SOAP message is empty".into()),
    }
}

fn body<'a, 'i>(document: &'a Document<'i>) -> Option<Node<'a, 'i>> {
    let envelope = document.root_element();
    if !envelope.has_tag_name((SOAP, "Envelope")) {
        return None;
    }
    envelope.children().find(|child| child.has_tag_name((SOAP, "Body")))
}

impl Answer<'_> {
    /// The values of a field of the instance or of a method's output, in their order.
    pub(super) fn values(&self, name: &str) -> Vec<String> {
        self.fields().into_iter().filter_map(|(field, value)| (field == name).then_some(value)).collect()
    }

    /// The value of a field, where there is one.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        self.values(name).into_iter().next()
    }

    /// All fields that have a text.
    pub(super) fn fields(&self) -> Vec<(String, String)> {
        let Some(instance) = body(&self.0).and_then(|body| body.children().find(Node::is_element)) else {
            return Vec::new();
        };
        let fields =
            instance.children().filter(|field| field.is_element() && !field.children().any(|child| child.is_element()));
        fields
            .filter(|field| {
                !field.attributes().any(|attribute| attribute.name() == "nil" && attribute.value() == "true")
            })
            .map(|field| (field.tag_name().name().to_owned(), clip(field.text().unwrap_or_default())))
            .collect()
    }
}

fn clip(text: &str) -> String {
    text.trim().chars().take(VALUE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: Instance = Instance { class: "http://x/cim/2/CIM_Thing", selectors: &[("Name", "A <b> & \"c\"")] };

    fn envelope(body: &str) -> String {
        format!(
            r#"<e:Envelope xmlns:e="{SOAP}" xmlns:t="http://x/cim/2/CIM_Thing"><e:Header/><e:Body>{body}</e:Body></e:Envelope>"#
        )
    }

    #[test]
    fn what_is_written_is_xml_with_its_parts_in_place() {
        let mut writer = Writer::new("https://h:16993/wsman?a&b".into());
        let first = writer.get(INSTANCE);
        let text = writer.invoke(INSTANCE, "Do", &(number("State", 2) + &reference("Element", INSTANCE)));
        assert_ne!(first, text);
        let document = Document::parse(&text).unwrap();
        let find = |name: &str| document.descendants().find(|node| node.tag_name().name() == name).unwrap();
        assert_eq!(find("Action").text(), Some("http://x/cim/2/CIM_Thing/Do"));
        assert_eq!(find("To").text(), Some("https://h:16993/wsman?a&b"));
        assert_eq!(find("MessageID").text(), Some("2"));
        assert_eq!(find("Selector").text(), Some("A <b> & \"c\""));
        assert_eq!(find("Do_INPUT").tag_name().namespace(), Some("http://x/cim/2/CIM_Thing"));
        assert_eq!(find("State").text(), Some("2"));
        assert_eq!(find("Element").descendants().filter(|node| node.tag_name().name() == "Selector").count(), 1);
    }

    #[test]
    fn answers_have_their_fields_and_what_is_put_has_them_again() {
        let text = envelope(
            r#"<t:CIM_Thing><t:A>1</t:A><t:A>2</t:A><t:B> a&amp;b </t:B><t:C/><t:D xmlns:x="y" x:nil="true"/><t:E><t:F>1</t:F></t:E></t:CIM_Thing>"#,
        );
        let Parsed::Answer(answer) = parse(text.as_bytes()).unwrap() else { panic!("no fault") };
        assert_eq!(answer.values("A"), ["1", "2"]);
        assert_eq!(answer.value("B").as_deref(), Some("a&b"));
        assert_eq!(answer.value("C").as_deref(), Some(""));
        assert_eq!((answer.value("D"), answer.value("E")), (None, None));
        let again = envelope(&element(INSTANCE, &answer.fields()));
        let Parsed::Answer(again) = parse(again.as_bytes()).unwrap() else { panic!("no fault") };
        assert_eq!(again.fields(), answer.fields());
    }

    #[test]
    fn faults_and_what_is_no_answer_are_told_apart() {
        let fault = envelope(
            "<e:Fault><e:Code><e:Value>e:Sender</e:Value><e:Subcode><e:Value>w:AccessDenied</e:Value></e:Subcode></e:Code>\
             <e:Reason><e:Text xml:lang=\"en-US\">The sender was not authorized.</e:Text></e:Reason></e:Fault>",
        );
        let expected = Fault { subcode: "AccessDenied".into(), reason: "The sender was not authorized.".into() };
        assert!(matches!(parse(fault.as_bytes()), Ok(Parsed::Fault(fault)) if fault == expected));
        assert!(
            matches!(parse(envelope("<e:Fault/>").as_bytes()), Ok(Parsed::Fault(Fault { subcode, .. })) if subcode.is_empty())
        );
        for wrong in ["", "<html/>", &envelope(""), "<e:Envelope xmlns:e='other'><e:Body><a/></e:Body></e:Envelope>"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_much(body: Vec<u8>, text in "[<>/a-z:&;\"' ]{0,60}") {
            let _ = parse(&body);
            let _ = parse(text.as_bytes());
            if let Ok(Parsed::Answer(answer)) = parse(envelope(&text).as_bytes()) {
                answer.fields();
            }
        }
    }
}
