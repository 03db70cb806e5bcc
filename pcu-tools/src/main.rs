//! The `pcu` command.

fn main() {}
