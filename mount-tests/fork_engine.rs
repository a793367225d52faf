//! The fork engine against a simple model of a filesystem: random programs over families of forks, compared while they
//! run, after reopening, and after every kind of damage. `PFIMG_FORK_PROGRAMS=N` runs N programs of each kind,
//! `PFIMG_FORK_SEED=S` starts at seed S.

#![allow(unreachable_pub, clippy::unwrap_used)] // one test program, in several files

#[path = "fork_engine/damage.rs"]
mod damage;
#[path = "fork_engine/model.rs"]
mod model;
#[path = "fork_engine/programs.rs"]
mod programs;
#[path = "fork_engine/rules.rs"]
mod rules;
#[path = "fork_engine/support.rs"]
mod support;
