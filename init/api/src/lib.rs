//! What crosses the process boundary between PID 1 and its stages.
