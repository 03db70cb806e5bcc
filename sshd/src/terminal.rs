//! Terminals with the size and the modes of the client's.

use std::{io, os::fd::AsFd};

use russh::Pty as Mode;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetattr,
    tcsetwinsize,
};

use crate::account::{Pty, WindowSize};

impl Pty {
    /// Gives a terminal this size and these modes. For [`crate::Login`]s, before they start anything on it.
    ///
    /// # Errors
    /// When `terminal` is neither side of a terminal.
    pub fn apply_to(&self, terminal: impl AsFd) -> io::Result<()> {
        set_size(&terminal, self.size)?;
        let mut modes = tcgetattr(&terminal)?;
        for &(mode, value) in &self.modes {
            set(&mut modes, mode, value);
        }
        Ok(tcsetattr(&terminal, OptionalActions::Now, &modes)?)
    }
}

/// Tells a terminal, and whoever is in its foreground, a new size.
pub(crate) fn set_size(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// The codes and flags of RFC 4254, section 8, that mean something on a Linux pseudo-terminal, and IUTF8 (RFC 8160).
const CODES: [(Mode, SpecialCodeIndex); 14] = [
    (Mode::VINTR, SpecialCodeIndex::VINTR),
    (Mode::VQUIT, SpecialCodeIndex::VQUIT),
    (Mode::VERASE, SpecialCodeIndex::VERASE),
    (Mode::VKILL, SpecialCodeIndex::VKILL),
    (Mode::VEOF, SpecialCodeIndex::VEOF),
    (Mode::VEOL, SpecialCodeIndex::VEOL),
    (Mode::VEOL2, SpecialCodeIndex::VEOL2),
    (Mode::VSTART, SpecialCodeIndex::VSTART),
    (Mode::VSTOP, SpecialCodeIndex::VSTOP),
    (Mode::VSUSP, SpecialCodeIndex::VSUSP),
    (Mode::VREPRINT, SpecialCodeIndex::VREPRINT),
    (Mode::VWERASE, SpecialCodeIndex::VWERASE),
    (Mode::VLNEXT, SpecialCodeIndex::VLNEXT),
    (Mode::VDISCARD, SpecialCodeIndex::VDISCARD),
];
const INPUT: [(Mode, InputModes); 12] = [
    (Mode::IGNPAR, InputModes::IGNPAR),
    (Mode::PARMRK, InputModes::PARMRK),
    (Mode::INPCK, InputModes::INPCK),
    (Mode::ISTRIP, InputModes::ISTRIP),
    (Mode::INLCR, InputModes::INLCR),
    (Mode::IGNCR, InputModes::IGNCR),
    (Mode::ICRNL, InputModes::ICRNL),
    (Mode::IXON, InputModes::IXON),
    (Mode::IXANY, InputModes::IXANY),
    (Mode::IXOFF, InputModes::IXOFF),
    (Mode::IMAXBEL, InputModes::IMAXBEL),
    (Mode::IUTF8, InputModes::IUTF8),
];
const LOCAL: [(Mode, LocalModes); 11] = [
    (Mode::ISIG, LocalModes::ISIG),
    (Mode::ICANON, LocalModes::ICANON),
    (Mode::ECHO, LocalModes::ECHO),
    (Mode::ECHOE, LocalModes::ECHOE),
    (Mode::ECHOK, LocalModes::ECHOK),
    (Mode::ECHONL, LocalModes::ECHONL),
    (Mode::NOFLSH, LocalModes::NOFLSH),
    (Mode::TOSTOP, LocalModes::TOSTOP),
    (Mode::IEXTEN, LocalModes::IEXTEN),
    (Mode::ECHOCTL, LocalModes::ECHOCTL),
    (Mode::ECHOKE, LocalModes::ECHOKE),
];
const OUTPUT: [(Mode, OutputModes); 5] = [
    (Mode::OPOST, OutputModes::OPOST),
    (Mode::ONLCR, OutputModes::ONLCR),
    (Mode::OCRNL, OutputModes::OCRNL),
    (Mode::ONOCR, OutputModes::ONOCR),
    (Mode::ONLRET, OutputModes::ONLRET),
];
/// The value of a code that is switched off.
const DISABLED: u32 = 255;

fn set(modes: &mut Termios, mode: Mode, value: u32) {
    if let Some(&(_, code)) = CODES.iter().find(|(known, _)| *known == mode) {
        // Linux switches codes off by 0.
        modes.special_codes[code] = if value == DISABLED { 0 } else { value as u8 };
    } else if let Some(&(_, flag)) = INPUT.iter().find(|(known, _)| *known == mode) {
        modes.input_modes.set(flag, value != 0);
    } else if let Some(&(_, flag)) = LOCAL.iter().find(|(known, _)| *known == mode) {
        modes.local_modes.set(flag, value != 0);
    } else if let Some(&(_, flag)) = OUTPUT.iter().find(|(known, _)| *known == mode) {
        modes.output_modes.set(flag, value != 0);
    }
}
