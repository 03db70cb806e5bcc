//! Passwords: from a file with checked permissions, the environment, or a command; never from a command line, never in a log.

use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest secret, in bytes.
const MAX: usize = 4096;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum SecretSource {
    /// The first line of a file that is this user's, or root's, and that others can neither read nor write.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
    /// The first line that a program prints. No shell is involved.
    Command(Vec<String>),
}

/// A password or key. It shows as `***`, and its memory is overwritten at the end.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

/// Why there is no secret. None of these contains one.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("reading the secret {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can get at the file.
    #[error("{} is mode {mode:03o} of user {owner}: others may know what it says; run chmod 600 and chown on it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// The variable is not set.
    #[error("the environment has no {0}")]
    NoVariable(String),
    /// The program did not print a secret.
    #[error("getting a secret from {program}: {detail}")]
    Program {
        /// The program.
        program: String,
        /// What happened.
        detail: String,
    },
    /// Empty, too long, or not text.
    #[error("the secret of {0} is empty, not text, or longer than {MAX} bytes")]
    Malformed(String),
}

impl Secret {
    /// Takes a secret that is in memory already.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// The secret itself, for the device it is for and nobody else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SecretSource {
    /// Gets the secret.
    ///
    /// # Errors
    /// When it cannot be had, or others could have it.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => from_file(path),
            Self::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| SecretError::NoVariable(name.clone()))?;
                first_line(value.as_encoded_bytes().to_vec(), name)
            }
            Self::Command(words) => from_command(words),
        }
    }
}

fn from_file(path: &Path) -> Result<Secret, SecretError> {
    let read = |source| SecretError::Read { path: path.into(), source };
    let file = fs::File::open(path).map_err(read)?;
    // Of the opened file, so that nobody can exchange it in between.
    let about = file.metadata().map_err(read)?;
    let mode = about.permissions().mode() & 0o777;
    let owner = about.uid();
    let me = fs::metadata("/proc/self").map_err(read)?.uid();
    if mode & 0o077 != 0 || (owner != me && owner != 0) {
        return Err(SecretError::Exposed { path: path.into(), mode, owner });
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX as u64 + 1), &mut bytes).map_err(read)?;
    first_line(bytes, &path.display().to_string())
}

fn from_command(words: &[String]) -> Result<Secret, SecretError> {
    let [program, arguments @ ..] = words else {
        return Err(SecretError::Program {
            program: "an empty command".into(),
            detail: "there is nothing to run".into(),
        });
    };
    let failed = |detail: String| SecretError::Program { program: program.clone(), detail };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    first_line(output.stdout, program)
}

fn first_line(bytes: Vec<u8>, from: &str) -> Result<Secret, SecretError> {
    let bytes = Zeroizing::new(bytes);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = str::from_utf8(line).ok().filter(|text| !text.is_empty() && text.len() <= MAX);
    text.map(|text| Secret::new(text.into())).ok_or_else(|| SecretError::Malformed(from.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, content: &str) -> (tempfile::TempDir, SecretSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, SecretSource::File(path))
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o666] {
            let (_folder, source) = file(mode, "x\n");
            assert!(matches!(source.resolve(), Err(SecretError::Exposed { .. })), "{mode:o}");
        }
        for content in ["word\n", "word", "word\r\n", "word\nmore\n"] {
            let (_folder, source) = file(0o600, content);
            assert_eq!(source.resolve().unwrap().reveal(), "word", "{content:?}");
        }
    }

    #[test]
    fn what_is_no_secret_is_an_error() {
        for content in ["", "\n", "\r\n", &"x".repeat(MAX + 1)] {
            let (_folder, source) = file(0o600, content);
            assert!(matches!(source.resolve(), Err(SecretError::Malformed(_))), "{:?}", content.len());
        }
        let command = |words: &[&str]| SecretSource::Command(words.iter().map(|word| (*word).into()).collect());
        assert_eq!(command(&["printf", "pass word\n"]).resolve().unwrap().reveal(), "pass word");
        assert!(matches!(command(&["false"]).resolve(), Err(SecretError::Program { .. })));
        assert!(matches!(command(&["/no/such/program"]).resolve(), Err(SecretError::Program { .. })));
        assert!(matches!(command(&[]).resolve(), Err(SecretError::Program { .. })));
        assert!(matches!(SecretSource::Env("ORRERY_NO_SUCH".into()).resolve(), Err(SecretError::NoVariable(_))));
    }

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new("word".into())), "***");
    }
}
