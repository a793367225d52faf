//! The model layer.
