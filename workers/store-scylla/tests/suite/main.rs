//! The store against a real CQL server, whose address stands in the environment (`tests/services`), and against servers that are none.

mod contract;
mod convergence;
mod faults;
mod migrations;
mod overview;
mod real;
mod rows;
mod security;
mod tools;
