//! Central: boot server, wanted state, reports.
fn main() {}
