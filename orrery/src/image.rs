//! `orrery image`: images that slivers start from.

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

use crate::{
    context::Context,
    files,
    units::{Bytes, show_bytes},
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
}

pub(crate) fn run(context: &Context, command: Images) -> Result<()> {
    let Images::Import { source, out, tag, limit } = command;
    ensure!(out.symlink_metadata().is_err(), "{} exists already: remove it or choose another name", out.display());
    let folder = files::folder_of(&out);
    // Beside the result, where there is to be space for it anyway.
    let scratch = tempfile::Builder::new().prefix(".orrery-").tempdir_in(&folder);
    let scratch = scratch.with_context(|| format!("making a folder in {}", folder.display()))?;
    let options = Options { tag: tag.as_deref(), limit: limit.0, scratch: scratch.path() };
    let image = Image::read(&source, &options).with_context(|| format!("reading {}", source.display()))?;
    let (tar, compressed) = (scratch.path().join("image.tar"), scratch.path().join("image.tar.zst"));
    write_tar(&image, &tar).with_context(|| format!("writing {}", tar.display()))?;
    compress_image(&tar, &compressed)?;
    let content = files::measure(&compressed)?;
    // Whoever was quicker keeps the name.
    fs::hard_link(&compressed, &out).with_context(|| format!("naming {}", out.display()))?;
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
