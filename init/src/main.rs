//! PID 1. See the library for what it does.

use std::process::ExitCode;

use orrery_init::{
    boot,
    linux::{Leave, Linux, last_resort, show_panics},
    machine::Machine,
    node,
};
use orrery_init_api::Role;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("init: this is the first process of a machine; it does nothing when started by hand");
        return ExitCode::from(2);
    }
    show_panics();
    let Err(_) = std::panic::catch_unwind(run) else { last_resort("it returned") };
    last_resort("it panicked")
}

fn run() {
    let mut linux = Linux::start();
    match linux.role() {
        Role::Boot => match boot::Driver::default().drive(&mut linux) {
            boot::Ending::ChainBoot(loaded) => linux.chain_boot(loaded),
            boot::Ending::FirmwareReboot => linux.leave(Leave::Restart),
        },
        Role::Node => match node::Driver::default().drive(&mut linux) {
            node::Ending::Ready => linux.serve(),
            node::Ending::FirmwareReboot => linux.leave(Leave::Restart),
        },
    }
}
