//! One way to power one node.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{PcuError, Secret, SecretSource};

/// One way to power one node: a driver, a device, an outlet. What stands in an inventory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// The driver's name: one of `pcu driver list`.
    pub driver: String,
    /// Host, or host and port, of the device; what else it may be is in the driver's documentation.
    #[serde(default)]
    pub address: String,
    /// The account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the account's password comes from; of SNMP v1 and v2c, the community.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretSource>,
    /// Which outlet the node hangs on, where the device has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlet: Option<String>,
    /// SHA-256 of the device's certificate or host key, in hexadecimal: the only one that is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// A file of certificates, as PEM, of which one has to vouch for the device instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// What this device is allowed although it is not safe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<Waiver>,
    /// Further outlets that feed the same machine, and are switched with this one: its other power supplies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feeds: Vec<Method>,
    /// What only this driver knows.
    #[serde(flatten)]
    pub options: toml::Table,
}

/// Something unsafe that an old device needs, allowed for that device alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiver {
    /// Talk without encryption: telnet, HTTP, SNMP v1 and v2c. Passwords can be read on the way.
    ClearText,
    /// IPMI 1.5 sessions: nothing is encrypted, and passwords are protected by MD5.
    Lan15,
    /// Key exchanges and ciphers of ssh that are broken or close to it: SHA-1, CBC, 1024 bits.
    OldSsh,
    /// Believe any certificate or host key: who is in between can read everything.
    AnyIdentity,
}

impl Waiver {
    /// Its name in an inventory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClearText => "clear-text",
            Self::Lan15 => "lan15",
            Self::OldSsh => "old-ssh",
            Self::AnyIdentity => "any-identity",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.driver, self.address)?;
        match &self.outlet {
            Some(outlet) => write!(f, " outlet {outlet}"),
            None => Ok(()),
        }
    }
}

impl Method {
    /// A method of `driver` for the device at `address`, and nothing else.
    #[must_use]
    pub fn new(driver: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            driver: driver.into(),
            address: address.into(),
            user: None,
            password: None,
            outlet: None,
            fingerprint: None,
            ca: None,
            waivers: Vec::new(),
            feeds: Vec::new(),
            options: toml::Table::new(),
        }
    }

    /// What only the driver knows, as its own type, which has to refuse unknown fields.
    ///
    /// # Errors
    /// [`PcuError::Configuration`] when a field is unknown or not as it should be.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T, PcuError> {
        toml::Value::Table(self.options.clone())
            .try_into()
            .map_err(|error: toml::de::Error| self.misconfigured(error.message()))
    }

    /// Refuses options; for drivers without any.
    ///
    /// # Errors
    /// [`PcuError::Configuration`] when there is one.
    pub fn no_options(&self) -> Result<(), PcuError> {
        match self.options.keys().next() {
            Some(key) => Err(self.misconfigured(&format!("there is no option {key}"))),
            None => Ok(()),
        }
    }

    /// The account's password.
    ///
    /// # Errors
    /// When none is configured, or it cannot be had.
    pub fn secret(&self) -> Result<Secret, PcuError> {
        let source = self.password.as_ref().ok_or_else(|| self.misconfigured("there is no password"))?;
        Ok(source.resolve()?)
    }

    /// The account's name.
    ///
    /// # Errors
    /// When none is configured.
    pub fn account(&self) -> Result<&str, PcuError> {
        self.user.as_deref().ok_or_else(|| self.misconfigured("there is no user"))
    }

    /// The outlet.
    ///
    /// # Errors
    /// When none is configured.
    pub fn outlet(&self) -> Result<&str, PcuError> {
        self.outlet.as_deref().ok_or_else(|| self.misconfigured("there is no outlet"))
    }

    /// Asks for a waiver.
    ///
    /// # Errors
    /// [`PcuError::Waiver`] when the method does not have it; `why` says what is unsafe.
    pub fn require(&self, waiver: Waiver, why: &str) -> Result<(), PcuError> {
        if self.waivers.contains(&waiver) {
            return Ok(());
        }
        Err(PcuError::Waiver { doing: format!("using {self}"), detail: why.into(), waiver: waiver.name() })
    }

    /// Host and port of the address; `port` where it names none. IPv6 addresses stand in brackets when a port follows.
    ///
    /// # Errors
    /// When there is no host, or the port is no number.
    pub fn host_and_port(&self, port: u16) -> Result<(String, u16), PcuError> {
        let wrong = || self.misconfigured("the address is neither HOST nor HOST:PORT");
        let address = self.address.as_str();
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => match rest.split_once(']').ok_or_else(wrong)? {
                (host, "") => (host, port),
                (host, rest) => (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(wrong)?),
            },
            None if address.matches(':').count() > 1 => (address, port),
            None => match address.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
                None => (address, port),
            },
        };
        if host.is_empty() { Err(wrong()) } else { Ok((host.into(), port)) }
    }

    /// An error of this method's configuration.
    #[must_use]
    pub fn misconfigured(&self, detail: &str) -> PcuError {
        PcuError::Configuration { doing: format!("using {self}"), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |address: &str, expected: Option<(&str, u16)>| {
            let found = Method::new("ipmi", address).host_and_port(623).ok();
            assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)), "{address:?}");
        };
        check("bmc1", Some(("bmc1", 623)));
        check("bmc1:9", Some(("bmc1", 9)));
        check("fe80::1", Some(("fe80::1", 623)));
        check("[fe80::1]", Some(("fe80::1", 623)));
        check("[fe80::1]:9", Some(("fe80::1", 9)));
        for wrong in ["", ":9", "bmc1:x", "[fe80::1", "[fe80::1]9", "[]:9", "bmc1:70000"] {
            check(wrong, None);
        }
    }
}
