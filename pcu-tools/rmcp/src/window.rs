//! Which session sequence numbers are new (6.12.13).

/// How far back a number may be.
const BACK: u32 = 16;
/// How far ahead a number may be: more than could have been lost.
const AHEAD: u32 = 32;

/// Remembers the numbers of authentic packets, so that none is believed twice. Zero stands for no session and is never new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    highest: u32,
    /// Bit `n` is the number `highest - n`.
    seen: u32,
}

impl Window {
    /// A window for which `first` is the next number.
    #[must_use]
    pub fn starting_at(first: u32) -> Self {
        Self { highest: first.wrapping_sub(1), seen: u32::MAX }
    }

    /// Whether `number` is new; from now on it is not. To be asked for packets that have been authenticated, and for no others:
    /// otherwise a stranger could move the window.
    pub fn accept(&mut self, number: u32) -> bool {
        if number == 0 {
            return false;
        }
        let ahead = number.wrapping_sub(self.highest);
        let back = self.highest.wrapping_sub(number);
        if (1..=AHEAD).contains(&ahead) {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = number;
            true
        } else if back < BACK && self.seen & (1 << back) == 0 {
            self.seen |= 1 << back;
            true
        } else {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_accepted_once_and_near() {
        let mut window = Window::starting_at(1);
        for (number, new) in
            [(0, false), (1, true), (1, false), (3, true), (2, true), (2, false), (20, true), (4, false), (5, true)]
        {
            assert_eq!(window.accept(number), new, "{number}");
        }
        assert!(!window.accept(20 + AHEAD + 1));
        let mut window = Window::starting_at(u32::MAX);
        assert!(window.accept(u32::MAX) && !window.accept(0) && window.accept(1) && !window.accept(u32::MAX));
    }

    proptest! {
        #[test]
        fn no_number_is_accepted_twice(start: u32, steps in prop::collection::vec(-40i32..40, 0..200)) {
            let mut window = Window::starting_at(start);
            let (mut at, mut accepted) = (start, HashSet::new());
            for step in steps {
                at = at.wrapping_add_signed(step);
                if window.accept(at) {
                    prop_assert!(accepted.insert(at));
                }
            }
        }
    }
}
