//! `orrery image build`: images from packages.

use std::{ffi::OsString, io, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use orrery_image_builder::debian::{DATE, Debian, DebianRecipe};
use orrery_image_source::Options;
use time::{Date, macros::format_description};

use super::{make, scratch_for};
use crate::{context::Context, units::Bytes};

#[derive(Subcommand)]
pub(crate) enum Build {
    /// A minimal Debian, as the reference image is made, and further packages.
    ///
    /// It takes mmdebstrap, and either root or a user namespace in which it may be root. The same packages give the same bytes.
    Debian {
        /// The suite, as `trixie` or `stable`.
        #[arg(long)]
        suite: String,
        /// Further packages.
        #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
        include: Vec<String>,
        /// Where packages come from: a URL, a line of a source list, or a file with such. Any number of times; without it, the
        /// distribution's public archive.
        #[arg(long, value_name = "SOURCE")]
        mirror: Vec<OsString>,
        /// The image's date, as `2026-01-31`: no file in it is younger. With a snapshot of that day as --mirror the image has the
        /// same bytes whenever it is made; lists of packages that have expired are taken then.
        #[arg(long, value_parser = day)]
        date: Option<u64>,
        /// The file to make.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
        /// How large it may be, unpacked.
        #[arg(long, value_name = "BYTES", default_value = "8G")]
        limit: Bytes,
    },
}

pub(super) fn run(context: &Context, command: Build) -> Result<()> {
    let Build::Debian { suite, include, mirror, date, out, limit } = command;
    let scratch = scratch_for(&out)?;
    let mut recipe = DebianRecipe::reference();
    recipe.packages.extend(include);
    let debian = Debian { recipe, suite, sources: mirror, date: date.unwrap_or(DATE), expired: date.is_some() };
    let tree = scratch.path().join("tree.tar");
    let mut said = String::new();
    for mut mmdebstrap in debian.commands(&tree) {
        // A mode that fails may leave a part.
        let output = mmdebstrap.stdin(Stdio::null()).output();
        let output = output.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("mmdebstrap is not installed: get it with `apt install mmdebstrap`")
            }
            _ => anyhow::Error::new(e).context("starting mmdebstrap"),
        })?;
        if output.status.success() {
            let options = Options { tag: None, limit: limit.0, scratch: scratch.path() };
            return make(context, &tree, &options, &out);
        }
        said = format!("{said}\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    bail!("mmdebstrap failed; it takes root, or a user namespace in which it may be root. It said:{said}")
}

/// A day's beginning in Unix seconds.
fn day(text: &str) -> Result<u64> {
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"));
    let day = day.with_context(|| format!("`{text}` is no date; write it like 2026-01-31"))?;
    u64::try_from(day.midnight().assume_utc().unix_timestamp()).context("the date is before 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        let check = |text, expect: Option<u64>| assert_eq!(day(text).ok(), expect, "{text}");
        check("2020-01-01", Some(DATE));
        check("1970-01-02", Some(86_400));
        check("1969-12-31", None);
        check("2020-13-01", None);
        check("yesterday", None);
    }
}
