//! The child's side of the result pipe.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
};

use crate::{RESULT_FD, StageResult};

/// Tells PID 1 how the stage went. Call it once: a task before it exits, a service when it is ready.
///
/// # Errors
/// When descriptor 3 is not a pipe (the program was started by hand), or PID 1 no longer reads from it.
pub fn report_result(result: &StageResult) -> io::Result<()> {
    // Opening the magic link makes a descriptor of our own to the same pipe, which needs no trust in who else
    // may hold number 3. Without O_NONBLOCK, opening a pipe without a reader would wait for one.
    let mut pipe =
        OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(format!("/proc/self/fd/{RESULT_FD}"))?;
    if !pipe.metadata()?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "descriptor 3 is not a result pipe"));
    }
    report_to(&mut pipe, result)
}

/// Writes the result line in one write, so that it cannot be torn.
///
/// # Errors
/// When writing fails.
pub fn report_to(pipe: &mut impl Write, result: &StageResult) -> io::Result<()> {
    pipe.write_all(result.encode().as_bytes())
}

/// `O_NONBLOCK` of Linux on x86-64 and ARM.
const O_NONBLOCK: i32 = 0o4000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_written_whole() {
        let mut out = Vec::new();
        report_to(&mut out, &StageResult::ok("boot")).unwrap();
        assert_eq!(out, b"ok boot\n");
    }
}
