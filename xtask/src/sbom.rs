//! The software bill of materials: SPDX 2.3 as JSON, of everything that is in the images.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    build::{Built, boot_loaders, reference_image, rust},
    cargo::Package,
    hash,
    store::{LinkedPackage, SourceFile},
    workspace::Workspace,
};

/// Licences of the packages of which parts come from the build machine, compiled already.
const LICENCES: [(&str, &str); 5] = [
    ("glibc", "LGPL-2.1-or-later AND GPL-2.0-or-later WITH GCC-exception-2.0"),
    ("gcc-12", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    ("syslinux", "GPL-2.0-or-later"),
    ("systemd", "LGPL-2.1-or-later"),
    ("systemd-boot", "LGPL-2.1-or-later"),
];
const ORRERY: &str = "SPDXRef-Orrery";
const UNKNOWN: &str = "NOASSERTION";

/// Makes the document. The same build gives the same bytes.
///
/// # Errors
/// When what the build recorded cannot be read.
pub(crate) fn make(workspace: &Workspace, built: &Built) -> Result<Vec<u8>> {
    let mut document = Document::default();
    let version = &workspace.release.version;
    document.add(ORRERY, json!({ "name": "orrery", "versionInfo": version }), "MIT OR Apache-2.0");
    for entry in built.recipes() {
        let record = &entry.record;
        let package = record.source_package.as_deref().unwrap_or(&record.name);
        let id = document.debian_source(package, &record.version, &record.licence, &record.sources);
        document.relate(ORRERY, "CONTAINS", &id);
        document.link(&id, &record.links);
    }
    document.link(ORRERY, &built.rust.record.links);
    for loader in boot_loaders()? {
        let id = document.debian_source(&loader.source, &loader.version, licence(&loader.source), &[]);
        document.relate(ORRERY, "CONTAINS", &id);
    }
    let path = built.rust.folder.join(rust::CRATES_FILE);
    let crates = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let crates: Vec<Package> =
        serde_json::from_slice(&crates).with_context(|| format!("parsing {}", path.display()))?;
    for package in &crates {
        document.crate_package(package);
    }
    let path = built.reference_image.folder.join(reference_image::PACKAGES_FILE);
    let packages = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    document.reference_image(version, &packages);
    document.finish(workspace)
}

fn licence(source: &str) -> &'static str {
    LICENCES.iter().find(|(name, _)| *name == source).map_or(UNKNOWN, |(_, licence)| licence)
}

/// Packages by SPDX id, and the relations between them; both sorted, so that order of discovery does not show.
#[derive(Default)]
struct Document {
    packages: BTreeMap<String, Value>,
    relations: BTreeMap<(String, &'static str, String), ()>,
}

impl Document {
    fn add(&mut self, id: &str, mut package: Value, licence: &str) {
        let fields = [
            ("SPDXID", id),
            ("downloadLocation", UNKNOWN),
            ("licenseConcluded", UNKNOWN),
            ("licenseDeclared", licence),
            ("copyrightText", UNKNOWN),
        ];
        for (name, value) in fields {
            package[name] = Value::from(value);
        }
        package["filesAnalyzed"] = Value::from(false);
        self.packages.insert(id.to_owned(), package);
    }

    fn relate(&mut self, from: &str, kind: &'static str, to: &str) {
        self.relations.insert((from.to_owned(), kind, to.to_owned()), ());
    }

    fn debian_source(&mut self, name: &str, version: &str, licence: &str, files: &[SourceFile]) -> String {
        let id = id("source", name, version);
        let files: Vec<_> = files.iter().map(|file| format!("{} SHA256:{}", file.name, file.sha256)).collect();
        let mut package = json!({
            "name": name,
            "versionInfo": version,
            "externalRefs": purl(&format!("pkg:deb/debian/{name}@{version}?arch=source")),
        });
        if !files.is_empty() {
            package["sourceInfo"] = Value::from(format!("built from {}", files.join(", ")));
        }
        self.add(&id, package, licence);
        id
    }

    fn link(&mut self, from: &str, links: &[LinkedPackage]) {
        for link in links {
            let id = self.debian_source(&link.source, &link.version, licence(&link.source), &[]);
            self.relate(from, "STATIC_LINK", &id);
        }
    }

    fn crate_package(&mut self, package: &Package) {
        let id = id("crate", &package.name, &package.version);
        let mut value = json!({
            "name": package.name,
            "versionInfo": package.version,
            "externalRefs": purl(&format!("pkg:cargo/{}@{}", package.name, package.version)),
        });
        if let Some(checksum) = &package.checksum {
            value["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": checksum }]);
        }
        // Old manifests separate alternatives with a slash.
        let licence =
            package.licence.as_deref().map_or(UNKNOWN.to_owned(), |l| l.replace('/', " OR ").replace("  ", " "));
        self.add(&id, value, &licence);
        self.relate(ORRERY, "STATIC_LINK", &id);
    }

    fn reference_image(&mut self, version: &str, packages: &str) {
        let image = id("image", "debian", version);
        self.add(&image, json!({ "name": reference_image::ARCHIVE, "versionInfo": version }), UNKNOWN);
        self.relate(ORRERY, "CONTAINS", &image);
        for line in packages.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            let &[name, version, source, source_version, licence] = fields.as_slice() else { continue };
            let id = id("deb", name, version);
            let package = json!({
                "name": name,
                "versionInfo": version,
                "sourceInfo": format!("built from the Debian source package {source} {source_version}"),
                "externalRefs": purl(&format!("pkg:deb/debian/{name}@{version}?arch=amd64")),
            });
            self.add(&id, package, licence);
            self.relate(&image, "CONTAINS", &id);
        }
    }

    fn finish(self, workspace: &Workspace) -> Result<Vec<u8>> {
        let epoch = workspace.release.epoch.try_into().context("the epoch of release.toml is too far in the future")?;
        let created = OffsetDateTime::from_unix_timestamp(epoch).context("reading the epoch of release.toml")?;
        let created = created.format(&Rfc3339).context("writing the date")?;
        let describes = ("SPDXRef-DOCUMENT".to_owned(), "DESCRIBES", ORRERY.to_owned());
        let relations: Vec<_> = std::iter::once(&describes)
            .chain(self.relations.keys())
            .map(
                |(from, kind, to)| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to }),
            )
            .collect();
        let packages: Vec<_> = self.packages.into_values().collect();
        let content = serde_json::to_string(&packages).context("writing packages as JSON")?;
        let version = &workspace.release.version;
        let document = json!({
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": format!("orrery-{version}"),
            // The namespace has to be unique to the content; nothing has to answer there.
            "documentNamespace":
                format!("https://spdx.org/spdxdocs/orrery-{version}-{}", &hash::bytes(content.as_bytes())[..32]),
            "creationInfo": { "created": created, "creators": [format!("Tool: orrery-xtask-{version}")] },
            "packages": packages,
            "hasExtractedLicensingInfos": [{
                "licenseId": "LicenseRef-public-domain",
                "name": "Public domain",
                "extractedText": "The authors have put these files into the public domain.",
            }],
            "relationships": relations,
        });
        let mut text = serde_json::to_vec_pretty(&document).context("writing the document as JSON")?;
        text.push(b'\n');
        Ok(text)
    }
}

fn purl(locator: &str) -> Value {
    let locator = locator.replace('+', "%2B").replace('~', "%7E");
    json!([{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator }])
}

/// SPDX ids are letters, digits, dots and hyphens.
fn id(kind: &str, name: &str, version: &str) -> String {
    let text = format!("{kind}-{name}-{version}");
    let plain: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("SPDXRef-{plain}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, name: &str, version: &str, expect: &str) {
        assert_eq!(id(kind, name, version), expect);
    }

    #[test]
    fn ids_are_plain() {
        check("deb", "libstdc++6", "12.2.0-14+deb12u1", "SPDXRef-deb-libstdc--6-12.2.0-14-deb12u1");
        check("crate", "a_b", "1.0.0", "SPDXRef-crate-a-b-1.0.0");
    }

    #[test]
    fn the_order_of_discovery_does_not_show() {
        let make = |names: [&str; 2]| {
            let mut document = Document::default();
            for name in names {
                let id = document.debian_source(name, "1", UNKNOWN, &[]);
                document.relate(ORRERY, "CONTAINS", &id);
            }
            (document.packages, document.relations)
        };
        assert_eq!(make(["a", "b"]), make(["b", "a"]));
    }
}
