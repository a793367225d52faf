//! Prints the circles of files that `mount-tests/circles.rs` finds. `--lower` deletes the rows of scripts/circles.txt whose
//! arrow is gone.

#[path = "../mount-tests/circles.rs"]
mod circles;
#[path = "../mount-tests/imports.rs"]
mod imports;

fn main() {
    let found = circles::Circles::of_the_checkout();
    if std::env::args().nth(1).is_some_and(|option| option == "--lower") {
        let list = imports::top().join("scripts/circles.txt");
        std::fs::write(list, found.lower(&circles::read_list())).unwrap();
    } else {
        print!("{}", found.describe());
    }
}
