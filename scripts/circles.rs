//! Prints the circles of files that `mount-tests/circles.rs` finds.

#[path = "../mount-tests/checkout.rs"]
mod checkout;
#[path = "../mount-tests/circles.rs"]
mod circles;
#[path = "../mount-tests/imports.rs"]
mod imports;

fn main() {
    print!("{}", circles::Circles::of_the_checkout().describe());
}
