//! Interrupts what a node does with slivers and images, and sees that nothing is lost and nothing left.
//!
//! Built static, it is `/init` of an initramfs with empty /dev, /proc, /sys, /run and /data. The first virtio disk is an ext4 file
//! system with project quotas, the second holds the ledger of what happened on the first. As the machine's first process it is
//! the driver: it runs the node manager and the ssh gate, which are this program as well, gives them operations, kills them, starts
//! them again, and checks everything. To have the power cut, it asks whoever runs the machine.
//!
//! The kernel parameter `torture=SEED,BOOT,KILLS,HOW` says what the draws follow from, how often to kill, and how to end: by `cut`
//! or by `off`. Lines on the console: `LEDGER …` is to be on the second disk at the next boot; `RUN …` tells of an interruption that
//! was survived; `CUT` asks for the power to be cut at once; `END ok` or `END FAILED` is the last one.

mod check;
mod driver;
mod machine;
mod model;
mod operations;
mod worker;

use std::process::ExitCode;

use orrery_nodeos::host;

fn main() -> ExitCode {
    // Slivers' helpers are this program too.
    if let Some(code) = host::run_inside(std::env::args_os()) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        // As a shell would: the images have this program for one.
        ["-c", line] => worker::inside(line),
        ["manager"] => worker::manager(),
        ["gate"] => worker::gate(),
        _ => machine::finish(driver::run()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
