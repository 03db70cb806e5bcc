//! Licences from Debian's machine-readable copyright files, as SPDX expressions.

use std::collections::BTreeSet;

/// Debian's short names and SPDX identifiers, where they differ.
const NAMES: [(&str, &str); 42] = [
    ("apache-2.0", "Apache-2.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("bsd-4-clause-uc", "BSD-4-Clause-UC"),
    ("boost-1.0", "BSL-1.0"),
    ("bsl-1.0", "BSL-1.0"),
    ("cc0", "CC0-1.0"),
    ("cc0-1.0", "CC0-1.0"),
    ("expat", "MIT"),
    ("mit", "MIT"),
    ("fsfap", "FSFAP"),
    ("fsful", "FSFUL"),
    ("fsfullr", "FSFULLR"),
    ("gfdl-1.3+", "GFDL-1.3-or-later"),
    ("gpl-1+", "GPL-1.0-or-later"),
    ("gpl-2", "GPL-2.0-only"),
    ("gpl-2.0", "GPL-2.0-only"),
    ("gpl-2+", "GPL-2.0-or-later"),
    ("gpl-2.0+", "GPL-2.0-or-later"),
    ("gpl-3", "GPL-3.0-only"),
    ("gpl-3.0", "GPL-3.0-only"),
    ("gpl-3+", "GPL-3.0-or-later"),
    ("gpl-3.0+", "GPL-3.0-or-later"),
    ("isc", "ISC"),
    ("lgpl-2", "LGPL-2.0-only"),
    ("lgpl-2+", "LGPL-2.0-or-later"),
    ("lgpl-2.0+", "LGPL-2.0-or-later"),
    ("lgpl-2.1", "LGPL-2.1-only"),
    ("lgpl-2.1+", "LGPL-2.1-or-later"),
    ("lgpl-3", "LGPL-3.0-only"),
    ("lgpl-3+", "LGPL-3.0-or-later"),
    ("lgpl-3.0+", "LGPL-3.0-or-later"),
    ("lgpl-3.0", "LGPL-3.0-only"),
    ("mpl-1.1", "MPL-1.1"),
    ("mpl-2.0", "MPL-2.0"),
    ("openssl", "OpenSSL"),
    ("x11", "X11"),
    ("zlib", "Zlib"),
    ("unicode", "Unicode-DFS-2016"),
    ("curl", "curl"),
];

/// The licences of a package's files, joined with AND; `NOASSERTION` when the file is not machine-readable or
/// names a licence that has no SPDX identifier here.
pub(super) fn of_copyright_file(text: &str) -> String {
    let mut licences = BTreeSet::new();
    // Only paragraphs about files say what applies; others just quote a licence's text.
    for paragraph in text.split("\n\n").filter(|paragraph| paragraph.lines().any(|line| line.starts_with("Files:"))) {
        let Some(name) = paragraph.lines().find_map(|line| line.strip_prefix("License:")) else { continue };
        match expression(name) {
            Some(expression) => licences.insert(expression),
            None => return "NOASSERTION".to_owned(),
        };
    }
    if licences.is_empty() { "NOASSERTION".to_owned() } else { licences.into_iter().collect::<Vec<_>>().join(" AND ") }
}

/// `GPL-2+ or Expat` → `(GPL-2.0-or-later OR MIT)`
fn expression(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace(", and ", " and ").replace(", or ", " or ");
    if text.starts_with("public-domain") || text.starts_with("pd") {
        return Some("LicenseRef-public-domain".to_owned());
    }
    let word = |name: &str| NAMES.iter().find(|(debian, _)| *debian == name.trim()).map(|(_, spdx)| (*spdx).to_owned());
    let join = |separator: &str, operator: &str| {
        let parts: Option<Vec<_>> = text.split(separator).map(word).collect();
        parts.map(|parts| format!("({})", parts.join(operator)))
    };
    match (text.contains(" or "), text.contains(" and ")) {
        (false, false) => word(&text),
        (true, false) => join(" or ", " OR "),
        (false, true) => join(" and ", " AND "),
        (true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        assert_eq!(of_copyright_file(text), expect);
    }

    #[test]
    fn machine_readable_files() {
        check(
            "Format: x\n\nFiles: *\nLicense: GPL-2+\n\nFiles: a\nLicense: Expat\n\nLicense: foo\n",
            "GPL-2.0-or-later AND MIT",
        );
        check("Files: *\nLicense: GPL-2+ or Expat\n", "(GPL-2.0-or-later OR MIT)");
        check("Files: *\nLicense: something-else\n", "NOASSERTION");
        check("It was packaged by somebody.\n", "NOASSERTION");
        check("", "NOASSERTION");
    }
}
