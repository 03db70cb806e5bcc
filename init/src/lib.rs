//! PID 1: mounts, reaping, supervision, watchdog, and the boot state machine's driver.
