//! A tree as a tar archive: sorted by path, with nothing in it that is not in the tree. The same tree gives the same bytes.

use std::io::{self, Write};

use orrery_image_store::{
    Metadata,
    archive::write::{FIELD, What, end, head, pad},
};

use crate::{
    stream::Part,
    tree::{Content, Node, Tree},
};

/// Writes the whole tree.
///
/// # Errors
/// When writing fails, or a file has 8 GiB: what compresses images takes none.
pub(crate) fn write(tree: &Tree, out: &mut impl Write) -> io::Result<()> {
    let contents = tree.contents()?;
    let mut names: Vec<Option<&[u8]>> = Vec::new();
    for (path, node) in tree.nodes() {
        match node {
            Node::Directory(metadata) => {
                let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
                head(out, &name, metadata, What::Directory)?;
            }
            Node::Leaf(number) => {
                let leaf = tree.leaf_of(*number);
                if names.len() <= *number {
                    names.resize(number + 1, None);
                }
                if let Some(first) = names[*number] {
                    head(out, path, &plain(&leaf.metadata), What::HardLink(first))?;
                    continue;
                }
                names[*number] = Some(path);
                match &leaf.content {
                    Content::Symlink(target) => head(out, path, &leaf.metadata, What::Symlink(target))?,
                    Content::File { at, size } => {
                        if *size > FIELD {
                            let message = format!("{} has 8 GiB or more", path.escape_ascii());
                            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
                        }
                        head(out, path, &leaf.metadata, What::File { size: *size })?;
                        let mut content = Part { at: *at, size: *size, ..contents.clone() };
                        if io::copy(&mut content, out)? != *size {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        pad(out, *size)?;
                    }
                }
            }
        }
    }
    end(out)?;
    out.flush()
}

/// Attributes are the file's, and stand with its first name.
fn plain(metadata: &Metadata) -> Metadata {
    Metadata { attributes: Vec::new(), ..metadata.clone() }
}
