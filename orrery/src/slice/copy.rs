//! `orrery slice cp`: files into slivers and out of them, by `scp`.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use orrery_protocol::{SliceName, is_node_id};
use serde_json::json;

use super::connect::{Reach, Slivers, follow};
use crate::context::Context;

/// Options of `orrery slice cp`.
#[derive(clap::Args)]
pub(crate) struct Copy {
    /// The slice.
    slice: SliceName,
    #[command(flatten)]
    reach: Reach,
    /// Copy folders with all that is in them.
    #[arg(short, long)]
    recursive: bool,
    /// What to copy and, last, where to: `NODE:PATH` in a sliver on one side, files here on the other. The node may be left out,
    /// as in `:PATH`, if the slice is on one only.
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<Place>,
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// On this machine.
    Here(String),
    /// In the sliver on a node; without a node, on the slice's only one.
    There { node: Option<String>, path: String },
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        ensure!(!s.is_empty(), "a path is empty");
        Ok(match s.split_once(':') {
            Some(("", path)) => Self::There { node: None, path: path.to_owned() },
            Some((node, path)) if is_node_id(node) => {
                Self::There { node: Some(node.to_owned()), path: path.to_owned() }
            }
            // As with scp, a slash before the colon makes it a file's name.
            _ => Self::Here(s.to_owned()),
        })
    }
}

impl Place {
    /// As `scp` takes it for what it is.
    fn word(&self, destination: &str) -> String {
        match self {
            Self::Here(path) if path.contains(':') && !path.starts_with(['.', '/']) => format!("./{path}"),
            Self::Here(path) => path.clone(),
            Self::There { path, .. } => format!("{destination}:{path}"),
        }
    }
}

impl Copy {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let node = node(&self.paths)?;
        let slivers = Slivers::of(context, self.slice, self.reach)?;
        let way = slivers.way(&slivers.one(node)?)?;
        let mut scp = way.client("scp");
        if self.recursive {
            scp.arg("-r");
        }
        if context.json() {
            scp.arg("-q");
        }
        scp.arg("--").args(self.paths.iter().map(|place| place.word(&way.destination())));
        follow(scp)?;
        if context.json() {
            context.print(&json!({ "node": way.node, "copied": self.paths.len() - 1 }), |_| String::new())?;
        }
        Ok(())
    }
}

/// The node whose sliver is meant, if it is said.
fn node(paths: &[Place]) -> Result<Option<&str>> {
    let side = |place| match place {
        &Place::Here(_) => None,
        Place::There { node, .. } => Some(node.as_deref()),
    };
    let (target, sources) = paths.split_last().context("nothing to copy")?;
    let source = sources.first().and_then(side);
    ensure!(sources.iter().all(|place| side(place) == source), "copy from here, or from one node, at a time");
    match (source, side(target)) {
        (Some(node), None) | (None, Some(node)) => Ok(node),
        _ => bail!("one side must be in a sliver, as NODE:PATH, and the other here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_here_or_there() {
        let check = |text: &str, expect: &str| assert_eq!(text.parse::<Place>().unwrap().word("login@n"), expect);
        check("n1:/root/x", "login@n:/root/x");
        check("n1:", "login@n:");
        check(":x:y", "login@n:x:y");
        check("./n1:x", "./n1:x");
        check("/n1:x", "/n1:x");
        check("not a node:x", "./not a node:x");
        check("data", "data");
        assert!("".parse::<Place>().is_err());
    }

    #[test]
    fn exactly_one_side_is_a_sliver() {
        let check = |paths: &[&str], expect: Option<Option<&str>>| {
            let places: Vec<Place> = paths.iter().map(|path| path.parse().unwrap()).collect();
            assert_eq!(node(&places).ok(), expect, "{paths:?}");
        };
        check(&["a", "n1:b"], Some(Some("n1")));
        check(&["a", "b", ":c"], Some(None));
        check(&["n1:a", "n1:b", "."], Some(Some("n1")));
        check(&["n1:a", "n2:b", "."], None);
        check(&["n1:a", "b", "."], None);
        check(&["a", "b"], None);
        check(&["n1:a", "n2:b"], None);
    }
}
