//! Tests that take their time: daemons that are killed under load, full disks, large stores.
#![allow(
    clippy::unwrap_used,
    clippy::items_after_statements,
    clippy::unnecessary_debug_formatting,
    clippy::zero_sized_map_values,
    unreachable_pub,
    reason = "one test program in several files, whose helpers are tests, too"
)]

mod common;
mod fork_crash;
mod scale;
