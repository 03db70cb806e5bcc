//! What slivers have beyond what all have, on a command line.

use clap::{Args, ValueEnum};
use orrery_protocol::Extras;

#[derive(Args)]
pub(crate) struct ExtraArgs {
    /// Devices that its slivers have from their next start on; `none` takes them away.
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',')]
    devices: Vec<Device>,
    /// Whether containers may run inside, from the next start on.
    #[arg(long, value_name = "on|off")]
    nesting: Option<Nesting>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// /dev/fuse.
    Fuse,
    /// /dev/net/tun.
    Tun,
    /// Neither.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Nesting {
    On,
    Off,
}

impl ExtraArgs {
    /// Changes what was given.
    pub(crate) fn apply(&self, extras: &mut Extras) {
        if !self.devices.is_empty() {
            extras.fuse = self.devices.contains(&Device::Fuse);
            extras.tun = self.devices.contains(&Device::Tun);
        }
        if let Some(nesting) = self.nesting {
            extras.nesting = nesting == Nesting::On;
        }
    }
}

/// Their names, as they are given.
pub(crate) fn show(extras: Extras) -> Vec<(&'static str, String)> {
    let Extras { fuse, tun, nesting } = extras;
    let there = [(fuse, "device", "fuse"), (tun, "device", "tun"), (nesting, "nesting", "on")];
    there.into_iter().filter(|(there, ..)| *there).map(|(_, name, value)| (name, value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        extras: ExtraArgs,
    }

    #[test]
    fn what_is_not_given_stays() {
        let check = |had: [bool; 3], line: &str, expect: [bool; 3]| {
            let [fuse, tun, nesting] = had;
            let mut extras = Extras { fuse, tun, nesting };
            let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).expect(line);
            line.extras.apply(&mut extras);
            assert_eq!([extras.fuse, extras.tun, extras.nesting], expect);
        };
        check([false; 3], "", [false; 3]);
        check([true; 3], "", [true; 3]);
        check([false; 3], "--device fuse", [true, false, false]);
        check([true, false, false], "--device tun --nesting on", [false, true, true]);
        check([false; 3], "--device tun,fuse", [true, true, false]);
        check([true; 3], "--device none", [false, false, true]);
        check([true; 3], "--nesting off", [true, true, false]);
        assert!(Line::try_parse_from(["x", "--device", "kvm"]).is_err());
    }
}
