//! The `pfimg` command.

fn main() {}
