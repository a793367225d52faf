//! The engine without a mount: forks, seals and layer codecs, judged by models and by the real pf crates.
#![allow(
    clippy::unwrap_used,
    clippy::items_after_statements,
    clippy::unnecessary_debug_formatting,
    clippy::zero_sized_map_values,
    unreachable_pub,
    reason = "one test program in several files, whose helpers are tests, too"
)]

mod arrows;
mod carry;
mod checkout;
mod circles;
mod common;
mod documents;
mod fork_engine;
mod imports;
mod layers_real_pf;
mod seal;
mod written;
