//! Build, image, demo, test and bench tasks.
fn main() {}
