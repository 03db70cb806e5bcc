//! Safe, fd-typed wrappers for the system calls rustix and nix lack.
pub mod block;
pub mod bpf;
pub mod descriptor;
pub mod kexec;
pub mod namespace;
pub mod packet;
pub mod quota;
pub mod rlimit;
pub mod seccomp;
pub mod session;
pub mod spawn;
pub mod terminal;
pub mod verity;
pub mod watchdog;
