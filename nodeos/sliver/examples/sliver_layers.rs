//! Tries snapshots, clones, exports and imports of slivers on a real kernel: the first process of a virtual machine like that of
//! `sliver_vm`, which see for what it needs.

#[path = "support/step.rs"]
mod step;
mod support;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_image_store::{
    Metadata, Store,
    archive::write::{What, end, head, pad},
};
use orrery_protocol::{Digest, LayerTask, Rspec, SnapshotName};
use orrery_sliver::{EnterRequest, Entered, Run, SliverPaths, Slivers, SnapshotError, Stream, internal_main};
use step::step;
use support::{fingerprint, prepare, spec};

const PATIENCE: Duration = Duration::from_secs(300);
/// A layer with one of everything.
const FURNISH: &str = r#"set -e
mkdir -p /srv/t/d/e; cd /srv/t
echo hello > f; ln f d/g; ln -s ../f d/l; mkfifo -m 640 p; printf odd > 'new
line'; : > empty; echo cap > cap; echo acl > acl
truncate -s 64M sparse; printf x | dd of=sparse bs=1 seek=5M conv=notrunc 2> /dev/null
perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "s", Listen => 1) or die $!'
perl -e '
sub set { my ($p, $n, $v) = ("/srv/t/$_[0]", $_[1], $_[2]); syscall(188, $p, $n, $v, length $v, 0) == 0 or die "$n: $!" }
set("f", "user.a", "v\n\0w"); set("d", "user.d", "x");
set("cap", "security.capability", pack("V5", 0x02000001, 0x2000, 0, 0, 0));
set("acl", "system.posix_acl_access",
    pack("V", 2) . join "", map { pack "vvV", @$_ } [1,6,-1], [2,4,1000], [4,4,-1], [16,6,-1], [32,4,-1]);'
chown 1000:1001 d f; chmod 4755 f; chmod 1777 d/e; touch -d '2001-02-03 04:05:06.789' d/e d/l -h
rm /etc/issue; mv /usr/share/doc /usr/share/doc2
rm -rf /usr/share/common-licenses; mkdir /usr/share/common-licenses; touch /usr/share/common-licenses/mine
"#;
/// What of it must be the same in a copy.
const LOOK: &str = r#"cd /srv/t || exit 9
find . ! -type s -printf '%P %y %m %U %G %s %T@ %n %l\n' | sort
find . -type f -print0 | sort -z | xargs -0 md5sum
stat -c 'blocks %b' sparse
perl -e 'for (["f", "user.a"], ["d", "user.d"], ["cap", "security.capability"], ["acl", "system.posix_acl_access"]) {
    my $value = "\0" x 256; my $got = syscall(191, "/srv/t/$$_[0]", $$_[1], $value, 256);
    print "$$_[1] ", unpack("H*", substr $value, 0, $got), "\n" }'
ls /etc/issue /usr/share/doc 2>&1; ls /usr/share/doc2 | md5sum; ls -A /usr/share/common-licenses
"#;

fn main() -> ExitCode {
    if let Some(code) = internal_main(std::env::args_os()) {
        return code;
    }
    support::finish(run())
}

/// Runs a command line in a sliver; what it wrote, if it ended well.
fn inside(slivers: &Slivers, login: &str, line: &str) -> Result<String> {
    let stdio = [Stream::Null, Stream::Piped, Stream::Piped];
    let run = Run::Command(format!("exec 2>&1; {line}").into());
    let request = EnterRequest { run, environment: Vec::new(), directory: None, user: None, pty: None, stdio };
    let Entered { session, .. } = slivers.enter(login, request)?;
    let output = session.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "`{line}` in {login}: {}, wrote {text:?}", output.status);
    Ok(text)
}

fn look(slivers: &Slivers, login: &str) -> Result<String> {
    inside(slivers, login, LOOK)
}

fn name(text: &str) -> SnapshotName {
    text.parse().expect("a name of this test")
}

/// Says where two looks differ.
fn same(what: &str, got: &str, expect: &str) -> Result<()> {
    let lines = got.lines().zip(expect.lines());
    lines.clone().filter(|(got, expect)| got != expect).for_each(|(got, expect)| println!("    {got}\n  = {expect}"));
    ensure!(got == expect, "{what} is not what it should be");
    Ok(())
}

/// That nothing begun is left of a sliver's layers, and what it has on disk.
fn tidy(slivers: &Slivers, login: &str) -> Result<u64> {
    for directory in [format!("/data/slivers/{login}"), format!("/data/slivers/{login}/snapshots")] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            ensure!(!name.to_string_lossy().starts_with('.'), "{directory} has a leftover {name:?}");
        }
    }
    let events = fs::read_to_string(format!("/sys/fs/cgroup/slivers/{login}/cgroup.events")).unwrap_or_default();
    ensure!(!events.contains("frozen 1"), "{login} was left frozen");
    Ok(slivers.disk_usage(login)?.bytes)
}

fn run() -> Result<()> {
    step("prepare", prepare)?;
    let store = Store::open(Path::new("/data"))?;
    let image = step("import the image", || import(&store))?;
    let tree = store.tree(&image).context("the image has no tree")?;
    let (before, image) = (fingerprint(&tree)?, image.to_string());
    let slivers = Slivers::open(SliverPaths::default())?;
    let small = Rspec { disk_quota: 24 << 20, ..Rspec::default() };
    for slice in ["test/one", "test/two"] {
        slivers.create(&spec(slice, small)?, &image)?;
    }
    let look_one = step("furnish", || {
        inside(&slivers, "test_one", FURNISH)?;
        let seen = look(&slivers, "test_one")?;
        seen.lines().for_each(|line| println!("    {line}"));
        Ok(seen)
    })?;

    step("a snapshot is restored", || {
        let taken = slivers.work("test_one", PATIENCE)?.take(&name("first"))?;
        println!("    {taken:?}");
        ensure!(slivers.is_running("test_one"), "it does not run any more");
        let change = "rm -rf /srv/t /usr/share/doc2; echo other > /etc/issue; touch /new";
        inside(&slivers, "test_one", change)?;
        slivers.work("test_one", PATIENCE)?.restore(&name("first"))?;
        ensure!(!slivers.is_running("test_one"), "it runs on with the old layer");
        same("the restored sliver", &look(&slivers, "test_one")?, &look_one)?;
        ensure!(inside(&slivers, "test_one", "ls /new").is_err(), "a file of later is still there");
        tidy(&slivers, "test_one").map(drop)
    })?;
    step("files written in place do not change a snapshot", || {
        inside(&slivers, "test_one", "printf changed | dd of=/srv/t/f conv=notrunc 2> /dev/null")?;
        slivers.work("test_one", PATIENCE)?.restore(&name("first"))?;
        same("the restored sliver", &look(&slivers, "test_one")?, &look_one)
    })?;
    step("what runs stands still", || stands_still(&slivers))?;
    step("a snapshot takes no more than the sliver has", || quota(&slivers))?;
    step("names", || {
        let work = slivers.work("test_one", PATIENCE)?;
        ensure!(matches!(work.take(&name("first")), Err(SnapshotError::Exists(_))), "a snapshot was replaced");
        ensure!(matches!(work.restore(&name("no")), Err(SnapshotError::Missing(_))), "none was restored");
        ensure!(matches!(work.delete(&name("no")), Err(SnapshotError::Missing(_))), "none was deleted");
        let busy = slivers.work("test_one", PATIENCE);
        ensure!(matches!(busy, Err(SnapshotError::Busy(_))), "two work on one sliver");
        drop(work);
        let work = slivers.work("test_two", PATIENCE)?;
        (0..16).try_for_each(|number| work.take(&name(&format!("s{number}"))).map(drop))?;
        ensure!(matches!(work.take(&name("more")), Err(SnapshotError::Full(16))), "a 17th was taken");
        ensure!(slivers.snapshots("test_two")?.len() == 16, "they are not listed");
        (0..16).try_for_each(|number| work.delete(&name(&format!("s{number}"))))?;
        ensure!(slivers.snapshots("test_two")?.is_empty(), "some are left");
        Ok(())
    })?;

    step("a clone is another sliver's", || {
        let (one, two) = (slivers.work("test_one", PATIENCE)?, slivers.work("test_two", PATIENCE)?);
        one.clone_into(&name("first"), &two)?;
        drop((one, two));
        same("the clone", &look(&slivers, "test_two")?, &look_one)?;
        owners(&slivers, "test_two")?;
        tidy(&slivers, "test_two").map(drop)
    })?;
    let export = step("an export is imported", || {
        let mut stream = Vec::new();
        let size = slivers.work("test_one", PATIENCE)?.export(Some(&name("first")), &mut stream)?;
        println!("    {size:?} in {} bytes", stream.len());
        ensure!(stream.len() < 1 << 20, "holes are not left out");
        slivers.reset(&again(&slivers, "test_two")?, &image)?;
        ensure!(look(&slivers, "test_two").is_err(), "a reset that is none");
        let (from, got) = slivers.work("test_two", PATIENCE)?.import(stream.as_slice())?;
        println!("    {from:?} {got:?}");
        ensure!(from.slice.to_string() == "test/one" && from.image == image, "it says another origin");
        same("the import", &look(&slivers, "test_two")?, &look_one)?;
        owners(&slivers, "test_two")?;
        Ok(stream)
    })?;
    step("an export of the sliver as it is", || {
        let mut stream = Vec::new();
        slivers.work("test_one", PATIENCE)?.export(None, &mut stream)?;
        inside(&slivers, "test_two", "rm -rf /srv/t")?;
        slivers.work("test_two", PATIENCE)?.import(stream.as_slice())?;
        same("the import", &look(&slivers, "test_two")?, &look_one)?;
        tidy(&slivers, "test_one").map(drop)
    })?;
    step("a cut or changed stream changes nothing", || damaged(&slivers, &export))?;
    step("a hostile stream changes nothing", || hostile(&slivers, &image))?;
    step("workers do all of it", || workers(&slivers))?;
    step("a worker that is killed leaves nothing", || killed(&slivers))?;
    step("the image is unchanged", || {
        ensure!(fingerprint(&tree)? == before, "the tree changed");
        Ok(())
    })?;
    step("a reset ends a worker", || {
        let worker = exporting(&slivers, "test_one")?;
        slivers.reset(&again(&slivers, "test_one")?, &image)?;
        ensure!(slivers.snapshots("test_one")?.is_empty(), "snapshots outlived what they were of");
        ended(worker)?;
        tidy(&slivers, "test_one").map(drop)
    })?;
    let worker = step("work on a sliver that is to go", || exporting(&slivers, "test_two"))?;
    step("destruction ends a worker", || {
        slivers.destroy("test_two")?;
        ended(worker)?;
        ensure!(!Path::new("/data/slivers/test_two").exists(), "files are left");
        Ok(slivers.work_ended("test_two")?)
    })?;
    step("destruction takes snapshots with it", || {
        slivers.work("test_one", PATIENCE)?.take(&name("last"))?;
        slivers.destroy("test_one")?;
        let left: Vec<_> = fs::read_dir("/data/slivers")?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(())
    })
}

fn import(store: &Store) -> Result<Digest> {
    let image =
        fs::read_to_string("/data/incoming/debian.sha256")?.trim().parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    store.import(File::open("/data/incoming/debian.tar.zst")?, &image, 1 << 30)?;
    Ok(image)
}

/// The description of a sliver that asks for one more reset.
fn again(slivers: &Slivers, login: &str) -> Result<orrery_protocol::SliverSpec> {
    let mut spec = slivers.get(login)?.spec;
    spec.life.reset += 1;
    Ok(spec)
}

/// Nothing in a sliver's layer belongs to anybody else, and its capabilities are good for its own root.
fn owners(slivers: &Slivers, login: &str) -> Result<()> {
    let base = slivers.get(login)?.id_base();
    let upper = format!("/data/slivers/{login}/upper");
    let mut pending = vec![upper.clone().into()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir::<std::path::PathBuf>(directory)? {
            let path = entry?.path();
            let found = fs::symlink_metadata(&path)?;
            let whiteout = found.rdev() == 0 && found.mode() & 0o170_000 == 0o020_000;
            let own = (base..base + 65_536).contains(&found.uid()) && (base..base + 65_536).contains(&found.gid());
            ensure!(own || whiteout, "{} belongs to {}:{}", path.display(), found.uid(), found.gid());
            if found.is_dir() {
                pending.push(path);
            }
        }
    }
    let mut value = [0; 64];
    let cap = format!("{upper}/srv/t/cap");
    let length = rustix::fs::getxattr(cap.as_str(), "security.capability", &mut value)?;
    ensure!(value[20..length] == base.to_le_bytes(), "capabilities of {:?}", &value[..length]);
    Ok(())
}

/// A program counts in two files in turn, and a snapshot never has the second ahead of the first.
fn stands_still(slivers: &Slivers) -> Result<()> {
    let count = r#"setsid perl -e '
        open(my $one, "+>", "/one"); open(my $two, "+>", "/two");
        for (my $n = 1;; $n++) { for ($one, $two) { sysseek $_, 0, 0; syswrite $_, sprintf "%08d", $n; } }
        ' > /dev/null 2>&1 < /dev/null & while ! test -s /two; do :; done"#;
    inside(slivers, "test_one", count)?;
    let read = |path: String| -> Result<u64> { Ok(fs::read_to_string(&path).with_context(|| path)?.parse()?) };
    let mut before = 0;
    for number in 0..5 {
        let taken = slivers.work("test_one", PATIENCE)?.take(&name(&format!("count{number}")))?;
        let upper = format!("/data/slivers/test_one/snapshots/{}/upper", taken.name);
        let (one, two) = (read(format!("{upper}/one"))?, read(format!("{upper}/two"))?);
        println!("    {one} {two}");
        ensure!(one == two || one == two + 1, "it did not stand still");
        let start = Instant::now();
        while read("/data/slivers/test_one/upper/one".into())? <= one {
            ensure!(start.elapsed() < Duration::from_secs(10), "it does not go on");
        }
        ensure!(one > before, "it did not go on");
        before = one;
        slivers.work("test_one", PATIENCE)?.delete(&taken.name)?;
    }
    slivers.stop("test_one")?;
    inside(slivers, "test_one", "rm /one /two").map(drop)
}

fn quota(slivers: &Slivers) -> Result<()> {
    inside(slivers, "test_two", "head -c 13M /dev/urandom > /big; sync")?;
    let before = tidy(slivers, "test_two")?;
    let refused = slivers.work("test_two", PATIENCE)?.take(&name("large"));
    ensure!(matches!(refused, Err(SnapshotError::NoSpace { .. })), "{refused:?}");
    ensure!(slivers.is_running("test_two"), "it does not run any more");
    let start = Instant::now();
    // What was freed is accounted for when the kernel gets to it; the directory of snapshots is there to stay.
    while tidy(slivers, "test_two")? > before + 4096 {
        ensure!(start.elapsed() < Duration::from_secs(10), "space was lost");
    }
    let half = |quota| slivers.apply_limits("test_two", Rspec { disk_quota: quota, ..Rspec::default() });
    half(32 << 20)?;
    slivers.work("test_two", PATIENCE)?.take(&name("large"))?;
    let refused = slivers.work("test_two", PATIENCE)?.restore(&name("large"));
    ensure!(matches!(refused, Err(SnapshotError::NoSpace { .. })), "{refused:?}");
    inside(slivers, "test_two", "rm /big; sync")?;
    slivers.work("test_two", PATIENCE)?.restore(&name("large"))?;
    ensure!(inside(slivers, "test_two", "stat -c %s /big; rm /big; sync")? == "13631488\n", "another size");
    slivers.work("test_two", PATIENCE)?.delete(&name("large"))?;
    Ok(half(24 << 20)?)
}

/// Imports that fail, without anything being changed or left.
fn refuses(slivers: &Slivers, what: &str, stream: &[u8]) -> Result<()> {
    let (before, ran) = (fs::metadata("/data/slivers/test_two/upper")?.ino(), slivers.is_running("test_two"));
    match slivers.work("test_two", PATIENCE)?.import(stream) {
        Ok(_) => bail!("{what} was taken"),
        Err(error) => println!("    {what}: {:#}", anyhow::Error::new(error)),
    }
    let after = fs::metadata("/data/slivers/test_two/upper")?.ino();
    ensure!(before == after && ran == slivers.is_running("test_two"), "{what} changed the sliver");
    tidy(slivers, "test_two").map(drop)
}

fn damaged(slivers: &Slivers, export: &[u8]) -> Result<()> {
    for part in 0..12 {
        refuses(slivers, "a cut stream", &export[..export.len() * part / 12])?;
    }
    refuses(slivers, "one without its last byte", &export[..export.len() - 1])?;
    for part in 1..6 {
        let mut changed = export.to_vec();
        changed[export.len() * part / 6] ^= 0x10;
        refuses(slivers, "a changed stream", &changed)?;
    }
    Ok(())
}

/// An archive as an attacker would make it.
struct Forged(Vec<u8>);

impl Forged {
    /// It begins as it must.
    fn new(image: &str) -> Result<Self> {
        let mut forged = Self(Vec::new());
        forged.manifest(image, 1)?;
        forged.put(b"layer/", What::Directory)?;
        Ok(forged)
    }

    fn manifest(&mut self, image: &str, format: u32) -> Result<()> {
        let text = format!(r#"{{"format":{format},"image":"{image}","slice":"a/b","snapshot":null,"created":1}}"#);
        self.put(b"orrery-sliver.json", What::File { size: text.len() as u64 })?;
        self.0.extend(text.as_bytes());
        Ok(pad(&mut self.0, text.len() as u64)?)
    }

    fn put(&mut self, name: &[u8], what: What<'_>) -> Result<()> {
        self.with(name, what, Metadata { mode: 0o755, ..Metadata::default() })
    }

    fn with(&mut self, name: &[u8], what: What<'_>, metadata: Metadata) -> Result<()> {
        Ok(head(&mut self.0, name, &metadata, what)?)
    }

    fn stream(mut self) -> Result<Vec<u8>> {
        end(&mut self.0)?;
        Ok(zstd::encode_all(self.0.as_slice(), 1)?)
    }
}

fn hostile(slivers: &Slivers, image: &str) -> Result<()> {
    let check = |what: &str, forge: &dyn Fn(&mut Forged) -> Result<()>| {
        let mut forged = Forged::new(image)?;
        forge(&mut forged)?;
        refuses(slivers, what, &forged.stream()?)
    };
    let empty = What::File { size: 0 };
    let with = |name: &str, value: &[u8]| Metadata {
        mode: 0o755,
        attributes: vec![(name.as_bytes().to_vec(), value.to_vec())],
        ..Metadata::default()
    };
    check("a path upwards", &|f| f.put(b"layer/../../x", empty))?;
    check("an absolute path", &|f| f.put(b"/etc/x", empty))?;
    check("a path outside of the layer", &|f| f.put(b"upper/x", empty))?;
    check("a path through a link", &|f| {
        f.put(b"layer/link", What::Symlink(b"/data"))?;
        f.put(b"layer/link/x", empty)
    })?;
    check("a name twice", &|f| {
        f.put(b"layer/x", What::Symlink(b"/data/x"))?;
        f.put(b"layer/x", empty)
    })?;
    check("a directory over a link", &|f| {
        f.put(b"layer/x", What::Symlink(b"/data"))?;
        f.put(b"layer/x/", What::Directory)
    })?;
    check("a link to outside", &|f| f.put(b"layer/x", What::HardLink(b"layer/../../../sliver.json")))?;
    check("a link to nothing", &|f| f.put(b"layer/x", What::HardLink(b"layer/y")))?;
    check("a link to a directory", &|f| f.put(b"layer/x", What::HardLink(b"layer/")))?;
    check("a foreign owner", &|f| f.with(b"layer/x", empty, Metadata { owner: 65_536, ..Metadata::default() }))?;
    check("a foreign group", &|f| f.with(b"layer/x", empty, Metadata { group: u32::MAX, ..Metadata::default() }))?;
    check("a redirect upwards", &|f| {
        f.with(b"layer/x/", What::Directory, with("trusted.overlay.redirect", b"/../../data"))
    })?;
    check("a redirected file", &|f| f.with(b"layer/x", empty, with("trusted.overlay.redirect", b"/etc/shadow")))?;
    check("metadata without content", &|f| f.with(b"layer/x", empty, with("trusted.overlay.metacopy", b"")))?;
    check("an origin", &|f| f.with(b"layer/x", empty, with("trusted.overlay.origin", &[0; 30])))?;
    check("an attribute of the node's", &|f| f.with(b"layer/x", empty, with("trusted.x", b"")))?;
    check("capabilities of another root", &|f| {
        let mut value = vec![1, 0, 0, 3];
        value.extend([0; 20]);
        f.with(b"layer/x", empty, with("security.capability", &value))
    })?;
    check("a file as the top", &|f| f.put(b"layer/", empty))?;
    check("the top again", &|f| f.put(b"layer/", What::Directory))?;
    check("another manifest", &|f| f.manifest(image, 1))?;
    check("a file before its directory", &|f| f.put(b"layer/a/b", empty))?;
    check("a deep path", &|f| {
        let mut path = b"layer/".to_vec();
        (0..200).try_for_each(|_| {
            path.extend(b"d/");
            f.put(&path, What::Directory)
        })
    })?;
    check("more than its quota", &|f| {
        let size = 40 << 20;
        f.put(b"layer/x", What::File { size })?;
        io::copy(&mut io::repeat(7).take(size), &mut f.0)?;
        Ok(())
    })?;
    check("more files than its quota", &|f| {
        (0..3000).try_for_each(|number| f.put(format!("layer/{number}").as_bytes(), empty))
    })?;
    check("a huge file of nothing", &|f| f.put(b"layer/x", What::Sparse { size: 1 << 50, parts: &[] }))?;

    // A device node, which the writer cannot make.
    let mut forged = Forged::new(image)?;
    let mut header = tar_header(b"layer/sda", b'4', 8);
    forged.0.append(&mut header);
    refuses(slivers, "a device node", &forged.stream()?)?;
    let mut forged = Forged(Vec::new());
    forged.manifest(image, 2)?;
    refuses(slivers, "another format", &forged.stream()?)?;
    refuses(slivers, "another image", &Forged::new(&"0".repeat(64))?.stream()?)?;
    let mut forged = Forged(Vec::new());
    forged.put(b"layer/", What::Directory)?;
    refuses(slivers, "no manifest", &forged.stream()?)?;
    refuses(slivers, "nothing", b"")?;
    refuses(slivers, "an archive that is not compressed", &Forged::new(image)?.0)?;
    // What is none of that is taken, a set-id program with it.
    let mut good = Forged::new(image)?;
    good.with(b"layer/x", empty, Metadata { mode: 0o6755, owner: 7, ..Metadata::default() })?;
    slivers.work("test_two", PATIENCE)?.import(good.stream()?.as_slice())?;
    ensure!(inside(slivers, "test_two", "stat -c '%a %u' /x")? == "6755 7\n", "another file");
    Ok(())
}

/// A ustar header of an empty entry of this type, with a device's major number.
fn tar_header(name: &[u8], kind: u8, major: u32) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut field = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    field(0, name);
    [(100, "0000644"), (108, "0000000"), (116, "0000000"), (124, "00000000000"), (136, "00000000000")]
        .iter()
        .for_each(|(at, text)| field(*at, text.as_bytes()));
    field(156, &[kind]);
    field(257, b"ustar\x0000");
    field(329, format!("{major:07o}").as_bytes());
    field(148, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// Gives a task to a worker; what it wrote.
fn task(slivers: &Slivers, login: &str, task: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut worker = slivers.begin_work(login, task.parse::<LayerTask>().map_err(|e| anyhow::anyhow!("{e}"))?)?;
    let mut stdin = worker.stdin.take().context("no input")?;
    let output = thread::scope(|scope| {
        // One that fails does not read to the end.
        scope.spawn(move || stdin.write_all(input));
        worker.wait_with_output()
    })?;
    slivers.work_ended(login)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{task}: {}, {said}", output.status);
    Ok(output.stdout)
}

fn workers(slivers: &Slivers) -> Result<()> {
    let (one, two) = ("test_one", "test_two");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let before = look(slivers, one)?;
    println!("    {}", text(task(slivers, one, "orrery-snapshot create made", b"")?).trim_end());
    println!("    {}", text(task(slivers, one, "orrery-snapshot list", b"")?).trim_end());
    inside(slivers, one, "rm -rf /srv/t")?;
    task(slivers, one, "orrery-snapshot restore made", b"")?;
    same("the restored sliver", &look(slivers, one)?, &before)?;
    task(slivers, one, "orrery-snapshot clone made test_two", b"")?;
    same("the clone", &look(slivers, two)?, &before)?;
    inside(slivers, two, "rm -rf /srv/t")?;
    let export = task(slivers, one, "orrery-export made", b"")?;
    task(slivers, two, "orrery-import", &export)?;
    same("the import", &look(slivers, two)?, &before)?;
    let cut = task(slivers, two, "orrery-import", &export[..export.len() / 2]);
    println!("    {:#}", cut.err().context("a cut stream was taken")?);
    // Beyond the quota for a process that has the node's root's rights, too.
    inside(slivers, two, "head -c 13M /dev/urandom > /big; sync")?;
    let refused = task(slivers, two, "orrery-snapshot create large", b"").err().context("more than the quota")?;
    ensure!(refused.to_string().contains("quota"), "{refused}");
    inside(slivers, two, "rm /big")?;
    task(slivers, one, "orrery-snapshot delete made", b"")?;
    ensure!(text(task(slivers, two, "orrery-snapshot list", b"")?) == "[]\n", "snapshots of another sliver");
    let limit = fs::read_to_string("/sys/fs/cgroup/slivers/.work/memory.max")?;
    ensure!(limit.trim() == "134217728", "workers are not bounded: {limit}");
    Ok(())
}

/// A worker that writes an export, of more than pipes hold, to nobody: the sliver stands still until it ends.
fn exporting(slivers: &Slivers, login: &str) -> Result<Child> {
    inside(slivers, login, "head -c 2M /dev/urandom > /much")?;
    let mut worker = slivers.begin_work(login, LayerTask::Export(None))?;
    // Once something comes, it is at it.
    worker.stdout.as_mut().context("no output")?.read_exact(&mut [0])?;
    Ok(worker)
}

/// A worker's end by somebody else, long before it would have given up by itself.
fn ended(mut worker: Child) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = worker.try_wait()? {
            ensure!(!status.success(), "it ended well");
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "nothing ended it");
        thread::sleep(Duration::from_millis(20));
    }
}

fn killed(slivers: &Slivers) -> Result<()> {
    let login = "test_one";
    let mut worker = exporting(slivers, login)?;
    let frozen = || -> Result<bool> {
        Ok(fs::read_to_string(format!("/sys/fs/cgroup/slivers/{login}/cgroup.events"))?.contains("frozen 1"))
    };
    ensure!(frozen()?, "it moves while it is exported");
    ensure!(slivers.start(login).is_err(), "it starts while it is exported");
    let busy = slivers.begin_work(login, "orrery-snapshot create x".parse().map_err(|e| anyhow::anyhow!("{e}"))?)?;
    let said = String::from_utf8_lossy(&busy.wait_with_output()?.stderr).into_owned();
    ensure!(said.contains("under way"), "{said}");
    slivers.work_ended(login)?;
    ensure!(frozen()?, "another's end set it going");
    // Suspending and resuming are remembered, and done when it may go on.
    slivers.set_suspended(login, Some("a test"))?;
    slivers.set_suspended(login, None)?;
    ensure!(frozen()?, "it was set going by a resumption");
    // Who comes in waits.
    let waiting = AtomicBool::new(true);
    thread::scope(|scope| -> Result<()> {
        let coming = scope.spawn(|| {
            let said = inside(slivers, login, "echo in");
            waiting.store(false, Ordering::Relaxed);
            said
        });
        ensure!(frozen()? && waiting.load(Ordering::Relaxed), "it was set going by a login");
        worker.kill()?;
        worker.wait()?;
        slivers.work_ended(login)?;
        let said = coming.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(said == "in\n", "{said}");
        Ok(())
    })?;
    tidy(slivers, login)?;

    // The node manager is gone as well: whoever opens the slivers puts all in order.
    let worker = exporting(slivers, login)?;
    for path in ["/data/slivers/test_one/.staged/a/b", "/data/slivers/test_one/snapshots/.new/upper/a"] {
        fs::create_dir_all(path)?;
    }
    Slivers::open(SliverPaths::default())?;
    ended(worker)?;
    ensure!(!Path::new("/sys/fs/cgroup/slivers/.work").exists(), "the workers' control group is left");
    tidy(slivers, login)?;
    inside(slivers, login, "echo in")?;

    // A suspension in the middle lasts.
    let mut worker = exporting(slivers, login)?;
    slivers.set_suspended(login, Some("a test"))?;
    // Nobody reads any more.
    worker.stdout.take();
    ended(worker)?;
    slivers.work_ended(login)?;
    ensure!(frozen()?, "the end of an export ended a suspension");
    slivers.set_suspended(login, None)?;
    tidy(slivers, login).map(drop)
}
