//! Builds the boot medium, the PXE set and the node OS image.
