//! Artifacts: files named by their SHA-256, whole or absent.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use orrery_image_store::{ImportError, write_contents};
use orrery_protocol::{ArtifactRef, Digest, Listing, ListingError, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::Semaphore,
};
use tokio_util::io::ReaderStream;

use crate::{
    api_error::ApiError,
    data::{sync_folder, write_file},
    range::{self, Part},
};

/// No artifact is larger.
const MAX_BYTES: u64 = 64 << 30;
/// An upload that pauses for longer is given up.
const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 256 * 1024;
/// No listing is longer: one of as many files as an archive may have is shorter.
const MAX_LISTING: u64 = 256 << 20;
/// How much of an artifact is read to see whether it is a listing at all.
const LISTING_HEAD: u64 = 16;
/// How many requests for files of images are answered at once. Each unpacks and compresses, and holds a listing in memory.
const CONTENTS_AT_ONCE: usize = 4;
/// Files of an image that are asked for at once have no more bytes together. A node asks for less, unless a single file has more.
const MAX_CONTENTS: u64 = 1 << 30;

/// The folder of artifacts.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    /// One permit for each answer with files of images that is made.
    contents: Arc<Semaphore>,
}

impl Artifacts {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, contents: Arc::new(Semaphore::new(CONTENTS_AT_ONCE)) }
    }

    fn path(&self, sha256: &Digest) -> PathBuf {
        self.folder.join(sha256.to_string())
    }

    /// Whether an artifact is here, in its named size.
    pub(crate) fn has(&self, artifact: &ArtifactRef) -> bool {
        self.path(&artifact.sha256).metadata().is_ok_and(|m| m.is_file() && m.len() == artifact.size)
    }

    /// All artifacts: digest, size, and when it was stored in Unix seconds. Sorted.
    pub(crate) fn list(&self) -> io::Result<Vec<(Digest, u64, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some(sha256) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let metadata = entry.metadata()?;
            let stored = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            found.push((sha256, metadata.len(), stored));
        }
        found.sort();
        Ok(found)
    }

    /// The artifacts that may be the listing of an image of `size` bytes: a listing does not say of which image it is.
    pub(crate) fn listings(&self, size: u64) -> io::Result<Vec<Digest>> {
        let image = ArtifactRef { sha256: Digest([0; 32]), size };
        let mut found = Vec::new();
        for (sha256, length, _) in self.list()? {
            if length <= Listing::max_bytes(size).min(MAX_LISTING) {
                let bytes = read_listing(&File::open(self.path(&sha256))?, &image)?;
                if Listing::parse(&bytes, &image).is_ok() {
                    found.push(sha256);
                }
            }
        }
        Ok(found)
    }

    /// Removes an artifact; whether there was one. Who is being sent it still gets all of it.
    pub(crate) fn remove(&self, sha256: &Digest) -> io::Result<bool> {
        match std::fs::remove_file(self.path(sha256)) {
            Ok(()) => sync_folder(&self.folder).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Keeps a small artifact.
    pub(crate) fn keep(&self, content: &[u8]) -> io::Result<ArtifactRef> {
        let artifact = ArtifactRef { sha256: Digest::of(content), size: content.len() as u64 };
        write_file(&self.path(&artifact.sha256), content, 0o644)?;
        Ok(artifact)
    }

    /// Receives an artifact. It gets its name after its content was proven and is on the disk.
    pub(crate) async fn receive(&self, sha256: Digest, body: Body) -> Result<ArtifactRef, ApiError> {
        let incoming = self.folder.join("incoming");
        let temporary = tempfile::NamedTempFile::new_in(&incoming).map_err(storing)?;
        let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(storing)?);
        let (mut hasher, mut size) = (Sha256::new(), 0u64);
        let mut stream = body.into_data_stream();
        loop {
            let next = tokio::time::timeout(UPLOAD_PAUSE, stream.next()).await;
            let chunk = match next {
                Err(_) => return Err(broken_off("no data for a minute")),
                Ok(None) => break,
                Ok(Some(Err(e))) => return Err(broken_off(&e.to_string())),
                Ok(Some(Ok(chunk))) => chunk,
            };
            size += chunk.len() as u64;
            if size > MAX_BYTES {
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "larger than any artifact"));
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(storing)?;
        }
        let got = hasher.finish();
        if got != sha256 {
            let message = format!("the content has SHA-256 {got}: it was damaged on its way, or misnamed");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "wrong-content", message));
        }
        file.sync_all().await.map_err(storing)?;
        let (folder, target) = (self.folder.clone(), self.path(&sha256));
        let persist = move || {
            use std::os::unix::fs::PermissionsExt;
            temporary.as_file().set_permissions(PermissionsExt::from_mode(0o644))?;
            temporary.persist(target).map_err(|e| e.error)?;
            sync_folder(&folder)
        };
        tokio::task::spawn_blocking(persist).await.map_err(ApiError::internal)?.map_err(storing)?;
        Ok(ArtifactRef { sha256, size })
    }

    /// Answers a request for an artifact, or for a range of it.
    pub(crate) async fn send(&self, sha256: Digest, headers: &HeaderMap) -> Result<Response, ApiError> {
        let path = self.path(&sha256);
        let opened = tokio::task::spawn_blocking(move || open(&path)).await.map_err(ApiError::internal)?;
        let (file, size) = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ApiError::not_found(format_args!("artifact {sha256}")));
            }
            other => other.map_err(ApiError::internal)?,
        };
        let tag = format!("\"{sha256}\"");
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        // A range of another version is of no use to the asker; without a date, only the tag can match.
        let same = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
        let part = range::requested(text(header::RANGE).filter(|_| same), size);
        let common = [
            (header::ETAG, tag),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        ];
        let (status, bytes, content_range) = match part {
            Part::Whole => (StatusCode::OK, 0..size, None),
            Part::Bytes(range) => {
                let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (StatusCode::PARTIAL_CONTENT, range, Some(content_range))
            }
            Part::Unsatisfiable => {
                let content_range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, common, content_range).into_response());
            }
        };
        let mut file = tokio::fs::File::from_std(file);
        file.seek(io::SeekFrom::Start(bytes.start)).await.map_err(ApiError::internal)?;
        let length = bytes.end - bytes.start;
        let body = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK_BYTES));
        let mut response = (status, common, [(header::CONTENT_LENGTH, length.to_string())], body).into_response();
        if let Some(value) = content_range.and_then(|v| HeaderValue::from_str(&v).ok()) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        Ok(response)
    }
}

impl Artifacts {
    /// What is stored of some files of the image `archive`, as [`write_contents`] writes it; `listing` is the image's.
    pub(crate) async fn contents(
        &self,
        archive: Digest,
        listing: Digest,
        wanted: Vec<u32>,
    ) -> Result<Response, ApiError> {
        let (folder, path) = (self.folder.clone(), |sha256| self.path(&sha256));
        let (archive_path, listing_path) = (path(archive), path(listing));
        // The work goes on when the asker is gone, and so does the permit.
        let permit = self.contents.clone().acquire_owned().await.map_err(ApiError::internal)?;
        let collect = move || -> Result<_, ApiError> {
            let _permit = permit;
            let opened = |path: &Path, what: &Digest| match open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    Err(ApiError::not_found(format_args!("artifact {what}")))
                }
                other => other.map_err(ApiError::internal),
            };
            let (file, size) = opened(&archive_path, &archive)?;
            let (listed, length) = opened(&listing_path, &listing)?;
            let not_one = |e: &dyn std::fmt::Display| ApiError::bad_request(format!("artifact {listing}: {e}"));
            if length > Listing::max_bytes(size).min(MAX_LISTING) {
                return Err(not_one(&"too long for a listing"));
            }
            let image = ArtifactRef { sha256: archive, size };
            let bytes = read_listing(&listed, &image).map_err(ApiError::internal)?;
            let parsed = Listing::parse(&bytes, &image).map_err(|e| not_one(&e))?;
            // Made as a whole before it is sent: nobody's slow line holds a thread.
            let mut spool = tempfile::tempfile_in(folder.join("incoming")).map_err(storing)?;
            write_contents(&file, &parsed, &wanted, MAX_CONTENTS, &mut spool).map_err(|e| match e {
                ImportError::TooLarge { .. } => {
                    let message = format!("these files have more than {MAX_CONTENTS} bytes: ask for fewer at once");
                    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
                }
                e => ApiError::internal(format_args!("reading files of {archive}: {}", anyhow::Error::from(e))),
            })?;
            let length = spool.stream_position().map_err(ApiError::internal)?;
            spool.rewind().map_err(ApiError::internal)?;
            Ok((spool, length))
        };
        let (spool, length) = tokio::task::spawn_blocking(collect).await.map_err(ApiError::internal)??;
        let body = Body::from_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(spool), CHUNK_BYTES));
        let headers =
            [(header::CONTENT_TYPE, "application/zstd".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
        Ok((headers, body).into_response())
    }
}

/// Reads an artifact, or only its beginning if that is no listing's: any node may ask for any artifact as one.
fn read_listing(file: &File, image: &ArtifactRef) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LISTING_HEAD).read_to_end(&mut bytes)?;
    if !matches!(Listing::parse(&bytes, image), Err(ListingError::NotAListing)) {
        file.take(MAX_LISTING).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn broken_off(why: &str) -> ApiError {
    ApiError::bad_request(format!("the upload broke off: {why}"))
}

fn storing(cause: io::Error) -> ApiError {
    if cause.kind() == io::ErrorKind::StorageFull {
        return ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "central's disk is full");
    }
    ApiError::internal(format_args!("storing an artifact: {cause}"))
}
