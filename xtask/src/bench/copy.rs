//! The install's peer: the same bytes downloaded to a file on the same kind of disk, in the same kind of machine.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Processors;

use crate::lab::{Lab, NodeOptions};

const SAFE_MODE: Duration = Duration::from_secs(120);
const COPY: Duration = Duration::from_secs(300);
/// What a request may say before it is given up.
const REQUEST_LINES: usize = 64;
/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Downloads `files` as one, by busybox `wget` in a machine in safe mode, to a fresh ext4 on its disk, and syncs.
///
/// The guest's own clock is read before the download and after the sync; making the file system is not part of it.
/// Returns the seconds.
pub(super) fn plain_copy(lab: &Lab, id: &str, files: &[PathBuf], bytes: u64) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a port for the plain copy")?;
    let port = listener.local_addr().context("asking for the port")?.port();
    let files = files.to_vec();
    let server = thread::spawn(move || serve_once(&listener, &files, bytes));

    let node = lab.add_node(id, NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", id], [] as [&str; 0])?;
    let mut vm = node.spec.clone().processors(Processors::AtOnce).start()?;
    vm.expect(["stage safe ok"], SAFE_MODE)?;
    let command = format!(
        "set -e; export PATH=/bin:/sbin:/usr/bin:/usr/sbin; mke2fs -q -t ext4 -F /dev/vda; mount -t ext4 /dev/vda /mnt; \
         sync; read before idle < /proc/uptime; wget -q -O /mnt/all http://10.0.2.2:{port}/all; sync; \
         read after idle < /proc/uptime; echo $before $after $(stat -c %s /mnt/all)"
    );
    let output = node.ssh("root").run(&command, COPY).context("running the ssh client")?;
    ensure!(output.success(), "the plain copy failed: {output}");
    let (seconds, copied) = parse(&output.stdout).with_context(|| format!("reading {:?}", output.stdout))?;
    ensure!(copied == bytes, "the plain copy has {copied} bytes of {bytes}");
    drop(vm);
    server.join().ok().context("the server of the plain copy panicked")?.context("serving the plain copy")?;
    std::fs::remove_file(&node.disk).context("removing a disk")?;
    Ok(seconds)
}

/// `<uptime before> <uptime after> <bytes>` as seconds between and bytes.
fn parse(text: &str) -> Option<(f64, u64)> {
    let mut words = text.split_ascii_whitespace();
    let before: f64 = words.next()?.parse().ok()?;
    let after: f64 = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    (after > before && words.next().is_none()).then_some((after - before, bytes))
}

/// Answers one request, whatever it asks for, with `files` one after another.
fn serve_once(listener: &TcpListener, files: &[PathBuf], bytes: u64) -> io::Result<()> {
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(SILENCE))?;
    peer.set_write_timeout(Some(SILENCE))?;
    read_request(&peer)?;
    write!(peer, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    for file in files {
        io::copy(&mut File::open(file)?, &mut peer)?;
    }
    peer.shutdown(Shutdown::Write)
}

fn read_request(peer: &TcpStream) -> io::Result<()> {
    let reader = BufReader::new(io::Read::take(peer, 16 << 10));
    for line in reader.lines().take(REQUEST_LINES) {
        if line?.is_empty() {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the request does not end"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_the_guest_says_is_read_and_nothing_else() {
        let check = |text: &str, expect: Option<(f64, u64)>| assert_eq!(parse(text), expect, "{text:?}");
        check("10.50 12.75 36592072\n", Some((2.25, 36_592_072)));
        check("12.75 10.50 36592072\n", None);
        check("10.50 12.75\n", None);
        check("10.50 12.75 1 more\n", None);
        check("", None);
    }

    #[test]
    fn files_are_served_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        for file in &files {
            std::fs::write(file, file.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /all HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        serve_once(&listener, &files, 2).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab");
    }
}
