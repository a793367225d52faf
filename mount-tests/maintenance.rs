//! Import, export, gc and prune: folders become images, images become folders, and what is needed is kept.

mod adverse;
mod export;
mod gc;
mod git;
mod git_adverse;
mod import;
mod large;
mod project;
mod support;
mod taken;
mod ties;
