//! PID 1: mounts, reaping, supervision, watchdog, and the boot state machine's driver.
//!
//! Two halves. [`boot`], [`node`] and [`recover`] are pure logic over the trait [`machine::Machine`]; [`linux`] is the one real
//! implementation. PID 1 parses nothing but its children's result lines and the kernel's own small text files.

pub mod attempts;
pub mod boot;
#[cfg(test)]
mod life;
pub mod linux;
pub mod machine;
pub mod node;
pub mod recover;
#[cfg(test)]
mod simulator;
