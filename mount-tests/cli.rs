//! The commands: what they print, what they change, how they exit.
#![allow(
    clippy::unwrap_used,
    clippy::items_after_statements,
    clippy::unnecessary_debug_formatting,
    clippy::zero_sized_map_values,
    unreachable_pub,
    reason = "one test program in several files, whose helpers are tests, too"
)]

mod audit_events;
mod audit_packs;
mod checkout;
mod commands;
mod common;
mod maintenance;
mod messages;
