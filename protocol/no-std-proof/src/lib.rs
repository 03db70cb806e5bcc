//! Proof that `protocol` works where std does not exist, as in a firmware's loader: a library with its own
//! panic handler and allocator, which checks an envelope the way such a loader would. A dependency that pulls
//! std in fails here, because std brings a panic handler of its own.
//!
//! The proof is the build with `--profile image`, which `cargo xtask tidy` runs. Under profiles that unwind the
//! crate is empty: unwinding needs a part of std that no loader has.
#![cfg(panic = "abort")]
#![no_std]

extern crate alloc;

use alloc::vec;
use core::panic::PanicInfo;

use dlmalloc::GlobalDlmalloc;
use orrery_protocol::{BootScript, Envelope, PayloadType, PublicKey, TrustRoot};

#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The serial of a boot script, if `key` signed the envelope it came in.
pub fn serial_of_script(envelope: &[u8], key: PublicKey) -> u64 {
    let root = TrustRoot { keys: vec![key], threshold: 1 };
    let Ok(envelope) = Envelope::parse(envelope) else { return 0 };
    let Ok(verified) = envelope.verify(PayloadType::BootScript, &root) else { return 0 };
    BootScript::decode(verified.payload()).map_or(0, |script| script.serial)
}
