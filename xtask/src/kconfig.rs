//! Checks that a configuration is what its fragments asked for: a symbol with an unmet dependency vanishes
//! from the result without a word, and would be missed on some far-away machine.

use std::collections::BTreeMap;

use crate::hash;

/// The requests that `result` does not honour, as one line each.
pub(crate) fn unmet(fragments: &str, result: &str) -> Vec<String> {
    let got = settings(result);
    settings(fragments)
        .into_iter()
        .filter_map(|(symbol, wanted)| {
            let got = got.get(symbol).copied().unwrap_or("n");
            (got != wanted).then(|| format!("{symbol}={wanted} was asked for; the result has {symbol}={got}"))
        })
        .collect()
}

/// A hash of what is asked for: neither comments nor order change it.
pub(crate) fn fingerprint(fragments: &str) -> String {
    hash::bytes(format!("{:?}", settings(fragments)).as_bytes())
}

/// Symbols and values; "is not set" is `n`. The last line about a symbol counts.
fn settings(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            match line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
                Some(symbol) if symbol.starts_with("CONFIG_") => Some((symbol, "n")),
                _ => line.split_once('=').filter(|(symbol, _)| symbol.starts_with("CONFIG_")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fragments: &str, result: &str, expect: &[&str]) {
        let got = unmet(fragments, result);
        assert_eq!(got.iter().map(|line| line.split(' ').next().unwrap_or_default()).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn requests_and_results() {
        check("CONFIG_A=y\n# a comment\n", "CONFIG_A=y\nCONFIG_B=y\n", &[]);
        check("CONFIG_A=y\n", "# CONFIG_A is not set\n", &["CONFIG_A=y"]);
        check("CONFIG_A=y\nCONFIG_N=512\n", "CONFIG_N=64\n", &["CONFIG_A=y", "CONFIG_N=512"]);
        check("# CONFIG_A is not set\n", "CONFIG_A=y\n", &["CONFIG_A=n"]);
        check("# CONFIG_A is not set\n# CONFIG_B is not set\n", "# CONFIG_A is not set\n", &[]);
        check("CONFIG_A=y\n# CONFIG_A is not set\n", "", &[]);
    }
}
