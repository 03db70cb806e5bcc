//! Safe, fd-typed wrappers for the system calls rustix and nix lack.
