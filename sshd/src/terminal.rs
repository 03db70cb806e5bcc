//! Terminals with the size and the modes of the client's.

use std::{io, os::fd::AsFd};

use orrery_sys::terminal::set_modes;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::account::{Pty, WindowSize};

impl Pty {
    /// Gives a terminal this size and these modes. For [`crate::Login`]s, before they start anything on it.
    ///
    /// # Errors
    /// When `terminal` is neither side of a terminal.
    pub fn apply_to(&self, terminal: impl AsFd) -> io::Result<()> {
        set_size(&terminal, self.size)?;
        set_modes(&terminal, &self.modes)
    }
}

/// Tells a terminal, and whoever is in its foreground, a new size.
pub(crate) fn set_size(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
