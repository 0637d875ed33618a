//! Layers of every kind: which method takes which, and that what is put on them does what it should.

mod above;
mod both_sides;
mod burns_own;
mod norms;
mod page;
mod table;
mod zoo;
