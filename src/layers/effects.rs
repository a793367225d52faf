//! The effects layer.
