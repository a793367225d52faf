//! The cache layer.
