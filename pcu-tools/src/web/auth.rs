//! Basic (RFC 7617) and Digest (RFC 7616) authentication.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use digest_auth::{AuthContext, HttpMethod, WwwAuthenticateHeader};
use zeroize::Zeroizing;

use super::{Reply, Verb, WebClient};
use crate::{Deadline, Method, PcuError, Secret};

/// How a device is told who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WebAuth {
    /// Not at all.
    None,
    /// User and password go with every request.
    Basic,
    /// The password stays here; the device poses a challenge.
    Digest,
}

/// What is kept between requests: the password, so that it is fetched once, and the device's challenge.
#[derive(Default)]
pub(super) struct Account {
    secret: Option<Secret>,
    challenge: Option<WwwAuthenticateHeader>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("secret", &self.secret).finish_non_exhaustive()
    }
}

impl Account {
    fn secret(&mut self, method: &Method) -> Result<Secret, PcuError> {
        if self.secret.is_none() {
            self.secret = Some(method.secret()?);
        }
        Ok(self.secret.clone().expect("it is set above"))
    }
}

impl WebClient {
    /// The user of the method, and the password, which is fetched once.
    ///
    /// # Errors
    /// When either is missing.
    pub(crate) fn credentials(&mut self) -> Result<(String, Secret), PcuError> {
        let user = self.method.account()?.to_owned();
        Ok((user, self.account.secret(&self.method)?))
    }

    /// A request by the method's user, with its password.
    ///
    /// # Errors
    /// As [`WebClient::request`]; [`PcuError::Authentication`] when the device answers 401.
    pub(crate) fn request_as(
        &mut self,
        auth: WebAuth,
        verb: &Verb,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Reply, PcuError> {
        let ask = |client: &mut Self, proof: Option<Zeroizing<String>>| {
            let mut headers = headers.to_vec();
            headers.extend(proof.as_ref().map(|proof| ("authorization", proof.as_str())));
            client.request(verb, path, &headers, body, deadline)
        };
        let reply = match auth {
            WebAuth::None => ask(self, None)?,
            WebAuth::Basic => {
                let proof = self.basic()?;
                ask(self, Some(proof))?
            }
            WebAuth::Digest => {
                // Challenges are good for a while, and some devices do not say that the one in use is too old.
                let proof = self.digest(verb, path, body)?;
                let reply = ask(self, proof)?;
                match self.take_challenge(&reply) {
                    false => reply,
                    true => {
                        let proof = self.digest(verb, path, body)?;
                        ask(self, proof)?
                    }
                }
            }
        };
        if reply.status == 401 {
            self.account.challenge = None;
            return Err(self.not_let_in(auth, verb, path, &reply));
        }
        Ok(reply)
    }

    fn basic(&mut self) -> Result<Zeroizing<String>, PcuError> {
        let (user, secret) = self.credentials()?;
        if user.contains(':') {
            return Err(self.method.misconfigured("a user with a colon cannot log in over HTTP"));
        }
        let pair = Zeroizing::new(format!("{user}:{}", secret.reveal()));
        Ok(Zeroizing::new(format!("Basic {}", &*Zeroizing::new(STANDARD.encode(pair.as_bytes())))))
    }

    /// The answer to the challenge at hand; none when there is none.
    fn digest(&mut self, verb: &Verb, path: &str, body: &[u8]) -> Result<Option<Zeroizing<String>>, PcuError> {
        let (user, secret) = self.credentials()?;
        let doing = self.doing(verb, path);
        let Some(challenge) = &mut self.account.challenge else { return Ok(None) };
        let context =
            AuthContext::new_with_method(user, secret.reveal(), path, Some(body), HttpMethod::from(verb.as_str()));
        match challenge.respond(&context) {
            Ok(answer) => Ok(Some(Zeroizing::new(answer.to_header_string()))),
            Err(error) => Err(PcuError::BadAnswer { doing, detail: format!("its challenge makes no sense: {error}") }),
        }
    }

    /// Takes up the challenge of a 401; false when there is none.
    fn take_challenge(&mut self, reply: &Reply) -> bool {
        if reply.status != 401 {
            return false;
        }
        let texts = reply.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
        let mut digests = texts.filter(|text| text.trim_start().to_ascii_lowercase().starts_with("digest"));
        self.account.challenge = digests.find_map(|text| digest_auth::parse(text).ok());
        self.account.challenge.is_some()
    }

    fn not_let_in(&self, auth: WebAuth, verb: &Verb, path: &str, reply: &Reply) -> PcuError {
        let offered = reply.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
        let schemes: Vec<_> = offered.filter_map(|text| text.split_whitespace().next()).collect();
        let user = self.method.user.as_deref().unwrap_or("nobody");
        let mut detail = format!("the device does not let {user} in");
        let wanted = match auth {
            WebAuth::None => "",
            WebAuth::Basic => "Basic",
            WebAuth::Digest => "Digest",
        };
        if !schemes.is_empty() && !schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case(wanted)) {
            detail = format!("{detail}; it wants {}", super::failure::clip(&schemes.join(" or ")));
        }
        PcuError::Authentication { doing: self.doing(verb, path), detail }
    }
}
