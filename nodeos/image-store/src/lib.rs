//! Content-addressed object store and hard-linked image trees.
