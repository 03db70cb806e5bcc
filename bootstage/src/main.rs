//! The boot stages: configuration, network, time, boot server, verification, execution, safe mode.
fn main() {}
