//! Who logs in.

use std::fmt;

use thiserror::Error;
use zeroize::Zeroizing;

/// Longest user name, in bytes.
const NAME: usize = 16;
/// Longest password of IPMI 2.0, in bytes (22.30).
const PASSWORD: usize = 20;
/// Longest password of IPMI 1.5, in bytes.
pub(crate) const PASSWORD_15: usize = 16;

/// A user name and a password that fit. The name may be empty, which is the "null user"; so may the password.
#[derive(Clone)]
pub struct Credentials {
    name: Vec<u8>,
    password: Zeroizing<Vec<u8>>,
}

/// Why a name and password cannot be those of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CredentialsError {
    /// The name.
    #[error("a user name has at most {NAME} bytes and no NUL")]
    Name,
    /// The password. Cutting it, as some programs do, would make a weaker one of it.
    #[error("a password of IPMI has at most {PASSWORD} bytes and no NUL")]
    Password,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &String::from_utf8_lossy(&self.name)).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Checks their lengths.
    ///
    /// # Errors
    /// When one is too long, or contains what ends it on the wire.
    pub fn new(name: &str, password: &str) -> Result<Self, CredentialsError> {
        if name.len() > NAME || name.contains('\0') {
            return Err(CredentialsError::Name);
        }
        if password.len() > PASSWORD || password.contains('\0') {
            return Err(CredentialsError::Password);
        }
        Ok(Self { name: name.into(), password: Zeroizing::new(password.into()) })
    }

    /// The name.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// The name with zeros up to its field's end.
    pub(crate) fn padded_name(&self) -> [u8; NAME] {
        let mut padded = [0; NAME];
        padded[..self.name.len()].copy_from_slice(&self.name);
        padded
    }

    /// The password with zeros up to its field's end; HMAC makes no difference between it and the bare one.
    pub(crate) fn password(&self) -> &[u8] {
        &self.password
    }

    /// The password as IPMI 1.5 has it; none when it is too long for it.
    pub(crate) fn password15(&self) -> Option<Zeroizing<[u8; PASSWORD_15]>> {
        let mut padded = Zeroizing::new([0; PASSWORD_15]);
        padded.get_mut(..self.password.len())?.copy_from_slice(&self.password);
        Some(padded)
    }
}
