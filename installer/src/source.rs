//! Where artifacts come from, and who is told about it.

use std::{
    io::{self, Read},
    ops::Range,
};

use orrery_protocol::ArtifactRef;
use thiserror::Error;

/// A failed transfer, in the words of whoever transfers.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct TransferError {
    /// Its class, for whoever decides about recovery.
    pub class: &'static str,
    /// For people.
    pub message: String,
    /// Whether trying again may help.
    pub transient: bool,
}

impl TransferError {
    /// The transfer error inside a read error.
    pub(crate) fn within(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(other) => Self { class: "short-read", message: other.to_string(), transient: true },
        }
    }

    /// The stream broke off with everything else in order.
    pub(crate) fn ended(at: u64, of: u64) -> Self {
        Self { class: "short-read", message: format!("the stream ended after {at} of {of} bytes"), transient: true }
    }
}

/// Where artifacts come from: one or several places, of which one is asked at a time. Nothing they say is trusted.
pub trait Source {
    /// The bytes `range` of `artifact`, unproven, from the place whose turn it is; that place need not end the stream after
    /// them. Its read errors may hold a [`TransferError`].
    ///
    /// # Errors
    /// [`TransferError`].
    fn open(&self, artifact: &ArtifactRef, range: Range<u64>) -> Result<Box<dyn Read>, TransferError>;

    /// The place whose turn it is, for people.
    fn place(&self) -> String;

    /// Gives the turn to the next place, because this one failed or lied. Whether this one is passed over for good: it was a
    /// mirror, and there is somebody else to ask at once. A server of the last resort is asked again later.
    fn pass_over(&self) -> bool;
}

/// Who is told, and who waits.
pub trait Observer {
    /// `done` of `total` bytes of `what` have arrived.
    fn progress(&self, what: &str, done: u64, total: u64);
    /// Something worth telling people and central.
    fn note(&self, text: &str);
    /// Waits before a transfer is tried again for the `failures`th time.
    fn pause(&self, failures: u32);
}

/// Transfers that may fail in a row, and downloads that may not match.
pub(crate) const TRIES: u32 = 3;
/// Progress after which a transfer counts as working again, in bytes.
const PROGRESS: u64 = 1 << 20;

/// How patient a download still is.
pub(crate) struct Patience<'a> {
    source: &'a dyn Source,
    observer: &'a dyn Observer,
    name: &'a str,
    failures: u32,
    failed_at: u64,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(source: &'a dyn Source, observer: &'a dyn Observer, name: &'a str) -> Self {
        Self { source, observer, name, failures: 0, failed_at: 0 }
    }

    /// A transfer failed at byte `at`, with `got` bytes received so far: says so, waits, and has the next place asked; or gives
    /// up and returns the error. A mirror costs no patience.
    pub(crate) fn failed(&mut self, error: TransferError, at: u64, got: u64) -> Result<(), TransferError> {
        let Self { name, observer, .. } = self;
        let place = self.source.place();
        if self.source.pass_over() {
            observer.note(&format!("{name}: {error}; passing over {place}, going on from byte {at} elsewhere"));
            return Ok(());
        }
        if got >= self.failed_at + PROGRESS {
            self.failures = 0;
        }
        self.failures += 1;
        self.failed_at = got;
        let failures = self.failures;
        if !error.transient || failures >= TRIES {
            return Err(error);
        }
        observer.note(&format!("{name}: {error}; going on from byte {at} ({failures} of {TRIES})"));
        observer.pause(failures);
        Ok(())
    }
}
