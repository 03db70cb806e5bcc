//! Mirrors that lie, mirrors that help, downloads that go on after a power cut, and machines that are too small.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Bench, EARLY, INSTALLED};
use crate::lab::{Lab, NodeOptions};

/// A byte that the lying mirror has wrong, in every artifact that is so long: inside the kernel and the image, not in the
/// manifest or an index.
const LIE: u64 = 1_234_567;
/// The slow mirror's bytes a second: slow enough to cut the power in the middle.
const SLOW: u64 = 4 << 20;

/// A mirror that nobody listens at, one that lies, and one that is good: the first two are passed over, and the good one, not
/// central, gives nearly everything.
pub(super) fn mirrors(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let folder = lab.central.data().join("artifacts");
    let dead = format!("http://10.0.2.2:{}", orrery_qemu::free_port().context("finding a free port")?);
    let lying = Mirror::start(&folder, Manner::Lying)?;
    let good = Mirror::start(&folder, Manner::Good)?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let release = lab.release();
    publish(&lab, 2, &release, &["--mirror", &dead, "--mirror", &lying.url, "--mirror", &good.url])?;
    let mut vm = node.spec.start()?;
    vm.expect(["passing over ", dead.as_str()], INSTALLED)?;
    vm.expect([format!(" from {} are not what the release names", lying.url).as_str(), "passing over"], INSTALLED)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    let (lied, gave) = (lying.sent(), good.sent());
    let all: u64 = fs::read_dir(&folder)?.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
    ensure!(lied < 8 << 20, "the lying mirror was still asked after {lied} bytes");
    ensure!(lied + gave > all * 9 / 10, "the mirrors gave {} of {all} bytes", lied + gave);
    node.wait_for(EARLY, "a note about the lying mirror at central", || {
        let noted = |e: &serde_json::Value| e["message"].as_str().is_some_and(|m| m.contains(&lying.url));
        Ok(lab.events("n1")?.iter().any(noted))
    })
}

/// Every mirror lies: central is the last resort, and enough.
pub(super) fn lying_mirror(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let lying = Mirror::start(&lab.central.data().join("artifacts"), Manner::Lying)?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    publish(&lab, 2, &lab.release(), &["--mirror", &lying.url])?;
    let mut vm = node.spec.start()?;
    vm.expect([format!("passing over {}", lying.url).as_str()], INSTALLED)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// Power is lost in the middle of the image, twice: the installation goes on with what was on the disk.
pub(super) fn resumed(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let slow = Mirror::start(&lab.central.data().join("artifacts"), Manner::Slow(SLOW))?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    publish(&lab, 2, &lab.release(), &["--mirror", &slow.url])?;
    let mut vm = node.spec.start()?;
    vm.expect("plan: ", INSTALLED)?;
    for part in [12 << 20, 22 << 20] {
        node.wait_for(INSTALLED, "progress of the download", || Ok(slow.sent() > part))?;
        vm.power_cut();
        vm.start_again()?;
        vm.expect("going on with the installation of release", INSTALLED)?;
    }
    let found = vm.expect(["debian: ", " MiB fetched, the rest was here"], INSTALLED)?;
    let (fetched, all) = fetched(&found.line).with_context(|| format!("reading {:?}", found.line))?;
    // What was given to the disk is there, but for the last few megabytes before each cut.
    ensure!(fetched < all * 0.6, "{fetched} MiB of {all} were fetched after two power cuts");
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// A release that demands more memory than there is: refused before the disk is touched, and installed once that is waived.
pub(super) fn minimum_hardware(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let folder = lab.folder.join("demanding");
    let images = lab.images.clone();
    lab.orrery(
        ["release", "assemble", "--min-memory", "4096", "--images"],
        [images.as_path(), Path::new("--out"), &folder],
    )?;
    lab.orrery(["release", "sign", "--key"], [lab.release_key(), folder.join("manifest.json")])?;
    let release = folder.join("manifest.signed");
    lab.orrery(["release", "publish"], [&release])?;
    publish(&lab, 2, &release, &[])?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage install FAILED", "hardware", "needed: 4096 MiB", "minimum-hardware"], INSTALLED)?;
    vm.power_cut();
    let mut start = vec![0; 4 << 20];
    File::open(&node.disk).and_then(|mut disk| disk.read_exact(&mut start)).context("reading the disk")?;
    ensure!(start.iter().all(|byte| *byte == 0), "the disk was touched");
    publish(&lab, 3, &release, &["--waive", "minimum-hardware"])?;
    vm.start_again()?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// Publishes an `install` script for every node.
pub(super) fn publish(lab: &Lab, serial: u64, release: &Path, more: &[&str]) -> Result<()> {
    let unsigned = lab.folder.join(format!("install-{serial}.json"));
    let serial = serial.to_string();
    let mut arguments = vec!["script", "new", "--kind", "install", "--node", "*", "--serial", &serial];
    arguments.extend(more);
    arguments.push("--release");
    lab.orrery(arguments, [release, Path::new("--out"), &unsigned])?;
    lab.orrery(["script", "sign", "--key"], [&lab.release_key(), &unsigned])?;
    lab.orrery(["script", "publish"], [unsigned.with_extension("signed")]).map(drop)
}

/// The figures in `debian: 0.3 of 23.4 MiB fetched, the rest was here`.
fn fetched(line: &str) -> Option<(f64, f64)> {
    let figures = line.split_once("debian: ")?.1.split_once(" MiB fetched")?.0;
    let (fetched, all) = figures.split_once(" of ")?;
    Some((fetched.parse().ok()?, all.parse().ok()?))
}

/// How a mirror treats those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    Lying,
    /// With so many bytes a second.
    Slow(u64),
}

/// A web server on loopback with the artifacts of a folder. It ends with this program.
pub(super) struct Mirror {
    /// As a guest reaches it.
    pub(super) url: String,
    sent: Arc<AtomicU64>,
}

impl Mirror {
    /// Opens a port for it.
    pub(super) fn start(folder: &Path, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a port for a mirror")?;
        let port = listener.local_addr().context("asking for the port")?.port();
        let sent = Arc::new(AtomicU64::new(0));
        let (folder, count) = (folder.to_owned(), Arc::clone(&sent));
        thread::spawn(move || {
            for peer in listener.incoming().flatten() {
                let (folder, count) = (folder.clone(), Arc::clone(&count));
                // A peer that goes away in the middle is no news.
                thread::spawn(move || {
                    // One for the whole connection: requests may come before the answers to those before them.
                    let mut requests = BufReader::new(&peer);
                    while answer(&mut requests, &folder, manner, &count).is_ok() {}
                });
            }
        });
        Ok(Self { url: format!("http://10.0.2.2:{port}"), sent })
    }

    /// Bytes of content given so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn answer(requests: &mut BufReader<&TcpStream>, folder: &Path, manner: Manner, sent: &AtomicU64) -> io::Result<()> {
    let (name, range) = request(requests)?;
    let mut peer = *requests.get_ref();
    let path: PathBuf = folder.join(name);
    let Ok(mut file) = File::open(&path) else {
        return peer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let size = file.metadata()?.len();
    let (start, end) = range.map_or((0, size), |(start, last)| (start, last.map_or(size, |last| last + 1).min(size)));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let length = end.saturating_sub(start);
    write!(
        peer,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Range: bytes {start}-{}/{size}\r\n\r\n",
        end - 1
    )?;
    file.seek(SeekFrom::Start(start))?;
    let mut at = start;
    let mut buffer = vec![0; 64 << 10];
    while at < end {
        let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = file.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if manner == Manner::Lying && (at..at + got as u64).contains(&LIE) {
            buffer[usize::try_from(LIE - at).unwrap_or(0)] ^= 1;
        }
        if let Manner::Slow(speed) = manner {
            // The line's speed is what this mirror is about.
            thread::sleep(Duration::from_micros(got as u64 * 1_000_000 / speed));
        }
        peer.write_all(&buffer[..got])?;
        at += got as u64;
        sent.fetch_add(got as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// First and last byte; without the latter, up to the end.
type Asked = (u64, Option<u64>);

/// The name and the range that a request asks for.
fn request(requests: &mut BufReader<&TcpStream>) -> io::Result<(String, Option<Asked>)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut lines = requests.lines();
    let first = lines.next().ok_or_else(bad)??;
    let name = first.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).ok_or_else(bad)?.to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            return Ok((name, range));
        }
        if let Some((start, end)) = line.strip_prefix("range: bytes=").and_then(|text| text.split_once('-')) {
            range = Some((start.parse().map_err(|_| bad())?, end.parse().ok()));
        }
    }
    Err(bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        assert_eq!(fetched("debian: 0.3 of 23.4 MiB fetched, the rest was here"), Some((0.3, 23.4)));
        assert_eq!(fetched("debian: 23.4 MiB in 1.0 s (23 MiB/s)"), None);
    }

    #[test]
    fn a_lying_mirror_lies_at_one_place() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x"), vec![7; 2_000_000]).unwrap();
        let mirror = Mirror::start(folder.path(), Manner::Lying).unwrap();
        let address = mirror.url.replace("http://10.0.2.2", "127.0.0.1");
        let mut peer = TcpStream::connect(address).unwrap();
        write!(peer, "GET /x HTTP/1.1\r\nHost: m\r\nRange: bytes=1234560-1234569\r\n\r\n").unwrap();
        let mut lines = BufReader::new(&peer);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        let mut body = [0; 10];
        lines.read_exact(&mut body).unwrap();
        assert_eq!(body, [7, 7, 7, 7, 7, 7, 7, 6, 7, 7]);
    }
}
