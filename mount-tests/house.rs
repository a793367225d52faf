//! Keeping house: folders that become images and images that become folders, what is deleted and what is not.

#![allow(clippy::unwrap_used, clippy::zero_sized_map_values)]

mod common;

#[path = "house/adverse.rs"]
mod adverse;
#[path = "house/export.rs"]
mod export;
#[path = "house/gc.rs"]
mod gc;
#[path = "house/import.rs"]
mod import;
#[path = "house/large.rs"]
mod large;
#[path = "house/support.rs"]
mod support;
#[path = "house/taken.rs"]
mod taken;
#[path = "house/ties.rs"]
mod ties;
