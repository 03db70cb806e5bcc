//! Images from a real central, over a line that counts and breaks: what lacks moves, and nothing else.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use orrery_central::{InitOptions, Server, init};
use orrery_central_api::{NewNode, NodeDetail};
use orrery_image_builder::compress_image;
use orrery_image_store::list;
use orrery_nodeos::{
    central::Central,
    images::{Images, Mended},
};
use orrery_protocol::{ArtifactRef, BootState, Digest, ImageRef, NodeConfig, SigningKey};
use orrery_transport::{Client, Identity, Method, Resolver, new_key_pem};
use tempfile::TempDir;
use tokio::sync::oneshot;

const FILES: u64 = 1000;
/// What TLS, HTTP and the connections of one image add: measured as about 7 KB.
const OVERHEAD: u64 = 16 << 10;

/// A central that serves until it is dropped.
struct Served {
    folder: TempDir,
    address: SocketAddr,
    operator: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        init(&InitOptions { data: data.clone(), hosts: vec!["127.0.0.1".to_owned()], port: 1 }).unwrap();
        let server = Server::bind(&data, &["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = server.addresses()[0];
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(server.run(async move { stopped.await.unwrap_or(()) })).unwrap();
        });
        let read = |name: &str| fs::read_to_string(data.join(name)).unwrap();
        let identity = Identity::from_pem(&read("operator/operator.key")).unwrap();
        let operator =
            Client::new(&format!("https://{address}"), &read("operator/ca.pem"), &identity, Resolver::System).unwrap();
        Self { folder, address, operator, stop: Some(stop), thread: Some(thread) }
    }

    /// A node of this central, which talks to it through `line`.
    fn node(&self, line: &Line) -> NodeConfig {
        let key = new_key_pem().unwrap();
        let spki = Identity::from_pem(&key).unwrap().spki_sha256();
        let boot_state = BootState::Boot;
        let node = NewNode { id: "n1".to_owned(), name: String::new(), spki, groups: Vec::new(), boot_state };
        let _: NodeDetail = self.operator.exchange(Method::POST, "/v1/nodes", &node).unwrap();
        let ca = fs::read_to_string(self.folder.path().join("data/operator/ca.pem")).unwrap();
        let release_key = SigningKey::from_scalar(&[7; 32]).unwrap().public();
        let central = serde_json::json!({
            "urls": [format!("https://{}", line.address)], "ca": ca, "release_keys": [release_key],
        });
        serde_json::from_value(serde_json::json!({ "id": "n1", "key": key, "central": central })).unwrap()
    }

    fn publish(&self, tar: &[u8]) -> ImageRef {
        let folder = tempfile::tempdir().unwrap();
        let [plain, compressed]: [PathBuf; 2] = ["tar", "zst"].map(|name| folder.path().join(name));
        fs::write(&plain, tar).unwrap();
        compress_image(&plain, &compressed).unwrap();
        let archive = fs::read(&compressed).unwrap();
        let listing = list(&archive, 1 << 30).unwrap().unwrap();
        let upload = |bytes: &[u8]| -> ArtifactRef {
            self.operator.put_bytes(&format!("/v1/artifacts/{}", Digest::of(bytes)), bytes).unwrap()
        };
        ImageRef { name: "test".to_owned(), content: upload(&archive), listing: Some(upload(&listing)) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A line to central that counts what comes from there, and breaks after as much as it is told.
struct Line {
    address: SocketAddr,
    state: Arc<LineState>,
}

struct LineState {
    came: AtomicU64,
    breaks_at: AtomicU64,
}

impl Line {
    fn to(central: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(LineState { came: AtomicU64::new(0), breaks_at: AtomicU64::new(u64::MAX) });
        let shared = state.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, state) = (near.unwrap(), shared.clone());
                let far = TcpStream::connect(central).unwrap();
                let (mut up, mut up_to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = io::copy(&mut up, &mut up_to);
                    let _ = up_to.shutdown(Shutdown::Both);
                });
                thread::spawn(move || state.carry(far, near));
            }
        });
        Self { address, state }
    }

    /// How much comes while something is done.
    fn count<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let before = self.state.came.load(Ordering::SeqCst);
        let done = work();
        (done, self.state.came.load(Ordering::SeqCst) - before)
    }

    /// Breaks after as many bytes more.
    fn break_after(&self, bytes: u64) {
        self.state.breaks_at.store(self.state.came.load(Ordering::SeqCst).saturating_add(bytes), Ordering::SeqCst);
    }
}

impl LineState {
    fn carry(&self, mut far: TcpStream, mut near: TcpStream) {
        let mut buffer = vec![0; 1 << 14];
        while let Ok(length @ 1..) = far.read(&mut buffer) {
            let came = self.came.fetch_add(length as u64, Ordering::SeqCst) + length as u64;
            if came > self.breaks_at.load(Ordering::SeqCst) || near.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = near.shutdown(Shutdown::Both);
        let _ = far.shutdown(Shutdown::Both);
    }
}

/// An image of files of up to 8 KB in ten directories, which cannot be compressed. Those whose number is a multiple of `changed`
/// differ by `version`.
fn image(version: u64, changed: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in 0..FILES {
        let mut state = (if file.is_multiple_of(changed) { version } else { 0 }) << 32 | file;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let length = 1 + next() % 8000;
        let content: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, format!("{}/{file}", file % 10), content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A node's images, in an empty folder.
fn images(config: &NodeConfig) -> (TempDir, Images) {
    let folder = tempfile::tempdir().unwrap();
    let images = open(config, folder.path());
    (folder, images)
}

fn open(config: &NodeConfig, folder: &Path) -> Images {
    Images::at(&folder.join("store"), &folder.join("incoming"), Arc::new(Central::new(config).unwrap())).unwrap()
}

#[test]
fn an_image_that_differs_in_one_percent_moves_one_percent() {
    let central = Served::start();
    let line = Line::to(central.address);
    let config = central.node(&line);
    let (one, two) = (central.publish(&image(1, 100)), central.publish(&image(2, 100)));
    let (folder, images) = images(&config);

    let (brought, came) = line.count(|| images.bring(&one).unwrap());
    let listing = one.listing.unwrap().size;
    println!("archive {}, listing {listing}, all of it {came}", one.content.size);
    assert_eq!((brought.imported.files, brought.imported.shared), (FILES, 0));
    assert!(came < one.content.size + listing + OVERHEAD, "{came}");

    let (brought, came) = line.count(|| images.bring(&two).unwrap());
    println!("one percent {came}, of them {} at most around it", came - brought.moved);
    assert_eq!((brought.imported.files, brought.imported.shared), (FILES, FILES * 99 / 100));
    assert!(brought.moved - listing < two.content.size * 13 / 1000, "{}", brought.moved - listing);
    assert!(came < brought.moved + OVERHEAD, "{came}");

    // The trees are those of the archives.
    let store = orrery_image_store::Store::open(&folder.path().join("store")).unwrap();
    for image in [&one, &two] {
        assert!(store.verify(&image.content.sha256).unwrap().is_empty());
        let archive = central.folder.path().join("data/artifacts").join(image.content.sha256.to_string());
        let other = TempDir::new().unwrap();
        let whole = orrery_image_store::Store::open(other.path()).unwrap();
        whole.import(fs::File::open(archive).unwrap(), &image.content.sha256, 1 << 30).unwrap();
        let (mine, its) = (store.tree(&image.content.sha256).unwrap(), whole.tree(&image.content.sha256).unwrap());
        for file in 0..FILES {
            let name = format!("{}/{file}", file % 10);
            assert!(fs::read(mine.join(&name)).unwrap() == fs::read(its.join(&name)).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_broken_line_costs_little() {
    let central = Served::start();
    let line = Line::to(central.address);
    let config = central.node(&line);
    let image = central.publish(&image(1, 1));
    let (folder, mut images) = images(&config);
    let whole = image.content.size;
    let mut breaks = 0;
    let ((), came) = line.count(|| {
        loop {
            line.break_after(whole / 4);
            match images.bring(&image) {
                Ok(_) => break,
                Err(_) => breaks += 1,
            }
            assert!(breaks < 20, "no progress");
            // As after a restart.
            images = open(&config, folder.path());
        }
    });
    println!("{breaks} breaks, {came} bytes of {whole}");
    assert!(breaks >= 3, "{breaks}");
    // The listing each time, and what was under way.
    let listing = image.listing.unwrap().size;
    assert!(came < whole + (listing + (256 << 10)) * (breaks + 1), "{came}");
}

#[test]
fn without_a_good_listing_the_whole_archive_comes() {
    let central = Served::start();
    let line = Line::to(central.address);
    let config = central.node(&line);
    let (image, other) = (central.publish(&image(1, 1)), central.publish(&image(2, 1)));
    for listing in [None, other.listing, Some(other.content), Some(ArtifactRef { sha256: Digest([1; 32]), size: 9 })] {
        let (_folder, images) = images(&config);
        let brought = images.bring(&ImageRef { listing, ..image.clone() }).unwrap();
        assert_eq!((brought.imported.files, brought.moved), (FILES, image.content.size));
    }
    // Nor is anything else taken for the image.
    let (_folder, images) = images(&config);
    images.bring(&ImageRef { content: ArtifactRef { sha256: Digest([1; 32]), size: 9 }, ..image }).unwrap_err();
}

#[test]
fn a_damaged_image_is_mended_in_one_way_or_another() {
    let central = Served::start();
    let line = Line::to(central.address);
    let config = central.node(&line);
    let image = central.publish(&image(1, 1));
    let (folder, images) = images(&config);
    images.bring(&image).unwrap();
    let tree = folder.path().join("store/trees").join(image.content.sha256.to_string());
    let mend = |listing| {
        let good = fs::read(tree.join("7/7")).unwrap();
        fs::write(tree.join("7/7"), "damaged").unwrap();
        let at_rest = |_: &Digest, work: &dyn Fn() -> anyhow::Result<()>| work().map(|()| true);
        let mended = images.mend(&ImageRef { listing, ..image.clone() }, &at_rest).unwrap().unwrap();
        assert_eq!(mended, Mended { damaged: vec![PathBuf::from("7/7")], mended: true });
        assert!(fs::read(tree.join("7/7")).unwrap() == good);
    };
    // The archive on the disk is no better than the image.
    fs::create_dir(folder.path().join("incoming")).unwrap();
    fs::write(folder.path().join("incoming").join(image.content.sha256.to_string()), "damaged").unwrap();
    let listing = image.listing.unwrap();
    let ((), came) = line.count(|| mend(Some(listing)));
    assert!(came < listing.size + OVERHEAD, "{came}");
    for listing in [Some(ArtifactRef { sha256: Digest([1; 32]), size: 9 }), None] {
        let ((), came) = line.count(|| mend(listing));
        assert!(came > image.content.size, "{came}");
    }
}
