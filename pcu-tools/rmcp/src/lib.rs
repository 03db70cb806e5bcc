//! IPMI 2.0 over a LAN, as bytes.
