//! An ssh server with pluggable accounts and sessions.
