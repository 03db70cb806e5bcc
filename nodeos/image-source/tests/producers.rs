//! Images made by the tools that people use, compared with what those tools unpack. Needs umoci and skopeo (`cargo xtask setup`).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use orrery_image_source::{Format, Image, Options, RUN_CONFIG, SourceError};
use orrery_image_store::{Metadata, Store};
use orrery_protocol::{Digest, RunConfig};
use tempfile::TempDir;

const LIMIT: u64 = 1 << 30;

fn run(folder: &Path, line: &str) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).current_dir(folder).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; run `cargo xtask setup`"));
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn umoci(folder: &Path, line: &str) {
    let (command, rest) = line.split_once(' ').unwrap();
    let rootless = matches!(command, "unpack") && !rustix::process::geteuid().is_root();
    run(folder, &format!("umoci {command}{} {rest}", if rootless { " --rootless" } else { "" }));
}

/// `layout:v1` has three layers: files of every kind, deletions and replacements, and an opaque directory.
fn layout(folder: &Path) {
    umoci(folder, "init --layout layout");
    umoci(folder, "new --image layout:v1");
    umoci(folder, "unpack --image layout:v1 bundle");
    let root = folder.join("bundle/rootfs");
    let write = |name: &str, content: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    };
    write("etc/kept", b"kept");
    write("etc/removed", b"removed");
    write("etc/replaced", b"one");
    write("gone/with/all", b"in it");
    write("turns/into/a", b"file");
    write("linked", b"many names");
    fs::hard_link(root.join("linked"), root.join("etc/linked")).unwrap();
    fs::hard_link(root.join("linked"), root.join("etc/linked-too")).unwrap();
    symlink("etc/kept", root.join("symlink")).unwrap();
    write(&format!("{}/{}", "d".repeat(120), "f".repeat(200)), b"long");
    write("bin/capable", b"program");
    let chmod = |name: &str, mode| {
        fs::set_permissions(root.join(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    chmod("bin/capable", 0o4755);
    chmod("etc/kept", 0o640);
    chmod("gone", 0o1777);
    let attribute = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    attribute("etc/kept", "user.note", b"two\nlines\0");
    attribute("etc", "user.folder", b"yes");
    if rustix::process::geteuid().is_root() {
        // CAP_NET_RAW, effective and permitted, in the format of `linux/capability.h`.
        attribute("bin/capable", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        rustix::fs::chown(root.join("etc/replaced"), Some(rustix::fs::Uid::from_raw(1000)), None).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    (&sparse).write_all(b"start").unwrap();
    umoci(folder, "repack --refresh-bundle --image layout:v1 bundle");

    fs::remove_file(root.join("etc/removed")).unwrap();
    fs::remove_file(root.join("etc/replaced")).unwrap();
    write("etc/replaced", b"two");
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("turns/into")).unwrap();
    write("turns/into", b"a file");
    fs::remove_file(root.join("etc/linked")).unwrap();
    fs::hard_link(root.join("linked"), root.join("link-of-the-second-layer")).unwrap();
    umoci(folder, "repack --refresh-bundle --image layout:v1 bundle");

    let opaque = folder.join("opaque");
    fs::create_dir_all(opaque.join("etc")).unwrap();
    fs::write(opaque.join("etc/only"), "this").unwrap();
    fs::write(opaque.join("etc/.wh..wh..opq"), "").unwrap();
    run(folder, "tar -C opaque -cf opaque.tar etc");
    umoci(folder, "raw add-layer --image layout:v1 opaque.tar");
    run(
        folder,
        "umoci config --image layout:v1 --config.entrypoint /bin/capable --config.env A=1 --config.workingdir /etc --config.user 1000",
    );
}

/// What is at each path: everything that can be compared, and the first path of the same file.
type Listing = BTreeMap<PathBuf, (u32, (u32, u32), (i64, i64), Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>, PathBuf)>;

fn listing(root: &Path) -> Listing {
    let mut all = Listing::new();
    let mut firsts = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let (attributes, content) = if stat.is_symlink() {
            (Vec::new(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
        } else {
            let attributes = Metadata::of(&File::open(&path).unwrap()).unwrap().metadata.attributes;
            (attributes, if stat.is_dir() { Vec::new() } else { fs::read(&path).unwrap() })
        };
        let first = if stat.is_dir() { &name } else { firsts.entry(stat.ino()).or_insert(name.clone()) }.clone();
        let times = (stat.mtime(), stat.mtime_nsec());
        all.insert(name, (stat.mode(), (stat.uid(), stat.gid()), times, attributes, content, first));
    }
    all
}

fn read(source: &Path, tag: Option<&str>) -> Result<Image, SourceError> {
    Image::read(source, &Options { tag, limit: LIMIT, scratch: &std::env::temp_dir() })
}

fn flat(image: &Image) -> Vec<u8> {
    let mut out = Vec::new();
    image.write_tar(&mut out).unwrap();
    out
}

/// With GNU tar: in the store, files that are equal in everything are one file, whatever the image says.
fn unpack(flat: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("flat.tar"), flat).unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    run(folder.path(), "tar --xattrs --xattrs-include=* --numeric-owner -p -C tree -xf flat.tar");
    let tree = folder.path().join("tree");
    (folder, tree)
}

/// What a node makes of it, without the links.
fn imported(flat: &[u8]) -> Listing {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = Digest::of(flat);
    store.import(flat, &image, LIMIT).unwrap();
    assert!(store.verify(&image).unwrap().is_empty());
    without_links(listing(&store.tree(&image).unwrap()))
}

fn without_links(mut listing: Listing) -> Listing {
    listing.values_mut().for_each(|entry| entry.5 = PathBuf::new());
    listing
}

#[test]
fn every_form_of_an_image_gives_the_tree_that_umoci_unpacks() {
    let base = TempDir::new().unwrap();
    let folder = base.path();
    layout(folder);
    umoci(folder, "unpack --image layout:v1 unpacked");
    let expect = listing(&folder.join("unpacked/rootfs"));
    assert!(expect.contains_key(Path::new("etc/only")) && !expect.contains_key(Path::new("etc/kept")));

    let skopeo = |to: &str| run(folder, &format!("skopeo --insecure-policy copy oci:layout:v1 {to}"));
    skopeo("oci-archive:archive.tar:v1");
    skopeo("docker-archive:docker.tar:example.org/image:v1");
    run(folder, "skopeo --insecure-policy copy --dest-compress-format zstd oci:layout:v1 oci:zstd:v1");
    // What docker writes since version 25: a layout, and beside it the old description of the same.
    fs::create_dir(folder.join("both")).unwrap();
    run(folder, "tar -C both -xf archive.tar");
    fs::write(folder.join("both/manifest.json"), "[]").unwrap();
    run(folder, "tar -C both -cf both.tar .");
    run(folder, "gzip -k docker.tar");
    run(folder, "zstd -q archive.tar");
    // Flat ones.
    run(folder, "tar --xattrs --xattrs-include=* --format=pax -C unpacked/rootfs -cf flat.tar .");
    run(folder, "gzip -k flat.tar");
    run(folder, "zstd -q flat.tar");

    let check = |source: &str, format| {
        let image = read(&folder.join(source), None).unwrap_or_else(|e| panic!("{source}: {e:?}"));
        assert_eq!(image.format, format, "{source}");
        let tar = flat(&image);
        assert!(tar == flat(&read(&folder.join(source), None).unwrap()), "{source}: other bytes the second time");
        let (_store, tree) = unpack(&tar);
        let mut found = listing(&tree);
        assert!(imported(&tar) == without_links(found.clone()), "{source}: the store has something else");
        if !matches!(format, Format::Archive | Format::Directory) {
            let run = RunConfig {
                user: Some("1000".into()),
                env: image.run.as_ref().unwrap().env.clone(),
                entrypoint: Some(vec!["/bin/capable".into()]),
                working_dir: Some("/etc".into()),
                ..RunConfig::default()
            };
            assert!(run.env.as_ref().unwrap().contains(&"A=1".to_owned()));
            assert_eq!(image.run, Some(run), "{source}");
            let again = folder.join(format!("{source}.again"));
            fs::write(&again, &tar).unwrap();
            let again = read(&again, None).unwrap();
            assert_eq!((&again.run, again.summary()), (&image.run, image.summary()));
            assert!(flat(&again) == tar, "{source}: not the same when read again");
            for path in [".orrery", RUN_CONFIG] {
                found.remove(Path::new(path)).unwrap();
            }
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), expect.keys().collect::<Vec<_>>(), "{source}");
        for (path, entry) in &found {
            // Layers are dated to the second by some writers; umoci's own tree has what its layers say.
            assert_eq!(entry, &expect[path], "{source}: {}", path.display());
        }
    };
    check("layout", Format::OciLayout);
    check("archive.tar", Format::OciArchive);
    check("archive.tar.zst", Format::OciArchive);
    check("both.tar", Format::OciArchive);
    check("docker.tar", Format::DockerArchive);
    check("docker.tar.gz", Format::DockerArchive);
    check("zstd", Format::OciLayout);
    check("flat.tar", Format::Archive);
    check("flat.tar.gz", Format::Archive);
    check("flat.tar.zst", Format::Archive);
    check("unpacked/rootfs", Format::Directory);

    // Damage, and what there is not.
    let refused = |source: &str, tag, expect: &str| {
        let message = read(&folder.join(source), tag).map_or_else(|e| e.to_string(), |_| "accepted".into());
        assert!(message.contains(expect), "{source}: {message}");
    };
    refused("layout", Some("v2"), "v1: name one of them with --tag");
    refused("docker.tar", Some("v2"), "example.org/image:v1");
    run(folder, "xz -k flat.tar");
    refused("flat.tar.xz", None, "compressed with xz");
    refused("layout/oci-layout", None, "unpacking the archive");
    umoci(folder, "tag --image layout:v1 other");
    umoci(folder, "config --image layout:other --config.user 0");
    refused("layout", None, "v1, other");
    refused("layout", Some("v1"), "accepted");
    let blobs = fs::read_dir(folder.join("zstd/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = blobs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut content = fs::read(&layer).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&layer, content).unwrap();
    refused("zstd", None, "is damaged");
    fs::remove_file(layer).unwrap();
    refused("zstd", None, "it is incomplete");
}
