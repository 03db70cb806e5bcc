//! TLS 1.3 client to central: pinned CA, node identity, typed errors, artifact streams.
