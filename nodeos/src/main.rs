//! The node OS: node manager, ssh gate, services.
fn main() {}
