//! The one way to do each chore.
fn main() {}
