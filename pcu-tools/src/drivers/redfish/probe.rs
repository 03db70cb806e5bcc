//! Whether there is a Redfish service, for discovery.

use std::net::IpAddr;

use super::service::{Resource, Service};
use crate::{Deadline, Method, Waiver, web::clip};

/// What the service at an address says of itself, if there is one: "Redfish 1.6.0, Dell Inc., Integrated Dell Remote Access
/// Controller". Only its root is read, without an account. Any certificate is taken for that, since nothing secret is sent and
/// nothing of the answer is believed.
#[cfg_attr(not(test), expect(dead_code, reason = "discovery calls it"))]
pub(crate) fn probe(address: IpAddr, port: u16, deadline: Deadline) -> Option<String> {
    let mut method = Method::new("redfish", std::net::SocketAddr::new(address, port).to_string());
    method.waivers.push(Waiver::AnyIdentity);
    let service = Service::find(&method, deadline).ok()?;
    describe(service.root())
}

fn describe(root: &Resource) -> Option<String> {
    let version = root.text("/RedfishVersion")?;
    // Before they had a field of their own, vendors could be told by their extensions.
    let oem = || root.body.get("Oem")?.as_object()?.keys().next().cloned();
    let vendor = root.text("/Vendor").map(str::to_owned).or_else(oem);
    let words = [vendor, root.text("/Product").map(str::to_owned)];
    let words = words.into_iter().flatten().filter(|word| !word.trim().is_empty());
    let mut said = format!("Redfish {}", clip(version));
    for word in words {
        said = format!("{said}, {}", clip(word.trim()));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn services_say_who_they_are() {
        let check = |root: Value, expected: Option<&str>| {
            assert_eq!(describe(&Resource::told("/redfish/v1/", root.clone())).as_deref(), expected, "{root}");
        };
        check(json!({ "RedfishVersion": "1.5.0" }), Some("Redfish 1.5.0"));
        let dell = json!({ "RedfishVersion": "1.9.0", "Vendor": "Dell", "Product": "Integrated Dell Remote Access Controller" });
        check(dell, Some("Redfish 1.9.0, Dell, Integrated Dell Remote Access Controller"));
        check(json!({ "RedfishVersion": "1.0.0", "Oem": { "Hp": {} } }), Some("Redfish 1.0.0, Hp"));
        check(json!({ "RedfishVersion": "1.0.0", "Vendor": "\u{1b}[2J" }), Some("Redfish 1.0.0,  [2J"));
        check(json!({ "Name": "a printer" }), None);
    }
}
