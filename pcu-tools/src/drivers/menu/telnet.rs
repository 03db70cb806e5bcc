//! Telnet's own language, without any input or output (RFC 854, RFC 855): text and commands told apart, options answered.
//!
//! We agree to what a menu needs and refuse everything else: the device may echo (RFC 857) and suppress go-aheads (RFC 858), and we
//! tell the type (RFC 1091) and the size (RFC 1073) of our terminal when asked. We ask for nothing.

/// Interpret as command.
const IAC: u8 = 255;
const DONT: u8 = 254;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
/// Subnegotiation begins.
const SB: u8 = 250;
/// Subnegotiation ends.
const SE: u8 = 240;

const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;
const TERMINAL_TYPE: u8 = 24;
const WINDOW_SIZE: u8 = 31;

/// `SEND` of a terminal type's subnegotiation, and its answer `IS`.
const SEND: u8 = 1;
const IS: u8 = 0;
/// As much of a subnegotiation as is looked at: an option and `SEND`.
const SUBNEGOTIATION: usize = 2;

/// Our end of a connection.
#[derive(Debug, Default)]
pub(super) struct Telnet {
    state: State,
    /// The options that the device uses, of those that it may.
    theirs: Vec<u8>,
    /// The options that we use.
    ours: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Command,
    /// After one of `WILL`, `WONT`, `DO`, `DONT`.
    Option(u8),
    /// Within a subnegotiation, its beginning.
    Subnegotiation(Vec<u8>),
    /// After `IAC` in one.
    SubnegotiationCommand(Vec<u8>),
}

/// What a piece of what came means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// The device's text.
    pub(super) text: Vec<u8>,
    /// What to send in answer to its commands.
    pub(super) reply: Vec<u8>,
}

impl Telnet {
    /// Takes what came; commands may be cut anywhere.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Received {
        let mut received = Received::default();
        for byte in bytes {
            self.state = match std::mem::take(&mut self.state) {
                State::Text if *byte == IAC => State::Command,
                State::Text => {
                    received.text.push(*byte);
                    State::Text
                }
                State::Command => match *byte {
                    IAC => {
                        received.text.push(IAC);
                        State::Text
                    }
                    verb @ (WILL | WONT | DO | DONT) => State::Option(verb),
                    SB => State::Subnegotiation(Vec::new()),
                    // Nothing, data mark, go ahead, and keys that only a device would have.
                    _ => State::Text,
                },
                State::Option(verb) => {
                    self.option(verb, *byte, &mut received.reply);
                    State::Text
                }
                State::Subnegotiation(kept) if *byte == IAC => State::SubnegotiationCommand(kept),
                State::Subnegotiation(kept) => State::Subnegotiation(keep(kept, *byte)),
                State::SubnegotiationCommand(kept) => match *byte {
                    SE => {
                        self.subnegotiation(&kept, &mut received.reply);
                        State::Text
                    }
                    other => State::Subnegotiation(keep(kept, other)),
                },
            };
        }
        received
    }

    fn option(&mut self, verb: u8, option: u8, reply: &mut Vec<u8>) {
        let (used, allowed, yes, no) = match verb {
            WILL | WONT => (&mut self.theirs, matches!(option, ECHO | SUPPRESS_GO_AHEAD), DO, DONT),
            _ => (&mut self.ours, matches!(option, SUPPRESS_GO_AHEAD | TERMINAL_TYPE | WINDOW_SIZE), WILL, WONT),
        };
        let wanted = matches!(verb, WILL | DO);
        let is_used = used.contains(&option);
        // What is already so is not confirmed: two ends that confirm each other never stop (RFC 854, "option negotiation").
        match (wanted, is_used) {
            (true, true) | (false, false) => {}
            (true, false) if allowed => {
                used.push(option);
                reply.extend([IAC, yes, option]);
                if (yes, option) == (WILL, WINDOW_SIZE) {
                    window_size(reply);
                }
            }
            (true, false) => reply.extend([IAC, no, option]),
            (false, true) => {
                used.retain(|other| *other != option);
                reply.extend([IAC, no, option]);
            }
        }
    }

    fn subnegotiation(&self, what: &[u8], reply: &mut Vec<u8>) {
        if what == [TERMINAL_TYPE, SEND] && self.ours.contains(&TERMINAL_TYPE) {
            reply.extend([IAC, SB, TERMINAL_TYPE, IS]);
            reply.extend(super::TERMINAL.bytes().map(|byte| byte.to_ascii_uppercase()));
            reply.extend([IAC, SE]);
        }
    }
}

/// What text becomes on the wire: 255 is doubled, and a carriage return that no line feed follows gets a NUL.
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(text.len());
    for (index, byte) in text.iter().enumerate() {
        wire.push(*byte);
        match *byte {
            IAC => wire.push(IAC),
            b'\r' if text.get(index + 1) != Some(&b'\n') => wire.push(0),
            _ => {}
        }
    }
    wire
}

fn window_size(reply: &mut Vec<u8>) {
    reply.extend([IAC, SB, WINDOW_SIZE]);
    let [columns, rows] = [super::COLUMNS, super::ROWS].map(u16::to_be_bytes);
    // Neither has a byte of 255, which would have to be doubled.
    reply.extend([columns, rows].concat());
    reply.extend([IAC, SE]);
}

fn keep(mut kept: Vec<u8>, byte: u8) -> Vec<u8> {
    // One more than is looked at, so that a longer one is not taken for it.
    if kept.len() <= SUBNEGOTIATION {
        kept.push(byte);
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_answered() {
        let check = |came: &[u8], text: &[u8], reply: &[u8]| {
            let received = Telnet::default().receive(came);
            assert_eq!(received, Received { text: text.into(), reply: reply.into() }, "{came:?}");
        };
        check(b"login: ", b"login: ", b"");
        check(&[b'a', IAC, IAC, b'b'], &[b'a', IAC, b'b'], b"");
        check(&[IAC, WILL, ECHO], b"", &[IAC, DO, ECHO]);
        check(&[IAC, WILL, 99, IAC, DO, 99], b"", &[IAC, DONT, 99, IAC, WONT, 99]);
        // We never echo: the device would print its own words back.
        check(&[IAC, DO, ECHO], b"", &[IAC, WONT, ECHO]);
        check(&[IAC, WILL, ECHO, IAC, WILL, ECHO], b"", &[IAC, DO, ECHO]);
        check(&[IAC, WONT, ECHO, IAC, DONT, 3], b"", b"");
        check(&[IAC, WILL, ECHO, IAC, WONT, ECHO], b"", &[IAC, DO, ECHO, IAC, DONT, ECHO]);
        check(&[IAC, DO, WINDOW_SIZE], b"", &[IAC, WILL, WINDOW_SIZE, IAC, SB, WINDOW_SIZE, 0, 200, 0, 100, IAC, SE]);
        let mut terminal = vec![IAC, WILL, TERMINAL_TYPE, IAC, SB, TERMINAL_TYPE, IS];
        terminal.extend(b"VT100");
        terminal.extend([IAC, SE]);
        check(&[IAC, DO, TERMINAL_TYPE, IAC, SB, TERMINAL_TYPE, SEND, IAC, SE, b'x'], b"x", &terminal);
        // Not agreed on, not answered; nor what only begins like the question.
        check(&[IAC, SB, TERMINAL_TYPE, SEND, IAC, SE], b"", b"");
        check(&[IAC, DO, TERMINAL_TYPE, IAC, SB, TERMINAL_TYPE, SEND, 7, IAC, SE], b"", &[IAC, WILL, TERMINAL_TYPE]);
        check(&[IAC, 241, b'a', IAC, 249, b'b'], b"ab", b"");
    }

    #[test]
    fn a_lone_carriage_return_is_marked() {
        assert_eq!(encode(b"a\rb\r\nc\r"), b"a\r\0b\r\nc\r\0");
        assert_eq!(encode(&[1, IAC]), [1, IAC, IAC]);
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 240_u8..=255, Just(24), Just(31), Just(1), Just(3)], 0..200), cut in 0_usize..200) {
            let whole = Telnet::default().receive(&bytes);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut telnet = Telnet::default();
            let mut pieces = telnet.receive(first);
            let rest = telnet.receive(second);
            pieces.text.extend(rest.text);
            pieces.reply.extend(rest.reply);
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn a_flood_is_answered_in_proportion(bytes in proptest::collection::vec(prop_oneof![240_u8..=255, Just(24), Just(31), Just(1), Just(3)], 0..400)) {
            let received = Telnet::default().receive(&bytes);
            prop_assert!(received.reply.len() <= 4 * bytes.len());
            prop_assert!(received.text.len() <= bytes.len());
        }

        #[test]
        fn text_comes_through(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let received = Telnet::default().receive(&encode(&text));
            // The marks after carriage returns are the reader's to drop.
            let mut marked = Vec::new();
            for (index, byte) in text.iter().enumerate() {
                marked.push(*byte);
                if *byte == b'\r' && text.get(index + 1) != Some(&b'\n') {
                    marked.push(0);
                }
            }
            prop_assert_eq!(received, Received { text: marked, reply: Vec::new() });
        }
    }
}
