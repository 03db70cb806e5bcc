//! Images: made, looked into, kept.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use orrery_protocol::{Digest, ReleaseManifest};
use serde_json::{Value, json};

use crate::support::{Served, check, command, images};

#[test]
fn an_image_of_ones_own_goes_into_a_release() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(folder);
    fs::create_dir_all(folder.join("tree/bin")).unwrap();
    fs::write(folder.join("tree/bin/tool"), "#!/bin/sh\n").unwrap();
    let made = check(folder, "image import tree --out own.tar.zst", 0);
    assert_eq!((&made["format"], &made["content"]["files"]), (&json!("directory"), &json!(1)), "{made}");
    check(folder, "image import tree --out again.tar.zst", 0);
    let own = fs::read(folder.join("own.tar.zst")).unwrap();
    assert_eq!(own, fs::read(folder.join("again.tar.zst")).unwrap());
    // Nothing is replaced, and nothing is left behind.
    check(folder, "image import tree --out own.tar.zst", 1);
    check(folder, "image import nothing --out other.tar.zst", 1);
    check(folder, "image import tree --limit 1 --out other.tar.zst", 1);
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["again.tar.zst", "images", "own.tar.zst", "tree"]);

    let line = "release assemble --images images --image own=own.tar.zst --image debian=again.tar.zst --out release";
    check(folder, line, 0);
    let manifest = ReleaseManifest::decode(&fs::read(folder.join("release/manifest.json")).unwrap()).unwrap();
    let names: Vec<_> = manifest.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["kernel", "nodeos", "own", "debian"]);
    let store = folder.join("release/artifacts");
    let artifact = &manifest.artifacts[2];
    assert_eq!(artifact.content.sha256, Digest::of(&own));
    assert_eq!(fs::read(store.join(artifact.content.sha256.to_string())).unwrap(), own);
    let index = fs::read(store.join(artifact.chunks.unwrap().sha256.to_string())).unwrap();
    orrery_protocol::ChunkIndex::parse(&index, &artifact.content).unwrap();
    check(folder, "release assemble --images images --image own --out other", 2);
}

/// A program called `mmdebstrap` that packs the folder `tree`, unless it is to be root.
fn mmdebstrap(folder: &Path) {
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join("tree/etc")).unwrap();
    fs::write(folder.join("tree/etc/hostname"), "sliver\n").unwrap();
    let script = r#"#!/bin/sh
        case "$*" in *--mode=root*) echo "root is not allowed" >&2; exit 1;; esac
        for word; do last="$tar" tar="$suite" suite="$word"; done
        echo "$*" > said
        tar --numeric-owner --mtime=@$SOURCE_DATE_EPOCH -cf "$tar" -C tree ."#;
    let program = folder.join("bin/mmdebstrap");
    fs::write(&program, script).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn images_are_built_from_packages() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    mmdebstrap(folder);
    let build = |out: &str, path: &str| {
        let line =
            format!("image build debian --suite trixie --include a,b --mirror m --date 2026-01-31 -o {out} --json");
        command(folder, &line).env("PATH", path).output().unwrap()
    };
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap());
    let built = build("one.tar.zst", &path);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let value: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!((&value["content"]["files"], &value["format"]), (&json!(1), &json!("archive")));
    let said = fs::read_to_string(folder.join("said")).unwrap();
    assert!(
        said.contains(",a,b ") && said.trim_end().ends_with("tree.tar m") && said.contains("Valid-Until"),
        "{said}"
    );
    assert!(build("two.tar.zst", &path).status.success());
    assert_eq!(fs::read(folder.join("one.tar.zst")).unwrap(), fs::read(folder.join("two.tar.zst")).unwrap());
    assert!(!build("two.tar.zst", &path).status.success());
    let missing = build("three.tar.zst", "/nonexistent");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("apt install mmdebstrap"));
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");

    let inspected = check(folder, "image inspect --entries one.tar.zst", 0);
    let entries: Vec<_> = inspected["entries"].as_array().unwrap().iter().map(|e| e["path"].clone()).collect();
    assert_eq!(entries, ["etc", "etc/hostname"]);
    assert!(inspected["listing"]["size"].as_u64().unwrap() > 50);
    assert_eq!(check(folder, "image verify one.tar.zst two.tar.zst", 0)[0]["fault"], Value::Null);
    let mut damaged = fs::read(folder.join("one.tar.zst")).unwrap();
    damaged.truncate(damaged.len() - 20);
    fs::write(folder.join("two.tar.zst"), damaged).unwrap();
    check(folder, "image verify one.tar.zst two.tar.zst", 1);
}

#[test]
fn central_keeps_what_is_needed() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let run = |line: &str, status| check(folder, &format!("{line} --central {}", central.url), status);
    let ok = |line: &str| run(line, 0);
    images(folder);
    fs::write(folder.join("user.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@home\n").unwrap();
    ok("keys new --out release.key");
    let publish = |name: &str, file: &str| {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join(file), name).unwrap();
        ok(&format!("image import {name} --out {name}.tar.zst"));
        ok(&format!("release assemble --images images --image own={name}.tar.zst --out {name}.release"));
        ok(&format!("release sign --key release.key {name}.release/manifest.json"));
        let record = ok(&format!("release publish {name}.release/manifest.signed"));
        record["envelope"]["sha256"].as_str().unwrap().to_owned()
    };
    let one = publish("one", "first");
    ok("slice add demo/own --image own --key user.pub");
    let listed = ok("image list");
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[1]["name"], &listed[1]["slices"]), (&json!("own"), &json!(["demo/own"])));
    assert_eq!(run(&format!("release retire {one}"), 3)["error"], "in-use");
    let two = publish("two", "second");
    assert_eq!(ok("image inspect own")["summary"]["files"], 1);
    assert_eq!(ok("image verify own")[0]["fault"], Value::Null);
    run("image inspect other", 1);

    // Nothing goes while a release names it, and nothing that is new.
    fs::write(folder.join("stray"), "stray").unwrap();
    let stray = Digest::of(b"stray").to_string();
    let artifacts = folder.join("data/artifacts");
    fs::copy(folder.join("stray"), artifacts.join(&stray)).unwrap();
    let unused = |line: &str| -> Vec<String> {
        let artifacts = ok(line)["unused"].as_array().unwrap().clone();
        artifacts.iter().map(|a| a["sha256"].as_str().unwrap().to_owned()).collect()
    };
    assert!(unused("image gc").is_empty());
    assert_eq!(unused("image gc --older-than 0s"), std::slice::from_ref(&stray));
    assert!(artifacts.join(&stray).exists());
    assert_eq!(unused("image gc --older-than 0s --remove"), std::slice::from_ref(&stray));
    assert!(!artifacts.join(&stray).exists());

    // With the first release go its manifest, image, chunk index and listing. Everything else is the second's too.
    let first = ok("release list")[1]["manifest"]["artifacts"][3].clone();
    ok(&format!("release retire {one}"));
    assert_eq!(run(&format!("release retire {one}"), 3)["error"], "not-found");
    assert_eq!(run(&format!("release retire {two}"), 3)["error"], "in-use");
    let mut expect: Vec<_> =
        ["ref", "chunks", "listing"].map(|part| first[part]["sha256"].as_str().unwrap().to_owned()).into();
    expect.push(one);
    expect.sort();
    assert_eq!(unused("image gc --older-than 0s --remove"), expect);
    assert!(unused("image gc --older-than 0s").is_empty());

    // A disk that rots.
    assert_eq!(ok("image verify own")[0]["fault"], Value::Null);
    let listing = ok("release list")[0]["manifest"]["artifacts"][3]["listing"]["sha256"].as_str().unwrap().to_owned();
    let path = artifacts.join(listing);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    run("image verify own", 1);
}
