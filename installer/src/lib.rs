//! Choose disks, plan, partition, format, write, verify.
