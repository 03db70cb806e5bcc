//! Whole builds of tiny media.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use orrery_protocol::SigningKey;

use super::{Built, CONFIG_FILE, Inputs, VOLUME_ID, build, iso9660, media, uki};

/// Inputs with recognisable content, in `folder`.
fn inputs(folder: &Path) -> Inputs {
    let file = |name: &str, content: &[u8]| -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    fs::create_dir_all(folder.join("overlay/etc")).unwrap();
    fs::write(folder.join("overlay/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    Inputs {
        version: "0.1.0".into(),
        epoch: 1_763_700_000,
        kernel: file("kernel", &[b'K'; 70_001]),
        init: file("init", b"init"),
        stage: file("stage", b"stage"),
        nodeos: file("nodeos", b"nodeos"),
        busybox: file("busybox", b"busybox"),
        applets: vec!["sh".into(), "ls".into()],
        mke2fs: file("mke2fs", b"mke2fs"),
        e2fsck: file("e2fsck", b"e2fsck"),
        tools: vec![("usr/bin/rsync".into(), file("rsync", b"rsync"))],
        medium_overlays: vec![folder.join("overlay")],
        node_overlays: vec![folder.join("overlay")],
        images: vec![("debian".into(), file("debian.tar.zst", b"debian"))],
        efi_stub: file("stub", &uki::tests::tiny_stub(5)),
        isolinux_bin: file("isolinux.bin", &[0x90; 4096]),
        ldlinux_c32: file("ldlinux.c32", &[0x91; 4096]),
        isohdpfx_bin: file("isohdpfx.bin", &[0x92; 432]),
    }
}

fn build_into(folder: &Path) -> Built {
    build(&inputs(folder), &folder.join("out"), &mut |_| {}).unwrap()
}

/// Every file below `folder` with its content.
fn contents(folder: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            contents(&entry.path(), &format!("{name}/"), into);
        } else {
            into.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

fn config(id: &str) -> String {
    let key = SigningKey::from_scalar(&[1; 32]).unwrap().public().to_string();
    format!(
        "id = '{id}'\nkey = '''-----BEGIN PRIVATE KEY-----'''\n[central]\nurls = ['https://10.0.2.2:8443']\n\
         ca = '''-----BEGIN CERTIFICATE-----'''\nrelease_keys = ['{key}']\n"
    )
}

#[test]
fn two_builds_in_two_folders_are_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build_into(one.path());
    build_into(two.path());
    let [mut first, mut second] = [BTreeMap::new(), BTreeMap::new()];
    contents(&one.path().join("out"), "", &mut first);
    contents(&two.path().join("out"), "", &mut second);
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    let expected = [
        "SHA256SUMS",
        "chunks/debian",
        "chunks/kernel",
        "chunks/nodeos",
        "node-os/kernel",
        "node-os/nodeos.img",
        "orrery-boot.iso",
        "pxe/boot.ipxe",
        "pxe/config.img",
        "pxe/initramfs",
        "pxe/vmlinuz",
        "release.json",
    ];
    assert_eq!(names, expected);
    for (name, content) in first {
        assert!(second[&name] == content, "{name} differs");
    }
}

#[test]
fn kernel_and_initramfs_stand_once_and_read_back_through_the_iso() {
    let folder = tempfile::tempdir().unwrap();
    let built = build_into(folder.path());
    let mut iso = File::open(&built.iso).unwrap();
    assert_eq!(iso9660::volume_id(&mut iso).unwrap(), VOLUME_ID);
    let bytes = fs::read(&built.iso).unwrap();
    let read = |name: &str| {
        let record = iso9660::find(&mut File::open(&built.iso).unwrap(), &["BOOT", name]).unwrap();
        bytes[record.offset() as usize..][..record.size as usize].to_vec()
    };
    assert!(read("VMLINUZ") == [b'K'; 70_001]);
    assert!(read("INITRAMFS") == fs::read(built.pxe.join("initramfs")).unwrap());
    let runs = bytes.split(|&b| b != b'K').filter(|run| run.len() > 1000).count();
    assert_eq!(runs, 1, "the kernel stands in the medium once");
    let archive = zstd::decode_all(&*read("INITRAMFS")).unwrap();
    let range = super::cpio::find_file(&archive, "etc/orrery-release").unwrap();
    assert_eq!(&archive[range], b"version=0.1.0\nepoch=1763700000\n");
    assert!(super::cpio::find_file(&archive, "etc/passwd").is_some());
    assert_eq!(built.manifest.kernel().content.size, 70_001);
    assert_eq!(built.manifest.images().next().unwrap().name, "debian");
}

#[test]
fn stamping_changes_the_config_area_only() {
    let folder = tempfile::tempdir().unwrap();
    let built = build_into(folder.path());
    let check = |medium: &Path, changed: &Path| {
        let before = fs::read(changed).unwrap();
        assert!(media::show(medium).unwrap_err().to_string().contains("is blank"));
        for id in ["node-1", "n2"] {
            assert_eq!(media::stamp(medium, &config(id)).unwrap().id, id);
            assert_eq!(media::show(medium).unwrap(), config(id));
        }
        let copy = folder.path().join(format!("copy-{}", medium.file_name().unwrap().display()));
        media::stamp_copy(medium, &copy, &config("copied")).unwrap();
        assert_eq!(media::show(&copy).unwrap(), config("copied"));
        assert_eq!(media::show(medium).unwrap(), config("n2"));
        assert!(media::stamp_copy(medium, &copy, &config("n3")).unwrap_err().to_string().contains("exists already"));
        let after = fs::read(changed).unwrap();
        let differs = |(a, b): (&u8, &u8)| a != b;
        let first = before.iter().zip(&after).position(differs).unwrap();
        let last = before.iter().zip(&after).rposition(differs).unwrap();
        assert_eq!(before.len(), after.len());
        assert!(last - first < orrery_protocol::AREA_BYTES);
    };
    check(&built.iso, &built.iso);
    check(&built.pxe, &built.pxe.join("config.img"));
}

#[test]
fn what_must_not_be_stamped_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let built = build_into(folder.path());
    let check = |medium: &Path, text: &str, expect: &str| {
        let before = fs::read(medium).ok();
        let error = media::stamp(medium, text).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert_eq!(fs::read(medium).ok(), before);
    };
    let good = config("n1");
    check(&built.iso, "id = ", "not valid");
    check(&built.iso, &format!("{good}unknown = 1\n"), "unknown field");
    check(&built.iso, &config("n 1"), "`id` must have");
    check(&built.iso, &format!("{good}#{}\n", "x".repeat(70_000)), "an area holds");
    check(&built.pxe.join("vmlinuz"), &good, "not an ISO 9660 image");
    check(&built.pxe.join("none"), &good, "accessing");
    check(folder.path(), &good, "accessing");
    let other = |files: &[(&str, &[u8])]| {
        let path = folder.path().join("other.iso");
        fs::write(&path, iso9660::tests::image(files)).unwrap();
        path
    };
    check(&other(&[("README.;1", b"")]), &good, "there is no ORRERY.CFG");
    check(&other(&[("ORRERY.CFG;1", b"short")]), &good, "not a config area");
    check(&other(&[("ORRERY.CFG;1", &[0; orrery_protocol::AREA_BYTES])]), &good, "not a config area");
}

#[test]
fn a_write_cut_short_is_seen_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let built = build_into(folder.path());
    media::stamp(&built.iso, &config("n1")).unwrap();
    let mut bytes = Vec::new();
    File::open(&built.iso).unwrap().read_to_end(&mut bytes).unwrap();
    let area = iso9660::find(&mut File::open(&built.iso).unwrap(), &[CONFIG_FILE]).unwrap().offset() as usize;
    bytes[area + 40..area + 512].fill(0);
    fs::write(&built.iso, bytes).unwrap();
    assert!(media::show(&built.iso).unwrap_err().to_string().contains("damaged"));
    media::stamp(&built.iso, &config("n1")).unwrap();
    assert_eq!(media::show(&built.iso).unwrap(), config("n1"));
}
