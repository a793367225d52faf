//! Real mounts: what a mount shows, takes and refuses, and what lasts.
#![allow(
    clippy::unwrap_used,
    clippy::items_after_statements,
    clippy::unnecessary_debug_formatting,
    clippy::zero_sized_map_values,
    unreachable_pub,
    reason = "one test program in several files, whose helpers are tests, too"
)]

mod audit;
mod common;
mod control;
mod damage;
mod fork_base;
mod fork_cost;
mod fork_isolation;
mod fork_tools;
mod forks;
mod hostile;
mod library;
mod live;
mod private;
mod reading;
mod run;
mod seal_mount;
mod session;
mod tags;
mod waits;
