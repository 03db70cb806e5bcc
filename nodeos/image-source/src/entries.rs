//! An image's paths, for people and programs to read.

use serde::Serialize;

use crate::{
    Image,
    tree::{Content, Node},
};

/// One path of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Without a leading slash; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `directory`, `file` or `symlink`.
    pub kind: &'static str,
    /// Permissions with the set-id and sticky bits.
    pub mode: u32,
    /// Its user's id.
    pub owner: u32,
    /// Its group's id.
    pub group: u32,
    /// Of a file, its content in bytes.
    pub size: u64,
    /// Of a symbolic link, where it points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Image {
    /// All paths but the top, sorted.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        self.tree.nodes().filter(|(path, _)| !path.is_empty()).map(|(path, node)| {
            let (kind, metadata, size, target) = match node {
                Node::Directory(metadata) => ("directory", metadata, 0, None),
                Node::Leaf(number) => {
                    let leaf = self.tree.leaf_of(*number);
                    match &leaf.content {
                        Content::File { size, .. } => ("file", &leaf.metadata, *size, None),
                        Content::Symlink(target) => ("symlink", &leaf.metadata, 0, Some(text(target))),
                    }
                }
            };
            let (mode, owner, group) = (metadata.mode, metadata.owner, metadata.group);
            Item { path: text(path), kind, mode, owner, group, size, target }
        })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
