//! `orrery image`: images that slivers start from.

mod build;
mod collect;
mod examine;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use orrery_image_builder::compress_image;
use orrery_image_source::{Image, Options};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    context::Context,
    files,
    units::{Bytes, Seconds, show_bytes},
};

#[derive(Subcommand)]
pub(crate) enum Images {
    /// Make the image that a release takes out of one that you have: a tar archive or folder of a file tree, an OCI image layout as
    /// folder or archive, or what `docker save` wrote. The same source gives the same bytes.
    ///
    /// Layers are flattened; device nodes are left out. How the image wants to be run is kept in it as /.orrery/oci.json. Put the
    /// result into a release with `orrery release assemble --image NAME=FILE`.
    Import {
        /// The image; archives may be compressed with gzip or zstd.
        source: PathBuf,
        /// The file to make.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which image, of a source with several.
        #[arg(long)]
        tag: Option<String>,
        /// How large it may be, unpacked.
        #[arg(long, value_name = "BYTES", default_value = "8G")]
        limit: Bytes,
    },
    /// Make an image from a distribution's packages.
    #[command(subcommand)]
    Build(build::Build),
    /// List the images that published releases have, with the slices whose new slivers start from each.
    List,
    /// Show what is in an image: of a file, or of central by name.
    Inspect {
        /// A file by `orrery image import` or `build`, any other image, or the name of an image that central has.
        image: String,
        /// Every path, too.
        #[arg(long)]
        entries: bool,
    },
    /// Check images through and through: structure and digest, and of central's that chunk index and listing are those of the
    /// archive. Without any, all images of central.
    Verify {
        /// Files, or names of images that central has.
        images: Vec<String>,
    },
    /// Have central remove artifacts that no release and no node's sliver needs. Only shows them without --remove.
    Gc {
        /// Remove them.
        #[arg(long)]
        remove: bool,
        /// Spare what was uploaded more lately: it may be about to be published.
        #[arg(long, value_name = "TIME", default_value = "1d")]
        older_than: Seconds,
    },
}

pub(crate) fn run(context: &Context, command: Images) -> Result<()> {
    match command {
        Images::Import { source, out, tag, limit } => {
            let scratch = scratch_for(&out)?;
            let options = Options { tag: tag.as_deref(), limit: limit.0, scratch: scratch.path() };
            make(context, &source, &options, &out)
        }
        Images::Build(command) => build::run(context, command),
        Images::List => collect::list(context),
        Images::Inspect { image, entries } => examine::inspect(context, &image, entries),
        Images::Verify { images } => examine::verify(context, &images),
        Images::Gc { remove, older_than } => collect::gc(context, remove, older_than),
    }
}

/// A folder beside the result `out`, where there is to be space for it anyway.
fn scratch_for(out: &Path) -> Result<TempDir> {
    ensure!(out.symlink_metadata().is_err(), "{} exists already: remove it or choose another name", out.display());
    let folder = files::folder_of(out);
    let scratch = tempfile::Builder::new().prefix(".orrery-").tempdir_in(&folder);
    scratch.with_context(|| format!("making a folder in {}", folder.display()))
}

/// Makes the image `out` of `source`, and says what is in it.
fn make(context: &Context, source: &Path, options: &Options<'_>, out: &Path) -> Result<()> {
    let folder = files::folder_of(out);
    let image = Image::read(source, options).with_context(|| format!("reading {}", source.display()))?;
    let [tar, compressed] = ["image.tar", "image.tar.zst"].map(|name| options.scratch.join(name));
    write_tar(&image, &tar).with_context(|| format!("writing {}", tar.display()))?;
    compress_image(&tar, &compressed)?;
    let content = files::measure(&compressed)?;
    // Whoever was quicker keeps the name.
    fs::hard_link(&compressed, out).with_context(|| format!("naming {}", out.display()))?;
    files::sync_folder(&folder)?;
    let (summary, skipped) = (image.summary(), image.skipped());
    let value = json!({
        "image": out, "sha256": content.sha256, "size": content.size, "format": image.format, "content": summary,
        "skipped": skipped, "run": image.run,
    });
    context.print(&value, |_| {
        format!(
            "{}: {} files, {} unpacked, {} as image; left out: {} device nodes, {} attributes, {} of a layer's own",
            out.display(),
            summary.files,
            show_bytes(summary.bytes),
            show_bytes(content.size),
            skipped.devices,
            skipped.attributes,
            skipped.others
        )
    })
}

fn write_tar(image: &Image, path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    image.write_tar(&mut out)?;
    out.flush()
}
