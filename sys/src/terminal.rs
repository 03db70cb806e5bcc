//! Modes of terminals, as ssh clients tell them.

use std::{io, os::fd::AsFd};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

/// Gives a terminal modes by their numbers in RFC 4254, section 8. Those that mean nothing here are left out.
///
/// # Errors
/// When `terminal` is neither side of a terminal.
pub fn set_modes(terminal: impl AsFd, modes: &[(u8, u32)]) -> io::Result<()> {
    let mut now = tcgetattr(&terminal)?;
    for &(mode, value) in modes {
        set(&mut now, mode, value);
    }
    Ok(tcsetattr(&terminal, OptionalActions::Now, &now)?)
}

/// The codes and flags of RFC 4254, section 8, by their numbers there, that mean something on a Linux pseudo-terminal, and IUTF8
/// (RFC 8160).
const CODES: [(u8, SpecialCodeIndex); 14] = [
    (1, SpecialCodeIndex::VINTR),
    (2, SpecialCodeIndex::VQUIT),
    (3, SpecialCodeIndex::VERASE),
    (4, SpecialCodeIndex::VKILL),
    (5, SpecialCodeIndex::VEOF),
    (6, SpecialCodeIndex::VEOL),
    (7, SpecialCodeIndex::VEOL2),
    (8, SpecialCodeIndex::VSTART),
    (9, SpecialCodeIndex::VSTOP),
    (10, SpecialCodeIndex::VSUSP),
    (12, SpecialCodeIndex::VREPRINT),
    (13, SpecialCodeIndex::VWERASE),
    (14, SpecialCodeIndex::VLNEXT),
    (18, SpecialCodeIndex::VDISCARD),
];
const INPUT: [(u8, InputModes); 12] = [
    (30, InputModes::IGNPAR),
    (31, InputModes::PARMRK),
    (32, InputModes::INPCK),
    (33, InputModes::ISTRIP),
    (34, InputModes::INLCR),
    (35, InputModes::IGNCR),
    (36, InputModes::ICRNL),
    (38, InputModes::IXON),
    (39, InputModes::IXANY),
    (40, InputModes::IXOFF),
    (41, InputModes::IMAXBEL),
    (42, InputModes::IUTF8),
];
const LOCAL: [(u8, LocalModes); 11] = [
    (50, LocalModes::ISIG),
    (51, LocalModes::ICANON),
    (53, LocalModes::ECHO),
    (54, LocalModes::ECHOE),
    (55, LocalModes::ECHOK),
    (56, LocalModes::ECHONL),
    (57, LocalModes::NOFLSH),
    (58, LocalModes::TOSTOP),
    (59, LocalModes::IEXTEN),
    (60, LocalModes::ECHOCTL),
    (61, LocalModes::ECHOKE),
];
const OUTPUT: [(u8, OutputModes); 5] = [
    (70, OutputModes::OPOST),
    (72, OutputModes::ONLCR),
    (73, OutputModes::OCRNL),
    (74, OutputModes::ONOCR),
    (75, OutputModes::ONLRET),
];
/// The value of a code that is switched off.
const DISABLED: u32 = 255;

fn set(modes: &mut Termios, mode: u8, value: u32) {
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

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};

    use super::*;

    #[test]
    fn modes() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("making a terminal");
        grantpt(&master).expect("granting it");
        unlockpt(&master).expect("unlocking it");
        // VERASE is ^H, VQUIT off, IUTF8 on, ECHO off, ONLCR off; the last is nothing.
        set_modes(&master, &[(3, 8), (2, 255), (42, 1), (53, 0), (72, 0), (200, 1)]).expect("setting modes");
        let now = tcgetattr(&master).expect("asking for modes");
        let codes = [SpecialCodeIndex::VERASE, SpecialCodeIndex::VQUIT].map(|code| now.special_codes[code]);
        assert_eq!(codes, [8, 0]);
        assert!(now.input_modes.contains(InputModes::IUTF8) && now.local_modes.contains(LocalModes::ICANON));
        assert!(!now.local_modes.contains(LocalModes::ECHO) && !now.output_modes.contains(OutputModes::ONLCR));
    }
}
