//! The procs layer.
