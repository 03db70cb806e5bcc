//! VM harness: typed QEMU builder, QMP, serial console expectations.
//!
//! A [`VmSpec`] says what the machine is made of; [`VmSpec::start`] makes a running [`Vm`] of it. Everything the
//! guest prints on its serial port lands, timestamped, in a [`Console`], on which expectations wait with a deadline.
//! No QEMU outlives its harness: it dies with its `Vm`, with the harness process, or at its hard deadline.
//!
//! What is not here: knowledge of what Orrery prints, and any policy about scenarios; those are their caller's.

mod accel;
mod command;
mod console;
mod disk;
mod guest;
mod process;
mod qmp;
mod spec;
pub mod ssh;
mod terminal;
mod vm;

pub use accel::{Acceleration, Processors, acceleration, prove_acceleration};
pub use console::{Console, ConsoleError, Line, Mark, Match, Pattern};
pub use disk::{create_disk, flip_bit, flip_byte, free_port};
pub use guest::{mbr_exit, mbr_print};
pub use qmp::{Event, Qmp, QmpError};
pub use spec::{BootMedium, Disk, DiskBus, Firmware, Network, VmSpec};
pub use terminal::{Terminal, WindowSize};
pub use vm::{ExpectError, StartError, Vm};
