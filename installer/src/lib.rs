//! Installing: choose a disk, plan, partition, format, write, verify, commit.
//!
//! All decisions are pure ([`choose`], [`Plan`]); the machine and the network come in through [`Machine`], [`Source`] and
//! [`Observer`], so that the whole flow runs in tests without a disk. Nothing is trusted that was not verified against a signed
//! manifest, and a disk is bootable only once everything on it is: `active` is written last.

mod choose;
mod disk;
mod error;
mod fetch;
mod hardware;
mod here;
mod identity;
mod installed;
mod layout;
mod leftovers;
mod linux;
mod pieces;
mod plan;
mod probe;
mod replace;
mod run;
mod source;
mod table;
mod trial;
mod unfinished;
mod verify;

pub use choose::{ChooseError, choose, fits};
pub use disk::{Disk, discover};
pub use error::InstallError;
pub use fetch::fetch;
pub use hardware::{Hardware, Shortfalls};
pub use identity::{KeptIdentity, read_identity, write_identity};
pub use installed::{
    FailedUpgrade, InstalledState, Slot, StateError, UnknownSlot, installed_slot, read_state, write_active, write_state,
};
pub use layout::{BOOT_LABEL, DATA_LABEL, image_path, slot_file};
pub use linux::{Linux, MountError, Mounted, find_partitions, mount_partition, parent_disk};
pub use plan::Plan;
pub use probe::{Content, probe};
pub use replace::replace_file;
pub use run::{Committed, Machine, Request, Volume, install, rewrite_slot, try_slot};
pub use source::{Observer, Source, TransferError};
pub use trial::{
    Due, TRIAL_BOOTS, Trial, Wanted, due, failed_before, give_up_trial, promote, read_trial, release_in_slot,
    remove_trial, spend_boot, wanted, write_trial,
};
pub use verify::{ReadError, StdRead, VerifyError, copy_verified};
