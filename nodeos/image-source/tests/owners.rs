//! Owners that nobody in a sliver could be.

use std::fs;

use orrery_image_source::{Image, Options};
use orrery_image_store::{
    Metadata,
    archive::write::{What, end, head},
};
use tempfile::TempDir;

#[test]
fn an_owner_that_no_sliver_has_is_refused_by_file_and_number() {
    let folder = TempDir::new().unwrap();
    let check = |owner, group, what: What<'_>, expect: Option<&str>| {
        let mut archive = Vec::new();
        let plain = Metadata::default();
        head(&mut archive, b"opt/", &plain, What::Directory).unwrap();
        head(&mut archive, b"opt/first", &plain, What::File { size: 0 }).unwrap();
        head(&mut archive, b"opt/app", &Metadata { owner, group, ..plain }, what).unwrap();
        end(&mut archive).unwrap();
        let path = folder.path().join("image.tar");
        fs::write(&path, &archive).unwrap();
        let options = Options { tag: None, limit: 1 << 20, scratch: folder.path() };
        let refused = Image::read(&path, &options).err().map(|error| {
            let source = std::error::Error::source(&error).unwrap();
            source.to_string()
        });
        assert_eq!(refused.as_deref().map(|text| text.split(',').next().unwrap()), expect);
    };
    let user = "refusing image entry opt/app: it belongs to user 65536";
    check(65_535, 65_535, What::File { size: 0 }, None);
    check(65_536, 0, What::File { size: 0 }, Some(user));
    check(65_536, 0, What::Directory, Some(user));
    check(65_536, 0, What::Symlink(b"x"), Some(user));
    check(0, 172_761_424, What::File { size: 0 }, Some("refusing image entry opt/app: it belongs to group 172761424"));
    check(u32::MAX, 0, What::File { size: 0 }, Some("refusing image entry opt/app: it belongs to user 4294967295"));
    // What has no owner of its own, or is left out.
    check(65_536, 0, What::HardLink(b"opt/first"), None);
    check(65_536, 0, What::Fifo, None);
}
