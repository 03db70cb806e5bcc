//! Reading the host's apt sources, in both of the formats they come in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// One deb822 stanza of apt sources, of type `deb`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stanza {
    /// Archive addresses.
    pub(crate) uris: Vec<String>,
    /// Suites, such as `bookworm-updates`.
    pub(crate) suites: Vec<String>,
    /// Components, such as `main`.
    pub(crate) components: Vec<String>,
    /// Every other field, such as `Signed-By`, as it stands.
    pub(crate) options: Vec<(String, String)>,
}

/// Reads `sources.list` and `sources.list.d/*.{list,sources}` under `etc`.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn read_host(etc: &Path) -> Result<Vec<Stanza>> {
    let mut files: Vec<PathBuf> = match fs::read_dir(etc.join("sources.list.d")) {
        Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    files.insert(0, etc.join("sources.list"));
    let mut stanzas = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let read = || fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => stanzas.extend(parse_list(&read()?)),
            Some("sources") => stanzas.extend(parse_deb822(&read()?)),
            _ => {}
        }
    }
    Ok(stanzas)
}

/// What Orrery needs of the host's sources: the entries of the distribution itself, with its backports.
/// Third-party archives are left out: nothing is taken from them.
pub(super) fn derive(host: &[Stanza], codename: &str) -> Vec<Stanza> {
    let own =
        |suite: &String| suite.split(['-', '/']).next().is_some_and(|first| first == codename || first == "stable");
    let mut stanzas: Vec<Stanza> = host.iter().filter(|stanza| stanza.suites.iter().any(own)).cloned().collect();
    let backports = format!("{codename}-backports");
    if !stanzas.iter().any(|stanza| stanza.suites.contains(&backports)) {
        let main = |suite: &String| suite == codename || suite == "stable";
        if let Some(stanza) = stanzas.iter_mut().find(|stanza| stanza.suites.iter().any(main)) {
            stanza.suites.push(backports);
        }
    }
    stanzas
}

/// The stanzas as a deb822 file, with the given `Types`.
pub(super) fn render(stanzas: &[Stanza], types: &str) -> String {
    let mut text = String::new();
    for stanza in stanzas {
        text.push_str(&format!("Types: {types}\nURIs: {}\n", stanza.uris.join(" ")));
        text.push_str(&format!("Suites: {}\n", stanza.suites.join(" ")));
        if !stanza.components.is_empty() {
            text.push_str(&format!("Components: {}\n", stanza.components.join(" ")));
        }
        for (name, value) in &stanza.options {
            text.push_str(&format!("{name}: {value}\n"));
        }
        text.push('\n');
    }
    text
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn parse_deb822(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            stanzas.extend(stanza(std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    stanzas
}

fn stanza(fields: Vec<(String, String)>) -> Option<Stanza> {
    let mut stanza = Stanza::default();
    let mut enabled = true;
    let mut binary = false;
    for (name, value) in fields {
        match name.to_ascii_lowercase().as_str() {
            "types" => binary = words(&value).iter().any(|word| word == "deb"),
            "uris" => stanza.uris = words(&value),
            "suites" => stanza.suites = words(&value),
            "components" => stanza.components = words(&value),
            "enabled" => enabled = !matches!(value.to_ascii_lowercase().as_str(), "no" | "false" | "0"),
            _ => stanza.options.push((name, value)),
        }
    }
    (enabled && binary && !stanza.uris.is_empty()).then_some(stanza)
}

fn parse_list(text: &str) -> Vec<Stanza> {
    text.lines().filter_map(|line| list_line(line.split('#').next().unwrap_or_default().trim())).collect()
}

/// `deb [signed-by=/a arch=amd64,i386] http://host/debian bookworm main contrib`
fn list_line(line: &str) -> Option<Stanza> {
    let rest = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t']))?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut rest = rest.split_whitespace().map(str::to_owned);
    let uris = vec![rest.next()?];
    let suites = vec![rest.next()?];
    let options = options.split_whitespace().filter_map(|option| {
        let (name, value) = option.split_once('=')?;
        let name = match name {
            "arch" => "Architectures",
            "signed-by" => "Signed-By",
            "lang" => "Languages",
            "target" => "Targets",
            "trusted" => "Trusted",
            "check-valid-until" => "Check-Valid-Until",
            _ => return None,
        };
        Some((name.to_owned(), value.replace(',', " ")))
    });
    Some(Stanza { uris, suites, options: options.collect(), components: rest.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parsed: Vec<Stanza>, expect: &str) {
        assert_eq!(render(&derive(&parsed, "bookworm"), "deb deb-src"), expect);
    }

    #[test]
    fn both_formats_and_backports() {
        check(
            parse_list(
                "# comment\ndeb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main # x\n\
                 deb-src http://mirror.example/debian bookworm main\ndeb http://other.example/apt stuff main\n",
            ),
            "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-backports\n\
             Components: main\nSigned-By: /k.gpg\nArchitectures: amd64\n\n",
        );
        check(
            parse_deb822(
                "Types: deb\n# old\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                 Components: main\nSigned-By:\n -----BEGIN\n .\n\nTypes: deb\nEnabled: no\nURIs: http://b.example\n\
                 Suites: bookworm\n\nTypes: deb\nURIs: http://c.example\nSuites: bookworm-backports\n",
            ),
            "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By: \n -----BEGIN\n .\n\nTypes: deb deb-src\nURIs: http://c.example\n\
             Suites: bookworm-backports\n\n",
        );
        check(parse_list("deb http://other.example/apt stuff main\n"), "");
    }
}
