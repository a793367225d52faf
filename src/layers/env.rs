//! The env layer.
