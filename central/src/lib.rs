//! Central: boot server, wanted state, reports.
