//! By which version of SNMP, and as whom, a device is asked.

use std::fmt;

use serde::Deserialize;

use super::{
    message::Version,
    usm::{Auth, Extension, Privacy, User},
};
use crate::{Method, PcuError, Secret, SecretSource, Waiver};

/// Shortest password that version 3 allows, in bytes (RFC 3414, section 11.2).
const SHORTEST: usize = 8;
/// Longest name of a user or a context, in bytes (RFC 3414, section 2.4; RFC 3415, section 4).
const NAME: usize = 32;

/// As whom a device is asked.
#[derive(Debug)]
pub(super) enum Credentials {
    /// With a word that anybody on the way can read.
    Community(Version, Secret),
    /// Signed, by version 3.
    User(User),
}

/// A method's options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    version: Protocol,
    auth: Option<Auth>,
    privacy: Option<Privacy>,
    privacy_password: Option<SecretSource>,
    #[serde(default)]
    key_extension: Extension,
    #[serde(default)]
    context: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Protocol {
    #[serde(rename = "1")]
    V1,
    #[serde(rename = "2c")]
    V2c,
    #[default]
    #[serde(rename = "3")]
    V3,
}

impl Credentials {
    /// What a method says.
    ///
    /// # Errors
    /// When something is missing, or not safe and not allowed.
    pub(super) fn of(method: &Method) -> Result<Self, PcuError> {
        let options: Options = method.options()?;
        match options.version {
            Protocol::V1 => community(method, &options, Version::V1),
            Protocol::V2c => community(method, &options, Version::V2c),
            Protocol::V3 => user(method, options),
        }
    }

    /// The user, by version 3.
    pub(super) fn user(&self) -> Option<&User> {
        match self {
            Self::Community(..) => None,
            Self::User(user) => Some(user),
        }
    }
}

fn community(method: &Method, options: &Options, version: Version) -> Result<Credentials, PcuError> {
    let of_v3 = options.auth.is_some() || options.privacy.is_some() || options.privacy_password.is_some();
    if of_v3 || method.user.is_some() {
        return Err(method.misconfigured("user, auth and privacy are version 3's; versions 1 and 2c have a community"));
    }
    method.require(Waiver::ClearText, "SNMP 1 and 2c send the community and everything else in the clear")?;
    let community = method.secret().map_err(|error| match error {
        PcuError::Configuration { .. } => method.misconfigured("there is no password; it is the community"),
        error => error,
    })?;
    Ok(Credentials::Community(version, community))
}

fn user(method: &Method, options: Options) -> Result<Credentials, PcuError> {
    let name = method.account()?.to_owned();
    if name.is_empty() || name.len() > NAME {
        return Err(method.misconfigured("a user of SNMP version 3 has 1 to 32 bytes"));
    }
    if options.context.len() > NAME {
        return Err(method.misconfigured("a context's name has 32 bytes at most"));
    }
    let auth = options.auth.ok_or_else(|| {
        method.misconfigured(
            "there is no auth; without it anybody could switch. It is md5, sha1, sha224, sha256, sha384 or sha512",
        )
    })?;
    let password = long(method, "password", method.secret()?)?;
    let privacy = match (options.privacy, options.privacy_password) {
        (None, None) => {
            method
                .require(Waiver::ClearText, "without privacy, SNMP sends everything but the password in the clear")?;
            None
        }
        (Some(privacy), Some(source)) => {
            if privacy == Privacy::Des {
                method.require(Waiver::ClearText, "DES is as good as no encryption")?;
            }
            Some((privacy, long(method, "privacy_password", source.resolve()?)?))
        }
        _ => return Err(method.misconfigured("privacy and privacy_password belong together")),
    };
    Ok(Credentials::User(User {
        name,
        auth,
        password,
        privacy,
        extension: options.key_extension,
        context: options.context,
    }))
}

/// Devices refuse shorter passwords; here, one is a mistake.
fn long(method: &Method, which: &str, secret: Secret) -> Result<Secret, PcuError> {
    if secret.reveal().len() < SHORTEST {
        return Err(method.misconfigured(&format!("SNMP version 3 needs 8 bytes or more as {which}")));
    }
    Ok(secret)
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Community(Version::V1, _) => f.write_str("version 1"),
            Self::Community(Version::V2c, _) => f.write_str("version 2c"),
            Self::User(user) => write!(f, "version 3 as {}", user.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn methods() {
        let check = |text: &str, expected: Result<&str, (Class, &str)>| {
            let text = format!("driver = 'apc-rpdu'\naddress = 'x'\n{text}");
            let found = Credentials::of(&toml::from_str(&text).unwrap());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected, "{text}"),
                (Err(found), Err((class, part))) => {
                    assert_eq!(found.class(), class, "{text}");
                    assert!(found.to_string().contains(part), "{found}");
                }
                (found, expected) => panic!("{text}\n{found:?}\n{expected:?}"),
            }
        };
        const WORD: &str = "password = { command = ['echo', 'long enough'] }\n";
        const PRIVACY: &str = "privacy = 'aes128'\nprivacy_password = { command = ['echo', 'long enough'] }\n";
        let configuration = |part| Err((Class::Configuration, part));
        check(&format!("version = '1'\nwaivers = ['clear-text']\n{WORD}"), Ok("version 1"));
        check(&format!("version = '2c'\nwaivers = ['clear-text']\n{WORD}"), Ok("version 2c"));
        check(&format!("version = '2c'\n{WORD}"), configuration("clear-text"));
        check("version = '2c'\nwaivers = ['clear-text']\n", configuration("it is the community"));
        check(&format!("version = '1'\nuser = 'x'\n{WORD}"), configuration("version 3's"));
        check(&format!("version = '1'\n{PRIVACY}{WORD}"), configuration("version 3's"));
        check(&format!("version = '2'\n{WORD}"), configuration("unknown variant `2`"));
        check(&format!("user = 'pcu'\nauth = 'sha256'\n{PRIVACY}{WORD}"), Ok("version 3 as pcu"));
        check(&format!("user = 'pcu'\nauth = 'sha256'\nwaivers = ['clear-text']\n{WORD}"), Ok("version 3 as pcu"));
        check(&format!("user = 'pcu'\nauth = 'sha256'\n{WORD}"), configuration("clear-text"));
        check(&format!("user = 'pcu'\nauth = 'md5'\n{}{WORD}", PRIVACY.replace("aes128", "des")), configuration("DES"));
        check(&format!("user = 'pcu'\n{PRIVACY}{WORD}"), configuration("there is no auth"));
        check(&format!("user = 'pcu'\nauth = 'none'\n{WORD}"), configuration("unknown variant `none`"));
        check(&format!("user = 'pcu'\nauth = 'sha1'\nprivacy = 'des'\n{WORD}"), configuration("belong together"));
        check(&format!("auth = 'sha1'\n{PRIVACY}{WORD}"), configuration("there is no user"));
        check(&format!("user = 'pcu'\nauth = 'sha1'\nport = 1\n{WORD}"), configuration("port"));
        let short = "password = { command = ['echo', 'short'] }\n";
        check(&format!("user = 'pcu'\nauth = 'sha1'\n{PRIVACY}{short}"), configuration("8 bytes"));
    }
}
