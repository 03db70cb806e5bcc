//! What can be asked of a node's power.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a node has power, as its device says. A node with power may hang all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// It has power.
    On,
    /// It has none.
    Off,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// One command to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Give power.
    On,
    /// Take it away, at once; the operating system is not asked.
    Off,
    /// Take it away and give it again, by the device itself.
    Cycle,
    /// Reset the machine, which keeps its power.
    Reset,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Cycle => "cycle",
            Self::Reset => "reset",
        })
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Be on.
    On,
    /// Be off.
    Off,
    /// Be off for some seconds, then on.
    Cycle,
    /// Start anew without losing power.
    Reset,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Change::from(*self).fmt(f)
    }
}

impl From<Action> for Change {
    fn from(action: Action) -> Self {
        match action {
            Action::On => Self::On,
            Action::Off => Self::Off,
            Action::Cycle => Self::Cycle,
            Action::Reset => Self::Reset,
        }
    }
}

/// What firmware starts from at the next boot, and only then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// The CD drive, also a virtual one.
    Cd,
    /// The network.
    Pxe,
    /// The first disk.
    Disk,
    /// The firmware's own setup.
    Setup,
    /// What the firmware is configured for.
    Default,
}

impl fmt::Display for BootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cd => "cd",
            Self::Pxe => "pxe",
            Self::Disk => "disk",
            Self::Setup => "setup",
            Self::Default => "default",
        })
    }
}
