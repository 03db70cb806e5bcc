//! SHA-256 of files and of lists of inputs.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = Hashing(Sha256::new());
    io::copy(&mut file, &mut hasher).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex::encode(hasher.0.finalize()))
}

/// SHA-256 of bytes, in hexadecimal.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The inputs of something built, as readable lines: their hash is its key in the cache, and the lines are
/// kept beside the result to tell why two keys differ.
#[derive(Debug, Default, Clone)]
pub(crate) struct Inputs(String);

impl Inputs {
    /// Adds one input.
    pub(crate) fn add(&mut self, kind: &str, name: &str, value: &str) {
        self.0.push_str(&format!("{kind} {name} {}\n", value.trim().replace('\n', " | ")));
    }

    /// Adds a file by content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        self.add("file", name, &file(path)?);
        Ok(())
    }

    /// The key: 128 bits of the hash are beyond accident, and keep paths readable.
    pub(crate) fn key(&self) -> String {
        bytes(self.0.as_bytes())[..32].to_owned()
    }

    /// The lines.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}
