//! Installing: choose a disk, plan, partition, format, write, verify, commit.
//!
//! All decisions are pure ([`choose`], [`Plan`]); the machine and the network come in through [`Machine`], [`Source`] and
//! [`Observer`], so that the whole flow runs in tests without a disk. Nothing is trusted that was not verified against a signed
//! manifest, and a disk is bootable only once everything on it is: `active` is written last.

mod choose;
mod disk;
mod error;
mod fetch;
mod identity;
mod installed;
mod layout;
mod linux;
mod plan;
mod probe;
mod run;
mod table;
mod verify;

pub use choose::{ChooseError, choose, fits};
pub use disk::{Disk, discover};
pub use error::InstallError;
pub use fetch::{Observer, Source, TransferError, fetch};
pub use identity::{KeptIdentity, read_identity, write_identity};
pub use installed::{InstalledState, Slot, StateError, installed_slot, read_state, write_active, write_state};
pub use layout::{BOOT_LABEL, DATA_LABEL, image_path, slot_file};
pub use linux::{Linux, MountError, Mounted, find_partitions, mount_partition, parent_disk};
pub use plan::Plan;
pub use probe::{Content, probe};
pub use run::{Committed, Machine, Request, Volume, install, rewrite_slot};
pub use verify::{ReadError, StdRead, VerifyError, copy_verified};
