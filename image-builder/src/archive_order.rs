//! The order of a reference image's files: by Debian package, so that what changes together stands together.
//!
//! An update replaces packages. In an archive sorted by path, one package's files are spread all over, and every one of them
//! spoils the piece that it shares with its neighbours; sorted by package, an update changes about as many bytes of
//! the archive as it has.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// Bytes of a block: headers have one, content is padded to whole ones.
const BLOCK: usize = 512;

/// An entry of a tar archive, with the extension headers before it.
struct Entry {
    bytes: Range<usize>,
    content: Range<usize>,
    name: String,
    link: String,
    kind: u8,
}

/// Splits an uncompressed tar archive into groups of entries that belong together: directories, one group for each package by
/// name, and what no package owns. Written one after the other, and ended with two blocks of zeros, they are the same archive
/// in another order. `None`: the bytes are no tar archive that this understands.
pub(crate) fn groups(tar: &[u8]) -> Option<Vec<Vec<u8>>> {
    let entries = entries(tar)?;
    let owners = owners(tar, &entries);
    let mut groups: BTreeMap<(u8, &str), Vec<u8>> = BTreeMap::new();
    for entry in &entries {
        // A hard link stands behind what it links to.
        let name = if entry.kind == b'1' { &entry.link } else { &entry.name };
        let key = match owner(&owners, name) {
            _ if entry.kind == b'5' => (0, ""),
            Some(package) => (1, package),
            None => (2, ""),
        };
        groups.entry(key).or_default().extend_from_slice(&tar[entry.bytes.clone()]);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.push(vec![0; 2 * BLOCK]);
    Some(groups)
}

/// Where the contents of each package's files stand in an uncompressed tar archive, dpkg's own files left out. `None`: the bytes
/// are no tar archive that this understands.
pub fn package_contents(tar: &[u8]) -> Option<BTreeMap<String, Vec<Range<usize>>>> {
    let entries = entries(tar)?;
    let owners = owners(tar, &entries);
    let mut packages: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
    for entry in entries.iter().filter(|e| matches!(e.kind, b'0' | 0) && !e.name.starts_with("/var/lib/dpkg/")) {
        if let Some(package) = owner(&owners, &entry.name) {
            packages.entry(package.to_owned()).or_default().push(entry.content.clone());
        }
    }
    Some(packages)
}

fn entries(tar: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let (mut at, mut start) = (0, 0);
    let (mut long_name, mut long_link) = (None, None);
    loop {
        let header = tar.get(at..at + BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return Some(entries);
        }
        let size = octal(&header[124..136])?;
        let content = at + BLOCK..(at + BLOCK).checked_add(size)?;
        let body = tar.get(content.clone())?;
        at = content.end.next_multiple_of(BLOCK);
        match header[156] {
            b'x' => {
                long_name = pax(body, "path").or(long_name);
                long_link = pax(body, "linkpath").or(long_link);
            }
            b'L' => long_name = Some(text(body)),
            b'K' => long_link = Some(text(body)),
            kind => {
                let prefix =
                    if header[257..].starts_with(b"ustar\0") { text(&header[345..500]) } else { String::new() };
                let short = text(&header[..100]);
                let short = if prefix.is_empty() { short } else { format!("{prefix}/{short}") };
                let name = long_name.take().unwrap_or(short);
                let link = long_link.take().unwrap_or_else(|| text(&header[157..257]));
                entries.push(Entry { bytes: start..at, content, name: plain(&name), link: plain(&link), kind });
                start = at;
            }
        }
    }
}

fn octal(field: &[u8]) -> Option<usize> {
    usize::from_str_radix(text(field).trim(), 8).ok()
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// A record of a pax header, `<length> <key>=<value>\n` (POSIX.1-2017, pax, "Extended Header").
fn pax(body: &[u8], key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    text.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
}

/// A path as dpkg's lists have it.
fn plain(path: &str) -> String {
    format!("/{}", path.trim_start_matches("./").trim_matches('/'))
}

/// The package of each path, from dpkg's own lists.
fn owners(tar: &[u8], entries: &[Entry]) -> HashMap<String, String> {
    let mut owners = HashMap::new();
    for entry in entries {
        let Some(file) = entry.name.strip_prefix("/var/lib/dpkg/info/") else { continue };
        let Some((package, what)) = file.rsplit_once('.') else { continue };
        let package = package.split(':').next().unwrap_or(package);
        owners.insert(entry.name.clone(), package.to_owned());
        if what == "list" {
            let list = String::from_utf8_lossy(&tar[entry.content.clone()]);
            owners.extend(list.lines().map(|path| (path.to_owned(), package.to_owned())));
        }
    }
    owners
}

/// Lists may name a file by its place before `/usr` was merged.
fn owner<'a>(owners: &'a HashMap<String, String>, path: &str) -> Option<&'a str> {
    owners.get(path).or_else(|| owners.get(path.strip_prefix("/usr")?)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(BLOCK), 0);
        header
    }

    #[test]
    fn directories_then_packages_then_the_rest() {
        let long = format!("./usr/share/{}", "l".repeat(120));
        let pax_path = format!("path={long}\n");
        let pax_header = format!("{} {pax_path}", pax_path.len() + 4);
        let list = format!("/.\n/bin\n/bin/zed\n/usr/share\n{}\n", &long[1..]);
        let parts = [
            entry("./etc/made-here", b'0', "", b"x"),
            entry("./usr/bin", b'5', "", b""),
            entry("./usr/bin/also-zed", b'1', "./usr/bin/zed", b""),
            entry("./usr/bin/ant", b'0', "", b"ant"),
            entry("./usr/bin/zed", b'0', "", b"zed"),
            [entry("./PaxHeaders/l", b'x', "", pax_header.as_bytes()), entry("short", b'0', "", b"long")].concat(),
            entry("./var/lib/dpkg/info/ant:amd64.list", b'0', "", b"/usr/bin/ant\n"),
            entry("./var/lib/dpkg/info/zed.list", b'0', "", list.as_bytes()),
        ];
        let mut tar = parts.concat();
        tar.resize(tar.len() + 20 * BLOCK, 0);
        let join = |numbers: &[usize]| numbers.iter().flat_map(|n| parts[*n].clone()).collect::<Vec<_>>();
        let expect = vec![join(&[1]), join(&[3, 6]), join(&[2, 4, 5, 7]), join(&[0]), vec![0; 1024]];
        assert!(groups(&tar).unwrap() == expect);
        let packages = package_contents(&tar).unwrap();
        let texts = |package: &str| packages[package].iter().map(|r| &tar[r.clone()]).collect::<Vec<_>>();
        assert_eq!(texts("ant"), [b"ant"]);
        assert_eq!(texts("zed"), [b"zed".as_slice(), b"long"]);
        assert!(groups(&tar[..1000]).is_none());
        assert!(groups(b"no archive").is_none());
    }
}
