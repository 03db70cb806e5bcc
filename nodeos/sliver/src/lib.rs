//! Slivers: namespaces, overlay roots, control groups, quotas.
