//! VM harness: typed QEMU builder, QMP, serial console expectations.
